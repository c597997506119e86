"""A run of a training command: where it trains, the directory that it writes to, and the flags that all of them have."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import runtime
from ..errors import UserError
from ..files import remove_parts
from ..train.checkpoint import Checkpoints
from ..train.log import BOARD, METRICS, RunLog
from .checks import Load, check_load
from .flags import RunFlags, StepFlags

DONE = "done.json"
_LOCK = ".lock"
_APPEARS = 60.0  # seconds; NFS keeps what it knows of a directory for so long
BEST_PREDICTIONS = "predictions_best.tsv"
CACHING = "teacher_cache.json"  # what was decided on the teacher's cache


@dataclass(frozen=True)
class Run:
    """What everything that a training command does has in common.

    Attributes:
        place: device and processes.
        directory: that is written to.
    """

    place: runtime.Runtime
    directory: Path
    log: RunLog
    flags: RunFlags
    step: StepFlags

    @property
    def types(self) -> dict[str, Any]:
        """The types that models are built with, as options of `models.store.build`."""
        return runtime.precision(self.step.compute_type, self.step.dtype, self.place.device)

    def reading(self, config: Any) -> dict[str, Any]:
        """How records are read, as options of `common.read_checked`; `config` has the flags that say what they are."""
        return {
            "kind": config.dataset_type,
            "schema_file": config.schema_dir,
            "verify": self.flags.verify_records,
            "log": self.log,
        }

    def batching(self, buckets: Sequence[int], shuffle: bool = True) -> dict[str, Any]:
        """How rows become batches, as options of `data.loader.Loader`."""
        return {
            "batch_size": self.step.batch_size,
            "buckets": buckets,
            "seed": self.flags.seed,
            "shuffle": shuffle,
            "rank": self.place.rank,
            "size": self.place.size,
        }

    def check_load(self, load: Load) -> None:
        """See that the machine has room for a stage.

        Raises:
            UserError: it has not.
        """
        check_load(load, self.directory, self.place.device, self.log)


@contextmanager
def open_run(flags: RunFlags, step: StepFlags, place: runtime.Runtime, stages: Sequence[str] = ("",)) -> Iterator[Run]:
    """Make the run directory, and its log; the first process writes them, the others print only. The log is closed at
    the end.

    Args:
        stages: the directories of the command's stages in the run directory, in which an earlier run is forgotten if
            `--resume` says so, and what a killed one left half-written is removed.

    Raises:
        UserError: `--output_dir` is empty or a file, another run is at work there, or it holds no earlier run where
            `--resume true` wants one.
    """
    if not flags.output_dir:
        raise UserError("--output_dir is empty; expected the directory of this run")
    directory = Path(flags.output_dir)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output_dir {directory}: is a file; expected a directory")
    if flags.resume is True and not (directory / "config.yaml").is_file():
        raise UserError(f"--resume true: {directory} holds no earlier run; give its --output_dir, or --resume auto")
    with nullcontext() if place.rank else _alone(directory):
        if not place.rank:
            if flags.resume is False:
                (directory / METRICS).unlink(missing_ok=True)
                shutil.rmtree(directory / BOARD, ignore_errors=True)
            for stage in [directory / name for name in stages]:
                _tidy(stage, start_over=flags.resume is False)
        place.all()
        if not place.all(_appears(directory)):
            raise UserError(
                f"--output_dir {directory}: not seen by every process; the nodes of a run need a directory that they share"
            )
        log = RunLog(None if place.rank else directory)
        try:
            yield Run(place, directory, log, flags, step)
        finally:
            log.close()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Make the directory, and hold it against other runs; the system lets it go when this process ends, however it ends.

    Raises:
        UserError: another run holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / _LOCK, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output_dir {directory}: another run is at work there; wait for it, or give another --output_dir"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def _appears(directory: Path) -> bool:
    """Whether a directory that another process has made is there, soon: a network's file system remembers what was not."""
    until = time.monotonic() + _APPEARS
    while not directory.is_dir():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _tidy(stage: Path, start_over: bool) -> None:
    checkpoints = Checkpoints(stage / "checkpoints", 1)
    if start_over:
        for note in (DONE, CACHING):
            (stage / note).unlink(missing_ok=True)
        checkpoints.clear()
    for directory in (stage, checkpoints.directory):
        remove_parts(directory)
