"""Raw text to record shards for general distillation: packed, shuffled, resumable, in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ..config import flag, parse
from ..data import records
from ..data.corpus import chunks, corpus_files, fill_segments, mask_tokens, sentences
from ..data.shards import write_mindrecord, write_tfrecord
from ..data.tokenizer import byte_level, fingerprint, load_tokenizer, pad_id, special_id
from ..errors import UserError
from ..files import checksum, model_path, read_json, require_directory, whole_file, write_json
from ..workers import core_count, worker_pool
from .resume import begin_records

_CHUNK_CHARACTERS = 1_000_000
_ROWS_A_SHARD = 50_000
_LEAST_MASKED = 20  # places for masked tokens in a row, as the zoo's records have them


@dataclass
class Config:
    """Text in, records out."""

    input: str = flag("", "text files or directories with commas between: a paragraph a line, blank between documents")
    tokenizer: str = flag("", "model directory whose tokenizer makes the ids")
    output_dir: str = flag("", "the record directory to write")
    max_seq_length: int = flag(128, "tokens of a segment; all segments are full")
    masked_lm_prob: float = flag(0.0, "part of the tokens to mask; 0, as in TinyBERT, masks none")
    seed: int = flag(42, "of the order and the masks")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    workers: int = flag(0, "processes; 0 takes one a core")


def run(config: Config) -> dict:
    """Write the record directory and return its `meta.json`.

    Text is tokenized chunk by chunk into files that a killed run leaves whole; then each shard draws its rows from
    all of them. Run again with the same flags, it goes on with the chunks and shards that are missing.

    Raises:
        UserError: a flag or file is wrong, or an earlier run in the same directory had other flags.
    """
    files = corpus_files([part for part in config.input.split(",") if part])
    directory = require_directory(model_path(config.tokenizer), "a model directory with a tokenizer (--tokenizer)")
    tokenizer = load_tokenizer(directory)
    if not config.output_dir:
        raise UserError("--output_dir is empty; expected the directory to write records to")
    records.check_length(config.max_seq_length, least=8)
    if not 0 <= config.masked_lm_prob < 1:
        raise UserError(f"--masked_lm_prob {config.masked_lm_prob}: expected a number from 0 up to, not including, 1")
    out = Path(config.output_dir)
    plan = {key: value for key, value in asdict(config).items() if key not in ("workers", "output_dir")}
    if byte_level(tokenizer):
        plan["sentence_blanks"] = True  # earlier records had sentences without the blank before them
    plan |= {"tokenizer": fingerprint(tokenizer), "input": {str(file): checksum(file) for file in files}}
    workers = config.workers or core_count()
    meta, begun_with = begin_records(out, plan, workers)
    if meta:
        print(f"{out}: finished before, {meta['rows']} rows")
        return meta
    with worker_pool(workers) as pool:
        counts, again = _tokenize(pool, 2 * workers, files, config, directory, out / records.WORK)
        shards = max(-(-sum(counts) // _ROWS_A_SHARD), min(begun_with, sum(counts)))
        return _write_shards(pool, counts, shards, config, directory, out, plan, again)


def _tokenize(
    pool: ProcessPoolExecutor, most: int, files: list[Path], config: Config, directory: Path, work: Path
) -> tuple[list[int], int]:
    """Chunk files `chunk_N.npy`; returns their numbers of rows, and the tokens that segments repeat."""
    jobs: list[Future] = []
    for index, group in enumerate(chunks(files, _CHUNK_CHARACTERS)):
        jobs.append(pool.submit(_chunk, index, group, config.max_seq_length, config.seed, directory, work))
        if len(jobs) > most:
            jobs[-1 - most].result()  # bounds what waits in memory
    found = [job.result() for job in jobs]
    if not sum(rows for rows, _ in found):
        raise UserError(f"{files[0]}: less text than one segment of {config.max_seq_length} tokens; give more text")
    return [rows for rows, _ in found], sum(again for _, again in found)


def _chunk(index: int, group: list[list[str]], length: int, seed: int, directory: Path, work: Path) -> tuple[int, int]:
    """Tokenize and pack one chunk: a file of (rows, length + 1) whose last column is where B begins."""
    path, note = work / f"chunk_{index:06d}.npy", work / f"chunk_{index:06d}.json"
    if path.is_file() and note.is_file():
        known = read_json(note, "the note of a chunk")
        return known["rows"], known["again"]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = load_tokenizer(directory)
    documents = []
    for document in group:
        parts = sentences(document[0]) + [part for paragraph in document[1:] for part in sentences(" " + paragraph)]
        encoded = tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        documents.append([encoding.ids for encoding in encoded])
    generator = np.random.Generator(np.random.Philox(key=[seed, index]))
    start, end = special_id(tokenizer, "[CLS]", "<s>"), special_id(tokenizer, "[SEP]", "</s>")
    ids, second, again = fill_segments(documents, length, start, end, generator)
    with whole_file(path) as part, open(part, "wb") as handle:
        np.save(handle, np.concatenate([ids, second[:, None]], 1))
    write_json(note, {"rows": len(ids), "again": again})
    return len(ids), again


def _write_shards(
    pool: ProcessPoolExecutor,
    counts: list[int],
    shards: int,
    config: Config,
    directory: Path,
    out: Path,
    plan: dict,
    again: int,
) -> dict:
    total = sum(counts)
    tokenizer = load_tokenizer(directory)
    length = config.max_seq_length
    extra = {}
    if config.masked_lm_prob:
        most = max(_LEAST_MASKED, math.ceil(length * config.masked_lm_prob))
        extra = {name: ("int64", most) for name in ("masked_lm_positions", "masked_lm_ids")}
        extra["masked_lm_weights"] = ("float32", most)
    table = records.schema(length, total, None, extra)
    make = partial(
        _shard,
        shards=shards,
        counts=counts,
        config=config,
        directory=directory,
        out=out,
        work=out / records.WORK,
        columns=table["columns"],
    )
    list(pool.map(make, range(shards)))
    meta = {
        "task": "corpus",
        "tokenizer": fingerprint(tokenizer),
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_id": pad_id(tokenizer),
        "seq_length": length,
        "labelled": False,
        "rows": total,
        "repeated_tokens": again / (total * length),
        "source": config.input,
        "plan": plan,
    }
    records.finish_directory(out, table, meta)
    print(
        f"{out}: {total} rows of {length} tokens in {shards} shards, {100 * meta['repeated_tokens']:.1f} % of tokens repeated"
    )
    return meta


def _shard(
    shard: int, shards: int, counts: list[int], config: Config, directory: Path, out: Path, work: Path, columns: dict
) -> None:
    """Write one shard: its part of a permutation of all rows, drawn anew by every shard from the same seed."""
    ending = records.SUFFIXES[config.dataset_type][0]
    path = out / f"corpus-{shard:05d}-of-{shards:05d}{ending}"
    if path.is_file():
        return
    order = np.random.Generator(np.random.Philox(key=[config.seed, 2**32])).permutation(sum(counts))[shard::shards]
    starts = np.concatenate([[0], np.cumsum(counts)])
    chunk = np.searchsorted(starts, order, side="right") - 1
    rows = np.empty((len(order), config.max_seq_length + 1), np.int32)
    for index in np.unique(chunk):
        mine = chunk == index
        rows[mine] = np.load(work / f"chunk_{index:06d}.npy", mmap_mode="r")[order[mine] - starts[index]]
    tokenizer = load_tokenizer(directory)
    special = {special_id(tokenizer, "[CLS]", "<s>"), special_id(tokenizer, "[SEP]", "</s>")}
    generator = np.random.Generator(np.random.Philox(key=[config.seed, 2**33 + shard]))

    def make() -> Iterator[dict]:
        for row in rows:
            ids, second = row[:-1], int(row[-1])
            masked: dict = {}
            if config.masked_lm_prob:
                mask, vocabulary = special_id(tokenizer, "[MASK]", "<mask>"), tokenizer.get_vocab_size()
                (most,) = columns["masked_lm_ids"]["shape"]
                ids, *found = mask_tokens(ids, special, config.masked_lm_prob, most, mask, vocabulary, generator)
                names = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
                masked = {name: value.tolist() for name, value in zip(names, found, strict=True)}
            yield records.padded(ids.tolist(), second, len(ids), 0) | masked

    if config.dataset_type == "mindrecord":
        write_mindrecord(path, make(), columns)
    else:
        write_tfrecord(path, make(), frozenset(["masked_lm_weights"]))


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill prepare-corpus`."""
    run(*parse("minddistill prepare-corpus", "Write records of raw text for general distillation.", [Config], argv))
