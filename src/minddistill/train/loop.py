"""The loop: a list of batches, a step, and hooks that are called after each step and each epoch."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ..signals import handled
from .checkpoint import TrainState


class Batches(Protocol):
    """What `fit` needs of a loader."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Any]]: ...


class Prefetched:
    """Batches made by a thread while the step before them runs.

    Args:
        batches: what to read ahead of.
        depth: batches ready at most.
    """

    def __init__(self, batches: Batches, depth: int = 2):
        self.batches, self.depth = batches, depth
        self.waited = 0.0
        """Seconds for which the loop stood still for a batch."""

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Any]]:
        """As the batches' own; what they raise is raised here."""
        ready: queue.Queue = queue.Queue(self.depth)
        left = threading.Event()

        def put(item: tuple) -> bool:
            while not left.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def read() -> None:
            try:
                for batch in self.batches.epoch(epoch, skip):
                    if not put((batch, None)):
                        return
                put((None, None))
            except BaseException as error:
                put((None, error))

        thread = threading.Thread(target=read, name="prefetch", daemon=True)
        thread.start()
        try:
            while True:
                began = time.perf_counter()
                batch, error = ready.get()
                self.waited += time.perf_counter() - began
                if error is not None:
                    raise error
                if batch is None:
                    return
                yield batch
        finally:
            left.set()
            thread.join()


@dataclass
class Hook:
    """Something done every so many steps, or at the next update after these, and at the end of each epoch."""

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
    leads: bool = True,
    stop_early: Callable[[TrainState], bool] | None = None,
) -> tuple:
    """Train from where `state` stands to the end of `epochs`. Returns the outputs of the latest step; () if there was none.

    Args:
        step: from `build_step`.
        most_steps: stop after so many steps in all; 0 for no limit.
        leads: whether signals stop this process; of several, only the first listens, and the others end with it.
        stop_early: asked before each epoch; a run that goes on from the end of one asks again.

    Raises:
        Stopped: the process was told to stop; `state` is between two steps.
    """
    outputs: tuple = ()
    with _signals(leads) as told:
        while state.epoch < epochs and not (stop_early and stop_early(state)):
            seen = state.step  # the latest update
            for batch in batches.epoch(state.epoch, state.position):
                if most_steps and state.step >= most_steps:
                    return outputs
                state.position += 1
                last = state.position % accumulate == 0 or state.position == len(batches)
                outputs = step(batch, last)
                state.step += 1
                if not last:
                    continue
                for hook in hooks:
                    if hook.every and state.step // hook.every > seen // hook.every:
                        hook.do(state, outputs)
                seen = state.step
                if told.is_set():
                    raise Stopped
            state.epoch, state.position = state.epoch + 1, 0
            for hook in hooks:
                if hook.at_epoch_end:
                    hook.do(state, outputs)
            if told.is_set():
                raise Stopped
    return outputs


@contextmanager
def _signals(leads: bool) -> Iterator[threading.Event]:
    """SIGTERM and the first Ctrl-C ask the loop to stop; a Ctrl-C after that stops at once.

    A second SIGTERM does not: a batch system's and the launcher's may both come.
    """
    told = threading.Event()

    def tell(number: int, frame: Any) -> None:
        if not leads:
            return
        if told.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        told.set()

    with handled(tell, signal.SIGINT, signal.SIGTERM):
        yield told
