"""Quantisation-aware distillation: a student learns from its teacher's predictions while it rounds as int8 does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import runtime
from ..config import common_flags, flag
from ..errors import UserError
from ..files import model_path
from ..models.config import ModelConfig
from ..models.fake_quant import Grid, simulate
from . import report, task_distill, task_job
from .flags import OptimFlags, RunFlags, StepFlags, StudentFlags
from .labels import outputs_of
from .run import open_run
from .stage import Work, run_stage

if TYPE_CHECKING:
    from .quantize import Calibration, Config


@dataclass
class Training(OptimFlags):
    """Quantisation-aware distillation (--method qat)."""

    load_teacher_ckpt_path: str = flag("", "the fine-tuned teacher: model directory or .ckpt", "teacher")
    learning_rate: float = flag(2e-5, "highest learning rate")
    epoch_size: int = flag(1, "epochs over --data_dir")
    train_steps: int = flag(0, "stop after so many steps; 0 for all epochs")
    eval_steps: int = flag(0, "steps between evaluations besides each epoch's end; 0 for none")
    temperature: float = flag(1.0, "temperature of the softmaxes")
    hard_label_weight: float = flag(0.0, "weight of the labels' cross-entropy")
    teacher_cache: str = flag(
        "auto", "teacher's outputs on disk: auto (for this run, where it pays), off, or a directory that is kept"
    )
    allow_weak_teacher: bool = flag(False, "go on with a teacher that does not beat the majority class")
    run_dir: str = flag("", "run directory of the training; OUTPUT_DIR-run by default")
    resume: bool | Literal["auto"] = flag(
        "auto", "go on with the training in run_dir: auto (if there is one), true (there must be), false (start over)"
    )
    save_ckpt_step: int = flag(1000, "steps between checkpoints")
    log_interval: int = flag(100, "steps between two lines of the log")


def train(
    shape: ModelConfig,
    grids: Mapping[str, Grid],
    groups: tuple[Config, Calibration, Training, StepFlags],
) -> Path:
    """Train a student that rounds to fixed grids, in phase 2 of task distillation.

    Args:
        shape: the student's configuration.
        grids: from `export.quantize.grids`.
        groups: all flags of the command.

    Returns:
        The model directory of the trained student, in float32: the best on the evaluation records where there are some.

    Raises:
        UserError: model, teacher, records and flags do not go together.
        KeyboardInterrupt: stopped by a signal, with the state saved.
    """
    config, calibration, training, step = groups
    task = task_job.Config(
        do_eval=bool(config.eval_data_dir),
        td_phase2_epoch_size=training.epoch_size,
        enable_data_sink=False,
        save_ckpt_step=training.save_ckpt_step,
        load_teacher_ckpt_path=training.load_teacher_ckpt_path,
        load_td1_ckpt_path=config.model,
        train_data_dir=config.data_dir,
        eval_data_dir=config.eval_data_dir,
        schema_dir=config.schema_dir,
        dataset_type=config.dataset_type,
    )
    learning = task_job.Learning(**common_flags(training, task_job.Learning))
    run_dir = training.run_dir or f"{config.output_dir.rstrip('/')}-run"
    flags = RunFlags(run_dir, training.resume, calibration.seed, training.log_interval)
    place = runtime.start()
    with open_run(flags, step, place) as opened:
        student = StudentFlags(seq_length=shape.max_length)
        job = task_job.prepare(opened, task, learning, student)
        order = outputs_of(shape, job.train, config.model)
        if order:
            raise UserError(
                f"{config.model}: its labels are {', '.join(shape.labels)}, those of {job.train.directory} in another order "
                f"({', '.join(job.train.meta['labels'])}); train it on such records first (minddistill task-distill)"
            )
        stage = task_distill.phase_two(job, model_path(config.model), "minddistill quantize (weights of --method qat)")

        def build() -> Work:
            work = stage.build()
            simulate(work.cell.student, grids)
            return work

        found, _ = run_stage(
            replace(
                stage,
                name="qat",
                build=build,
                groups=groups,
                free=[*stage.free, "run_dir"],
                most_steps=training.train_steps,
            )
        )
        job.forget_cache()
        report.at_end(opened)
        return found
