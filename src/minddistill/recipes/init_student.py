"""A student on word vectors as it stands before training: vocabulary of a text, tokenizer, vectors, new weights."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import runtime
from ..config import flag, parse
from ..data.glove import WordVectors, read_vectors
from ..data.tasks import Example, read_examples
from ..data.tokenizer import SPECIAL_WORDS, split_words, word_tokenizer
from ..errors import UserError
from ..files import RECORD_FILE
from ..models import store
from ..models.presets import word_preset
from . import prepare_task


@dataclass
class Config(prepare_task.TextFlags):
    """Text and vectors in, a model directory out."""

    student: str = flag("glove-cnn", "glove-cnn, densenet-cnn or densenet-dsa")
    glove: str = flag("", "word vectors as text, gzipped or not")
    split: str = flag("train", "split whose words make the vocabulary")
    min_count: int = flag(1, "times that a word must occur there")
    more_words: int = flag(0, "so many of the first words of the vectors' file are taken besides")
    max_length: int = flag(512, "longest text in words, which records may then have")
    output_dir: str = flag("", "where the model directory is written, in the place of an earlier one")
    seed: int = flag(42, "of the weights, and of the vectors of words that the file does not have")


def run(config: Config) -> Path:
    """Write the student's directory, which `prepare-task --tokenizer` and `distill --load_gd_ckpt_path` take. Returns it.

    Raises:
        UserError: a flag, the text or the vectors are wrong.
    """
    shape, target = word_preset(config.student), _target(config.output_dir)
    task, files = prepare_task.task_and_files(config)
    if config.split not in files:
        raise UserError(f"--split {config.split}: no such file; expected one of {', '.join(files)}")
    source = files[config.split]
    counts = count_words(read_examples(source, task, config.split, labelled=False))
    frequent = [word for word, count in sorted(counts.items(), key=_rank) if count >= config.min_count]
    if not frequent:
        raise UserError(
            f"{source}: no word occurs {config.min_count} times; expected more text, or a smaller --min_count"
        )
    vectors = _vectors(config, set(frequent))
    words = [word for word in dict.fromkeys((*frequent, *vectors.words)) if word not in SPECIAL_WORDS]
    table = word_table(words, vectors, config.seed)
    runtime.start()
    shape = shape.with_(vocab_size=len(table), embedding_size=table.shape[1], max_length=config.max_length)
    model = store.new(shape, config.seed)
    model.embeddings.set_vectors(table)
    with tempfile.TemporaryDirectory() as scratch:
        word_tokenizer(words).save(str(Path(scratch) / "tokenizer.json"))
        store.save(
            target,
            model,
            tokenizer_from=Path(scratch),
            command="minddistill init-student",
            parents={"vectors": config.glove},
            data={"vocabulary": str(source), "task": task.name},
            metrics={},
        )
    known = counts.keys() & set(vectors.words)
    print(
        f"{target}: {shape.summary}; the file has {len(known)} of the {len(counts)} words of {source}, "
        f"{sum(counts[word] for word in known) / counts.total():.1%} of its length"
    )
    return target


def _rank(item: tuple[str, int]) -> tuple[int, str]:
    """Frequent words first, equal ones by the alphabet."""
    return -item[1], item[0]


def _vectors(config: Config, words: set[str]) -> WordVectors:
    """The vectors of `words` and of `--more_words`.

    Raises:
        UserError: there are none.
    """
    if not config.glove:
        raise UserError("--glove is empty; expected a file of word vectors")
    return read_vectors(Path(config.glove), config.more_words, words)


def _target(name: str) -> Path:
    path = Path(name)
    if not name:
        raise UserError("--output_dir is empty; expected the directory to write")
    if path.exists() and not (path / RECORD_FILE).is_file():
        raise UserError(f"--output_dir {path}: is there, and not a model directory of ours; expected a new one")
    return path


def count_words(examples: Iterable[Example]) -> Counter[str]:
    """How often each word occurs in the texts."""
    counts: Counter[str] = Counter()
    for example in examples:
        for text in (example.text, example.text_pair):
            counts.update(split_words(text or ""))
    return counts


def word_table(words: list[str], vectors: WordVectors, seed: int) -> np.ndarray:
    """Vectors (V, D) float32 of the special words and of `words`: zero for padding, drawn from a normal distribution of the
    vectors' own deviation for words without one."""
    shape = len(SPECIAL_WORDS) + len(words), vectors.vectors.shape[1]
    table = np.random.default_rng(seed).standard_normal(shape, np.float32) * vectors.vectors.std()
    places = {word: place for place, word in enumerate(words, len(SPECIAL_WORDS))}
    mine = [(places[word], row) for row, word in enumerate(vectors.words) if word in places]
    here, there = np.array(mine).T
    table[here] = vectors.vectors[there]
    table[0] = 0
    return table


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill init-student`."""
    run(*parse("minddistill init-student", "A student on word vectors, before training.", [Config], argv))
