"""What the commands that distil a classifier share: flags, teachers and records that were read and checked, the student's
start, and what judges and saves it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import runtime
from ..config import flag, unusual
from ..data.loader import Loader
from ..data.records import Rows
from ..data.teacher_cache import Layout, TeacherCache
from ..distill.distiller import CachedTeacher, Ensemble
from ..distill.layer_map import LayerMap
from ..errors import UserError
from ..files import read_json, write_json
from ..models import store
from ..models.config import ModelConfig
from ..models.heads import TextModel
from ..problems import REGRESSION
from ..train.optim import OptimConfig
from . import common, evaluate, report, teacher_cache
from .checks import Load
from .flags import OptimFlags, RunFlags, StudentFlags, step_config
from .judging import check_teacher, eval_buckets, refuse_unevaluated
from .labels import align_labels, check_evaluated, head_fields
from .run import CACHING, Run


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
    enable_data_sink: bool = flag(True, "answered in the log: a thread makes batches ahead on every device")
    save_ckpt_step: int = flag(1000, "steps between checkpoints", "save_checkpoint_step")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    data_sink_steps: int = flag(1, "of the model zoo; batches are fed one by one")
    load_teacher_ckpt_path: str = flag(
        "", "the fine-tuned teacher: model directory or .ckpt; of several, with commas, phase 2 takes the mean logits"
    )
    load_gd_ckpt_path: str = flag("", "the student after general distillation: model directory or .ckpt")
    load_td1_ckpt_path: str = flag("", "the student after phase 1, which is then skipped; or the model to evaluate")
    train_data_dir: str = flag("", "record directory to train on")
    aug_train: str = flag("", "augmented record directory, whose rows both phases take in place of --train_data_dir's")
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
        """The optimiser of phase 1 or 2.

        Raises:
            UserError: as `optim`, or its learning rate is given twice.
        """
        both = {name: value for name, value in unusual(self).items() if name.endswith("learning_rate")}
        both.pop("end_learning_rate", None)
        if self.learning_rate and len(both) > 1:
            raise UserError(
                f"{', '.join(f'--{name} {value}' for name, value in both.items())}: the first is for both phases; give it, or "
                "those of the phases"
            )
        return self.optim(
            self.learning_rate or (self.td_phase1_learning_rate, self.td_phase2_learning_rate)[number - 1]
        )


@dataclass
class Job:
    """What the phases share."""

    run: Run
    config: Config
    learning: Learning
    student: StudentFlags
    teachers: list[store.Weights]
    train: Rows
    dev: Rows | None
    buckets: list[int]

    def build(self, weights: store.Weights, config: ModelConfig, may_miss: tuple[str, ...] = ()) -> TextModel:
        """A model on this job's device and in its types."""
        return store.build(weights, config, seed=self.run.flags.seed, may_miss=may_miss, **self.run.types)

    @property
    def teacher(self) -> store.Weights:
        """The teacher; of several, the first, whose family and tokenizer the student has."""
        return self.teachers[0]

    @property
    def carried(self) -> bool:
        """Whether the records carry the logits of a teacher that is not here."""
        return not self.config.load_teacher_ckpt_path

    def require_one_teacher(self, what: str) -> None:
        """See that there is one teacher for what compares layers.

        Raises:
            UserError: there are several, or none but its logits; names what wants one.
        """
        if self.carried:
            raise UserError(f"--load_teacher_ckpt_path is empty; the records carry logits alone, and {what} wants more")
        if len(self.teachers) > 1:
            raise UserError(
                f"--load_teacher_ckpt_path names {len(self.teachers)} teachers, whose logits have a mean and whose layers "
                f"have none; {what} wants one"
            )

    def head(self, weights: store.Weights | None = None) -> dict[str, Any]:
        """What the head of a student of these weights has from its teacher; one that is trained keeps its form."""
        config = self.teacher.config
        trained = weights is not None and "classifier.weight" in weights.values
        relu = getattr(weights.config if trained else config, "relu_before_classifier", False)
        return head_fields(config, config.labels, config.problem, relu)

    def check(self, teachers: Sequence[TextModel | None]) -> None:
        """Measure the teachers, where they and dev records are here, and keep the first one's predictions for the report."""
        if self.dev is None:
            return
        shapes = eval_buckets(self.buckets, self.dev)
        for index, teacher in enumerate(teachers):
            if teacher is None:
                continue
            if len(teachers) > 1:
                self.run.log.line(f"Teacher {index + 1} of {len(teachers)}: {self.teachers[index].source}")
            found = check_teacher(teacher, self.dev, shapes, self.learning.allow_weak_teacher, self.run.log.line)
            if not index and not self.run.place.rank:
                found.write(self.run.directory / report.TEACHER_PREDICTIONS)

    @property
    def content(self) -> dict[str, dict[str, str]]:
        """Fingerprints of what both phases read."""
        return {
            "load_teacher_ckpt_path": {
                "weights" + (f" {index + 1}" if index else ""): weights.fingerprint()
                for index, weights in enumerate(self.teachers)
            },
            "aug_train" if self.config.aug_train else "train_data_dir": self.train.files,
        }

    @property
    def judges(self) -> dict[str, dict[str, str]]:
        """Fingerprints of what a student is judged by."""
        return {"eval_data_dir": self.dev.files if self.dev and self.config.do_eval else {}}

    @property
    def parents(self) -> dict[str, str]:
        """The teachers, as a student's record names them."""
        if self.carried:
            return {"teacher's logits": str(self.train.directory)}
        paths = self.config.load_teacher_ckpt_path.split(",")
        return {"teacher" + (f" {index + 1}" if index else ""): path for index, path in enumerate(paths)}

    @property
    def shared(self) -> dict[str, Any]:
        """What the stages of both phases have in common."""
        return {
            "run": self.run,
            "step": step_config(self.run.step, self.learning),
            "groups": [self.config, self.learning, self.student, self.run.flags, self.run.step],
            "save_steps": self.config.save_ckpt_step,
            "keep": self.config.max_ckpt_num,
        }

    @property
    def caches(self) -> Path:
        """Where caches of the teacher's outputs are."""
        setting = self.learning.teacher_cache
        return self.run.directory / "teacher_cache" if setting == "auto" else Path(setting)

    def built_teachers(self) -> list[TextModel | None]:
        """The teachers, each None where only its outline is here."""
        return [None if weights.outline else self.build(weights, weights.config) for weights in self.teachers]

    def cached(self, pairs: LayerMap | None, teacher: store.Weights) -> tuple[dict[str, Any], Layout, int]:
        """Whose outputs a phase's cache holds, which of them, and in how many epochs they are read."""
        types = runtime.type_names(self.run.step.compute_type, self.run.step.dtype, self.run.place.device)
        owner = teacher_cache.identity(teacher, self.train, types, self.caches)
        layout = teacher_cache.layout_of(teacher.config, pairs)
        if pairs is None:
            layout = teacher_cache.whole(self.caches, owner, self.train.length) or layout
        return owner, layout, self.config.td_phase2_epoch_size + (self.config.td_phase1_epoch_size if pairs else 0)

    def bytes_to_cache(self, pairs: LayerMap | None) -> int:
        """What a phase's caches are still to write under `--teacher_cache`."""
        found = [self.cached(pairs, teacher)[:2] for teacher in self.teachers]
        return sum(
            teacher_cache.opened(self.caches, layout, self.train, owner).bytes_to_write() for owner, layout in found
        )

    def check_load(self, student: ModelConfig, trained: int, pairs: LayerMap | None) -> None:
        """See that the machine has room for a phase.

        Raises:
            UserError: it has not.
        """
        cache, kept = {}, self.learning.teacher_cache not in teacher_cache.SETTINGS
        if kept:  # "auto" sees for itself what it may take
            self.require_real_positions(pairs)
            cache = {self.caches: self.bytes_to_cache(pairs)}
        load = Load(
            trained=trained,
            model=student,
            teacher=None if self.carried or kept else self.teacher.config,
            teacher_parameters=sum(value.size for weights in self.teachers for value in weights.values.values()),
            matched=len(pairs.attention) if pairs else 0,
            batch_size=self.run.step.batch_size,
            buckets=self.buckets,
            keep=self.config.max_ckpt_num,
            cache=cache,
        )
        self.run.check_load(load)

    def require_evaluated(self) -> None:
        """See that `--eval_steps` is set only where something is evaluated.

        Raises:
            UserError: it is set, and nothing is.
        """
        if not self.config.do_eval:
            refuse_unevaluated(eval_steps=self.learning.eval_steps)

    def require_real_positions(self, pairs: LayerMap | None) -> None:
        """See that layers are compared at the positions that a cache keeps.

        Raises:
            UserError: `--loss_mode reference` compares them at the padded ones too.
        """
        if pairs and self.student.loss_mode == "reference":
            raise UserError(
                f"--teacher_cache {self.learning.teacher_cache}: keeps real positions, and --loss_mode reference compares "
                "padded ones too; expected --teacher_cache off, or --loss_mode masked"
            )

    def taught(
        self, pairs: LayerMap | None, teachers: Sequence[TextModel | None]
    ) -> tuple[TextModel | Ensemble | CachedTeacher, Callable | None]:
        """What a phase learns from, teachers or their caches, and the columns that caches add to the batches.

        Args:
            pairs: of phase 1; None for phase 2, which reads the logits of phase 1's cache where there is one.
        """
        if self.carried:
            return CachedTeacher(), self.train.taught
        setting, live = self.learning.teacher_cache, all(teachers)
        source = Ensemble(teachers) if live and len(teachers) > 1 else teachers[0]
        if setting == "auto" and pairs and self.student.loss_mode == "reference":
            setting = "off"
        if setting == "off" and live:
            return source, None
        self.require_real_positions(pairs)
        found = [self.cached(pairs, weights) for weights in self.teachers]
        _, layout, epochs = found[0]
        started = any(teacher_cache.path_of(self.caches, owner, kept).is_dir() for owner, kept, _ in found)
        if setting == "auto" and live and not started and not self.caching_pays(layout, epochs):
            return source, None
        caches = [
            teacher_cache.filled(
                self.caches, kept, self.train, owner, teacher, self.buckets, epochs, self.run.place, self.run.log.line
            )
            for (owner, kept, _), teacher in zip(found, teachers, strict=True)
        ]
        if pairs is None:
            return CachedTeacher(), mean_logits(caches)
        return CachedTeacher(len(layout.hidden), len(layout.attention)), caches[0].batch

    def caching_pays(self, layout: Layout, epochs: int) -> bool:
        """Whether `--teacher_cache auto` keeps a layout, decided once for a run: float16 outputs make other weights."""
        note = self.run.directory / CACHING
        decided = read_json(note, "what was decided on the teacher's cache") if note.is_file() else {}
        if layout.name not in decided:
            pays = teacher_cache.pays(layout, self.train, epochs, self.run.directory, self.run.log.line)
            decided[layout.name] = self.run.place.all(pays)
            if not self.run.place.rank:
                write_json(note, decided)
        return decided[layout.name]

    def forget_cache(self) -> None:
        """Remove what `--teacher_cache auto` kept: it may be large, and a run that has ended does not need it again."""
        if self.learning.teacher_cache == "auto" and not self.run.place.rank:
            shutil.rmtree(self.caches, ignore_errors=True)

    def loader(self, columns: Callable | None = None) -> Loader:
        """Batches of the training rows, with what a teacher's cache adds to them."""
        return Loader(self.train, columns=columns, **self.run.batching(self.buckets, self.config.do_shuffle))


def prepare(run: Run, config: Config, learning: Learning, student: StudentFlags) -> Job:
    """Read and check what the flags name, teacher and records first.

    Raises:
        UserError: they do not go together.
    """
    common.note_data_sink(config.enable_data_sink, run)
    if not learning.teacher_cache:
        raise UserError("--teacher_cache is empty; expected auto, off or a directory")
    config.load_teacher_ckpt_path = config.load_teacher_ckpt_path or teacher_cache.outline_in(learning.teacher_cache)
    carried = not config.load_teacher_ckpt_path
    teachers = [_reader(config, learning, student)] if carried else _teachers(config, learning, run.log)
    weights = teachers[0]
    options = {"task": config.task_name, **run.reading(config)}
    train = _training_rows(config, weights, options)
    # The first of several (MNLI's matched and mismatched) selects the best student.
    first = config.eval_data_dir.split(",")[0]
    dev = None
    if first:
        dev = common.read_checked(first, "--eval_data_dir", weights.config, weights.directory, **options)
    if carried:
        with run.log.check("teacher") as found:
            teachers = [_carried(weights, train)]
            found(f"its logits are in {train.directory}")
    if learning.teacher_cache == "off" and any(teacher.outline for teacher in teachers) and not carried:
        raise UserError(
            f"--teacher_cache off: {config.load_teacher_ckpt_path} is a teacher's outline; expected the directory of its cache"
        )
    for other in teachers[1:]:
        with run.log.check("vocabulary of a teacher") as found:
            _check_reads(other, train, weights)
            found(f"{other.source} reads the ids of the first")
    with run.log.check("labels") as found:
        teachers = [align_labels(teacher, train, run.log.line) for teacher in teachers]
        for teacher in teachers:
            teacher.config.require_classifier(teacher.source)
        weights = teachers[0]
        train.check_classes(weights.config.num_labels, learnt=True)
        if dev is not None:
            check_evaluated(dev, weights.config)
        found("a number" if weights.config.regression else ", ".join(weights.config.labels))
    if config.do_eval and dev is None:
        raise UserError("--eval_data_dir is empty; expected a record directory, or --do_eval false")
    common.check_seq_length(train, student.seq_length)
    buckets = common.buckets_for(run.step.buckets, train, student.loss_mode == "reference")
    return Job(run, config, learning, student, teachers, train, dev, buckets)


def _teachers(config: Config, learning: Learning, log: Any) -> list[store.Weights]:
    """The teachers that `--load_teacher_ckpt_path` names."""
    teachers = []
    for path in config.load_teacher_ckpt_path.split(","):
        with log.check("teacher") as found:
            teachers.append(store.read_encoder(path, learning.teacher_num_attention_heads))
            found(common.described(teachers[-1]))
    return teachers


def _reader(config: Config, learning: Learning, student: StudentFlags) -> store.Weights:
    """The student, which tells how records are read where they carry the logits of an absent teacher.

    Raises:
        UserError: none is named, or a directory of a cache is.
    """
    if not config.load_gd_ckpt_path:
        raise UserError(
            "--load_teacher_ckpt_path is empty; expected the fine-tuned teacher's directory or .ckpt, or, with records "
            "that carry its logits (minddistill label), the student as --load_gd_ckpt_path"
        )
    if learning.teacher_cache not in teacher_cache.SETTINGS:
        raise UserError(f"--teacher_cache {learning.teacher_cache}: holds no teacher; expected auto, or its teacher")
    return store.read_weights(config.load_gd_ckpt_path, student.heads)


def _carried(student: store.Weights, rows: Rows) -> store.Weights:
    """What stands for the teacher whose logits the records carry: it reads as the student does and has the records' labels.

    Raises:
        UserError: they carry none.
    """
    if rows.logits is None:
        raise UserError(
            f"{rows.directory}: carries no teacher's logits, and --load_teacher_ckpt_path is empty; expected records of "
            "text that minddistill label has labelled, or a teacher"
        )
    labels = ("score",) if rows.problem == REGRESSION else tuple(rows.meta["labels"])
    config = student.config.with_(labels=labels, problem=rows.problem)
    return store.Weights(config, {}, student.source, outline="carried by the records")


def _training_rows(config: Config, teacher: store.Weights, options: Mapping[str, Any]) -> Rows:
    """The rows to train on: those of `--aug_train` where it is given, which are then seen to be of the same task as those
    of `--train_data_dir` where that is given too."""

    def read(directory: str, name: str) -> Rows:
        return common.read_checked(directory, name, teacher.config, teacher.directory, **options)

    if not config.aug_train:
        return read(config.train_data_dir, "--train_data_dir")
    augmented = read(config.aug_train, "--aug_train")
    if config.train_data_dir:
        plain = read(config.train_data_dir, "--train_data_dir")
        for name, found, wanted in (
            ("task", augmented.meta.get("task"), plain.meta.get("task")),
            ("labels", augmented.meta.get("labels"), plain.meta.get("labels")),
            ("problem_type", augmented.problem, plain.problem),
        ):
            if found != wanted:
                raise UserError(
                    f"--aug_train {config.aug_train}: {name} {found}; {config.train_data_dir} has {wanted}; "
                    "augment the text that those records were made of"
                )
        options["log"].line(f"Training on {len(augmented)} augmented rows in place of {len(plain)}")
    return augmented


def _check_reads(other: store.Weights, rows: Rows, first: store.Weights) -> None:
    """See that a further teacher reads the records as the first does.

    Raises:
        UserError: it has another vocabulary.
    """
    if other.config.vocab_size != first.config.vocab_size:
        raise UserError(
            f"{other.source}: reads {other.config.vocab_size} word pieces, {first.source} {first.config.vocab_size}; "
            "all teachers read the same records"
        )
    common.check_vocabulary(rows, other.config, other.directory)


def mean_logits(caches: Sequence[TeacherCache]) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """A column of batches: the mean of several teachers' logits, as `Ensemble` has it."""

    def columns(rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        found = [cache.logits(rows, length)["teacher_logits"] for cache in caches]
        return {"teacher_logits": np.mean(found, 0, dtype=np.float32)}

    return columns


def evaluate_others(job: Job, model: Path) -> None:
    """Measure a model on every directory of `--eval_data_dir`, where training has measured it on the first of several."""
    if job.config.do_eval and "," in job.config.eval_data_dir:
        out = str(job.run.directory / "evaluation")
        evaluate_all(job.config, job.run.flags, str(model), job.student.heads, out)


def evaluate_all(
    config: Config, run_flags: RunFlags, model: str, heads: int, output_dir: str
) -> tuple[Path, dict[str, float]]:
    """Measure a model on every directory of `--eval_data_dir`; the first one's metrics are returned.

    Args:
        heads: attention heads, of a file without `config.json`.
    """
    if not model:
        raise UserError("--do_train false: --load_td1_ckpt_path is empty; expected the student to evaluate")
    found = evaluate.run(
        evaluate.Config(
            model=model,
            data_dir=config.eval_data_dir,
            schema_dir=config.schema_dir,
            dataset_type=config.dataset_type,
            verify_records=run_flags.verify_records,
            output_dir=output_dir,
            task_name=config.task_name,
            num_attention_heads=heads,
            device_target=config.device_target,
            device_id=config.device_id,
        ),
        "--eval_data_dir",
    )
    first = next(iter(found.values()))
    if first:
        print(f"The best acc is {next(iter(first.values())):.6f}")
    return Path(model), first
