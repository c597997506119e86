"""Broken inputs by the hundred: each must end in exit code 2 and one line that names the place.

`python tests/fuzz.py --cases 300` makes whole inputs with the product, breaks copies of them in ways that a seed
fixes, and gives each to the command that reads it: in one worker process, which is started anew where it dies or
hangs, and every so many through the real command line. What is not refused clearly is listed, and counts against the
last line. Only what is truly broken is made: where a change could by chance leave a valid input, the generator looks.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path
from typing import Any

SECONDS = 30
ROWS, LENGTH, WORDS = 12, 8, 40
BAD_JSON = [b"", b"{", b"\xff\xfe{}", b"[]", b"3", b"null", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"{} {}"]
BAD_NUMBERS = [-1, "7", 1.5, None, [3], {"a": 1}, True, 10**40]


@dataclass
class Case:
    """A command line whose input is broken; `place` is what its line must name."""

    name: str
    argv: list[str]
    place: str


Breaker = Callable[[Path, random.Random], str]
"""Breaks a copy of an input directory; returns the place."""


class Inputs:
    """Whole inputs under a directory, made with the product."""

    def __init__(self, root: Path):
        import mindspore as ms

        from minddistill.data import records, shards
        from minddistill.data.tokenizer import fingerprint, load_tokenizer
        from minddistill.files import write_json
        from minddistill.models import store
        from minddistill.models.presets import preset

        ms.set_context(mode=ms.GRAPH_MODE)
        self.root = root
        vocabulary = root / "vocabulary"
        vocabulary.mkdir(parents=True)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(WORDS - 5))]
        (vocabulary / "vocab.txt").write_text("\n".join(words) + "\n")
        write_json(vocabulary / "tokenizer_config.json", {"do_lower_case": True})
        config = preset("test-2l-32").with_(vocab_size=WORDS, max_position_embeddings=16, labels=("no", "yes"))
        made = {"command": "fuzz", "parents": {}, "data": {}, "metrics": {}, "tokenizer_from": vocabulary}
        store.save(root / "model", store.new(config, seed=1), **made)
        ms.save_checkpoint(store.new(config, seed=1), str(root / "model.ckpt"))
        meta = {"task": "custom", "labels": ["no", "yes"], "metrics": ["accuracy"], "labelled": True, "pad_id": 0}
        meta |= {"seq_length": LENGTH, "rows": 2 * ROWS, "tokenizer": fingerprint(load_tokenizer(vocabulary))}
        table = records.schema(LENGTH, 2 * ROWS, "int64")
        for part in range(2):
            shards.write_tfrecord(root / "tfrecord" / f"part-{part}.tfrecord", self.rows())
            shards.write_mindrecord(root / "mindrecord" / f"part-{part}.mindrecord", self.rows(), table["columns"])
        for kind in ("tfrecord", "mindrecord"):
            records.finish_directory(root / kind, table, meta)
        shutil.copytree(root / "tfrecord", root / "foreign")  # of another program: nothing says what was written
        (root / "foreign" / "meta.json").unlink()
        shutil.copytree(root / "model", root / "downloaded")
        (root / "downloaded" / "minddistill.json").unlink()

    @staticmethod
    def rows() -> list[dict[str, list[int]]]:
        from minddistill.data import records

        return [
            records.padded([2, *range(5, 5 + index % 5), 3], 2 + index % 5, LENGTH, 0) | {"label_ids": [index % 2]}
            for index in range(ROWS)
        ]


# --- what breaks files -----------------------------------------------------------------------------------------------


def flip(file: Path, draw: random.Random, low: int = 0, high: int | None = None) -> None:
    """Flip one bit of a file, between two places."""
    data = bytearray(file.read_bytes())
    data[draw.randrange(low, high or len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def cut(file: Path, draw: random.Random, never: frozenset[int] = frozenset()) -> None:
    """Cut a file somewhere, most often near its ends, but not to one of the sizes `never`."""
    size = file.stat().st_size
    edges = {0, 1, 4, 7, 8, 9, 11, 12, 13, size // 2, size - 17, size - 16, size - 5, size - 4, size - 1}
    kept = draw.choice(sorted({edge for edge in edges if 0 <= edge < size} - never) + [draw.randrange(1, 40)])
    file.write_bytes(file.read_bytes()[:kept])


def replace(file: Path, draw: random.Random) -> None:
    """Put something else in the place of a file."""
    outside = file.parent.parent / "outside.bin"
    kind = draw.randrange(6)
    if kind == 0:
        file.write_bytes(pickle.dumps({"weights": list(range(100))}))
    elif kind == 1:
        file.write_bytes(b"")
    elif kind == 2:
        file.write_text("id\tsentence\n1\tgood\n")
    elif kind == 3:
        file.unlink()
        file.symlink_to("nowhere")
    elif kind == 4:
        outside.write_bytes(file.read_bytes())
        file.unlink()
        file.symlink_to(outside)
    else:
        file.write_bytes(draw.randbytes(500))


def payloads(file: Path) -> list[bytes]:
    """The rows of a TFRecord file."""
    from minddistill.data.shards import tfrecord_payloads

    return list(tfrecord_payloads(file))


def framed(rows: list[bytes], length: int | None = None) -> bytes:
    """TFRecord with right checksums; `length` is what the first row claims to have."""
    from minddistill.data.shards import _masked

    parts = []
    for index, row in enumerate(rows):
        head = struct.pack("<Q", len(row) if index or length is None else length)
        parts += [head, _masked(head), row, _masked(row)]
    return b"".join(parts)


def plausible(data: bytes) -> bool:
    """Whether a reader that does not know the original might accept a serialised row (segments are not looked at)."""
    from minddistill.data.messages import Example

    try:
        features = Example.FromString(data).features.feature
        ids, mask, segments, label = (
            list(features[name].int64_list.value) for name in ("input_ids", "input_mask", "segment_ids", "label_ids")
        )
    except Exception:
        return False
    size = sum(mask)
    real = mask == [1] * size + [0] * (LENGTH - size) and len(ids) == len(segments) == LENGTH
    return real and label in ([0], [1]) and all(0 <= index < WORDS for index in ids)


# --- record directories ----------------------------------------------------------------------------------------------


def shard(directory: Path, draw: random.Random, ending: str) -> Path:
    return draw.choice(sorted(directory.glob(f"*{ending}")))


def flipped_record(directory: Path, draw: random.Random) -> str:
    file = shard(directory, draw, ".tfrecord")
    flip(file, draw)
    return file.name


def flipped_and_repaired(directory: Path, draw: random.Random) -> str:
    """A bit of a row and its checksum with it. Without checksums of whole files, only what no reader could accept."""
    file = shard(directory, draw, ".tfrecord")
    while True:
        rows = payloads(file)
        index = draw.randrange(len(rows))
        row = bytearray(rows[index])
        row[draw.randrange(len(row))] ^= 1 << draw.randrange(8)
        if (directory / "meta.json").exists() or not plausible(bytes(row)):
            break
    file.write_bytes(framed([*rows[:index], bytes(row), *rows[index + 1 :]]))
    return file.name


def cut_record(directory: Path, draw: random.Random) -> str:
    file = shard(directory, draw, ".tfrecord")
    rows = payloads(file)
    # Without checksums of whole files nobody can tell that whole rows are missing.
    cut(file, draw, frozenset(len(framed(rows[:count])) for count in range(1, ROWS)))
    return file.name


def cut_between_rows(directory: Path, draw: random.Random) -> str:
    file = shard(directory, draw, ".tfrecord")
    file.write_bytes(framed(payloads(file)[: draw.randrange(ROWS)]))
    return file.name


def huge_length(directory: Path, draw: random.Random) -> str:
    file = shard(directory, draw, ".tfrecord")
    file.write_bytes(framed(payloads(file), draw.choice([2**31, 2**40, 2**63, 2**64 - 1, 10**6])))
    return file.name


def replaced_record(directory: Path, draw: random.Random) -> str:
    file = shard(directory, draw, ".tfrecord")
    replace(file, draw)
    return file.name


def missing_or_added(directory: Path, draw: random.Random) -> str:
    file = shard(directory, draw, "record")
    if draw.random() < 0.5:
        file.unlink()
        return file.name
    other = file.with_name("part-9" + file.suffix)
    shutil.copyfile(file, other)
    if file.suffix == ".mindrecord":
        shutil.copyfile(file.with_name(file.name + ".db"), other.with_name(other.name + ".db"))
    return other.name


WRONG_ROWS: list[dict[str, Any]] = [
    {"input_ids": [2, WORDS, 3, 0, 0, 0, 0, 0]},
    {"input_ids": [2, -1, 3, 0, 0, 0, 0, 0]},
    {"input_ids": [2**62] * LENGTH},
    {"input_ids": [2**32 + 7] * LENGTH},
    {"label_ids": [2**32 + 1]},
    {"input_ids": [2.0] * LENGTH},
    {"input_ids": []},
    {"input_ids": [2] * (LENGTH + 1)},
    {"input_ids": [2] * (LENGTH - 1)},
    {"input_mask": [0] * LENGTH},
    {"input_mask": [0, 1] * (LENGTH // 2)},
    {"input_mask": [3] + [0] * (LENGTH - 1)},
    {"input_mask": [1.0] * LENGTH},
    {"segment_ids": [1, 0] * (LENGTH // 2)},
    {"segment_ids": [5] * LENGTH},
    {"label_ids": [2]},
    {"label_ids": [-1]},
    {"label_ids": [0, 1]},
    {"label_ids": []},
    {"label_ids": [float("nan")]},
    {"label_ids": [0.5]},
    {"label_ids": None},
    {"segment_ids": None},
]


def wrong_row(change: dict[str, Any]) -> Breaker:
    """One row of a file changed so."""

    def spoil(directory: Path, draw: random.Random) -> str:
        from minddistill.data import shards

        rows: list[dict] = Inputs.rows()
        index = draw.randrange(ROWS)
        rows[index] = {name: value for name, value in (rows[index] | change).items() if value is not None}
        file = shard(directory, draw, ".tfrecord")
        floats = frozenset(name for name, value in change.items() if value and isinstance(value[0], float))

        def one(row: dict, number: int) -> bytes:
            part = directory / "row"
            shards.write_tfrecord(part, [row], floats if number == index else frozenset())
            data = payloads(part)[0]
            part.unlink()
            return data

        file.write_bytes(framed([one(row, number) for number, row in enumerate(rows)]))
        return file.name

    return spoil


def mindrecord_broken(directory: Path, draw: random.Random) -> str:
    file = shard(directory, draw, draw.choice([".mindrecord", ".db"]))
    draw.choice([flip, cut, replace])(file, draw)
    return file.name.removesuffix(".db")


def json_broken(name: str) -> Breaker:
    def spoil(directory: Path, draw: random.Random) -> str:
        file = directory / name
        if draw.random() < 0.3:
            file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size - 2)])
        else:
            file.write_bytes(draw.choice(BAD_JSON))
        return name

    return spoil


def schema_wrong(directory: Path, draw: random.Random) -> str:
    file = directory / "schema.json"
    table = json.loads(file.read_text())
    column = table["columns"][draw.choice(sorted(table["columns"]))]
    kind = draw.randrange(6)
    if kind == 0:
        table["numRows"] = draw.choice([value for value in BAD_NUMBERS if value != 10**40])
    elif kind == 1:
        table["columns"] = draw.choice([None, [], 3, "input_ids"])
    elif kind == 2:
        column["shape"] = draw.choice([[0], [-1], ["8"], [8.0], 8, [LENGTH + 1], [10**12], [2, 2], None, [True, 9]])
    elif kind == 3:
        column["type"] = draw.choice(["float32", "string", 5, None, ["int64"]])
    elif kind == 4:
        del table["columns"][draw.choice(sorted(table["columns"]))]
    else:
        table["datasetType"] = draw.choice([3, "Parquet", None])
    file.write_text(json.dumps(table))
    return str(directory)


def meta_wrong(directory: Path, draw: random.Random) -> str:
    file = directory / "meta.json"
    meta = json.loads(file.read_text())
    name = draw.choice(["labels", "metrics", "pad_id", "seq_length", "tokenizer", "labelled", "files", "task"])
    wrong: dict[str, list[Any]] = {
        "labels": ["yes", [1, 2], ["a", "a"], ["a"], None, {"0": "no"}],
        "metrics": ["accuracy", ["beauty"], [1], None],
        "pad_id": [value for value in BAD_NUMBERS if value != 10**40],
        "seq_length": [9, "8", None, 10**9],
        "tokenizer": ["0" * 16, 5, None],
        "labelled": ["no", 3, None],
        "files": [5, [], {"part-0.tfrecord": 3}, {"part-0.tfrecord": {"bytes": "x"}}, {"gone": {}}],
        "task": [["custom"], 5, None],
    }
    meta[name] = draw.choice(wrong[name])
    file.write_text(json.dumps(meta))
    return str(directory)


# --- model directories -----------------------------------------------------------------------------------------------


def weights_flipped(directory: Path, draw: random.Random) -> str:
    flip(directory / "model.safetensors", draw)
    return "model.safetensors"


def weights_cut(directory: Path, draw: random.Random) -> str:
    cut(directory / "model.safetensors", draw)
    return "model.safetensors"


def weights_replaced(directory: Path, draw: random.Random) -> str:
    replace(directory / "model.safetensors", draw)
    return str(directory)


def weights_header(directory: Path, draw: random.Random) -> str:
    file = directory / "model.safetensors"
    data = file.read_bytes()
    head = struct.pack("<Q", draw.choice([2**63, 2**40, 10**9, 0, 1, 5]))
    file.write_bytes(head + data[8:])
    return "model.safetensors"


def weights_wrong(directory: Path, draw: random.Random) -> str:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    file = directory / "model.safetensors"
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    value, kind = tensors[name], draw.randrange(8)
    if kind in (0, 1):
        value = value.copy()
        value.reshape(-1)[draw.randrange(value.size)] = draw.choice([np.nan, np.inf, -np.inf])
        tensors[name] = value
    elif kind == 2 and "pooler" not in name and "classifier" not in name:
        del tensors[name]
    elif kind == 3:
        tensors[name] = np.ascontiguousarray(value[:-1])
    elif kind == 4:
        tensors[name] = value.astype(draw.choice([np.int64, np.int8, bool]))
    elif kind == 5:
        tensors[name] = value[None].copy()
    elif kind == 6:
        tensors["encoder.layer.7.query"] = value
    else:
        tensors["unknown." + name] = tensors.pop(name)
    save_file(tensors, file)
    return str(directory)


def config_wrong(directory: Path, draw: random.Random) -> str:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    sizes = ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"]
    sizes += ["type_vocab_size", "num_attention_heads"]
    kind = draw.randrange(5)
    if kind < 2:
        config[draw.choice(sizes)] = draw.choice([-1, 0, "7", 1.5, [3], {"a": 1}, True, 10**40, 10**9, 5])
    elif kind == 2:
        name = draw.choice(["hidden_dropout_prob", "layer_norm_eps", "initializer_range"])
        config[name] = draw.choice(["0.1", [0.1], -0.5, float("nan"), float("inf"), True])
    elif kind == 3:
        names = {"hidden_act": [5, "swish", ["gelu"]], "model_type": ["t5", 5, ["bert"], {}]}
        names |= {"architectures": ["Bert", [5], {"a": 1}], "pad_token_id": ["0", -1, 1.5]}
        names |= {"position_embedding_type": ["relative_key", 5], "use_relative_positions": ["yes", 1]}
        name = draw.choice(sorted(names))
        config[name] = draw.choice(names[name])
    else:
        config["id2label"] = draw.choice(
            [["no"], {"0": "no"}, {"0": "a", "2": "b"}, {"0": 1, "1": 2}, "no", {"x": "y"}]
        )
    file.write_text(json.dumps(config))
    return str(directory)


def tokenizer_wrong(directory: Path, draw: random.Random) -> str:
    file, kind = directory / "vocab.txt", draw.randrange(4)
    if kind == 0:
        file.write_bytes(b"\xff\xfe" + file.read_bytes())
    elif kind == 1:
        file.write_text("".join(file.read_text().splitlines(keepends=True)[: draw.randrange(WORDS - 1)]))
    elif kind == 2:
        (directory / "tokenizer.json").write_bytes(draw.choice([*BAD_JSON, b'{"model": 3}']))
    else:
        (directory / "tokenizer_config.json").write_bytes(draw.choice([b"{", b"\xff", b"[]", b"[" * 100_000]))
    return str(directory)


def only_shards(directory: Path, draw: random.Random) -> str:
    """An index of shards that names what it should not."""
    file = directory / "model.safetensors"
    file.rename(directory.parent / "elsewhere.safetensors")
    named = draw.choice(["../elsewhere.safetensors", "absent.safetensors", 5, None, ["a"]])
    whole = draw.choice([{"weight_map": {"a": named}}, {"weight_map": named}, {}, {"weight_map": {}}])
    (directory / "model.safetensors.index.json").write_text(json.dumps(whole))
    return str(directory)


def checkpoint_wrong(directory: Path, draw: random.Random) -> str:
    file = directory / "model.ckpt"
    kind = draw.randrange(4)
    data = file.read_bytes()
    if kind == 0:
        file.write_bytes(data[: draw.randrange(len(data) - 1)])
    elif kind == 1:
        file.write_bytes(pickle.dumps({"a": 1}))
    elif kind == 2:
        file.write_bytes(draw.randbytes(2000))
    else:
        file.write_bytes(b"")
    return "model.ckpt"


# --- text, tables, flags ---------------------------------------------------------------------------------------------

GOOD_TEXT = "".join(f"w{index % 9} w3\t{'yes' if index % 2 else 'no'}\n" for index in range(20))
BAD_TEXT: dict[str, list[bytes]] = {
    "x.tsv": [
        b"",
        b"text\tlabel\n",
        b"text\n" + b"w1\n" * 3,
        b"text\tlabel\nw1 w2\tyes\textra\n",
        b"text\tlabel\nw1\tyes\nw2\n",
        b"text\tlabel\nw1\tyes\n\xff\xfe\tno\n",
        b"text\tlabel\nw1\tyes\n\xed\xa0\x80\tno\n",
        b"words\tlabel\nw1\tyes\nw2\tno\n",
        b"text\tlabel\nw1\tyes\nw2\tyes\n",
        b"text\tlabel\n \tyes\nw2\tno\n",
        b"\x80\x04\x95" + pickle.dumps({"a": 1}),
        "text\tlabel\nw1\tyes\n".encode("utf-16"),
        GOOD_TEXT.encode(),
    ],
    "x.csv": [
        b'text,label\n"w1,yes\n',
        b"text,label\nw1,yes,3\n",
        b'text,label\n"w1"x,yes\nw2,no\n',
        b"text,label\n" + b"w" * 200_000 + b",yes\n",
        b"text,label\nw1,yes\n\xff,no\n",
        b"",
        b"label\nyes\nno\n",
    ],
    "x.jsonl": [
        b"",
        b"{\n",
        b"[1]\n",
        b'{"text": "w1"}\n',
        b'{"text": "w1", "label": null}\n{"text": "w2", "label": "a"}\n',
        b'{"text": ["w1"], "label": "a"}\n{"text": "w2", "label": "b"}\n',
        b'{"text": "w1", "label": {"a": 1}}\n{"text": "w2", "label": "b"}\n',
        b"[" * 100_000 + b"\n",
        b'{"text": "w1", "label": ' + b"9" * 5000 + b"}\n",
        b'{"text": "w1", "label": "a"}\n"\xff"\n',
    ],
    "x.parquet": [b"PAR1"],
}
# What minddistill label writes, with a teacher's logits.
BAD_LOGITS = [
    b'{"a": 1.0}',
    b'{"a": 1.0, "b": 0.5, "c": 2.0}',
    b'{"a": 1.0, "c": 0.5}',
    b'{"a": NaN, "b": 0.5}',
    b'{"a": 1e999, "b": 0.5}',
    b'{"a": "high", "b": 0.5}',
    b'{"a": [1.0], "b": 0.5}',
    b'{"a": null, "b": 0.5}',
    b"[1.0, 0.5]",
    b'"a"',
    b"1.0",
    b"null",
    b"[" * 100_000,
    b'{"a": 1.0, "b": ' + b"9" * 5000 + b"}",
]
# Words and tags of a token task.
BAD_SENTENCES = [
    b"",
    b"\n\n\n",
    b"w1\n",
    b"w1 O\nw2\n",
    b"w1 O\nw2 X-a\n",
    b"w1 O\nw2 B-\n",
    b"w1 O\n\xff\xfe O\n",
    "w1 O\nw2 B-a\n".encode("utf-16"),
]
# A custom task in one file.
TASK = "task_name: custom\ntrain_file: {train}\ntokenizer: {tokenizer}\noutput_dir: {out}\n"
BAD_TASK = [
    (b"problem_type: ranking\n", "problem_type"),
    (b"problem_type: regression\n", "x.tsv"),
    (b"problem_type: regression\nout_of_scope: oos\n", "out_of_scope"),
    (b"label_separator: ';'\n", "label_separator"),
    (b"problem_type: multi_label_classification\nlabel_separator: ''\n", "label_separator"),
    (b"labels: yes\n", "labels"),
    (b"labels: maybe,perhaps\n", "x.tsv"),
    (b"labels: 'yes,yes'\n", "labels"),
    (b"labels: [yes, no]\n", "labels"),
    (b"metrics: accuracy,speed\n", "speed"),
    (b"metrics: pearson\n", "pearson"),
    (b"text_column: words\n", "words"),
    (b"text_column: [text]\n", "text_column"),
    (b"label_column: ''\n", "label"),
    (b"text_pair_column: second\n", "second"),
    (b"max_seq_length: 2\n", "max_seq_length"),
    (b"max_seq_length: long\n", "max_seq_length"),
    (b"max_seq_length: 100000000\n", "max_seq_length"),
    (b"workers: -1\n", "workers"),
    (b"dev_file: nowhere.tsv\n", "nowhere.tsv"),
    (b"task_name: SST-2\nproblem_type: regression\n", "problem_type"),
    (b"sentences: text\n", "sentences"),
]
BAD_SPACE = [
    (b"", "space"),
    (b"learning_rate: 1.0e-4\n", "learning_rate"),
    (b"learning_rate: []\n", "learning_rate"),
    (b"learning_rate: [[1], [2]]\n", "learning_rate"),
    (b"learning_rate: {low: 1.0e-4}\n", "learning_rate"),
    (b"learning_rate: {low: 2.0e-4, high: 1.0e-4}\n", "learning_rate"),
    (b"learning_rate: {low: 0, high: 1.0e-4, log: true}\n", "learning_rate"),
    (b"learning_rate: {low: .nan, high: 1.0e-4}\n", "learning_rate"),
    (b"learning_rate: {low: 1.0e-5, high: 1.0e-4, step: 0}\n", "learning_rate"),
    (b"batch_size: {low: 1, high: 4, step: 0.5}\n", "batch_size"),
    (b"batch_size: {low: -4, high: 4}\n", "batch_size"),
    (b"rate: [1, 2]\n", "rate"),
    (b"output_dir: [a, b]\n", "output_dir"),
    (b"- learning_rate\n", "space"),
    (b"\xff\xfe", "space"),
]
BAD_CORPUS = {
    "x.txt": [b"", b"w1 w2.\n\xff\xfe\n", b"w1.\n" * 2, "w1 w2. w3 w4.\n".encode("utf-16")],
    "x.gz": [b"", b"plain", b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x00" + bytes(range(40))],
}
BAD_YAML = [
    (b"\xff\xfe", "config"),
    (b"batch_size: [1, 2]\n", "batch_size"),
    (b"batch_size: many\n", "batch_size"),
    (b"batch_size: 1.5\n", "batch_size"),
    (b"batch_size: -4\n", "batch_size"),
    (b"batch_size: 0\n", "batch_size"),
    (b"batch_sizes: 4\n", "batch_sizes"),
    (b"epoch_size: -1\n", "epoch_size"),
    (b"epoch_size: null\n", "epoch_size"),
    (b"learning_rate: fast\n", "learning_rate"),
    (b"learning_rate: .nan\n", "learning_rate"),
    (b"learning_rate: .inf\n", "learning_rate"),
    (b"learning_rate: -1.0e-4\n", "learning_rate"),
    (b"learning_rate: 0.0\n", "learning_rate"),
    (b"weight_decay: .nan\n", "weight_decay"),
    (b"clip_norm: .inf\n", "clip_norm"),
    (b"clip: hard\n", "clip"),
    (b"loss_scale_value: 0.0\n", "loss_scale_value"),
    (b"loss_scale_value: .nan\n", "loss_scale_value"),
    (b"scale_window: 0\n", "scale_window"),
    (b"scale_factor: 1\n", "scale_factor"),
    (b"accumulation_steps: 0\n", "accumulation_steps"),
    (b"warmup_ratio: 1.0\n", "warmup_ratio"),
    (b"lr_schedule: cosine\n", "lr_schedule"),
    (b"buckets: 0,8\n", "buckets"),
    (b"buckets: 4,x\n", "buckets"),
    (b"buckets: 4\n", "buckets"),
    (b"buckets: 99\n", "buckets"),
    (b"buckets: {a: 1}\n", "buckets"),
    (b"resume: perhaps\n", "resume"),
    (b"seed: -1\n", "seed"),
    (b"max_skipped_steps: 0\n", "max_skipped_steps"),
    (b"device_target: TPU\n", "device_target"),
    (b"device_target: Ascend\n", "device_target"),
    (b"dataset_type: parquet\n", "dataset_type"),
    (b"compute_type: int8\n", "compute_type"),
    (b"- batch_size\n", "config"),
    (b"batch_size\n", "config"),
    (b"batch_size: 4\nbatch_size 5\n", "config"),
    (b"a: &a [*a]\n", "a"),
    (b"batch_size: !!python/object/apply:os.system ['false']\n", "config"),
    (b"batch_size: 4\n\tseed: 3\n", "config"),
    (b"[" * 5000, "config"),
    (b"batch_size: " + b"9" * 5000 + b"\n", "config"),
    (b"batch_size: 1000000000000\n", "batch_size"),
    (b"output_dir: /proc/nowhere/x\n", "/proc/nowhere"),
    (b"output_dir: model/config.json\n", "config.json"),
    (b"? [1]\n: 2\n", "config"),
]


def rank_table() -> dict[str, Any]:
    devices = [
        {"device_id": str(index), "device_ip": f"192.168.10{index}.101", "rank_id": str(index)} for index in range(4)
    ]
    servers = [{"server_id": f"10.0.0.{node}", "device": devices[2 * node :][:2]} for node in range(2)]
    return {"version": "1.0", "server_count": "2", "server_list": servers, "status": "completed"}


def table_wrong(file: Path, draw: random.Random) -> None:
    table = rank_table()
    server, kind = draw.choice(table["server_list"]), draw.randrange(10)
    device = draw.choice(server["device"])
    field = draw.choice(["device_id", "device_ip", "rank_id"])
    if kind == 0:
        file.write_bytes(draw.choice(BAD_JSON))
        return
    if kind == 1:
        text = json.dumps(table).encode()
        file.write_bytes(text[: draw.randrange(len(text) - 1)])
        return
    if kind == 2:
        del device[field]
    elif kind == 3:
        device[field] = draw.choice([None, 5, ["0"], "x", "-1", "", "\u00b2", "9" * 5000, "\ud800"])
    elif kind == 4:
        device["device_ip"] = "192.168.101.101" if device["device_ip"] != "192.168.101.101" else "192.168.100.101"
    elif kind == 5:
        server["device"] = draw.choice([None, [], {}, [5], "all"])
    elif kind == 6:
        table["server_list"] = draw.choice([None, [], {}, [5], [[]], "10.0.0.1", [server, server]])
    elif kind == 7:
        table["server_count"] = draw.choice(["3", "x", 7])
    elif kind == 8:
        device["rank_id"] = draw.choice(["9", "00x", "1.0"])
    else:
        server["server_id"] = draw.choice([None, 5, [], {"a": 1}])
    file.write_text(json.dumps(table))


# --- the cases -------------------------------------------------------------------------------------------------------

# Source directory, what breaks it, how many of 300.
RECORDS: list[tuple[str, Breaker, int]] = [
    ("tfrecord", flipped_record, 14),
    ("foreign", flipped_record, 14),
    ("tfrecord", flipped_and_repaired, 12),
    ("foreign", flipped_and_repaired, 24),
    ("foreign", cut_record, 14),
    ("tfrecord", cut_record, 8),
    ("tfrecord", cut_between_rows, 3),
    ("foreign", huge_length, 5),
    ("tfrecord", replaced_record, 6),
    ("foreign", replaced_record, 6),
    ("tfrecord", missing_or_added, 3),
    ("mindrecord", missing_or_added, 3),
    *(("foreign", wrong_row(change), 1) for change in WRONG_ROWS),
    ("mindrecord", mindrecord_broken, 14),
    ("tfrecord", json_broken("schema.json"), 6),
    ("tfrecord", json_broken("meta.json"), 6),
    ("foreign", schema_wrong, 20),
    ("tfrecord", meta_wrong, 16),
]
MODELS: list[tuple[str, Breaker, int]] = [
    ("model", weights_flipped, 8),
    ("model", weights_cut, 5),
    ("downloaded", weights_cut, 10),
    ("downloaded", weights_header, 6),
    ("downloaded", weights_replaced, 8),
    ("downloaded", weights_wrong, 16),
    ("downloaded", json_broken("config.json"), 8),
    ("downloaded", config_wrong, 24),
    ("downloaded", tokenizer_wrong, 8),
    ("downloaded", only_shards, 5),
    ("model", json_broken("minddistill.json"), 2),
]


def cases(inputs: Inputs, root: Path, wanted: int, seed: int) -> Iterator[Case]:
    """About `wanted` cases, of every kind in its proportion, each with a copy of what it breaks under `root`."""
    draw = random.Random(seed)
    total = sum(number for _, _, number in (*RECORDS, *MODELS)) + 14 + 20 + 24 + len(BAD_YAML) + 4
    total += 6 + 5 + len(BAD_TASK) + len(BAD_SPACE)
    share = wanted / total
    model, runs = inputs.root / "model", numbers()

    def run() -> list[str]:
        """A run directory of its own, so that a case which was let pass does not disturb the others."""
        return ["--output_dir", str(root / f"run-{next(runs)}")]

    def reader(index: int, model: Path, data: Path) -> list[str]:
        """One of the commands that read a model and records."""
        student = ["--do_eval", "false", "--student", "test-2l-32"]
        return [
            ["evaluate", "--model", str(model), "--data_dir", str(data)],
            ["finetune", "--model", str(model), "--train_data_dir", str(data), *run()],
            ["task-distill", "--load_teacher_ckpt_path", str(model), "--train_data_dir", str(data), *student, *run()],
        ][index % 3]

    def copy(source: str) -> Path:
        path = root / f"{len(list(root.iterdir())):04d}" / source
        shutil.copytree(inputs.root / source, path)
        return path

    def some(number: int) -> range:
        return range(max(1, round(number * share)))

    for source, spoil, number in RECORDS:
        for index in some(number):
            path = copy(source)
            place = spoil(path, draw)
            kind = ["--dataset_type", "mindrecord" if source == "mindrecord" else "tfrecord"]
            yield Case(
                f"{source} {spoil.__qualname__.split('.')[0]} {path.parent.name}",
                [*reader(index, model, path), *kind],
                place,
            )
    for source, spoil, number in MODELS:
        for index in some(number):
            path = copy(source)
            place = spoil(path, draw)
            argv = reader(index, path, inputs.root / "tfrecord")
            yield Case(f"{source} {spoil.__qualname__.split('.')[0]} {path.parent.name}", argv, place)
    for index in some(4):
        path = root / f"ckpt-{index}"
        path.mkdir()
        shutil.copyfile(inputs.root / "model.ckpt", path / "model.ckpt")
        place = checkpoint_wrong(path, draw)
        argv = ["evaluate", "--model", str(path / "model.ckpt"), "--num_attention_heads", "4"]
        yield Case(f"checkpoint {index}", [*argv, "--data_dir", str(inputs.root / "tfrecord")], place)
    texts = [(name, content) for name, contents in BAD_TEXT.items() for content in contents]
    for index, (name, content) in enumerate(draw.sample(texts, min(len(texts), len(some(24))))):
        path = root / f"text-{index}" / name
        path.parent.mkdir()
        path.write_bytes(content)
        argv = ["prepare-task", "--task_name", "custom", "--train_file", str(path), "--workers", "1"]
        argv += ["--tokenizer", str(model), "--output_dir", str(path.parent / "out")]
        yield Case(f"text {content[:30]!r}", argv, name)
    corpora = [(name, content) for name, contents in BAD_CORPUS.items() for content in contents]
    for index, (name, content) in enumerate(draw.sample(corpora, min(len(corpora), len(some(8))))):
        path = root / f"corpus-{index}" / name
        path.parent.mkdir()
        path.write_bytes(content)
        argv = ["prepare-corpus", "--input", str(path), "--tokenizer", str(model), "--workers", "1"]
        yield Case(f"corpus {content[:30]!r}", [*argv, "--output_dir", str(path.parent / "out")], name)
    for index in some(6):
        path, content = root / f"labelled-{index}" / "x.jsonl", draw.choice(BAD_LOGITS)
        path.parent.mkdir()
        good = b'{"text": "w1", "label": "a", "logits": {"a": 1.0, "b": 0.5}}\n{"text": "w2", "label": "b", "logits": '
        path.write_bytes(good + content + b"}\n")
        argv = ["prepare-task", "--task_name", "custom", "--train_file", str(path), "--workers", "1"]
        argv += ["--tokenizer", str(model), "--output_dir", str(path.parent / "out")]
        yield Case(f"logits {content[:30]!r}", argv, path.name)
    for index, content in enumerate(draw.sample(BAD_SENTENCES, min(len(BAD_SENTENCES), len(some(5))))):
        path = root / f"sentences-{index}" / "x.txt"
        path.parent.mkdir()
        path.write_bytes(content)
        argv = ["prepare-task", "--task_name", "custom", "--problem_type", "token_classification", "--workers", "1"]
        argv += ["--train_file", str(path), "--tokenizer", str(model), "--output_dir", str(path.parent / "out")]
        yield Case(f"sentences {content[:30]!r}", argv, path.name)
    for index, (content, place) in enumerate(draw.sample(BAD_TASK, min(len(BAD_TASK), len(some(len(BAD_TASK)))))):
        path, text = root / f"task-{index}" / "task.yaml", root / f"task-{index}" / "x.tsv"
        path.parent.mkdir()
        text.write_text("text\tlabel\n" + GOOD_TEXT)
        whole = TASK.format(train=text, tokenizer=model, out=path.parent / "out").encode()
        kept = [line for line in whole.splitlines(True) if line.split(b":")[0] not in content]
        path.write_bytes(b"".join(kept) + content)
        yield Case(f"task {content[:40]!r}", ["prepare-task", "--config", str(path)], place)
    for index, (content, place) in enumerate(draw.sample(BAD_SPACE, min(len(BAD_SPACE), len(some(len(BAD_SPACE)))))):
        path = root / f"space-{index}.yaml"
        path.write_bytes(content)
        argv = ["search", "--command", "finetune", "--space", str(path), "--trials", "1", *run(), "--config"]
        config = root / f"searched-{index}.yaml"
        config.write_text(f"model: {model}\ntrain_data_dir: {inputs.root / 'tfrecord'}\n")
        yield Case(f"space {content[:40]!r}", [*argv, str(config)], place)
    for index in some(20):
        path = root / f"table-{index}.json"
        table_wrong(path, draw)
        yield Case(f"rank table {index}", ["hccl-config", "--check", str(path)], path.name)
    whole = ["finetune", "--model", str(model), "--train_data_dir", str(inputs.root / "tfrecord")]
    for index, (content, place) in enumerate(draw.sample(BAD_YAML, min(len(BAD_YAML), len(some(len(BAD_YAML)))))):
        path = root / f"config-{index}.yaml"
        path.write_bytes(content)
        out = [] if content.startswith(b"output_dir") else run()
        yield Case(f"yaml {content[:40]!r}", [*whole, *out, "--config", str(path)], place)


# --- running them ----------------------------------------------------------------------------------------------------


def work() -> None:
    """The worker: a command line a line on standard input, code and standard error of each back on the answers' file."""
    from minddistill.__main__ import run_command

    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile("w+b") as caught:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(caught.fileno(), 2)
        print(json.dumps("ready"), file=answers, flush=True)
        for line in sys.stdin:
            argv = json.loads(line)
            caught.seek(0)
            caught.truncate()
            try:
                code: Any = run_command(argv[0], argv[1:])
            except BaseException as error:
                code = f"{type(error).__name__}: {str(error)[:300]}"
            sys.stderr.flush()
            caught.seek(0)
            print(json.dumps([code, caught.read().decode(errors="replace")]), file=answers, flush=True)


class Worker:
    """A process that runs command lines one after the other; started anew after a death or a hang."""

    def __init__(self, directory: Path):
        self.directory = directory
        os.environ.pop("GLOG_v", None)  # what a user sees who has not set it
        self.process: subprocess.Popen | None = None

    def run(self, argv: list[str]) -> tuple[Any, str]:
        """Exit code, or what became of it, and standard error."""
        if self.process is None:
            words = [sys.executable, str(Path(__file__).resolve()), "--worker"]
            self.process = subprocess.Popen(
                words, cwd=self.directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._answer(120)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(argv).encode() + b"\n")
        self.process.stdin.flush()
        found = self._answer(SECONDS)
        if isinstance(found, str):
            self.close()
            return found, ""
        return found[0], found[1]

    def _answer(self, seconds: float) -> Any:
        assert self.process is not None and self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return f"no end within {seconds} s"
        line = self.process.stdout.readline()
        return json.loads(line) if line else f"the interpreter died with {self.process.wait()}"

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def through_the_command_line(argv: list[str], directory: Path) -> tuple[Any, str]:
    """The same from a shell's point of view; starting up counts too."""
    words = [sys.executable, "-m", "minddistill", *argv]
    try:
        done = subprocess.run(words, cwd=directory, capture_output=True, timeout=SECONDS, errors="replace")
    except subprocess.TimeoutExpired:
        return f"no end within {SECONDS} s", ""
    return done.returncode, done.stderr


def fault(code: Any, error: str, place: str) -> str:
    """What is wrong with an answer, or ""."""
    lines = error.strip().splitlines()
    if code != 2:
        return f"exit {code}: {' | '.join(lines[-2:])[:300]}"
    if len(lines) != 1:
        return f"{len(lines)} lines: {' | '.join(lines)[:300]}"
    return "" if place in lines[0] else f"does not name {place}: {lines[0][:300]}"


def fuzz(count: int, seed: int, real_every: int, say: Callable[[str], None]) -> tuple[int, int]:
    """Run about `count` cases, one in `real_every` through the command line too (0 for none); refused clearly, and all."""
    good = total = 0
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        inputs = Inputs(root / "inputs")
        (root / "cases").mkdir()
        worker = Worker(inputs.root)
        try:
            for case in cases(inputs, root / "cases", count, seed):
                runs: list[Callable[[list[str]], tuple[Any, str]]] = [worker.run]
                if real_every and total % real_every == 0:
                    runs.append(lambda argv: through_the_command_line(argv, inputs.root))
                began = time.perf_counter()
                problem = next(filter(None, (fault(*run(case.argv), case.place) for run in runs)), "")
                total, good = total + 1, good + (not problem)
                if problem:
                    say(f"{case.name} ({time.perf_counter() - began:.1f} s): {problem}")
        finally:
            worker.close()
    return good, total


def main() -> None:
    """Entry of `make fuzz`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=360)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        work()
        return
    good, total = fuzz(options.cases, options.seed, 12, lambda text: print(text, flush=True))
    print(f"fuzz: {good}/{total} refused clearly")
    sys.exit(good < total)


if __name__ == "__main__":
    main()
