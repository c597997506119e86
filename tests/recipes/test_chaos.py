"""The short forms of `make chaos`."""

import chaos
import pytest
import small


def test_a_run_killed_in_a_save_ends_with_the_bytes_of_one_left_alone(data, tiny_encoder, teacher, tmp_path):
    out = tmp_path / "run"
    words = [*small.training(out, data, tiny_encoder), "--save_checkpoint_step", "1"]
    kills, _, wrong = chaos.chain(words, out, [chaos.Moment(name=40)])
    assert kills == 1 and not wrong and not chaos.temporary(out)
    assert "Resumed from" in (out / "log.txt").read_text()
    for name in ("best", "last"):
        mine, theirs = (path / name / "model.safetensors" for path in (out, teacher.parent))
        assert mine.read_bytes() == theirs.read_bytes(), name


@pytest.mark.slow
def test_two_phases_killed_twice_end_with_the_bytes_of_those_left_alone(data, teacher, tmp_path):
    good, _ = chaos.chaos(data, teacher, tmp_path, kills=2, seed=0)
    assert good == 2
