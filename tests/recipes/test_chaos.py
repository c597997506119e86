"""The short form of `make chaos`: kill -9 in the middle of a save and later on, and the bytes of a run left alone."""

from chaos import chaos


def test_a_killed_run_ends_with_the_bytes_of_one_left_alone(data, teacher, tmp_path):
    good, _ = chaos(data, teacher, tmp_path, kills=2, seed=0)
    assert good == 2
