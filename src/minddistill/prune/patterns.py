"""Which weights of a matrix are pruned together, and which of them go for a given sparsity.

A weight (outputs, inputs) consists of units, each pruned or kept as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

_BLOCKS = re.compile(r"([1-9]\d*|channel)x([1-9]\d*|channel)")
_N_OF_M = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True)
class Blocks:
    """Units are blocks of `rows` x `columns`; 0 stands for the whole axis."""

    rows: int
    columns: int

    most = 1.0
    """The largest sparsity."""

    def misfit(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix does not divide into units."""
        rows, columns = self._block(shape)
        return bool(shape[0] % rows or shape[1] % columns)

    def size(self, shape: tuple[int, int]) -> int:
        """Weights that a pruned unit takes away."""
        rows, columns = self._block(shape)
        return rows * columns

    def units(self, scores: np.ndarray) -> np.ndarray:
        """The score of each unit (units,): the mean of its weights' scores (outputs, inputs)."""
        rows, columns = self._block(scores.shape)
        blocks = scores.reshape(scores.shape[0] // rows, rows, scores.shape[1] // columns, columns)
        return blocks.mean((1, 3), dtype=np.float64).reshape(-1)

    def mask(self, scores: np.ndarray, pruned: np.ndarray) -> np.ndarray:
        """True at weights that stay (outputs, inputs), where `pruned` (units,) tells the units that go."""
        rows, columns = self._block(scores.shape)
        kept = ~pruned.reshape(scores.shape[0] // rows, scores.shape[1] // columns)
        return kept.repeat(rows, 0).repeat(columns, 1)

    def _block(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return self.rows or shape[0], self.columns or shape[1]


@dataclass(frozen=True)
class NOfM:
    """A unit is the `zeros` lowest of every `of` consecutive inputs."""

    zeros: int
    of: int

    @property
    def most(self) -> float:
        """The largest sparsity: that of every group having its zeros."""
        return self.zeros / self.of

    def misfit(self, shape: tuple[int, int]) -> bool:
        """As `Blocks.misfit`."""
        return bool(shape[1] % self.of)

    def size(self, shape: tuple[int, int]) -> int:
        """As `Blocks.size`."""
        return self.zeros

    def units(self, scores: np.ndarray) -> np.ndarray:
        """The score of each group (groups,): the sum of its `zeros` lowest over `of`."""
        lowest = np.sort(scores.reshape(-1, self.of), 1)[:, : self.zeros]
        return lowest.sum(1, dtype=np.float64) / self.of

    def mask(self, scores: np.ndarray, pruned: np.ndarray) -> np.ndarray:
        """As `Blocks.mask`."""
        groups = scores.reshape(-1, self.of)
        kept = np.ones(groups.shape, bool)
        lowest = np.argsort(groups, 1, kind="stable")[:, : self.zeros]
        kept[np.flatnonzero(pruned)[:, None], lowest[pruned]] = False
        return kept.reshape(scores.shape)


def pattern(name: str) -> Blocks | NOfM:
    """The pattern of a name: 2:4 or another N:M, 4x1 or another NxM (outputs x inputs), 1xchannel, channelx1.

    Raises:
        UserError: it is none of these.
    """
    if found := _N_OF_M.fullmatch(name):
        zeros, of = map(int, found.groups())
        if zeros < of:
            return NOfM(zeros, of)
    elif (found := _BLOCKS.fullmatch(name)) and name != "channelxchannel":
        rows, columns = (0 if part == "channel" else int(part) for part in found.groups())
        return Blocks(rows, columns)
    raise UserError(f"--pattern {name!r}: expected N:M with N below M, NxM, 1xchannel or channelx1, such as 2:4 or 4x1")


def masks(
    scores: Sequence[np.ndarray], units: Blocks | NOfM, sparsity: float, least: float = 0.0, most: float = 1.0
) -> list[np.ndarray]:
    """Prune the units of lowest score, over all matrices together, up to the last whole unit within `sparsity`.

    Of equal scores the earlier goes first.

    Args:
        scores: of the weights of each matrix (outputs, inputs).
        sparsity: of all weights together.
        least, most: sparsity of each matrix; `least` no more than `sparsity` itself.

    Returns:
        For each matrix, True at weights that stay.
    """
    values = [units.units(score) for score in scores]
    sizes = [units.size(score.shape) for score in scores]
    orders = [np.argsort(value, kind="stable") for value in values]
    first = [_whole(min(least, sparsity) * score.size / size) for score, size in zip(scores, sizes, strict=True)]
    last = [_whole(min(most, units.most) * score.size / size) for score, size in zip(scores, sizes, strict=True)]
    open_ = [order[low:high] for order, low, high in zip(orders, first, last, strict=True)]
    matrix = np.repeat(np.arange(len(scores)), [len(order) for order in open_])
    rank = np.argsort(np.concatenate([v[order] for v, order in zip(values, open_, strict=True)]), kind="stable")
    budget = sparsity * sum(score.size for score in scores) - np.dot(first, sizes)
    taken = np.cumsum(np.array(sizes)[matrix[rank]]) <= budget + _ROUNDING
    counts = first + np.bincount(matrix[rank[taken]], minlength=len(scores))
    found = []
    for score, order, count in zip(scores, orders, counts, strict=True):
        pruned = np.zeros(len(order), bool)
        pruned[order[:count]] = True
        found.append(units.mask(score, pruned))
    return found


_ROUNDING = 1e-6


def _whole(number: float) -> int:
    """The whole units in a number; 0.9 x 10 is nine of them."""
    return int(number + _ROUNDING)
