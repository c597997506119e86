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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import UserError
from ..files import whole_file
from .step import LossScale


@dataclass
class TrainState:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        trained: parameters by path.
        optimizer, scale: their state is saved too.
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

    def tensors(self) -> dict[str, Parameter]:
        """All that changes, by name."""
        optimizer = self.optimizer
        order = {parameter.name: path for path, parameter in self.trained.items()}
        paths = [order[parameter.name] for parameter in optimizer.parameters]
        found = dict(self.trained)
        found |= {f"moment1/{path}": value for path, value in zip(paths, optimizer.moments1, strict=True)}
        found |= {f"moment2/{path}": value for path, value in zip(paths, optimizer.moments2, strict=True)}
        return found | {
            "global_step": optimizer.global_step,
            "loss_scale": self.scale.value,
            "good_steps": self.scale.good,
        }


class Checkpoints:
    """The last few states of a run.

    Args:
        directory: where they are kept.
        keep: how many.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory, self.keep = directory, max(keep, 1)

    def save(self, state: TrainState) -> None:
        """Write the state whole, then drop the oldest beyond `keep`."""
        arrays = {name: value.asnumpy().copy() for name, value in state.tensors().items()}
        position = {"epoch": state.epoch, "position": state.position, "step": state.step, "best": state.best}
        header = {"state": json.dumps(position), "identity": json.dumps(state.identity)}
        data = save(arrays, header)
        with whole_file(self.directory / f"step_{state.step:08d}.safetensors") as part:
            part.write_bytes(data + hashlib.sha256(data).digest())
        for old in self._files()[: -self.keep]:
            old.unlink()

    def restore(self, state: TrainState) -> str:
        """Load the newest whole checkpoint into `state`.

        Returns:
            A line that says what was resumed and which files were passed over as broken, or "" if there are none.

        Raises:
            UserError: the checkpoint belongs to another configuration, data or teacher.
        """
        broken = []
        for file in reversed(self._files()):
            data = file.read_bytes()
            if len(data) < 32 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
                broken.append(file.name)
                continue
            self._load(file, data[:-32], state)
            passed = f"; passed over as broken: {', '.join(broken)}" if broken else ""
            return f"Resumed from {file} (epoch {state.epoch + 1}, step {state.step}){passed}"
        return f"No whole checkpoint in {self.directory}; broken: {', '.join(broken)}" if broken else ""

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("step_*.safetensors"))

    def _load(self, file: Path, data: bytes, state: TrainState) -> None:
        with _opened(file, data) as handle:
            header = handle.metadata()
            identity = json.loads(header["identity"])
            changed = [
                f"{key} was {identity.get(key)!r}, is {state.identity.get(key)!r}"
                for key in sorted(identity.keys() | state.identity.keys())
                if identity.get(key) != state.identity.get(key)
            ]
            if changed:
                raise UserError(
                    f"{file}: belongs to another run: {'; '.join(changed[:3])}; "
                    "give another --output_dir, or --resume false to start over"
                )
            for name, parameter in state.tensors().items():
                value = np.asarray(handle.get_tensor(name)).reshape(parameter.shape)
                parameter.set_data(Tensor(value, parameter.dtype))
        for name, value in json.loads(header["state"]).items():
            setattr(state, name, value)


def _opened(file: Path, data: bytes) -> Any:
    # safetensors reads by name; the checksum behind the data is cut off in a copy of its own.
    bare = file.with_name(f".{file.name}.part")
    bare.write_bytes(data)
    try:
        return safe_open(bare, framework="numpy")
    except SafetensorError as error:
        raise UserError(f"{file}: {error}") from None
    finally:
        bare.unlink()
