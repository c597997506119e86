"""Predict every row once and measure. Knows a predict function, not a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..files import write_text


class Plan(Protocol):
    """What `predict` needs of a loader that does not shuffle."""

    rows: Any

    def plan(self, epoch: int) -> list[Any]: ...

    def batch(self, planned: Any) -> dict[str, np.ndarray]: ...


def predict(forward: Callable[[Mapping[str, np.ndarray]], np.ndarray], batches: Plan) -> np.ndarray:
    """Logits (N, C) float32 of all rows, in the order of the records; rows that fill a short batch are left out."""
    logits: np.ndarray | None = None
    for planned in batches.plan(0):
        found = forward(batches.batch(planned))[: planned.real]
        if logits is None:
            logits = np.empty((len(batches.rows), found.shape[1]), np.float32)
        logits[planned.rows[: planned.real]] = found
    assert logits is not None  # a record directory is never empty
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities (N, C)."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def write_predictions(
    path: Path, logits: np.ndarray, labels: np.ndarray | None, names: Sequence[str], regression: bool
) -> None:
    """One line a row: index, prediction, its score, the true label where there is one, and all logits."""
    lines = ["index\tprediction\tscore\tlabel\tlogits"]
    scores = logits if regression else softmax(logits)
    for row, values in enumerate(logits):
        found = f"{values[0]:.6f}" if regression else names[int(values.argmax())]
        truth = "" if labels is None else f"{labels[row]:.6f}" if regression else names[int(labels[row])]
        score = scores[row].max() if not regression else values[0]
        lines.append(f"{row}\t{found}\t{score:.6f}\t{truth}\t{' '.join(f'{v:.6f}' for v in values)}")
    write_text(path, "\n".join(lines) + "\n")


def read_predictions(path: Path) -> np.ndarray:
    """The logits (N, C) in a file of `write_predictions`."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return np.array([line.rsplit("\t", 1)[1].split(" ") for line in lines], np.float32)


def write_submission(path: Path, logits: np.ndarray, regression: bool, raw: Sequence[str]) -> None:
    """A GLUE test file: index and prediction, classes under the names that GLUE wants (`raw`)."""
    if regression:
        values = [f"{min(max(value, 0.0), 5.0):.3f}" for value in logits[:, 0]]
    else:
        values = [raw[index] for index in logits.argmax(1)]
    lines = ["index\tprediction", *(f"{row}\t{value}" for row, value in enumerate(values))]
    write_text(path, "\n".join(lines) + "\n")
