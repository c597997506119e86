"""What commands share: records that are read and checked against a model, and words about both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..config import numbers
from ..data.loader import check_buckets, choose_buckets
from ..data.records import Rows, read_rows
from ..data.tasks import CUSTOM, task_named
from ..data.tokenizer import fingerprint, has_tokenizer, load_tokenizer, special_id
from ..errors import UserError
from ..evaluation import metrics
from ..export.arrays import read_arrays
from ..export.session import ONNX_FILE, read_config
from ..files import model_path
from ..models import store
from ..models.config import ModelConfig, WordConfig
from ..train.log import RunLog
from .run import Run


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
    """See that `meta.json` names known metrics and the task asked for; of records without it, that says what they are."""
    if task and not rows.meta and task.lower() != CUSTOM:
        named = task_named(task)
        # Which label is out of scope is not told.
        judged = ["accuracy"] if named.out_of_scope else list(named.metrics)
        rows.meta |= {"task": named.name, "problem_type": named.problem, "metrics": judged}
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
    if theirs and tokenizer_dir is not None and has_tokenizer(tokenizer_dir):
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
        return store.read_weights(path).without("mlm.").values
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
