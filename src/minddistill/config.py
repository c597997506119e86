"""Command lines and YAML files from dataclasses: one field is a flag, a YAML key and a line of `--help`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from .errors import UserError
from .files import write_text


def flag(default: Any, help: str, *aliases: str) -> Any:
    """A dataclass field with its sentence of `--help` and other spellings of its flag."""
    return dataclasses.field(default=default, metadata={"help": help, "aliases": aliases})


def parse(prog: str, description: str, groups: Sequence[type], argv: Sequence[str] | None = None) -> list[Any]:
    """Read flags and `--config` YAML into one instance of each dataclass in `groups`.

    Flags are flat: every group's fields stand beside each other, and a YAML key is a flag without its dashes.
    Flags win over the file. Each class's first docstring line is the title of its group in `--help`.

    Raises:
        UserError: an unknown flag or key, a wrong type or choice; says which and what was expected.
    """
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file whose keys are flags; flags win over it")
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or group.__name__).splitlines()[0].rstrip("."))
        hints = get_type_hints(group)
        for item in dataclasses.fields(group):
            names = [f"--{name}" for name in (item.name, *item.metadata.get("aliases", ()))]
            section.add_argument(*names, type=hints[item.name], default=item.default, help=item.metadata["help"])
    try:
        values = vars(parser.parse_args(list(argv) if argv is not None else None))
    except Exception as error:  # jsonargparse raises argparse's and its own errors
        raise UserError(f"{_explain(str(error))}; see {prog} --help") from None
    return [group(**{item.name: values[item.name] for item in dataclasses.fields(group)}) for group in groups]


def _explain(message: str) -> str:
    """One line out of jsonargparse's message."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    line = re.sub(r"unrecognized arguments?:", "unknown flag", line)
    line = re.sub(r"Option '([^']+)' is not accepted", r"unknown key '\1' in the YAML file", line)
    line = re.sub(r"Parser key \"([^\"]+)\":", r"--\1:", line)
    return re.sub(r"Expected a (?:typing\.)?(?:<class '(\w+)'>|(\S+))\. Got value:", r"expected \1\2, found", line)


def dump(path: Path, groups: Sequence[Any]) -> None:
    """Write the resolved configuration as YAML that `--config` reads back."""
    values: dict[str, Any] = {}
    for group in groups:
        values |= dataclasses.asdict(group)
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def numbers(text: str, name: str) -> list[int]:
    """Read "1,3,5".

    Raises:
        UserError: something between the commas is not a whole number; names the flag `name`.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{name} {text!r}: expected whole numbers with commas between, such as 1,3,5") from None
