"""Command lines and YAML files from dataclasses: one field is a flag, a YAML key and a line of `--help`."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from .errors import UserError
from .files import write_text

_MOST = 2**63  # that a whole number may be


def flag(default: Any, help: str, *aliases: str) -> Any:
    """A dataclass field with its sentence of `--help` and other spellings of its flag."""
    return dataclasses.field(default=default, metadata={"help": help, "aliases": aliases})


def words(help: str) -> Any:
    """A dataclass field for what stands on the command line without a flag: a list of strings."""
    return dataclasses.field(default_factory=list, metadata={"help": help, "words": True})


def parse(prog: str, description: str, groups: Sequence[type], argv: Sequence[str] | None = None) -> list[Any]:
    """Read flags and `--config` YAML into one instance of each dataclass in `groups`.

    Flags are flat: every group's fields stand beside each other, and a YAML key is a flag without its dashes.
    Flags win over the file. Each class's first docstring line is the title of its group in `--help`.

    Raises:
        UserError: a file that is not YAML, an unknown flag or key, a wrong type or choice, a number that is negative or not finite (no flag
            takes one); says which and what was expected.
    """
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    if not any(item.name == "config" for group in groups for item in dataclasses.fields(group)):
        parser.add_argument("--config", action="config", help="YAML file whose keys are flags; flags win over it")
    for group in groups:
        _add(parser, group)
    words = _files_first(sys.argv[1:] if argv is None else argv)
    for file in config_files(words):
        _check_file(file, groups)  # the parser's own messages do not name it
    try:
        values = vars(parser.parse_args(words))
    except Exception as error:  # jsonargparse raises argparse's and its own errors
        raise UserError(f"{_explain(str(error))}; see {prog} --help") from None
    for name, value in values.items():
        if value is None and name != "config":
            raise UserError(f"--{name}: null; leave the key out to take its default; see {prog} --help")
        _check_number(name, value, f"; see {prog} --help")
    return [group(**{item.name: values[item.name] for item in dataclasses.fields(group)}) for group in groups]


def _check_file(file: Path, groups: Sequence[type]) -> None:
    values = read_yaml(file)
    if not values:
        raise UserError(f"--config {file}: holds no flags; expected YAML of flags, a key each")
    for group in groups:
        for name, hint in get_type_hints(group).items():
            if get_origin(hint) is tuple and not isinstance(values.get(name, []), list):
                raise UserError(f"--config {file}: {name} is {values[name]!r}; expected a list")


def _check_number(name: str, value: Any, end: str = "") -> None:
    if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
        raise UserError(f"--{name} {value}: expected a number, 0 or more{end}")
    if isinstance(value, int) and value >= _MOST:
        raise UserError(f"--{name} {value}: expected a number below 2^63{end}")


def _add(parser: ArgumentParser, group: type) -> None:
    """Give a parser the flags of a dataclass."""
    section = parser.add_argument_group((group.__doc__ or group.__name__).splitlines()[0].rstrip("."))
    hints = get_type_hints(group)
    for item in dataclasses.fields(group):
        if "words" in item.metadata:
            section.add_argument(item.name, nargs="*", type=str, default=[], help=item.metadata["help"])
            continue
        names = [f"--{name}" for name in (item.name, *item.metadata.get("aliases", ()))]
        section.add_argument(*names, **_kind(hints[item.name], item.default), help=item.metadata["help"])


def changed(group: Any, values: Mapping[str, Any], name: str) -> Any:
    """A copy of an instance of a group with some of its flags set by a table, as in a YAML list.

    Raises:
        UserError: an unknown flag, a wrong type, choice or number; names the flag `name` that holds the table.
    """
    parser = ArgumentParser(exit_on_error=False)
    _add(parser, type(group))
    try:
        found = vars(parser.parse_object(dataclasses.asdict(group) | dict(values)))
        for item, value in found.items():
            if value is None:
                raise UserError(f"--{item}: null; leave the key out to take its default")
            _check_number(item, value)
        return type(group)(**{item.name: found[item.name] for item in dataclasses.fields(group)})
    except Exception as error:  # jsonargparse raises argparse's and its own errors
        raise UserError(f"{name} {dict(values)}: {_explain(str(error))}") from None


def _files_first(argv: Sequence[str]) -> list[str]:
    """The words of a command line with `--config` before all others, which win over it wherever they stand."""
    files, others, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            files += [word, *islice(words, 1)]
        else:
            (files if word.startswith("--config=") else others).append(word)
    return files + others


def config_files(argv: Sequence[str]) -> list[Path]:
    """The files that `--config` names on a command line."""
    found = [after for word, after in pairwise(argv) if word == "--config"]
    return [Path(name) for name in (*found, *(word[9:] for word in argv if word.startswith("--config=")))]


class _Loader(yaml.SafeLoader):
    """YAML whose dates are text, as they are to the commands."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: Path, name: str = "--config") -> dict[str, Any]:
    """Read a YAML file of flags.

    Raises:
        UserError: it is absent, not UTF-8, not YAML or not a table; names the file and the flag `name`.
    """
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{name} {path}: {' '.join(str(error).split())}; expected YAML of flags") from None
    if not isinstance(values, (dict, type(None))):
        raise UserError(f"{name} {path}: holds {type(values).__name__}; expected YAML of flags, a key each")
    return values or {}


def _kind(hint: Any, default: Any) -> dict[str, Any]:
    """How a field of this type is read: `tuple[X, ...]` as one or more words."""
    if get_origin(hint) is tuple:
        return {"type": get_args(hint)[0], "nargs": "+", "default": list(default)}
    return {"type": hint, "default": default}


def _explain(message: str) -> str:
    """One line out of jsonargparse's message."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    line = re.sub(r"unrecognized arguments?:", "unknown flag", line)
    line = re.sub(r"Option '([^']+)' is not accepted", r"unknown key '\1' in the YAML file", line)
    line = re.sub(r"Parser key \"([^\"]+)\":", r"--\1:", line)
    several = r"Does not validate against any of the Union subtypes Subtypes: (\[.*\]) Errors: .* Given value:"
    line = re.sub(rf"{several}|Expected a (<class '\w+'>|\S+|typing\.Literal\[.*\])\. Got value:", _expected, line)
    quote = "expected text, found the number or yes/no that YAML makes of it, \\1; quote it"
    return re.sub(r"expected str, found (\S+)", quote, line)


def _expected(found: re.Match[str]) -> str:
    """What jsonargparse expects of a value, in the words that a user would write."""
    kinds = re.findall(r"<class '(\w+)'>|Literal\[([^\]]*)\]", found[0].split(" Errors: ")[0])
    return f"expected {', '.join(kind or words.replace(chr(39), '') for kind, words in kinds) or found[2]}, found"


def dump(path: Path, groups: Sequence[Any]) -> None:
    """Write the resolved configuration as YAML that `--config` reads back."""
    write_text(path, yaml.safe_dump(flags(groups), sort_keys=False, allow_unicode=True))


def flags(groups: Sequence[Any]) -> dict[str, Any]:
    """The values of all flags of some instances of groups, by name."""
    values: dict[str, Any] = {}
    for group in groups:
        values |= dataclasses.asdict(group)
    return values


def common_flags(group: Any, other: type) -> dict[str, Any]:
    """The values of the flags of an instance of a group that another group has too, by name."""
    names = {item.name for item in dataclasses.fields(other)}
    return {item.name: getattr(group, item.name) for item in dataclasses.fields(group) if item.name in names}


def unusual(group: Any) -> dict[str, Any]:
    """The flags of an instance of a group that are not at their defaults."""
    values = {item.name: (getattr(group, item.name), item.default) for item in dataclasses.fields(group)}
    # A list that was not given is an empty one.
    return {name: value for name, (value, default) in values.items() if value not in (default, [])}


def numbers(text: str, name: str) -> list[int]:
    """Read "1,3,5".

    Raises:
        UserError: something between the commas is not a whole number; names the flag `name`.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{name} {text!r}: expected whole numbers with commas between, such as 1,3,5") from None
