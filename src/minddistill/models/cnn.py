"""Convolutions over positions, and the TextCNN made of them (Kim 2014, arXiv 1408.5882).

Padding never reaches a result: positions behind a text hold zeros, and no window that starts there counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from .layers import Dense


class Convolution(Dense):
    """A convolution over positions with as many results as there are positions; the text is continued by zeros.

    It is a product of windows: the weight's columns are those of a window's first position, then the next one's, and so
    on. PyTorch's weight (F, E, K) becomes this one by `transpose(0, 2, 1).reshape(F, K * E)`.

    Args:
        inputs, filters: features in and out.
        width: positions of a window, K.
        before: how many of them lie before the position that the result belongs to.
    """

    def __init__(self, inputs: int, filters: int, width: int, before: int = 0, compute_type: ms.Type = ms.float32):
        super().__init__(width * inputs, filters, compute_type)
        self.width, self.before, self.after = width, before, width - 1 - before

    def construct(self, x: Tensor) -> Tensor:
        """Map x (B, S, E) to (B, S, F) float32."""
        if self.width > 1:
            batch, length, inputs = x.shape
            padded = x  # not by ops.pad: on CPU its gradient is right the first time only (docs/mindspore.md)
            if self.before:
                padded = ops.concat((ops.zeros((batch, self.before, inputs), x.dtype), padded), 1)
            if self.after:
                padded = ops.concat((padded, ops.zeros((batch, self.after, inputs), x.dtype)), 1)
            x = ops.concat([padded[:, first : first + length] for first in range(self.width)], -1)
        return super().construct(x).astype(ms.float32)


class TextCNN(nn.Cell):
    """Convolutions of several widths, ReLU, the largest value over time of each filter.

    Args:
        inputs, filters: features of a position, and filters of each width.
        widths: of the convolutions.
    """

    def __init__(self, inputs: int, filters: int, widths: Sequence[int], compute_type: ms.Type = ms.float32):
        super().__init__()
        self.convolutions = nn.CellList(
            [Convolution(inputs, filters, width, compute_type=compute_type) for width in widths]
        )
        self.largest = ops.ReduceMax()

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x (B, S, E) and its mask (B, S, 1) of 0 and 1 to (B, F x widths)."""
        x = x * mask
        found = ()
        for convolution in self.convolutions:
            found += (self.largest(ops.relu(convolution(x)) * mask, 1),)
        return ops.concat(found, -1)
