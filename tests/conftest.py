"""What the tests share: a tiny vocabulary, a tiny teacher, and where the real data is."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")
import minddistill  # noqa: F401  # isort: skip  (before MindSpore, which reads what it sets)

import mindspore as ms
import pytest
from small import QUICK, command

from minddistill.files import write_json
from minddistill.models import store
from minddistill.models.presets import preset

WORDS = [
    "the",
    "a",
    "film",
    "movie",
    "is",
    "was",
    "good",
    "great",
    "fun",
    "bad",
    "dull",
    "poor",
    "not",
    "very",
    "and",
    "plot",
    "acting",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".", ","]


@pytest.fixture(scope="session", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


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
    path = tmp_path_factory.mktemp("vocabulary")
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    write_json(path / "tokenizer_config.json", {"do_lower_case": True})
    return path


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory, vocabulary) -> Path:
    """A random encoder of 4 layers, hidden 32, as a model directory."""
    config = preset("test-4l-32").with_(vocab_size=len(VOCABULARY), max_position_embeddings=32)
    path = tmp_path_factory.mktemp("models") / "encoder"
    return store.save(
        path,
        store.new(config, seed=3),
        tokenizer_from=vocabulary,
        command="test",
        parents={},
        data={},
        metrics={},
    )


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """Train, dev and test TSV whose label is told by one word."""
    path = tmp_path_factory.mktemp("text")
    good, bad = ("good", "great", "fun"), ("bad", "dull", "poor")
    for split, count in (("train", 240), ("dev", 50), ("test", 30)):
        lines = ["text\tlabel"]
        for index in range(count):
            word = (good if index % 2 else bad)[index % 3]
            filler = " ".join(WORDS[(index * 7 + k) % 6] for k in range(index % 5))
            lines.append(f"the {filler} plot is {word}\t{'yes' if index % 2 else 'no'}")
        (path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory, tiny_text, vocabulary) -> Path:
    """Records of the tiny text: train, dev and test."""
    out = tmp_path_factory.mktemp("data")
    files = [word for split in ("train", "dev", "test") for word in (f"--{split}_file", tiny_text / f"{split}.tsv")]
    flags = ["--task_name", "custom", "--tokenizer", vocabulary, "--output_dir", out, "--max_seq_length", 12]
    assert command("prepare-task", *flags, *files) == 0
    return out


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, data, tiny_encoder) -> Path:
    """The tiny encoder, trained on the tiny text."""
    out = tmp_path_factory.mktemp("teacher")
    flags = ["--model", tiny_encoder, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    more = ["--epoch_size", 6, "--learning_rate", 5e-3, "--output_dir", out, *QUICK]
    assert command("finetune", *flags, *more) == 0
    return out / "best"
