"""What a student is trained for. They know outputs, not models.

An objective is a cell that maps (batch, student outputs, teacher outputs) to the loss and a tuple of its parts, which
its attribute `terms` names; `logits_only` tells that it reads nothing else of the models. (A dict that leaves a compiled function makes MindSpore run all of it as dynamic types.)
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ..errors import UserError
from ..problems import MULTI, REGRESSION, SINGLE, TOKEN
from . import losses
from .layer_map import LayerMap

# The loss against the labels, and those against the teacher's logits: cross-entropy and T^2 KL, by problem.
_HARD = {
    SINGLE: losses.cross_entropy,
    MULTI: losses.binary_cross_entropy,
    REGRESSION: losses.squared_error,
    TOKEN: losses.cross_entropy,
}
_SOFT = {
    SINGLE: losses.soft_cross_entropy,
    MULTI: losses.soft_binary_cross_entropy,
    REGRESSION: losses.soft_squared_error,
    TOKEN: losses.soft_cross_entropy,
}
_SOFTENED = {
    SINGLE: losses.softened_kl,
    MULTI: losses.softened_binary_kl,
    REGRESSION: losses.soft_squared_error,
    TOKEN: losses.softened_kl,
}


def _answers(outputs: dict) -> Tensor:
    """Logits, one line for each row (B, C), or for each position of a token classifier (B S, C)."""
    return outputs["logits"].reshape(-1, outputs["logits"].shape[-1])


def _labels(batch: dict, tokens: bool) -> Tensor:
    """Labels for the lines of `_answers`; what stands where no word begins does not matter."""
    labels = batch["label_ids"]
    return (labels * (labels >= 0).astype(ms.int32)).reshape(-1) if tokens else labels


def _counted(batch: dict, tokens: bool) -> tuple[Tensor, Tensor]:
    """Weights of the lines of `_answers`, and what to divide by.

    In a token task only positions where a word begins count, for teacher and labels alike.
    """
    if not tokens:
        return batch["weight"], batch["rows"]
    begins = (batch["label_ids"] >= 0).astype(ms.float32)
    return (begins * batch["weight"].reshape(-1, 1)).reshape(-1), batch["words"]


class FitDense(nn.Cell):
    """The learnable projection of student hidden states to the teacher's width (TinyBERT's `fit_dense`).

    Args:
        student, teacher: hidden sizes.
        count: 1 for one projection shared by all hidden states, as in TinyBERT's code, or one per hidden state.
    """

    def __init__(self, student: int, teacher: int, count: int):
        super().__init__()
        self.weights = ParameterTuple(
            [Parameter(Tensor(np.zeros((teacher, student), np.float32)), name=f"weight_{i}") for i in range(count)]
        )
        self.biases = ParameterTuple(
            [Parameter(Tensor(np.zeros(teacher, np.float32)), name=f"bias_{i}") for i in range(count)]
        )
        self.count = count
        self.student, self.teacher = student, teacher
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, hidden: Tensor, index: int) -> Tensor:
        """Project hidden states (B, S, H_student) of the index-th pair."""
        place = index if self.count > 1 else 0
        flat = hidden.reshape(-1, self.student).astype(ms.float32)
        projected = self.matmul(flat, self.weights[place]) + self.biases[place]
        return projected.reshape(hidden.shape[:2] + (self.teacher,))

    def names(self) -> dict[str, str]:
        """Parameter names here and in checkpoints: `fit_dense.weight`, or `fit_denses.0.weight` and so on."""
        if self.count == 1:
            return {"weight_0": "fit_dense.weight", "bias_0": "fit_dense.bias"}
        return {f"{leaf}_{i}": f"fit_denses.{i}.{leaf}" for i in range(self.count) for leaf in ("weight", "bias")}


class Same(nn.Cell):
    """In the place of `FitDense` where student and teacher are of one width."""

    def construct(self, hidden: Tensor, index: int) -> Tensor:
        return hidden.astype(ms.float32)


class AttentionScores(nn.Cell):
    """Attention scores, layer by layer: the sum over layers of their squared distance (TinyBERT eq. 7).

    Args:
        layers: the layer map.
        mode: "masked" or "reference".
    """

    needs_head, logits_only = False, False
    terms = ("attention_loss",)

    def __init__(self, layers: LayerMap, mode: str = "masked"):
        super().__init__()
        self.pairs = tuple(enumerate(layers.attention))
        self.reference = mode == "reference"
        self.mse = losses.AttentionMSE()

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        total = Tensor(0.0, ms.float32)
        for mine, theirs in self.pairs:
            total = total + self.loss(student["attentions"][mine], teacher["attentions"][theirs], batch)
        return total, (total,)

    def loss(self, student: Tensor, teacher: Tensor, batch: dict) -> Tensor:
        if self.reference:
            return losses.attention_mse_reference(student, teacher, batch["weight"], batch["rows"])
        return self.mse(student, teacher, batch["input_mask"], batch["weight"], batch["pairs"])


class HiddenStates(nn.Cell):
    """Hidden states, the embedding output among them: the sum over the pairs of the map of their distance.

    Args:
        layers: the layer map.
        fit: projection of the student's hidden states, `FitDense` or `Same`.
        mode: "masked" or "reference".
        distance: "mse" (TinyBERT eq. 8 and 9) or "cosine" (DistilBERT), which is masked always.

    Raises:
        UserError: cosine is asked for in mode "reference".
    """

    needs_head, logits_only = False, False
    terms = ("hidden_loss",)

    def __init__(self, layers: LayerMap, fit: FitDense | Same, mode: str = "masked", distance: str = "mse"):
        super().__init__()
        self.pairs, self.fit = tuple(enumerate(layers.hidden_pairs)), fit
        self.reference, self.cosine = mode == "reference", distance == "cosine"
        if self.reference and self.cosine:
            raise UserError(
                "--loss_mode reference: is the squared error over the padded block; --state_loss cosine wants masked"
            )
        self.mse = losses.HiddenMSE()

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        total = Tensor(0.0, ms.float32)
        for place, (mine, theirs) in self.pairs:
            projected = self.fit(student["hidden"][mine], place)
            total = total + self.loss(projected, teacher["hidden"][theirs].astype(ms.float32), batch)
        return total, (total,)

    def loss(self, student: Tensor, teacher: Tensor, batch: dict) -> Tensor:
        if self.reference:
            return losses.hidden_mse_reference(student, teacher, batch["weight"], batch["rows"])
        if self.cosine:
            return losses.hidden_cosine(student, teacher, batch["input_mask"], batch["weight"], batch["tokens"])
        return self.mse(student, teacher, batch["input_mask"], batch["weight"], batch["tokens"])


def _positive(temperature: float) -> float:
    if temperature <= 0:
        raise UserError(f"--temperature {temperature}: expected a positive number")
    return temperature


class Prediction(nn.Cell):
    """Softened predictions of the teacher: task phase 2 (TinyBERT eq. 10).

    Args:
        temperature: of both softmaxes, or sigmoids; 1 in the paper. A regression task has none.
        hard_weight: of the loss against the labels; 0 in the paper.
        problem: what the outputs mean, one of `problems.PROBLEMS`.
    """

    needs_head, logits_only = True, True

    def __init__(self, temperature: float = 1.0, hard_weight: float = 0.0, problem: str = SINGLE):
        super().__init__()
        if not 0 <= hard_weight <= 1:
            raise UserError(f"--hard_label_weight {hard_weight}: expected a number from 0 to 1")
        self.temperature, self.hard_weight, self.tokens = _positive(temperature), hard_weight, problem == TOKEN
        self.soft, self.hard = _SOFT[problem], _HARD[problem]
        self.terms = ("soft_loss", "hard_loss") if hard_weight else ("soft_loss",)

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        weight, count = _counted(batch, self.tokens)
        mine = _answers(student)
        soft = self.soft(mine, _answers(teacher), self.temperature, weight, count)
        if self.hard_weight == 0:
            return soft, (soft,)
        hard = self.hard(mine, _labels(batch, self.tokens), weight, count)
        return (1 - self.hard_weight) * soft + self.hard_weight * hard, (soft, hard)


class Labels(nn.Cell):
    """The labels alone: fine-tuning of a teacher.

    Args:
        problem: what the outputs mean, one of `problems.PROBLEMS`.
    """

    needs_head, logits_only = True, True
    terms = ("label_loss",)

    def __init__(self, problem: str = SINGLE):
        super().__init__()
        self.loss, self.tokens = _HARD[problem], problem == TOKEN

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        weight, count = _counted(batch, self.tokens)
        loss = self.loss(_answers(student), _labels(batch, self.tokens), weight, count)
        return loss, (loss,)


class SoftLabels(nn.Cell):
    """The teacher's predictions alone, softened: T^2 KL(teacher || student) (Hinton et al., arXiv 1503.02531).

    Args:
        temperature: T of both softmaxes, or sigmoids. A regression task has squared errors, at any temperature.
        problem: what the outputs mean, one of `problems.PROBLEMS`.
    """

    needs_head, logits_only = True, True
    terms = ("soft_loss",)

    def __init__(self, temperature: float = 1.0, problem: str = SINGLE):
        super().__init__()
        self.temperature, self.loss, self.tokens = _positive(temperature), _SOFTENED[problem], problem == TOKEN

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        weight, count = _counted(batch, self.tokens)
        loss = self.loss(_answers(student), _answers(teacher), self.temperature, weight, count)
        return loss, (loss,)


class LogitSquares(nn.Cell):
    """Squared differences of student's and teacher's logits, summed over rows and classes (iclassifier)."""

    needs_head, logits_only = True, True
    terms = ("logit_loss",)

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        loss = losses.squared_logits(student["logits"], teacher["logits"], batch["weight"])
        return loss, (loss,)


class MaskedLM(nn.Cell):
    """The masked words alone: masked-language modelling (BERT, arXiv 1810.04805, section 3.1).

    Batches have `masked_lm_ids` (B, M) int32, `masked_lm_weights` (B, M) float32 and `masked` (), their sum over all ranks
    over the number of ranks.
    """

    needs_head, logits_only = True, False
    terms = ("mlm_loss",)

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        scores = student["mlm_logits"]
        flat = scores.reshape(-1, scores.shape[-1])
        targets, weights = batch["masked_lm_ids"].reshape(-1), batch["masked_lm_weights"].reshape(-1)
        loss = losses.cross_entropy(flat, targets, weights, batch["masked"])
        return loss, (loss,)


class MaskedSoftLabels(nn.Cell):
    """What the teacher says of the masked words, softened: T^2 KL (DistilBERT, arXiv 1910.01108, section 3).

    Batches are those of `MaskedLM`.
    """

    needs_head, logits_only = True, False
    terms = ("soft_loss",)

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = _positive(temperature)

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        mine, theirs = student["mlm_logits"], teacher["mlm_logits"]
        flat = mine.reshape(-1, mine.shape[-1]), theirs.reshape(-1, mine.shape[-1])
        weights = batch["masked_lm_weights"].reshape(-1)
        loss = losses.softened_kl(flat[0], flat[1], self.temperature, weights, batch["masked"])
        return loss, (loss,)


class Weighted(nn.Cell):
    """A sum of objectives, each with its weight; one of weight 0 is left out.

    Args:
        parts: weights and objectives.
    """

    def __init__(self, parts: Sequence[tuple[float, nn.Cell]]):
        super().__init__()
        kept = [(weight, part) for weight, part in parts if weight]
        if not kept:
            raise UserError("all weights of the loss are 0; expected one above 0")
        self.weights, self.parts = tuple(weight for weight, _ in kept), nn.CellList([part for _, part in kept])
        self.count = len(kept)
        self.terms = tuple(term for _, part in kept for term in part.terms)
        self.needs_head = any(part.needs_head for _, part in kept)
        self.logits_only = all(part.logits_only for _, part in kept)

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        total, terms = Tensor(0.0, ms.float32), ()
        for i in range(self.count):
            loss, found = self.parts[i](batch, student, teacher)
            total = total + self.weights[i] * loss
            terms = terms + found
        return total, terms


class Intermediate(Weighted):
    """Attention scores and hidden states, embeddings included: general distillation and task phase 1.

    Loss = sum over layers of the attention MSE + sum over embedding and layers of the hidden MSE, all weights 1
    (TinyBERT eq. 7 to 9). A map without attentions compares hidden states alone.

    Args:
        layers, fit, mode: as for `HiddenStates`.
    """

    def __init__(self, layers: LayerMap, fit: FitDense | Same, mode: str = "masked"):
        attention, hidden = AttentionScores(layers, mode), HiddenStates(layers, fit, mode)
        super().__init__([(float(bool(layers.attention)), attention), (1.0, hidden)])


def logits(alpha: float, temperature: float, problem: str = SINGLE) -> Weighted:
    """Labels and the teacher's predictions: alpha CE + (1 - alpha) T^2 KL(teacher || student), at temperature T.

    Raises:
        UserError: alpha is not in 0 to 1, or the temperature not above 0.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha {alpha}: expected a number from 0 (the teacher alone) to 1 (the labels alone)")
    return Weighted([(alpha, Labels(problem)), (1 - alpha, SoftLabels(temperature, problem))])


def check_heads(layers: LayerMap, student_heads: Sequence[int], teacher_heads: Sequence[int]) -> None:
    """See that attention scores can be compared.

    Args:
        student_heads, teacher_heads: of each layer.

    Raises:
        UserError: a layer of the student and the teacher's that it learns from differ in their number of heads.
    """
    # A map onto the hidden states alone compares no attention.
    for mine, layer in zip(student_heads, layers.attention, strict=False):
        if mine != teacher_heads[layer]:
            raise UserError(
                f"the student has {mine} attention heads, the teacher {teacher_heads[layer]} (layer {layer}); attention "
                "scores are compared head by head, so choose a student with num_attention_heads equal to the teacher's"
            )
