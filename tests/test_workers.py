"""Pools of processes: what becomes of them when one is killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from minddistill.errors import UserError
from minddistill.workers import worker_pool

PARENT = """
import sys, time
from minddistill.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(2, sys.argv[1]) as pool:
        list(pool.map(abs, [1, 2, 3, 4]))
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_with_a_command_that_is_killed(tmp_path, method):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", method], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert workers and not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]
    parent.stdout.close()


def kill_this(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told_in_a_line():
    with pytest.raises(UserError, match="a worker process was ended from outside"), worker_pool(2) as pool:
        list(pool.map(kill_this, range(4)))
