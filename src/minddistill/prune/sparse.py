"""Weights that are pruned while they train: settings, masks in the graph, and when they are made anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ..config import flag, unusual
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
    movement_threshold: float = flag(0.1, "movement, soft: sigmoid of a score below which a unit goes; below 0.5")
    movement_penalty: float = flag(0.0, "movement, soft: weight of the scores' sigmoids in the loss, in the end")
    movement_rate: float = flag(
        1.0, "movement: learning rate of the scores, whose order, and so the hard form, it leaves"
    )

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
        if self.soft and not isinstance(units, Blocks):
            raise UserError(f"--movement_form soft --pattern {self.pattern}: expected a pattern of blocks, such as 1x1")
        if not 0 < self.movement_threshold < 0.5:
            raise UserError(
                f"--movement_threshold {self.movement_threshold}: expected more than 0 and less than 0.5, the sigmoid of "
                "a score that has not moved"
            )

    @property
    def soft(self) -> bool:
        """Whether a threshold of the scores decides, in place of the target."""
        return self.criterion == "movement" and self.movement_form == "soft"

    def unread(self) -> set[str]:
        """The flags that have no part in the criterion."""
        soft = {"movement_threshold", "movement_penalty", "movement_rate"}
        if self.criterion != "movement":
            return soft | {"movement_form"}
        counts = {"target_sparsity", "schedule", "scope", "min_sparsity_per_layer", "max_sparsity_per_layer"}
        return counts if self.soft else soft - {"movement_rate"}

    def refuse_twice(self) -> None:
        """See that the pruning's first and last step are told in one way each.

        Raises:
            UserError: one is told as a step and in epochs.
        """
        given = unusual(self)
        for step, epochs in (("start", "sparsity_warmup_epochs"), ("end", "cooldown_epochs")):
            if step in given and epochs in given:
                raise UserError(
                    f"--{step} {given[step]}, --{epochs} {given[epochs]:g}: the same told twice; give one of them"
                )

    def takes(self, path: str) -> bool:
        """Whether a weight is one of the group."""
        return bool(re.search(self.include, path)) and not (self.exclude and re.search(self.exclude, path))

    def course(self, steps_an_epoch: int, steps: int) -> Schedule:
        """When to prune in a training of so many steps in all.

        Raises:
            UserError: the last pruning is not within it, or its criterion has seen no step when it first prunes.
        """
        start = self.start or int(self.sparsity_warmup_epochs * steps_an_epoch)
        cooldown = int(self.cooldown_epochs * steps_an_epoch)
        if start and not self.end and steps - cooldown < start:
            raise UserError(
                f"pruning starts at step {start}; of {steps} steps, the last {cooldown} are --cooldown_epochs "
                f"{self.cooldown_epochs:g}; expected a start before them; give more --epoch_size or --train_steps, less "
                "--cooldown_epochs, or an --end"
            )
        end = self.end or max(steps - cooldown, start)
        if self.frequency > end - start > 0:
            raise UserError(
                f"--frequency {self.frequency}: longer than the pruning, from step {start} to {end}; expected at most "
                f"{end - start}"
            )
        found = Schedule(
            self.schedule, self.target_sparsity, start, end, self.frequency or max((end - start + 1) // _EVENTS, 1)
        )
        if end > steps:
            raise UserError(f"pruning ends at step {end}; there are {steps}; expected an end within them")
        if start == found.last == 0 and CRITERIA[self.criterion] is not None:
            raise UserError(
                f"--criterion {self.criterion} prunes at step 0, before any gradient: of {steps} steps, the last {cooldown} "
                "are --cooldown_epochs; give more --epoch_size or --train_steps, less --cooldown_epochs, or --criterion "
                "magnitude"
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
        self.path, self.shape, self.rule = path, tuple(weight.shape), rule
        self.mask = self._like(weight, "mask", np.ones)
        self.score = None if rule is None else self._like(weight, "score", np.zeros)
        self.beneath = None
        if isinstance(rule, Movement):
            self.beneath = self._like(weight, "beneath", np.zeros)
            rule.penalty.name = f"penalty.{path}"

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

    def cover(self, weight: Tensor, mask: Tensor, penalty: Tensor) -> Tensor:
        """The weight under a new mask; for movement, its other values go beneath and those that come back are there."""
        ops.assign(self.mask, mask)
        if self.beneath is None:
            return weight * mask
        dense = weight + self.beneath
        ops.assign(self.rule.penalty, penalty)
        ops.assign(self.beneath, dense * (1.0 - mask))
        return dense * mask

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
        masked: masks of some of them.
        order: path of each parameter.
    """

    def __init__(self, update: nn.Cell, parameters: ParameterTuple, masked: nn.CellList, order: Sequence[str]):
        super().__init__(auto_prefix=False)
        self.update, self.values, self.masked = update, parameters, masked
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


class _Apply(nn.Cell):
    """Brings weights, and what goes with them, under new masks.

    A compiled cell: what the host sets in a parameter, a step that has been compiled before does not see.

    Args:
        masked: masks of weights.
        weights: these weights.
        moments: the optimiser's two of each.
    """

    def __init__(self, masked: nn.CellList, weights: Sequence[Parameter], moments: Sequence[tuple]):
        super().__init__(auto_prefix=False)
        self.masked, self.weights = masked, ParameterTuple(weights)
        self.moments1 = ParameterTuple([first for first, _ in moments])
        self.moments2 = ParameterTuple([second for _, second in moments])
        self.count = len(weights)

    def construct(self, masks: tuple, penalties: Tensor) -> Tensor:
        """Set masks, (outputs, inputs) of 0 and 1, and the penalties of movement's scores, one a weight."""
        for i in range(self.count):
            mask = masks[i]
            ops.assign(self.weights[i], self.masked[i].cover(self.weights[i], mask, penalties[i]))
            ops.assign(self.moments1[i], self.moments1[i] * mask)
            ops.assign(self.moments2[i], self.moments2[i] * mask)
        return penalties


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
            for group, cells in zip(groups, _masked(trained, groups, say), strict=True)
        ]
        self.masked = nn.CellList([cell for part in self.parts for cell in part.cells], auto_prefix=False)
        self.masks = {cell.path: np.ones(cell.shape, bool) for cell in self.masked}
        """True at weights that are not pruned, by path."""
        self._apply: _Apply | None = None

    def around(self, update: nn.Cell, optimizer: nn.Optimizer) -> MaskedUpdate:
        """The update of the step, kept off what is pruned; called before anything is pruned."""
        paths = {parameter.name: path for path, parameter in self.trained.items()}
        order = [paths[parameter.name] for parameter in optimizer.parameters]
        moments = dict(zip(order, zip(optimizer.moments1, optimizer.moments2, strict=True), strict=True))
        mine = [cell.path for cell in self.masked]
        self._apply = _Apply(self.masked, [self.trained[path] for path in mine], [moments[path] for path in mine])
        return MaskedUpdate(update, optimizer.parameters, self.masked, order)

    def tensors(self) -> dict[str, Parameter]:
        """What a checkpoint keeps, by name."""
        return {name: value for cell in self.masked for name, value in cell.tensors().items()}

    def begin(self, step: int, resumed: bool) -> None:
        """Stand at a step: after one that a checkpoint brought back, or before the first."""
        if not resumed:
            self.at(step)
            return
        self.masks = {cell.path: cell.mask.asnumpy() > 0 for cell in self.masked}
        for part in self.parts:
            part.event = part.schedule.due(step)

    def at(self, step: int) -> None:
        """Make the prunings that are due after so many steps."""
        due = [part for part in self.parts if part.schedule.due(step) != part.event]
        if not due:
            return
        for part in due:
            part.event = part.schedule.due(step)
            self.masks |= part.masks(self.trained)
        penalties = [part.penalty for part in self.parts for _ in part.cells]
        masks = tuple(Tensor(mask.astype(np.float32)) for mask in self.masks.values())
        self._apply(ms.mutable(masks), Tensor(penalties, ms.float32))
        self.say(f"pruned at step {step}: sparsity {self.sparsity():.4f}")

    @property
    def finished(self) -> bool:
        """Whether all prunings are behind."""
        return all(part.event == part.schedule.last for part in self.parts)

    def sparsity(self) -> float:
        """The part of all weights with a mask that is pruned."""
        return 1.0 - sum(int(mask.sum()) for mask in self.masks.values()) / sum(
            mask.size for mask in self.masks.values()
        )


@dataclass
class _Part:
    """A group, when it is pruned, its masks, and the latest event."""

    group: Sparsity
    schedule: Schedule
    cells: list[Masked]
    event: int = -1

    def masks(self, trained: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
        """The masks of the event, by path: True at weights that stay."""
        group, units = self.group, pattern(self.group.pattern)
        scores = [_scores(cell, trained) for cell in self.cells]
        limits = self.schedule.sparsity(self.event), group.min_sparsity_per_layer, group.max_sparsity_per_layer
        if group.soft:
            kept = [1.0 / (1.0 + np.exp(-score)) for score in scores]
            found = [units.mask(value, units.units(value) < group.movement_threshold) for value in kept]
        elif group.scope == "global":
            found = masks(scores, units, *limits)
        else:
            found = [masks([score], units, *limits)[0] for score in scores]
        return dict(zip([cell.path for cell in self.cells], found, strict=True))

    @property
    def penalty(self) -> float:
        """The weight that soft movement's scores have in the loss from the event on."""
        return self.group.movement_penalty * self.schedule.progress(max(self.event, 0)) if self.group.soft else 0.0


def _scores(cell: Masked, trained: Mapping[str, Parameter]) -> np.ndarray:
    """The scores of a weight (outputs, inputs): its magnitude where none are kept."""
    return np.abs(trained[cell.path].asnumpy()) if cell.score is None else cell.score.asnumpy()


def chosen(shapes: Mapping[str, Sequence[int]], groups: Sequence[Sparsity]) -> list[tuple[list[str], list[str]]]:
    """The weights of each group, by path: those that divide into its pattern, and those that do not.

    Args:
        shapes: of all parameters, by path; matrices named `weight` may be pruned.

    Raises:
        UserError: two groups take one weight, or one takes none.
    """
    matrices = [path for path, shape in shapes.items() if path.split(".")[-1] == "weight" and len(shape) == 2]
    taken: dict[str, int] = {}
    found = []
    for number, group in enumerate(groups):
        units, fitting, others = pattern(group.pattern), [], []
        for path in filter(group.takes, matrices):
            if path in taken:
                raise UserError(
                    f"{path} is in groups {taken[path] + 1} and {number + 1} of those to be pruned; expected one; give "
                    "each its own include, or exclude it from one"
                )
            taken[path] = number
            (others if units.misfit(shapes[path]) else fitting).append(path)
        if not fitting:
            raise UserError(
                f"group {number + 1} of those to be pruned has no weight: include {group.include!r}, exclude "
                f"{group.exclude!r}, pattern {group.pattern}; the weights are {', '.join(matrices[:4])} ..."
            )
        found.append((fitting, others))
    return found


def _masked(
    trained: Mapping[str, Parameter], groups: Sequence[Sparsity], say: Callable[[str], None]
) -> Iterator[list[Masked]]:
    """The masks of each group's weights."""
    parts = chosen({path: value.shape for path, value in trained.items()}, groups)
    for group, (fitting, others) in zip(groups, parts, strict=True):
        for path in others:
            say(f"{path} {tuple(trained[path].shape)} does not divide into {group.pattern}; it stays dense")
        rule = CRITERIA[group.criterion]
        cells = [Masked(path, trained[path], rule and _rule(group)) for path in fitting]
        count = sum(int(np.prod(cell.shape)) for cell in cells)
        goal = (
            f"where scores are low (soft, {group.movement_threshold:g})"
            if group.soft
            else f"to {group.target_sparsity:g}"
        )
        say(f"{len(cells)} matrices of {count} weights: {group.pattern} {goal} by {group.criterion}")
        yield cells


def _rule(group: Sparsity) -> nn.Cell:
    return Movement(group.movement_rate) if group.criterion == "movement" else CRITERIA[group.criterion]()
