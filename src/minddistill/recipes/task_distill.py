"""Two-phase task distillation (TinyBERT, arXiv 1909.10351): intermediate layers, then predictions; and evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .. import runtime
from ..config import flag, numbers, parse
from ..data.loader import Loader
from ..data.records import Rows
from ..distill.distiller import CachedTeacher, Distiller
from ..distill.layer_map import LayerMap, layer_map
from ..distill.objectives import Intermediate, Prediction, check_heads
from ..errors import UserError
from ..models import store
from ..models.config import ModelConfig
from ..models.heads import TextModel
from ..train.optim import OptimConfig
from . import common, evaluate, teacher_cache
from .flags import OptimFlags, RunFlags, StepFlags, StudentFlags, step_config
from .stage import Stage, open_run, run_stage


@dataclass
class Config:
    """Task distillation, as documented."""

    device_target: Literal["", "Ascend", "GPU", "CPU"] = flag("", "Ascend, GPU or CPU; empty takes the best there is")
    do_train: bool = flag(True, "enable training")
    do_eval: bool = flag(True, "enable evaluation")
    distribute: bool = flag(False, "train on several devices, started by msrun")
    device_num: int = flag(1, "number of devices")
    td_phase1_epoch_size: int = flag(10, "epochs of phase 1")
    td_phase2_epoch_size: int = flag(3, "epochs of phase 2")
    device_id: int = flag(0, "number of the device")
    do_shuffle: bool = flag(True, "shuffle the training rows every epoch")
    enable_data_sink: bool = flag(True, "feed batches ahead where the device supports it (not CPU)")
    save_ckpt_step: int = flag(1000, "steps between checkpoints", "save_checkpoint_step")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    data_sink_steps: int = flag(1, "steps of one sink")
    load_teacher_ckpt_path: str = flag("", "the fine-tuned teacher: model directory or .ckpt")
    load_gd_ckpt_path: str = flag("", "the student after general distillation: model directory or .ckpt")
    load_td1_ckpt_path: str = flag("", "the student after phase 1, which is then skipped; or the model to evaluate")
    train_data_dir: str = flag("", "record directory to train on")
    eval_data_dir: str = flag(
        "", "record directory to evaluate on; of several, with commas, the first selects the best"
    )
    task_name: str = flag("", "the records' task: SST-2, QNLI, MNLI or any other of the table; checked where given")
    schema_dir: str = flag("", "path of the schema file; the record directories' own by default")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")


@dataclass
class Learning(OptimFlags):
    """Optimisers and objectives of the two phases."""

    learning_rate: float = flag(0.0, "highest learning rate of both phases; 0 takes each phase's own")
    td_phase1_learning_rate: float = flag(5e-5, "highest learning rate of phase 1")
    td_phase2_learning_rate: float = flag(2e-5, "highest learning rate of phase 2")
    temperature: float = flag(1.0, "temperature of phase 2's softmaxes")
    hard_label_weight: float = flag(0.0, "weight of the labels' cross-entropy in phase 2")
    eval_steps: int = flag(0, "steps between evaluations in phase 2 besides each epoch's end; 0 for none")
    teacher_cache: str = flag(
        "auto", "teacher's outputs on disk: auto (for this run, where it pays), off, or a directory that is kept"
    )
    allow_weak_teacher: bool = flag(False, "go on with a teacher that does not beat the majority class")
    teacher_num_attention_heads: int = flag(12, "heads of a teacher .ckpt without config.json beside it")

    def phase(self, number: int) -> OptimConfig:
        """The optimiser of phase 1 or 2."""
        return self.optim(
            self.learning_rate or (self.td_phase1_learning_rate, self.td_phase2_learning_rate)[number - 1]
        )


@dataclass
class Job:
    """What the phases share."""

    config: Config
    learning: Learning
    student: StudentFlags
    run: RunFlags
    step: StepFlags
    place: runtime.Runtime
    directory: Path
    log: Any
    teacher: store.Weights
    train: Rows
    dev: Rows | None
    buckets: list[int]

    def build(self, weights: store.Weights, config: ModelConfig, may_miss: tuple[str, ...] = ()) -> TextModel:
        """A model on this job's device and in its types."""
        return store.build(
            weights,
            config,
            seed=self.run.seed,
            may_miss=may_miss,
            **runtime.precision(self.step.compute_type, self.step.dtype, self.place.device),
        )

    @property
    def head(self) -> dict[str, Any]:
        """What the student's head has from its teacher."""
        taken = ("labels", "regression", "relu_before_classifier")
        return {name: getattr(self.teacher.config, name) for name in taken} | {"pooler": True}

    @property
    def caches(self) -> Path:
        """Where caches of the teacher's outputs are."""
        setting = self.learning.teacher_cache
        return self.directory / "teacher_cache" if setting == "auto" else Path(setting)

    def built_teacher(self) -> TextModel | None:
        """The teacher, or None where only its outline is here."""
        return None if self.teacher.outline else self.build(self.teacher, self.teacher.config)

    def taught(
        self, pairs: LayerMap | None, teacher: TextModel | None
    ) -> tuple[TextModel | CachedTeacher, Callable | None]:
        """What a phase learns from, the teacher or its cache, and the columns that a cache adds to the batches.

        Args:
            pairs: of phase 1; None for phase 2, which reads the logits of phase 1's cache where there is one.
        """
        setting, config = self.learning.teacher_cache, self.config
        if setting == "off" and teacher is not None:
            return teacher, None
        types = {"compute_type": self.step.compute_type, "dtype": self.step.dtype}
        owner = teacher_cache.identity(self.teacher, self.train, types, self.caches)
        epochs = config.td_phase2_epoch_size + (config.td_phase1_epoch_size if pairs else 0)
        layout = teacher_cache.layout_of(self.teacher.config, pairs)
        if pairs is None:
            layout = teacher_cache.begun(self.caches, owner) or layout
        started = teacher_cache.path_of(self.caches, owner, layout).is_dir()
        if setting == "auto" and teacher is not None and not started:
            pays = teacher_cache.pays(layout, self.train, epochs, self.directory, self.log.line)
            if not self.place.all(pays):
                return teacher, None
        cache = teacher_cache.filled(
            self.caches, layout, self.train, owner, teacher, self.buckets, epochs, self.place, self.log.line
        )
        if pairs is None:
            return CachedTeacher(0, 0, True), cache.logits
        return CachedTeacher(len(layout.hidden), len(layout.attention), False), cache.batch

    def loader(self, columns: Callable | None = None) -> Loader:
        """Batches of the training rows, with what a teacher's cache adds to them."""
        return Loader(
            self.train,
            self.step.batch_size,
            buckets=self.buckets,
            seed=self.run.seed,
            shuffle=self.config.do_shuffle,
            rank=self.place.rank,
            size=self.place.size,
            columns=columns,
        )


def run(
    config: Config,
    learning: Learning,
    student: StudentFlags,
    run_flags: RunFlags,
    step_flags: StepFlags,
) -> tuple[Path, dict[str, float]]:
    """Run what `do_train` and `do_eval` ask for.

    Returns:
        The model directory that results (or was evaluated) and its dev metrics.

    Raises:
        UserError: flags, records and models do not go together.
    """
    if not config.do_train and not config.do_eval:
        raise UserError("--do_train false and --do_eval false: nothing to do; set one of them true")
    if not config.do_train:
        return _evaluate(config, learning, config.load_td1_ckpt_path, run_flags.output_dir)
    run_flags.output_dir = run_flags.output_dir or "runs/task_distill"
    place = runtime.start(config.device_target, config.device_id, config.distribute, config.device_num)
    directory, log = open_run(run_flags, [config, learning, student, run_flags, step_flags], place)
    try:
        job = prepare(config, learning, student, run_flags, step_flags, place, directory, log)
        first = Path(config.load_td1_ckpt_path) if config.load_td1_ckpt_path else run_stage(phase_one(job))[0]
        result = run_stage(phase_two(job, first))
        if learning.teacher_cache == "auto" and not place.rank:
            shutil.rmtree(job.caches, ignore_errors=True)  # it may be large, and this run does not need it again
        if not place.rank and config.do_eval and "," in config.eval_data_dir:
            _evaluate(config, learning, str(result[0]), str(directory / "evaluation"))
        return result
    finally:
        log.close()


def prepare(
    config: Config,
    learning: Learning,
    student: StudentFlags,
    run_flags: RunFlags,
    step_flags: StepFlags,
    place: runtime.Runtime,
    directory: Path,
    log: Any,
) -> Job:
    """Read and check what the flags name, teacher and records first.

    Raises:
        UserError: they do not go together.
    """
    common.note_data_sink(config.enable_data_sink, place, log)
    config.load_teacher_ckpt_path = config.load_teacher_ckpt_path or teacher_cache.outline_in(learning.teacher_cache)
    if not config.load_teacher_ckpt_path:
        raise UserError("--load_teacher_ckpt_path is empty; expected the fine-tuned teacher's directory or .ckpt")
    weights = store.read_weights(config.load_teacher_ckpt_path, learning.teacher_num_attention_heads)
    train = _read(config, config.train_data_dir, "--train_data_dir", weights)
    weights = common.align_labels(weights, _labels(train), log.line)
    if not weights.config.num_labels:
        raise UserError(f"{weights.source}: an encoder without a classifier; fine-tune it first (minddistill finetune)")
    # The first of several (MNLI's matched and mismatched) selects the best student.
    first = config.eval_data_dir.split(",")[0]
    dev = _read(config, first, "--eval_data_dir", weights) if first else None
    if not weights.config.regression:
        for rows in filter(None, (train, dev)):
            rows.check_classes(weights.config.num_labels)
    if config.do_eval and dev is None:
        raise UserError("--eval_data_dir is empty; expected a record directory, or --do_eval false")
    if train.seq_length > student.seq_length:
        raise UserError(
            f"{train.directory}: rows of {train.seq_length} tokens, --seq_length is {student.seq_length}; make them agree"
        )
    buckets = common.buckets_for(step_flags.buckets, train, student.loss_mode == "reference")
    return Job(config, learning, student, run_flags, step_flags, place, directory, log, weights, train, dev, buckets)


def _labels(rows: Rows) -> list[str]:
    return [] if rows.meta.get("regression") else rows.meta.get("labels", [])


def _read(config: Config, directory: str, name: str, weights: store.Weights) -> Rows:
    return common.read_checked(
        directory,
        name,
        weights.config,
        weights.directory,
        config.task_name,
        kind=config.dataset_type,
        schema_file=config.schema_dir,
    )


def _first_student(job: Job) -> tuple[TextModel, Mapping[str, Any], str]:
    """The student that phase 1 starts from, its projection if it brings one, and where it comes from."""
    wanted = job.student.config(job.teacher.config)
    heads = ("classifier.", "pooler.")
    if job.config.load_gd_ckpt_path:
        if job.student.init_from_teacher:
            raise UserError("--init_from_teacher and --load_gd_ckpt_path: two starting points; give one of them")
        weights = store.read_weights(job.config.load_gd_ckpt_path, wanted.num_attention_heads)
        return job.build(weights, weights.config.with_(**job.head), heads), weights.fit, str(weights.source)
    if job.student.init_from_teacher:
        layers = numbers(job.student.init_from_teacher, "--init_from_teacher")
        weights = store.from_layers(job.teacher, wanted.with_(**job.head), layers)
        return job.build(weights, weights.config, heads), {}, f"layers {job.student.init_from_teacher} of the teacher"
    types = runtime.precision(job.step.compute_type, job.step.dtype, job.place.device)
    model = store.new(wanted.with_(**job.head), job.run.seed, **types)
    return model, {}, "random weights"


def phase_one(job: Job) -> Stage:
    """Intermediate layers: the student and projection that `job` asks for, and what they learn from."""
    student, carried, origin = _first_student(job)
    pairs = layer_map(job.student.layer_map, student.config.num_hidden_layers, job.teacher.config.num_hidden_layers)
    check_heads(pairs, student.config.num_attention_heads, job.teacher.config.num_attention_heads)
    fit = common.fit_dense(job.student.fit_dense, student.config, job.teacher.config, pairs, carried, job.run.seed)
    job.log.line(f"The student starts from {origin}; it learns from teacher layers {pairs.attention}")

    def save(name: str, found: Mapping[str, float]) -> Path:
        return _save(job, student, job.directory / "phase1" / name, "phase 1", origin, found, common.fit_arrays(fit))

    def build() -> tuple[Distiller, Loader]:
        teacher = job.built_teacher()
        if job.dev is not None and teacher is not None:
            shapes = common.eval_buckets(job.buckets, job.dev)
            common.check_teacher(teacher, job.dev, shapes, job.learning.allow_weak_teacher, job.log.line)
        source, columns = job.taught(pairs, teacher)
        kept = pairs.kept() if columns else pairs
        return Distiller(student, source, Intermediate(kept, fit, job.student.loss_mode)), job.loader(columns)

    return Stage(
        name="phase1",
        directory=job.directory / "phase1",
        build=build,
        epochs=job.config.td_phase1_epoch_size,
        optim=job.learning.phase(1),
        step=step_config(job.step, job.learning),
        flags=job.run,
        runtime=job.place,
        log=job.log,
        save=save,
        save_steps=job.config.save_ckpt_step,
        keep=job.config.max_ckpt_num,
        identity=_identity(job, origin),
    )


def phase_two(job: Job, first: Path) -> Stage:
    """Predictions: the student in the model directory `first`, with a classifier, and what it learns from."""
    weights = store.read_weights(first, job.student.config(job.teacher.config).num_attention_heads)
    student = job.build(weights, weights.config.with_(**job.head), ("classifier.",))
    evaluate = None
    if job.dev is not None and job.config.do_eval:
        evaluate = common.Evaluator(student, job.dev, common.eval_buckets(job.buckets, job.dev)).metrics

    def save(name: str, found: Mapping[str, float]) -> Path:
        return _save(job, student, job.directory / name, "phase 2", str(first), found, weights.fit)

    learning = job.learning

    def build() -> tuple[Distiller, Loader]:
        source, columns = job.taught(None, job.built_teacher())
        objective = Prediction(learning.temperature, learning.hard_label_weight, job.teacher.config.regression)
        return Distiller(student, source, objective), job.loader(columns)

    return Stage(
        name="phase2",
        directory=job.directory,
        build=build,
        epochs=job.config.td_phase2_epoch_size,
        optim=learning.phase(2),
        step=step_config(job.step, learning),
        flags=job.run,
        runtime=job.place,
        log=job.log,
        save=save,
        evaluate=evaluate,
        eval_steps=learning.eval_steps,
        save_steps=job.config.save_ckpt_step,
        keep=job.config.max_ckpt_num,
        identity=_identity(job, str(first)),
    )


def _identity(job: Job, origin: str) -> dict[str, Any]:
    return {
        "teacher": str(job.config.load_teacher_ckpt_path),
        "train": str(job.config.train_data_dir),
        "rows": len(job.train),
        "origin": origin,
        "buckets": job.buckets,
        "do_shuffle": job.config.do_shuffle,
        "temperature": job.learning.temperature,
        "hard_label_weight": job.learning.hard_label_weight,
        "teacher_cache": job.learning.teacher_cache,
        **asdict(job.student),
        **job.step.identity(),
    }


def _save(
    job: Job,
    model: TextModel,
    directory: Path,
    phase: str,
    origin: str,
    found: Mapping[str, float],
    fit: Mapping[str, Any],
) -> Path:
    return store.save(
        directory,
        model,
        tokenizer_from=job.teacher.directory,
        command=f"minddistill task-distill ({phase})",
        parents={"teacher": str(job.config.load_teacher_ckpt_path), "student": origin},
        data={"train": str(job.config.train_data_dir), "rows": len(job.train), "task": job.train.meta.get("task", "")},
        metrics=found,
        fit=fit,
    )


def _evaluate(config: Config, learning: Learning, model: str, output_dir: str) -> tuple[Path, dict[str, float]]:
    """Measure a model on every directory of `--eval_data_dir`; the first one's metrics are returned."""
    if not model:
        raise UserError("--do_train false: --load_td1_ckpt_path is empty; expected the student to evaluate")
    found = evaluate.run(
        evaluate.Config(
            model=model,
            data_dir=config.eval_data_dir,
            schema_dir=config.schema_dir,
            dataset_type=config.dataset_type,
            output_dir=output_dir,
            task_name=config.task_name,
            num_attention_heads=learning.teacher_num_attention_heads,
            device_target=config.device_target,
            device_id=config.device_id,
        ),
        "--eval_data_dir",
    )
    first = next(iter(found.values()))
    if first:
        print(f"The best acc is {next(iter(first.values())):.6f}")
    return Path(model), first


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill task-distill` and `run_task_distill.py`."""
    groups = [Config, Learning, StudentFlags, RunFlags, StepFlags]
    run(*parse("minddistill task-distill", "Two-phase task distillation and evaluation.", groups, argv))
