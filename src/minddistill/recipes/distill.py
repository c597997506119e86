"""Distillation in one stage: labels and softened predictions, and hidden states and attention scores as far as asked for
(Hinton et al., arXiv 1503.02531; FastFormers, arXiv 2010.13382)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import params, runtime
from ..config import common_flags, flag, parse, unusual
from ..distill.distiller import Distiller
from ..distill.layer_map import LayerMap
from ..distill.objectives import AttentionScores, FitDense, HiddenStates, Same, Weighted, logits
from ..errors import UserError
from ..models.config import ModelConfig
from ..models.words import WordModel
from . import report, task_job
from .flags import OptimFlags, RunFlags, StepFlags, StudentFlags
from .judging import refuse_unevaluated
from .matching import fit_arrays, matched_layers, projection
from .run import Run, open_run
from .stage import Stage, Work, run_stage
from .student import evaluator_of, first_student, saver_of, starting_point
from .task_job import Job


@dataclass
class Config:
    """Distillation."""

    load_teacher_ckpt_path: str = flag(
        "",
        "the fine-tuned teacher: model directory or .ckpt; of several, with commas, the mean logits; empty where the records "
        "carry a teacher's logits (minddistill label)",
    )
    load_gd_ckpt_path: str = flag("", "what the student starts from: model directory or .ckpt; else as --student says")
    train_data_dir: str = flag("", "record directory to train on")
    aug_train: str = flag("", "augmented record directory, whose rows are taken in place of --train_data_dir's")
    eval_data_dir: str = flag(
        "",
        "record directory that selects the best model; of several, with commas, the first does; empty keeps the last",
    )
    task_name: str = flag("", "the records' task; checked where given")
    schema_dir: str = flag("", "schema file, where the record directories have none")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    epoch_size: int = flag(3, "epochs")
    train_steps: int = flag(0, "stop after so many steps; 0 for all epochs")
    patience: int = flag(0, "epochs without a better dev metric after which to stop; 0 never")
    do_shuffle: bool = flag(True, "shuffle the training rows every epoch")
    save_ckpt_step: int = flag(1000, "steps between checkpoints", "save_checkpoint_step")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    distribute: bool = flag(False, "train on several devices, started by msrun")
    device_num: int = flag(1, "number of devices")
    device_target: Literal["", "Ascend", "GPU", "CPU"] = flag("", "Ascend, GPU or CPU; empty takes the best there is")
    device_id: int = flag(0, "number of the device")


@dataclass
class Learning(OptimFlags):
    """Objective and optimiser."""

    alpha: float = flag(0.5, "weight of the labels; the teacher's predictions weigh 1 - alpha")
    temperature: float = flag(2.0, "temperature T of the predictions, whose divergence is multiplied by its square")
    state_loss_ratio: float = flag(0.0, "weight of the hidden states")
    state_loss: Literal["mse", "cosine"] = flag("mse", "hidden states: squared error, or 1 - cosine")
    state_layers: Literal["ends", "mapped"] = flag(
        "ends", "hidden states: embeddings and last layer, or all of the layer map"
    )
    att_loss_ratio: float = flag(0.0, "weight of the squared errors of attention scores, layer by layer of the map")
    freeze_embeddings: bool = flag(False, "keep the student's word embedding as it is")
    eval_steps: int = flag(0, "steps between evaluations besides each epoch's end; 0 for none")
    teacher_cache: str = flag(
        "auto", "teacher's outputs on disk: auto (for this run, where it pays), off, or a directory that is kept"
    )
    allow_weak_teacher: bool = flag(False, "go on with a teacher that does not beat the majority class")
    teacher_num_attention_heads: int = flag(12, "heads of a teacher .ckpt without config.json beside it")


def run(
    config: Config, learning: Learning, student: StudentFlags, run_flags: RunFlags, step_flags: StepFlags
) -> tuple[Path, dict[str, float]]:
    """Distil and return the best model directory with its dev metrics.

    Raises:
        UserError: flags, records and models do not go together.
    """
    run_flags.output_dir = run_flags.output_dir or "runs/distill"
    place = runtime.start(config.device_target, config.device_id, config.distribute, config.device_num)
    with open_run(run_flags, step_flags, place) as opened:
        job = prepare(opened, config, learning, student)
        result = run_stage(stage_of(job, config, learning))
        job.forget_cache()
        if not place.rank:
            task_job.evaluate_others(job, result[0])
            report.at_end(opened)
        return result


def prepare(run: Run, config: Config, learning: Learning, student: StudentFlags) -> Job:
    """Read and check what the flags name: the job of a task distillation without its first phase.

    Raises:
        UserError: they do not go together.
    """
    _refuse_unused(learning, student)
    task = task_job.Config(
        **common_flags(config, task_job.Config),
        do_eval=bool(config.eval_data_dir),
        enable_data_sink=False,
        td_phase1_epoch_size=0,
        td_phase2_epoch_size=config.epoch_size,
    )
    found = task_job.Learning(**common_flags(learning, task_job.Learning))
    job = task_job.prepare(run, task, found, student)
    if not config.eval_data_dir:
        refuse_unevaluated(patience=config.patience, eval_steps=learning.eval_steps)
    if learning.alpha:
        job.train.require_labels("--alpha above 0:")
    config.load_teacher_ckpt_path = task.load_teacher_ckpt_path  # that of a cache, where none was given
    return job


def _refuse_unused(learning: Learning, student: StudentFlags) -> None:
    """See that no flag of a part of the loss is set whose weight is 0."""
    given = unusual(learning) | unusual(student)
    if learning.alpha == 1 and "temperature" in given:
        raise UserError(f"--temperature {learning.temperature:g}: has no part with --alpha 1; leave it out")
    wanted = {
        "state_loss": learning.state_loss_ratio,
        "state_layers": learning.state_loss_ratio,
        "fit_dense": learning.state_loss_ratio,
        "layer_map": learning.att_loss_ratio or (learning.state_loss_ratio and learning.state_layers == "mapped"),
        "loss_mode": learning.state_loss_ratio or learning.att_loss_ratio,
    }
    for name, weight in wanted.items():
        if name in given and not weight:
            also = " or --att_loss_ratio" if name in ("layer_map", "loss_mode") else ""
            end = ", the former with --state_layers mapped" if name == "layer_map" else ""
            raise UserError(f"--{name} {given[name]}: has no part without --state_loss_ratio{also} above 0{end}")


def stage_of(job: Job, config: Config, learning: Learning) -> Stage:
    """The student that the flags ask for, and what it learns from.

    Raises:
        UserError: student and teachers do not go together.
    """
    weights, origin, wanted = starting_point(job)
    pairs = _matched(job, learning, wanted)
    carried = {} if weights is None else weights.fit
    fit = _projection(job, learning, wanted, pairs, carried)
    objective_of(job, learning, pairs or LayerMap((), ()), fit)  # refuses weights that do not go together
    job.check_load(wanted, wanted.parameters + params.count(fit), pairs)

    def build() -> Work:
        student = first_student(job, weights, wanted)
        if learning.freeze_embeddings:
            embeddings = student.embeddings if isinstance(student, WordModel) else student.encoder.embeddings
            embeddings.word.requires_grad = False
        job.run.log.line(f"The student starts from {origin}")
        teachers = job.built_teachers()
        job.check(teachers)
        source, columns = job.taught(pairs, teachers)
        kept = LayerMap((), ()) if pairs is None else pairs.kept() if columns else pairs
        save = saver_of(job, student, job.run.directory, "minddistill distill", origin, lambda: fit_arrays(fit))
        cell = Distiller(student, source, objective_of(job, learning, kept, fit))
        return Work(cell, job.loader(columns), save, evaluator_of(job, student))

    start = weights is not None and job.config.load_gd_ckpt_path
    return Stage(
        name="distill",
        directory=job.run.directory,
        build=build,
        epochs=config.epoch_size,
        optim=learning.optim(),
        content={
            **job.content,
            **job.judges,
            "load_gd_ckpt_path": {"weights": weights.fingerprint()} if start else {},
        },
        eval_steps=learning.eval_steps,
        patience=config.patience,
        most_steps=config.train_steps,
        **job.shared | {"groups": [config, learning, job.student, job.run.flags, job.run.step]},
    )


def _matched(job: Job, learning: Learning, student: ModelConfig) -> LayerMap | None:
    """The layers that are compared; None where none are."""
    if not learning.state_loss_ratio and not learning.att_loss_ratio:
        return None
    job.require_one_teacher("--state_loss_ratio" if learning.state_loss_ratio else "--att_loss_ratio")
    attention, ends = bool(learning.att_loss_ratio), learning.state_layers == "ends"
    depths = student.num_hidden_layers, job.teacher.config.num_hidden_layers
    if ends and not attention:
        return LayerMap((), ()).ends(*depths)
    pairs = matched_layers(job.student.layer_map, student, job.teacher.config, job.run.log, attention)
    if not learning.state_loss_ratio:
        return LayerMap(pairs.attention, ())
    return pairs.ends(*depths) if ends else pairs


def _projection(
    job: Job, learning: Learning, student: ModelConfig, pairs: LayerMap | None, carried: Mapping[str, Any]
) -> FitDense | Same:
    if pairs is None or not learning.state_loss_ratio:
        return Same()
    return projection(student, job.teacher.config, pairs, job.run.flags.seed, job.student.fit_dense, carried)


def objective_of(job: Job, learning: Learning, pairs: LayerMap, fit: FitDense | Same) -> Weighted:
    """alpha CE + (1 - alpha) T^2 KL + att_loss_ratio attention + state_loss_ratio hidden states.

    Raises:
        UserError: a weight or the temperature is out of its range.
    """
    mode = job.student.loss_mode
    return Weighted(
        [
            (1.0, logits(learning.alpha, learning.temperature, job.teacher.config.problem)),
            (learning.att_loss_ratio, AttentionScores(pairs, mode)),
            (learning.state_loss_ratio, HiddenStates(pairs, fit, mode, learning.state_loss)),
        ]
    )


def examine(run: Run, config: Config, learning: Learning, student: StudentFlags) -> Stage:
    """All that `minddistill doctor` looks at: what `run` does before its stage is built.

    Raises:
        UserError: flags, records and models do not go together.
    """
    return stage_of(prepare(run, config, learning, student), config, learning)


GROUPS = [Config, Learning, StudentFlags, RunFlags, StepFlags]


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill distill`."""
    run(*parse("minddistill distill", "Distil a classifier in one stage.", GROUPS, argv))
