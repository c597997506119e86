"""Meta pseudo labels: the teacher's feedback by hand on a linear case; the command end to end and tiny."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from small import QUICK, command, stop_in_step

from minddistill.data.loader import Loader, PairedLoader
from minddistill.data.records import read_rows
from minddistill.distill.distiller import Distiller
from minddistill.distill.meta import PseudoLabels, TeacherLoss
from minddistill.models import store
from minddistill.recipes.meta_pseudo_labels import Tutor
from minddistill.train.checkpoint import TrainState
from minddistill.train.optim import OptimConfig, build_optimizer
from minddistill.train.step import LossScale, StepConfig, build_step

RATE, TEACHER_RATE = 0.01, 0.02


class Line(nn.Cell):
    """Logits (B, C) = inputs (B, F) x weight (F, C)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = Parameter(Tensor(weight, ms.float32), name="weight")

    def construct(self, batch, step=None, first_only=False):
        return {"logits": ops.matmul(batch["input_ids"], self.weight)}


def softmax(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def loss_and_gradient(weight, inputs, labels):
    """Cross-entropy of a line, averaged over rows, and its gradient by the weight."""
    found, rows = softmax(inputs @ weight), np.arange(len(labels))
    target = np.eye(weight.shape[1])[labels]
    return -np.log(found[rows, labels]).mean(), inputs.T @ (found - target) / len(labels)


def adam(gradient, rate):
    """BERT's Adam after one step from zero moments: no bias correction."""
    return rate * 0.1 * gradient / (np.sqrt(0.001 * gradient**2) + 1e-6)


def line_by_line(warmup, student_scale=1024.0, mean=0.0):
    """One step of a linear student and a linear teacher: both weights after it, the terms, and what it started from.

    Args:
        student_scale: its loss scale, in which a step may overflow.
        mean: of the feedback so far.
    """
    generator = np.random.default_rng(5)
    inputs, known = generator.standard_normal((2, 4, 3))
    labels, draw = np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.6], np.float32)
    first, teaches = generator.standard_normal((2, 3, 2))
    ones = {"weight": np.ones(4, np.float32), "rows": np.float32(4)}
    batch = {"input_ids": inputs.astype(np.float32), "draw": draw, **ones}
    names = ("input_ids", "input_mask", "segment_ids", "row")
    batch |= {f"labelled_{name}": known.astype(np.float32) for name in names}
    batch |= {f"labelled_{name}": value for name, value in ones.items()}
    batch["labelled_label_ids"] = labels.astype(np.int32)
    student, teacher = Line(first), Line(teaches)
    cell = Distiller(student, teacher, PseudoLabels())
    numbers = {"schedule": "constant", "weight_decay": 0.0}
    config = StepConfig(clip="off", loss_scale_value=1024.0)
    optimizer = build_optimizer(cell.trained(), OptimConfig(RATE, **numbers), 10)
    scale = LossScale(student_scale, 2, 50)
    tutor = Tutor(
        student, teacher, TeacherLoss(teacher), True, OptimConfig(TEACHER_RATE, **numbers), config, 10, warmup
    )
    tutor.feedback.mean.set_data(Tensor(mean, ms.float32))
    state = TrainState(cell.trained(), optimizer, scale, {}, more=tutor.tensors())
    step = tutor.around(build_step(cell, optimizer, scale, config), state)
    _, terms, overflow, _ = step({name: Tensor(value) for name, value in batch.items()})
    assert bool(overflow.asnumpy()) == (student_scale > 1e30)
    found = {name: float(value.asnumpy()) for name, value in terms.items()}
    start = inputs, known, labels, draw, first, teaches
    return student.weight.asnumpy(), teacher.weight.asnumpy(), found, float(tutor.feedback.mean.asnumpy()), start


def test_feedback_and_both_updates_by_hand():
    student, teacher, terms, mean, (inputs, known, labels, draw, first, teaches) = line_by_line(warmup=0)
    pseudo = (draw >= softmax(inputs @ teaches)[:, 0]).astype(int)
    assert set(pseudo) == {0, 1}
    _, gradient = loss_and_gradient(first, inputs, pseudo)
    expected = first - adam(gradient, RATE)
    np.testing.assert_allclose(student, expected, rtol=1e-4)
    before, after = (loss_and_gradient(weight, known, labels) for weight in (first, expected))
    assert terms["feedback"] == pytest.approx(before[0] - after[0], rel=1e-2, abs=1e-6)
    # In the first order it is the step times the labelled gradient behind it (equation 12).
    assert terms["feedback"] == pytest.approx(((first - expected) * after[1]).sum(), rel=0.05)
    assert mean == pytest.approx(0.01 * terms["feedback"], rel=1e-4)
    drawn, known_loss = (loss_and_gradient(teaches, x, y) for x, y in ((inputs, pseudo), (known, labels)))
    assert terms["teacher_label_loss"] == pytest.approx(known_loss[0], rel=1e-4)
    assert terms["feedback_loss"] == pytest.approx(terms["feedback"] * drawn[0], rel=1e-3)
    moved = adam(terms["feedback"] * drawn[1] + known_loss[1], TEACHER_RATE)
    np.testing.assert_allclose(teacher, teaches - moved, rtol=1e-3)


def test_a_student_step_that_overflows_says_nothing_of_the_labels():
    student, teacher, terms, mean, (_, known, labels, _, first, teaches) = line_by_line(0, 2.0**120, mean=0.5)
    np.testing.assert_array_equal(student, first.astype(np.float32))
    assert terms["feedback"] == 0 and mean == 0.5
    _, gradient = loss_and_gradient(teaches, known, labels)
    np.testing.assert_allclose(teacher, teaches - adam(gradient, TEACHER_RATE), rtol=1e-3)


def test_teacher_rests_while_the_student_warms_up():
    _, teacher, terms, mean, start = line_by_line(warmup=1)
    np.testing.assert_allclose(teacher, start[-1], rtol=1e-6)
    assert list(terms) == ["pseudo_loss"] and mean == 0


def test_labelled_batches_take_turns_beside_the_others(data):
    rows, known = (read_rows(data / name, labelled=name == "dev") for name in ("train", "dev"))
    known.check_classes(2)
    options = {"batch_size": 16, "buckets": [8, 12], "seed": 3}
    pairs = PairedLoader(rows, Loader(known, **options), **options)
    epochs = [list(pairs.epoch(epoch)) for epoch in (0, 1)]
    found = [batch["labelled_row"].asnumpy()[batch["labelled_weight"].asnumpy() == 1] for batch in epochs[0]]
    assert sorted(np.concatenate(found[:4])) == list(range(50))  # four batches hold all of dev
    assert all(batch["input_ids"].shape == batch["labelled_input_ids"].shape for batch in epochs[0])
    again = next(pairs.epoch(0, skip=5))
    for name, value in epochs[0][5].items():
        np.testing.assert_array_equal(again[name].asnumpy(), value.asnumpy(), name)
    draws = np.concatenate([batch["draw"].asnumpy() for epoch in epochs for batch in epoch])
    assert len(np.unique(draws)) == len(draws) and draws.min() >= 0 and draws.max() < 1


def flags(data, teacher, out) -> list:
    sets = ["--train_data_dir", data / "dev", "--unlabelled_data_dir", data / "train", "--eval_data_dir", data / "test"]
    size = ["--student", "test-2l-32", "--init_from_teacher", "1,3", "--learning_rate", 2e-3, "--output_dir", out]
    rates = ["--mpl_learning_rate", 1e-3, "--mpl_warmup_steps", 4, "--finetune_epoch_size", 1]
    return ["--load_teacher_ckpt_path", teacher, *sets, *size, *rates, *QUICK]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, teacher) -> Path:
    out = tmp_path_factory.mktemp("mpl")
    assert command("meta-pseudo-labels", *flags(data, teacher, out), "--epoch_size", 2) == 0
    return out


@pytest.mark.slow
def test_student_learns_from_a_teacher_that_learns(finished, data, teacher):
    rows = [json.loads(row) for row in (finished / "metrics.jsonl").read_text().splitlines()]
    met = [row for row in rows if row["stage"] == "meta" and "loss" in row]
    assert all({"pseudo_loss", "feedback", "feedback_loss", "teacher_label_loss"} <= row.keys() for row in met)
    assert met[-1]["pseudo_loss"] < met[0]["pseudo_loss"]
    record = json.loads((finished / "best" / "minddistill.json").read_text())
    assert record["metrics"]["accuracy"] > 0.9 and "fine-tuning" in record["command"]
    before, after = (store.read_weights(path).values for path in (teacher, finished / "meta" / "teacher"))
    assert np.abs(before["classifier.weight"] - after["classifier.weight"]).max() > 0
    assert (finished / "report.html").is_file()


@pytest.mark.slow
def test_interrupted_run_goes_on_with_both_networks(finished, data, teacher, tmp_path, monkeypatch):
    stop_in_step(monkeypatch, 19)
    assert command("meta-pseudo-labels", *flags(data, teacher, tmp_path), "--epoch_size", 2) == 130
    monkeypatch.undo()
    assert command("meta-pseudo-labels", *flags(data, teacher, tmp_path), "--epoch_size", 2) == 0
    assert "Resumed from" in (tmp_path / "log.txt").read_text()
    for name in ("meta/last", "meta/teacher", "last"):
        mine, theirs = (path / name / "model.safetensors" for path in (tmp_path, finished))
        assert mine.read_bytes() == theirs.read_bytes(), name


@pytest.mark.slow
def test_iclassifiers_teacher_goes_on_with_its_labels(data, teacher, tmp_path):
    more = ["--compat", "iclassifier", "--finetune_epoch_size", 0, "--train_steps", 12]
    assert command("meta-pseudo-labels", *flags(data, teacher, tmp_path), *more) == 0
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "loss" in row][-1]
    assert last["loss"] == last["logit_loss"] and "feedback" not in last and last["teacher_label_loss"] > 0
    before, after = (store.read_weights(path).values for path in (teacher, tmp_path / "teacher"))
    assert np.abs(before["classifier.weight"] - after["classifier.weight"]).max() > 0


def test_mistakes_end_in_one_line(data, teacher, tmp_path, capsys):
    cases = [
        (["--unlabelled_data_dir", ""], "--unlabelled_data_dir"),
        (["--accumulation_steps", 2], "--accumulation_steps 2: the teacher hears of each step"),
        (["--layer_map", "last"], "--layer_map last: layers are not compared here"),
        (["--finetune_epoch_size", 0, "--finetune_learning_rate", 1], "--finetune_learning_rate 1: has no part with"),
        (["--load_teacher_ckpt_path", f"{teacher},{teacher}"], "meta pseudo labels, which train it, wants one"),
        (["--compat", "other"], "--compat"),
        (["--mpl_warmup_steps", 1000], "--mpl_warmup_steps 1000: there are "),
    ]
    for more, message in cases:
        assert command("meta-pseudo-labels", *flags(data, teacher, tmp_path), *more) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1, error
    assert command("doctor", "meta-pseudo-labels", *flags(data, teacher, tmp_path / "new")) == 0
