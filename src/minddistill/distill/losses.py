"""Distances between outputs: one formula each. Shapes: B rows, S positions, A heads, H width, C classes.

Two ways to average: over real positions only ("masked"), so that padding never changes the loss, or over the padded
block, as the original TinyBERT code does ("reference"). Rows of weight 0 only fill a batch's shape and never count.
What to divide by is given, because a batch may be one process's part of a larger one: `rows`, `tokens` and `pairs` are
sums over the whole batch of weight, weight x length and weight x length^2, over the number of processes.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

# Scores at or below this are those of masked keys; the original code sets them to zero on both sides.
_MASKED_BELOW = -100.0


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor, weight: Tensor, pairs: Tensor) -> Tensor:
    """Mean squared difference of attention scores over pairs of real positions (TinyBERT, arXiv 1909.10351, eq. 7).

    Args:
        student, teacher: (B, A, S, S) scaled scores before softmax.
        mask: (B, S) int32, 1 at real positions.
        weight: (B,) of the rows.
    """
    batch, heads, length = student.shape[:3]
    real = mask.astype(ms.float32) * weight.reshape(batch, 1)
    both = real.reshape(batch, 1, length, 1) * mask.astype(ms.float32).reshape(batch, 1, 1, length)
    difference = (student - ops.stop_gradient(teacher)) * both
    return (difference * difference).sum() / (heads * pairs)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """Mean squared difference of hidden states (B, S, H) over real positions (TinyBERT, eq. 8 and 9)."""
    batch, length, width = student.shape
    real = (mask.astype(ms.float32) * weight.reshape(batch, 1)).reshape(batch, length, 1)
    difference = (student - ops.stop_gradient(teacher)) * real
    return (difference * difference).sum() / (width * tokens)


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


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy with class labels (B,), averaged over rows; logits (B, C)."""
    target = ops.one_hot(labels, logits.shape[-1], Tensor(1.0, ms.float32), Tensor(0.0, ms.float32))
    per_row = -(target * ops.log_softmax(logits, -1)).sum(-1)
    return (per_row * weight).sum() / rows


def squared_error(logits: Tensor, labels: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Mean squared error of a regression output (B, 1) against numbers (B,)."""
    difference = logits.reshape(-1) - labels.astype(ms.float32)
    return (difference * difference * weight).sum() / rows
