"""The files in `configs/`: each is what the command that opens it takes."""

import importlib
import re
from pathlib import Path

import pytest

from minddistill.__main__ import COMMANDS
from minddistill.config import parse

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_is_read_by_its_command(file):
    command = re.search(rf"^# +minddistill (\S+) --config configs/{file.name}", file.read_text(), re.MULTILINE)[1]
    recipe = importlib.import_module(f"minddistill.recipes.{COMMANDS[command][0]}")
    parse(f"minddistill {command}", "", recipe.GROUPS, ["--config", str(file)])  # raises where a key or value is wrong
