"""Metrics by name. A new metric is a function here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _correlation(function: object, truth: np.ndarray, found: np.ndarray) -> float:
    # A constant prediction has no correlation; 0 says that it explains nothing.
    if np.ptp(found) == 0 or np.ptp(truth) == 0:
        return 0.0
    return float(function(truth, found)[0])  # type: ignore[operator]


def _f1(truth: np.ndarray, found: np.ndarray) -> float:
    """Of class 1 where there are two classes, as GLUE has it; else the mean over classes."""
    binary = max(truth.max(initial=0), found.max(initial=0)) <= 1
    return float(f1_score(truth, found, average="binary" if binary else "macro", zero_division=0.0))


METRICS = {
    "accuracy": lambda truth, found: float(accuracy_score(truth, found)),
    "f1": _f1,
    "matthews": lambda truth, found: float(matthews_corrcoef(truth, found)),
    "pearson": lambda truth, found: _correlation(pearsonr, truth, found),
    "spearman": lambda truth, found: _correlation(spearmanr, truth, found),
}


def compute(names: Sequence[str], labels: np.ndarray, logits: np.ndarray, regression: bool) -> dict[str, float]:
    """Metrics of logits (N, C), or of outputs (N, 1) in a regression task, against labels (N,)."""
    found = logits.reshape(-1) if regression else logits.argmax(1)
    return {name: METRICS[name](labels, found) for name in names}
