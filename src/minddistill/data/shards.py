"""One shard of rows: a TFRecord or MindRecord file, written whole, read and checked.

Writing TFRecord never imports MindSpore, so that text can be prepared on a machine without it. Reading checks what MindSpore's
readers let pass.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from ..errors import UserError
from ..files import whole_file, whole_files
from .messages import Example as TFExample
from .messages import Feature, Features, FloatList, Int64List

TEXT_COLUMNS = ("input_ids", "input_mask", "segment_ids")
LABEL_COLUMN = "label_ids"
LOGITS_COLUMN = "teacher_logits"  # (C,) float32, of rows that minddistill label has labelled
_READ_BATCH = 2048
_INT32 = np.iinfo(np.int32)


def write_tfrecord(path: Path, rows: Iterable[Mapping[str, Sequence]], floats: frozenset[str] = frozenset()) -> int:
    """Write rows (column: list) as one TFRecord file, whole; columns in `floats` as floats. Returns their number."""
    count = 0
    with whole_file(path) as part, open(part, "wb") as file:
        for row in rows:
            features = b"".join([_entry(name, tuple(value), name in floats) for name, value in row.items()])
            data = b"\x0a" + _varint(len(features)) + features  # field 1 of tf.train.Example
            head = struct.pack("<Q", len(data))
            file.write(b"".join((head, _masked(head), data, _masked(data))))
            count += 1
    return count


# Masks and segments take few values; a message's serialised parts may be joined, so these need to be made once.
@lru_cache(8192)
def _entry(name: str, value: tuple, is_float: bool) -> bytes:
    """One column of a row, as a serialised tf.train.Features message."""
    feature = Feature(float_list=FloatList(value=value)) if is_float else Feature(int64_list=Int64List(value=value))
    return Features(feature={name: feature}).SerializeToString()


def _varint(number: int) -> bytes:
    """Protocol Buffers' variable-length form of a non-negative integer."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def write_mindrecord(path: Path, rows: Iterable[Mapping[str, Sequence]], columns: Mapping[str, Mapping]) -> int:
    """Write rows as one MindRecord file with its index. Returns their number."""
    from mindspore.mindrecord import FileWriter

    types = {name: np.dtype(column["type"]) for name, column in columns.items()}
    count, block = 0, []
    # The index, a second file, holds the name of the first: it cannot be written under another one.
    with whole_files(path) as part:
        writer = FileWriter(str(part), shard_num=1, overwrite=True)
        writer.add_schema({name: {"type": c["type"], "shape": c["shape"]} for name, c in columns.items()})
        for row in rows:
            block.append({name: np.asarray(value, types[name]) for name, value in row.items()})
            count += 1
            if len(block) == 1024:
                writer.write_raw_data(block)
                block = []
        if block:
            writer.write_raw_data(block)
        writer.commit()
    return count


def tfrecord_payloads(path: Path, verify: bool = True) -> Iterable[bytes]:
    """The records of a TFRecord file, each checked against both of its checksums unless `verify` is False.

    Raises:
        UserError: names the file and the row that is cut short or damaged.
    """
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path}: the file is empty; expected TFRecord data; write it again")
    with open(path, "rb") as handle:
        row, place = 0, 0
        while head := handle.read(12):
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or (verify and _masked(head[:8]) != head[8:]):
                what = "not a TFRecord file" if row == 0 else f"row {row} is damaged (length checksum)"
                raise UserError(f"{path}: {what}; write or copy it again")
            if place + 12 + length + 4 > size:
                raise UserError(f"{path}: cut short in row {row}; write or copy it again")
            data = handle.read(length)
            checksum = handle.read(4)
            if verify and _masked(data) != checksum:
                raise UserError(f"{path}: row {row} is damaged (data checksum); write or copy it again")
            yield data
            row, place = row + 1, place + 16 + length


def _masked(data: bytes) -> bytes:
    value = crc32c.crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def read_tfrecord(path: Path, names: list[str], table: dict | None, verify: bool) -> dict[str, np.ndarray]:
    """The columns of a TFRecord file, (N, size) each, and `is_real_example` (N,) where it is there.

    Args:
        table: the schema they are to have, or None.
        verify: whether every row's checksums are compared.

    Raises:
        UserError: names the file and the row that is damaged, or not as the schema says.
    """
    count, first = 0, None
    for data in tfrecord_payloads(path, verify):
        first = data if first is None else first
        if verify:
            _example(data, path, count)  # MindSpore's reader makes something of a message that is none
        count += 1
    if first is None:
        raise UserError(f"{path}: holds no records; write it again")
    features = _features(first, path, 0)
    _check_features(features, names, table, path, 0)
    extra = [name for name in ("is_real_example",) if name in features]
    columns = {}
    for name in names + extra:
        column = (table or {}).get("columns", {}).get(name) or {}
        kind = "float32" if features[name][0] == "float_list" else "int64"
        # Rows are read at the length of the first one; a row of another length fails in the reader.
        columns[name] = {"type": kind, "rank": 1, "shape": column.get("shape") or [features[name][1]]}
    import mindspore.dataset as dataset

    plan = {"datasetType": "TF", "numRows": count, "columns": columns}
    layout = dataset.Schema()
    layout.from_json(plan)
    try:
        pipeline = dataset.TFRecordDataset(str(path), layout, list(columns), shuffle=False, num_parallel_workers=1)
        read = _collect(pipeline)
    except RuntimeError as error:
        _name_bad_row(path, names, table, len(features["input_ids"]), error)
    if "is_real_example" in read:
        read["is_real_example"] = read["is_real_example"].reshape(-1) != 0
    return read


def _example(data: bytes, path: Path, row: int) -> TFExample:
    try:
        return TFExample.FromString(data)
    except Exception:  # protobuf's DecodeError has moved between its versions
        raise UserError(f"{path}: row {row} is not a tf.train.Example; write the file again") from None


def _features(data: bytes, path: Path, row: int) -> dict[str, tuple[str, int]]:
    """Kind and length of every feature of a serialised example."""
    found = {}
    for name, feature in _example(data, path, row).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind or "nothing", len(getattr(feature, kind).value) if kind else 0)
    return found


def _check_features(found: dict, names: list[str], table: dict | None, path: Path, row: int) -> None:
    for name in names:
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            raise UserError(f"{path}: row {row} has no column {name!r}; it has {known}; expected {', '.join(names)}")
        kind, size = found[name]
        may_float = name == LOGITS_COLUMN or (name == LABEL_COLUMN and kind == "float_list")
        wanted = "float_list" if may_float else "int64_list"
        if kind != wanted:
            raise UserError(f"{path}: row {row}: column {name!r} holds a {kind}; expected an {wanted}")
        column = (table or {}).get("columns", {}).get(name) or {}
        shape = column.get("shape") or [found["input_ids"][1] if name in TEXT_COLUMNS else 1]
        if size != int(np.prod(shape)):
            source = "the schema" if column.get("shape") else "its input_ids"
            raise UserError(
                f"{path}: row {row}: column {name!r} has {size} values; {source} says {int(np.prod(shape))}; "
                "use the schema that belongs to these records"
            )
        if column and (column.get("type") == "float32") != (kind == "float_list"):
            raise UserError(f"{path}: row {row}: column {name!r} is a {kind}; the schema says {column['type']}")


def _name_bad_row(path: Path, names: list[str], table: dict | None, length: int, error: RuntimeError) -> None:
    """Find the row that MindSpore's reader stumbled over, and say what is wrong with it."""
    first: dict | None = None
    for row, data in enumerate(tfrecord_payloads(path)):
        found = _features(data, path, row)
        _check_features(found, names, table, path, row)
        first = first or found
        changed = [name for name in names if found[name] != first[name]]
        if changed:
            raise UserError(
                f"{path}: row {row}: column {changed[0]!r} has {found[changed[0]][1]} values, "
                f"row 0 has {first[changed[0]][1]}; expected equal lengths; write the records again"
            )
    raise UserError(f"{path}: MindSpore cannot read it ({_first_line(error)}); write it again") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("-")]
    return lines[0][:160] if lines else type(error).__name__


def read_mindrecord(path: Path, names: list[str], table: dict | None) -> dict[str, np.ndarray]:
    """The columns of a MindRecord file, (N, size) each.

    Raises:
        UserError: it cannot be read, or is not as the schema `table` says.
    """
    import mindspore.dataset as dataset

    if not path.with_name(path.name + ".db").is_file():
        raise UserError(f"{path}: its index {path.name}.db is missing; copy both files of every shard")
    try:
        # In a list: by its name alone, all shards that were written with it would be read.
        pipeline = dataset.MindDataset([str(path)], list(names), shuffle=False, num_parallel_workers=1)
        read = _collect(pipeline)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: MindSpore cannot read it with columns {', '.join(names)} ({_first_line(error)})"
        ) from None
    for name in names:
        column = (table or {}).get("columns", {}).get(name) or {}
        if column.get("shape") and list(read[name].shape[1:]) != column["shape"]:
            raise UserError(
                f"{path}: column {name!r} has shape {list(read[name].shape[1:])}; the schema says {column['shape']}"
            )
    return read


def _collect(pipeline: Any) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    for block in pipeline.batch(_READ_BATCH).create_dict_iterator(num_epochs=1, output_numpy=True):
        for name, value in block.items():
            if value.dtype.kind == "i":
                value = np.clip(value, _INT32.min, _INT32.max).astype(np.int32)  # not wrapped into what seems valid
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}
