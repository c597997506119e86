"""The cells that every model is built from, in forms that graph mode runs fast on CPU, GPU and Ascend.

MindSpore's own backwards of GELU, layer norm and softmax make several passes each on CPU; the cells here carry a
hand-written backward with fewer. `fused.py` joins several into a single pass. `tests/models/test_layers.py` holds each
to MindSpore's plain operator.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .. import native
from .config import LEAK

_SQRT_HALF = 1.0 / math.sqrt(2.0)
_NORMAL_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)


class Dense(nn.Cell):
    """Linear map y = x W^T + b, computed in `compute_type`.

    `quantise_input` and `quantise_weight` are what `models.fake_quant` puts others in the place of.

    Args:
        inputs, outputs: features in and out; the weight has shape (outputs, inputs), as in Hugging Face files.
        compute_type: type of the matrix product; the result keeps it.
    """

    def __init__(self, inputs: int, outputs: int, compute_type: ms.Type = ms.float32):
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((outputs, inputs), np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros(outputs, np.float32)), name="bias")
        self.compute_type = compute_type
        self.inputs = inputs
        self.outputs = outputs
        self.matmul = ops.MatMul(transpose_b=True)
        self.quantise_input, self.quantise_weight = nn.Identity(), nn.Identity()

    def construct(self, x: Tensor) -> Tensor:
        # Not BiasAdd: its backward is several times slower on CPU than the sum that a broadcast addition takes.
        return self.product(x) + self.bias.astype(self.compute_type)

    def product(self, x: Tensor) -> Tensor:
        """x W^T, for a cell that adds the bias itself."""
        flat = self.quantise_input(x.reshape(-1, self.inputs)).astype(self.compute_type)
        y = self.matmul(flat, self.quantise_weight(self.weight).astype(self.compute_type))
        return y.reshape(x.shape[:-1] + (self.outputs,))


class Gelu(nn.Cell):
    """Exact GELU x Phi(x) (Hendrycks and Gimpel 2016, arXiv 1606.08415), with its own backward Phi(x) + x phi(x)."""

    def construct(self, x: Tensor) -> Tensor:
        return x * (ops.erf(x * _SQRT_HALF) * 0.5 + 0.5)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        # The compiler shares Phi(x) with the forward.
        cdf = ops.erf(x * _SQRT_HALF) * 0.5 + 0.5
        density = ops.exp(x * x * -0.5) * _NORMAL_DENSITY
        return (dout * (cdf + x * density),)


class Tanh(nn.Cell):
    """Hyperbolic tangent."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class Relu(nn.Cell):
    """Rectified linear unit."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class LeakyRelu(nn.Cell):
    """Rectified linear unit with a small slope below 0."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.maximum(x, x * LEAK)


# The names of Hugging Face's configurations; "gelu" is the exact form everywhere.
ACTIVATIONS = {
    "gelu": Gelu,
    "gelu_new": nn.GELU,
    "gelu_pytorch_tanh": nn.GELU,
    "tanh": Tanh,
    "relu": Relu,
    "leaky_relu": LeakyRelu,
}


class _Normalise(nn.Cell):
    """Layer norm over the last axis of (N, H), with the gradient in closed form."""

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.mean = ops.ReduceMean(True)
        self.native = native.operator("layer_norm")
        self.native_grad = native.operator("layer_norm_grad")
        self.epsilons = Tensor([epsilon], ms.float32)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        if self.native is not None:
            return self.native(x, gamma, beta, self.epsilons)
        centred = x - self.mean(x, -1)
        return centred * ops.rsqrt(self.mean(centred * centred, -1) + self.epsilon) * gamma + beta

    def bprop(self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.native is not None:
            dx, dgamma, dbeta = self.native_grad(x, gamma, self.epsilons, dout)
            return dx, dgamma, dbeta
        centred = x - self.mean(x, -1)
        inverse = ops.rsqrt(self.mean(centred * centred, -1) + self.epsilon)
        unit = centred * inverse
        scaled = dout * gamma
        dx = (scaled - self.mean(scaled, -1) - unit * self.mean(scaled * unit, -1)) * inverse
        return dx, (dout * unit).sum(0), dout.sum(0)


class LayerNorm(nn.Cell):
    """Layer norm over the last axis (Ba et al. 2016, arXiv 1607.06450), always computed in float32.

    While training (`set_train`), in the form whose forward shares its parts with the backward; else in MindSpore's
    own operator, whose forward alone takes a third to a fifth of the time on CPU.
    """

    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.gamma = Parameter(Tensor(np.ones(size, np.float32)), name="gamma")
        self.beta = Parameter(Tensor(np.zeros(size, np.float32)), name="beta")
        self.size = size
        self.normalise = _Normalise(epsilon)
        self.forward_only = ops.LayerNorm(begin_norm_axis=1, begin_params_axis=1, epsilon=epsilon)

    def construct(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.size).astype(ms.float32)
        if self.training:
            return self.normalise(flat, self.gamma, self.beta).reshape(x.shape)
        return self.forward_only(flat, self.gamma, self.beta)[0].reshape(x.shape)


class Softmax(nn.Cell):
    """Softmax over the last axis."""

    def __init__(self):
        super().__init__()
        self.softmax = ops.Softmax(-1)
        self.sum = ops.ReduceSum(True)

    def construct(self, x: Tensor) -> Tensor:
        return self.softmax(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        size = x.shape[-1]
        flat = out.reshape(-1, size)
        product = flat * dout.reshape(-1, size)
        return ((product - flat * self.sum(product, -1)).reshape(x.shape),)


def _int32(value: int) -> int:
    """The signed 32-bit integer with the low bits of `value`."""
    return (value + 2**31) % 2**32 - 2**31


_MIX_1 = _int32(0x85EBCA6B)
_MIX_2 = _int32(0xC2B2AE35)
_GOLDEN = _int32(0x9E3779B1)
_SITE = _int32(0x27D4EB2F)


def _mix(x: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3, on int32 (shifts made logical by masking)."""
    x = ops.bitwise_xor(x, ops.bitwise_and(ops.bitwise_right_shift(x, Tensor(16, ms.int32)), Tensor(0xFFFF, ms.int32)))
    x = x * _MIX_1
    x = ops.bitwise_xor(x, ops.bitwise_and(ops.bitwise_right_shift(x, Tensor(13, ms.int32)), Tensor(0x7FFFF, ms.int32)))
    x = x * _MIX_2
    return ops.bitwise_xor(
        x, ops.bitwise_and(ops.bitwise_right_shift(x, Tensor(16, ms.int32)), Tensor(0xFFFF, ms.int32))
    )


class DropoutKeys(nn.Cell):
    """Keys of the dropout masks: a hash of (seed, optimiser step, row of the data set, site in the network).

    MindSpore's own dropout keeps a state that cannot be saved. Masks made from these keys can be made again: a
    run resumes exactly, and a row is masked alike whatever its batch, its padding or the device it lands on.

    Args:
        seed: of the run.
        sites: number of places with a mask of their own; each attention head is one.
    """

    def __init__(self, seed: int, sites: int):
        super().__init__()
        self.seed = _int32(seed * 0x632BE5AB + 0x1B873593)
        self.site = Tensor(np.array([_int32(i * 0x27D4EB2F) for i in range(sites)], np.int32))

    def construct(self, step: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return odd multipliers and offsets, both (B, sites) int32, for `step` () and `row` (B,) int32."""
        row_key = _mix(_mix(row * _GOLDEN + self.seed) + step * _MIX_2)
        multiplier = _mix(row_key.reshape(-1, 1) + self.site)
        offset = _mix(multiplier + _SITE)
        return ops.bitwise_or(multiplier, Tensor(1, ms.int32)), offset


class Dropout(nn.Cell):
    """Inverted dropout with masks from `DropoutKeys`.

    The mask of element (s, h) of a row is bit-exact `table[s, h] * multiplier + offset >= threshold` in wrapping
    int32 arithmetic: multiply-add hashing of a table of random words (Dietzfelbinger 1996), two integer passes.

    Args:
        probability: of an element being zeroed.
        table: (rows, columns) int32 random words, at least as large as the last two axes of any input.
    """

    def __init__(self, probability: float, table: Tensor):
        super().__init__()
        self.threshold = int(probability * 2**32) - 2**31
        self.scale = 1.0 / (1.0 - probability)
        self.table = table
        self.native = native.operator("dropout")
        self.thresholds = Tensor([self.threshold], ms.int32)

    def construct(self, x: Tensor, multiplier: Tensor, offset: Tensor) -> Tensor:
        """Mask x (B, ..., S, H) with a key for each of its leading indices, (B, ..., 1, 1)."""
        return self.masked(x, multiplier, offset)

    def bprop(
        self, x: Tensor, multiplier: Tensor, offset: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The mask is made again rather than kept.
        return self.masked(dout, multiplier, offset), ops.zeros_like(multiplier), ops.zeros_like(offset)

    def masked(self, x: Tensor, multiplier: Tensor, offset: Tensor) -> Tensor:
        if self.native is not None:
            y = self.native(x.astype(ms.float32), self.table, multiplier, offset, self.thresholds)
            return y.astype(x.dtype)
        words = self.table[: x.shape[-2], : x.shape[-1]] * multiplier + offset
        return x * ((words >= self.threshold).astype(x.dtype) * self.scale)


def dropout_table(rows: int, columns: int) -> Tensor:
    """Random int32 words, (rows, columns), the same in every process."""
    words = np.random.Generator(np.random.Philox(20190923)).integers(-(2**31), 2**31, (rows, columns))
    return Tensor(words.astype(np.int32))
