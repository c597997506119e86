"""GLUE's tasks in the columns of their official files, and the test files that GLUE takes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minddistill.__main__ import run_command
from minddistill.data.records import read_rows
from minddistill.data.tokenizer import load_tokenizer
from minddistill.errors import UserError
from minddistill.models import store
from minddistill.problems import REGRESSION, SINGLE
from minddistill.recipes.common import read_checked

A, B = "the film is good", "a dull plot"
# Task: header of the training file, its rows, header of the test file, its row, and the classes that records keep.
OFFICIAL = {
    "QQP": (
        "id qid1 qid2 question1 question2 is_duplicate",
        [("1", "2", "3", A, B, "0"), ("4", "5", "6", A, A, "1")],
        "id question1 question2",
        ("0", A, B),
        ["not_duplicate", "duplicate"],
    ),
    "RTE": (
        "index sentence1 sentence2 label",
        [("0", A, B, "not_entailment"), ("1", A, A, "entailment")],
        "index sentence1 sentence2",
        ("0", A, B),
        ["entailment", "not_entailment"],
    ),
    "STS-B": (
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        [("0", "g", "f", "2012", "1", "s", "s", A, B, "0.800"), ("1", "g", "f", "2012", "1", "s", "s", A, A, "5.000")],
        "index genre filename year old_index source1 source2 sentence1 sentence2",
        ("0", "g", "f", "2012", "1", "s", "s", A, B),
        [],
    ),
    "MNLI": (
        "index sentence1 sentence2 label1 gold_label",
        [("0", A, B, "neutral", "neutral"), ("1", A, A, "neutral", "-"), ("2", A, A, "neutral", "entailment")],
        "index sentence1 sentence2",
        ("0", A, B),
        ["contradiction", "entailment", "neutral"],
    ),
    "CoLA": (
        None,
        [("gj04", "1", "", A), ("gj04", "0", "*", B)],
        "index sentence",
        ("0", A),
        ["unacceptable", "acceptable"],
    ),
}
TEST_SPLIT = {"MNLI": "test_matched"}


def prepared(task: str, directory: Path, tokenizer: Path) -> Path:
    header, rows, test_header, test_row, _ = OFFICIAL[task]
    lines = ["\t".join(row) for row in rows]
    text = directory / "text"
    text.mkdir()
    first = [] if header is None else ["\t".join(header.split())]
    (text / "train.tsv").write_text("\n".join(first + lines) + "\n")
    split = TEST_SPLIT.get(task, "test")
    (text / f"{split}.tsv").write_text("\n".join(["\t".join(test_header.split()), "\t".join(test_row)]) + "\n")
    flags = ["--task_name", task, "--data_dir", text, "--tokenizer", tokenizer, "--output_dir", directory / "records"]
    assert run_command("prepare-task", [*map(str, flags), "--max_seq_length", "16"]) == 0
    return directory / "records"


@pytest.mark.parametrize("task", OFFICIAL)
def test_official_files_become_records(task, tmp_path, vocabulary):
    out = prepared(task, tmp_path, vocabulary)
    tokenizer = load_tokenizer(vocabulary)
    train = read_rows(out / "train")
    classes = OFFICIAL[task][4]
    pair = (A,) if task == "CoLA" else (A, B)
    encoded = tokenizer.encode(*pair)
    assert train.ids[0, : train.length[0]].tolist() == encoded.ids
    assert train.second[0] == len(encoded.ids) - sum(encoded.type_ids)
    meta = json.loads((out / "train" / "meta.json").read_text())
    assert meta["labels"] == classes and (meta["problem_type"] == "regression") == (task == "STS-B")
    if task == "STS-B":
        np.testing.assert_allclose(train.label, [0.8, 5.0], rtol=1e-6)
    else:
        kept = [row for row in OFFICIAL[task][1] if "-" not in row]  # MNLI's rows without agreement are left out
        raw = [row[1] if task == "CoLA" else row[-1] for row in kept]
        assert [meta["raw_labels"][int(label)] for label in train.label] == raw
    test = json.loads((out / TEST_SPLIT.get(task, "test") / "meta.json").read_text())
    assert test["labelled"] is False and test["rows"] == 1


@pytest.mark.parametrize(
    ("task", "file", "allowed"),
    [("MNLI", "MNLI-m.tsv", {"contradiction", "entailment", "neutral"}), ("STS-B", "STS-B.tsv", None)],
)
def test_submission_is_what_glue_takes(task, file, allowed, tmp_path, vocabulary, tiny_encoder):
    out = prepared(task, tmp_path, vocabulary)
    weights = store.read_weights(tiny_encoder)
    labels = tuple(OFFICIAL[task][4]) or ("score",)
    problem = REGRESSION if task == "STS-B" else SINGLE
    config = weights.config.with_(labels=labels, problem=problem, pooler=True)
    model = store.build(weights, config, may_miss=("classifier.", "pooler."))
    directory = store.save(
        tmp_path / "model", model, tokenizer_from=vocabulary, command="test", parents={}, data={}, metrics={}
    )
    split = TEST_SPLIT.get(task, "test")
    flags = ["--model", directory, "--data_dir", out / split, "--output_dir", tmp_path / "out", "--submission", "true"]
    assert run_command("evaluate", list(map(str, flags))) == 0
    lines = (tmp_path / "out" / file).read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 2
    index, value = lines[1].split("\t")
    assert index == "0"
    assert value in allowed if allowed else 0.0 <= float(value) <= 5.0


def test_records_without_a_description_are_of_the_task_that_is_named(data, tiny_encoder, tmp_path):
    """As the model zoo's are, whose metric is that of `--task_name`."""
    bare, config = shutil.copytree(data / "dev", tmp_path / "dev"), store.read_weights(tiny_encoder).config
    (bare / "meta.json").unlink()
    rows = read_checked(str(bare), "--data_dir", config, None, "cola")
    assert (rows.meta["metrics"], rows.problem) == (["matthews", "accuracy"], SINGLE)
    assert read_checked(str(bare), "--data_dir", config, None, "STS-B").problem == REGRESSION
    assert read_checked(str(bare), "--data_dir", config, None, "custom").meta == {}
    with pytest.raises(UserError, match=r"--task_name 'SST2': no such task; expected one of SST-2, MNLI"):
        read_checked(str(bare), "--data_dir", config, None, "SST2")
