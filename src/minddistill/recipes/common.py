"""What the training commands share: records against models, teachers, projections, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import params, runtime
from ..config import numbers
from ..data.loader import Loader, choose_buckets
from ..data.records import Rows, read_rows
from ..data.tokenizer import fingerprint, load_tokenizer
from ..distill.layer_map import LayerMap
from ..distill.objectives import FitDense
from ..errors import UserError
from ..evaluation import metrics
from ..evaluation.evaluate import predict
from ..models import store
from ..models.config import ModelConfig
from ..models.heads import TextModel, predict_function
from ..train.log import RunLog

EVAL_BATCH = 64


def read_checked(
    directory: str, flag_name: str, config: ModelConfig, tokenizer_dir: Path | None, task: str = "", **options: Any
) -> Rows:
    """Read records and see that they fit a model: vocabulary, length, and the tokenizer where both name one.

    Args:
        flag_name: the flag that named the directory, for messages.
        task: what `--task_name` says; empty leaves it unchecked.
        options: of `read_rows`.

    Raises:
        UserError: they do not.
    """
    rows = read_rows(directory, vocab_size=config.vocab_size, flag=flag_name, **options)
    if rows.seq_length > config.max_length:
        raise UserError(
            f"{directory}: rows of {rows.seq_length} tokens; the model reads at most {config.max_length}; "
            "prepare the records with a smaller --max_seq_length"
        )
    made_for = rows.meta.get("task", "")
    if task and made_for and task.lower() != made_for.lower():
        raise UserError(f"--task_name {task}: the records in {directory} are of {made_for}")
    theirs = rows.meta.get("tokenizer")
    if theirs and tokenizer_dir is not None and any((tokenizer_dir / n).is_file() for n in store.TOKENIZER_FILES[:2]):
        mine = fingerprint(load_tokenizer(tokenizer_dir))
        if mine != theirs:
            raise UserError(
                f"{directory}: made with another tokenizer ({theirs}) than that of {tokenizer_dir} ({mine}); "
                "prepare the records with the model's tokenizer"
            )
    return rows


def align_labels(weights: store.Weights, labels: Sequence[str], say: Callable[[str], None]) -> store.Weights:
    """Bring a teacher's outputs into the order of the data's labels.

    Raises:
        UserError: the teacher was not trained on these labels.
    """
    have = weights.config.labels
    if not labels or tuple(labels) == have:
        return weights
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(have))
    if unnamed and len(have) == len(labels):
        say(f"The teacher {weights.source} does not name its labels; taken to be {', '.join(labels)} in this order")
        return store.Weights(weights.config.with_(labels=tuple(labels)), weights.values, weights.source, weights.fit)
    low = [name.lower() for name in have]
    wanted = [name.lower() for name in labels]
    if sorted(low) != sorted(wanted):
        raise UserError(
            f"{weights.source}: trained on the labels {', '.join(have) or '(none: it has no classifier)'}; the records "
            f"have {', '.join(labels)}; fine-tune a teacher on this task first (minddistill finetune)"
        )
    order = [low.index(name) for name in wanted]
    values = dict(weights.values)
    for name in ("classifier.weight", "classifier.bias"):
        values[name] = values[name][order]
    say(f"The teacher's outputs were put in the records' order of labels: {', '.join(labels)}")
    return store.Weights(weights.config.with_(labels=tuple(labels)), values, weights.source, weights.fit)


def buckets_for(spec: str, rows: Rows, fixed: bool) -> list[int]:
    """The lengths of `--buckets`; `fixed` says why there can be only one.

    Raises:
        UserError: a list was asked for where the length must be fixed.
    """
    if spec == "off" or (fixed and spec == "auto"):
        return [rows.seq_length]
    if fixed:
        raise UserError(
            f"--buckets {spec}: --loss_mode reference and data sink need one fixed length; give --buckets off, "
            "or --loss_mode masked"
        )
    return choose_buckets(rows.length, rows.seq_length) if spec == "auto" else numbers(spec, "--buckets")


def note_data_sink(wanted: bool, place: runtime.Runtime, log: RunLog) -> None:
    """Say what becomes of `--enable_data_sink`: batches of several lengths are fed step by step on every device."""
    if wanted:
        log.line(
            f"Data sink: on {place.device} a thread makes batches ahead, fed step by step as their lengths may differ"
        )


def fit_dense(
    kind: str,
    student: ModelConfig,
    teacher: ModelConfig,
    pairs: LayerMap,
    carried: Mapping[str, np.ndarray],
    seed: int,
) -> FitDense:
    """The projection of the student's hidden states, from an earlier stage where it brings one.

    Raises:
        UserError: the one it brings is of another width or count.
    """
    if carried:
        count = 1 if "fit_dense.weight" in carried else len(carried) // 2
    else:
        count = 1 if kind == "shared" else len(pairs.hidden)
    fit = FitDense(student.hidden_size, teacher.hidden_size, count)
    params.initialise(fit, seed, student.initializer_range)
    if carried:
        names = {ours: theirs for ours, theirs in _fit_paths(fit).items()}
        missing = [theirs for theirs in names.values() if theirs not in carried]
        if missing or (count > 1 and count != len(pairs.hidden)):
            raise UserError(f"the student's fit_dense has {count} projections; the layer map needs {len(pairs.hidden)}")
        params.assign(fit, {ours: carried[theirs] for ours, theirs in names.items()}, "fit_dense of the student")
    return fit


def _fit_paths(fit: FitDense) -> dict[str, str]:
    return {path: fit.names()[path.rsplit(".", 1)[-1]] for path in params.named(fit)}


def fit_arrays(fit: FitDense) -> dict[str, np.ndarray]:
    """The projection's weights under their names in checkpoints."""
    paths = _fit_paths(fit)
    return {paths[path]: value for path, value in params.arrays(fit).items()}


class Evaluator:
    """Measures a model on rows, as often as asked; compiled once for each length.

    Args:
        buckets: lengths that rows are padded to; the records' own alone by default.
    """

    def __init__(self, model: TextModel, rows: Rows, buckets: list[int] | None = None):
        self.loader = Loader(rows, EVAL_BATCH, buckets=buckets, shuffle=False)
        self.forward = predict_function(model)
        self.regression = model.config.regression

    def logits(self) -> np.ndarray:
        """Logits (N, C) of all rows, in their order."""
        return predict(self.forward, self.loader)

    def metrics(self, logits: np.ndarray | None = None) -> dict[str, float]:
        """The task's metrics, the main one first; none where the rows have no labels."""
        rows = self.loader.rows
        if rows.label is None or not rows.meta.get("labelled", True):
            return {}
        found = self.logits() if logits is None else logits
        return metrics.compute(rows.meta.get("metrics", ["accuracy"]), rows.label, found, self.regression)


def eval_buckets(train: list[int], rows: Rows) -> list[int]:
    """The lengths of training, which are compiled already for the teacher, up to what the rows need."""
    longest = int(rows.length.max())
    useful = [length for length in train if length <= rows.seq_length]
    return useful if useful and useful[-1] >= longest else [*useful, rows.seq_length]


def check_teacher(
    model: TextModel, rows: Rows, buckets: list[int], allow_weak: bool, say: Callable[[str], None]
) -> float:
    """Measure a teacher before anything is learnt from it. Returns its main metric.

    Raises:
        UserError: it does not beat the majority class (or, in a regression task, explains nothing).
    """
    evaluator = Evaluator(model, rows, buckets)
    logits = evaluator.logits()
    found = evaluator.metrics(logits)
    if model.config.regression:
        name, value, floor = "pearson", found["pearson"], 0.1
    else:
        assert rows.label is not None
        floor = float(np.bincount(rows.label).max() / len(rows))
        name, value = "accuracy", metrics.compute(["accuracy"], rows.label, logits, False)["accuracy"]
    say(f"Teacher on {rows.directory}: {name} {value:.6f} (majority class or floor {floor:.6f}, {len(rows)} rows)")
    if value <= floor and not allow_weak:
        raise UserError(
            f"the teacher's {name} on {rows.directory} is {value:.4f}, not above {floor:.4f} of the majority class; it "
            "was not trained on this task or its labels are mixed up; --allow_weak_teacher true goes on all the same"
        )
    return next(iter(found.values()))
