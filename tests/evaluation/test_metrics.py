"""Metrics against values worked out by hand."""

import numpy as np
import pytest

from minddistill.evaluation.evaluate import (
    Truth,
    decided,
    predict,
    read_predictions,
    scores,
    write_predictions,
    write_submission,
)
from minddistill.evaluation.metrics import compute, entities
from minddistill.problems import IGNORED, MULTI, REGRESSION, SINGLE, TOKEN


def one_hot(classes, count):
    """Logits that decide for these classes."""
    return np.eye(count, dtype=np.float32)[classes] * 9


def test_entities_are_what_iob2_says():
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-PER", "I-PER", "I-LOC", "I-LOC"]
    found = entities(tags, [0] * 8 + [1])
    # I begins an entity where none of its type goes on: of another type before it, or in another sentence.
    assert found == {(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC"), (5, 7, "PER"), (7, 8, "LOC"), (8, 9, "LOC")}
    assert entities(["O", "O"], [0, 0]) == set()


def test_entity_f1_counts_exact_entities_of_all_types_together():
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    truth = Truth(np.array([1, 2, 0, 3, 0, 1]), TOKEN, names, sentence=np.zeros(6, int))
    # PER at (0, 2) is right, LOC at (3, 5) is too long, PER at (5, 6) has another type: 1 of 3 true, 1 of 3 found.
    found = compute(["entity_f1", "accuracy"], truth, one_hot([1, 2, 0, 3, 4, 3], 5))
    assert found == {"entity_f1": pytest.approx(2 * 1 / (3 + 3)), "accuracy": pytest.approx(4 / 6)}
    assert compute(["entity_f1"], truth, one_hot([0] * 6, 5)) == {"entity_f1": 0.0}


def test_multi_label_f1_by_hand():
    truth = Truth(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]]), MULTI, ["a", "b", "c"])
    logits = np.array([[2.0, -1.0, 0.5], [-1.0, 3.0, -1.0], [-2.0, -2.0, -0.1]], np.float32)
    # Found: a c, b, nothing. True positives a 1, b 1, c 0; found 3, true 4.
    found = compute(["micro_f1", "macro_f1", "accuracy"], truth, logits)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["accuracy"] == pytest.approx(1 / 3)
    # s(-0.1) = 0.475 is not above one half, but above 0.4.
    assert decided(logits, truth, 0.4)[2].tolist() == [0, 0, 1]
    np.testing.assert_allclose(scores(logits, MULTI), 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize("learnt", [True, False], ids=["a class", "a threshold"])
def test_out_of_scope_by_class_and_by_threshold(learnt, tmp_path):
    names = ["book", "play", "oos"]
    truth = Truth(np.array([0, 1, 1, 2, 2]), SINGLE, names, out_of_scope=2)
    if learnt:
        logits, threshold = one_hot([0, 1, 2, 2, 0], 3), 0.0
    else:  # s(2) = 0.88, s(0.2) = 0.55
        logits = np.array([[2, 0], [0, 2], [0, 0.2], [0.2, 0], [2, 0]], np.float32)
        threshold = 0.7
    found = compute(["accuracy", "in_scope_accuracy", "out_of_scope_recall"], truth, logits, threshold)
    assert found == {
        "accuracy": pytest.approx(3 / 5),
        "in_scope_accuracy": pytest.approx(2 / 3),
        "out_of_scope_recall": pytest.approx(1 / 2),
    }
    write_predictions(tmp_path / "p.tsv", logits, truth, threshold)
    rows = [line.split("\t") for line in (tmp_path / "p.tsv").read_text().splitlines()[1:]]
    assert [row[1] for row in rows] == ["book", "play", "oos", "oos", "book"]
    assert [row[3] for row in rows] == ["book", "play", "play", "oos", "oos"]
    np.testing.assert_allclose(read_predictions(tmp_path / "p.tsv"), logits, atol=1e-5)


def test_predictions_of_words_are_in_the_order_of_the_records():
    from minddistill.data.loader import Loader
    from minddistill.data.records import Rows

    label = np.full((5, 6), IGNORED, np.float32)
    for row, places in enumerate([(1, 2, 4), (1,), (1, 3), (2,), (1, 2, 3)]):
        label[row, places] = 0
    rows = Rows(
        ids=np.arange(30, dtype=np.int32).reshape(5, 6),
        length=np.array([6, 3, 5, 4, 5], np.int32),
        second=np.array([6, 3, 5, 4, 5], np.int32),
        label=label,
        meta={"problem_type": TOKEN},
        directory=None,
        place=str,
    )
    # A logit that is the position's token id tells where it comes from; short rows are in a batch of their own.
    loader = Loader(rows, 2, buckets=[4, 6], shuffle=False)
    found = predict(lambda batch: batch["input_ids"][:, :, None].astype(np.float32), loader)
    assert found[:, 0].tolist() == rows.ids[label == 0].tolist()


def test_metrics_of_one_label_by_hand():
    # Of 1 1 0 0 1, found 1 0 0 1 1: 2 true positives, 1 false negative, 1 false positive, 1 true negative.
    truth, logits = Truth(np.array([1, 1, 0, 0, 1]), SINGLE, ["no", "yes"]), one_hot([1, 0, 0, 1, 1], 2)
    found = compute(["accuracy", "f1", "micro_f1", "macro_f1", "matthews"], truth, logits)
    expected = {"accuracy": 3 / 5, "f1": 4 / 6, "micro_f1": 3 / 5, "macro_f1": (4 / 6 + 2 / 4) / 2}
    assert found == pytest.approx(expected | {"matthews": (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5})


def test_correlations_by_hand():
    truth = Truth(np.array([1.0, 2.0, 3.0, 4.0]), REGRESSION)
    found = compute(["pearson", "spearman"], truth, np.array([[1.0], [3.0], [2.0], [10.0]]))
    # Deviations -1.5 -0.5 0.5 1.5 and -3 -1 -2 6; ranks differ by 0 1 1 0.
    assert found == pytest.approx({"pearson": 13 / (5 * 50) ** 0.5, "spearman": 1 - 6 * 2 / (4 * 15)})


def test_submissions_name_the_likeliest_class_and_keep_scores_in_range(tmp_path):
    path = tmp_path / "task.tsv"
    write_submission(path, np.array([[0.0, 2.0], [3.0, 1.0], [0.0, 1.0]]), False, ["a", "b"])
    assert path.read_text().splitlines() == ["index\tprediction", "0\tb", "1\ta", "2\tb"]
    write_submission(path, np.array([[-1.0], [2.3456], [7.0]]), True, [])
    assert path.read_text().splitlines()[1:] == ["0\t0.000", "1\t2.346", "2\t5.000"]
