"""Models beside each other: their sizes and metrics, confusion matrices, and the rows that they disagree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ..bench.report import Column, Confusion, Section, Table
from ..data.records import Rows
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..evaluation.evaluate import Truth, decided, scores, told
from ..models import store
from ..models.config import ModelConfig
from ..problems import MULTI, REGRESSION

_MOST_EXAMPLES = 300
_MOST_CLASSES = 25  # of a confusion matrix
_MOST_MISTAKES = 100  # of a model, where there are more classes


@dataclass(frozen=True)
class Measured:
    """A model and what is known of it; None or empty where it could not be read or was not measured."""

    name: str
    path: str
    config: ModelConfig | None
    parameters: int | None
    megabytes: float | None
    metrics: Mapping[str, float]


def measured(name: str, path: str, found: Mapping[str, float], heads: int = 12) -> Measured:
    """Read what a model directory or file says of itself; one that is gone is only named.

    Args:
        heads: attention heads, of a file without `config.json`.
    """
    try:
        weights = store.read_weights(path, heads)
    except UserError:
        return Measured(name, path, None, None, None, found)
    if weights.outline:
        return Measured(name, path, weights.config, None, None, found)
    megabytes = sum(value.nbytes for value in weights.without("mlm.").values.values()) / 1e6
    return Measured(name, path, weights.config, weights.count, megabytes, found)


def model_table(models: Sequence[Measured], extra: Mapping[str, Sequence[float]] | None = None) -> Table:
    """A row a model; the first one, the teacher where there is one, is what the others are compared with.

    Args:
        extra: further columns of two decimals, a value for each model.
    """
    first, names = models[0], list(models[-1].metrics)
    several = len(models) > 1
    columns = [Column("model"), *(Column(name, ".4f") for name in names)]
    columns += [Column(f"of the {first.name}", ".1%")] if several and names else []
    columns += [Column("parameters", ",d"), Column("MB", ".1f")] + ([Column("times smaller", ".2f")] if several else [])
    columns += [Column(title, ".2f") for title in extra or {}]
    columns += [Column("layers", "d"), Column("hidden", "d"), Column("heads", "d"), Column("path", wide=True)]
    rows = []
    for index, model in enumerate(models):
        row: list[Any] = [model.name, *(model.metrics.get(name) for name in names)]
        if several and names:
            row.append(_ratio(model.metrics.get(names[0]), first.metrics.get(names[0])))
        row += [model.parameters, model.megabytes] + ([_ratio(first.megabytes, model.megabytes)] if several else [])
        row += [values[index] for values in (extra or {}).values()]
        shape = ("num_hidden_layers", "hidden_size", "num_attention_heads")
        row += [getattr(model.config, name, None) for name in shape]
        rows.append([*row, model.path])
    return Table(columns, rows)


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def headline(models: Sequence[Measured]) -> list[tuple[str, str, str]]:
    """The figures that matter most: of the last model, against the first where there are several."""
    if not models:
        return []
    model, first = models[-1], models[0]
    name, value = next(iter(model.metrics.items()), ("", None))
    kept, smaller = _ratio(value, first.metrics.get(name)), _ratio(first.megabytes, model.megabytes)
    several = len(models) > 1
    tiles = []
    if value is not None:
        tiles.append(
            (f"{model.name}, {name}", f"{value:.4f}", f"{kept:.1%} of the {first.name}" if several and kept else "")
        )
    if several and first.metrics.get(name) is not None:
        tiles.append((f"{first.name}, {name}", f"{first.metrics[name]:.4f}", ""))
    if model.parameters:
        fewer = f"{first.name}: {first.parameters / 1e6:.1f} M" if several and first.parameters else ""
        tiles.append(("Parameters", f"{model.parameters / 1e6:.1f} M", fewer))
        tiles.append(
            ("Weights", f"{model.megabytes:.1f} MB", f"{smaller:.2f} times smaller" if several and smaller else "")
        )
    return tiles


def compare(
    rows: Rows,
    truth: Truth,
    tokenizer: Path,
    logits: Mapping[str, np.ndarray],
    where: str = "",
    threshold: float = 0.0,
) -> list[Section]:
    """Confusion matrices, and the rows that the models disagree on (of one model, those that it gets wrong).

    Args:
        rows: labelled ones.
        truth: their labels.
        tokenizer: directory of the tokenizer that made the rows; where it has none, examples have no text.
        logits: (N, C) of one or two models, by name.
        where: name of the rows, for the titles.
        threshold: as for `evaluation.evaluate.decided`.
    """
    texts = _Texts(rows, tokenizer)
    if truth.problem == REGRESSION:
        sections = [_largest_errors(truth, texts, logits)]
    else:
        found = {name: decided(values, truth, threshold) for name, values in logits.items()}
        each = _by_label(truth, found) if truth.problem == MULTI else _confusion(truth, found)
        sections = [each, _examples(texts, truth, logits, found)]
    return [replace(section, title=f"{section.title}, {where}") if where else section for section in sections]


def _confusion(truth: Truth, found: Mapping[str, np.ndarray]) -> Section:
    labels, classes = truth.labels.astype(int), range(len(truth.names))
    if len(classes) > _MOST_CLASSES:
        return _common_mistakes(truth.names, labels, found)
    confusions = [
        Confusion(name, truth.names, confusion_matrix(labels, values, labels=classes)) for name, values in found.items()
    ]
    return Section("Confusion", confusions=confusions)


def _common_mistakes(names: Sequence[str], labels: np.ndarray, found: Mapping[str, np.ndarray]) -> Section:
    """What is taken for what most often, where a matrix of all classes would be too large to read."""
    rows = []
    for model, values in found.items():
        wrong = values != labels
        pairs, counts = np.unique(np.stack([labels[wrong], values[wrong]]), axis=1, return_counts=True)
        for place in np.argsort(-counts, kind="stable")[:_MOST_MISTAKES]:
            rows.append([model, *(names[int(index)] for index in pairs[:, place]), int(counts[place])])
    columns = [Column("model"), Column("true"), Column("predicted"), Column("rows", ",d")]
    note = f"The commonest of the confusions between {len(names)} classes."
    return Section("Confusion", note, table=Table(columns, rows, searchable=True) if rows else None)


def _by_label(truth: Truth, found: Mapping[str, np.ndarray]) -> Section:
    """How well each label of a multi-label task is found."""
    columns, rows = [Column("label"), Column("rows", ",d")], [[name] for name in truth.names]
    for line, count in zip(rows, truth.labels.sum(0), strict=True):
        line.append(int(count))
    for name, values in found.items():
        columns += [Column(f"{name} {title}", ".4f") for title in ("precision", "recall", "F1")]
        measured = precision_recall_fscore_support(truth.labels, values, zero_division=0.0)[:3]
        for line, *figures in zip(rows, *measured, strict=True):
            line += map(float, figures)
    return Section("Labels", table=Table(columns, rows))


class _Texts:
    """The text of a row, or of a word and its row in a token task, as its tokens tell it."""

    def __init__(self, rows: Rows, tokenizer: Path):
        self.rows = rows
        self.words = None if rows.words is None else np.argwhere(rows.words)
        try:
            self.tokenizer = load_tokenizer(tokenizer)
        except UserError:
            self.tokenizer = None
            return
        special = {
            number: token.content
            for number, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self.hidden = {number for number, content in special.items() if content not in ("[UNK]", "<unk>")}
        self.ends = {number for number, content in special.items() if content in ("[SEP]", "</s>")}

    def __call__(self, number: int) -> str:
        if self.tokenizer is None:
            return ""
        row, word = (number, "") if self.words is None else self._word(number)
        ids, second, end = self.rows.ids[row].tolist(), int(self.rows.second[row]), int(self.rows.length[row])
        if second >= end:  # a family without segments
            second = next((place + 1 for place, number in enumerate(ids[:end]) if number in self.ends), end)
        parts = (word, *(self._decoded(part) for part in (ids[:second], ids[second:end])))
        return "  ‖  ".join(part.strip() for part in parts if part.strip())

    def _word(self, number: int) -> tuple[int, str]:
        """The row of a word, and the word."""
        row, start = self.words[number]
        later = self.words[(self.words[:, 0] == row) & (self.words[:, 1] > start), 1]
        end = later[0] if len(later) else self.rows.length[row]
        return int(row), self._decoded(self.rows.ids[row, start:end].tolist())

    def _decoded(self, ids: Sequence[int]) -> str:
        """The text of some ids; unknown words are shown, as they may be why a model is wrong."""
        return self.tokenizer.decode([number for number in ids if number not in self.hidden], skip_special_tokens=False)

    def row(self, number: int) -> int:
        """The row of the records, of a row or word."""
        return int(number) if self.words is None else int(self.words[number][0])

    @property
    def unit(self) -> str:
        """What is counted."""
        return "rows" if self.words is None else "words"


def _examples(
    texts: _Texts, truth: Truth, logits: Mapping[str, np.ndarray], decisions: Mapping[str, np.ndarray]
) -> Section:
    """Rows that two models predict differently, or that one gets wrong, the surest first."""
    labels = np.array(told(truth.labels, truth))
    found = {name: np.array(told(values, truth)) for name, values in decisions.items()}
    sure = {name: scores(values, truth.problem).max(1) for name, values in logits.items()}
    first, *_, last = [*found, *found]
    if len(found) > 1:
        chosen = np.flatnonzero(found[first] != found[last])
        title = f"Where {' and '.join(found)} differ"
        right = ", ".join(f"{name} right in {(values == labels)[chosen].sum()}" for name, values in found.items())
        note = f"{len(chosen)} of {len(labels)} {texts.unit}; {right}."
    else:
        chosen = np.flatnonzero(found[last] != labels)
        title, note = "Mistakes", f"{len(chosen)} of {len(labels)} {texts.unit}."
    shown = chosen[np.argsort(-sure[last][chosen], kind="stable")][:_MOST_EXAMPLES]
    if len(shown) < len(chosen):
        note += f" The {len(shown)} that the {last} is surest of are shown."
    columns = [Column("row", "d"), Column("text", wide=True), Column("label")]
    columns += [column for name in found for column in (Column(name), Column(f"{name} p", ".3f"))]
    rows = [
        [texts.row(row), texts(row), str(labels[row])]
        + [cell for name in found for cell in (str(found[name][row]), float(sure[name][row]))]
        for row in shown
    ]
    return Section(title, note, table=Table(columns, rows, searchable=True) if rows else None)


def _largest_errors(truth: Truth, texts: _Texts, logits: Mapping[str, np.ndarray]) -> Section:
    """Rows of a regression task whose output is farthest from the label, of the last model."""
    *_, last = logits
    labels = truth.labels
    error = np.abs(logits[last][:, 0] - labels)
    shown = np.argsort(-error, kind="stable")[:_MOST_EXAMPLES]
    columns = [Column("row", "d"), Column("text", wide=True), Column("label", ".3f")]
    columns += [*(Column(name, ".3f") for name in logits), Column("error", ".3f")]
    lines = [
        [int(row), texts(row), float(labels[row]), *(float(v[row, 0]) for v in logits.values()), float(error[row])]
        for row in shown
    ]
    note = f"The {len(shown)} of {len(labels)} rows on which the {last} is farthest from the label."
    return Section("Largest errors", note, table=Table(columns, lines, searchable=True))
