"""Labels and scores of texts, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any, Literal

from .. import pipeline
from ..config import flag, parse, unusual, words
from ..data.tasks import CUSTOM, SURROGATE, Task, decoded, plain_examples, read_examples, text_lines
from ..errors import UserError
from ..export.pipeline import Pipeline, Text
from ..files import whole_file
from ..problems import MULTI, REGRESSION, SINGLE, TOKEN


@dataclass
class Config:
    """Prediction."""

    texts: list[str] = words("texts; without any, and without --file, standard input is read, a text a line")
    model: str = flag("", "model directory, of MindSpore or with an ONNX graph")
    file: str = flag("", "a text a line, or a .tsv, .csv or .jsonl with the columns below")
    text_column: str = flag("text", "column of the text")
    text_pair_column: str = flag("", "column of the second text; empty for single texts")
    pairs: bool = flag(False, "texts are pairs: two words of the command line, two parts of a line around a tab")
    threshold: float = flag(0.0, "least score of a label; below it the label is null; 0 in a multi-label task is 0.5")
    aggregation: Literal["first", "simple"] = flag(
        "first",
        "token classifiers: a word has the class of its first piece, as in training, or (simple) each piece its own",
    )
    output_file: str = flag("", "where the lines go; standard output by default")
    batch_size: int = flag(32, "texts that are computed together")
    threads: int = flag(0, "threads that compute a batch; 0 takes the runtime's own choice")


def run(config: Config) -> int:
    """Write a line of JSON for each text, in order. Returns their number.

    Raises:
        UserError: the model cannot be run, or a text cannot be read; names file and line.
    """
    if config.texts and config.file:
        raise UserError(f"--file {config.file}: texts stand on the command line too; give one of both")
    if config.output_file and Path(config.output_file).is_dir():
        raise UserError(f"--output_file {config.output_file}: is a directory; expected a file")
    model = pipeline(config.model, threads=config.threads or None, batch_size=config.batch_size)
    _check_flags(config, model.session.config.problem)
    with contextlib.ExitStack() as stack:
        out = sys.stdout
        if config.output_file:
            target = Path(config.output_file)
            if target.is_file() or not target.exists():  # not a device or a pipe, in whose place nothing may be put
                target = stack.enter_context(whole_file(target.resolve()))
            out = stack.enter_context(open(target, "w", encoding="utf-8"))
        count = 0
        for line in predictions(model, _texts(config), config.threshold, config.aggregation):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
        out.flush()
    return count


def _check_flags(config: Config, problem: str) -> None:
    """See that the model's predictions are decided by the flags that are given."""
    if config.threshold >= 1:
        raise UserError(f"--threshold {config.threshold:g}: expected a score, below 1")
    if config.threshold and problem not in (SINGLE, MULTI):
        raise UserError(
            f"--threshold {config.threshold:g}: {config.model} is for {problem}; it has no labels to leave out"
        )
    if config.aggregation != "first" and problem != TOKEN:
        raise UserError(f"--aggregation {config.aggregation}: {config.model} is for {problem}; it finds no entities")


def predictions(
    model: Pipeline, texts: Iterable[Text], threshold: float = 0.0, aggregation: str = "first"
) -> Iterator[dict[str, Any]]:
    """The text, its label and score, and the scores of all labels; in a multi-label task its labels; of a regression task
    the text and its score; of a token task the text and its entities.

    Args:
        threshold: least score of a label that is given; in a multi-label task 0 stands for 0.5.
        aggregation: of a token task, as in `export.entities`.
    """
    read, kept = tee(texts)  # the model reads ahead by a window
    problem = model.session.config.problem
    found = model.entities(read, aggregation) if problem == TOKEN else model.scores(read)
    for text, values in zip(kept, found, strict=False):
        given = {"text": text} if isinstance(text, str) else dict(text)
        yield given | _told(values, model.labels, problem, threshold)


def _told(values: Any, labels: Sequence[str], problem: str, threshold: float) -> dict[str, Any]:
    """What is said of a text."""
    if problem == TOKEN:
        return {"entities": values}
    if problem == REGRESSION:
        return {"score": float(values[0])}
    table = dict(zip(labels, map(float, values), strict=True))
    if problem == MULTI:
        return {"labels": [name for name in labels if table[name] >= (threshold or 0.5)], "scores": table}
    best = max(table, key=lambda name: table[name])
    return {"label": best if table[best] >= threshold else None, "score": table[best], "scores": table}


def _texts(config: Config) -> Iterator[Text]:
    if config.texts:
        for name, value in unusual(config).items():
            if name in ("text_column", "text_pair_column"):
                raise UserError(f"--{name} {value}: the command line has texts, without columns; leave it out")
        for text in config.texts:
            if SURROGATE.search(text):
                raise UserError(f"{text!r}: not UTF-8; expected text")
        if not config.pairs:
            return iter(config.texts)
        if len(config.texts) % 2:
            raise UserError(f"--pairs true: {len(config.texts)} texts on the command line; expected two a pair")
        pairs = zip(config.texts[::2], config.texts[1::2], strict=True)
        return ({"text": first, "text_pair": second} for first, second in pairs)
    path = Path(config.file)
    table = path.suffix.lower() in (".tsv", ".csv", ".jsonl", ".json")
    for name, value in unusual(config).items():
        if name in (("pairs",) if table else ("text_column", "text_pair_column")):
            kind = (
                "columns, which --text_column and --text_pair_column name" if table else "plain text, without columns"
            )
            raise UserError(f"--{name} {value}: {config.file or 'standard input'} is {kind}; leave it out")
    if table:
        task = Task(CUSTOM, text=config.text_column, text_pair=config.text_pair_column or None)
        examples = read_examples(path, task, "test", labelled=False, empty=True)
    else:
        lines = text_lines(path) if config.file else decoded(sys.stdin.buffer, "standard input")
        examples = plain_examples(lines, config.pairs, config.file or "standard input")
    return (example.given for example in examples)


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill predict`."""
    run(*parse("minddistill predict", "Labels and scores of texts.", [Config], argv))
