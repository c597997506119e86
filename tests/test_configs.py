"""The files in `configs/`: each is what the command that opens it takes."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from minddistill.__main__ import COMMANDS
from minddistill.config import parse
from minddistill.recipes import prune

README = Path(__file__).parents[1] / "README.md"
FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_configuration_is_read_by_its_command(file):
    command = re.search(rf"^# +minddistill (\S+) --config configs/{file.name}", file.read_text(), re.MULTILINE)[1]
    recipe = importlib.import_module(f"minddistill.recipes.{COMMANDS[command][0]}")
    groups = parse(f"minddistill {command}", "", recipe.GROUPS, ["--config", str(file)])
    found = {name: value for group in groups for name, value in vars(group).items()}
    written = yaml.safe_load(file.read_text())
    assert {name: found[name] for name in written} == written


def test_the_groups_of_the_readme_are_read(tmp_path):
    (block,) = (part for part in README.read_text().split("```") if part.startswith("yaml\n") and "groups:" in part)
    file = tmp_path / "groups.yaml"
    file.write_text(block.removeprefix("yaml\n"))
    config, sparsity, groups, structure, *_ = parse("minddistill prune", "", prune.GROUPS, ["--config", str(file)])
    found = prune.settings_of(config, sparsity, groups, structure)
    assert [(group.pattern, group.target_sparsity, group.criterion) for group in found] == [
        ("4x1", 0.9, "snip_momentum"),
        ("2:4", 0.5, "snip_momentum"),
    ]
