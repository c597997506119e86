"""Processes that share a command's work."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from .errors import UserError


def check_threads(threads: int) -> None:
    """See that this process has a core for each of so many threads.

    Raises:
        UserError: there are fewer.
    """
    count = core_count()
    if not 1 <= threads <= count:
        raise UserError(f"--threads {threads}: this process may use {count} cores; expected 1 to {count}")


def core_count() -> int:
    """How many cores this process may use."""
    return len(usable_cores()) or os.cpu_count() or 1


def threads_each(processes: int) -> int:
    """How many threads each of so many processes has, where they share the cores of this one."""
    return max(core_count() // processes, 1)


def usable_cores() -> list[int]:
    """The cores that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextmanager
def worker_pool(count: int, method: str | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end at once, without a word, when its block is left by an error or Ctrl-C.

    Args:
        method: how they start: the platform's default, or "spawn" where they use MindSpore, whose threads do not
            outlive a fork.

    Raises:
        UserError: one of them was killed.
    """
    pool = ProcessPoolExecutor(count, multiprocessing.get_context(method), initializer=_leave_signals)
    try:
        yield pool
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process was ended from outside, most often for want of memory; give fewer --workers, and the "
                "same command goes on"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    """Ctrl-C goes to every process of the terminal; it is the first one's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work for ever: where the first process is killed, nothing else tells it that none will come."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
