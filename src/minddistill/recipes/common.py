"""What the training commands share: records against models, teachers, projections, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .. import params
from ..config import numbers
from ..data.loader import Loader, check_buckets, choose_buckets
from ..data.records import Rows, read_rows
from ..data.tokenizer import fingerprint, load_tokenizer, special_id
from ..distill.layer_map import LayerMap, layer_map
from ..distill.objectives import FitDense, Same, check_heads
from ..errors import UserError
from ..evaluation import metrics
from ..evaluation.evaluate import Truth, predict, write_predictions
from ..export.arrays import read_arrays
from ..export.session import ONNX_FILE, Session, read_config
from ..files import model_path
from ..models import store
from ..models.config import ModelConfig, WordConfig
from ..models.heads import TextModel, predict_function
from ..problems import MULTI, REGRESSION, SINGLE, TOKEN
from ..train.log import RunLog
from .run import Run

EVAL_BATCH = 64


def read_checked(
    directory: str,
    flag_name: str,
    config: ModelConfig | WordConfig,
    tokenizer_dir: Path | None,
    task: str = "",
    log: RunLog | None = None,
    **options: Any,
) -> Rows:
    """Read records and see that they fit a model: vocabulary, length, and the tokenizer where both name one.

    Args:
        flag_name: the flag that named the directory, for messages.
        task: what `--task_name` says; empty leaves it unchecked.
        log: where the checks are told; None tells nothing.
        options: of `read_rows`.

    Raises:
        UserError: they do not.
    """
    check = log.check if log else _unsaid
    with check(f"records {flag_name}") as found:
        rows = read_rows(directory, vocab_size=config.vocab_size, flag=flag_name, **options)
        _check_description(rows, directory, task)
        found(described_rows(rows))
    with check(f"vocabulary {flag_name}") as found:
        check_vocabulary(rows, config, tokenizer_dir)
        found(
            f"ids below {config.vocab_size}, at most {config.max_length} tokens, tokenizer {rows.meta.get('tokenizer')}"
        )
    return rows


@contextmanager
def _unsaid(name: str) -> Iterator[Callable[..., None]]:
    """A check that tells nobody what it found."""
    yield lambda text, good=True: None


def _check_description(rows: Rows, directory: str, task: str) -> None:
    """See that `meta.json` names known metrics and the task asked for."""
    known = metrics.METRICS[rows.problem]
    unknown = [name for name in rows.meta.get("metrics", []) if name not in known]
    if unknown:
        raise UserError(f"{directory}: meta.json asks for the metric {unknown[0]!r}; expected {', '.join(known)}")
    made_for = rows.meta.get("task", "")
    if task and made_for and task.lower() != made_for.lower():
        raise UserError(f"--task_name {task}: the records in {directory} are of {made_for}")


def check_vocabulary(rows: Rows, config: ModelConfig | WordConfig, tokenizer_dir: Path | None) -> None:
    """See that a model can read the rows, and that its tokenizer made them.

    Raises:
        UserError: the rows are too long, or of another tokenizer.
    """
    directory = rows.directory
    if rows.seq_length > config.max_length:
        raise UserError(
            f"{directory}: rows of {rows.seq_length} tokens; the model reads at most {config.max_length}; "
            "prepare the records with a smaller --max_seq_length"
        )
    theirs = rows.meta.get("tokenizer")
    if theirs and tokenizer_dir is not None and any((tokenizer_dir / n).is_file() for n in store.TOKENIZER_FILES[:2]):
        mine = fingerprint(load_tokenizer(tokenizer_dir))
        if mine != theirs:
            raise UserError(
                f"{directory}: made with another tokenizer ({theirs}) than that of {tokenizer_dir} ({mine}); "
                "prepare the records with the model's tokenizer"
            )


def check_seq_length(rows: Rows, most: int) -> None:
    """See that no row is longer than `--seq_length`.

    Raises:
        UserError: one may be.
    """
    if rows.seq_length > most:
        raise UserError(f"{rows.directory}: rows of {rows.seq_length} tokens, --seq_length is {most}; make them agree")


def require_whole_text(rows: Rows) -> None:
    """See that the words of a corpus are all there, to be masked anew in each epoch.

    Raises:
        UserError: it was prepared with masks of its own.
    """
    if rows.meta.get("plan", {}).get("masked_lm_prob"):
        raise UserError(
            f"--data_dir {rows.directory}: has masks of its own; expected a corpus prepared without --masked_lm_prob"
        )


def masking(weights: store.Weights, probability: float, log: RunLog) -> dict[str, Any]:
    """How a `MaskedLoader` masks the words of a model's tokenizer, as its arguments.

    Raises:
        UserError: the probability is none, or the tokenizer has no special token that is wanted.
    """
    if not 0 < probability < 1:
        raise UserError(f"--masked_lm_prob {probability}: expected a number between 0 and 1")
    with log.check("vocabulary") as found:
        tokenizer = load_tokenizer(weights.directory)
        mask = special_id(tokenizer, "[MASK]", "<mask>")
        names = (("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>"))
        special = {mask, *(special_id(tokenizer, *pair) for pair in names)}
        found(f"{weights.config.vocab_size} word pieces, mask {mask}")
    return {"mask": mask, "special": special, "vocabulary": weights.config.vocab_size, "probability": probability}


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
    if relu_before_classifier:
        raise UserError(f"--relu_before_classifier true: a {config.family} has no pooler whose output it would rectify")
    return head


def described(weights: store.Weights) -> str:
    """A model in a line."""
    return f"{weights.source}: {weights.config.summary}"


def described_rows(rows: Rows) -> str:
    """A record directory in a line."""
    schema = "as their schema says" if (rows.directory / "schema.json").is_file() else "no schema beside them"
    told = f"{rows.directory}: {len(rows)} rows{left_out(rows)} of {rows.seq_length} tokens"
    return f"{told} at most {int(rows.length.max())} real, {schema}"


def left_out(rows: Rows) -> str:
    """Of records that a schema cuts short, how many rows it leaves out, in brackets; empty for others."""
    return f" ({rows.cut} more left out, by numRows of the schema)" if rows.cut else ""


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
        return store.Weights(weights.config.with_(labels=tuple(labels)), weights.values, weights.source, weights.fit)
    values = dict(weights.values)
    for name in ("classifier.weight", "classifier.bias"):
        values[name] = values[name][order]
    say(f"The teacher's outputs were put in the records' order of labels: {', '.join(labels)}")
    return store.Weights(weights.config.with_(labels=tuple(labels)), values, weights.source, weights.fit)


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


def matched_layers(
    spec: str, student: ModelConfig, teacher: ModelConfig, log: RunLog, attention: bool = True
) -> LayerMap:
    """The layer map of `--layer_map`, for attention scores that can be compared.

    Args:
        attention: whether they are compared at all; without them, heads may differ.

    Raises:
        UserError: layers or heads do not go together.
    """
    with log.check("layers") as found:
        pairs = layer_map(spec, student.num_hidden_layers, teacher.num_hidden_layers)
        found(f"the student's {student.num_hidden_layers} learn from teacher layers {pairs.attention}")
    if not attention:
        return LayerMap((), pairs.hidden)
    with log.check("heads") as found:
        check_heads(pairs, student.layer_heads, teacher.layer_heads)
        found(f"{student.num_attention_heads}, as the teacher has")
    return pairs


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


def unnamed(labels: Sequence[str]) -> bool:
    """Whether they are the names that Hugging Face gives labels without names."""
    return list(labels) == [f"LABEL_{index}" for index in range(len(labels))]


def same_labels(have: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists name the same labels in the same order; case counts where it alone tells them apart."""
    if sorted(have) == sorted(theirs):
        return list(have) == list(theirs)
    return [name.lower() for name in have] == [name.lower() for name in theirs]


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


def outputs_of(shape: ModelConfig | WordConfig, rows: Rows, source: str) -> list[int] | None:
    """The outputs of a model in the order of the rows' labels; None where they are in it, or not named.

    Raises:
        UserError: as `label_order`.
    """
    labels = rows.meta.get("labels", [])
    return label_order(shape.labels, labels, source, rows.directory) if labels and not shape.regression else None


def buckets_for(spec: str, rows: Rows, fixed: bool) -> list[int]:
    """The lengths of `--buckets`; `fixed` says why there can be only one.

    Raises:
        UserError: a list was asked for where the length must be fixed, or the rows do not fit into it.
    """
    if spec == "off" or (fixed and spec == "auto"):
        return [rows.seq_length]
    if fixed:
        raise UserError(
            f"--buckets {spec}: the losses of --loss_mode reference need one fixed length; give --buckets off, or --loss_mode masked"
        )
    if spec == "auto":
        return choose_buckets(rows.length, rows.seq_length)
    return check_buckets(numbers(spec, "--buckets"), rows)


def note_data_sink(wanted: bool, run: Run) -> None:
    """Say what becomes of `--enable_data_sink`: batches of several lengths are fed step by step on every device."""
    if wanted:
        run.log.line(
            f"Data sink: on {run.place.device} a thread makes batches ahead, fed step by step as their lengths may differ"
        )


def projection(
    student: ModelConfig,
    teacher: ModelConfig,
    pairs: LayerMap,
    seed: int,
    kind: str = "shared",
    carried: Mapping[str, np.ndarray] | None = None,
) -> FitDense | Same:
    """What brings the student's hidden states to the teacher's width: nothing where they have it."""
    if student.hidden_size == teacher.hidden_size:
        if kind == "layer":
            raise UserError("--fit_dense layer: student and teacher are equally wide, and need none; leave it out")
        return Same()
    return fit_dense(kind, student, teacher, pairs, carried or {}, seed)


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
        if kind == "layer" and count == 1:
            raise UserError("--fit_dense layer: the student brings one for all layers; leave it out")
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


def fit_arrays(fit: FitDense | Same) -> dict[str, np.ndarray]:
    """The projection's weights under their names in checkpoints; none where there is none."""
    if isinstance(fit, Same):
        return {}
    paths = _fit_paths(fit)
    return {paths[path]: value for path, value in params.arrays(fit).items()}


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
    value, floor = metrics.compute([name], truth, logits)[name], _floor(truth)
    say(f"Teacher on {rows.directory}: {name} {value:.6f} (majority class or floor {floor:.6f}, {len(rows)} rows)")
    if value <= floor and not allow_weak:
        raise UserError(
            f"the teacher's {name} on {rows.directory} is {value:.4f}, not above {floor:.4f} of the majority class; it "
            "was not trained on this task or its labels are mixed up; --allow_weak_teacher true goes on all the same"
        )
    return evaluator


# The metric that a teacher is checked by.
_DECIDES = {SINGLE: "accuracy", MULTI: "micro_f1", REGRESSION: "pearson", TOKEN: "entity_f1"}


def _floor(truth: Truth) -> float:
    """What a model that knows nothing reaches: by always giving the commonest label, or no entity."""
    if truth.problem == SINGLE:
        return float(np.bincount(truth.labels).max() / len(truth.labels))
    if truth.problem == MULTI:
        commonest, total = truth.labels.sum(0).max(), truth.labels.sum() + len(truth.labels)
        return float(2 * commonest / total)
    return 0.1 if truth.problem == REGRESSION else 0.0


def short_names(paths: Sequence[str]) -> list[str]:
    """The parts of paths that tell them apart: `teacher` and `student` for `runs/teacher/best` and `runs/student/best`.

    Raises:
        UserError: a path is given twice.
    """
    parts = [Path(path).parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"--models {' '.join(paths)}: one of them twice; give each model once")
    depth, end = 1, 0
    while len({part[-depth:] for part in parts}) < len(parts):
        end = depth if len({part[-depth:] for part in parts}) == 1 else end
        depth += 1
    told = [part[-depth : len(part) - end] for part in parts]
    return ["/".join(part) for part in (told if all(told) else (part[-depth:] for part in parts))]


def arrays(path: Path) -> Mapping[str, np.ndarray]:
    """The weights of a model directory, MindSpore's or ONNX, by path; without a masked-LM head."""
    graph = path / ONNX_FILE
    if not graph.is_file():
        return {name: value for name, value in store.read_weights(path).values.items() if not name.startswith("mlm.")}
    values, shape = read_arrays(graph), read_config(path)
    for name in values:  # the graph's queries hold the scale of the scores, which the model's do not
        if isinstance(shape, ModelConfig) and name.endswith((".query.weight", ".query.bias")):
            values[name] = values[name] * math.sqrt(shape.attention_head_size)
    return values


def megabytes(path: Path) -> float:
    """Of the files on disk that hold a model's weights, MindSpore's or ONNX."""
    path = model_path(path)
    if path.is_file():
        return path.stat().st_size / 1e6
    pattern = f"{ONNX_FILE}*" if (path / ONNX_FILE).is_file() else "*.safetensors"
    return sum(file.stat().st_size for file in path.glob(pattern) if file.name != store.FIT_FILE) / 1e6
