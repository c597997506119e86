"""Labels and scores of texts, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any

from .. import pipeline
from ..config import flag, parse, words
from ..data.tasks import CUSTOM, Task, decoded, plain_examples, read_examples, text_lines
from ..errors import UserError
from ..export.pipeline import Pipeline, Text
from ..files import whole_file


@dataclass
class Config:
    """Prediction."""

    texts: list[str] = words("texts; without any, and without --file, standard input is read, a text a line")
    model: str = flag("", "model directory, of MindSpore or with an ONNX graph")
    file: str = flag("", "a text a line, or a .tsv, .csv or .jsonl with the columns below")
    text_column: str = flag("text", "column of the text")
    text_pair_column: str = flag("", "column of the second text; empty for single texts")
    pairs: bool = flag(False, "texts are pairs: two words of the command line, two parts of a line around a tab")
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
    model = pipeline(config.model, threads=config.threads or None, batch_size=config.batch_size)
    with contextlib.ExitStack() as stack:
        out = sys.stdout
        if config.output_file:
            part = stack.enter_context(whole_file(Path(config.output_file)))
            out = stack.enter_context(open(part, "w", encoding="utf-8"))
        count = 0
        for line in predictions(model, _texts(config)):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
        out.flush()
    return count


def predictions(model: Pipeline, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
    """The text, its label and score, and the scores of all labels; of a regression task the text and its score."""
    read, kept = tee(texts)  # the model reads ahead by a window
    for text, scores in zip(kept, model.scores(read), strict=False):
        given = {"text": text} if isinstance(text, str) else dict(text)
        if model.session.config.regression:
            yield given | {"score": float(scores[0])}
        else:
            table = dict(zip(model.labels, map(float, scores), strict=True))
            yield given | {"label": model.labels[scores.argmax()], "score": float(scores.max()), "scores": table}


def _texts(config: Config) -> Iterator[Text]:
    if config.texts:
        if not config.pairs:
            return iter(config.texts)
        if len(config.texts) % 2:
            raise UserError(f"--pairs true: {len(config.texts)} texts on the command line; expected two a pair")
        pairs = zip(config.texts[::2], config.texts[1::2], strict=True)
        return ({"text": first, "text_pair": second} for first, second in pairs)
    path = Path(config.file)
    if path.suffix.lower() in (".tsv", ".csv", ".jsonl", ".json"):
        task = Task(CUSTOM, text=config.text_column, text_pair=config.text_pair_column or None)
        examples = read_examples(path, task, "test", labelled=False)
    else:
        lines = text_lines(path) if config.file else decoded(sys.stdin.buffer, "standard input")
        examples = plain_examples(lines, config.pairs, config.file or "standard input")
    return (example.given for example in examples)


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill predict`."""
    try:
        run(*parse("minddistill predict", "Labels and scores of texts.", [Config], argv))
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
