"""The training step: one compiled function per shape of batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, communication, nn, ops

from .. import native
from ..errors import UserError
from .optim import Update

_PART = "part_of_update"  # () float32, in a batch: the micro-batches so far, of those of a whole update
CLIPS = ("global", "tensor", "off")


@dataclass(frozen=True)
class StepConfig:
    """Loss scale, clipping and accumulation."""

    loss_scale_value: float = 2.0**8
    scale_factor: int = 2
    scale_window: int = 50
    clip: str = "global"
    clip_norm: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.clip not in CLIPS:
            raise UserError(f"--clip {self.clip!r}: expected one of {', '.join(CLIPS)}")
        if not self.clip_norm > 0:
            raise UserError(f"--clip_norm {self.clip_norm}: expected a positive number; --clip off clips nothing")
        if self.loss_scale_value < 1 or self.scale_factor < 2 or self.scale_window < 1 or self.accumulate < 1:
            raise UserError(
                f"loss_scale_value {self.loss_scale_value}, scale_factor {self.scale_factor}, scale_window "
                f"{self.scale_window}, accumulation_steps {self.accumulate}: expected at least 1, 2, 1 and 1"
            )


class LossScale(nn.Cell):
    """Dynamic loss scale (Micikevicius et al. 2018, arXiv 1710.03740): divided on overflow, multiplied after
    `window` steps in a row without one, up to 2^24. Its two numbers are parameters, so that a run can be resumed."""

    def __init__(self, value: float, factor: int, window: int):
        super().__init__()
        self.value = Parameter(Tensor(value, ms.float32), name="loss_scale", requires_grad=False)
        self.good = Parameter(Tensor(0, ms.int32), name="good_steps", requires_grad=False)
        self.factor = Tensor(factor, ms.float32)
        self.least = Tensor(1.0, ms.float32)
        # In float32 nothing would overflow below 2^60, and from then on a step of each window would be lost.
        self.most = Tensor(2.0**24, ms.float32)
        self.window = window

    def construct(self, finite: Tensor) -> Tensor:
        """Adjust the scale; returns the new one."""
        good = self.good + 1
        full = ops.logical_and(finite, good >= self.window)
        lowered = ops.maximum(self.value / self.factor, self.least)
        higher = self.value * self.factor
        raised = ops.select(ops.logical_and(full, higher <= self.most), higher, self.value * self.least)
        kept = ops.select(ops.logical_and(finite, ops.logical_not(full)), good, good * 0)
        value = ops.select(finite, raised, lowered)
        return ops.depend(value, (ops.assign(self.value, value), ops.assign(self.good, kept)))


class _Scaled(nn.Cell):
    """The loss of a batch times the loss scale, and what the host may log."""

    def __init__(self, cell: nn.Cell, scale: LossScale, global_step: Parameter, share: float):
        super().__init__(auto_prefix=False)
        self.cell, self.scale, self.global_step = cell, scale, global_step
        self.share = share

    def construct(self, batch: dict) -> tuple:
        loss, terms = self.cell(batch, self.global_step.reshape(()))
        return loss * self.scale.value * self.share, (loss, terms)


class _Step(nn.Cell):
    """Gradients of a micro-batch; with `update`, also their reduction, check, clipping and the update.

    All of it is methods of a cell: parameters reached through a closure are not traced in graph mode.
    """

    def __init__(
        self,
        scaled: _Scaled,
        optimizer: nn.Optimizer,
        config: StepConfig,
        optimise: nn.Cell,
        reducer: nn.Cell | None,
        buffers: ParameterTuple | None,
        update: bool,
    ):
        super().__init__(auto_prefix=False)
        self.gradients = ms.value_and_grad(scaled, None, optimizer.parameters, has_aux=True)
        self.scaled, self.scale, self.reducer = scaled, scaled.scale, reducer
        self.buffers, self.update, self.clip = buffers, update, config.clip
        self.optimise = optimise
        self.largest = Tensor(config.clip_norm, ms.float32)
        self.one = Tensor(1.0, ms.float32)
        self.no = Tensor(False, ms.bool_)
        self.all_reduce = ops.AllReduce() if reducer is not None else None
        self.processes = communication.get_group_size() if reducer is not None else 1
        self.square_sums = native.operator("square_sums")

    def construct(self, batch: dict) -> tuple:
        (_, (loss, terms)), grads = self.gradients(batch)
        used = self.scale.value * self.one
        divisor = used
        if not self.update:
            added = [ops.assign_add(buffer, grad) for buffer, grad in zip(self.buffers, grads)]
            return loss, terms, self.no, ops.depend(used, added)
        if self.buffers is not None:
            grads = [buffer + grad for buffer, grad in zip(self.buffers, grads)]
            cleared = [ops.assign(buffer, ops.zeros_like(buffer)) for buffer in self.buffers]
            used = ops.depend(used, cleared)
            divisor = used * batch[_PART]
        if self.reducer is not None:
            grads = self.reducer(tuple(grads))
            loss = self.all_reduce(loss) / self.processes
            terms = tuple([self.all_reduce(term) / self.processes for term in terms])
        squares = self.squares(grads)
        total = squares.sum()
        finite = ops.isfinite(total)
        adjusted = self.scale(finite)
        if finite:
            adjusted = ops.depend(adjusted, self.optimise(grads, self.factors(squares, total, divisor)))
        return loss, terms, ops.logical_not(finite), ops.depend(used, adjusted)

    def squares(self, grads: tuple) -> Tensor:
        """The sum of squares of each gradient, (n,)."""
        if self.square_sums is not None:
            return self.square_sums(*[grad.astype(ms.float32) for grad in grads])
        return ops.stack([(grad * grad).sum().astype(ms.float32) for grad in grads])

    def factors(self, squares: Tensor, total: Tensor, divisor: Tensor) -> Tensor:
        """What divides each gradient, by the loss scale for one, and clips it, (n,)."""
        if self.clip == "tensor":
            return self.largest / ops.maximum(ops.sqrt(squares) / divisor, self.largest) / divisor
        factor = self.one / divisor
        if self.clip == "global":
            factor = self.largest / ops.maximum(ops.sqrt(total) / divisor, self.largest) / divisor
        return factor * ops.ones_like(squares)


def build_step(
    cell: nn.Cell,
    optimizer: nn.Optimizer,
    scale: LossScale,
    config: StepConfig,
    reducer: nn.Cell | None = None,
    optimise: nn.Cell | None = None,
) -> Callable[..., tuple]:
    """Compile forward, backward, overflow check, reduction, clipping and update into one function.

    Args:
        cell: maps (batch, step) to the loss and a tuple of its parts, whose names are its attribute `terms`.
        optimizer: over the parameters to train; its `global_step` counts updates.
        reducer: averages gradients over processes; None for one.
        optimise: called with gradients and what to multiply each by; the optimiser's `Update` by default.

    Returns:
        step(batch, last=True): (loss, its parts by name, overflow, loss scale used), all tensors on the device, so that
        nothing waits for the host. With `config.accumulate` > 1, `last` is False for all but the last micro-batch of
        an update, which may be of fewer: it is of their mean. An overflow skips the update and lowers the scale.
    """
    buffers = optimizer.parameters.clone(prefix="accumulated", init="zeros") if config.accumulate > 1 else None
    scaled = _Scaled(cell, scale, optimizer.global_step, 1.0 / config.accumulate)
    parts = scaled, optimizer, config, optimise or Update(optimizer), reducer, buffers
    update = _Step(*parts, update=True)
    gather = _Step(*parts, update=False) if buffers is not None else update

    taken = 0  # micro-batches of the update under way

    def run(batch: dict[str, Tensor], last: bool = True) -> tuple:
        nonlocal taken
        if buffers is not None:
            taken += 1
            batch = batch | {_PART: Tensor(taken / config.accumulate, ms.float32)}
            taken = 0 if last else taken
        # Tensors in a plain dict count as constants: each batch would be compiled anew.
        loss, terms, overflow, used = (update if last else gather)(ms.mutable(batch))
        return loss, dict(zip(cell.terms, terms)), overflow, used

    return run
