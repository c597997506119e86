"""Augmented training text of a task, as a record directory: words replaced by likely or near ones, or masked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tokenizers import Tokenizer

from ..config import flag, parse, unusual
from ..data import augment, records
from ..data.glove import read_vectors
from ..data.shards import tfrecord_payloads, write_tfrecord
from ..data.speech import Tagger
from ..data.tasks import SHARD_ENDING, Example, Task, label_table, read_examples, text_files, text_lines, write_examples
from ..data.tokenizer import fingerprint, load_tokenizer, special_id
from ..errors import UserError
from ..files import checksum
from ..problems import REGRESSION, SINGLE, TOKEN
from ..workers import core_count, threads_each, worker_pool
from . import prepare_task
from .labels import label_order
from .resume import begin_records, model_content

if TYPE_CHECKING:
    from .likely_words import LikelyWords

_TEXT = "jsonl"  # the --dataset_type of text
_ROWS_A_SHARD = 2_000  # of the original text
_ROWS_A_CHUNK = 1_000  # whose sentences are sorted by length


@dataclass
class Config(prepare_task.Config):
    """Text in, augmented records out; or text, with `--dataset_type jsonl`."""

    method: Literal["tinybert", "mask", "both"] = flag(
        "tinybert", "tinybert (likely and near words), mask (masks and n-grams), or both"
    )
    split: str = flag("train", "split whose text is augmented")
    times: int = flag(0, "sentences drawn for each text field of a row; 0 takes the task's own (20, 10 or 30)")
    mlm: str = flag("", "tinybert: model directory with a masked-LM head, for words of one word piece")
    glove: str = flag(
        "", "tinybert: word vectors as text, gzipped or not, of which the first 100,000 are read, for all other words"
    )
    p_replace: float = flag(0.4, "tinybert: probability that a word is replaced")
    candidates: int = flag(15, "tinybert: words that may stand for one")
    masks_together: int = flag(0, "tinybert: words masked in one forward; 0 for all of a sentence, 1 for one at a time")
    p_mask: float = flag(0.1, "mask: probability that a word is masked")
    p_pos: float = flag(
        0.1, "mask: probability that a word is replaced by another of its part of speech; needs --pos_model"
    )
    pos_model: str = flag("", "mask: spaCy pipeline that tells parts of speech, by package name or directory")
    p_ngram: float = flag(0.25, "mask: probability that an n-gram is masked")
    longest_ngram: int = flag(5, "mask: words of an n-gram, at most")
    mask_token: str = flag("", "mask: what stands for a masked word; the tokenizer's own by default")
    teacher: str = flag("", "classifier that an augmented row must convince; empty takes all rows")
    confidence: float = flag(0.5, "score of the row's label that the teacher must give it")
    batch_size: int = flag(
        64, "sentences of 32 word pieces that the models read together; more of shorter, fewer of longer ones"
    )
    compute_type: Literal["auto", "float16", "bfloat16", "float32", "int8"] = flag(
        "auto",
        "type of the masked-LM model's matrix products; auto is float16 on Ascend and GPU, float32 on CPU, int8 runs in "
        "ONNX Runtime on CPU",
    )
    workers: int = flag(1, "processes, each with models of its own; 0 takes one a core")
    seed: int = flag(42, "of what is drawn")


def run(config: Config) -> dict[str, Any]:
    """Write the split's rows and, behind each, its augmented ones; returns `meta.json`.

    Run again with the same flags, it goes on with the shards that are missing.

    Raises:
        UserError: a flag, file, row or model is wrong.
    """
    _check(config)
    config = replace(config, tokenizer=config.tokenizer or config.mlm)
    task, files = prepare_task.task_and_files(config)
    if task.problem == TOKEN:
        raise UserError(
            f"--task_name {config.task_name}: words that are replaced would lose their labels; not augmented"
        )
    if config.split not in files:
        raise UserError(f"--split {config.split}: no such file; expected one of {', '.join(files)}")
    source = files[config.split]
    tokenizer_dir, tokenizer = prepare_task.tokenizer_of(config)
    length = records.check_length(config.max_seq_length or task.max_length)
    examples = list(read_examples(source, task, config.split))
    if not examples:
        raise UserError(f"{source}: no rows; expected at least one")
    table = label_table(task, (example.label for example in examples))
    directory, plan = Path(config.output_dir), _plan(config, source, tokenizer)
    finished, _ = begin_records(directory, plan, 1)
    if finished:
        print(f"{config.split}: finished before, {finished['rows']} rows in {directory}")
        return finished
    count = -(-len(examples) // _ROWS_A_SHARD)
    text = config.dataset_type == _TEXT
    ending = SHARD_ENDING if text else records.SUFFIXES[config.dataset_type][0]
    shards = [
        _Shard(
            directory / f"{config.split}-{i:05d}-of-{count:05d}{ending}",
            i,
            start,
            examples[start : start + _ROWS_A_SHARD],
        )
        for i, start in enumerate(range(0, len(examples), _ROWS_A_SHARD))
    ]
    missing = [shard for shard in shards if not shard.path.is_file()]
    if missing:
        kinds = _words_of_kinds(config, examples)
        workers = min(config.workers or core_count(), len(missing))
        threads = threads_each(workers)
        make = partial(_Source, config, source, task, table, tokenizer_dir, length, kinds, threads)
        for shard in _written(missing, make, workers, threads):
            last = shard.start + len(shard.examples)
            print(f"{config.split}: rows {shard.start + 1} to {last} of {len(examples)} augmented", flush=True)
    rows_of = text_lines if text else partial(tfrecord_payloads, verify=False)
    written = sum(1 for shard in shards for _ in rows_of(shard.path))
    meta = prepare_task.description(task, tokenizer, length) | {
        "split": config.split,
        "labels": list(table.values()),
        "raw_labels": list(table),
        "labelled": True,
        "rows": written,
        "source": source.name,
        "augmented_from": len(examples),
        "plan": plan,
    }
    schema = None if text else prepare_task.schema(task, len(table), length, written)
    records.finish_directory(directory, schema, meta)
    print(f"{config.split}: {written} rows from {len(examples)} of {source} in {directory}")
    return meta


def _check(config: Config) -> None:
    if config.dataset_type not in ("tfrecord", _TEXT):
        raise UserError(
            f"--dataset_type {config.dataset_type}: augmented rows are written as tfrecord, or {_TEXT} for text"
        )
    if not config.output_dir:
        raise UserError("--output_dir is empty; expected the directory to write records to")
    if config.method != "mask" and not (config.mlm or config.glove):
        raise UserError(
            f"--method {config.method}: expected --mlm (a model directory with a masked-LM head; minddistill pretrain-mlm "
            "makes one), --glove (word vectors), or both"
        )
    _refuse_unread(config)
    for name in ("p_replace", "p_mask", "p_pos", "p_ngram", "confidence"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"--{name} {getattr(config, name)}: expected a probability, 0 to 1")
    for name in ("candidates", "longest_ngram", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: expected 1 or more")


def _refuse_unread(config: Config) -> None:
    """See that no flag is set that the others leave without a part."""
    given, words, masks = unusual(config), config.method != "mask", config.method != "tinybert"
    has_part = {
        **dict.fromkeys(("mlm", "glove", "p_replace", "candidates"), words),
        **dict.fromkeys(("masks_together", "compute_type"), words and config.mlm),
        **dict.fromkeys(("p_mask", "pos_model", "p_ngram", "longest_ngram", "mask_token"), masks),
        "p_pos": masks and config.pos_model,
        "confidence": config.teacher,
    }
    for name, part in has_part.items():
        if name in given and not part:
            raise UserError(
                f"--{name} {given[name]}: has no part in --method {config.method} with these flags; leave it out"
            )


def _plan(config: Config, source: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the records depend on."""
    places = ["output_dir", "data_dir", "train_file", "dev_file", "test_file", "workers", "tokenizer"]
    if config.compute_type != "int8":  # whose ranges are those of what is read together
        places.append("batch_size")
    plan = {name: value for name, value in asdict(config).items() if name not in places}
    for name in ("mlm", "glove", "teacher"):
        plan[name] = model_content(plan[name])
    files = {file.name: checksum(file) for file in text_files(source)}
    return plan | {"tokenizer": fingerprint(tokenizer), "files": files}


@dataclass(frozen=True)
class _Shard:
    """A file of records, and the rows of the original text, counted from 0, that go into it."""

    path: Path
    index: int
    start: int
    examples: list[Example]


def _written(shards: list[_Shard], make: Callable[[], _Source], workers: int, threads: int) -> Iterator[_Shard]:
    """Write shards, in several processes where asked to; gives each when it is there, in their order."""
    if workers == 1:
        source = make()
        for shard in shards:
            source.write(shard)
            yield shard
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with worker_pool(workers, "spawn") as pool:
        for shard, _ in zip(shards, pool.map(partial(_write, make), shards), strict=True):
            yield shard


_sources: list[_Source] = []  # of this process, once it has made one


def _write(make: Callable[[], _Source], shard: _Shard) -> None:
    if not _sources:
        _sources.append(make())
    _sources[0].write(shard)


def _words_of_kinds(config: Config, examples: Sequence[Example]) -> dict[str, list[str]]:
    """The words of each part of speech in the data set, as often as they occur; none without `--pos_model`."""
    found: dict[str, list[str]] = {}
    if config.pos_model:
        texts = [text for e in examples for text in (e.text, e.text_pair) if text is not None]
        for text, tags in zip(texts, Tagger(config.pos_model).tags(texts), strict=True):
            for word, tag in zip(text.split(), tags, strict=True):
                found.setdefault(tag, []).append(word)
    return found


class _Source:
    """Makes rows: each of the original, and behind it those drawn from it."""

    def __init__(
        self,
        config: Config,
        source: Path,
        task: Task,
        table: Mapping[str, str],
        tokenizer_dir: Path,
        length: int,
        kinds: Mapping[str, Sequence[str]],
        threads: int,
    ):
        self.config, self.source, self.task, self.table, self.kinds = config, source, task, table, kinds
        self.length, self.tokenizer = length, load_tokenizer(tokenizer_dir)
        self.tokenizer.enable_truncation(length, strategy="longest_first")
        self.times = config.times or augment.TIMES.get(task.name, augment.DEFAULT_TIMES)
        self.vectors = read_vectors(Path(config.glove)) if config.glove else None
        self.mlm = _likely_words(config, threads) if config.mlm and config.method != "mask" else None
        self.mask = config.mask_token or self.tokenizer.id_to_token(special_id(self.tokenizer, "[MASK]", "<mask>"))
        self.tagger = Tagger(config.pos_model) if kinds else None
        self.judge = _Judge(config, task, list(table.values()), source) if config.teacher else None

    def write(self, shard: _Shard) -> None:
        """Write a shard; what is drawn depends on the seed and the shard alone."""
        generator = np.random.Generator(np.random.Philox(key=[self.config.seed, shard.index]))
        made, place = self.rows(shard.examples, generator), f"{self.source}: row {shard.start + 1} or later"
        if self.config.dataset_type == _TEXT:
            write_examples(shard.path, ((example, {}) for example in made), self.task)
            return
        rows = prepare_task.encoded(made, self.tokenizer, self.task, self.table, self.length, lambda _: place)
        write_tfrecord(shard.path, rows, frozenset(["label_ids"] if self.task.problem == REGRESSION else []))

    def rows(self, examples: Sequence[Example], generator: np.random.Generator) -> Iterator[Example]:
        """The rows of some examples, in their order."""
        for start in range(0, len(examples), _ROWS_A_CHUNK):
            chunk = examples[start : start + _ROWS_A_CHUNK]
            drawn = self._drawn(chunk, generator)
            if self.judge is not None:
                drawn = self.judge.kept(drawn, [self.table.get(e.label or "", e.label or "") for e in chunk])
            for example, more in zip(chunk, drawn, strict=True):
                yield example
                yield from more

    def _drawn(self, chunk: Sequence[Example], generator: np.random.Generator) -> list[list[Example]]:
        """What is drawn for each example: one field is replaced at a time, the other stays as it is."""
        texts = list(dict.fromkeys(text for e in chunk for text in (e.text, e.text_pair) if text is not None))
        made = dict(zip(texts, self._sentences(texts, generator), strict=True))
        return [
            [replace(e, text=text) for text in made[e.text]]
            + [replace(e, text_pair=text) for text in (made[e.text_pair] if e.text_pair is not None else [])]
            for e in chunk
        ]

    def _sentences(self, texts: list[str], generator: np.random.Generator) -> list[list[str]]:
        """New sentences for each text."""
        config, found = self.config, [[] for _ in texts]
        if config.method != "mask":
            queries = [augment.query_of(text) for text in texts]
            for place, (query, words) in enumerate(zip(queries, self._candidates(queries), strict=True)):
                found[place] += augment.replaced(query, words, config.p_replace, self.times, generator)
        if config.method != "tinybert":
            options = {
                "p_mask": config.p_mask,
                "p_pos": config.p_pos,
                "p_ngram": config.p_ngram,
                "longest": config.longest_ngram,
                "words_of": self.kinds,
            }
            tags = self.tagger.tags(texts) if self.tagger else [()] * len(texts)
            for place, (text, kinds) in enumerate(zip(texts, tags, strict=True)):
                found[place] += augment.masked(text, self.mask, self.times, generator, tags=kinds, **options)
        return found

    def _candidates(self, queries: Sequence[augment.Query]) -> list[dict[int, list[str]]]:
        """What may stand at each place of each query: the model's words, else the nearest by vector."""
        found: list[dict[int, list[str]]] = [{} for _ in queries]
        if self.mlm is not None:
            found = self.mlm.candidates(queries)
        if self.vectors is not None:
            words = {query.words[place] for query in queries for place in query.places}
            near = self.vectors.nearest(sorted(words), self.config.candidates)
            for query, known in zip(queries, found, strict=True):
                for place in query.places:
                    known.setdefault(place, near[query.words[place]])
        return found


def _likely_words(config: Config, threads: int) -> LikelyWords:
    from .likely_words import LikelyWords

    return LikelyWords(
        config.mlm,
        count=config.candidates,
        together=config.masks_together,
        batch_size=config.batch_size,
        compute_type=config.compute_type,
        threads=threads,
    )


class _Judge:
    """A classifier that augmented rows must convince of their label."""

    def __init__(self, config: Config, task: Task, labels: Sequence[str], source: Path):
        from .. import pipeline

        if task.problem != SINGLE:
            raise UserError(f"--teacher: {task.name} is {task.problem}; its rows have no one label to be convinced of")
        self.path, self.least = config.teacher, config.confidence
        self.pipeline = pipeline(config.teacher, batch_size=config.batch_size)
        order = label_order(self.pipeline.labels, labels, f"--teacher {config.teacher}", source)
        self.places = dict(zip(labels, order or range(len(labels)), strict=True))

    def kept(self, drawn: Sequence[Sequence[Example]], labels: Sequence[str]) -> list[list[Example]]:
        """The rows to whose label the classifier gives the least score or more."""
        unknown = set(labels) - set(self.places)
        if unknown:
            raise UserError(f"--teacher {self.path}: knows {', '.join(self.places)}; the rows have {min(unknown)!r}")
        texts = [example.given for rows in drawn for example in rows]
        scores = iter(self.pipeline.scores(texts) if texts else ())
        return [
            [example for example in rows if next(scores)[self.places[label]] >= self.least]
            for rows, label in zip(drawn, labels, strict=True)
        ]


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill augment`."""
    run(*parse("minddistill augment", "Write augmented records of a task.", [Config], argv))
