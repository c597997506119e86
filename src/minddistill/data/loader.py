"""Batches: shuffled by a seed, of similar length, sharded by rank; every row once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mindspore import Tensor

from ..errors import UserError
from ..problems import IGNORED, TOKEN
from .corpus import mask_tokens, masked_count
from .records import Rows

_GRAIN = 8
_PADDED_TO_REAL = 1.3
_MOST_SHAPES = 6


def choose_buckets(length: np.ndarray, seq_length: int, most: int = _MOST_SHAPES) -> list[int]:
    """The fewest lengths, at most `most`, that keep padded tokens within 1.3 times the real ones.

    Exact, by dynamic programming over multiples of 8; where even `most` lengths do not reach 1.3, the best of them.

    Args:
        length: (N,) real tokens of each row.
        seq_length: the longest length, always the last bucket unless no row needs it.
    """
    longest = min(seq_length, int(-(-length.max() // _GRAIN) * _GRAIN))
    edges = sorted({*range(_GRAIN, longest, _GRAIN), longest})
    counts = np.histogram(length, [0.5, *(edge + 0.5 for edge in edges)])[0]
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[j] is the least number of padded tokens for all rows up to edge j with the number of buckets so far.
    cost = np.array([below[j + 1] * edge for j, edge in enumerate(edges)], float)
    choice: list[tuple[int, ...]] = [(edge,) for edge in edges]
    best = (cost[-1], choice[-1])
    for _ in range(1, most):
        if best[0] <= _PADDED_TO_REAL * length.sum():
            break
        new_cost, new_choice = cost.copy(), list(choice)
        for j, edge in enumerate(edges):
            for i in range(j):
                total = cost[i] + (below[j + 1] - below[i + 1]) * edge
                if total < new_cost[j]:
                    new_cost[j], new_choice[j] = total, (*choice[i], edge)
        cost, choice = new_cost, new_choice
        best = (cost[-1], choice[-1])
    return list(best[1])


def check_buckets(buckets: Sequence[int], rows: Rows) -> list[int]:
    """Sort buckets and see that every row fits.

    Raises:
        UserError: a bucket is not positive or beyond the records' length, or the longest row does not fit.
    """
    ordered = sorted(set(buckets))
    longest = int(rows.length.max())
    if not ordered or ordered[0] < 1 or ordered[-1] > rows.seq_length:
        raise UserError(f"--buckets {','.join(map(str, buckets))}: expected lengths from 1 to {rows.seq_length}")
    if ordered[-1] < longest:
        raise UserError(f"--buckets: the longest is {ordered[-1]}, a row of {rows.directory} has {longest} tokens")
    return ordered


@dataclass(frozen=True)
class PlannedBatch:
    """Which rows make a batch: `rows` (B,), padded to `length`; those past `real` only fill the shape."""

    rows: np.ndarray
    length: int
    real: int


class Loader:
    """Batches of rows in an order fixed by (seed, epoch).

    Each epoch permutes all rows, deals them into buckets by length in that order, cuts the buckets into batches
    (what is left of one goes on to the next longer), and permutes the batches. A short last batch is filled up
    with its own rows at weight 0. Every rank makes the same plan and takes its own part of each batch.

    Args:
        rows: of the data set.
        batch_size: rows a step on each rank.
        buckets: static lengths, ascending; by default the records' own length alone.
        seed, shuffle: of the order.
        rank, size: of this process among those that train together.
        columns: further columns of a batch, made from its row numbers (B,) and its length.
        batch_tokens: padded tokens that a batch has, about, where `batch_size` rows have fewer; one of a short length then has more than `batch_size` rows.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        buckets: Sequence[int] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        size: int = 1,
        columns: Callable[[np.ndarray, int], dict[str, np.ndarray]] | None = None,
        batch_tokens: int = 0,
    ):
        self.rows, self.batch_size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
        self.rank, self.size, self.columns, self.batch_tokens = rank, size, columns, batch_tokens
        self.buckets = check_buckets(buckets or [rows.seq_length], rows)
        self.steps = len(self.plan(0))
        self.tokens = rows.problem == TOKEN and rows.label is not None

    def __len__(self) -> int:
        """Steps an epoch."""
        return self.steps

    def plan(self, epoch: int) -> list[PlannedBatch]:
        """The batches of an epoch over all ranks."""
        count = len(self.rows)
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        order = generator.permutation(count) if self.shuffle else np.arange(count)
        bucket = np.searchsorted(self.buckets, self.rows.length[order])
        batches, left = [], order[:0]
        for index, length in enumerate(self.buckets):
            mine = np.concatenate([left, order[bucket == index]])
            union = max(self.batch_size, self.batch_tokens // length) * self.size
            whole = len(mine) // union * union
            batches += [PlannedBatch(part, length, union) for part in mine[:whole].reshape(-1, union)]
            left = mine[whole:]
        if len(left):
            # Of the shortest length that holds them: the longest may be met nowhere else, and compiled for these alone.
            length = self.buckets[np.searchsorted(self.buckets, self.rows.length[left].max())]
            union = max(self.batch_size, self.batch_tokens // length) * self.size
            batches.append(PlannedBatch(np.resize(left, union), length, len(left)))
        return [batches[i] for i in generator.permutation(len(batches))] if self.shuffle else batches

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's batches of an epoch from step `skip` on.

        Yields:
            `input_ids`, `input_mask`, `segment_ids` (B, S) int32; `label_ids` (B,); `row` (B,) int32, the rows'
            numbers; `weight` (B,) float32, 1 for rows that count and 0 for those that fill a short batch; `rows`,
            `tokens` and `pairs` () float32, sums of weight, weight x length and weight x length^2 over all ranks'
            parts of the batch, over the number of ranks. In a multi-label task `label_ids` is (B, C), in a token task
            (B, S), where `words` () is the number of words, as the other sums are.
        """
        for planned in self.plan(epoch)[skip:]:
            yield {name: Tensor(value) for name, value in self.arrays(planned, epoch).items()}

    def arrays(self, planned: PlannedBatch, epoch: int) -> dict[str, np.ndarray]:
        """This rank's arrays of a batch that is planned for an epoch."""
        return self.batch(planned)

    def batch(self, planned: PlannedBatch) -> dict[str, np.ndarray]:
        """This rank's arrays of a planned batch."""
        share = len(planned.rows) // self.size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        rows, places = planned.rows[mine], np.arange(planned.length, dtype=np.int32)
        length, second = self.rows.length[rows, None], self.rows.second[rows, None]
        weight = (np.arange(len(planned.rows))[mine] < planned.real).astype(np.float32)
        counted = self.rows.length[planned.rows[: planned.real]].astype(np.int64)
        sums = {"rows": len(counted), "tokens": counted.sum(), "pairs": (counted * counted).sum()}
        if self.tokens:
            sums["words"] = max(1, (self.rows.label[planned.rows[: planned.real]] != IGNORED).sum())
        mask = (places < length).astype(np.int32)
        values = {
            "input_ids": self.rows.ids[rows, : planned.length].astype(np.int32),
            "input_mask": mask,
            "segment_ids": ((places >= second) & (mask == 1)).astype(np.int32),
            "row": rows.astype(np.int32),
            "weight": weight,
            **{name: np.float32(value / self.size) for name, value in sums.items()},
        }
        if self.rows.label is not None:
            label = self.rows.label[rows]
            values["label_ids"] = label[:, : planned.length] if self.tokens else label
        return values if self.columns is None else values | self.columns(rows, planned.length)

    def padding(self) -> float:
        """Padded tokens an epoch over real ones."""
        computed = sum(len(planned.rows) * planned.length for planned in self.plan(0))
        return computed / int(self.rows.length.sum())


class PairedLoader(Loader):
    """Batches of rows without labels, each with one of labelled rows, both padded to one length.

    They have besides `draw` (B,) float32, numbers from 0 up to 1, and the labelled batch's columns under `labelled_NAME`.
    The labelled batches follow each other through the epochs of their own loader.

    Args:
        rows: without labels.
        labelled: of the labelled rows.
        options: as for `Loader`; batch size and buckets are those of `labelled`.
    """

    def __init__(self, rows: Rows, labelled: Loader, **options: Any):
        super().__init__(rows, **options)
        self.labelled = labelled
        self._planned: tuple[int, list[PlannedBatch]] = -1, []

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """As `Loader.epoch`, in pairs."""
        for position, planned in enumerate(self.plan(epoch)):
            if position >= skip:
                yield {name: Tensor(value) for name, value in self.pair(planned, epoch, position).items()}

    def pair(self, planned: PlannedBatch, epoch: int, position: int) -> dict[str, np.ndarray]:
        """The arrays of a planned batch and of the labelled batch whose turn it is."""
        theirs = self._turn(epoch * len(self) + position)
        length = max(planned.length, theirs.length)
        values = self.batch(replace(planned, length=length))
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 2, position]))
        labelled = self.labelled.batch(replace(theirs, length=length))
        draw = generator.random(len(values["row"]), np.float32)
        return values | {"draw": draw} | {f"labelled_{name}": value for name, value in labelled.items()}

    def _turn(self, number: int) -> PlannedBatch:
        epoch, position = divmod(number, len(self.labelled))
        if self._planned[0] != epoch:
            self._planned = epoch, self.labelled.plan(epoch)
        return self._planned[1][position]


class MaskedLoader(Loader):
    """Batches whose words are masked, others in every epoch, for masked-language modelling.

    They have besides `masked_lm_positions` and `masked_lm_ids` (B, M) int32, `masked_lm_weights` (B, M) float32 and `masked` ()
    float32, the masked words of all ranks' parts of the batch over the number of ranks.

    Args:
        mask: id of [MASK].
        special: ids that are never masked.
        vocabulary: number of ids.
        probability: part of a row's words to mask.
        rows, options: as for `Loader`.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        mask: int,
        special: set[int],
        vocabulary: int,
        probability: float,
        **options: Any,
    ):
        super().__init__(rows, **options)
        self.mask, self.special, self.vocabulary, self.probability = mask, special, vocabulary, probability

    def arrays(self, planned: PlannedBatch, epoch: int) -> dict[str, np.ndarray]:
        """As `Loader.arrays`, masked."""
        values, most = self.batch(planned), max(1, round(planned.length * self.probability))
        found = []
        for index, row in enumerate(values["row"]):
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 1, int(row)]))
            length = int(self.rows.length[row])
            changed, *places = mask_tokens(
                values["input_ids"][index, :length],
                self.special,
                self.probability,
                most,
                self.mask,
                self.vocabulary,
                generator,
            )
            values["input_ids"][index, :length] = changed
            found.append(places)
        positions, ids, weights = (np.stack(part) for part in zip(*found, strict=True))
        total = sum(self._count(int(row), most) for row in planned.rows[: planned.real])
        return values | {
            "masked_lm_positions": positions,
            "masked_lm_ids": ids,
            "masked_lm_weights": weights * values["weight"][:, None],
            "masked": np.float32(total / self.size),
        }

    def _count(self, row: int, most: int) -> int:
        """How many words of a row are masked."""
        ids = self.rows.ids[row, : self.rows.length[row]]
        return masked_count(int((~np.isin(ids, list(self.special))).sum()), self.probability, most)
