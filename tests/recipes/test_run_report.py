"""What a run's report says, against the run's files; and the examples in it, against the text they were made of."""

import json
import re
import shutil

import numpy as np
import pytest
from small import command

from minddistill.data.records import read_rows
from minddistill.evaluation.evaluate import Truth, read_predictions
from minddistill.models.store import read_weights
from minddistill.problems import REGRESSION
from minddistill.recipes.common import truth_of
from minddistill.recipes.comparison import compare


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
