"""A frozen teacher's outputs for every row of a data set, on disk: real positions only, memory-mapped.

A cache is a directory of shards of consecutive rows. A row of S real tokens is, in float16, its hidden states
(n, S, H) and then its attention scores (m, A, S, S); its logits, (C,) or a token classifier's (S, C), are kept in
float32. Where a row begins follows from the rows' lengths, so there is no index. A shard counts once its note, with a checksum, is written behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from ..errors import UserError
from ..files import checksum, read_object, remove_parts, whole_file, write_json

_SHARD_BYTES = 256 * 2**20
NOTE = "cache.json"


@dataclass(frozen=True)
class Layout:
    """Which of a teacher's outputs are kept.

    Attributes:
        hidden, attention: numbers of the hidden states (0 is the embedding output) and of the layers.
        width, heads, classes: sizes H, A and C; C is 0 where there are no logits.
        tokens: whether there are logits of every position, a token classifier's.
    """

    hidden: tuple[int, ...]
    attention: tuple[int, ...]
    width: int
    heads: int
    classes: int
    tokens: bool = False

    @property
    def name(self) -> str:
        """A short name for directories."""
        if not self.hidden and not self.attention:
            return "logits"
        return f"h{'.'.join(map(str, self.hidden))}_a{'.'.join(map(str, self.attention))}"

    def values(self, length: np.ndarray) -> np.ndarray:
        """Numbers of float16 values of rows of these lengths."""
        size = length.astype(np.int64)
        return size * (len(self.hidden) * self.width) + size * size * (len(self.attention) * self.heads)

    def predictions(self, length: np.ndarray) -> np.ndarray:
        """Numbers of predictions, of C logits each, of rows of these lengths."""
        return length.astype(np.int64) if self.tokens else np.ones(len(length), np.int64)

    def bytes(self, length: np.ndarray) -> int:
        """Bytes on disk for rows of these lengths."""
        return int(self.values(length).sum()) * 2 + int(self.predictions(length).sum()) * self.classes * 4


class TeacherCache:
    """One layout of one teacher's outputs for one data set.

    Args:
        directory: of this cache alone.
        layout: what is kept.
        length: (N,) real tokens of each row.
        identity: of teacher and data; a directory that holds another one is emptied.
    """

    def __init__(self, directory: Path, layout: Layout, length: np.ndarray, identity: dict[str, Any]):
        self.directory, self.layout, self.length = Path(directory), layout, length
        self.identity = identity | {"layout": {key: _plain(value) for key, value in asdict(layout).items()}}
        self.starts = np.concatenate([[0], np.cumsum(layout.values(length))])
        self.first = np.concatenate([[0], np.cumsum(layout.predictions(length))])
        per_shard = max(_SHARD_BYTES // 2, 1)
        row_bytes = self.starts[:-1] + self.first[:-1] * layout.classes * 2
        self.shard = (row_bytes // per_shard).astype(np.int64)
        self.shards = np.unique(self.shard)
        self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def rows_of(self, shard: int) -> np.ndarray:
        """The rows of a shard, consecutive."""
        return np.flatnonzero(self.shard == shard)

    def bytes_to_write(self) -> int:
        """What is still to be written of it, as far as sizes tell."""
        there = sum(file.stat().st_size for file in self.directory.glob("shard_*.bin"))
        return max(self.layout.bytes(self.length) - there, 0)

    def missing(self) -> tuple[list[int], list[str]]:
        """The shards that are still to be written, and what was found damaged or foreign and is dropped."""
        dropped: list[str] = []
        note = self.directory / NOTE
        known = noted(note) if note.is_file() else None
        if known not in (None, self.identity):
            dropped.append(f"{self.directory}: of another teacher, data or precision")
            for file in sorted(self.directory.iterdir(), key=lambda file: file.name == NOTE):
                file.unlink()  # the note last: as long as there is a shard, it says whose
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_parts(self.directory)
        if known != self.identity:  # a whole cache may be where nothing can be written
            write_json(note, self.identity)
        left = []
        for shard in map(int, self.shards):
            problem = self.problem(shard)
            if problem is not None:
                left.append(shard)
                if problem:
                    dropped.append(problem)
        return left, dropped

    def problem(self, shard: int) -> str | None:
        """None for a whole shard, "" for one that was never finished, else what is wrong with it."""
        data, note = self._paths(shard)
        if not note.is_file():
            return ""
        known = noted(note)
        if not data.is_file() or data.stat().st_size != known.get("bytes"):
            return f"{data}: its size is not the one it was written with"
        if checksum(data) != known.get("crc32c"):
            return f"{data}: damaged (checksum)"
        return None

    def _paths(self, shard: int) -> tuple[Path, Path]:
        name = f"shard_{shard:05d}"
        return self.directory / f"{name}.bin", self.directory / f"{name}.json"

    def write(self, shard: int, outputs: Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Write a shard whole.

        Args:
            outputs: (row, hidden (n, S, H), attention (m, A, S, S), logits (C,) or (S, C)) of each of its rows, in any
                order.
        """
        rows = self.rows_of(shard)
        first, base = int(rows[0]), int(self.starts[rows[0]])
        values = np.empty(int(self.starts[rows[-1] + 1]) - base, np.float16)
        logits = np.empty((int(self.first[rows[-1] + 1] - self.first[first]), self.layout.classes), np.float32)
        written = np.zeros(len(rows), bool)
        for row, hidden, attention, prediction in outputs:
            start = int(self.starts[row]) - base
            values[start : start + hidden.size] = hidden.reshape(-1)
            values[start + hidden.size : start + hidden.size + attention.size] = attention.reshape(-1)
            logits[self._predictions(row, first)] = prediction
            written[row - first] = True
        assert written.all(), "a shard must be written with all of its rows"
        data, note = self._paths(shard)
        with whole_file(data, values.nbytes + logits.nbytes) as part, open(part, "wb") as handle:
            handle.write(values)
            handle.write(logits)
        found = crc32c.crc32c(logits, crc32c.crc32c(values))
        write_json(note, {"bytes": values.nbytes + logits.nbytes, "crc32c": found})

    def batch(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """What the teacher says of rows (B,), padded with zeros to `length` = S.

        Returns:
            `teacher_hidden_i` (B, S, H) and `teacher_attention_i` (B, A, S, S) float16 for the i-th kept one, and
            `teacher_logits` (B, C), or (B, S, C), float32, as far as the layout has them.
        """
        layout, count = self.layout, len(rows)
        hidden = [np.zeros((count, length, layout.width), np.float16) for _ in layout.hidden]
        attention = [np.zeros((count, layout.heads, length, length), np.float16) for _ in layout.attention]
        logits = self.logits(rows, length) if layout.classes else {}
        for place, row in enumerate(map(int, rows)):
            size = int(self.length[row])
            values, _, first = self._shard_of(row)
            base = int(self.starts[row] - self.starts[first])
            step = size * layout.width
            for index, array in enumerate(hidden):
                array[place, :size] = values[base + index * step :][:step].reshape(size, layout.width)
            base += step * len(hidden)
            step = layout.heads * size * size
            for index, array in enumerate(attention):
                block = values[base + index * step :][:step].reshape(layout.heads, size, size)
                array[place, :, :size, :size] = block
        found = {f"teacher_hidden_{i}": array for i, array in enumerate(hidden)}
        found |= {f"teacher_attention_{i}": array for i, array in enumerate(attention)}
        return found | logits

    def logits(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The logits alone: `teacher_logits` (B, C), or (B, S, C) padded with zeros to `length` = S, float32."""
        shape = (len(rows), length if self.layout.tokens else 1, self.layout.classes)
        found = np.zeros(shape, np.float32)
        for place, row in enumerate(map(int, rows)):
            _, predictions, first = self._shard_of(row)
            mine = predictions[self._predictions(row, first)]
            found[place, : len(mine)] = mine
        return {"teacher_logits": found if self.layout.tokens else found[:, 0]}

    def _predictions(self, row: int, first: int) -> slice:
        """Where a row's logits are among those of a shard whose first row is `first`."""
        start, end = self.first[row : row + 2] - self.first[first]
        return slice(int(start), int(end))

    def _shard_of(self, row: int) -> tuple[np.ndarray, np.ndarray, int]:
        shard = int(self.shard[row])
        if shard not in self._open:
            rows = self.rows_of(shard)
            count = int(self.starts[rows[-1] + 1] - self.starts[rows[0]])
            data = np.memmap(self._paths(shard)[0], np.uint8, "r")
            values = data[: 2 * count].view(np.float16)
            predictions = data[2 * count :].view(np.float32)
            shape = int(self.first[rows[-1] + 1] - self.first[rows[0]]), self.layout.classes
            self._open[shard] = values, predictions.reshape(shape), int(rows[0])
        return self._open[shard]


def noted(note: Path) -> dict[str, Any]:
    """What a note says; nothing where it is damaged."""
    try:
        return read_object(note, "the note of a teacher cache")
    except UserError:
        return {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
