"""Weights that are pruned while they train: settings, masks in the graph, and when they are made anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..config import flag
from ..errors import UserError
from .criteria import CRITERIA, Movement
from .patterns import Blocks, masks, pattern
from .schedules import Schedule

_EVENTS = 40  # of a schedule whose frequency is left open


@dataclass
class Sparsity:
    """Sparsity of a group of weights."""

    pattern: str = flag("4x1", "N:M (N of every M inputs go), NxM blocks (outputs x inputs), 1xchannel, channelx1, 1x1")
    criterion: Literal["snip_momentum", "magnitude", "snip", "gradient", "movement"] = flag(
        "snip_momentum", "what tells which weights are needed least"
    )
    target_sparsity: float = flag(0.9, "part of the group's weights that are zero in the end")
    schedule: Literal["exp", "cos", "linear", "cube", "cubic"] = flag(
        "exp", "course of the sparsity; cubic is Zhu and Gupta's, fast at first, cube the third power, slow at first"
    )
    frequency: int = flag(0, "steps between two prunings; 0 makes it about 40 of them")
    start: int = flag(0, "step of the first pruning, which has sparsity 0; 0 takes sparsity_warmup_epochs")
    end: int = flag(0, "step of the last pruning; 0 takes cooldown_epochs")
    sparsity_warmup_epochs: float = flag(0.0, "epochs before the first pruning")
    cooldown_epochs: float = flag(1.0, "epochs after the last pruning")
    scope: Literal["global", "local"] = flag("global", "one threshold for all weights of the group, or one each")
    min_sparsity_per_layer: float = flag(0.0, "least sparsity of a weight of the group, as far as the course has come")
    max_sparsity_per_layer: float = flag(0.98, "largest sparsity of a weight of the group")
    include: str = flag(r"^encoder\.layers\.", "regular expression: the group's weights, by a part of their names")
    exclude: str = flag("", "regular expression: weights that stay dense; empty for none")
    movement_form: Literal["hard", "soft"] = flag(
        "hard", "movement: prune the lowest scores, or those under a threshold"
    )
    movement_threshold: float = flag(0.1, "movement, soft: sigmoid of a score below which a unit goes")
    movement_penalty: float = flag(0.0, "movement, soft: weight of the scores' sigmoids in the loss, in the end")
    movement_rate: float = flag(1.0, "movement: learning rate of the scores")

    def __post_init__(self) -> None:
        units = pattern(self.pattern)
        if not 0 <= self.target_sparsity < 1 or self.target_sparsity > units.most:
            raise UserError(
                f"--target_sparsity {self.target_sparsity}: expected 0 to {min(units.most, 0.9999):g} with --pattern "
                f"{self.pattern}"
            )
        if not 0 <= self.min_sparsity_per_layer <= self.target_sparsity <= self.max_sparsity_per_layer <= 1:
            raise UserError(
                f"--min_sparsity_per_layer {self.min_sparsity_per_layer}, --target_sparsity {self.target_sparsity}, "
                f"--max_sparsity_per_layer {self.max_sparsity_per_layer}: expected each not below the one before, from 0 to 1"
            )
        for name in ("include", "exclude"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise UserError(f"--{name} {getattr(self, name)!r}: {error}; expected a regular expression") from None
        soft = self.criterion == "movement" and self.movement_form == "soft"
        if soft and not isinstance(units, Blocks):
            raise UserError(f"--movement_form soft --pattern {self.pattern}: expected a pattern of blocks, such as 1x1")

    def takes(self, path: str) -> bool:
        """Whether a weight is one of the group."""
        return bool(re.search(self.include, path)) and not (self.exclude and re.search(self.exclude, path))

    def course(self, steps_an_epoch: int, steps: int) -> Schedule:
        """When to prune in a training of so many steps in all.

        Raises:
            UserError: the last pruning is not within it, or its criterion has seen no step when it first prunes.
        """
        start = self.start or int(self.sparsity_warmup_epochs * steps_an_epoch)
        end = self.end or max(int(steps - self.cooldown_epochs * steps_an_epoch), start)
        found = Schedule(
            self.schedule, self.target_sparsity, start, end, self.frequency or max((end - start + 1) // _EVENTS, 1)
        )
        if end > steps:
            raise UserError(f"pruning ends at step {end}; there are {steps}; expected an end within them")
        if end == 0 and CRITERIA[self.criterion] is not None:
            raise UserError(
                f"--criterion {self.criterion} prunes at step 0, before any gradient; give --epoch_size above "
                "--cooldown_epochs, a --start, or --criterion magnitude"
            )
        return found


class Masked(nn.Cell):
    """The mask of a weight, the scores it is made from, and, for movement, the values beneath the zeros.

    Args:
        path: of the weight.
        weight: (outputs, inputs).
        rule: cell of `criteria`; None keeps no scores.
    """

    def __init__(self, path: str, weight: Parameter, rule: nn.Cell | None):
        super().__init__()
        self.path, self.weight_shape, self.rule = path, tuple(weight.shape), rule
        self.mask = self._like(weight, "mask", np.ones)
        self.score = None if rule is None else self._like(weight, "score", np.zeros)
        self.beneath = self._like(weight, "beneath", np.zeros) if isinstance(rule, Movement) else None

    def _like(self, weight: Parameter, name: str, fill: Callable) -> Parameter:
        values = Tensor(fill(weight.shape, np.float32))
        return Parameter(values, name=f"{name}.{self.path}", requires_grad=False)

    def construct(self, weight: Tensor, gradient: Tensor, factor: Tensor) -> Tensor:
        """The gradient of what is not pruned; the scores are brought up to date with gradient x factor."""
        taken = gradient * self.mask
        if self.rule is not None:
            dense = weight if self.beneath is None else weight + self.beneath
            taken = ops.depend(taken, ops.assign(self.score, self.rule(self.score, dense, gradient * factor)))
        return taken

    def tensors(self) -> dict[str, Parameter]:
        """All that changes, by name."""
        found = {"mask": self.mask, "score": self.score, "beneath": self.beneath}
        found |= {"penalty": self.rule.penalty} if isinstance(self.rule, Movement) else {}
        return {f"{name}/{self.path}": value for name, value in found.items() if value is not None}


class MaskedUpdate(nn.Cell):
    """An update of the parameters that leaves pruned weights, whose values and moments are zero, at zero.

    Args:
        update: called with gradients and a factor for each.
        parameters: of the optimiser, in its order.
        masked: masks of some of them, by path.
        order: path of each parameter.
    """

    def __init__(
        self, update: nn.Cell, parameters: Sequence[Parameter], masked: Sequence[Masked], order: Sequence[str]
    ):
        super().__init__(auto_prefix=False)
        self.update, self.values, self.masked = update, parameters, nn.CellList(masked)
        places = {cell.path: place for place, cell in enumerate(masked)}
        self.places = tuple(places.get(path, -1) for path in order)
        self.count = len(self.places)

    def construct(self, gradients: tuple, factors: Tensor) -> Tensor:
        """Make a step with gradients[i] * factors[i]."""
        taken = ()
        for i in range(self.count):
            gradient = gradients[i]
            if self.places[i] >= 0:
                gradient = self.masked[self.places[i]](self.values[i], gradient, factors[i])
            taken = taken + (gradient,)
        return self.update(taken, factors)


class Pruner:
    """Prunes weights while they train.

    Args:
        trained: parameters by path; of these, matrices named `weight` may be pruned.
        groups: none of which takes another's weight.
        steps_an_epoch, steps: of the training, in all.
        say: told what is pruned, what is left dense because it does not divide, and each pruning.

    Raises:
        UserError: two groups take one weight, one takes none, or its prunings do not fit into the training.
    """

    def __init__(
        self,
        trained: Mapping[str, Parameter],
        groups: Sequence[Sparsity],
        steps_an_epoch: int,
        steps: int,
        say: Callable[[str], None],
    ):
        self.trained, self.say = trained, say
        self.parts = [
            _Part(group, group.course(steps_an_epoch, steps), cells)
            for group, cells in zip(groups, _choose(trained, groups, say), strict=True)
        ]
        self._moments: dict[str, tuple[Parameter, Parameter]] = {}

    @property
    def masked(self) -> list[Masked]:
        """The masks of all groups."""
        return [cell for part in self.parts for cell in part.cells]

    def around(self, update: nn.Cell, optimizer: nn.Optimizer) -> MaskedUpdate:
        """The update of the step, kept off what is pruned."""
        paths = {parameter.name: path for path, parameter in self.trained.items()}
        order = [paths[parameter.name] for parameter in optimizer.parameters]
        self._moments = dict(zip(order, zip(optimizer.moments1, optimizer.moments2, strict=True), strict=True))
        return MaskedUpdate(update, optimizer.parameters, self.masked, order)

    def tensors(self) -> dict[str, Parameter]:
        """What a checkpoint keeps, by name."""
        return {name: value for cell in self.masked for name, value in cell.tensors().items()}

    def begin(self, step: int, resumed: bool) -> None:
        """Stand at a step: after one that a checkpoint brought back, or before the first."""
        if resumed:
            for part in self.parts:
                part.event = part.schedule.due(step)
        else:
            self.at(step)

    def at(self, step: int) -> None:
        """Make the prunings that are due after so many steps."""
        due = [part for part in self.parts if part.schedule.due(step) != part.event]
        for part in due:
            part.event = part.schedule.due(step)
            for cell, mask in zip(part.cells, part.masks(self.trained), strict=True):
                self._prune(cell, mask)
        if due:
            self.say(f"pruned at step {step}: sparsity {self.sparsity():.4f}")

    def finished(self, step: int) -> bool:
        """Whether all prunings are behind."""
        return all(part.schedule.due(step) == part.schedule.last for part in self.parts)

    def sparsities(self) -> dict[str, float]:
        """The part of each weight of the groups that is pruned, by path."""
        return {cell.path: 1.0 - float(cell.mask.asnumpy().mean(dtype=np.float64)) for cell in self.masked}

    def sparsity(self) -> float:
        """The part of all weights of the groups that is pruned."""
        sizes = [np.prod(cell.weight_shape) for cell in self.masked]
        return float(np.average(list(self.sparsities().values()), weights=sizes))

    def _prune(self, cell: Masked, mask: np.ndarray) -> None:
        weight = self.trained[cell.path]
        values = weight.asnumpy()
        if cell.beneath is not None:
            values = values + cell.beneath.asnumpy()
            _set(cell.beneath, values * ~mask)
        _set(weight, values * mask)
        _set(cell.mask, mask)
        for moment in self._moments[cell.path]:
            _set(moment, moment.asnumpy() * mask)


@dataclass
class _Part:
    """A group, when it is pruned, its masks, and the latest event."""

    group: Sparsity
    schedule: Schedule
    cells: list[Masked]
    event: int = -1

    def masks(self, trained: Mapping[str, Parameter]) -> list[np.ndarray]:
        """The masks of the event."""
        group, units = self.group, pattern(self.group.pattern)
        scores = [_scores(cell, trained) for cell in self.cells]
        if group.criterion == "movement" and group.movement_form == "soft":
            for cell in self.cells:
                _set(cell.rule.penalty, np.float32(group.movement_penalty * self.schedule.progress(self.event)))
            kept = [1.0 / (1.0 + np.exp(-score)) for score in scores]
            return [units.mask(value, units.units(value) < group.movement_threshold) for value in kept]
        limits = self.schedule.sparsity(self.event), group.min_sparsity_per_layer, group.max_sparsity_per_layer
        if group.scope == "global":
            return masks(scores, units, *limits)
        return [masks([score], units, *limits)[0] for score in scores]


def _scores(cell: Masked, trained: Mapping[str, Parameter]) -> np.ndarray:
    """The scores of a weight (outputs, inputs): its magnitude where none are kept."""
    return np.abs(trained[cell.path].asnumpy()) if cell.score is None else cell.score.asnumpy()


def _set(parameter: Parameter, values: np.ndarray) -> None:
    parameter.set_data(Tensor(np.ascontiguousarray(values, np.float32)))


def _choose(
    trained: Mapping[str, Parameter], groups: Sequence[Sparsity], say: Callable[[str], None]
) -> Iterator[list[Masked]]:
    """The masks of each group's weights."""
    weights = {
        path: value for path, value in trained.items() if path.split(".")[-1] == "weight" and len(value.shape) == 2
    }
    taken: dict[str, int] = {}
    for number, group in enumerate(groups):
        cells, units, rule = [], pattern(group.pattern), CRITERIA[group.criterion]
        for path, weight in weights.items():
            if not group.takes(path):
                continue
            if path in taken:
                raise UserError(
                    f"{path} is in groups {taken[path] + 1} and {number + 1} of those to be pruned; expected one; give "
                    "each its own include, or exclude it from one"
                )
            taken[path] = number
            if units.misfit(weight.shape):
                say(f"{path} {tuple(weight.shape)} does not divide into {group.pattern}; it stays dense")
                continue
            cells.append(Masked(path, weight, rule and _rule(group)))
        if not cells:
            raise UserError(
                f"group {number + 1} of those to be pruned has no weight: include {group.include!r}, exclude "
                f"{group.exclude!r}, pattern {group.pattern}; the weights are {', '.join([*weights][:4])} ..."
            )
        count = sum(int(np.prod(cell.weight_shape)) for cell in cells)
        say(
            f"{len(cells)} matrices of {count} weights: {group.pattern} to {group.target_sparsity:g} by {group.criterion}"
        )
        yield cells


def _rule(group: Sparsity) -> nn.Cell:
    return Movement(group.movement_rate) if group.criterion == "movement" else CRITERIA[group.criterion]()
