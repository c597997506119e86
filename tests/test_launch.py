"""The launcher on its own: what it makes of what it hears; whole runs are in `recipes/test_lost_ranks.py`."""

import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from launched import ended, free_port, wait_for

from minddistill.link import Link


@pytest.fixture
def launcher(tmp_path):
    """Starts a launcher whose msrun does nothing for so many seconds."""

    def start(seconds, node=0, wait=5, port=None):
        port = port or free_port()
        words = ["--address", f"127.0.0.1:{port}", "--node", node, "--silence", 3, "--wait", wait]
        words += ["--log", tmp_path / f"{node}.log", "--", "sleep", seconds]
        line = [sys.executable, "-m", "minddistill.launch", *map(str, words)]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: (tmp_path / f"{node}.log").exists(), process, 10)
        return process, port

    return start


def rank(port, number, heard):
    def leave(code, reason):
        heard.append((code, reason))

    return Link(f"127.0.0.1:{port}", f"rank {number}", 5, 10, lambda: heard.append("stop"), leave)


def test_a_rank_that_falls_silent_is_named_and_the_others_leave(launcher):
    process, port = launcher(30)
    heard = []
    lively, silent = rank(port, 0, heard), rank(port, 1, [])
    lively.watch()
    silent.send("beat")
    done = ended(process, 20)
    reason = "rank 1 was lost: nothing was heard of it for 3 s (LOG1/log.txt); the same command goes on from the last saved point"
    assert (done.returncode, done.stdout) == (1, reason + "\n") and heard == [(1, reason)]


def test_a_rank_whose_process_ends_without_a_word_is_named(launcher):
    process, port = launcher(30)
    rank(port, 3, [])._socket.close()
    done = ended(process, 20)
    assert done.returncode == 1 and done.stdout.startswith("rank 3 was lost: its process ended (LOG3/log.txt);")


def test_the_exit_code_of_a_rank_is_that_of_the_run_and_its_reason_too(launcher):
    process, port = launcher(30)
    rank(port, 0, []).end(0, "")
    rank(port, 1, []).end(2, "--data_dir data: no such directory;\nexpected one of records")
    done = ended(process, 20)
    reason = "--data_dir data: no such directory; expected one of records"
    assert (done.returncode, done.stdout) == (2, f"rank 1 ended with exit code 2: {reason} (LOG1/log.txt)\n")


def test_a_signal_at_any_node_lets_the_first_rank_save(launcher):
    process, port = launcher(30)
    other, _ = launcher(30, node=1, port=port)
    heard = []
    first = rank(port, 0, heard)
    first.watch()
    other.send_signal(signal.SIGTERM)
    wait_for(lambda: heard, process, 10)
    assert heard == ["stop"]
    first.end(130, "stopped")
    for each in (process, other):
        done = ended(each, 20)
        assert done.returncode == 130 and done.stdout.startswith("stopped; the same command goes on")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_signals_at_all_nodes_are_one_order(launcher, order):
    process, port = launcher(30)
    other, _ = launcher(30, node=1, port=port)
    heard = []
    first = rank(port, 0, heard)
    first.watch()
    time.sleep(1)  # the launcher knows it
    (process, other)[order[0]].send_signal(signal.SIGTERM)
    wait_for(lambda: heard, process, 10)
    (process, other)[order[1]].send_signal(signal.SIGTERM)
    time.sleep(2)
    assert process.poll() is None and heard == ["stop"]  # it has time to save
    first.end(130, "stopped")
    assert [ended(each, 20).returncode for each in (process, other)] == [130, 130]


def test_ranks_save_though_msrun_dies_of_the_same_signal(launcher):
    process, port = launcher(5)
    heard = []
    first = rank(port, 0, heard)
    first.watch()
    time.sleep(1)  # the launcher knows it
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: heard, process, 10)
    psutil.Process(process.pid).children()[0].terminate()
    time.sleep(5)  # longer than a run without ranks is waited for
    assert process.poll() is None and heard == ["stop"]
    first.end(130, "stopped")
    assert ended(process, 20).returncode == 130


def test_a_launcher_that_was_suspended_goes_on(launcher):
    process, port = launcher(8)
    heard = []
    lively = rank(port, 0, heard)
    lively.watch()
    time.sleep(1.5)  # it has beaten
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.5)  # longer than the silence that makes a rank lost
    process.send_signal(signal.SIGCONT)
    time.sleep(1)
    lively.end(0, "")
    assert (ended(process, 20).returncode, heard) == (0, [])


def test_a_stranger_at_the_port_is_no_rank(launcher):
    process, port = launcher(2)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    done = ended(process, 20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
