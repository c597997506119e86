"""AdamWeightDecay with BERT's parameter groups, and its learning-rate schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from .. import native
from ..errors import UserError

SCHEDULES = ("original", "port", "constant")
_NO_DECAY = ("gamma", "beta", "bias")


@dataclass(frozen=True)
class OptimConfig:
    """Numbers of the optimiser; see `Schedule` for the learning rate's course."""

    learning_rate: float
    end_learning_rate: float = 1e-14
    power: float = 1.0
    weight_decay: float = 0.01
    eps: float = 1e-6
    schedule: str = "original"
    warmup_ratio: float = 0.1

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"lr_schedule {self.schedule!r}: expected one of {', '.join(SCHEDULES)}")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate {self.learning_rate}: expected a positive number")
        if not 0 < self.end_learning_rate <= self.learning_rate:
            raise UserError(f"end_learning_rate {self.end_learning_rate}: expected above 0, at most learning_rate")
        if not self.eps > 0:
            raise UserError(f"eps {self.eps}: expected a positive number")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"warmup_ratio {self.warmup_ratio}: expected a number from 0 up to, not including, 1")


class Schedule(nn.learning_rate_schedule.LearningRateSchedule):
    """Learning rate at a step s of t, with warm-up over the first w of all steps, p = s / t.

    original: lr p / w, then end + (lr - end) ((1 - p) / (1 - w)) ^ power, continuous at p = w (TinyBERT, BertAdam).
    port: lr p / w, then end + (lr - end) (1 - p) ^ power, which jumps down at p = w (MindSpore's model zoo).
    constant: lr.
    """

    def __init__(self, config: OptimConfig, total_steps: int):
        super().__init__()
        self.config = config
        self.total = float(max(total_steps, 1))
        self.warmup = config.warmup_ratio
        self.rate, self.end, self.power = config.learning_rate, config.end_learning_rate, config.power
        self.kind = config.schedule
        self.span = 1.0 - config.warmup_ratio if config.schedule == "original" else 1.0

    def construct(self, global_step: Tensor) -> Tensor:
        if self.kind == "constant":
            return global_step.astype(ms.float32) * 0.0 + self.rate
        progress = ops.minimum(global_step.astype(ms.float32) / self.total, Tensor(1.0, ms.float32))
        decayed = self.end + (self.rate - self.end) * ops.pow((1.0 - progress) / self.span, self.power)
        if self.warmup == 0:
            return decayed
        return ops.select(progress < self.warmup, self.rate * progress / self.warmup, decayed)


def build_optimizer(trained: Mapping[str, Parameter], config: OptimConfig, total_steps: int) -> nn.Optimizer:
    """AdamWeightDecay (decoupled decay, no bias correction); biases and layer norms do not decay."""
    plain = [value for path, value in trained.items() if path.split(".")[-1].startswith(_NO_DECAY)]
    decayed = [value for path, value in trained.items() if not path.split(".")[-1].startswith(_NO_DECAY)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]] + [{"order_params": list(trained.values())}]
    optimizer = nn.AdamWeightDecay(groups, learning_rate=Schedule(config, total_steps), eps=config.eps)
    names = {value.name for value in plain}
    optimizer.decays = tuple(0.0 if p.name in names else config.weight_decay for p in optimizer.parameters)
    return optimizer


class Update(nn.Cell):
    """An optimiser from `build_optimizer`, given gradients and what to multiply each by.

    On CPU, where `minddistill.native` is there, parameters and moments are changed in place by its kernel, with the
    multiplication in the same pass. Graph mode does not know of it: only a branch that is taken after all gradients are
    there, as the step's after its check for overflow, may call this.
    """

    def __init__(self, optimizer: nn.Optimizer):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.adam = native.operator("adam")
        betas = float(optimizer.beta1.asnumpy()[0]), float(optimizer.beta2.asnumpy()[0])
        eps = float(optimizer.eps.asnumpy()[0])
        self.numbers = Tensor([[*betas, eps, decay] for decay in optimizer.decays], ms.float32)

    def construct(self, gradients: tuple, factors: Tensor) -> Tensor:
        """Make a step with gradients[i] * factors[i]."""
        if self.adam is None:
            return self.optimizer(tuple([gradient * factors[i] for i, gradient in enumerate(gradients)]))
        optimizer = self.optimizer
        rate = optimizer.get_lr().reshape(1)
        state = tuple(optimizer.parameters) + tuple(optimizer.moments1) + tuple(optimizer.moments2)
        changed = self.adam(*(state + tuple(gradients) + (rate, factors, self.numbers)))
        return ops.assign_add(optimizer.global_step, ops.depend(optimizer.global_step_increase_tensor, changed))
