"""Whether a command given again is the one that was stopped, and what it may have changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import flags
from ..data import records
from ..errors import UserError
from ..files import checksum, damaged, model_path, read_json, remove_parts, write_json

# They say where, on what and how often, not what is learnt. Where models and records are does not count either: the
# content of those that a stage reads is part of its identity.
KEEPING = {
    "output_dir",
    "save_ckpt_path",
    "resume",
    "log_interval",
    "save_ckpt_step",
    "save_checkpoint_step",
    "max_ckpt_num",
}  # what is kept of a run, where and how often
FREE = KEEPING | {
    "device_target",
    "device_id",
    "device_num",
    "distribute",
    "enable_data_sink",
    "data_sink_steps",
    "do_train",
    "model",
    "load_teacher_ckpt_path",
    "load_gd_ckpt_path",
    "load_td1_ckpt_path",
    "teacher_num_attention_heads",
    "data_dir",
    "train_data_dir",
    "aug_train",
    "eval_data_dir",
    "schema_dir",
    "dataset_type",
    "task_name",
    "allow_weak_teacher",
    "batch_size",
    "max_skipped_steps",
    "verify_records",
}


def identity(
    groups: Sequence[Any], content: Mapping[str, Mapping[str, str]], free: Collection[str] = (), processes: int = 1
) -> dict[str, Any]:
    """What must be the same for a stage to go on: its flags, and the content of what it reads.

    The number of processes may change as long as all of them together take as many rows a step.

    Args:
        groups: instances of groups of flags.
        content: by flag, fingerprints by the name of the file or part.
        free: further flags that may change.
    """
    values = flags(groups)
    rows = {"batch_size x processes": values["batch_size"] * processes}
    fixed = {name: value for name, value in values.items() if name not in FREE and name not in free}
    # What JSON makes of it is what is compared: tuples become lists.
    return _placeless(json.loads(json.dumps(fixed | rows | dict(content))))


def _placeless(values: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without the place of a teacher's cache, whose content has an identity of its own."""
    kept = values.get("teacher_cache", "auto") not in ("auto", "off")
    return {**values, "teacher_cache": "a directory"} if kept else dict(values)


_START_OVER = "--resume false to start over"


def refuse_another(place: Path, was: Mapping[str, Any], now: Mapping[str, Any], or_else: str = _START_OVER) -> None:
    """See that what an earlier run left at `place` is of the same identity.

    Args:
        or_else: what the user may do besides, for the message.

    Raises:
        UserError: it is not; tells each flag's old and new value, and each file whose content is another.
    """
    was = _placeless(was)  # of earlier versions
    changed = [
        line for name in sorted(was.keys() | now.keys()) for line in _changes(name, was.get(name), now.get(name))
    ]
    if changed:
        raise UserError(
            f"{place}: left by another run: {'; '.join(changed)}; give what it had, another --output_dir, or {or_else}"
        )


def begin_records(directory: Path, plan: Mapping[str, Any], workers: int) -> tuple[dict[str, Any], int]:
    """Begin to write a record directory, or go on with it.

    Args:
        plan: what the records are made of and how, by flag.
        workers: processes that write them, on which the number of shards may depend.

    Returns:
        The content of `meta.json` where the directory is whole, else {}; and the number of processes that it was begun
        with.

    Raises:
        UserError: an earlier run had another plan, or something else is there.
    """
    note, finished = directory / records.WORK / "plan.json", directory / "meta.json"
    or_else = f"remove {directory}"
    if finished.is_file():
        meta = read_json(finished, "the description of the records")
        refuse_another(finished, meta.get("plan", {}), plan, or_else)
        for path, problem in damaged(directory, meta.get("files", {})):
            raise UserError(f"{path}: {problem}; {or_else}, and give the command again")
        shutil.rmtree(directory / records.WORK, ignore_errors=True)  # of a run that was killed at its very end
        return meta, workers
    there = {file.name for place in (directory, note.parent) if place.is_dir() for file in place.iterdir()}
    if note.is_file() and there - {records.WORK, note.name}:  # a plan of which nothing was written binds nobody
        begun = read_json(note, "the plan of an earlier run")
        refuse_another(note, begun["plan"], plan, or_else)
        for place in (directory, note.parent):
            remove_parts(place)
        return {}, begun["workers"]
    foreign = [file.name for file in directory.iterdir() if file.name != records.WORK] if directory.is_dir() else []
    if foreign:
        raise UserError(f"{directory}: holds {foreign[0]}, which is not ours; choose an empty --output_dir")
    write_json(note, {"plan": plan, "workers": workers})
    return {}, workers


def model_content(name: str) -> dict[str, int]:
    """Checksums of what a model directory, or another file that a flag names, holds, by name; of nothing if it is not there."""
    if not name:
        return {}
    path = model_path(name)
    patterns = ("model*.*", "config.json", "tokenizer*.json", "vocab*")
    files = [path] if path.is_file() else [file for pattern in patterns for file in sorted(path.glob(pattern))]
    return {file.name: checksum(file) for file in files}


def _changes(name: str, old: Any, new: Any) -> list[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"--{name} was {old!r}, is {new!r}"]
    told = {(True, False): "is gone", (False, True): "is new", (True, True): "changed"}
    parts = [part for part in sorted(old.keys() | new.keys()) if old.get(part) != new.get(part)]
    return [f"--{name}: {part} {told[part in old, part in new]}" for part in parts]
