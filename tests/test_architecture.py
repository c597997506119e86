"""The import arrows of the layout: recipes know the packages; packages know the floor; the floor knows nothing."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "minddistill"
FLOOR = {"config", "errors", "files", "native", "params", "runtime"}
PACKAGES = {"data", "distill", "evaluation", "models", "train"}


def imported(path: Path) -> set[str]:
    """Top-level units of our own that a file imports, wherever in the file."""
    depth = len(path.relative_to(SOURCE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found - {"__version__"}


def test_floor_imports_nothing_above_it():
    for name in FLOOR - {"native"}:
        assert imported(SOURCE / f"{name}.py") <= FLOOR, name
    assert imported(SOURCE / "native" / "__init__.py") <= FLOOR


def test_packages_import_the_floor_and_themselves_only():
    files = [file for package in PACKAGES for file in (SOURCE / package).glob("*.py")]
    assert len(files) > 15
    for file in files:
        assert imported(file) <= FLOOR, file


def test_every_command_has_a_recipe():
    from minddistill.__main__ import COMMANDS

    recipes = {file.stem for file in (SOURCE / "recipes").glob("*.py")} - {
        "__init__",
        "common",
        "flags",
        "stage",
        "teacher_cache",
    }
    assert {module for module, _ in COMMANDS.values()} == recipes
