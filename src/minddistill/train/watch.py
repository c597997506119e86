"""Looks after the loss: skipped steps in a row, and what is not finite, end a run with the rows that caused it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mindspore import Tensor

from ..errors import UserError
from ..files import write_json
from .checkpoint import TrainState

INTERVAL = 100
"""Steps between two looks. Looking waits for the device, and a skipped step has left the weights alone meanwhile."""


class Watch:
    """A step that remembers what came out until `check` looks at it.

    An overflow is the loss scale's to mend: its step was skipped and the next one runs at a lower scale. What cannot
    be mended ends the run: an overflow at a scale of 1, `most_skipped` overflows in a row, or a loss that is not
    finite though gradients are. Overflow, loss and terms are those of all processes, so that each comes to the
    same end at the same step.

    Args:
        step: from `build_step`.
        state: where training stands; its position is that behind the batch at hand.
        most_skipped: updates skipped in a row at which to stop.
        rows_of: the rows, by name, of the batch of an epoch at a position, over all processes.
        directory: where the rows are written; None writes nothing (ranks other than 0).
        wait: seconds before this process ends a run: with the first that ends, the launcher ends the others.
    """

    def __init__(
        self,
        step: Callable[..., tuple],
        state: TrainState,
        most_skipped: int,
        rows_of: Callable[[int, int], list[str]],
        directory: Path | None,
        wait: float = 0.0,
    ):
        self.step, self.state, self.most_skipped = step, state, most_skipped
        self.rows_of, self.directory, self.wait = rows_of, directory, wait
        self.skipped = 0
        self._unseen: list[tuple[int, int, int, bool, tuple]] = []

    def __call__(self, batch: dict[str, Tensor], last: bool = True) -> tuple:
        """As the step's own."""
        outputs = self.step(batch, last)
        state = self.state
        self._unseen.append((state.step + 1, state.epoch, state.position - 1, last, outputs))
        return outputs

    def check(self, state: TrainState, outputs: tuple) -> None:
        """Look at the steps since the last time; a hook of the loop.

        Raises:
            UserError: one of them cannot be mended; names the step, the term and the file with the rows.
        """
        unseen, self._unseen = self._unseen, []
        update: list[tuple[int, int, float, dict[str, float]]] = []
        for number, epoch, position, last, (loss, terms, overflow, scale) in unseen:
            update.append((epoch, position, _number(loss), {name: _number(term) for name, term in terms.items()}))
            if not last:
                continue
            overflowed, used = bool(_number(overflow)), _number(scale)
            self.skipped = self.skipped + 1 if overflowed else 0
            if self.skipped >= self.most_skipped or (overflowed and used <= 1.0):
                self._stop(number, update, used)
            if not overflowed and not all(math.isfinite(value) for _, _, value, _ in update):
                self._stop(number, update, used)
            update = []

    def _stop(self, number: int, update: list[tuple[int, int, float, dict[str, float]]], scale: float) -> None:
        """Save the rows of the batch that broke the update (of all its batches where none shows it) and stop."""
        broken = [part for part in update if not math.isfinite(part[2])]
        term, value = _broken_term(broken[0][3], broken[0][2]) if broken else ("gradients", math.inf)
        found: dict[str, Any] = {"step": number, "term": term, "value": str(value), "loss_scale": scale}
        found["skipped_in_a_row"] = self.skipped
        found["batches"] = [
            {
                "epoch": epoch + 1,
                "batch": position,
                "terms": {name: str(value) for name, value in terms.items()},
                "rows": self.rows_of(epoch, position),
            }
            for epoch, position, _, terms in broken or update
        ]
        where = ""
        if self.directory is not None:
            path = self.directory / f"nonfinite_step_{number:08d}.json"
            write_json(path, found)
            where = f"; the rows of its batch are in {path}"
        time.sleep(self.wait)
        why = f"{self.skipped} skipped in a row, loss scale {scale:g}" if self.skipped else "the update was not skipped"
        raise UserError(
            f"step {number}: {term} {f'is {value:g}' if broken else 'are not finite'} ({why}){where}; look at these rows, lower --learning_rate, or give "
            "--compute_type float32; the checkpoints before it are whole"
        )


def _broken_term(terms: Mapping[str, float], loss: float) -> tuple[str, float]:
    """The first part of the loss that is not finite, or their sum."""
    return next(((name, value) for name, value in terms.items() if not math.isfinite(value)), ("loss", loss))


def _number(value: Tensor) -> float:
    return float(value.asnumpy())
