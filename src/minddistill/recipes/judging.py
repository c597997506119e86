"""What a model is worth: its metrics on rows, and whether a teacher knows its task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.loader import Loader
from ..data.records import Rows
from ..errors import UserError
from ..evaluation import metrics
from ..evaluation.evaluate import Truth, predict, write_predictions
from ..export.session import Session
from ..models.config import ModelConfig
from ..models.heads import TextModel, predict_function
from ..problems import MULTI, REGRESSION, SINGLE, TOKEN

EVAL_BATCH = 64
# The metric that a teacher is checked by.
_DECIDES = {SINGLE: "accuracy", MULTI: "micro_f1", REGRESSION: "pearson", TOKEN: "entity_f1"}


def truth_of(rows: Rows, config: ModelConfig) -> Truth:
    """What predictions for some rows, in the order of their labels, are compared with."""
    names = list(rows.meta.get("labels") or config.labels)
    if rows.out_of_scope == len(names):
        names.append(rows.meta["out_of_scope"])
    labels = rows.answers if rows.meta.get("labelled", True) else None
    if labels is not None and rows.problem != REGRESSION:
        labels = labels.astype(np.int32)  # which rows that were not checked have not
    sentence = None if rows.words is None else np.nonzero(rows.words)[0]
    return Truth(labels, rows.problem, names, rows.out_of_scope, sentence)


def scored(rows: Rows, config: ModelConfig, logits: np.ndarray, threshold: float = 0.0) -> dict[str, float]:
    """The task's metrics of logits in the order of the rows' labels, the main one first; none without labels."""
    truth = truth_of(rows, config)
    if truth.labels is None:
        return {}
    return metrics.compute(rows.meta.get("metrics", ["accuracy"]), truth, logits, threshold)


class Evaluator:
    """Measures a model on rows, as often as asked; compiled once for each length.

    Args:
        buckets: lengths that rows are padded to; the records' own alone by default.
        threshold: as for `evaluation.evaluate.decided`.
    """

    def __init__(
        self, model: TextModel | Session, rows: Rows, buckets: list[int] | None = None, threshold: float = 0.0
    ):
        self.loader = Loader(rows, EVAL_BATCH, buckets=buckets, shuffle=False)
        self.forward = model.of_batch if isinstance(model, Session) else predict_function(model)
        self.config, self.threshold = model.config, threshold
        self.found: np.ndarray | None = None
        """Logits (N, C) of the latest measurement."""

    def logits(self) -> np.ndarray:
        """Logits (N, C) of all rows, or words of a token task, in their order."""
        self.found = predict(self.forward, self.loader)
        return self.found

    def metrics(self, logits: np.ndarray | None = None) -> dict[str, float]:
        """The task's metrics, the main one first; none where the rows have no labels."""
        rows = self.loader.rows
        if not rows.meta.get("labelled", True):
            return {}
        return scored(rows, self.config, self.logits() if logits is None else logits, self.threshold)

    def write(self, path: Path) -> None:
        """Write the predictions of the latest measurement."""
        assert self.found is not None
        write_predictions(path, self.found, truth_of(self.loader.rows, self.config), self.threshold)


def eval_buckets(train: list[int], rows: Rows) -> list[int]:
    """The lengths of training, which are compiled already for the teacher, up to what the rows need."""
    longest = int(rows.length.max())
    useful = [length for length in train if length <= rows.seq_length]
    return useful if useful and useful[-1] >= longest else [*useful, rows.seq_length]


def refuse_unevaluated(**values: int) -> None:
    """See that no flag is set, by its name, that has a part in evaluations alone; for runs without.

    Raises:
        UserError: one is.
    """
    for name, value in values.items():
        if value:
            raise UserError(
                f"--{name} {value}: nothing is evaluated; give --eval_data_dir (and no --do_eval false), or leave it out"
            )


def check_teacher(
    model: TextModel, rows: Rows, buckets: list[int], allow_weak: bool, say: Callable[[str], None]
) -> Evaluator:
    """Measure a teacher before anything is learnt from it. Returns what measured it.

    Raises:
        UserError: it does not beat the majority class (or, in a regression task, explains nothing).
    """
    rows.require_labels("--eval_data_dir")
    evaluator = Evaluator(model, rows, buckets)
    name = _DECIDES[rows.problem]
    truth, logits = truth_of(rows, model.config), evaluator.logits()
    if truth.out_of_scope is not None and truth.out_of_scope >= logits.shape[-1]:  # which it cannot say
        known = truth.labels != truth.out_of_scope
        if known.any():
            truth, logits = replace(truth, labels=truth.labels[known], out_of_scope=None), logits[known]
    value, floor = metrics.compute([name], truth, logits)[name], _floor(truth)
    say(f"Teacher on {rows.directory}: {name} {value:.6f} (majority class or floor {floor:.6f}, {len(logits)} rows)")
    if value <= floor and not allow_weak:
        raise UserError(
            f"the teacher's {name} on {rows.directory} is {value:.4f}, not above {floor:.4f} of the majority class; it "
            "was not trained on this task or its labels are mixed up; --allow_weak_teacher true goes on all the same"
        )
    return evaluator


def _floor(truth: Truth) -> float:
    """What a model that knows nothing reaches: by always giving the commonest label, or no entity."""
    if truth.problem == SINGLE:
        return float(np.bincount(truth.labels).max() / len(truth.labels))
    if truth.problem == MULTI:
        commonest, total = truth.labels.sum(0).max(), truth.labels.sum() + len(truth.labels)
        return float(2 * commonest / total)
    return 0.1 if truth.problem == REGRESSION else 0.0
