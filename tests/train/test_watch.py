"""What becomes of a loss that is not finite."""

import json

import numpy as np
import pytest
from mindspore import Tensor
from test_step import X, built

from minddistill.errors import UserError
from minddistill.train.checkpoint import TrainState
from minddistill.train.step import StepConfig
from minddistill.train.watch import Watch


def watched(directory, scale=256.0, most_skipped=3, **options):
    cell, optimizer, loss_scale, step = built(StepConfig(loss_scale_value=scale, **options))
    state = TrainState(dict(cell.parameters_and_names()), optimizer, loss_scale, {})

    def rows_of(epoch, position):
        return [f"train.tfrecord: row {10 * position + i}" for i in range(2)]

    return Watch(step, state, most_skipped, rows_of, directory), state, cell


def feed(watch, state, batches, accumulate=1):
    for x in batches:
        state.position += 1
        watch({"x": x}, state.position % accumulate == 0)
        state.step += 1


BAD = Tensor(np.full((2, 3), np.nan, np.float32))


def test_overflows_that_the_loss_scale_mends_are_let_pass(tmp_path):
    watch, state, cell = watched(tmp_path)
    feed(watch, state, [X, BAD, BAD, X, BAD])
    watch.check(state, ())
    feed(watch, state, [BAD, X])
    watch.check(state, ())
    assert not list(tmp_path.iterdir()) and np.isfinite(cell.weight.asnumpy()).all()


def test_overflows_in_a_row_stop_with_step_term_and_rows(tmp_path):
    watch, state, cell = watched(tmp_path)
    feed(watch, state, [X, BAD])
    watch.check(state, ())  # the count goes on from one look to the next
    feed(watch, state, [BAD, BAD, X])
    with pytest.raises(
        UserError, match=r"step 4: line is nan \(3 skipped in a row, loss scale 64\).*step_00000004.json"
    ):
        watch.check(state, ())
    found = json.loads((tmp_path / "nonfinite_step_00000004.json").read_text())
    assert found["step"] == 4 and found["term"] == "line"
    assert [batch["rows"] for batch in found["batches"]] == [["train.tfrecord: row 30", "train.tfrecord: row 31"]]
    assert np.isfinite(cell.weight.asnumpy()).all()


def test_an_overflow_at_scale_one_stops_at_once_and_names_its_micro_batch(tmp_path, monkeypatch):
    watch, state, _ = watched(tmp_path, scale=1.0, accumulate=2)
    met = []
    watch.wait = 7.0
    monkeypatch.setattr(
        "time.sleep", lambda seconds: met.append([seconds, *(file.name for file in tmp_path.iterdir())])
    )
    feed(watch, state, [X, X, BAD, X], accumulate=2)
    with pytest.raises(UserError, match="step 4: line is nan"):
        watch.check(state, ())
    found = json.loads(next(tmp_path.iterdir()).read_text())
    assert [batch["batch"] for batch in found["batches"]] == [2]
    assert met == [[7.0, "nonfinite_step_00000004.json"]]  # the rows are written before


def test_gradients_that_overflow_under_a_finite_loss_are_called_so():
    watch, state, _ = watched(None, scale=1.0)
    large = Tensor(np.full((2, 3), 3e19, np.float32))  # their squares overflow
    feed(watch, state, [large])
    with pytest.raises(UserError, match="step 1: gradients are not finite"):
        watch.check(state, ())


def test_a_loss_beyond_its_gradients_stops_too():
    watch, state, _ = watched(None)
    loss, terms = Tensor(np.float32("inf")), {"line": Tensor(np.float32(1.0))}
    watch.step = lambda batch, last: (loss, terms, Tensor(False), Tensor(np.float32(256.0)))
    feed(watch, state, [X])
    with pytest.raises(UserError, match=r"step 1: loss is inf \(the update was not skipped\)"):
        watch.check(state, ())
