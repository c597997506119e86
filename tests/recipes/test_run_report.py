"""What a run's report says, against the run's files; and the examples in it, against the text they were made of."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from small import command

from minddistill.data.records import read_rows
from minddistill.data.tokenizer import load_tokenizer
from minddistill.evaluation.evaluate import Truth, read_predictions
from minddistill.models.store import read_weights
from minddistill.problems import IGNORED, REGRESSION, SINGLE, TOKEN
from minddistill.recipes.comparison import compare
from minddistill.recipes.judging import truth_of


@pytest.fixture(scope="module")
def dev(data):
    rows = read_rows(data / "dev")
    rows.check_classes(2)
    return rows


def logits(truth, **wrong):
    """Logits (N, 2) that are right, and as sure as given for the rows `rN` that are wrong."""
    found = np.where(np.arange(2) == truth[:, None], 2.0, -2.0).astype(np.float32)
    for name, sure in wrong.items():
        row = int(name[1:])
        found[row] = np.where(np.arange(2) == truth[row], -sure, sure)
    return found


def test_examples_are_the_rows_that_models_disagree_on(dev, teacher, tiny_text):
    models = {"teacher": logits(dev.label, r3=1.0), "student": logits(dev.label, r3=1.0, r6=1.0, r11=3.0)}
    confusion, examples = compare(dev, truth_of(dev, read_weights(teacher).config), teacher, models, "dev")
    assert [matrix.counts.tolist() for matrix in confusion.confusions] == [[[25, 0], [1, 24]], [[24, 1], [2, 23]]]
    assert examples.title == "Where teacher and student differ, dev"
    assert examples.note == "2 of 50 rows; teacher right in 2, student right in 0."
    lines = (tiny_text / "dev.tsv").read_text().splitlines()[1:]
    texts = [" ".join(line.split("\t")[0].split()) for line in lines]
    rows = [row[:4] + row[5:6] for row in examples.table.rows]
    assert rows == [[11, texts[11], "yes", "yes", "no"], [6, texts[6], "no", "no", "yes"]]
    assert examples.table.rows[0][6] == pytest.approx(1 / (1 + np.exp(-6)))


def test_mistakes_of_one_model_have_no_text_where_no_tokenizer_is(dev, teacher, tmp_path):
    _, mistakes = compare(
        dev, truth_of(dev, read_weights(teacher).config), tmp_path, {"model": logits(dev.label, r3=1.0)}
    )
    assert mistakes.title == "Mistakes" and [row[:4] for row in mistakes.table.rows] == [[3, "", "yes", "no"]]


def test_the_largest_errors_of_a_regression_task(dev, teacher):
    values = dev.label[:, None].astype(np.float32) + np.where(np.arange(50) == 7, -3.0, 0.1)[:, None]
    (section,) = compare(dev, Truth(dev.label, REGRESSION), teacher, {"model": values})
    assert section.table.rows[0][0] == 7 and section.table.rows[0][-1] == pytest.approx(3)


def test_a_run_leaves_its_report(teacher, dev):
    run = teacher.parent
    page, accuracy = (
        (run / "report.html").read_text(),
        json.loads((run / "done.json").read_text())["metrics"]["accuracy"],
    )
    assert np.mean(read_predictions(run / "predictions_best.tsv").argmax(1) == dev.label) == accuracy
    assert f">{accuracy:.4f}<" in page and "Finetune" in page
    assert page.count("<svg ") == 6
    counts = [int(count) for count in re.findall(r'style="--share:[\d.]+">(\d+)<', page)]
    assert len(counts) == 4 and sum(counts) == 50 and counts[0] + counts[3] == round(50 * accuracy)
    assert "Report: " in (run / "log.txt").read_text()


def test_a_report_is_written_anew_of_what_is_there(teacher, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(teacher.parent, run)
    (run / "report.html").unlink()
    (run / "predictions_best.tsv").unlink()
    assert command("report", "--run_dir", run) == 0
    assert "Confusion" not in (run / "report.html").read_text()
    (run / "metrics.jsonl").unlink()
    assert command("report", "--run_dir", run) == 2
    assert "no metrics.jsonl in it; expected a run directory" in capsys.readouterr().err


def test_predictions_of_other_rows_are_left_out(teacher, data, tmp_path):
    run, other = tmp_path / "run", tmp_path / "dev"
    shutil.copytree(teacher.parent, run)
    shutil.copytree(data / "test", other)  # fewer rows
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"eval_data_dir": str(other)}))
    assert command("report", "--run_dir", run) == 0
    page = (run / "report.html").read_text()
    assert f"Left out: {other} holds other rows now" in page and "Confusion" not in page


def test_many_classes_have_a_table_of_their_commonest_confusions(dev, teacher):
    names = [f"intent {index}" for index in range(30)]
    truth = Truth(np.arange(50) % 30, SINGLE, names)
    found = np.eye(30, dtype=np.float32)[truth.labels]
    found[[0, 30]] = np.eye(30, dtype=np.float32)[7]  # both rows of class 0
    found[5] = np.eye(30, dtype=np.float32)[6]
    confusion, _ = compare(dev, truth, teacher, {"model": found})
    assert not confusion.confusions and "between 30 classes" in confusion.note
    rows = [["model", "intent 0", "intent 7", 2], ["model", "intent 5", "intent 6", 1]]
    assert confusion.table.rows == rows


def test_examples_show_unknown_words_and_where_the_second_text_begins(dev, teacher, tmp_path):
    tokenizer = load_tokenizer(teacher)
    encoded = tokenizer.encode("a xyzzy film", "not good")
    ids = np.array([encoded.ids])
    for second in (encoded.ids.index(3) + 1, len(encoded.ids)):  # with segments, and of a family that has none
        rows = replace(dev, ids=ids, length=np.array([ids.shape[1]]), second=np.array([second]), label=np.array([0]))
        truth = Truth(np.array([0]), SINGLE, ["no", "yes"])
        _, mistakes = compare(rows, truth, teacher, {"model": np.array([[0.0, 1.0]])})
        assert mistakes.table.rows[0][1] == "a [UNK] film  \u2016  not good"


def test_mistakes_of_a_token_task_are_numbered_by_row(dev, teacher):
    label = np.full((2, dev.seq_length), IGNORED, np.int32)
    label[0, 1:3], label[1, 1] = [0, 1], 1
    rows = replace(dev.take(np.arange(2)), label=label, meta={"problem_type": TOKEN})
    truth = Truth(np.array([0, 1, 1]), TOKEN, ["O", "B-X"], sentence=np.array([0, 0, 1]))
    found = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    mistakes = compare(rows, truth, teacher, {"model": found})[-1]
    assert mistakes.note == "1 of 3 words." and mistakes.table.rows[0][0] == 1
