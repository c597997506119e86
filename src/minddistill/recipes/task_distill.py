"""Two-phase task distillation (TinyBERT, arXiv 1909.10351): intermediate layers, then predictions; and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .. import params, runtime
from ..config import parse, unusual
from ..distill.distiller import Distiller
from ..distill.objectives import Intermediate, Prediction
from ..errors import UserError
from ..models import store
from . import common, report
from .flags import RunFlags, StepFlags, StudentFlags
from .matching import fit_arrays, fit_dense, matched_layers
from .run import Run, open_run
from .stage import Stage, Work, run_stage
from .student import evaluator_of, first_student, save_model, saver_of, starting_point, student_at
from .task_job import Config, Job, Learning, evaluate_all, evaluate_others, prepare


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
    if not config.do_train and config.distribute:
        raise UserError("--do_train false --distribute true: evaluation runs in one process; give --distribute false")
    if not config.do_train:
        return evaluate_all(config, run_flags, config.load_td1_ckpt_path, student.heads, run_flags.output_dir)
    run_flags.output_dir = run_flags.output_dir or "runs/task_distill"
    place = runtime.start(config.device_target, config.device_id, config.distribute, config.device_num)
    with open_run(run_flags, step_flags, place, ("phase1", "")) as opened:
        job = prepare(opened, config, learning, student)
        first = Path(config.load_td1_ckpt_path) if config.load_td1_ckpt_path else run_stage(phase_one(job))[0]
        result = run_stage(phase_two(job, first))
        job.forget_cache()
        if not place.rank:
            evaluate_others(job, result[0])
            report.at_end(opened)
        return result


def phase_one(job: Job) -> Stage:
    """Intermediate layers: the student and projection that `job` asks for, and what they learn from.

    Raises:
        UserError: student and teacher do not go together, or there are several teachers.
    """
    job.require_one_teacher("phase 1 (--load_td1_ckpt_path leaves it out)")
    # What phase 2 refuses is told before phase 1.
    job.require_evaluated()
    job.learning.phase(2)
    predictions(job)
    weights, origin, wanted = starting_point(job)
    pairs = matched_layers(job.student.layer_map, wanted, job.teacher.config, job.run.log)
    carried = {} if weights is None else weights.fit
    fit = fit_dense(job.student.fit_dense, wanted, job.teacher.config, pairs, carried, job.run.flags.seed)
    job.check_load(wanted, wanted.parameters + params.count(fit), pairs)

    def build() -> Work:
        student = first_student(job, weights, wanted)
        job.run.log.line(f"The student starts from {origin}; it learns from teacher layers {pairs.attention}")
        teachers = job.built_teachers()
        job.check(teachers)
        source, columns = job.taught(pairs, teachers)
        kept = pairs.kept() if columns else pairs

        def save(name: str, found: Mapping[str, float]) -> Path:
            arrays = fit_arrays(fit)
            command = "minddistill task-distill (phase 1)"
            return save_model(job, student, job.run.directory / "phase1" / name, command, origin, found, arrays)

        return Work(
            Distiller(student, source, Intermediate(kept, fit, job.student.loss_mode)), job.loader(columns), save
        )

    general = weights is not None and job.config.load_gd_ckpt_path
    return Stage(
        name="phase1",
        directory=job.run.directory / "phase1",
        build=build,
        epochs=job.config.td_phase1_epoch_size,
        optim=job.learning.phase(1),
        content={**job.content, "load_gd_ckpt_path": {"weights": weights.fingerprint()} if general else {}},
        free=(
            "do_eval",
            "td_phase2_epoch_size",
            "td_phase2_learning_rate",
            "temperature",
            "hard_label_weight",
            "eval_steps",
        ),
        **job.shared,
    )


def predictions(job: Job) -> Prediction:
    """The objective of phase 2.

    Raises:
        UserError: its weights or its temperature are out of range, or the labels it wants are not there.
    """
    learning = job.learning
    if learning.hard_label_weight:
        job.train.require_labels("--hard_label_weight above 0:")
    return Prediction(learning.temperature, learning.hard_label_weight, job.teacher.config.problem)


def phase_two(job: Job, first: Path, command: str = "minddistill task-distill (phase 2)") -> Stage:
    """Predictions: the student in the model directory `first`, with a classifier, and what it learns from.

    Args:
        command: that the student's record names.
    """
    job.require_evaluated()
    with job.run.log.check("student") as found:
        weights = student_at(job, first) if job.config.load_td1_ckpt_path else store.read_weights(first)
        wanted = weights.config.with_(**job.head(weights))
        found(common.described(weights))
    if job.config.load_td1_ckpt_path:  # else phase 1, which takes more, has seen to it
        job.check_load(wanted, wanted.parameters, None)
        if idle := _of_phase_one(job):
            job.run.log.line(f"Phase 1 is left out (--load_td1_ckpt_path), which alone reads {', '.join(idle)}")
    learning = job.learning

    def build() -> Work:
        student = job.build(weights, wanted, ("classifier.",))
        save = saver_of(job, student, job.run.directory, command, str(first), lambda: weights.fit)
        teachers = job.built_teachers()
        if job.config.load_td1_ckpt_path:  # phase 1, which checks the teacher, was left out
            job.check(teachers)
        source, columns = job.taught(None, teachers)
        cell = Distiller(student, source, predictions(job))
        return Work(cell, job.loader(columns), save, evaluator_of(job, student))

    return Stage(
        name="phase2",
        directory=job.run.directory,
        build=build,
        epochs=job.config.td_phase2_epoch_size,
        optim=learning.phase(2),
        content={
            **job.content,
            "load_td1_ckpt_path": {"weights": weights.fingerprint()},
            **job.judges,
        },
        free=("td_phase1_epoch_size", "td_phase1_learning_rate"),
        eval_steps=learning.eval_steps,
        **job.shared,
    )


def _of_phase_one(job: Job) -> list[str]:
    """The flags given that phase 2 does not read."""
    names = ("init_from_teacher", "layer_map", "fit_dense")
    given = {name: value for name, value in unusual(job.student).items() if name in names}
    if job.config.load_gd_ckpt_path:
        given["load_gd_ckpt_path"] = job.config.load_gd_ckpt_path
    return [f"--{name} {value}" for name, value in given.items()]


def examine(run: Run, config: Config, learning: Learning, student: StudentFlags) -> Stage:
    """All that `minddistill doctor` looks at: what `run` does before its first stage is built.

    Raises:
        UserError: flags, records and models do not go together.
    """
    job = prepare(run, config, learning, student)
    return phase_two(job, Path(config.load_td1_ckpt_path)) if config.load_td1_ckpt_path else phase_one(job)


GROUPS = [Config, Learning, StudentFlags, RunFlags, StepFlags]


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill task-distill` and `run_task_distill.py`."""
    run(*parse("minddistill task-distill", "Two-phase task distillation and evaluation.", GROUPS, argv))
