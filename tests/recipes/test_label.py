"""Text with a teacher's logits or labels, and the records that are made of it."""

import json
import shutil

import numpy as np
import pytest
from small import command

from minddistill import pipeline
from minddistill.data import records
from minddistill.data.loader import Loader
from minddistill.files import read_json
from minddistill.recipes import label


@pytest.fixture(scope="module")
def exported(tmp_path_factory, teacher):
    """The tiny teacher as an ONNX graph."""
    out = tmp_path_factory.mktemp("label") / "onnx"
    assert command("export", "--model", teacher, "--output_dir", out) == 0
    return out


@pytest.fixture
def flags(tiny_text, exported, tmp_path):
    return ["--task_name", "custom", "--train_file", tiny_text / "train.tsv", "--model", exported] + [
        *("--output_dir", tmp_path / "labelled")
    ]


def rows_of(directory):
    return [json.loads(line) for path in sorted(directory.glob("*.jsonl")) for line in path.read_text().splitlines()]


def source_of(path):
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def test_records_carry_what_the_teacher_says(flags, tiny_text, teacher, exported, vocabulary, tmp_path):
    assert command("label", *flags) == 0
    rows, source = rows_of(tmp_path / "labelled"), source_of(tiny_text / "train.tsv")
    assert [(row["text"], row["label"]) for row in rows] == [tuple(row) for row in source]
    model = pipeline(teacher)  # the same model on MindSpore
    expected = np.stack(list(model.logits(row["text"] for row in rows)))
    found = np.array([[row["logits"][name] for name in model.labels] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-4)

    files = ["--train_file", tmp_path / "labelled", "--dev_file", tiny_text / "dev.tsv"]
    sizes = ["--max_seq_length", "12", "--tokenizer", vocabulary]
    for kind in ("tfrecord", "mindrecord"):
        out = tmp_path / kind
        made = ["--task_name", "custom", *files, *sizes, "--output_dir", out, "--dataset_type", kind]
        assert command("prepare-task", *made) == 0
        assert read_json(out / "train" / "schema.json", "")["columns"]["teacher_logits"]["shape"] == [2]
        taught = records.read_rows(out / "train", kind=kind)
        assert taught.meta["labels"] == model.labels
        np.testing.assert_array_equal(taught.logits, found.astype(np.float32))
        assert records.read_rows(out / "dev", kind=kind).logits is None
        loader = Loader(taught, 16, shuffle=False, columns=taught.taught)
        np.testing.assert_array_equal(loader.batch(loader.plan(0)[1])["teacher_logits"], taught.logits[16:32])
        some = taught.take(np.array([5, 2]))
        np.testing.assert_array_equal(some.logits, taught.logits[[5, 2]])


def test_hard_labels_of_certain_rows_only(flags, exported, tiny_text, tmp_path):
    source = source_of(tiny_text / "train.tsv")
    scores = np.stack(list(pipeline(exported).scores(text for text, _ in source)))
    bits = -(scores * np.log2(scores)).sum(1)
    limit = float(np.median(bits))
    assert command("label", *flags, "--kind", "hard", "--entropy_threshold", limit) == 0
    names = pipeline(exported).labels
    certain = np.flatnonzero(bits <= limit)
    assert 0 < len(certain) < len(source)
    found = rows_of(tmp_path / "labelled")
    assert found == [
        {"text": source[i][0], "label": names[scores[i].argmax()], "original_label": source[i][1]} for i in certain
    ]
    assert read_json(tmp_path / "labelled" / "meta.json", "")["read"] == len(source)


def test_entropy_is_in_bits():
    assert label.entropy(np.zeros(4, np.float32)) == pytest.approx(2.0)
    assert label.entropy(np.array([1000.0, 0.0])) == pytest.approx(0.0)


@pytest.fixture
def of_sst2(exported, tmp_path):
    """The teacher under SST-2's class names, in the other order than the task's."""
    copy = tmp_path / "positive_first"
    shutil.copytree(exported, copy)
    config = json.loads((copy / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "positive", "1": "negative"}, {"positive": 0, "negative": 1}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_task_keeps_its_columns_and_values(of_sst2, vocabulary, tmp_path):
    """Values of the label column, not class names, are written, whatever the order of the teacher's outputs."""
    text = tmp_path / "unlabelled.txt"
    lines = ["the plot is good", "the film was bad , dull"]
    text.write_text("\n\n".join(lines) + "\n")
    out = tmp_path / "labelled"
    assert command("label", "--task_name", "SST-2", "--text_file", text, "--model", of_sst2, "--output_dir", out) == 0
    rows, logits = rows_of(out), np.stack(list(pipeline(of_sst2).logits(lines)))
    for row, values in zip(rows, logits, strict=True):
        assert row["label"] == ("1" if values[0] > values[1] else "0")
        assert [row["logits"]["1"], row["logits"]["0"]] == pytest.approx(values, abs=1e-4)
    prepared = ["--task_name", "SST-2", "--train_file", out, "--tokenizer", vocabulary, "--output_dir", tmp_path / "r"]
    assert command("prepare-task", *prepared) == 0
    taught = records.read_rows(tmp_path / "r" / "train")
    assert taught.meta["labels"] == ["negative", "positive"]
    np.testing.assert_allclose(taught.logits, logits[:, ::-1], atol=1e-4)


def test_a_class_that_no_row_has_is_one_of_the_students(vocabulary, tmp_path):
    text = tmp_path / "train.jsonl"
    logits = {"no": 0.25, "maybe": 0.5, "yes": 1.5}
    rows = [{"text": "a film", "label": name, "logits": logits} for name in ("no", "yes")]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task_name", "custom", "--train_file", text, "--tokenizer", vocabulary, "--output_dir", tmp_path / "r"]
    assert command("prepare-task", *flags) == 0
    taught = records.read_rows(tmp_path / "r" / "train")
    assert taught.meta["labels"] == ["maybe", "no", "yes"] and taught.label.tolist() == [1, 2]
    assert taught.logits.tolist() == [[0.5, 0.25, 1.5]] * 2


def test_a_stopped_command_goes_on_with_the_missing_shards(flags, monkeypatch, tmp_path):
    monkeypatch.setattr(label, "_ROWS_A_SHARD", 100)
    assert command("label", *flags) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "labelled").glob("*.jsonl")}
    assert len(whole) == 3
    shutil.rmtree(tmp_path / "labelled")
    write = label.write_examples

    def interrupted(path, *arguments):
        if path.name == "train-00001.jsonl":
            raise KeyboardInterrupt
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(label, "write_examples", interrupted)
        assert command("label", *flags) == 130
    shown = ["--task_name", "custom", "--train_file", tmp_path / "labelled", "--tokenizer", "-", "--output_dir", "-"]
    assert command("prepare-task", *shown) == 2
    before = (tmp_path / "labelled" / "train-00000.jsonl").stat().st_mtime_ns
    assert command("label", *flags) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "labelled").glob("*.jsonl")} == whole
    assert (tmp_path / "labelled" / "train-00000.jsonl").stat().st_mtime_ns == before
    assert command("label", *flags, "--kind", "hard") == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--labels", "bad,good"], "trained on the labels"),
        (["--problem_type", "regression"], "does single_label_classification"),
        (
            ["--problem_type", "multi_label_classification", "--entropy_threshold", "1"],
            "does single_label_classification",
        ),
        (["--text_file", "x.txt"], "--train_file is given too"),
        (["--split", "dev"], "--split dev"),
        (["--output_dir", ""], "--output_dir is empty"),
    ],
)
def test_mistakes_are_told(flags, change, told, capsys):
    assert command("label", *flags, *change) == 2
    assert told in capsys.readouterr().err


def test_a_label_that_the_teacher_does_not_know_is_named(flags, tmp_path, capsys):
    odd = tmp_path / "odd.tsv"
    odd.write_text("text\tlabel\nthe film is good\tyes\nthe film is bad\tmaybe\n")
    assert command("label", *flags, "--train_file", odd) == 2
    assert "row 2: label 'maybe'" in capsys.readouterr().err


@pytest.mark.parametrize("logits", ['{"no": 1.0}', '{"no": 1.0, "yes": NaN}', "3", None])
def test_logits_that_do_not_fit_the_labels_are_named(logits, vocabulary, tmp_path, capsys):
    rows = [{"text": "a film", "label": name, "logits": {"no": 0.5, "yes": 1.5}} for name in ("no", "yes")]
    rows.append({"text": "a plot", "label": "no"} | ({} if logits is None else {"logits": json.loads(logits)}))
    text = tmp_path / "train.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task_name", "custom", "--train_file", text, "--tokenizer", vocabulary, "--output_dir", tmp_path / "r"]
    assert command("prepare-task", *flags) == 2
    assert "row 3: logits are" in capsys.readouterr().err
