"""A densely connected block of convolutions, and dynamic self-attention (Yoon et al. 2018, arXiv 1808.07383)."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from .bert import MASKED_SCORE
from .cnn import Convolution
from .config import WordConfig
from .layers import ACTIVATIONS, Dense, Softmax


class _Column(nn.Cell):
    """Convolutions one after the other, each of which reads what all before it have made."""

    def __init__(self, levels: Sequence[tuple[int, int, int]], activation: str, compute_type: ms.Type):
        super().__init__()
        self.levels = nn.CellList(
            [Convolution(inputs, filters, width, width // 2, compute_type) for inputs, filters, width in levels]
        )
        self.activation = ACTIVATIONS[activation]()

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x (B, S, E) to the last level (B, S, F)."""
        made = ()
        for level in self.levels:
            x = self.activation(level(x) * mask)
            made += (x,)
            x = ops.concat(made, -1)
        return made[-1]


class DenseBlock(nn.Cell):
    """Columns of convolutions, whose last levels are joined with what they read by a convolution of width 1.

    Args:
        config: `columns`, `joined_size` and `activation`.
    """

    def __init__(self, config: WordConfig, compute_type: ms.Type = ms.float32):
        super().__init__()
        self.columns = nn.CellList([_Column(column, config.activation, compute_type) for column in config.columns])
        last = sum(column[-1][1] for column in config.columns)
        self.join = Convolution(config.embedding_size + last, config.joined_size, 1, compute_type=compute_type)
        self.activation = ACTIVATIONS[config.activation]()

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x (B, S, E), zero where its mask (B, S, 1) is, to (B, S, joined_size), likewise."""
        joined = (x,)
        for column in self.columns:
            joined += (column(x, mask),)
        return self.activation(self.join(ops.concat(joined, -1)) * mask)


class DynamicSelfAttention(nn.Cell):
    """Weights of positions that are found anew from what they have given, a few times.

    With v the head's values: q = 0; then each time a = softmax(q) over real positions, z = tanh(a v), q = q + v z. Its result
    is the last z. No gradient flows through a.

    Args:
        config: `attention_heads`, `attention_size`, `attention_steps`.
    """

    def __init__(self, config: WordConfig, compute_type: ms.Type = ms.float32):
        super().__init__()
        self.heads, self.size, self.steps = config.attention_heads, config.attention_size, config.attention_steps
        self.values = Dense(config.pool_inputs, self.heads * self.size, compute_type)
        self.activation = ACTIVATIONS["leaky_relu"]()
        self.softmax = Softmax()
        self.weighted, self.agreement = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x (B, S, E) and its mask (B, S, 1) to (B, heads x size)."""
        batch, length = x.shape[0], x.shape[1]
        values = self.activation(self.values(x).astype(ms.float32))
        values = values.reshape(batch, length, self.heads, self.size).transpose(0, 2, 1, 3)
        bias = ((1.0 - mask) * MASKED_SCORE).reshape(batch, 1, 1, length)
        scores = bias + ops.zeros_like(values[:, :, :1, 0:1])
        given = ops.tanh(self.weighted(self.softmax(scores), values))
        for _ in range(self.steps - 1):
            scores = scores + ops.stop_gradient(self.agreement(given, values))
            given = ops.tanh(self.weighted(self.softmax(scores), values))
        return given.reshape(batch, self.heads * self.size)
