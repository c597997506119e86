"""Meta pseudo labels (Pham et al., arXiv 2003.10580): a teacher that learns from what its labels do to a student.

The student takes a step on labels that the teacher drew for a batch without labels. What that step did to its loss on a
labelled batch, h = L(before) - L(after), is in the first order the learning rate times the product of the two gradients,
the coefficient of the teacher's gradient in equation 12: labels that helped become likelier.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from . import losses

_MEMORY = 0.99


def drawn(logits: Tensor, draw: Tensor) -> Tensor:
    """Classes (B,) int32 drawn from softmax(logits (B, C)) by numbers `draw` (B,) from 0 up to 1."""
    below = ops.cumsum(ops.softmax(ops.stop_gradient(logits), -1), -1)[:, :-1] <= draw.reshape(-1, 1)
    return below.astype(ms.int32).sum(-1).astype(ms.int32)


class PseudoLabels(nn.Cell):
    """The student's objective: labels drawn from the teacher's predictions with the batch's `draw` (B,)."""

    needs_head, logits_only = True, True
    terms = ("pseudo_loss",)

    def construct(self, batch: dict, student: dict, teacher: dict) -> tuple[Tensor, tuple]:
        labels = drawn(teacher["logits"], batch["draw"])
        loss = losses.cross_entropy(student["logits"], labels, batch["weight"], batch["rows"])
        return loss, (loss,)


class TeacherLoss(nn.Cell):
    """The teacher's loss: feedback x cross-entropy with the labels it drew + cross-entropy with the true ones.

    Batches are those of `data.loader.PairedLoader`, with `feedback` () besides. What draws labels does so without dropout,
    here as in the student's step, so that both see the same ones.

    Args:
        teacher: called with (batch, step, True).
    """

    terms = ("feedback_loss", "teacher_label_loss")

    def __init__(self, teacher: nn.Cell):
        super().__init__(auto_prefix=False)
        self.teacher = teacher

    def construct(self, batch: dict, step: Tensor) -> tuple[Tensor, tuple]:
        said = self.teacher(batch, None, True)["logits"]
        pseudo = losses.cross_entropy(said, drawn(said, batch["draw"]), batch["weight"], batch["rows"])
        labelled = {
            "input_ids": batch["labelled_input_ids"],
            "input_mask": batch["labelled_input_mask"],
            "segment_ids": batch["labelled_segment_ids"],
            "row": batch["labelled_row"],
        }
        known = self.teacher(labelled, step, True)["logits"]
        label = losses.cross_entropy(
            known, batch["labelled_label_ids"], batch["labelled_weight"], batch["labelled_rows"]
        )
        feedback = batch["feedback"] * pseudo
        return feedback + label, (feedback, label)


class LabelledLoss(nn.Cell):
    """A model's loss on a labelled batch, without dropout."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, batch: dict) -> Tensor:
        logits = self.model(batch, None, True)["logits"]
        return losses.cross_entropy(logits, batch["label_ids"], batch["weight"], batch["rows"])


class Feedback(nn.Cell):
    """The coefficient h of the teacher's gradient, less its own running mean.

    The mean takes out what every step does to the student, as the authors' code has it, whatever the labels were.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.mean = Parameter(Tensor(0.0, ms.float32), name="feedback_mean", requires_grad=False)

    def construct(self, before: Tensor, after: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
        """Of the student's labelled loss () before and after its step: h, and h less the mean of the steps before; both
        are 0 of a step that was skipped, which says nothing of its labels."""
        h = before - after
        rest = (h - self.mean) * (1.0 - skipped.astype(ms.float32))
        changed = ops.assign(self.mean, self.mean + (1.0 - _MEMORY) * rest)
        return h, ops.depend(rest, changed)
