"""The tasks: where their text, labels and files are, how they are measured. A new task is a row of the table."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import whole_file
from ..problems import MULTI, REGRESSION, SEPARATOR, SINGLE, TOKEN

_SINGLE = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}


@dataclass(frozen=True)
class Task:
    """A task on a text or a pair of texts, or on the words of a text.

    `text`, `text_pair` and `label` name columns (numbers count from 0 in files without a header). `labels` maps
    what stands in the label column to class names in the order of the logits; None takes the training data's own
    values, sorted. `torn` says that line breaks tear some rows of the official file apart, which are left out. `problem` tells what the labels mean; in a multi-label task a cell holds several with `separator`
    between, or none. `out_of_scope` is the label of rows that belong to none of the classes: a class of its own where
    the training data has it. The first of `metrics` selects the best model. `submission` is GLUE's name of the test
    file.
    """

    name: str
    text: str | int = "text"
    text_pair: str | int | None = None
    label: str | int = "label"
    labels: Mapping[str, str] | None = None
    problem: str = SINGLE
    separator: str = SEPARATOR
    out_of_scope: str = ""
    metrics: tuple[str, ...] = ("accuracy",)
    max_length: int = 128
    files: Mapping[str, str] = field(default_factory=lambda: _SINGLE)
    headerless: tuple[str, ...] = ()
    torn: bool = False
    submission: Mapping[str, str] = field(default_factory=dict)


_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "SST-2",
            text="sentence",
            labels={"0": "negative", "1": "positive"},
            max_length=64,
            submission={"test": "SST-2.tsv"},
        ),
        Task(
            "MNLI",
            text="sentence1",
            text_pair="sentence2",
            label="gold_label",
            labels={name: name for name in ("contradiction", "entailment", "neutral")},
            files={
                "train": "train.tsv",
                "dev_matched": "dev_matched.tsv",
                "dev_mismatched": "dev_mismatched.tsv",
                "test_matched": "test_matched.tsv",
                "test_mismatched": "test_mismatched.tsv",
            },
            submission={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
        ),
        Task("QNLI", text="question", text_pair="sentence", labels=_ENTAILMENT, submission={"test": "QNLI.tsv"}),
        Task(
            "MRPC",
            text="#1 String",
            text_pair="#2 String",
            label="Quality",
            labels={"0": "not_equivalent", "1": "equivalent"},
            metrics=("accuracy", "f1"),
            submission={"test": "MRPC.tsv"},
        ),
        Task(
            "QQP",
            text="question1",
            text_pair="question2",
            label="is_duplicate",
            labels={"0": "not_duplicate", "1": "duplicate"},
            metrics=("accuracy", "f1"),
            torn=True,
            submission={"test": "QQP.tsv"},
        ),
        Task("RTE", text="sentence1", text_pair="sentence2", labels=_ENTAILMENT, submission={"test": "RTE.tsv"}),
        Task(
            "CoLA",
            text=3,
            label=1,
            labels={"0": "unacceptable", "1": "acceptable"},
            metrics=("matthews", "accuracy"),
            max_length=64,
            headerless=("train", "dev"),
            submission={"test": "CoLA.tsv"},
        ),
        Task(
            "STS-B",
            text="sentence1",
            text_pair="sentence2",
            label="score",
            problem=REGRESSION,
            metrics=("pearson", "spearman"),
            submission={"test": "STS-B.tsv"},
        ),
        Task("SNIPS", max_length=64),
        Task(
            "CLINC150",
            out_of_scope="oos",
            metrics=("accuracy", "in_scope_accuracy", "out_of_scope_recall"),
            max_length=64,
        ),
        Task(
            "CLUENER",
            problem=TOKEN,
            metrics=("entity_f1", "accuracy"),
            files={"train": "train.json", "dev": "dev.json", "test": "test.json"},
        ),
    )
}
CUSTOM = "custom"
# The metrics of a custom task, by problem.
METRICS = {
    SINGLE: ("accuracy", "f1"),
    MULTI: ("micro_f1", "macro_f1", "accuracy"),
    REGRESSION: ("pearson", "spearman"),
    TOKEN: ("entity_f1", "accuracy"),
}
LOGITS = "logits"  # the column of what a teacher says
SHARD_ENDING = ".jsonl"
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which no text in UTF-8 holds


def task_named(name: str) -> Task:
    """The task of a row of the table, whatever the case of `name`.

    Raises:
        UserError: no such task.
    """
    for task in TASKS.values():
        if task.name.lower() == name.lower():
            return task
    raise UserError(f"--task_name {name!r}: no such task; expected one of {', '.join(TASKS)} or {CUSTOM}")


@dataclass(frozen=True)
class Example:
    """One row of text.

    Attributes:
        label: the raw value of the label column, or None in a file without labels; in a token task the tags of the words
            with spaces between.
        words: where the words begin in the text, in a token task.
        logits: what a teacher says of the row, as `minddistill label` writes it (`encode_logits`), or None.
    """

    text: str
    text_pair: str | None
    label: str | None
    words: tuple[int, ...] = ()
    logits: str | None = None

    @property
    def given(self) -> str | dict[str, str]:
        """The text or pair, as a `Pipeline` takes it."""
        return self.text if self.text_pair is None else {"text": self.text, "text_pair": self.text_pair}


def read_examples(path: Path, task: Task, split: str, labelled: bool = True, empty: bool = False) -> Iterator[Example]:
    """Read a TSV (no quoting), CSV or JSONL file, or a directory of JSONL shards that a command of ours wrote.

    Args:
        path: the file, whose ending tells the format, or the directory.
        task: names the columns.
        split: of the task; tells whether the file has a header.
        labelled: whether the label column must be there; without it, it is read where it is.
        empty: whether a text may be empty.

    Yields:
        One example a row. MNLI rows whose annotators did not agree (label "-") are left out.

    Raises:
        UserError: names the file and line of what is wrong.
    """
    for file in text_files(path):
        yield from _examples(file, task, split, labelled, empty)


def text_files(path: Path) -> list[Path]:
    """The file itself, or the shards of a directory of text.

    Raises:
        UserError: the directory holds none, or its writing was not finished.
    """
    if not path.is_dir():
        return [path]
    found = sorted(path.glob(f"*{SHARD_ENDING}"))
    if not found:
        raise UserError(
            f"{path}: no *{SHARD_ENDING} in it; expected a file, or a directory that augment or label wrote"
        )
    if not (path / "meta.json").is_file():
        raise UserError(f"{path}: its writing was not finished; run the command that writes it again")
    return found


def _examples(path: Path, task: Task, split: str, labelled: bool, empty: bool) -> Iterator[Example]:
    kind = path.suffix.lower()
    read = {".tsv": _tsv, ".txt": _tsv, ".csv": _csv, SHARD_ENDING: _jsonl, ".json": _jsonl}.get(kind)
    if read is None:
        raise UserError(f"{path}: unknown kind of file; expected .tsv, .csv or .jsonl")
    header = read is _jsonl or split not in task.headerless
    if read is _tsv and task.torn and not split.startswith("test"):  # a submission counts all rows of a test file
        read = partial(_tsv, torn=True)
    text, label = columns_of(task, header)
    for line, row in read(path, header):
        first = _cell(path, line, row, text, task)
        second = None if task.text_pair is None else _cell(path, line, row, task.text_pair, task)
        if not empty and not first.strip() and not (second or "").strip():
            raise UserError(f"{path}:{line}: the text is empty; expected text in column {text!r}")
        told = labelled or (label in row and (task.problem == MULTI or not isinstance(row[label], list)))
        value = _cell(path, line, row, label, task) if told else None
        if value is not None and not value.strip() and task.problem in (SINGLE, REGRESSION):
            if labelled:
                raise UserError(f"{path}:{line}: the label is empty; expected one in column {label!r}")
            value = None
        if value != "-" or task.name != "MNLI":  # whose annotators came to no label
            yield Example(first, second, value, logits=row.get(LOGITS))


def columns_of(task: Task, header: bool = True) -> tuple[str | int, str | int]:
    """The columns of text and label: CoLA's test file has a header, its others have none."""
    return ("sentence", "label") if isinstance(task.text, int) and header else (task.text, task.label)


def plain_examples(lines: Iterable[tuple[int, str]], pairs: bool, where: str) -> Iterator[Example]:
    """Unlabelled rows of plain text, one a line; of pairs, two texts around a tab.

    Raises:
        UserError: a line is no pair; names `where` and the line.
    """
    for number, line in lines:
        parts = line.split("\t") if pairs else [line, None]
        if len(parts) != 2:
            raise UserError(f"{where}:{number}: {len(parts)} parts between tabs; expected two texts (--pairs true)")
        yield Example(*parts, None)


def write_examples(path: Path, rows: Iterable[tuple[Example, Mapping[str, Any]]], task: Task) -> None:
    """Write examples as one JSONL file, whole, under the task's columns, with further values of each."""
    text, label = columns_of(task)
    with whole_file(path) as part, open(part, "w", encoding="utf-8") as file:
        for example, more in rows:
            row = {text: example.text, task.text_pair: example.text_pair, label: example.label, **more}
            row = {name: value for name, value in row.items() if name is not None and value is not None}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _cell(path: Path, line: int, row: Mapping[str | int, Any], column: str | int, task: Task) -> str:
    if column not in row:
        known = ", ".join(repr(name) for name in row)
        mend = "--text_column and the like name" if task.name == CUSTOM else "--task_name custom names"
        raise UserError(f"{path}:{line}: no column {column!r}; the file has {known}; {mend} its own")
    value = row[column]
    if isinstance(value, list):  # of a JSONL file
        if task.problem != MULTI or column != task.label or not all(isinstance(part, str) for part in value):
            raise UserError(
                f"{path}:{line}: {column!r} is a list; expected text, or a multi-label task's list of names"
            )
        return task.separator.join(value)
    return value


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a file.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        handle = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a data file") from None
    with handle:
        yield from decoded(handle, str(path))


def decoded(lines: Iterable[bytes], where: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line, without its end and without a byte order mark.

    Raises:
        UserError: a line is not UTF-8; names `where` and the line.
    """
    for number, raw in enumerate(lines, 1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None
        yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")


def _tsv(path: Path, header: bool, torn: bool = False) -> Iterator[tuple[int, dict[str | int, str]]]:
    names: list | None = None
    left_out = 0
    for number, line in text_lines(path):
        cells = line.split("\t")
        if names is None:
            names = cells if header else list(range(len(cells)))
            if header:
                continue
        if not line.strip():
            continue
        if len(cells) != len(names) and torn:
            left_out += 1
            continue
        if len(cells) != len(names):
            raise UserError(
                f"{path}:{number}: {len(cells)} tab-separated columns; expected {len(names)} as in its first line"
            )
        yield number, dict(zip(names, cells, strict=True))
    if left_out:
        print(
            f"{path}: {left_out} lines left out, which are not {len(names or [])} columns (rows torn apart by line breaks)"
        )
    if names is None:
        raise UserError(f"{path}: the file is empty; expected a header line and rows")


def _csv(path: Path, header: bool) -> Iterator[tuple[int, dict[str | int, str]]]:
    reader = csv.reader((line + "\n" for _, line in text_lines(path)), strict=True)
    names: list | None = None
    try:
        for cells in reader:
            if names is None:
                names = cells if header else list(range(len(cells)))
                if header:
                    continue
            if not cells:
                continue
            if len(cells) != len(names):
                raise UserError(
                    f"{path}:{reader.line_num}: {len(cells)} columns; expected {len(names)} as in its first line"
                )
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from None
    if names is None:
        raise UserError(f"{path}: the file is empty; expected a header line and rows")


def _jsonl(path: Path, header: bool) -> Iterator[tuple[int, dict[str | int, Any]]]:
    for number, row in json_lines(path):
        cells: dict[str | int, Any] = {}
        for key, value in row.items():
            if isinstance(value, (str, list)) and key != LOGITS:
                cells[key] = value
            elif isinstance(value, (int, float)) or key == LOGITS:
                cells[key] = json.dumps(value)
        yield number, cells


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a JSONL file that is not empty.

    Raises:
        UserError: a line is no JSON object; names file and line.
    """
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: holds {type(row).__name__}; expected a JSON object")
        if "\\u" in line and SURROGATE.search(json.dumps(row, ensure_ascii=False)):
            raise UserError(f"{path}:{number}: holds half of a surrogate pair; expected whole characters")
        yield number, row


def label_names(task: Task, value: str | None) -> list[str]:
    """The labels that stand in a cell: one, any number in a multi-label task, one for each word in a token task."""
    if task.problem == MULTI:
        return [name.strip() for name in (value or "").split(task.separator) if name.strip()]
    if task.problem == TOKEN:
        return (value or "").split()
    return [value or ""]


def label_table(task: Task, raw: Iterable[str | None]) -> dict[str, str]:
    """Raw label values and class names in the order of the logits: the task's own, or the data's sorted values.

    Those of a token task are O, and B- and I- for each type of entity; a regression task has none.
    """
    if task.problem == REGRESSION:
        return {}
    if task.labels is not None:
        return dict(task.labels)
    values = {name for value in raw for name in label_names(task, value)}
    if task.problem == TOKEN:
        types = sorted({name[2:] for name in values - {"O"}})
        return {name: name for name in ("O", *(f"{part}-{kind}" for kind in types for part in "BI"))}
    numbers = all(re.fullmatch("-?[0-9]+", value) for value in values)
    return {value: value for value in sorted(values, key=(lambda v: (int(v), v)) if numbers else None)}


def encode_label(task: Task, table: Mapping[str, str], value: str | None, where: str) -> list[int] | list[float]:
    """What `label_ids` holds of a label: its index in `table`, its value in a regression task, 0 and 1 for all of
    `table` in a multi-label task, an index for each word in a token task; a row out of scope has the index behind the
    last. Where there is no label, zeros.

    Raises:
        UserError: the value is not a known label, or not a finite number; names `where`.
    """
    names = list(table)
    if task.problem == REGRESSION:
        return [_number(task, value, where)]
    if value is None and task.problem != MULTI:
        return [0]  # for each word of a token task, too
    if task.out_of_scope and task.out_of_scope not in names:
        names.append(task.out_of_scope)
    found = []
    for name in label_names(task, value):
        if name not in names:
            raise UserError(f"{where}: label {name!r} is not one of {', '.join(map(repr, names))}")
        found.append(names.index(name))
    return [int(index in found) for index in range(len(table))] if task.problem == MULTI else found


def _number(task: Task, value: str | None, where: str) -> float:
    try:
        number = 0.0 if value is None else float(value)
    except ValueError:
        number = float("nan")
    if not math.isfinite(number):
        raise UserError(f"{where}: label {value!r} is not a finite number; {task.name} is a regression task")
    return number


def logit_names(text: str | None) -> list[str]:
    """The label's values that a teacher's logits name, some of which may stand in no row; none where there are no logits."""
    try:
        values = json.loads(text or "{}")
    except ValueError:
        values = None
    return list(values) if isinstance(values, dict) else []  # what else they are, the row's own turn will tell


def encode_logits(task: Task, table: Mapping[str, str], text: str | None, where: str) -> list[float]:
    """A teacher's logits in the order of `table`, out of a JSON object of the label's values (`score` in a regression task).

    Raises:
        UserError: they are no such numbers, or of other labels; names `where`.
    """
    wanted = ["score"] if task.problem == REGRESSION else list(table)
    try:
        values = json.loads(text or "null")
        if values.keys() == set(wanted):
            found = [float(values[name]) for name in wanted]
            if all(map(math.isfinite, found)):
                return found
    except (AttributeError, TypeError, ValueError):
        pass
    raise UserError(f"{where}: logits are {(text or 'missing')[:120]}; expected a number each of {', '.join(wanted)}")
