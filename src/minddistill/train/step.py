"""The training step: one compiled function per shape of batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from ..errors import UserError

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
        if self.loss_scale_value < 1 or self.scale_factor < 2 or self.scale_window < 1 or self.accumulate < 1:
            raise UserError(
                f"loss_scale_value {self.loss_scale_value}, scale_factor {self.scale_factor}, scale_window "
                f"{self.scale_window}, accumulation_steps {self.accumulate}: expected at least 1, 2, 1 and 1"
            )


class LossScale(nn.Cell):
    """Dynamic loss scale (Micikevicius et al. 2018, arXiv 1710.03740): divided on overflow, multiplied after
    `window` steps in a row without one. Its two numbers are parameters, so that a run can be resumed."""

    def __init__(self, value: float, factor: int, window: int):
        super().__init__()
        self.value = Parameter(Tensor(value, ms.float32), name="loss_scale", requires_grad=False)
        self.good = Parameter(Tensor(0, ms.int32), name="good_steps", requires_grad=False)
        self.factor, self.window = float(factor), window

    def construct(self, finite: Tensor) -> Tensor:
        """Adjust the scale; returns the new one."""
        good = self.good + 1
        full = ops.logical_and(finite, good >= self.window)
        lowered = ops.maximum(self.value / self.factor, Tensor(1.0, ms.float32))
        raised = ops.select(full, self.value * self.factor, self.value.value())
        kept = ops.select(ops.logical_and(finite, ops.logical_not(full)), good, ops.zeros_like(good))
        value = ops.select(finite, raised, lowered)
        return ops.depend(value, (ops.assign(self.value, value), ops.assign(self.good, kept)))


def build_step(
    cell: nn.Cell,
    optimizer: nn.Optimizer,
    scale: LossScale,
    config: StepConfig,
    reducer: nn.Cell | None = None,
) -> Callable[..., tuple]:
    """Compile forward, backward, overflow check, reduction, clipping and update into one function.

    Args:
        cell: maps (batch, step) to (loss, terms).
        optimizer: over the parameters to train; its `global_step` counts updates.
        reducer: averages gradients over processes; None for one.

    Returns:
        step(batch, last=True): (loss, terms, overflow, loss scale used), all tensors on the device, so that nothing
        waits for the host. With `config.accumulate` > 1, `last` is False for all but the last micro-batch of an
        update. An overflow skips the update and lowers the scale.
    """
    buffers = optimizer.parameters.clone(prefix="accumulated", init="zeros") if config.accumulate > 1 else None
    share = 1.0 / config.accumulate

    def forward(batch: dict) -> tuple:
        loss, terms = cell(batch, optimizer.global_step.reshape(()))
        return loss * scale.value * share, (loss, terms)

    gradients = ms.value_and_grad(forward, None, optimizer.parameters, has_aux=True)

    @ms.jit
    def step(batch: dict) -> tuple:
        (_, (loss, terms)), grads = gradients(batch)
        used = scale.value * 1.0
        finite, result = _update(grads, used)
        return loss, terms, ops.logical_not(finite), ops.depend(used, result)

    @ms.jit
    def gather(batch: dict) -> tuple:
        (_, (loss, terms)), grads = gradients(batch)
        used = scale.value * 1.0
        added = [ops.assign_add(buffer, grad) for buffer, grad in zip(buffers, grads)]
        return loss, terms, Tensor(False, ms.bool_), ops.depend(used, added)

    @ms.jit
    def finish(batch: dict) -> tuple:
        (_, (loss, terms)), grads = gradients(batch)
        used = scale.value * 1.0
        total = [buffer + grad for buffer, grad in zip(buffers, grads)]
        finite, result = _update(total, used)
        cleared = [ops.assign(buffer, ops.zeros_like(buffer)) for buffer in ops.depend(buffers, result)]
        return loss, terms, ops.logical_not(finite), ops.depend(used, cleared)

    def _update(grads: tuple, used: Tensor) -> tuple:
        if reducer is not None:
            grads = reducer(grads)
        squares = [(grad * grad).sum() for grad in grads]
        total = ops.addn(squares)
        finite = ops.isfinite(total)
        if config.clip == "global":
            norm = ops.sqrt(total) / used
            factor = config.clip_norm / ops.maximum(norm, Tensor(config.clip_norm, ms.float32)) / used
            grads = [grad * factor for grad in grads]
        elif config.clip == "tensor":
            norms = [ops.sqrt(square) / used for square in squares]
            least = Tensor(config.clip_norm, ms.float32)
            grads = [g * (config.clip_norm / ops.maximum(n, least) / used) for g, n in zip(grads, norms)]
        else:
            grads = [grad / used for grad in grads]
        result = used
        if finite:
            result = ops.depend(used, optimizer(tuple(grads)))
        adjusted = scale(finite)
        return finite, ops.depend(result, adjusted)

    if config.accumulate == 1:
        return lambda batch, last=True: step(batch)
    return lambda batch, last=True: finish(batch) if last else gather(batch)
