"""The files in `configs/`: each is what the command that opens it takes."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from minddistill.__main__ import COMMANDS
from minddistill.config import parse

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_is_read_by_its_command(file):
    command = re.search(rf"^# +minddistill (\S+) --config configs/{file.name}", file.read_text(), re.MULTILINE)[1]
    recipe = importlib.import_module(f"minddistill.recipes.{COMMANDS[command][0]}")
    groups = parse(f"minddistill {command}", "", recipe.GROUPS, ["--config", str(file)])
    found = {name: value for group in groups for name, value in vars(group).items()}
    written = yaml.safe_load(file.read_text())
    assert {name: found[name] for name in written} == written
