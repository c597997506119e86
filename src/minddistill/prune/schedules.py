"""How sparsity rises: a course from 0 to the target, taken in even steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UserError

# Sparsity where a part t of the way is done and the target is s.
COURSES = {
    "exp": lambda s, t: 1.0 - (1.0 - s) ** t,
    "cos": lambda s, t: s * (1.0 - math.cos(math.pi * t / 2.0)),
    "linear": lambda s, t: s * t,
    "cube": lambda s, t: s * t**3,  # slow at first
    "cubic": lambda s, t: s * (1.0 - (1.0 - t) ** 3),  # fast at first (Zhu and Gupta 2017, arXiv 1710.01878)
}


@dataclass(frozen=True)
class Schedule:
    """When weights are pruned, and how many of them.

    Events are at steps start, start + frequency, ... up to end: the first has sparsity 0, the last the target. Where
    there is room for one only, it has the target.
    """

    course: str
    target: float
    start: int
    end: int
    frequency: int

    def __post_init__(self) -> None:
        if self.course not in COURSES:
            raise UserError(f"--schedule {self.course!r}: expected one of {', '.join(COURSES)}")
        if not 0 <= self.start <= self.end or self.frequency < 1:
            raise UserError(
                f"pruning from step {self.start} to {self.end}, every {self.frequency}: expected an end that is not "
                "before the start, and a positive --frequency"
            )

    @property
    def last(self) -> int:
        """Number of the last event; the first is 0."""
        return (self.end - self.start) // self.frequency

    def due(self, step: int) -> int:
        """The latest event after so many steps; -1 before the first."""
        return min((step - self.start) // self.frequency, self.last) if step >= self.start else -1

    def progress(self, event: int) -> float:
        """The part of the way that is done with an event, 0 to 1."""
        return event / self.last if self.last else 1.0

    def sparsity(self, event: int) -> float:
        """Sparsity from an event on."""
        return COURSES[self.course](self.target, self.progress(event))
