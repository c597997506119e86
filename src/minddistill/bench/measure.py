"""Time and memory of models, each in a process of its own, taken in turn."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from ..workers import check_threads, usable_cores

INPUTS = ("input_ids", "input_mask", "segment_ids")
Batch = Mapping[str, np.ndarray]


class Opened(Protocol):
    """What a subject's process needs of a model."""

    def predict(self, input_ids: np.ndarray, input_mask: np.ndarray, segment_ids: np.ndarray) -> np.ndarray: ...


class Timed(Protocol):
    """What takes turns."""

    name: str

    def seconds(self, batch: Batch, runs: int, warm_up: int) -> np.ndarray: ...


class Local:
    """A model in this process: for those whose runtime leaves nothing running while others have their turn.

    Args:
        predict: maps token ids, masks and segments (B, S) to logits.
    """

    def __init__(self, name: str, predict: Callable[..., np.ndarray]):
        self.name, self.predict = name, predict

    def seconds(self, batch: Batch, runs: int, warm_up: int) -> np.ndarray:
        """Seconds of each of so many predictions of a batch (runs,), after some that are not timed."""
        return _seconds(self.predict, [batch[name] for name in INPUTS], runs, warm_up)


class Subject:
    """A model in another process, which waits without computing while others have their turn.

    Made by `subjects`.
    """

    def __init__(self, name: str, process: Any, connection: Connection):
        self.name, self.process, self.connection = name, process, connection

    def ask(self, request: str, *arguments: Any) -> Any:
        """Send a request to the process and wait for its answer.

        Raises:
            UserError: the model cannot be opened, or its process has died.
        """
        try:
            self.connection.send((request, arguments))
            answer = self.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            raise UserError(
                f"{self.name}: its process ended with code {self.process.exitcode}; -9 is most often too little memory"
            ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def predict(self, batch: Batch) -> np.ndarray:
        """Logits (B, C) of a batch."""
        return self.ask("predict", *(batch[name] for name in INPUTS))

    def seconds(self, batch: Batch, runs: int, warm_up: int) -> np.ndarray:
        """Seconds of each of so many predictions of a batch (runs,), after some that are not timed."""
        return self.ask("seconds", [batch[name] for name in INPUTS], runs, warm_up)

    def peak_megabytes(self) -> float:
        """The most memory that the process has had so far, its runtime included."""
        return self.ask("peak_megabytes")


@contextmanager
def subjects(
    paths: Mapping[str, str], open_model: Callable[[str, int], Opened], describe: Callable[[Any], Any], threads: int
) -> Iterator[dict[str, tuple[Subject, Any]]]:
    """Open models, each in a new process that is pinned to the same `threads` cores.

    Args:
        paths: of the models, by name.
        open_model: called with a path and the number of threads, in the process; like `describe` a function of a
            module, and best of one that does not import MindSpore, which reads the number of threads on import.
        describe: what to know of the opened model; must be a plain value.

    Yields:
        Subjects with their description, by name.

    Raises:
        UserError: there are fewer cores than threads, or a model cannot be opened.
    """
    cores = pinned_cores(threads)
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        found = {}
        for name, path in paths.items():
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, open_model, describe, path, threads, cores), daemon=True
            )
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)  # which ends the process
            subject = Subject(name, process, ours)
            found[name] = subject, subject.ask("describe")
        yield found


def pinned_cores(threads: int) -> list[int]:
    """The first `threads` cores of those that this process may use; none where the system cannot pin.

    Raises:
        UserError: there are fewer.
    """
    check_threads(threads)
    return usable_cores()[:threads]


def _serve(
    connection: Connection,
    open_model: Callable[[str, int], Opened],
    describe: Callable[[Any], Any],
    path: str,
    threads: int,
    cores: list[int],
) -> None:
    """Open a model and answer requests until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then closes the connection
    if cores:
        os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        model = open_model(path, threads)
    except UserError as error:
        model, failed = None, error
    while True:
        try:
            request, arguments = connection.recv()
        except EOFError:
            return
        if model is None:
            connection.send(failed)
        elif request == "predict":
            connection.send(model.predict(*arguments))
        elif request == "seconds":
            connection.send(_seconds(model.predict, *arguments))
        elif request == "describe":
            connection.send(describe(model))
        else:
            connection.send(_peak_megabytes())


def _seconds(predict: Callable[..., np.ndarray], batch: Sequence[np.ndarray], runs: int, warm_up: int) -> np.ndarray:
    for _ in range(warm_up):
        predict(*batch)
    marks = [time.perf_counter()]
    for _ in range(runs):
        predict(*batch)
        marks.append(time.perf_counter())
    return np.diff(marks)


def _peak_megabytes() -> float:
    try:
        # getrusage keeps the peak of the process that this one was forked from; the kernel's own account does not.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def alternate(
    taken: Sequence[Timed], batch: Batch, runs: int, *, warm_up: int = 10, rounds: int = 10
) -> dict[str, np.ndarray]:
    """Seconds of `runs` predictions of a batch by each subject (runs,), by name.

    They take turns, so that what else the machine does is spread over all. Each turn starts with predictions that are
    not timed: `warm_up` in the first one, which may compile, and two in the others.
    """
    share = [len(part) for part in np.array_split(np.arange(runs), min(rounds, runs))]
    found: dict[str, list[np.ndarray]] = {subject.name: [] for subject in taken}
    for turn, count in enumerate(share):
        for subject in taken:
            found[subject.name].append(subject.seconds(batch, count, warm_up if turn == 0 else 2))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def latency(seconds: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and percentiles, in milliseconds."""
    values = 1e3 * seconds
    ranks = {f"p{rank}_ms": float(np.percentile(values, rank)) for rank in (50, 95, 99)}
    return {"mean_ms": float(values.mean()), "std_ms": float(values.std(ddof=1)), **ranks}
