"""Metrics by name. A new metric is a function here.

SciPy and scikit-learn take two seconds to import, which commands that only name metrics need not wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..problems import MULTI, REGRESSION, SINGLE, TOKEN
from .evaluate import Truth, decided


def _correlation(name: str) -> Callable[[Truth, np.ndarray], float]:
    def correlation(truth: Truth, found: np.ndarray) -> float:
        from scipy import stats

        # A constant prediction has no correlation; 0 says that it explains nothing.
        if np.ptp(found) == 0 or np.ptp(truth.labels) == 0:
            return 0.0
        return float(getattr(stats, name)(truth.labels, found)[0])

    return correlation


def _accuracy(truth: Truth, found: np.ndarray) -> float:
    """Part of the rows that are right; in a multi-label task, right in all of their labels."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth.labels, found))


def _f1(truth: Truth, found: np.ndarray) -> float:
    """Of class 1 where there are two classes, as GLUE has it; else the mean over classes."""
    classes = len(truth.names) or 1 + max(truth.labels.max(initial=0), found.max(initial=0))
    binary = classes <= 2
    return _averaged_f1("binary" if binary else "macro")(truth, found)


def _averaged_f1(average: str) -> Callable[[Truth, np.ndarray], float]:
    def f1(truth: Truth, found: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(truth.labels, found, average=average, zero_division=0.0))

    return f1


def _matthews(truth: Truth, found: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth.labels, found))


def _in_scope_accuracy(truth: Truth, found: np.ndarray) -> float:
    """Accuracy over the rows that belong to a class (Larson et al. 2019, arXiv 1909.02027)."""
    inside = truth.labels != truth.out_of_scope
    return float((found == truth.labels)[inside].mean()) if inside.any() else 0.0


def _out_of_scope_recall(truth: Truth, found: np.ndarray) -> float:
    """Part of the rows out of scope that are found to be so (ibid.)."""
    outside = truth.labels == truth.out_of_scope
    return float((found == truth.labels)[outside].mean()) if outside.any() else 0.0


def entities(tags: Sequence[str], sentence: Sequence[int]) -> set[tuple[int, int, str]]:
    """Entities as (first word, word behind the last, type).

    As in CoNLL's evaluation, I begins an entity where none of its type goes on.

    Args:
        tags: in IOB2, of the words of all sentences.
        sentence: that each word is of; no entity goes on in another one.
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        goes_on = tag[:2] == "I-" and tag[2:] == kind and sentence[place] == sentence[start]
        if kind and not goes_on:
            found.add((start, place, kind))
        if not goes_on:
            start, kind = place, tag[2:]
    return found


def _entity_f1(truth: Truth, found: np.ndarray) -> float:
    """F1 of entities that are found with their exact words and type, over all types together (CoNLL-2003)."""
    both = [entities([truth.names[tag] for tag in tags], truth.sentence) for tags in (truth.labels, found)]
    total = len(both[0]) + len(both[1])
    return 2 * len(both[0] & both[1]) / total if total else 0.0


METRICS: dict[str, dict[str, Callable[[Truth, np.ndarray], float]]] = {
    SINGLE: {
        "accuracy": _accuracy,
        "f1": _f1,
        "micro_f1": _averaged_f1("micro"),
        "macro_f1": _averaged_f1("macro"),
        "matthews": _matthews,
        "in_scope_accuracy": _in_scope_accuracy,
        "out_of_scope_recall": _out_of_scope_recall,
    },
    MULTI: {"micro_f1": _averaged_f1("micro"), "macro_f1": _averaged_f1("macro"), "accuracy": _accuracy},
    REGRESSION: {"pearson": _correlation("pearsonr"), "spearman": _correlation("spearmanr")},
    TOKEN: {"entity_f1": _entity_f1, "accuracy": _accuracy},
}


def compute(names: Sequence[str], truth: Truth, logits: np.ndarray, threshold: float = 0.0) -> dict[str, float]:
    """Metrics of logits (N, C), decided with `threshold` as in `decided`; `truth` has labels."""
    found = decided(logits, truth, threshold)
    return {name: METRICS[truth.problem][name](truth, found) for name in names}
