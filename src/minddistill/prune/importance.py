"""How much each head, neuron and hidden unit of an encoder matters for a loss on real rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn

from ..models.heads import TextModel

_PER_LAYER = 8  # parameters of a layer whose gradients are looked at


@dataclass
class Importance:
    """Sums over batches of how much the loss would change, to first order, without a unit.

    Attributes:
        heads: of each layer (A,), |dL / d(mask of the head's output)| (Michel et al. 2019, arXiv 1905.10650).
        neurons: of each feed-forward layer (F,), |sum over j of W1[i, j] dL/dW1[i, j] + b1[i] dL/db1[i]|.
        hidden: of the hidden states' units (H,), |dL / d(mask of the unit after every layer norm of the layers)|.
    """

    heads: list[np.ndarray]
    neurons: list[np.ndarray]
    hidden: np.ndarray


class _Products(nn.Cell):
    """Sums of parameter x gradient over what one unit owns, for each unit.

    A mask m of a head's output scales the columns of the output projection that read it, so dL/dm is the sum of
    parameter x gradient over these; likewise for layer norms, whose outputs are linear in their parameters.
    """

    def __init__(self, loss: nn.Cell, model: TextModel):
        super().__init__(auto_prefix=False)
        taken = []
        for layer in model.encoder.layers:
            taken += [layer.attention_output.weight, layer.intermediate.weight, layer.intermediate.bias]
            taken += [layer.output.weight, layer.attention_norm.gamma, layer.attention_norm.beta]
            taken += [layer.output_norm.gamma, layer.output_norm.beta]
        self.taken, self.depth = ParameterTuple(taken), len(model.encoder.layers)
        self.gradients = ms.value_and_grad(loss, None, self.taken, has_aux=True)

    def construct(self, batch: dict) -> tuple:
        _, gradients = self.gradients(batch)
        found = ()
        for layer in range(self.depth):
            products = [
                self.taken[_PER_LAYER * layer + i] * gradients[_PER_LAYER * layer + i] for i in range(_PER_LAYER)
            ]
            hidden = products[4] + products[5] + products[6] + products[7]
            found = found + (products[0].sum(0), products[1].sum(1) + products[2], products[3].sum(0), hidden)
        return found


def measure(
    loss: nn.Cell,
    model: TextModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    accumulate: bool = False,
    output_term: bool = False,
) -> Importance:
    """Measure a model on batches.

    Args:
        loss: called with a batch; returns the loss of `model`, without dropout, and its parts.
        accumulate: as FastFormers does, which never clears gradients: those of a batch and all before it count for it.
        output_term: add |sum over j of W2[j, i] dL/dW2[j, i]| to a neuron's importance.
    """
    cell, size, heads = _Products(loss, model), model.config.attention_head_size, model.config.layer_heads
    before: list[np.ndarray] | None = None
    total: list[np.ndarray] = []
    for batch in batches:
        found = [value.asnumpy() for value in cell(ms.mutable(dict(batch)))]
        products = []
        for layer, count in enumerate(heads):
            context, inner, outer, hidden = found[4 * layer : 4 * layer + 4]
            products += [context.reshape(count, size).sum(1), inner, outer, hidden]
        products.append(np.sum(products[3::4], 0))
        if accumulate and before is not None:  # weights stand still, so sums of gradients are sums of products
            products = [old + new for old, new in zip(before, products, strict=True)]
        before = products
        size_of = [np.abs(product) for product in products]
        total = [old + new for old, new in zip(total, size_of, strict=True)] if total else size_of
    inner, outer = total[1:-1:4], total[2:-1:4]
    neurons = [a + b for a, b in zip(inner, outer, strict=True)] if output_term else inner
    return Importance(total[0:-1:4], neurons, total[-1])


def choose(scores: Sequence[np.ndarray], count: int, together: bool, normalise: bool = True) -> list[np.ndarray]:
    """The units that stay in each layer, the most important first; of equal ones the earlier.

    Args:
        scores: of each layer's units.
        count: units a layer; where layers are chosen from `together`, on average.
        together: compare units of different layers; each layer keeps one at least.
        normalise: divide each layer's scores by their Euclidean norm before they are compared with other layers'.
    """
    orders = [np.argsort(-score, kind="stable") for score in scores]
    if not together:
        return [order[:count] for order in orders]
    if normalise:
        scores = [score / max(np.linalg.norm(score), np.finfo(np.float32).tiny) for score in scores]
    layer = np.repeat(np.arange(len(scores)), [len(order) - 1 for order in orders])
    rest = np.concatenate([score[order[1:]] for score, order in zip(scores, orders, strict=True)])
    best = np.argsort(-rest, kind="stable")[: (count - 1) * len(scores)]
    counts = 1 + np.bincount(layer[best], minlength=len(scores))
    return [order[:kept] for order, kept in zip(orders, counts, strict=True)]
