"""The training state in one file: written whole, with a checksum, the newest valid one found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn
from safetensors.numpy import load, save

from ..files import whole_file
from .step import LossScale

_CHECKSUM_BYTES = 32


@dataclass
class TrainState:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        trained: parameters by path.
        optimizer, scale: their state is saved too.
        more: further parameters that change, by name, such as the masks of pruning.
        epoch, position: the next batch, counted in epochs and steps of the epoch; dropout masks and the order of
            rows are functions of the seed and of these.
        best: best metric so far, with the epoch and step it was reached at.
        identity: configuration, data and teacher of the run; another identity refuses to resume.
    """

    trained: Mapping[str, Parameter]
    optimizer: nn.Optimizer
    scale: LossScale
    identity: dict[str, Any]
    epoch: int = 0
    position: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    more: Mapping[str, Parameter] = field(default_factory=dict)

    def tensors(self) -> dict[str, Parameter]:
        """All that changes, by name."""
        optimizer = self.optimizer
        order = {parameter.name: path for path, parameter in self.trained.items()}
        paths = [order[parameter.name] for parameter in optimizer.parameters]
        found = dict(self.trained)
        found |= {f"moment1/{path}": value for path, value in zip(paths, optimizer.moments1, strict=True)}
        found |= {f"moment2/{path}": value for path, value in zip(paths, optimizer.moments2, strict=True)}
        return {
            **found,
            **self.more,
            "global_step": optimizer.global_step,
            "loss_scale": self.scale.value,
            "good_steps": self.scale.good,
        }


@dataclass
class Saved:
    """A whole checkpoint, as read from `file`."""

    file: Path
    header: dict[str, str]
    arrays: dict[str, np.ndarray]

    @property
    def identity(self) -> dict[str, Any]:
        """Configuration, data and teacher of the run that saved it."""
        return json.loads(self.header["identity"])

    @property
    def step(self) -> int:
        """Steps done."""
        return json.loads(self.header["state"])["step"]

    def into(self, state: TrainState) -> None:
        """Bring a state to where this one was saved."""
        for name, parameter in state.tensors().items():
            parameter.set_data(Tensor(self.arrays[name].reshape(parameter.shape), parameter.dtype))
        for name, value in json.loads(self.header["state"]).items():
            setattr(state, name, value)


class Checkpoints:
    """The last few states of a run.

    Args:
        directory: where they are kept.
        keep: how many.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory, self.keep = directory, max(keep, 1)

    def save(self, state: TrainState) -> None:
        """Write the state whole, then drop the oldest beyond `keep`.

        Those of later steps go too: a run that comes to a step has passed them over as broken.

        Raises:
            DiskFull: it does not fit; the earlier ones are as they were.
        """
        arrays = {name: value.asnumpy().copy() for name, value in state.tensors().items()}
        position = {"epoch": state.epoch, "position": state.position, "step": state.step, "best": state.best}
        header = {"state": json.dumps(position), "identity": json.dumps(state.identity)}
        data = save(arrays, header)
        data += hashlib.sha256(data).digest()
        path = self._path(state.step)
        with whole_file(path, len(data)) as part:
            part.write_bytes(data)
        kept = [file for file in self._files() if file <= path][-self.keep :]
        for file in set(self._files()) - set(kept):
            file.unlink()

    def newest(self) -> tuple[Saved | None, list[str]]:
        """The newest whole checkpoint, if there is one, and the names of newer ones that are broken."""
        broken = []
        for file in reversed(self._files()):
            saved = _read(file)
            if saved:
                return saved, broken
            broken.append(file.name)
        return None, broken

    def clear(self) -> None:
        """Remove all of them, the newest last."""
        for file in self._files():
            file.unlink()

    def _path(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("step_*.safetensors"))


def _read(file: Path) -> Saved | None:
    """A checkpoint, or None where its checksum is not that of its content."""
    content = file.read_bytes()
    data, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if hashlib.sha256(data).digest() != checksum:
        return None
    # safetensors begins with the length of its JSON header, which holds what was saved beside the arrays.
    size = int.from_bytes(data[:8], "little")
    return Saved(file, json.loads(data[8 : 8 + size])["__metadata__"], load(data))
