"""The import arrows of the layout: recipes know the packages; packages know the floor; the floor knows nothing."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "minddistill"
FLOOR = {"config", "errors", "files", "launch", "link", "native", "params", "problems", "runtime"}
FLOOR |= {"signals", "workers"}
PACKAGES = {"bench", "data", "distill", "evaluation", "export", "models", "prune", "search", "train"}
# A model runs as it was described, with its tokenizer, and its logits become scores as in evaluation; what is pruned is
# a model and its tokenizer.
READS = {"export": {"models", "data", "evaluation"}, "prune": {"models", "data"}}


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
        assert imported(file) <= FLOOR | READS.get(file.parent.name, set()), file


def test_nothing_is_unpickled_unpacked_or_fetched():
    """No module that unpickles, unpacks archives or speaks to a network is imported, and no call asks for a pickle."""
    never = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
    never |= {"tarfile", "zipfile", "urllib", "http", "requests", "aiohttp", "huggingface_hub", "datasets"}
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & never, file
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] not in never, file
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "shutil.unpack_archive", "yaml.load", "np.fromfile"), file
                assert not {word.arg for word in node.keywords} & {"allow_pickle", "shell"}, file


def test_every_command_has_a_recipe():
    from minddistill.__main__ import COMMANDS

    recipes = {file.stem for file in (SOURCE / "recipes").glob("*.py")} - {
        "__init__",
        "checks",
        "common",
        "comparison",
        "flags",
        "judging",
        "labels",
        "likely_words",
        "matching",
        "prune_job",
        "prune_structured",
        "qat",
        "resume",
        "run",
        "stage",
        "student",
        "task_job",
        "teacher_cache",
    }
    assert {module for module, _ in COMMANDS.values()} == recipes
