"""Parameters of a cell by their path inside it: read, set strictly, initialised."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

import numpy as np
from mindspore import Parameter, Tensor, nn

from .errors import UserError


def named(cell: nn.Cell) -> dict[str, Parameter]:
    """Parameters by their path inside `cell`, whatever a wrapping cell has renamed them to."""
    return dict(cell.parameters_and_names())


def arrays(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Copies of all parameters by path (`asnumpy` alone may alias memory that the optimiser writes to)."""
    return {path: parameter.asnumpy().copy() for path, parameter in named(cell).items()}


def count(cell: nn.Cell) -> int:
    """Number of scalar parameters."""
    return sum(int(np.prod(parameter.shape)) for parameter in named(cell).values())


def assign(cell: nn.Cell, values: Mapping[str, np.ndarray], source: str, may_miss: Iterable[str] = ()) -> list[str]:
    """Set the parameters of `cell` from arrays by path.

    Args:
        values: arrays by path inside `cell`.
        source: what the message calls the place they come from.
        may_miss: path prefixes that may be absent, such as "classifier.".

    Returns:
        The paths that were absent, all of them under `may_miss`; they keep their values.

    Raises:
        UserError: a parameter is absent, has another shape, is not finite, or an array is left over.
    """
    targets = named(cell)
    may_miss = tuple(may_miss)
    missing = [path for path in targets if path not in values]
    fatal = [path for path in missing if not (may_miss and path.startswith(may_miss))]
    unused = [path for path in values if path not in targets]
    shapes = [
        f"{path} is {values[path].shape}, the model's is {tuple(parameter.shape)}"
        for path, parameter in targets.items()
        if path in values and tuple(parameter.shape) != values[path].shape
    ]
    if fatal or unused or shapes:
        parts = [
            f"{len(items)} {name}: {', '.join(items[:4])}{' ...' if len(items) > 4 else ''}"
            for name, items in (("missing", fatal), ("not used by the model", unused), ("of another shape", shapes))
            if items
        ]
        matched = len(targets) - len(missing) - len(shapes)
        raise UserError(
            f"{source}: weights do not fit the model; {matched} of {len(targets)} tensors match; {'; '.join(parts)}; "
            "check that the configuration and the weights belong together"
        )
    broken = [path for path in targets if path in values and not np.isfinite(values[path]).all()]
    if broken:
        raise UserError(f"{source}: tensor {broken[0]} holds NaN or infinite values; the file is damaged or diverged")
    for path, parameter in targets.items():
        if path in values:
            parameter.set_data(Tensor(np.ascontiguousarray(values[path], np.float32)))
    return missing


def initialise(cell: nn.Cell, seed: int, deviation: float | None, only: Iterable[str] | None = None) -> None:
    """Draw matrices from a normal truncated at two deviations; vectors keep their zeros and ones.

    Each parameter is drawn from its own stream, keyed by seed and path, so that its values do not depend on
    what else the cell holds.

    Args:
        deviation: None for sqrt(2 / inputs) of a matrix (outputs, inputs).
        only: paths to initialise; all by default.
    """
    chosen = None if only is None else set(only)
    for path, parameter in named(cell).items():
        if len(parameter.shape) < 2 or (chosen is not None and path not in chosen):
            continue
        generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(path.encode())]))
        values = generator.standard_normal(parameter.shape, np.float32)
        while (outside := np.abs(values) > 2.0).any():
            values[outside] = generator.standard_normal(int(outside.sum()), np.float32)
        scale = np.sqrt(2 / parameter.shape[1]) if deviation is None else deviation
        parameter.set_data(Tensor(values * np.float32(scale)))
