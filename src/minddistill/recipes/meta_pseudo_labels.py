"""Meta pseudo labels (Pham et al., arXiv 2003.10580): a student of rows without labels, whose teacher learns from what its
labels do to it; and then fine-tuning on the rows with labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from .. import runtime
from ..config import common_flags, flag, parse, unusual
from ..data.loader import Loader, PairedLoader
from ..data.records import Rows
from ..distill.distiller import Distiller
from ..distill.meta import Feedback, LabelledLoss, PseudoLabels, TeacherLoss
from ..distill.objectives import Labels, LogitSquares, Weighted
from ..errors import UserError
from ..models import store
from ..problems import SINGLE
from ..train.checkpoint import TrainState
from ..train.optim import OptimConfig, build_optimizer
from ..train.step import LossScale, StepConfig, build_step
from . import common, report, task_job
from .flags import OptimFlags, RunFlags, StepFlags, StudentFlags, step_config
from .judging import refuse_unevaluated
from .run import Run, open_run
from .stage import Stage, Work, run_stage
from .student import evaluator_of, first_student, save_model, saver_of, starting_point
from .task_job import Job

# Flags of `StudentFlags` that say how layers are compared.
_LAYERS = ("layer_map", "fit_dense", "loss_mode")
_PREFIX = "labelled_"
_COMMAND = "minddistill meta-pseudo-labels"


@dataclass
class Config:
    """Meta pseudo labels."""

    load_teacher_ckpt_path: str = flag("", "the teacher, fine-tuned on the labelled rows: model directory or .ckpt")
    load_gd_ckpt_path: str = flag("", "what the student starts from: model directory or .ckpt; else as --student says")
    train_data_dir: str = flag("", "record directory of the labelled rows", "mpl_data_path")
    unlabelled_data_dir: str = flag("", "record directory without labels, or augmented, whose labels are not read")
    eval_data_dir: str = flag("", "record directory that selects the best model; empty keeps the last")
    task_name: str = flag("", "the records' task; checked where given")
    schema_dir: str = flag("", "schema file, where the record directories have none")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    compat: Literal["", "iclassifier"] = flag(
        "", "iclassifier: as it simplifies the method, a teacher that goes on with its labels and hears no feedback"
    )
    epoch_size: int = flag(1, "epochs over the rows without labels")
    train_steps: int = flag(0, "stop after so many steps; 0 for all epochs")
    finetune_epoch_size: int = flag(3, "epochs of the student on the labelled rows afterwards; 0 for none")
    do_shuffle: bool = flag(True, "shuffle the rows every epoch")
    save_ckpt_step: int = flag(1000, "steps between checkpoints", "save_checkpoint_step")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    device_target: Literal["", "Ascend", "GPU", "CPU"] = flag("", "Ascend, GPU or CPU; empty takes the best there is")
    device_id: int = flag(0, "number of the device")


@dataclass
class Learning(OptimFlags):
    """Optimisers of student and teacher."""

    finetune_learning_rate: float = flag(1e-5, "highest learning rate of the student's fine-tuning")
    mpl_warmup_steps: int = flag(1000, "steps of the student before the teacher learns too")
    mpl_learning_rate: float = flag(5e-5, "highest learning rate of the teacher")
    mpl_weight_decay: float = flag(0.1, "weight decay of the teacher")
    eval_steps: int = flag(0, "steps between evaluations besides each epoch's end; 0 for none")
    allow_weak_teacher: bool = flag(False, "go on with a teacher that does not beat the majority class")
    teacher_num_attention_heads: int = flag(12, "heads of a teacher .ckpt without config.json beside it")

    def teacher(self, compat: str) -> OptimConfig:
        """The teacher's optimiser; iclassifier's has a constant learning rate."""
        mine = self.optim(self.mpl_learning_rate)
        return replace(mine, weight_decay=self.mpl_weight_decay, schedule="constant" if compat else mine.schedule)


class Tutor:
    """A teacher that learns beside its student: what stands around the student's step.

    Args:
        student, teacher: both called with (batch, step, first_only).
        cell: the teacher's loss: `TeacherLoss`, or one of the labelled batch alone.
        feedback: whether `cell` reads the student's.
        optim, config: of the teacher's step.
        updates: steps of the teacher in all, for its learning rate.
        warmup: steps of the student before the teacher's first.
    """

    def __init__(
        self,
        student: nn.Cell,
        teacher: nn.Cell,
        cell: nn.Cell,
        feedback: bool,
        optim: OptimConfig,
        config: StepConfig,
        updates: int,
        warmup: int,
    ):
        for parameter in teacher.get_parameters():
            parameter.requires_grad = True  # the student's step has frozen it
        self.trained = dict(teacher.parameters_and_names())
        self.optimizer = build_optimizer(self.trained, optim, updates)
        self.scale = LossScale(config.loss_scale_value, config.scale_factor, config.scale_window)
        self.step = build_step(cell, self.optimizer, self.scale, config)
        self.loss = LabelledLoss(student)
        self.feedback = Feedback() if feedback else None
        self.warmup = warmup

    def tensors(self) -> dict[str, Parameter]:
        """All that changes, by name."""
        found = TrainState(self.trained, self.optimizer, self.scale, {}).tensors()
        mean = {} if self.feedback is None else {"mean": self.feedback.mean}
        return {f"teacher/{name}": value for name, value in (found | mean).items()}

    def around(self, step: Callable[..., tuple], state: TrainState) -> Callable[..., tuple]:
        """The student's step, and the teacher's behind it once the student is warm."""

        def run(batch: dict[str, Tensor], last: bool = True) -> tuple:
            labelled = {name.removeprefix(_PREFIX): value for name, value in batch.items() if name.startswith(_PREFIX)}
            plain = {name: value for name, value in batch.items() if not name.startswith(_PREFIX)}
            if state.step < self.warmup:
                return step(plain, last)
            if self.feedback is None:
                loss, terms, overflow, used = step(plain, last)
                _, learnt, skipped, _ = self.step(labelled)
                terms |= {f"teacher_{name}": term for name, term in learnt.items()}
                return loss, terms, ops.logical_or(overflow, skipped), used
            before = self.loss(ms.mutable(labelled))
            loss, terms, overflow, used = step(plain, last)
            h, rest = self.feedback(before, self.loss(ms.mutable(labelled)), overflow)
            _, learnt, skipped, _ = self.step(batch | {"feedback": rest})
            return loss, terms | learnt | {"feedback": h}, ops.logical_or(overflow, skipped), used

        return run


def run(
    config: Config, learning: Learning, student: StudentFlags, run_flags: RunFlags, step_flags: StepFlags
) -> tuple[Path, dict[str, float]]:
    """Train student and teacher, fine-tune the student, and return its best model directory with its dev metrics.

    Raises:
        UserError: flags, records and models do not go together.
    """
    run_flags.output_dir = run_flags.output_dir or "runs/meta_pseudo_labels"
    place = runtime.start(config.device_target, config.device_id)
    with open_run(run_flags, step_flags, place, ("meta", "")) as opened:
        job, unlabelled = prepare(opened, config, learning, student)
        result = run_stage(meta_stage(job, config, learning, unlabelled))
        if config.finetune_epoch_size:
            result = run_stage(finetune_stage(job, config, learning, result[0]))
        task_job.evaluate_others(job, result[0])
        report.at_end(opened)
        return result


def prepare(run: Run, config: Config, learning: Learning, student: StudentFlags) -> tuple[Job, Rows]:
    """Read and check what the flags name: the job on the labelled rows, and the rows without labels.

    Raises:
        UserError: they do not go together.
    """
    if not config.finetune_epoch_size and "finetune_learning_rate" in unusual(learning):
        raise UserError(
            f"--finetune_learning_rate {learning.finetune_learning_rate:g}: has no part with --finetune_epoch_size 0; leave it out"
        )
    for name in set(unusual(student)) & set(_LAYERS):
        raise UserError(f"--{name} {getattr(student, name)}: layers are not compared here; leave it out")
    if run.step.accumulation_steps > 1:
        raise UserError(
            f"--accumulation_steps {run.step.accumulation_steps}: the teacher hears of each step of the student; "
            "give --accumulation_steps 1"
        )
    task = task_job.Config(
        **common_flags(config, task_job.Config), do_eval=bool(config.eval_data_dir), enable_data_sink=False
    )
    found = task_job.Learning(**common_flags(learning, task_job.Learning), teacher_cache="off")
    job = task_job.prepare(run, task, found, student)
    job.require_one_teacher("meta pseudo labels, which train it,")
    if not config.eval_data_dir:
        refuse_unevaluated(eval_steps=learning.eval_steps)
    job.train.require_labels("--train_data_dir")
    if job.teacher.outline:
        raise UserError(
            f"{job.teacher.source}: a teacher's outline; the teacher learns here, so it must be here itself"
        )
    if job.teacher.config.problem != SINGLE:
        raise UserError(
            f"{job.teacher.source}: for {job.teacher.config.problem}; a pseudo label is one class of a row, of {SINGLE}"
        )
    unlabelled = common.read_checked(
        config.unlabelled_data_dir,
        "--unlabelled_data_dir",
        job.teacher.config,
        job.teacher.directory,
        labelled=False,
        **run.reading(config),
    )
    if unlabelled.seq_length != job.train.seq_length:
        raise UserError(
            f"{unlabelled.directory}: rows of {unlabelled.seq_length} tokens, {job.train.directory} has "
            f"{job.train.seq_length}; prepare both with one --max_seq_length"
        )
    # Both parts of a step are padded to one length, so that a length is compiled once.
    job.buckets = common.buckets_for(run.step.buckets, unlabelled, fixed=False)
    longest = int(job.train.length.max())
    if job.buckets[-1] < longest:
        job.buckets.append(job.train.seq_length)
    return job, unlabelled


def meta_stage(job: Job, config: Config, learning: Learning, unlabelled: Rows) -> Stage:
    """The student on pseudo labels, with its teacher beside it.

    Raises:
        UserError: student and teacher do not go together.
    """
    weights, origin, wanted = starting_point(job)
    job.check_load(wanted, wanted.parameters + job.teacher.config.parameters, None)
    options = job.run.batching(job.buckets, config.do_shuffle)
    batches = PairedLoader(unlabelled, Loader(job.train, **options), **options)
    directory = job.run.directory / "meta" if config.finetune_epoch_size else job.run.directory

    def build() -> Work:
        student = first_student(job, weights, wanted)
        job.run.log.line(f"The student starts from {origin}")
        teachers = job.built_teachers()
        job.check(teachers)
        teacher = teachers[0]
        cell = Distiller(student, teacher, LogitSquares() if config.compat else PseudoLabels())
        tutor = Tutor(
            student,
            teacher,
            # The rest of iclassifier's loss is the student's, which has no way to the teacher's weights.
            Distiller(teacher, None, Weighted([(0.5, Labels())])) if config.compat else TeacherLoss(teacher),
            not config.compat,
            learning.teacher(config.compat),
            step_config(job.run.step, learning),
            total - learning.mpl_warmup_steps,
            learning.mpl_warmup_steps,
        )
        save = saver_of(job, student, directory, _COMMAND, origin)

        def save_both(name: str, found: Mapping[str, float]) -> Path:
            if name == "last":
                save_model(job, teacher, directory / "teacher", f"{_COMMAND} (teacher)", origin, {}, {})
            return save(name, found)

        return Work(cell, batches, save_both, evaluator_of(job, student), companion=tutor)

    stage = _stage(
        job,
        [config, learning, job.student, job.run.flags, job.run.step],
        name="meta",
        directory=directory,
        build=build,
        epochs=config.epoch_size,
        optim=learning.optim(),
        content={
            "unlabelled_data_dir": unlabelled.files,
            "load_gd_ckpt_path": {"weights": weights.fingerprint()} if weights is not None else {},
        },
        free=("finetune_epoch_size", "finetune_learning_rate"),
        eval_steps=learning.eval_steps,
        most_steps=config.train_steps,
    )
    total, _ = stage.steps(len(batches))
    if learning.mpl_warmup_steps >= total:
        raise UserError(
            f"--mpl_warmup_steps {learning.mpl_warmup_steps}: there are {total} steps, so that the teacher would learn "
            "nothing; expected fewer, or more --epoch_size"
        )
    return stage


def examine(run: Run, config: Config, learning: Learning, student: StudentFlags) -> Stage:
    """All that `minddistill doctor` looks at: what `run` does before its first stage is built.

    Raises:
        UserError: flags, records and models do not go together.
    """
    job, unlabelled = prepare(run, config, learning, student)
    return meta_stage(job, config, learning, unlabelled)


def finetune_stage(job: Job, config: Config, learning: Learning, first: Path) -> Stage:
    """The student on the labelled rows, as in the paper: until then they have taught its teacher only."""
    weights = store.read_weights(first)

    def build() -> Work:
        student = job.build(weights, weights.config)
        save = saver_of(job, student, job.run.directory, f"{_COMMAND} (fine-tuning)", str(first))
        return Work(Distiller(student, None, Labels()), job.loader(), save, evaluator_of(job, student))

    return _stage(
        job,
        [config, learning, job.student, job.run.flags, job.run.step],
        name="finetune",
        directory=job.run.directory,
        build=build,
        epochs=config.finetune_epoch_size,
        optim=learning.optim(learning.finetune_learning_rate),
        content={"meta": {"weights": weights.fingerprint()}},
        eval_steps=learning.eval_steps,
    )


def _stage(job: Job, groups: list[Any], content: Mapping[str, Mapping[str, str]], **options: Any) -> Stage:
    return Stage(content={**job.content, **job.judges, **content}, **options, **job.shared | {"groups": groups})


GROUPS = [Config, Learning, StudentFlags, RunFlags, StepFlags]


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill meta-pseudo-labels`."""
    run(
        *parse(
            "minddistill meta-pseudo-labels",
            "A student of rows without labels, and its learning teacher.",
            GROUPS,
            argv,
        )
    )
