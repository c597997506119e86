"""The loop: a list of batches, a step, and hooks that are called after each step and each epoch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from .checkpoint import TrainState


class Batches(Protocol):
    """What `fit` needs of a loader."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Any]]: ...


@dataclass
class Hook:
    """Something done every so many steps, and at the end of each epoch."""

    every: int
    do: Callable[[TrainState, tuple], None]
    at_epoch_end: bool = False


class Stopped(Exception):
    """Raised inside the loop by Ctrl-C or SIGTERM, after the step at hand."""


def fit(
    step: Callable[..., tuple],
    batches: Batches,
    state: TrainState,
    *,
    epochs: int,
    hooks: Sequence[Hook],
    accumulate: int = 1,
    most_steps: int = 0,
    stop_early: Callable[[TrainState], bool] | None = None,
) -> None:
    """Train from where `state` stands to the end of `epochs`.

    Args:
        step: from `build_step`.
        most_steps: stop after so many steps in all; 0 for no limit.
        stop_early: asked after each epoch.

    Raises:
        Stopped: the process was told to stop; `state` is between two steps.
    """
    with _signals() as told:
        while state.epoch < epochs:
            outputs: tuple = ()
            for batch in batches.epoch(state.epoch, state.position):
                state.position += 1
                last = state.position % accumulate == 0 or state.position == len(batches)
                outputs = step(batch, last)
                state.step += 1
                for hook in hooks:
                    if hook.every and state.step % hook.every == 0 and last:
                        hook.do(state, outputs)
                if told.is_set() and last:
                    raise Stopped
                if most_steps and state.step >= most_steps:
                    return
            state.epoch, state.position = state.epoch + 1, 0
            for hook in hooks:
                if hook.at_epoch_end:
                    hook.do(state, outputs)
            if stop_early is not None and stop_early(state):
                return


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """SIGTERM and the first Ctrl-C ask the loop to stop; a second Ctrl-C stops at once."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(number: int, frame: Any) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
