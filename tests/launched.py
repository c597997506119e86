"""The launch scripts as a user starts them, and what they leave behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import load_file

SCRIPTS = Path(__file__).parents[1] / "scripts"


def free_port() -> int:
    """A port that is free, with the next."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
                return port
            except (OSError, OverflowError):
                continue


def start(script: str, *words: object, where: Path, **environment: str) -> subprocess.Popen:
    """A script in the foreground of its own directory."""
    where.mkdir(parents=True, exist_ok=True)
    variables = {"FOREGROUND": "1", "PYTHON": sys.executable, "MASTER_PORT": str(free_port())} | environment
    line, pipe = ["bash", str(SCRIPTS / script), *map(str, words)], subprocess.PIPE
    return subprocess.Popen(line, cwd=where, env=os.environ | variables, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen, seconds: float = 600) -> subprocess.CompletedProcess:
    """What became of a script."""
    try:
        out, errors = process.communicate(timeout=seconds)
    finally:
        process.terminate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def launch(script: str, *words: object, where: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a script to its end."""
    return ended(start(script, *words, where=where, **environment))


def msrun(count: int, logs: Path, *words: object) -> subprocess.CompletedProcess:
    """Run a Python file in several processes, without the scripts; their output is in `logs`."""
    line = [sys.executable, "-m", "mindspore.parallel.cluster.run", "--worker_num", count, "--local_worker_num", count]
    line += ["--master_port", free_port(), "--join", "True", "--log_dir", logs, *words]
    # msrun starts "python" from PATH, which need not be this one.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    return subprocess.run([str(word) for word in line], capture_output=True, text=True, timeout=600, env=environment)


def rank_of(launcher: subprocess.Popen, rank: int) -> psutil.Process:
    """The process of a rank."""
    for process in psutil.Process(launcher.pid).children(recursive=True):
        environment = process.environ()
        if environment.get("MS_ROLE") == "MS_WORKER" and environment["RANK_ID"] == str(rank):
            return process
    raise AssertionError(f"rank {rank} does not run")


def wait_for(found, launcher: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until `found()` while the launcher runs."""
    until = time.monotonic() + seconds
    while not found():
        assert launcher.poll() is None, "".join(launcher.communicate())
        assert time.monotonic() < until
        time.sleep(0.05)


def same(left: Path, right: Path, bound: float = 1e-5) -> None:
    """Compare the weights of two model directories."""
    mine, other = (load_file(directory / "model.safetensors") for directory in (left, right))
    assert mine.keys() == other.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], other[name], atol=bound, err_msg=name)


def logged(directory: Path, name: str = "loss") -> dict[tuple[str, int], float]:
    """A number of `metrics.jsonl` by stage and step; of what was done twice, the last."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {(row["stage"], row["step"]): row[name] for row in rows if name in row}
