"""What tells which weights are needed least: scores that each training step brings up to date.

Cells called with (score, weight, gradient), all (outputs, inputs), before the weight moves; they return the new score.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops


class Gradient(nn.Cell):
    """|G|."""

    def construct(self, score: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
        return ops.abs(gradient)


class Snip(nn.Cell):
    """|W G|, the change of the loss to first order (SNIP, Lee et al. 2019, arXiv 1810.02340)."""

    def construct(self, score: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
        return ops.abs(weight * gradient)


class SnipMomentum(nn.Cell):
    """0.9 S + |W G|."""

    def construct(self, score: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
        return 0.9 * score + ops.abs(weight * gradient)


class Movement(nn.Cell):
    """S - rate (W G + penalty sigmoid'(S)): scores by gradient descent through the mask (Sanh et al. 2020, arXiv
    2005.07683, eq. 4 and 5), where G is the gradient at the masked weight: the mask's own is passed straight through.

    Args:
        rate: learning rate of the scores.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.penalty = Parameter(Tensor(0.0, ms.float32), name="penalty", requires_grad=False)

    def construct(self, score: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
        kept = ops.sigmoid(score)
        return score - self.rate * (weight * gradient + self.penalty * kept * (1.0 - kept))


# magnitude, |W| when weights are pruned, needs no scores.
CRITERIA = {"snip_momentum": SnipMomentum, "magnitude": None, "snip": Snip, "gradient": Gradient, "movement": Movement}
