"""Distances between outputs: one formula each. Shapes: B rows, S positions, A heads, H width, C classes.

Two ways to average: over real positions only ("masked"), so that padding never changes the loss, or over the padded
block, as the original TinyBERT code does ("reference"). Rows of weight 0 only fill a batch's shape and never count.
What to divide by is given, because a batch may be one process's part of a larger one: `rows`, `tokens` and `pairs` are
sums over the whole batch of weight, weight x length and weight x length^2, over the number of processes.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from .. import native

# Scores at or below this are those of masked keys; the original code sets them to zero on both sides.
_MASKED_BELOW = -100.0
_TINY = 1e-12  # keeps the cosine's gradient finite where a hidden state is zero


class SquaredDistance(nn.Cell):
    """Sum of (x - y)^2 over the rows, and columns, that count; y takes no gradient.

    Two forms, as in `models.fused`: a kernel of `minddistill.native` on CPU, plain operators elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.native = _SquaredDistance() if native.available() else None

    def construct(self, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
        """Compare x and y (B, A, S, W), or (B, S, W) without columns; rows (B, S), columns (B, W) of 0 and 1."""
        y = ops.stop_gradient(y)
        if self.native is not None:
            total = self.native(x.astype(ms.float32), y.astype(ms.float32), rows, rows if columns is None else columns)
            return total.reshape(())
        difference = x - y
        if columns is None:
            difference = difference * rows.reshape(rows.shape + (1,))
        else:
            batch, length = rows.shape
            difference = difference * rows.reshape(batch, 1, length, 1) * columns.reshape(batch, 1, 1, -1)
        return (difference * difference).sum()


class _SquaredDistance(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.forward = native.operator("squared_distance")
        self.backward = native.operator("squared_distance_grad")

    def construct(self, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return self.forward(x, y, rows, columns)

    def bprop(self, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, out: Tensor, dout: Tensor) -> tuple:
        zeros = ops.zeros_like
        return self.backward(x, y, rows, columns, dout), zeros(y), zeros(rows), zeros(columns)


class AttentionMSE(nn.Cell):
    """Mean squared difference of attention scores over pairs of real positions (TinyBERT, arXiv 1909.10351, eq. 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = SquaredDistance()

    def construct(self, student: Tensor, teacher: Tensor, mask: Tensor, weight: Tensor, pairs: Tensor) -> Tensor:
        """Compare scaled scores before softmax (B, A, S, S); mask (B, S) int32, 1 at real positions; weight (B,)."""
        columns = mask.astype(ms.float32)
        rows = columns * weight.reshape(-1, 1)
        return self.distance(student, teacher, rows, columns) / (student.shape[1] * pairs)


class HiddenMSE(nn.Cell):
    """Mean squared difference of hidden states over real positions (TinyBERT, eq. 8 and 9)."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = SquaredDistance()

    def construct(self, student: Tensor, teacher: Tensor, mask: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
        """Compare hidden states (B, S, H); mask (B, S) int32, 1 at real positions; weight (B,)."""
        rows = mask.astype(ms.float32) * weight.reshape(-1, 1)
        return self.distance(student, teacher, rows, None) / (student.shape[-1] * tokens)


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """1 - cosine of hidden states, averaged over real positions (DistilBERT, arXiv 1910.01108, section 3).

    Args:
        student, teacher: (B, S, H).
        mask: (B, S) int32, 1 at real positions.
        weight: (B,).
    """
    teacher = ops.stop_gradient(teacher)
    squares = (student * student).sum(-1) * (teacher * teacher).sum(-1)
    cosine = (student * teacher).sum(-1) / ops.sqrt(squares + _TINY)
    rows = mask.astype(ms.float32) * weight.reshape(-1, 1)
    return ((1.0 - cosine) * rows).sum() / tokens


def attention_mse_reference(student: Tensor, teacher: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """The original code's attention loss: scores at most -100 become 0, then the mean over the padded block."""
    batch, heads, length = student.shape[:3]
    zero = ops.zeros_like(student)
    student = ops.select(student <= _MASKED_BELOW, zero, student)
    teacher = ops.select(teacher <= _MASKED_BELOW, zero, teacher)
    difference = student - ops.stop_gradient(teacher)
    total = (difference * difference).reshape(batch, -1).sum(1) * weight
    return total.sum() / (heads * length * length * rows)


def hidden_mse_reference(student: Tensor, teacher: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """The original code's hidden-state loss: the mean over the padded block."""
    batch, length, width = student.shape
    difference = student - ops.stop_gradient(teacher)
    total = (difference * difference).reshape(batch, -1).sum(1) * weight
    return total.sum() / (length * width * rows)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy of softened predictions, averaged over rows and classes as the original code does (eq. 10).

    -mean over B and C of softmax(z_T / T) log_softmax(z_S / T), without a factor T^2.

    Args:
        student, teacher: (B, C) logits.
    """
    target = ops.softmax(ops.stop_gradient(teacher) / temperature, -1)
    product = -(target * ops.log_softmax(student / temperature, -1)).sum(-1)
    return (product * weight).sum() / (student.shape[-1] * rows)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor, rows: Tensor) -> Tensor:
    """T^2 KL(softmax(z_T / T) || softmax(z_S / T)), averaged over rows (Hinton et al., arXiv 1503.02531).

    The square keeps the gradients of one size whatever T is, so that it need not move the weight of the labels.

    Args:
        student, teacher: (B, C) logits.
    """
    target = ops.log_softmax(ops.stop_gradient(teacher) / temperature, -1)
    per_row = (ops.exp(target) * (target - ops.log_softmax(student / temperature, -1))).sum(-1)
    return temperature**2 * (per_row * weight).sum() / rows


def softened_binary_kl(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor, rows: Tensor) -> Tensor:
    """T^2 KL(s(z_T / T) || s(z_S / T)) of a sigmoid for each class, averaged over rows and classes; (B, C) logits."""
    taught = ops.stop_gradient(teacher)
    cross = soft_binary_cross_entropy(student, taught, temperature, weight, rows)
    return temperature**2 * (cross - soft_binary_cross_entropy(taught, taught, temperature, weight, rows))


def squared_logits(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Sum over rows and classes of the squared differences of logits (B, C)."""
    difference = student - ops.stop_gradient(teacher)
    return ((difference * difference).sum(-1) * weight).sum()


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy with class labels (B,), averaged over rows; logits (B, C)."""
    target = ops.one_hot(labels, logits.shape[-1], Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))
    per_row = -(target * ops.log_softmax(logits, -1)).sum(-1)
    return (per_row * weight).sum() / rows


def binary_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy of a sigmoid for each class, averaged over rows and classes; logits and labels (B, C), labels 0 to 1.

    -mean over B and C of y log s(z) + (1 - y) log(1 - s(z)), written so that no z overflows.
    """
    labels = labels.astype(ms.float32)
    size = ops.abs(logits)
    # Not ops.relu(logits), whose gradient at 0 is 0 and not the half that belongs there.
    per_class = 0.5 * (logits + size) - logits * labels + ops.log1p(ops.exp(-size))
    return (per_class.sum(-1) * weight).sum() / (logits.shape[-1] * rows)


def soft_binary_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float, weight: Tensor, rows: Tensor
) -> Tensor:
    """Binary cross-entropy with the teacher's softened probabilities s(z_T / T); student and teacher (B, C) logits."""
    target = ops.sigmoid(ops.stop_gradient(teacher) / temperature)
    return binary_cross_entropy(student / temperature, target, weight, rows)


def squared_error(logits: Tensor, labels: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Mean squared error of a regression output (B, 1) against numbers (B,)."""
    difference = logits.reshape(-1) - labels.astype(ms.float32)
    return (difference * difference * weight).sum() / rows


def soft_squared_error(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor, rows: Tensor) -> Tensor:
    """Mean squared error of a regression output against the teacher's, both (B, 1); `temperature` has no part in it."""
    return squared_error(student, ops.stop_gradient(teacher).reshape(-1), weight, rows)
