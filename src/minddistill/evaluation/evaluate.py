"""Predict every row once and measure. Knows a predict function, not a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..files import write_text
from ..problems import MULTI, REGRESSION, SEPARATOR, SINGLE


class Plan(Protocol):
    """What `predict` needs of a loader that does not shuffle."""

    rows: Any

    def plan(self, epoch: int) -> list[Any]: ...

    def batch(self, planned: Any) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Truth:
    """What predictions are compared with.

    Attributes:
        labels: (N,) classes, or numbers in a regression task; (N, C) of 0 and 1 in a multi-label task. In a token task N
            counts words. None where they are not known.
        problem: what the labels mean, one of `problems.PROBLEMS`.
        names: of the classes, that of `out_of_scope` among them.
        out_of_scope: the class of rows that belong to none of the others; None where there is no such.
        sentence: (N,) the row that each word is of, in a token task.
    """

    labels: np.ndarray | None
    problem: str = SINGLE
    names: Sequence[str] = ()
    out_of_scope: int | None = None
    sentence: np.ndarray | None = None


def predict(forward: Callable[[Mapping[str, np.ndarray]], np.ndarray], batches: Plan) -> np.ndarray:
    """Logits (N, C) float32 of all rows, in the order of the records; rows that fill a short batch are left out.

    In a token task those of all words, row by row.
    """
    words = batches.rows.words
    number = np.arange(len(batches.rows)) if words is None else words.cumsum().reshape(words.shape) - 1
    logits: np.ndarray | None = None
    for planned in batches.plan(0):
        found, mine = forward(batches.batch(planned))[: planned.real], planned.rows[: planned.real]
        if logits is None:
            logits = np.empty((number.max() + 1, found.shape[-1]), np.float32)
        if words is None:
            logits[mine] = found
        else:
            begins = words[mine, : planned.length]
            logits[number[mine, : planned.length][begins]] = found[begins]
    assert logits is not None  # a record directory is never empty
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities (N, C)."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def scores(logits: np.ndarray, problem: str) -> np.ndarray:
    """What logits (..., C) say: probabilities of the classes, each by itself in a multi-label task, or numbers."""
    if problem == REGRESSION:
        return logits
    return 0.5 + 0.5 * np.tanh(logits / 2) if problem == MULTI else softmax(logits)


def decided(logits: np.ndarray, truth: Truth, threshold: float = 0.0) -> np.ndarray:
    """Predictions from logits (N, C): classes (N,), numbers (N,), or 0 and 1 for each class (N, C) of a multi-label task.

    Args:
        truth: what the predictions are for.
        threshold: the least probability of a label that is predicted, 0.5 in a multi-label task where it is 0. A row
            without such a label is out of scope, where there is that.
    """
    if truth.problem == REGRESSION:
        return logits.reshape(-1)
    if truth.problem == MULTI:
        return (scores(logits, MULTI) >= (threshold or 0.5)).astype(np.int32)
    found = logits.argmax(1)
    if truth.out_of_scope is not None:
        found[softmax(logits).max(1) < threshold] = truth.out_of_scope
    return found


def told(values: np.ndarray, truth: Truth) -> list[str]:
    """Predictions or labels in words."""
    if truth.problem == REGRESSION:
        return [f"{value:.6f}" for value in values]
    if truth.problem == MULTI:
        return [SEPARATOR.join(truth.names[index] for index in np.flatnonzero(row)) for row in values]
    return [truth.names[int(value)] for value in values]


def write_predictions(path: Path, logits: np.ndarray, truth: Truth, threshold: float = 0.0) -> None:
    """One line a row, or a word of a token task: index, prediction, the highest score of a class (in a regression task the
    number), the true label where there is one, and all logits. The labels of a multi-label task have `|` between."""
    found = told(decided(logits, truth, threshold), truth)
    labels = [""] * len(logits) if truth.labels is None else told(truth.labels, truth)
    highest = scores(logits, truth.problem).max(1)
    lines = ["index\tprediction\tscore\tlabel\tlogits"]
    for row, values in enumerate(logits):
        numbers = " ".join(f"{value:.6f}" for value in values)
        lines.append(f"{row}\t{found[row]}\t{highest[row]:.6f}\t{labels[row]}\t{numbers}")
    write_text(path, "\n".join(lines) + "\n")


def read_predictions(path: Path) -> np.ndarray:
    """The logits (N, C) in a file of `write_predictions`."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return np.array([line.rsplit("\t", 1)[1].split(" ") for line in lines], np.float32)


def read_labels(path: Path) -> list[str]:
    """The true labels (N,) in a file of `write_predictions`, empty where there were none."""
    return [line.split("\t")[3] for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def write_submission(path: Path, logits: np.ndarray, regression: bool, raw: Sequence[str]) -> None:
    """A GLUE test file: index and prediction, classes under the names that GLUE wants (`raw`)."""
    if regression:
        values = [f"{min(max(value, 0.0), 5.0):.3f}" for value in logits[:, 0]]
    else:
        values = [raw[index] for index in logits.argmax(1)]
    lines = ["index\tprediction", *(f"{row}\t{value}" for row, value in enumerate(values))]
    write_text(path, "\n".join(lines) + "\n")
