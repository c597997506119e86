"""Models that compute as their int8 form will (Jacob et al. 2018, arXiv 1712.05877), for training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from .. import native


@dataclass(frozen=True)
class Grid:
    """The numbers (q - zero) scale for whole q from `low` to `high`, which stand for all others.

    Attributes:
        scale, zero: one number, or a column (outputs, 1) with one for each output of a weight.
    """

    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int

    def quantised(self, values: np.ndarray) -> np.ndarray:
        """The q nearest to each value, half to even, as ONNX's QuantizeLinear finds it."""
        return np.clip(np.rint(values / self.scale) + self.zero, self.low, self.high)


class FakeQuant(nn.Cell):
    """The nearest number of a grid; to the backward it is the identity within the grid's ends, a constant outside.

    Two forms, as in `models.fused`: a kernel of `minddistill.native` on CPU, plain operators elsewhere.
    """

    def __init__(self, grid: Grid):
        super().__init__()
        self.scale, self.least, self.most = (
            Tensor(np.reshape(values, (-1, 1)), ms.float32)
            for values in (grid.scale, grid.low - grid.zero, grid.high - grid.zero)
        )
        self.forward, self.backward = native.operator("fake_quant"), native.operator("fake_quant_grad")

    def construct(self, x: Tensor) -> Tensor:
        full = x.astype(ms.float32)
        if self.forward is not None:
            return self.forward(full, self.scale, self.least, self.most).astype(x.dtype)
        steps = ops.round(full / self.scale)
        return (ops.minimum(ops.maximum(steps, self.least), self.most) * self.scale).astype(x.dtype)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        full, gradient = x.astype(ms.float32), dout.astype(ms.float32)
        if self.backward is not None:
            return (self.backward(full, self.scale, self.least, self.most, gradient).astype(dout.dtype),)
        steps = ops.round(full / self.scale)
        inside = ops.logical_and(steps >= self.least, steps <= self.most)
        return ((gradient * inside.astype(ms.float32)).astype(dout.dtype),)


def simulate(model: nn.Cell, grids: Mapping[str, Grid]) -> None:
    """Let a model round as its int8 form does; its parameters stay as they are.

    Args:
        model: not compiled yet.
        grids: of weights and tables by the path of the parameter, of what goes into a dense layer by the layer's path.
    """
    cells = dict(model.cells_and_names())
    for path, grid in grids.items():
        cell, name = (cells[path], "input") if path in cells else (cells[path.rpartition(".")[0]], path.split(".")[-1])
        setattr(cell, f"quantise_{name}", FakeQuant(grid))
