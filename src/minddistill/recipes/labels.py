"""Labels of records against those of models: their names, their order, what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.records import Rows
from ..errors import UserError
from ..export.session import Session
from ..models.config import ModelConfig, WordConfig
from ..problems import TOKEN

if TYPE_CHECKING:
    from ..models import store


def check_problem(config: ModelConfig, rows: Rows, source: object) -> None:
    """See that a classifier's outputs mean what the labels of some rows do.

    Raises:
        UserError: they do not; names the model by `source`.
    """
    if config.num_labels and config.problem != rows.problem:
        raise UserError(
            f"{source}: a model for {config.problem}; the labels of {rows.directory} are for {rows.problem}; "
            "fine-tune a model on these records"
        )


def check_evaluated(rows: Rows, config: ModelConfig | WordConfig) -> None:
    """See that the rows of `--eval_data_dir` have the labels that a model learns, in their order.

    Raises:
        UserError: they have no labels, or others.
    """
    check_problem(config, rows, "the training records")
    rows.require_labels("--eval_data_dir")
    rows.check_classes(config.num_labels)
    have, theirs = config.labels, rows.meta.get("labels", [])
    if theirs and not config.regression and not unnamed(have) and not same_labels(have, theirs):
        raise UserError(
            f"--eval_data_dir {rows.directory}: labels {', '.join(theirs)}; the training records have {', '.join(have)}, in "
            "this order; prepare both with one command, or with --labels"
        )


def unnamed(labels: Sequence[str]) -> bool:
    """Whether they are the names that Hugging Face gives labels without names."""
    return list(labels) == [f"LABEL_{index}" for index in range(len(labels))]


def same_labels(have: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists name the same labels in the same order; case counts where it alone tells them apart."""
    if sorted(have) == sorted(theirs):
        return list(have) == list(theirs)
    return [name.lower() for name in have] == [name.lower() for name in theirs]


def label_order(have: Sequence[str], labels: Sequence[str], source: str, records: Path) -> list[int] | None:
    """Where each of the data's labels is among a model's outputs; None where the model does not name its own.

    Raises:
        UserError: the model was not trained on these labels; names it by `source`, and the directory of the records.
    """
    if len(have) == len(labels) and unnamed(have):
        return None
    if sorted(have) == sorted(labels):
        return [list(have).index(name) for name in labels]
    low = [name.lower() for name in have]
    wanted = [name.lower() for name in labels]
    if sorted(low) != sorted(wanted) or len(set(low)) < len(low):
        raise UserError(
            f"{source}: trained on the labels {', '.join(have) or '(none: it has no classifier)'}; {records} "
            f"has {', '.join(labels)}; fine-tune a teacher on this task first (minddistill finetune)"
        )
    return [low.index(name) for name in wanted]


def outputs_of(shape: ModelConfig | WordConfig, rows: Rows, source: str) -> list[int] | None:
    """The outputs of a model in the order of the rows' labels; None where they are in it, or not named.

    Raises:
        UserError: as `label_order`.
    """
    labels = rows.meta.get("labels", [])
    if not labels or shape.regression:
        return None
    order = label_order(shape.labels, labels, source, rows.directory)
    return None if order is None or order == sorted(order) else order


def in_label_order(logits: np.ndarray, shape: ModelConfig | WordConfig, rows: Rows, source: str) -> np.ndarray:
    """A model's logits (..., C) in the order of the rows' labels.

    Raises:
        UserError: as `label_order`.
    """
    order = outputs_of(shape, rows, source)
    return logits if order is None else logits[..., order]


def align_labels(weights: store.Weights, rows: Rows, say: Callable[[str], None]) -> store.Weights:
    """Bring a teacher's outputs into the order of the records' labels, where these are named.

    Raises:
        UserError: the teacher was not trained on these labels, or for another kind of problem.
    """
    check_problem(weights.config, rows, weights.source)
    have, labels = weights.config.labels, [] if weights.config.regression else rows.meta.get("labels", [])
    if not labels or tuple(labels) == have:
        return weights
    order = label_order(have, labels, str(weights.source), rows.directory)
    if weights.outline:
        raise UserError(
            f"{weights.source}: a teacher's outline with the labels {', '.join(have)}; {rows.directory} has "
            f"{', '.join(labels)}, another order; expected the records that its outputs were computed for"
        )
    if order is None:
        say(f"The teacher {weights.source} does not name its labels; taken to be {', '.join(labels)} in this order")
        return replace(weights, config=weights.config.with_(labels=tuple(labels)))
    values = dict(weights.values)
    for name in ("classifier.weight", "classifier.bias"):
        values[name] = values[name][order]
    say(f"The teacher's outputs were put in the records' order of labels: {', '.join(labels)}")
    return replace(weights, config=weights.config.with_(labels=tuple(labels)), values=values)


def aligned_session(session: Session, rows: Rows) -> Session:
    """A session whose logits are in the order of the records' labels, where these are named.

    Raises:
        UserError: its model was not trained on these labels, or for another kind of problem.
    """
    config = session.config
    check_problem(config, rows, session.directory)
    labels = [] if config.regression else rows.meta.get("labels", [])
    order = label_order(config.labels, labels, str(session.directory), rows.directory) if labels else None
    if order is None:
        return session
    taken = config.with_(labels=tuple(labels))
    return Session(session.kind, taken, session.directory, lambda *inputs: session.predict(*inputs)[..., order])


def head_fields(
    config: ModelConfig | WordConfig, labels: Sequence[str], problem: str, relu_before_classifier: bool
) -> dict[str, Any]:
    """What a configuration is changed in to have a classifier of these labels.

    Raises:
        UserError: a model on word vectors is to have a ReLU before it.
    """
    head = {"labels": tuple(labels), "problem": problem}
    if isinstance(config, ModelConfig):
        return head | {"relu_before_classifier": relu_before_classifier, "pooler": True}
    if problem == TOKEN:
        raise UserError(
            f"--model: a {config.family} says nothing of single words, which the records label; expected an encoder"
        )
    if relu_before_classifier:
        raise UserError(f"--relu_before_classifier true: a {config.family} has no pooler whose output it would rectify")
    return head
