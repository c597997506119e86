"""Distributed runs that lose a rank, are told to stop, or never come together."""

import os
import signal
import socket
import time

import numpy as np
import psutil
import pytest
from launched import ended, free_port, launch, logged, rank_of, same, start, wait_for
from small import command

EPOCHS = 10  # of 8 steps
FLAGS = ["--student", "test-2l-32", "--learning_rate", "5e-3", "--log_interval", "1", "--buckets", "off"]
FLAGS += ["--save_checkpoint_step", "5"]
ALONE = [*FLAGS, "--batch_size", "32", "--epoch_size", EPOCHS]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data, tiny_encoder):
    """One process on the union of the batches, never stopped."""
    out = tmp_path_factory.mktemp("undisturbed")
    read = ["--load_teacher_ckpt_path", tiny_encoder, "--data_dir", data / "train"]
    assert command("general-distill", *read, *ALONE, "--output_dir", out) == 0
    return out


def words(count, data, tiny_encoder):
    return [count, EPOCHS, data / "train", "", tiny_encoder, *FLAGS, "--batch_size", 32 // count]


def started(count, data, tiny_encoder, where):
    """A run that has saved its state, and its directory."""
    out = where / "gd"
    launcher = start(
        "run_distributed_gd_cpu.sh", *words(count, data, tiny_encoder), where=where, save_ckpt_path=str(out)
    )
    wait_for(lambda: list(out.glob("checkpoints/step_*")), launcher)
    return launcher, out


def nobody_left(where):
    """No process of the run is there any more."""
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(where) in line]


CASES = [
    (2, 1, signal.SIGKILL),
    (2, 0, signal.SIGKILL),
    (2, 1, signal.SIGSTOP),
    (2, 0, signal.SIGSTOP),
    (4, 2, signal.SIGKILL),
    (4, 3, signal.SIGSTOP),
]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "rank", "number"), CASES)
def test_all_end_when_one_is_lost_and_fewer_go_on(tmp_path, data, tiny_encoder, undisturbed, count, rank, number):
    launcher, out = started(count, data, tiny_encoder, tmp_path)
    began = time.monotonic()
    os.kill(rank_of(launcher, rank).pid, number)
    done = ended(launcher)
    assert time.monotonic() - began < 60
    assert done.returncode == 1, done.stdout + done.stderr
    why = "its process ended" if number == signal.SIGKILL else "nothing was heard of it for 30 s"
    told = [line for line in done.stdout.splitlines() if "was lost" in line]
    assert len(set(told)) == 1 and told[0].startswith(
        f"rank {rank} was lost: {why} (LOG{rank}/log.txt); the same command goes on"
    )
    assert "Traceback" not in done.stdout + done.stderr
    nobody_left(tmp_path)
    if count == 2:  # one process goes on in their stead
        read = ["--load_teacher_ckpt_path", tiny_encoder, "--data_dir", data / "train"]
        assert command("general-distill", *read, *ALONE, "--output_dir", out) == 0
        log = (out / "log.txt").read_text()
    else:
        done = launch(
            "run_distributed_gd_cpu.sh", *words(count, data, tiny_encoder), where=tmp_path, save_ckpt_path=str(out)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        log = done.stdout
    assert "Resumed from" in log
    as_if_undisturbed(out, undisturbed)


def as_if_undisturbed(out, undisturbed):
    """Sums in another order: not the same bits, but the same rows in each step."""
    found, expected = logged(out), logged(undisturbed)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=1e-3)
    same(out / "last", undisturbed / "last", bound=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_once_and_more_processes_go_on(
    tmp_path, data, tiny_encoder, undisturbed, number
):
    launcher, out = started(2, data, tiny_encoder, tmp_path)
    launcher.send_signal(number)
    done = ended(launcher, 60)
    assert done.returncode == 130, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "stopped; the same command goes on from the last saved point"
    assert (out / "log.txt").read_text().count("general: stopped at step") == 1
    nobody_left(tmp_path)
    done = launch("run_distributed_gd_cpu.sh", *words(4, data, tiny_encoder), where=tmp_path, save_ckpt_path=str(out))
    assert done.returncode == 0 and "Resumed from" in done.stdout, done.stdout + done.stderr
    as_if_undisturbed(out, undisturbed)


@pytest.mark.slow
def test_another_number_of_rows_a_step_is_not_resumed(tmp_path, data, tiny_encoder):
    launcher, out = started(2, data, tiny_encoder, tmp_path)
    launcher.send_signal(signal.SIGTERM)
    assert ended(launcher, 60).returncode == 130
    wrong = [word if word != 16 else 32 for word in words(2, data, tiny_encoder)]
    done = launch("run_distributed_gd_cpu.sh", *wrong, where=tmp_path, save_ckpt_path=str(out))
    assert done.returncode == 2 and "batch_size x processes was 32, is 64" in done.stdout, done.stdout + done.stderr


def test_a_node_that_does_not_reach_the_first_gives_up(tmp_path):
    several = {"WORKER_NUM": "2", "NODE_RANK": "1", "MASTER_PORT": str(free_port()), "CLUSTER_TIMEOUT": "3"}
    began = time.monotonic()
    done = launch("run_distributed_gd_cpu.sh", 1, 1, "data", "", "teacher", where=tmp_path, **several)
    assert done.returncode == 2 and 2 < time.monotonic() - began < 30
    (line,) = done.stdout.splitlines()
    assert line.startswith("node 1: the launcher at 127.0.0.1:") and "was not reached within 3 s" in line


@pytest.mark.slow
def test_a_first_node_that_waits_in_vain_for_the_second_gives_up(tmp_path):
    several = {"WORKER_NUM": "2", "NODE_RANK": "0", "CLUSTER_TIMEOUT": "20"}
    began = time.monotonic()
    done = launch("run_distributed_gd_cpu.sh", 1, 1, "data", "", "teacher", where=tmp_path, **several)
    assert done.returncode == 2 and time.monotonic() - began < 60, done.stdout + done.stderr
    told = done.stdout.splitlines()[-1]
    assert told.startswith("rank 0 ended with exit code 2: ") and told.endswith(" (LOG0/log.txt)")
    assert "did not bring 2 processes together within 20 s (CLUSTER_TIMEOUT)" in told


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = launch("run_distributed_gd_cpu.sh", 2, 1, "data", "", "t", where=tmp_path, MASTER_PORT=str(port - 1))
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert f"127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT + 1): cannot listen there" in line
