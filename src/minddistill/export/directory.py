"""The directory of an exported model: its graph, with what a model directory has beside the weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from ..files import RECORD_FILE, checksums, replace_directory
from ..models import hub, store
from ..models.config import ModelConfig, WordConfig
from .session import ONNX_FILE

MINDIR_FILE = "model.mindir"
_GRAPHS = {ONNX_FILE, MINDIR_FILE, "model_graph.mindir", "model_variables"}  # MindSpore parts a graph of more than 1 GB
_BESIDE = {"config.json", "README.md", RECORD_FILE, *store.TOKENIZER_FILES}


def check_target(directory: str) -> Path:
    """See that an exported model may be written to `--output_dir`, which it replaces.

    Raises:
        UserError: none is named, or it holds something else than an exported model.
    """
    path = Path(directory)
    if not directory:
        raise UserError("--output_dir is empty; expected the directory to write")
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path}: is a file; expected a directory")
    if os.path.ismount(path):
        raise UserError(f"--output_dir {path}: is a mount point, which cannot be replaced; give a directory inside it")
    held = {file.name for file in path.iterdir()} if path.exists() else set()
    others = held - _GRAPHS - _BESIDE if held & _GRAPHS and RECORD_FILE in held else held
    if others:
        raise UserError(f"--output_dir {path}: holds {min(others)}, not an exported model; expected a new directory")
    return path


def write(
    directory: Path,
    save: Callable[[Path], None],
    config: ModelConfig | WordConfig,
    source: Path,
    command: str,
    changes: Mapping[str, Any],
) -> Path:
    """Write a directory whole, in the place of an earlier one.

    Args:
        save: writes the graph into the directory it is given.
        config: of the model.
        source: the model's directory; its record and tokenizer are taken on.
        command: that the record names.
        changes: what the record says otherwise than that of the source.
    """
    record = {
        "minddistill": __version__,
        "command": command,
        "parents": {"model": str(source)},
        "data": {},
        "metrics": {},
        "parameters": 0,
        "transformers": hub.transformers_can_express(config),
    }
    known = store.read_record(source)
    record |= {name: known[name] for name in ("data", "metrics", "parameters") if name in known} | dict(changes)

    def fill(part: Path) -> None:
        save(part)
        record["files"] = checksums(file for file in sorted(part.iterdir()) if file.is_file())
        store.describe(part, directory.name, config, record)
        store.copy_tokenizer(source, part)

    replace_directory(directory.resolve(), fill)  # not a link in place of what it leads to
    return directory
