"""Processes that share a command's work."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_pool(count: int, method: str | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end at once, without a word, when its block is left by an error or Ctrl-C.

    Args:
        method: how they start: the platform's default, or "spawn" where they use MindSpore, whose threads do not
            outlive a fork.
    """
    pool = ProcessPoolExecutor(count, multiprocessing.get_context(method), initializer=_leave_signals)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    """Ctrl-C goes to every process of the terminal; it is the first one's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
