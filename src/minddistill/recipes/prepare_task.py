"""Text of a task to record directories, one for each split."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from ..config import flag, parse, unusual
from ..data import records
from ..data.shards import LOGITS_COLUMN, write_mindrecord, write_tfrecord
from ..data.tasks import (
    CUSTOM,
    METRICS,
    TASKS,
    Example,
    Task,
    encode_label,
    encode_logits,
    label_table,
    logit_names,
    read_examples,
    task_named,
    text_files,
)
from ..data.tokenizer import fingerprint, load_tokenizer, pad_id
from ..data.tokens import read_sentences, word_labels
from ..errors import UserError
from ..evaluation import metrics
from ..files import checksum, model_path, require_directory
from ..problems import MULTI, REGRESSION, SEPARATOR, SINGLE, TOKEN
from ..workers import core_count, worker_pool
from .resume import begin_records

_ROWS_A_SHARD = 20_000
_ROWS_A_CHUNK = 512


@dataclass
class TextFlags:
    """Text of a task."""

    task_name: str = flag("", f"task of the table ({', '.join(TASKS)}) or custom")
    data_dir: str = flag("", "directory with the task's official files")
    train_file: str = flag(
        "",
        "TSV, CSV or JSONL of the training rows, or a directory that label or augment wrote; CoNLL or CLUENER's JSONL of "
        "tokens; replaces data_dir's",
    )
    dev_file: str = flag("", "rows of the dev set, likewise")
    test_file: str = flag("", "rows of the test set, likewise; its label column may be absent")
    text_column: str = flag("text", "column of the text, custom task")
    text_pair_column: str = flag("", "column of the second text, custom task; empty for single texts")
    label_column: str = flag("label", "column of the label, custom task")
    labels: str = flag("", "class names in the order of the logits, with commas between; else the data's, sorted")
    problem_type: Literal[
        "single_label_classification", "multi_label_classification", "regression", "token_classification"
    ] = flag(SINGLE, "what the labels of a custom task mean, as Hugging Face's config.json has it")
    label_separator: str = flag(SEPARATOR, "what stands between the labels of a row, multi-label task")
    metrics: str = flag("", "a custom task's metrics with commas between, the first selects the best model")
    out_of_scope: str = flag("", "label of the rows that belong to no class; a class itself if training rows have it")


@dataclass
class Config(TextFlags):
    """Text in, records out."""

    tokenizer: str = flag("", "model directory whose tokenizer makes the ids")
    output_dir: str = flag("", "where a record directory is written for each split")
    max_seq_length: int = flag(0, "tokens a row at most; 0 takes the task's own")
    dataset_type: str = flag("tfrecord", "tfrecord or mindrecord")
    workers: int = flag(0, "processes; 0 takes one a core")


def run(config: Config) -> dict[str, dict]:
    """Write every split that has a file. Returns the `meta.json` of each by split.

    Run again with the same flags, it goes on with the splits and shards that are missing.

    Raises:
        UserError: a flag, file, row or label is wrong.
    """
    task, files = task_and_files(config)
    if config.dataset_type not in records.SUFFIXES:
        raise UserError(f"--dataset_type {config.dataset_type!r}: expected tfrecord or mindrecord")
    length = records.check_length(config.max_seq_length or task.max_length)
    if not config.output_dir:
        raise UserError("--output_dir is empty; expected the directory to write records to")
    tokenizer_dir, tokenizer = tokenizer_of(config)
    base = description(task, tokenizer, length)
    table: dict[str, str] = {}
    found = {}
    for split, path in files.items():
        examples = list(_read(path, task, split))
        if not examples:
            raise UserError(f"{path}: no rows; expected at least one")
        if not table and task.problem != REGRESSION:
            told = next((example.logits for example in examples if example.logits is not None), None)
            table = label_table(task, [*(example.label for example in examples), *logit_names(told)])
            if len(table) < 2:
                raise UserError(f"{path}: only one label, {', '.join(map(repr, table))}; expected at least two classes")
        labelled = all(example.label is not None for example in examples)
        meta = base | {
            "split": split,
            "labels": list(table.values()),
            "raw_labels": list(table),
            "labelled": labelled,
            "rows": len(examples),
            "source": path.name,
        }
        _write_split(Path(config.output_dir) / split, path, examples, task, table, meta, tokenizer_dir, config)
        found[split] = meta
    return found


def description(task: Task, tokenizer: Tokenizer, length: int) -> dict[str, Any]:
    """What `meta.json` says of a task's records, whatever their split."""
    return {
        "task": task.name,
        "tokenizer": fingerprint(tokenizer),
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_id": pad_id(tokenizer),
        "seq_length": length,
        "problem_type": task.problem,
        "metrics": list(task.metrics),
        **({"out_of_scope": task.out_of_scope} if task.out_of_scope else {}),
    }


def _read(path: Path, task: Task, split: str) -> Iterator[Example]:
    labelled = not split.startswith("test")
    return read_sentences(path, labelled) if task.problem == TOKEN else read_examples(path, task, split, labelled)


def schema(task: Task, classes: int, length: int, rows: int, logits: bool = False) -> dict:
    """The schema of a task's records, with a teacher's logits among them or not."""
    size = {MULTI: classes, TOKEN: length}.get(task.problem, 1)
    kind = "float32" if task.problem == REGRESSION else "int64"
    taught = {LOGITS_COLUMN: ("float32", classes or 1)} if logits else None
    return records.schema(length, rows, kind, taught, label_size=size)


def encoded(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    task: Task,
    table: Mapping[str, str],
    length: int,
    where: Callable[[int], str],
    logits: bool = False,
) -> Iterator[dict[str, list]]:
    """The records of examples.

    Args:
        tokenizer: that cuts texts to `length`.
        where: the place of an example, by its number among these, for messages.
        logits: whether a teacher's logits are among the columns.
    """
    pad, numbered, tokens = pad_id(tokenizer), enumerate(examples), task.problem == TOKEN
    encode = tokenizer.encode_batch if tokens else tokenizer.encode_batch_fast  # which knows no places in the text
    while chunk := list(islice(numbered, _ROWS_A_CHUNK)):
        texts = [e.text if e.text_pair is None else (e.text, e.text_pair) for _, e in chunk]
        for (index, example), encoding in zip(chunk, encode(texts), strict=True):
            row = records.padded(encoding.ids, len(encoding.ids) - sum(encoding.type_ids), length, pad)
            label = encode_label(task, table, example.label, where(index))
            if tokens:
                classes = label if example.label is not None else label * len(example.words)
                label = word_labels(example.text, encoding, example.words, classes, length)
            row["label_ids"] = label
            if logits:
                row[LOGITS_COLUMN] = encode_logits(task, table, example.logits, where(index))
            yield row


def tokenizer_of(config: Config) -> tuple[Path, Tokenizer]:
    """The directory that `--tokenizer` names, and the tokenizer in it.

    Raises:
        UserError: there is none.
    """
    if not config.tokenizer:
        raise UserError("--tokenizer is empty; expected a model directory with a tokenizer")
    directory = require_directory(model_path(config.tokenizer), "a model directory with a tokenizer (--tokenizer)")
    return directory, load_tokenizer(directory)


def task_and_files(config: TextFlags) -> tuple[Task, dict[str, Path]]:
    """The task that the flags name, and the file of each split.

    Raises:
        UserError: the task is unknown, or none of its files is there.
    """
    task = task_of(config)
    given = {"train": config.train_file, "dev": config.dev_file, "test": config.test_file}
    files = {split: Path(path) for split, path in given.items() if path}
    if task.name != CUSTOM and (config.data_dir or not files):
        found = _official(task, config.data_dir) | files
        # The training rows first: they name the classes.
        files = {split: found[split] for split in sorted(found, key=lambda split: split != "train")}
    if task.name == CUSTOM and config.data_dir:
        raise UserError(
            f"--data_dir {config.data_dir}: holds the files of a named task; a custom one's are --train_file, --dev_file and "
            "--test_file"
        )
    if not files:
        raise UserError("--task_name custom: no file; give --train_file, --dev_file or --test_file")
    return task, files


def task_of(config: TextFlags) -> Task:
    """The task that the flags name.

    Raises:
        UserError: it is unknown, or flags do not suit it.
    """
    _check_flags(config)
    if config.task_name.lower() == CUSTOM:
        task = Task(
            CUSTOM,
            text=config.text_column,
            text_pair=config.text_pair_column or None,
            label=config.label_column,
            problem=config.problem_type,
            separator=config.label_separator,
            out_of_scope=config.out_of_scope,
            metrics=_metrics(config),
        )
    else:
        task = task_named(config.task_name)
    if config.labels:
        if task.problem == REGRESSION:
            raise UserError(f"--labels {config.labels}: not of {REGRESSION}, whose labels are numbers")
        names = [name.strip() for name in config.labels.split(",")]
        if not all(names):
            raise UserError(f"--labels {config.labels}: an empty name; expected classes with one comma between")
        if len(set(names)) < len(names):
            raise UserError(f"--labels {config.labels}: a name twice; expected each class once")
        task = replace(task, labels={name: name for name in names})
    return task


def _official(task: Task, directory: str) -> dict[str, Path]:
    """The task's files in a directory, by split."""
    place = require_directory(directory, f"the directory of {task.name}'s files (--data_dir)")
    files = {split: place / name for split, name in task.files.items() if (place / name).is_file()}
    if not files:
        raise UserError(f"{place}: none of {task.name}'s files in it; expected {', '.join(task.files.values())}")
    return files


def _metrics(config: TextFlags) -> tuple[str, ...]:
    """The metrics of a custom task: those asked for, or those that suit it."""
    known = metrics.METRICS[config.problem_type]
    names = tuple(name.strip() for name in config.metrics.split(",") if name.strip())
    wrong = [name for name in names if name not in known]
    if wrong:
        raise UserError(f"--metrics {wrong[0]}: not a metric of {config.problem_type}; expected {', '.join(known)}")
    scope = ("in_scope_accuracy", "out_of_scope_recall") if config.out_of_scope else ()
    return names or (*METRICS[config.problem_type], *scope)


# The problems of a custom task that read a flag, where not all do.
_READ = {
    "label_separator": (MULTI,),
    "out_of_scope": (SINGLE,),
    **dict.fromkeys(("text_column", "text_pair_column", "label_column"), (SINGLE, MULTI, REGRESSION)),
}


def _check_flags(config: TextFlags) -> None:
    """See that a custom task's flags suit its problem, and that no other task has them.

    Raises:
        UserError: a flag would not be read, or says nothing.
    """
    given = unusual(config)
    if config.task_name.lower() != CUSTOM:
        columns = ("text_column", "text_pair_column", "label_column")
        unread = [
            name for name in ("problem_type", "label_separator", "metrics", "out_of_scope", *columns) if name in given
        ]
        if unread:
            raise UserError(f"--{unread[0]} is for --task_name {CUSTOM}; {config.task_name} has its own")
        return
    for name, problems in _READ.items():
        if name in given and config.problem_type not in problems:
            raise UserError(f"--{name} {given[name]}: not of {config.problem_type}; it is for {', '.join(problems)}")
    for name in ("in_scope_accuracy", "out_of_scope_recall"):
        if name in config.metrics and not config.out_of_scope:
            raise UserError(f"--metrics {name}: needs --out_of_scope, the label of rows that belong to no class")
    if not config.label_separator.strip():
        raise UserError("--label_separator is empty; expected what stands between the labels of a row")


def _write_split(
    directory: Path,
    source: Path,
    examples: list[Example],
    task: Task,
    table: dict[str, str],
    meta: dict,
    tokenizer_dir: Path,
    config: Config,
) -> None:
    workers = config.workers or core_count()
    unused = ("workers", "output_dir", "data_dir", "train_file", "dev_file", "test_file")
    plan = {name: value for name, value in asdict(config).items() if name not in unused}
    plan |= {"tokenizer": meta["tokenizer"], "max_seq_length": meta["seq_length"], "labels": meta["raw_labels"]}
    own = getattr(config, f"{meta['split']}_file", "")
    plan[f"{meta['split']}_file" if own else "data_dir"] = {file.name: checksum(file) for file in text_files(source)}
    finished, begun_with = begin_records(directory, plan, workers)
    if finished:
        print(f"{meta['split']}: finished before, {finished['rows']} rows in {directory}")
        return
    count = -(-len(examples) // _ROWS_A_SHARD)
    count = max(count, min(begun_with, len(examples) // 2000)) or 1
    size = -(-len(examples) // count)
    columns = schema(task, len(table), meta["seq_length"], len(examples), any(e.logits is not None for e in examples))
    make = partial(
        _write_shard,
        source=source,
        task=task,
        table=table,
        columns=columns,
        tokenizer_dir=tokenizer_dir,
    )
    ending = records.SUFFIXES[config.dataset_type][0]
    jobs = []
    for index, start in enumerate(range(0, len(examples), size)):
        name = f"{meta['split']}-{index:05d}-of-{count:05d}{ending}"
        jobs.append((directory / name, start, examples[start : start + size]))
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            make(job)
    else:
        with worker_pool(min(workers, len(jobs))) as pool:
            list(pool.map(make, jobs))
    records.finish_directory(directory, columns, meta | {"plan": plan})
    print(f"{meta['split']}: {meta['rows']} rows of {source} in {directory}")


def _write_shard(
    job: tuple[Path, int, list[Example]],
    source: Path,
    task: Task,
    table: dict[str, str],
    columns: dict,
    tokenizer_dir: Path,
) -> None:
    path, start, examples = job
    if path.is_file():
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    length = columns["columns"]["input_ids"]["shape"][0]
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.enable_truncation(length, strategy="longest_first")
    logits = LOGITS_COLUMN in columns["columns"]
    rows = encoded(examples, tokenizer, task, table, length, lambda index: f"{source}: row {start + index + 1}", logits)
    if path.suffix == ".mindrecord":
        write_mindrecord(path, rows, columns["columns"])
    else:
        write_tfrecord(path, rows, records.float_columns(columns))


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill prepare-task`."""
    run(*parse("minddistill prepare-task", "Write the records of a task.", [Config], argv))
