"""What the tests share: a tiny vocabulary, a tiny teacher, and where the real data is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")
import minddistill  # noqa: F401  # isort: skip  (before MindSpore, which reads what it sets)

import mindspore as ms
import pytest
import small

# Files that take longest; begun first, so that no process is left with one of them when the others have nothing more to do.
LONG = (
    "test_end_to_end",
    "test_quantize",
    "test_distributed",
    "test_prune",
    "test_step",
    "test_hub",
    "test_teacher_cache",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many KB, and gives it another size when asked again; skips where mounting is not allowed."""
    place = tmp_path / "disk"

    def mount(kilobytes: int) -> Path:
        again = "remount," if place.is_dir() else ""
        place.mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", f"{again}size={kilobytes}k", "tmpfs", str(place)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk of a size of its own can be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; tests that need it skip where it is absent."""
    path = Path(os.environ.get("MINDDISTILL_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data is not at {path}; set MINDDISTILL_SHARED")
    return path


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    """A directory with a tiny WordPiece vocabulary."""
    return small.vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory, vocabulary) -> Path:
    """A random encoder of 4 layers, hidden 32, as a model directory."""
    return small.encoder(tmp_path_factory.mktemp("models") / "encoder", vocabulary)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """Train, dev and test TSV whose label is told by one word."""
    return small.text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def data(tmp_path_factory, tiny_text, vocabulary) -> Path:
    """Records of the tiny text: train, dev and test."""
    return small.records(tmp_path_factory.mktemp("data"), tiny_text, vocabulary)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, data, tiny_encoder) -> Path:
    """The tiny encoder, trained on the tiny text."""
    return small.teacher(tmp_path_factory.mktemp("teacher"), data, tiny_encoder)


@pytest.fixture(scope="session")
def mlm(tmp_path_factory, data, tiny_encoder) -> Path:
    """The tiny encoder with a masked-LM head, trained on the sentences without their labels."""
    out = tmp_path_factory.mktemp("mlm")
    flags = ["--model", tiny_encoder, "--data_dir", data / "train", "--train", "all", "--learning_rate", "5e-3"]
    assert small.command("pretrain-mlm", *flags, "--epoch_size", "4", "--output_dir", out, *small.QUICK) == 0
    return out / "last"
