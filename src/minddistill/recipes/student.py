"""The student of a job: what it starts from, how it is built, judged and saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import numbers
from ..errors import UserError
from ..models import store
from ..models.config import ModelConfig, WordConfig
from ..models.heads import TextModel
from . import common
from .judging import Evaluator, eval_buckets
from .labels import same_labels, unnamed
from .task_job import Job


def starting_point(job: Job) -> tuple[store.Weights | None, str, ModelConfig]:
    """What the student starts from (None for random weights), what to call it, and the student's configuration.

    Raises:
        UserError: the flags name two starting points, or one that cannot be read.
    """
    weights, origin = _first_weights(job)
    with job.run.log.check("student") as found:
        wanted = job.student.config(job.teacher.config) if weights is None else weights.config
        wanted = wanted.with_(**job.head(weights))
        if weights is None:
            common.check_vocabulary(job.train, wanted, None)
        found(f"{wanted.summary}, from {origin}")
    return weights, origin, wanted


def _first_weights(job: Job) -> tuple[store.Weights | None, str]:
    if job.config.load_gd_ckpt_path:
        if job.student.init_from_teacher:
            raise UserError("--init_from_teacher and --load_gd_ckpt_path: two starting points; give one of them")
        weights = student_at(job, job.config.load_gd_ckpt_path)
        return weights, str(weights.source)
    if job.student.init_from_teacher:
        wanted = job.student.config(job.teacher.config)
        layers = numbers(job.student.init_from_teacher, "--init_from_teacher")
        weights = store.from_layers(job.teacher, wanted.with_(**job.head()), layers)
        return weights, f"layers {job.student.init_from_teacher} of the teacher"
    return None, "random weights"


def student_at(job: Job, path: str | Path) -> store.Weights:
    """A student that the user names, as it was saved.

    Raises:
        UserError: it cannot be read, does not read what its teacher reads, or is another than the flags say.
    """
    weights = store.read_weights(path, job.student.heads)
    if isinstance(weights.config, WordConfig) and not job.carried:
        raise UserError(
            f"{weights.source}: a {weights.config.family} does not read its teacher's word pieces; label the text with the "
            "teacher (minddistill label), and give distill no --load_teacher_ckpt_path"
        )
    if weights.config.vocab_size != job.teacher.config.vocab_size:
        raise UserError(
            f"{weights.source}: a student of {weights.config.vocab_size} word pieces, its teacher has "
            f"{job.teacher.config.vocab_size}; one of another tokenizer learns from text that the teacher has labelled "
            "(minddistill label, then distill without --load_teacher_ckpt_path)"
        )
    common.check_vocabulary(job.train, weights.config, weights.directory)
    job.student.refuse_other(weights.config, weights.source)
    return _with_classifier_of(job, weights)


def _with_classifier_of(job: Job, weights: store.Weights) -> store.Weights:
    """A student's weights without a classifier that is of other labels than its teacher's."""
    have, wanted = weights.config, job.teacher.config
    same = wanted.regression or same_labels(have.labels, wanted.labels)
    if len(have.labels) == len(wanted.labels):
        same = same or unnamed(have.labels) or unnamed(wanted.labels)
    if not have.labels or (have.problem == wanted.problem and same):
        return weights
    told = [f"{', '.join(config.labels)} ({config.problem})" for config in (have, wanted)]
    job.run.log.line(f"{weights.source}: its classifier is of {told[0]}; that of {told[1]} is learnt anew")
    return weights.without("classifier.")


def first_student(job: Job, weights: store.Weights | None, wanted: ModelConfig) -> TextModel:
    """The student at its `starting_point`."""
    if weights is not None:
        return job.build(weights, wanted, ("classifier.", "pooler."))
    return store.new(wanted, job.run.flags.seed, **job.run.types)


def evaluator_of(job: Job, student: TextModel) -> Evaluator | None:
    """What measures a student on the dev rows, where it is to be."""
    if job.dev is None or not job.config.do_eval:
        return None
    return Evaluator(student, job.dev, eval_buckets(job.buckets, job.dev))


def saver_of(
    job: Job,
    student: TextModel,
    directory: Path,
    command: str,
    origin: str,
    fit: Callable[[], Mapping[str, Any]] = dict,
) -> Callable[[str, Mapping[str, float]], Path]:
    """What saves a student: `save` of a `Work`.

    Args:
        directory: where its models go.
        command, origin: that made it, and from what, for its record.
        fit: the projection's weights when it is saved.
    """
    return lambda name, found: save_model(job, student, directory / name, command, origin, found, fit())


def save_model(
    job: Job,
    model: TextModel,
    directory: Path,
    command: str,
    origin: str,
    found: Mapping[str, float],
    fit: Mapping[str, Any],
) -> Path:
    return store.save(
        directory,
        model,
        tokenizer_from=job.teacher.directory,
        command=command,
        parents=job.parents | {"student": origin},
        data={"train": str(job.train.directory), "rows": len(job.train), "task": job.train.meta.get("task", "")},
        metrics=found,
        fit=fit,
    )
