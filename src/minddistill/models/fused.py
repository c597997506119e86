"""The elementwise parts of a transformer layer, each joined into a single pass over memory.

Every cell has two forms: a kernel of `minddistill.native` on CPU, and elsewhere the plain cells of `layers.py`.
`tests/models/test_fused.py` holds the two to each other.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from .. import native
from .layers import ACTIVATIONS, Dropout, LayerNorm, Softmax

_KEEP_ALL = -(2**31)  # the threshold of a dropout mask that keeps every element


class SplitHeads(nn.Cell):
    """scale (x + bias) of x (B, S, A D), with heads before positions: (B, A, S, D)."""

    def __init__(self, heads: int, head_size: int, scale: float = 1.0):
        super().__init__()
        self.heads, self.head_size, self.scale = heads, head_size, scale
        self.native = _SplitHeads(heads, head_size, scale) if native.available() else None

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        if self.native is not None:
            return self.native(x.astype(ms.float32), bias).astype(x.dtype)
        x = x + bias.astype(x.dtype)
        if self.scale != 1.0:
            x = x * self.scale
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.head_size).transpose(0, 2, 1, 3)


class _SplitHeads(nn.Cell):
    def __init__(self, heads: int, head_size: int, scale: float):
        super().__init__()
        self.like = Tensor(np.zeros((heads, head_size), np.float32))
        self.scale = Tensor([scale], ms.float32)
        self.split, self.merge = native.operator("split_heads"), native.operator("merge_heads")
        self.sum_rows = native.operator("sum_rows")

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.split(x, bias, self.like, self.scale)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        dx = self.merge(dout, self.scale)
        return dx, self.sum_rows(dx)


class MergeHeads(nn.Cell):
    """x (B, A, S, D) with positions before heads: (B, S, A D)."""

    def __init__(self, heads: int, head_size: int):
        super().__init__()
        self.width = heads * head_size
        self.native = _MergeHeads(heads, head_size) if native.available() else None

    def construct(self, x: Tensor) -> Tensor:
        if self.native is not None:
            return self.native(x.astype(ms.float32)).astype(x.dtype)
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], self.width)


class _MergeHeads(nn.Cell):
    def __init__(self, heads: int, head_size: int):
        super().__init__()
        self.like = Tensor(np.zeros((heads, head_size), np.float32))
        self.one = Tensor([1.0], ms.float32)
        self.merge, self.split = native.operator("merge_heads"), native.operator("merge_heads_grad")

    def construct(self, x: Tensor) -> Tensor:
        return self.merge(x, self.one)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.split(dout, self.like),)


class AttentionWeights(nn.Cell):
    """Softmax of scores (B, A, S, S) plus a mask (B, 1, 1, S), then dropout."""

    def __init__(self, dropout: Dropout | None):
        super().__init__()
        self.dropout = dropout
        self.softmax = Softmax()
        self.mask = _Mask(dropout)
        self.native = _AttentionWeights() if native.available() else None

    def construct(self, scores: Tensor, bias: Tensor, keys: tuple | None) -> Tensor:
        """Map scores and mask; `keys` are the multiplier and offset (B, A, 1, 1) of the dropout, None without."""
        if self.native is not None:
            return self.native(scores, bias, *self.mask(keys))
        weights = self.softmax(scores + bias)
        if self.dropout is not None:  # graph mode resolves one condition at a time
            if keys is not None:
                weights = self.dropout(weights, keys[0], keys[1])
        return weights


class _AttentionWeights(nn.Cell):
    def __init__(self):
        super().__init__()
        self.forward = native.operator("attention_weights")
        self.backward = native.operator("attention_weights_grad")

    def construct(
        self, x: Tensor, bias: Tensor, table: Tensor, multiplier: Tensor, offset: Tensor, threshold: Tensor
    ) -> Tensor:
        return self.forward(x, bias, table, multiplier, offset, threshold)

    def bprop(
        self,
        x: Tensor,
        bias: Tensor,
        table: Tensor,
        multiplier: Tensor,
        offset: Tensor,
        threshold: Tensor,
        out: Tensor,
        dout: Tensor,
    ) -> tuple:
        dx = self.backward(x, bias, table, multiplier, offset, threshold, dout)
        zeros = ops.zeros_like
        return dx, zeros(bias), zeros(table), zeros(multiplier), zeros(offset), zeros(threshold)


class _Mask(nn.Cell):
    """What kernels take of a dropout: its table, keys and threshold; those of a mask of ones without dropout."""

    def __init__(self, dropout: Dropout | None):
        super().__init__()
        self.dropout = dropout
        self.none = Tensor(np.zeros((1, 1), np.int32))
        self.keep_all = Tensor([_KEEP_ALL], ms.int32)

    def construct(self, keys: tuple | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.dropout is not None:
            if keys is not None:
                return self.dropout.table, keys[0], keys[1], self.dropout.thresholds
        return self.none, self.none, self.none, self.keep_all


class BiasActivation(nn.Cell):
    """An activation, by its name in `ACTIVATIONS`, of x (B, S, H) + bias (H)."""

    def __init__(self, name: str):
        super().__init__()
        self.activation = ACTIVATIONS[name]()
        self.native = _BiasGelu() if name == "gelu" and native.available() else None

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        if self.native is not None:
            return self.native(x.astype(ms.float32), bias).astype(x.dtype)
        return self.activation(x + bias.astype(x.dtype))


class _BiasGelu(nn.Cell):
    def __init__(self):
        super().__init__()
        self.forward, self.backward = native.operator("bias_gelu"), native.operator("bias_gelu_grad")

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, bias)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        dx, dbias = self.backward(x, bias, dout)
        return dx, dbias


class AddNorm(LayerNorm):
    """Layer norm of x + dropout(fed + bias), in float32; `fed` is the branch beside the residual x."""

    def __init__(self, size: int, epsilon: float, dropout: Dropout | None):
        super().__init__(size, epsilon)
        self.dropout = dropout
        self.mask = _Mask(dropout)
        self.native = _AddNorm(epsilon) if native.available() else None

    def construct(self, x: Tensor, fed: Tensor, bias: Tensor, keys: tuple | None) -> Tensor:
        """Map x and fed (B, S, H); `keys` are the multiplier and offset (B, 1, 1) of the dropout, None without."""
        if self.native is not None:
            x, fed = x.astype(ms.float32), fed.astype(ms.float32)
            return self.native(x, fed, bias, self.gamma, self.beta, *self.mask(keys))
        fed = fed + bias.astype(fed.dtype)
        if self.dropout is not None:
            if keys is not None:
                fed = self.dropout(fed, keys[0], keys[1])
        return super().construct(x + fed.astype(x.dtype))


class _AddNorm(nn.Cell):
    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = Tensor([epsilon], ms.float32)
        self.forward, self.backward = native.operator("add_norm"), native.operator("add_norm_grad")

    def construct(
        self,
        x: Tensor,
        fed: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        table: Tensor,
        multiplier: Tensor,
        offset: Tensor,
        threshold: Tensor,
    ) -> Tensor:
        return self.forward(x, fed, bias, gamma, beta, self.epsilon, table, multiplier, offset, threshold)

    def bprop(
        self,
        x: Tensor,
        fed: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        table: Tensor,
        multiplier: Tensor,
        offset: Tensor,
        threshold: Tensor,
        out: Tensor,
        dout: Tensor,
    ) -> tuple:
        dx, dfed, dbias, dgamma, dbeta = self.backward(
            x, fed, bias, gamma, self.epsilon, table, multiplier, offset, threshold, dout
        )
        zeros = ops.zeros_like
        return dx, dfed, dbias, dgamma, dbeta, zeros(table), zeros(multiplier), zeros(offset), zeros(threshold)
