"""Record directories: TFRecord or MindRecord shards, `schema.json` in the documented format, and `meta.json`.

Reading checks what MindSpore's readers let pass (checksums, values, label and id ranges) and keeps rows compactly.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import (
    checksums,
    damaged,
    read_object,
    refuse_foreign_links,
    require_directory,
    write_json,
)
from ..problems import IGNORED, MULTI, PROBLEMS, REGRESSION, SINGLE, TOKEN
from .shards import LABEL_COLUMN, LOGITS_COLUMN, TEXT_COLUMNS, read_mindrecord, read_tfrecord, tfrecord_payloads
from .tasks import SHARD_ENDING

WORK = ".work"  # in a record directory: what belongs to its writing, and shows that it is not finished
SUFFIXES = {"tfrecord": (".tfrecord", ".tf_record", ".tfrecords"), "mindrecord": (".mindrecord",)}
_LONGEST = 8192  # tokens of a row; no encoder of these families reads more, and every row is padded


@dataclass
class Rows:
    """The rows of a record directory: ids right-padded, masks and segments by their lengths.

    Attributes:
        ids: (N, S) uint16 or int32.
        length: (N,) int32, real tokens of each row.
        second: (N,) int32, where segment 1 begins; equal to length where there is none.
        label: (N,) float32, or (N, C) of a multi-label and (N, S) of a token task; int32 after `check_classes`; or None.
        logits: (N, C) float32, what a teacher says of each row, or None.
        meta: the content of `meta.json`, empty for records made elsewhere.
        directory: where they come from.
        place: the file and row that a row was read from, for messages.
        pad: id of padding.
        files: sixteen hexadecimal digits of what each file's rows say, by its name.
        cut: rows of the files that the schema's `numRows` leaves out.
    """

    ids: np.ndarray
    length: np.ndarray
    second: np.ndarray
    label: np.ndarray | None
    meta: dict[str, Any]
    directory: Path
    place: Callable[[int], str]
    pad: int = 0
    files: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    logits: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seq_length(self) -> int:
        """Length that the records are padded to."""
        return self.ids.shape[1]

    @property
    def problem(self) -> str:
        """What the labels mean, one of `problems.PROBLEMS`."""
        return self.meta.get("problem_type") or (REGRESSION if self.meta.get("regression") else SINGLE)

    @property
    def words(self) -> np.ndarray | None:
        """Whether a word begins at a position (N, S), in a token task; None in others."""
        return self.label != IGNORED if self.problem == TOKEN and self.label is not None else None

    @property
    def answers(self) -> np.ndarray | None:
        """What predictions are compared with, one for each row, or for each word of a token task."""
        return self.label if self.words is None else self.label[self.words]

    @property
    def out_of_scope(self) -> int | None:
        """The class of rows that belong to none of the others, where the task has such: behind the rest of the classes
        unless the model is trained on it."""
        name, labels = self.meta.get("out_of_scope"), self.meta.get("labels", [])
        return None if not name else labels.index(name) if name in labels else len(labels)

    def take(self, numbers: np.ndarray) -> Rows:
        """The rows of these numbers, in their order."""
        return replace(
            self,
            ids=self.ids[numbers],
            length=self.length[numbers],
            second=self.second[numbers],
            label=None if self.label is None else self.label[numbers],
            logits=None if self.logits is None else self.logits[numbers],
            place=lambda row: self.place(int(numbers[row])),
        )

    def taught(self, rows: np.ndarray, length: int = 0) -> dict[str, np.ndarray]:
        """The column of a batch that a teacher's logits make: `teacher_logits` (B, C); `length` is not used."""
        assert self.logits is not None
        return {LOGITS_COLUMN: self.logits[rows]}

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the token ids and segments."""
        return _digest(self.ids.astype(np.int32), self.length, self.second)

    def require_labels(self, name: str) -> None:
        """See that the rows are labelled, as far as they and their description tell.

        Raises:
            UserError: they are not; names the flag `name`.
        """
        if self.label is None or not self.meta.get("labelled", True):
            raise UserError(f"{name} {self.directory}: rows without labels; expected rows that have them")

    def check_classes(self, classes: int, learnt: bool = False) -> None:
        """See that every label is one of `classes` classes, as the problem has them, and keep them as int32.

        Args:
            learnt: whether a model is to learn the rows, so that none may be out of its scope.

        Raises:
            UserError: names the first row that has another one.
        """
        assert self.label is not None
        if self.problem == REGRESSION:
            return
        shape = {MULTI: (len(self), classes), TOKEN: self.ids.shape}.get(self.problem, (len(self),))
        if self.label.shape != shape:
            raise UserError(
                f"{self.directory}: label_ids has shape {list(self.label.shape[1:])} a row; expected {list(shape[1:])} "
                f"of {self.problem}; prepare the records again"
            )
        beyond = self.out_of_scope == classes and not learnt
        top = 1 if self.problem == MULTI else classes if beyond else classes - 1
        bad = (self.label < 0) | (self.label > top) | (self.label != np.floor(self.label))
        if self.problem == TOKEN:
            real = np.arange(self.seq_length) < self.length[:, None]
            bad = np.where(real, bad & (self.label != IGNORED), self.label != IGNORED)
        if bad.any():
            place = np.unravel_index(int(bad.argmax()), bad.shape)
            raise UserError(
                f"{self.place(int(place[0]))}: label_ids is {self.label[place]:g}; expected a class from 0 to {top}"
            )
        self.label = self.label.astype(np.int32)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()[:16]


def schema(
    seq_length: int,
    rows: int,
    label: str | None,
    extra: Mapping[str, tuple[str, int]] | None = None,
    label_size: int = 1,
) -> dict:
    """The documented schema: columns with type, rank and shape, and `numRows`.

    Args:
        label: type of `label_ids` ("int64" or "float32"), or None.
        extra: further columns: type and length.
        label_size: numbers that `label_ids` has: 1, the classes of a multi-label task, or `seq_length` of a token task.
    """
    columns = {name: {"type": "int64", "rank": 1, "shape": [seq_length]} for name in TEXT_COLUMNS}
    if label:
        columns[LABEL_COLUMN] = {"type": label, "rank": 1, "shape": [label_size]}
    for name, (kind, size) in (extra or {}).items():
        columns[name] = {"type": kind, "rank": 1, "shape": [size]}
    return {"datasetType": "TF", "numRows": rows, "columns": columns}


def check_length(length: int, least: int = 5) -> int:
    """The tokens of a row that `--max_seq_length` asks for.

    Args:
        least: that text of the kind fits into.

    Raises:
        UserError: no text fits into them, or no model reads as many.
    """
    if not least <= length <= _LONGEST:
        raise UserError(f"--max_seq_length {length}: expected {least} to {_LONGEST} tokens")
    return length


def float_columns(table: Mapping[str, Any]) -> frozenset[str]:
    """The columns of a schema that hold floats."""
    return frozenset(name for name, column in table["columns"].items() if column["type"] == "float32")


def padded(ids: Sequence[int], second: int, seq_length: int, pad: int) -> dict[str, list[int]]:
    """The three text columns of one row as lists of `seq_length`."""
    size = len(ids)
    rest = seq_length - size
    return {
        "input_ids": list(ids) + [pad] * rest,
        "input_mask": [1] * size + [0] * rest,
        "segment_ids": [0] * second + [1] * (size - second) + [0] * rest,
    }


def finish_directory(directory: Path, table: dict | None, meta: Mapping[str, Any]) -> None:
    """Write `schema.json` and, last, `meta.json` with the shards' checksums: a directory that has it is whole.

    Shards of text have no schema (`table` is None).

    What is under `WORK` goes.
    """
    if table is not None:
        write_json(directory / "schema.json", table)
    write_json(directory / "meta.json", {**meta, "files": checksums(_written(directory))})
    shutil.rmtree(directory / WORK, ignore_errors=True)


def _written(directory: Path) -> list[Path]:
    """The shards of a directory of any kind, and MindRecord's indices."""
    endings = {*SUFFIXES["tfrecord"], *SUFFIXES["mindrecord"], ".db", SHARD_ENDING}
    return sorted(file for file in directory.iterdir() if _ending(file) in endings and file.name[0] != ".")


def _ending(file: Path) -> str:
    """The ending of a name, without the number that MindSpore's FileWriter puts behind that of a shard."""
    return file.suffix.rstrip("0123456789") if file.suffix.startswith(SUFFIXES["mindrecord"]) else file.suffix


def record_files(directory: Path, kind: str) -> list[Path]:
    """The shards of a directory, by name.

    Raises:
        UserError: there are none of the kind asked for.
    """
    found = sorted(file for file in directory.iterdir() if _ending(file) in SUFFIXES[kind] and file.name[0] != ".")
    if not found and kind == "tfrecord":
        # The zoo's users have shards without an ending, such as part-00000; it reads the names with "record" in them.
        known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes} | {".db", ".json", ".txt", ".md"}
        found = sorted(
            f for f in directory.iterdir() if f.is_file() and _ending(f) not in known and f.name[0] not in "._"
        )
        found = [file for file in found if "record" in file.name] or found
    if not found:
        present = ", ".join(sorted(file.name for file in directory.iterdir())[:4]) or "nothing"
        raise UserError(
            f"{directory}: no {kind} files in it (it holds {present}); expected *{SUFFIXES[kind][0]}; "
            "check the directory and --dataset_type"
        )
    return found


def read_rows(
    directory: str | Path,
    *,
    kind: str = "tfrecord",
    schema_file: str = "",
    vocab_size: int | None = None,
    labelled: bool = True,
    verify: bool = True,
    flag: str = "--data_dir",
) -> Rows:
    """Read and check a record directory.

    Args:
        kind: tfrecord or mindrecord.
        schema_file: a schema in the documented format; `schema.json` of the directory by default.
        vocab_size: ids must be below it.
        labelled: whether `label_ids` must be there; see `Rows.check_classes` for what they may hold.
        verify: whether checksums are compared: those of `meta.json` over whole files, and TFRecord's own of each row.
        flag: the flag that named the directory, for messages.

    Raises:
        UserError: names the directory, file or row, and what is wrong with it.
    """
    directory = require_directory(directory, f"a record directory ({flag})")
    refuse_foreign_links(directory)
    files = record_files(directory, kind)
    table = _schema(directory, schema_file)
    if (directory / WORK).is_dir() and not (directory / "meta.json").is_file():
        raise UserError(f"{directory}: its writing was not finished; run the command that writes it again")
    meta = _meta(directory)
    if verify and "files" in meta:
        _check_files(directory, files, meta["files"])
    names = [*TEXT_COLUMNS, LABEL_COLUMN] if labelled else list(TEXT_COLUMNS)
    if table is not None:
        missing = [name for name in names if name not in table["columns"]]
        if missing:
            where = schema_file or directory / "schema.json"
            raise UserError(f"{where}: no column {missing[0]!r}; expected {', '.join(names)}")
        names += [LOGITS_COLUMN] if labelled and LOGITS_COLUMN in table["columns"] else []
    read = partial(read_tfrecord, verify=verify) if kind == "tfrecord" else read_mindrecord
    parts = [read(file, names, table) for file in files]
    widths = {part["input_ids"].shape[1:] for part in parts}
    if len(widths) > 1:
        raise UserError(f"{directory}: its files hold rows of different lengths, {sorted(widths)}; prepare them again")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    if table is not None and table.get("numRows", 0) > 0:
        columns = {name: value[: table["numRows"]] for name, value in columns.items()}
    real = np.concatenate([part.get("is_real_example", np.ones(len(part["input_ids"]), bool)) for part in parts])
    places = _Places(files, [len(part["input_ids"]) for part in parts])
    rows = _compact(columns, places, vocab_size, meta.get("pad_id", 0))
    if meta.get("seq_length", rows.seq_length) != rows.seq_length:
        raise UserError(
            f"{directory / 'meta.json'}: seq_length is {meta['seq_length']}, the records have {rows.seq_length}; "
            "copy the file that belongs to them"
        )
    rows.meta, rows.directory, rows.cut = meta, directory, len(real) - len(rows)
    for file, start, end in zip(files, [0, *places.ends], places.ends, strict=False):
        more = [values for values in (rows.label, rows.logits) if values is not None]
        columns = [rows.ids, rows.length, rows.second, *more]
        rows.files[file.name] = _digest(*[values[start:end] for values in columns])
    return _select(rows, real[: len(rows)])


class _Places:
    """Says in which file a row is."""

    def __init__(self, files: list[Path], counts: list[int]):
        self.files, self.ends = files, np.cumsum(counts)

    def __call__(self, row: int) -> str:
        index = int(np.searchsorted(self.ends, row, side="right"))
        start = self.ends[index - 1] if index else 0
        return f"{self.files[index]}: row {row - start}"


def _select(rows: Rows, keep: np.ndarray) -> Rows:
    rows = rows if keep.all() else rows.take(np.flatnonzero(keep))
    if not len(rows):
        raise UserError(f"{rows.directory}: its records hold no rows; write them again")
    return rows


# What meta.json may hold besides: type, and that of a list's items.
_META = {
    **dict.fromkeys(("task", "tokenizer", "split", "problem_type", "out_of_scope"), (str, None)),
    **dict.fromkeys(("regression", "labelled"), (bool, None)),
    **dict.fromkeys(("vocab_size", "pad_id", "seq_length", "rows"), (int, None)),
    **dict.fromkeys(("labels", "raw_labels", "metrics"), (list, str)),
}


def _meta(directory: Path) -> dict[str, Any]:
    path = directory / "meta.json"
    if not path.is_file():
        return {}
    meta = read_object(path, "the description of the records")
    for name, (kind, item) in _META.items():
        value = meta.get(name, kind())
        if type(value) is not kind or (item and not all(type(part) is item for part in value)):
            wanted = f"{kind.__name__} of {item.__name__}" if item else kind.__name__
            raise UserError(f"{path}: {name} is {value!r}; expected {wanted}; prepare the records again")
        if kind is int and value < 0:
            raise UserError(f"{path}: {name} is {value}; expected 0 or more; prepare the records again")
    if meta.get("problem_type", SINGLE) not in PROBLEMS:
        raise UserError(f"{path}: problem_type is {meta['problem_type']!r}; expected one of {', '.join(PROBLEMS)}")
    if len(set(meta.get("labels", []))) < len(meta.get("labels", [])):
        raise UserError(f"{path}: labels {meta['labels']} hold a name twice; prepare the records again")
    return meta


def _check_files(directory: Path, files: list[Path], known: Any) -> None:
    """Compare shards with the checksums they were written with; TFRecord's own tell which row is damaged."""
    for path, problem in damaged(directory, known):
        if path in files and path.suffix in SUFFIXES["tfrecord"]:
            for _ in tfrecord_payloads(path):
                pass
        raise UserError(f"{path}: {problem}; copy the directory again, or prepare the records again")
    added = [file for file in files if file.name not in known]
    if added:
        raise UserError(f"{added[0]}: not one of the files that {directory / 'meta.json'} lists; remove it")


def _schema(directory: Path, schema_file: str) -> dict | None:
    path = Path(schema_file) if schema_file else directory / "schema.json"
    if not schema_file and not path.is_file():
        return None
    if path.is_dir():
        path = path / "schema.json"
    table = read_object(path, "a schema file in the documented format (--schema_dir)")
    columns = table.get("columns")
    if type(table.get("numRows", 0)) is not int or table.get("numRows", 0) < 0:
        raise UserError(f"{path}: numRows is {table['numRows']!r}; expected a whole number, 0 or more")
    if table.get("datasetType", "TF") != "TF":
        raise UserError(f"{path}: datasetType is {table['datasetType']!r}; expected 'TF'")
    if not isinstance(columns, dict):
        raise UserError(f"{path}: no 'columns' object; expected a schema with datasetType, numRows and columns")
    for name, column in columns.items():
        shape = column.get("shape") if isinstance(column, dict) else None
        scalar = isinstance(column, dict) and column.get("rank") == 0
        if not (scalar or (isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape))):
            raise UserError(f"{path}: column {name!r} has shape {shape!r}; expected a list of positive whole numbers")
        if column.get("type") not in ("int64", "int32", "float32"):
            raise UserError(
                f"{path}: column {name!r} has type {column.get('type')!r}; expected int64, int32 or float32"
            )
    return table


def _compact(columns: dict, places: _Places, vocab_size: int | None, pad: int) -> Rows:
    ids, mask, segment = (columns[name] for name in TEXT_COLUMNS)
    if not ids.shape == mask.shape == segment.shape or ids.ndim != 2:
        raise UserError(f"{places(0)}: input_ids, input_mask and segment_ids differ in shape; write the records again")
    limit = vocab_size if vocab_size is not None else int(ids.max(initial=0)) + 1
    bad = ((ids < 0) | (ids >= limit)).any(1)
    if bad.any():
        row = int(bad.argmax())
        value = ids[row][(ids[row] < 0) | (ids[row] >= limit)][0]
        raise UserError(
            f"{places(row)}: input_ids holds {value}; the model's vocabulary has {limit} entries; "
            "prepare the records with the tokenizer of the model"
        )
    length = mask.sum(1).astype(np.int32)
    steps = np.arange(ids.shape[1])
    bad = (mask != (steps < length[:, None])).any(1) | (length == 0)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{places(row)}: input_mask is not a run of ones followed by zeros; write the records again")
    second = (length - (segment * mask).sum(1)).astype(np.int32)
    bad = (segment * mask != ((steps >= second[:, None]) & (mask == 1))).any(1)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{places(row)}: segment_ids is not zeros followed by ones; write the records again")
    label = _finite(columns, LABEL_COLUMN, places)
    label = label[:, 0] if label is not None and label.shape[1] == 1 else label
    logits = _finite(columns, LOGITS_COLUMN, places)
    compact = ids.astype(np.uint16) if limit <= 2**16 else ids.astype(np.int32)
    return Rows(compact, length, second, label, {}, Path(), places, pad, logits=logits)


def _finite(columns: dict, name: str, places: _Places) -> np.ndarray | None:
    """A column as (N, size) float32, or None where it is not there."""
    if name not in columns:
        return None
    values = columns[name].reshape(len(columns[name]), -1).astype(np.float32)
    if not np.isfinite(values).all():
        row, place = np.argwhere(~np.isfinite(values))[0]
        raise UserError(f"{places(row)}: {name} is {values[row, place]}; expected a finite number")
    return values
