"""What a search may vary: the flags of a command, each with a range or a choice, as a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ..config import read_yaml
from ..errors import UserError

_KEYS = {"low", "high", "log", "step"}


def read_space(path: Path) -> dict[str, BaseDistribution]:
    """Read a space: `name: [a, b]` for a choice, `name: {low: 1, high: 5, step: 1, log: false}` for a range.

    A range is of whole numbers where `low` and `high` are written as such; `step` and `log` may be left out.

    Raises:
        UserError: the file is not such a table, or is empty; names the file and the key.
    """
    values = read_yaml(path, "--space")
    if not values:
        raise UserError(
            f"--space {path}: is empty; expected flags with ranges, such as learning_rate: {{low: 1e-5, high: 1e-4}}"
        )
    return {str(name): _distribution(value, f"--space {path}: {name}") for name, value in values.items()}


def ends(space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Two settings which between them hold the least and greatest value, or first and last choice, of every flag."""
    pairs = {
        name: (kind.choices[0], kind.choices[-1])
        if isinstance(kind, CategoricalDistribution)
        else (kind.low, kind.high)
        for name, kind in space.items()
    }
    return [{name: pair[end] for name, pair in pairs.items()} for end in (0, 1)]


def _distribution(value: Any, where: str) -> BaseDistribution:
    if isinstance(value, list):
        if not value or not all(isinstance(choice, (str, int, float)) for choice in value):
            raise UserError(f"{where}: expected at least one choice, each a word or a number, found {value}")
        return CategoricalDistribution(value)
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= _KEYS:
        raise UserError(f"{where}: expected a list of choices or {{low, high}} with log or step, found {value}")
    low, high = _number(value["low"], where), _number(value["high"], where)
    whole = isinstance(low, int) and isinstance(high, int)
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log is {log!r}; expected true or false")
    step = _number(value["step"], where) if "step" in value else None
    if step is not None and (step <= 0 or (whole and not isinstance(step, int))):
        raise UserError(f"{where}: step {step}: expected a positive {'whole ' if whole else ''}number")
    try:
        if whole:
            return IntDistribution(low, high, log=log, step=step or 1)
        return FloatDistribution(float(low), float(high), log=log, step=step)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {str(error).rstrip('.')}") from None


def _number(value: Any, where: str) -> int | float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    try:
        return float(value)  # YAML takes 1e-5, without a point, for a word
    except (TypeError, ValueError):
        raise UserError(f"{where}: {value!r} is no number") from None
