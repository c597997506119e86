"""What is looked at before a stage besides its own inputs: whether disk and memory are enough."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .. import native
from ..errors import UserError
from ..models.config import ModelConfig, WordConfig
from ..train.log import RunLog

_GB = 1e9
# Calibrated on CPU by the peak of short runs of 3 and 6 layers of hidden size 384 (docs/mindspore.md).
_BASE_BYTES = 2.0e9
_COPIES_TRAINED, _COPIES_FROZEN = 7, 2
_WITHOUT_KERNELS = 8.5
_WRITTEN_OVER = {"checkpoints", "best", "last"}  # of a run directory, and of its stages


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a stage asks of the machine.

    Attributes:
        trained: parameters that are trained.
        model: what is trained.
        teacher: what runs beside it in the step; None where nothing does.
        matched: layers of `model` whose hidden states and attention scores are compared with a teacher's.
        batch_size: rows a step.
        buckets: the compiled lengths.
        keep: checkpoints kept.
        cache: bytes that a teacher's outputs take, by the directory they go to.
    """

    trained: int
    model: ModelConfig | WordConfig
    teacher: ModelConfig | None = None
    teacher_parameters: int = 0
    matched: int = 0
    batch_size: int
    buckets: Sequence[int]
    keep: int
    cache: Mapping[Path, int] = field(default_factory=dict)

    def memory(self) -> float:
        """Estimated bytes at the peak: every compiled length keeps its intermediate values."""
        copies = 4 * (_COPIES_TRAINED * self.trained + _COPIES_FROZEN * self.teacher_parameters)
        values = sum(self.batch_size * length * self._values(length) for length in self.buckets)
        return _BASE_BYTES + copies + 4 * values * (1 if native.available() else _WITHOUT_KERNELS)

    def _values(self, length: int) -> int:
        """Numbers kept of one token of a batch of this length."""
        found = sum(config.values(length) for config in (self.model, self.teacher) if config is not None)
        if not self.matched:
            return found
        return found + self.matched * (8 * self.model.num_attention_heads * length + 6 * self.model.hidden_size)

    def disk(self, directory: Path) -> dict[Path, int]:
        """Bytes by directory: optimiser states and the one being written, two model directories and the one likewise."""
        states = 3 * 4 * self.trained * (self.keep + 1)
        needs = {directory: states + 3 * 4 * self.trained}
        for place, size in self.cache.items():
            needs[place] = needs.get(place, 0) + size
        return needs


def check_load(load: Load, directory: Path, device: str, log: RunLog) -> None:
    """See that disk and, on CPU, memory are enough for a stage.

    Raises:
        UserError: a disk has less room than the stage writes, or the machine has less memory than it takes.
    """
    check_disk(load.disk(directory), directory, log)
    with log.check("memory") as found:
        if device != "CPU":
            found(f"not estimated for {device}", False)
            return
        size, (available, total) = load.memory(), machine_memory()
        shapes = f"{load.batch_size} rows of lengths {','.join(map(str, load.buckets))}"
        text = f"about {size / _GB:.1f} GB for {shapes}; {available / _GB:.1f} GB free of {total / _GB:.1f} GB"
        if size > total:
            raise UserError(
                f"memory: {text}; give fewer --buckets, or a smaller --batch_size with --accumulation_steps"
            )
        found(text, size <= available)


def check_disk(needs: Mapping[Path, int], directory: Path, log: RunLog) -> None:
    """See that there is room for what is to be written.

    Args:
        needs: bytes by directory.
        directory: of the run, whose checkpoints and models are written over.

    Raises:
        UserError: there is not.
    """
    with log.check("disk") as found:
        for place, size in needs.items():
            free = shutil.disk_usage(_existing(place)).free + (_held(place) if place == directory else 0)
            if size > free:
                raise UserError(
                    f"{place}: {free / _GB:.2f} GB free or its own; checkpoints, models and cache take about {size / _GB:.2f} GB; "
                    "make room, choose another --output_dir, or lower --max_ckpt_num"
                )
            found(f"{place}: about {size / _GB:.2f} GB needed of {free / _GB:.2f} GB")


def machine_memory() -> tuple[int, int]:
    """Bytes of memory that are available now, and of memory and swap in all."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total + psutil.swap_memory().total


def _held(directory: Path) -> int:
    """Bytes of checkpoints and models that an earlier run has written there, which are written over."""
    total = 0
    for file in directory.rglob("*"):
        if _WRITTEN_OVER & {*file.relative_to(directory).parts[:-1]}:
            with suppress(FileNotFoundError):
                status = file.lstat()
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _existing(path: Path) -> Path:
    """The directory itself, or the nearest one above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())
