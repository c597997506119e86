"""A teacher's logits beside text, or its labels: what a student of any tokenizer is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import pipeline
from ..config import flag, parse, unusual
from ..data import records
from ..data.tasks import (
    LOGITS,
    SHARD_ENDING,
    Example,
    Task,
    columns_of,
    label_names,
    plain_examples,
    read_examples,
    text_files,
    text_lines,
    write_examples,
)
from ..errors import UserError
from ..evaluation.evaluate import softmax
from ..export.pipeline import Pipeline
from ..files import checksum
from ..problems import MULTI, REGRESSION, SINGLE, TOKEN
from . import prepare_task
from .labels import label_order
from .resume import begin_records, model_content

_ROWS_A_SHARD = 20_000  # of the text that is read
_DIGITS = 6  # of a logit, behind its point


@dataclass
class Config(prepare_task.TextFlags):
    """Text in, labelled text out."""

    model: str = flag("", "the teacher: model directory, of MindSpore or with an ONNX graph")
    split: str = flag("train", "split whose text is labelled")
    text_file: str = flag(
        "", "unlabelled text, one a line that is not empty, in place of a split; in a task of pairs two around a tab"
    )
    output_dir: str = flag("", "where the labelled text goes, as JSONL that prepare-task takes as --train_file")
    kind: Literal["soft", "hard"] = flag(
        "soft", "soft (the teacher's logits beside the label) or hard (its likeliest label in place of the text's own)"
    )
    entropy_threshold: float = flag(
        0.0, "bits of entropy of the teacher's prediction, above which a row is left out; 0 for none"
    )
    batch_size: int = flag(64, "texts that are computed together, of like length")
    threads: int = flag(0, "threads that compute a batch; 0 takes the runtime's own choice")


def run(config: Config) -> dict[str, Any]:
    """Write the rows of a text with what the teacher says of them; returns `meta.json`.

    Run again with the same flags, it goes on with the shards that are missing.

    Raises:
        UserError: a flag, file, row or model is wrong.
    """
    if not config.output_dir:
        raise UserError("--output_dir is empty; expected the directory to write")
    if not config.model:
        raise UserError("--model is empty; expected the teacher's model directory")
    task, source, name = _source(config)
    directory, plan = Path(config.output_dir), _plan(config, source)
    finished, _ = begin_records(directory, plan, 1)
    if finished:
        print(f"{name}: finished before, {finished['rows']} rows in {directory}")
        return finished
    labeller = Labeller(
        pipeline(config.model, threads=config.threads or None, batch_size=config.batch_size), task, config
    )
    examples, read, paths = iter(_examples(config, task, source)), 0, []
    while part := list(islice(examples, _ROWS_A_SHARD)):
        path = directory / f"{name}-{len(paths):05d}{SHARD_ENDING}"
        if not path.is_file():
            write_examples(path, labeller.labelled(part, f"{source}: row", read + 1), task)
            print(f"{name}: rows {read + 1} to {read + len(part)} labelled", flush=True)
        read += len(part)
        paths.append(path)
    kept = sum(1 for path in paths for _ in text_lines(path))
    if not kept:
        raise UserError(f"{source}: no row of {read} is left; expected text, and a higher --entropy_threshold")
    meta = {"split": name, "model": config.model, "kind": config.kind, "rows": kept, "read": read, "plan": plan}
    records.finish_directory(directory, None, meta)
    print(f"{name}: {kept} of {read} rows of {source} in {directory}")
    return meta


def _source(config: Config) -> tuple[Task, Path, str]:
    """The task that names the columns, the text, and what it is called.

    Raises:
        UserError: the flags name no text, or two.
    """
    if config.text_file:
        given = [
            name for name in ("data_dir", "train_file", "dev_file", "test_file", "split") if name in unusual(config)
        ]
        if given:
            raise UserError(f"--text_file {config.text_file}: --{given[0]} is given too; expected one of both")
        return prepare_task.task_of(config), Path(config.text_file), "text"
    task, files = prepare_task.task_and_files(config)
    if config.split not in files:
        raise UserError(f"--split {config.split}: no such file; expected one of {', '.join(files)}")
    return task, files[config.split], config.split


def _examples(config: Config, task: Task, source: Path) -> Iterable[Example]:
    if config.text_file:
        lines = ((number, line) for number, line in text_lines(source) if line.strip())
        return plain_examples(lines, task.text_pair is not None, str(source))
    return read_examples(source, task, config.split, labelled=False)


def _plan(config: Config, source: Path) -> dict[str, Any]:
    """What the rows depend on."""
    places = ("output_dir", "data_dir", "train_file", "dev_file", "test_file", "batch_size", "threads", "model")
    plan = {name: value for name, value in asdict(config).items() if name not in places}
    return plan | {
        "text": {file.name: checksum(file) for file in text_files(source)},
        "model": model_content(config.model),
    }


class Labeller:
    """Says of text what a teacher says of it.

    Raises:
        UserError: the teacher was not trained on the task's labels.
    """

    def __init__(self, model: Pipeline, task: Task, config: Config):
        self.model, self.hard, self.most_bits = model, config.kind == "hard", config.entropy_threshold
        self.task, self.labels = task, model.labels
        problem = model.session.config.problem
        if problem == TOKEN or problem != task.problem:
            raise UserError(
                f"{config.model}: does {problem}, the task is {task.problem}; expected the same, on whole texts"
            )
        if self.most_bits and problem != SINGLE:
            raise UserError(f"--entropy_threshold {self.most_bits}: expected {SINGLE}, the task is {problem}")
        if task.labels is not None:
            # The raw values of the label column, in the order of the logits.
            names = list(task.labels.values())
            order = label_order(model.labels, names, config.model, Path(config.output_dir)) or range(len(names))
            raw = dict(zip(order, task.labels, strict=True))
            self.labels = [raw[place] for place in range(len(names))]

    def labelled(self, examples: Sequence[Example], where: str, first: int) -> Iterator[tuple[Example, dict[str, Any]]]:
        """Examples, each with what is written of it besides; those that the teacher doubts are left out.

        Args:
            where, first: name and number of the first one's place, for messages.
        """
        logits = self.model.logits(example.given for example in examples)
        for number, (example, values) in enumerate(zip(examples, logits, strict=True), first):
            self._check_label(example, f"{where} {number}")
            if not self.most_bits or entropy(values) <= self.most_bits:
                yield example, self._more(example, values)

    def _check_label(self, example: Example, where: str) -> None:
        """See that the teacher knows the text's own labels."""
        if example.label is None or self.task.problem == REGRESSION:
            return
        unknown = set(label_names(self.task, example.label)) - {*self.labels, self.task.out_of_scope}
        if unknown:
            raise UserError(
                f"{where}: label {min(unknown)!r}; the teacher knows {', '.join(self.labels)}; give --labels in the order of "
                "its outputs, or another teacher"
            )

    def _more(self, example: Example, values: np.ndarray) -> dict[str, Any]:
        """The logits by label; and the teacher's label where the text has none, or in its place, which is kept beside it."""
        own = {columns_of(self.task)[1]: self._prediction(values), "original_label": example.label}
        if self.hard:
            return own
        names = ["score"] if self.task.problem == REGRESSION else self.labels
        found = {name: round(float(value), _DIGITS) for name, value in zip(names, values, strict=True)}
        return {LOGITS: found} | ({} if example.label is not None else own)

    def _prediction(self, values: np.ndarray) -> str:
        """What the label column holds of the teacher's prediction."""
        if self.task.problem == REGRESSION:
            return str(round(float(values[0]), _DIGITS))
        if self.task.problem == MULTI:
            return self.task.separator.join(self.labels[place] for place in np.flatnonzero(values > 0))
        return self.labels[int(values.argmax())]


def entropy(logits: np.ndarray) -> float:
    """Bits of entropy of the prediction that logits (C,) stand for."""
    scores = softmax(logits[None].astype(np.float64))[0]
    return float(-(scores * np.log2(np.maximum(scores, 1e-300))).sum())


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill label`."""
    run(*parse("minddistill label", "A teacher's logits or labels beside text.", [Config], argv))
