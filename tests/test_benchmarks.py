"""The benchmarks' side of MindDistill, tiny: the commands that they time still run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small

OURS = Path(__file__).parents[1] / "benchmarks" / "ours.py"


@pytest.mark.parametrize("which", [pytest.param("general", marks=pytest.mark.slow), "phase1"])
def test_a_stage_is_measured(which, teacher, data, tmp_path):
    records = "--data_dir" if which == "general" else "--train_data_dir"
    flags = [records, data / "train", "--load_teacher_ckpt_path", teacher]
    flags += ["--student", "test-2l-32", "--output_dir", tmp_path]
    if which == "phase1":
        flags += ["--do_eval", "false", "--td_phase1_epoch_size", "2"]
    words = [sys.executable, OURS, which, "3", *flags, *small.QUICK]
    environment = os.environ | {"BENCH_BEGAN": str(time.time())}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] > found["measured"] >= 3 and 0 < found["first_step"] < found["startup"]
    assert (tmp_path / ("phase1" if which == "phase1" else "") / "last" / "model.safetensors").is_file()
