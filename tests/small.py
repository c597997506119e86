"""Commands in this process, and the tiny vocabulary, text, records and models that the tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from minddistill.__main__ import run_command
from minddistill.files import write_json
from minddistill.models import store
from minddistill.models.presets import preset

QUICK = ["--batch_size", "16", "--log_interval", "5", "--buckets", "off"]
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


def command(name: str, *argv: object) -> int:
    """Run a command of minddistill; its exit code."""
    return run_command(name, [str(word) for word in argv])


def vocabulary(path: Path) -> Path:
    """Write a WordPiece vocabulary into an existing directory."""
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    write_json(path / "tokenizer_config.json", {"do_lower_case": True})
    return path


def encoder(path: Path, vocabulary: Path) -> Path:
    """Write a random encoder of 4 layers, hidden 32, as a model directory."""
    config = preset("test-4l-32").with_(vocab_size=len(VOCABULARY), max_position_embeddings=32)
    model = store.new(config, seed=3)
    return store.save(path, model, tokenizer_from=vocabulary, command="test", parents={}, data={}, metrics={})


def text(path: Path) -> Path:
    """Write train, dev and test TSV whose label is told by one word."""
    good, bad = ("good", "great", "fun"), ("bad", "dull", "poor")
    for split, count in (("train", 240), ("dev", 50), ("test", 30)):
        lines = ["text\tlabel"]
        for index in range(count):
            word = (good if index % 2 else bad)[index % 3]
            filler = " ".join(WORDS[(index * 7 + k) % 6] for k in range(index % 5))
            lines.append(f"the {filler} plot is {word}\t{'yes' if index % 2 else 'no'}")
        (path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return path


def records(out: Path, text: Path, vocabulary: Path) -> Path:
    """Prepare the records of the text: train, dev and test."""
    files = [word for split in ("train", "dev", "test") for word in (f"--{split}_file", text / f"{split}.tsv")]
    flags = ["--task_name", "custom", "--tokenizer", vocabulary, "--output_dir", out, "--max_seq_length", 12]
    assert command("prepare-task", *flags, *files) == 0
    return out


def training(out: Path, data: Path, encoder: Path) -> list[str]:
    """The command that makes the teacher."""
    flags = ["--model", encoder, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    more = ["--epoch_size", 6, "--learning_rate", 5e-3, "--output_dir", out, *QUICK]
    return ["finetune", *map(str, flags + more)]


def teacher(out: Path, data: Path, encoder: Path) -> Path:
    """Train an encoder on the records; its best model directory."""
    assert command(*training(out, data, encoder)) == 0
    return out / "best"


def stop_in_step(monkeypatch, number: int) -> None:
    """Let SIGTERM reach a training stage in a step, counted from 0, until the patch is undone."""
    from minddistill.train import loop

    fit = loop.fit

    def until(step, batches, state, **options):
        def told(batch, last):
            found = step(batch, last)
            if state.step == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return found

        fit(told, batches, state, **options)

    monkeypatch.setattr("minddistill.recipes.stage.fit", until)
