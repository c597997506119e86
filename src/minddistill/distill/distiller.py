"""Student, teacher and objective in one cell."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn


class CachedTeacher(nn.Cell):
    """A teacher's outputs out of a batch that a cache has filled; called like the teacher itself.

    Args:
        hidden, attention: how many of each the batch brings, besides the logits.
    """

    def __init__(self, hidden: int = 0, attention: int = 0):
        super().__init__()
        self.hidden = tuple(f"teacher_hidden_{index}" for index in range(hidden))
        self.attention = tuple(f"teacher_attention_{index}" for index in range(attention))

    def construct(self, batch: dict, step: Tensor | None = None, first_only: bool = False) -> dict:
        hidden = [batch[name].astype(ms.float32) for name in self.hidden]
        attentions = [batch[name].astype(ms.float32) for name in self.attention]
        return {"hidden": hidden, "attentions": attentions, "logits": batch["teacher_logits"]}


class Ensemble(nn.Cell):
    """Several teachers as one, which says the mean of their logits.

    That is the geometric mean of their predictions (Hinton et al., arXiv 1503.02531, section 1): one tensor (B, C) for
    every temperature, and for regression too.
    """

    def __init__(self, teachers: Sequence[nn.Cell]):
        super().__init__()
        self.teachers, self.count = nn.CellList(teachers), len(teachers)

    def construct(self, batch: dict, step: Tensor | None = None, first_only: bool = False) -> dict:
        total = Tensor(0.0, ms.float32)
        for i in range(self.count):
            total = total + self.teachers[i](batch, step, first_only)["logits"]
        return {"logits": total / self.count}


class Distiller(nn.Cell):
    """Maps a batch to the loss and its parts, named by `terms`.

    The teacher is called without a step and so never drops anything out, nor does a student without one. The
    teacher's parameters take no gradient, and parts of it that the objective does not ask for are not computed: graph
    mode removes them.

    Args:
        student: called with (batch, step, first_only); trained. `first_only` tells that the objective reads logits alone.
        teacher: called with (batch, None, first_only), frozen; None where the objective needs none.
        objective: called with (batch, student outputs, teacher outputs).
    """

    def __init__(self, student: nn.Cell, teacher: nn.Cell | None, objective: nn.Cell):
        super().__init__()
        self.student, self.teacher, self.objective = student, teacher, objective
        self.terms, self.first_only = objective.terms, objective.logits_only
        student.set_train(True)
        if teacher is not None:
            teacher.set_train(False)
            for parameter in teacher.get_parameters():
                parameter.requires_grad = False

    def construct(self, batch: dict, step: Tensor | None = None) -> tuple[Tensor, tuple]:
        taught = {} if self.teacher is None else self.teacher(batch, None, self.first_only)
        return self.objective(batch, self.student(batch, step, self.first_only), taught)

    def trained(self) -> dict[str, Parameter]:
        """The parameters that the objective moves, by path: without the heads where it does not look at them."""
        found = dict(self.student.parameters_and_names())
        if not self.objective.needs_head:
            found = {path: value for path, value in found.items() if path.removeprefix("model.").startswith("encoder.")}
        fit = {f"objective.{path}": value for path, value in self.objective.parameters_and_names()}
        return {path: value for path, value in (found | fit).items() if value.requires_grad}
