"""The training state comes back whole, or the one before it does."""

import json

import numpy as np
import pytest
from mindspore import Tensor, nn

from minddistill.files import DiskFull
from minddistill.train.checkpoint import Checkpoints, TrainState
from minddistill.train.log import RunLog
from minddistill.train.optim import OptimConfig, build_optimizer
from minddistill.train.step import LossScale


def some_state(seed, step=0, width=8) -> TrainState:
    """A state whose every number is drawn from the seed."""
    cell = nn.Dense(width, width)
    trained = {name: parameter for name, parameter in cell.parameters_and_names()}
    trained = {"student/" + name: value for name, value in trained.items()}
    optimizer = build_optimizer(trained, OptimConfig(1e-3), 10)
    state = TrainState(trained, optimizer, LossScale(256.0, 2, 50), {"seed": 1}, step=step)
    generator = np.random.default_rng(seed)
    for parameter in state.tensors().values():
        value = generator.integers(1, 100, parameter.shape)
        parameter.set_data(Tensor(value, parameter.dtype))
    return state


def values(state):
    return {name: parameter.asnumpy().copy() for name, parameter in state.tensors().items()}


def test_every_part_of_the_state_comes_back(tmp_path):
    state = some_state(1, step=7)
    state.epoch, state.position, state.best = 2, 3, {"value": 0.5, "epoch": 1}
    Checkpoints(tmp_path, 1).save(state)
    other = some_state(2)
    saved, broken = Checkpoints(tmp_path, 1).newest()
    saved.into(other)
    assert not broken and saved.identity == {"seed": 1}
    assert (other.epoch, other.position, other.step, other.best) == (2, 3, 7, state.best)
    found, wanted = values(other), values(state)
    names = {"moment1/student/weight", "moment2/student/bias", "global_step", "loss_scale", "good_steps"}
    assert names <= found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
        assert found[name].dtype == wanted[name].dtype


def harm(path, how):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flipped": content, "cut": content[:-40], "empty": b""}[how])


@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_a_broken_one_is_named_and_passed_over_and_the_next_save_keeps_the_whole_one(tmp_path, how):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (10, 20, 30):
        checkpoints.save(some_state(step, step))
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        "step_00000020.safetensors",
        "step_00000030.safetensors",
    ]
    harm(tmp_path / "step_00000030.safetensors", how)
    saved, broken = checkpoints.newest()
    assert saved.file.name == "step_00000020.safetensors" and broken == ["step_00000030.safetensors"]
    checkpoints.save(some_state(25, 25))
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        "step_00000020.safetensors",
        "step_00000025.safetensors",
    ]
    for file in tmp_path.iterdir():
        harm(file, how)
    assert checkpoints.newest() == (None, ["step_00000025.safetensors", "step_00000020.safetensors"])


def test_a_full_disk_leaves_the_earlier_checkpoint_and_room_lets_the_run_go_on(small_disk):
    disk = small_disk(128)
    checkpoints, state = Checkpoints(disk / "checkpoints", 1), some_state(1, 1, width=80)
    checkpoints.save(state)
    state.step = 2
    with pytest.raises(DiskFull, match=r"step_00000002\.safetensors: the disk is full: \d+ bytes needed, \d+ free"):
        checkpoints.save(state)
    saved, broken = checkpoints.newest()
    assert saved.file.name == "step_00000001.safetensors" and not broken
    assert [file.name for file in saved.file.parent.iterdir()] == [saved.file.name]
    small_disk(512)
    checkpoints.save(state)
    assert checkpoints.newest()[0].file.name == "step_00000002.safetensors"


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path):
    log = RunLog(tmp_path)
    for stage, step in (("phase1", 5), ("phase1", 10), ("phase2", 5), ("phase2", 10)):
        log.metrics(stage, 1, step, {"loss": 1.0})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"stage": "phase2", "st')
    log.rewind("phase2", 5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("phase1", 5), ("phase1", 10), ("phase2", 5)]
