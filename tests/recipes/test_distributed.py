"""Several processes on this machine against one: the same weights, through the launch scripts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from small import command

SCRIPTS = Path(__file__).parents[2] / "scripts"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(script, *words, where, **environment):
    where.mkdir(parents=True, exist_ok=True)
    variables = {"FOREGROUND": "1", "PYTHON": sys.executable, "MASTER_PORT": str(free_port())} | environment
    words = ["bash", str(SCRIPTS / script), *map(str, words)]
    return subprocess.run(words, cwd=where, env=os.environ | variables, capture_output=True, text=True, timeout=900)


def same(left, right, bound=1e-5):
    """Compare the weights of two model directories."""
    left, right = (load_file(directory / "model.safetensors") for directory in (left, right))
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], atol=bound, err_msg=name)


def losses(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


# 240 rows at 32 a step of all processes: the last step of an epoch has 16, half of them in a process of its own.
GENERAL = ["--student", "test-2l-32", "--learning_rate", "5e-3", "--log_interval", "5", "--buckets", "8,12"]


def test_two_processes_distil_as_one_on_the_union_of_their_batches(tmp_path, data, tiny_encoder):
    one = ["--load_teacher_ckpt_path", tiny_encoder, "--data_dir", data / "train", *GENERAL, "--epoch_size", "2"]
    assert command("general-distill", *one, "--batch_size", "32", "--output_dir", tmp_path / "one") == 0
    words = [2, 2, data / "train", "", tiny_encoder, *GENERAL, "--batch_size", "16"]
    done = launch("run_distributed_gd_cpu.sh", *words, where=tmp_path / "two", save_ckpt_path=str(tmp_path / "two/gd"))
    assert done.returncode == 0, done.stdout + done.stderr
    np.testing.assert_allclose(losses(tmp_path / "two/gd"), losses(tmp_path / "one"), rtol=1e-5)
    same(tmp_path / "two/gd/last", tmp_path / "one/last")
    for rank in (0, 1):
        assert "epoch: 1, step: 5, outpus are" in (tmp_path / f"two/LOG{rank}/log.txt").read_text()


def test_two_processes_run_both_task_phases_as_one(tmp_path, data, teacher):
    flags = ["--student", "test-2l-32", "--init_from_teacher", "1,3", "--buckets", "12", "--log_interval", "5"]
    flags += ["--td_phase1_epoch_size", "2", "--td_phase2_epoch_size", "2"]
    flags += ["--td_phase1_learning_rate", "2e-3", "--td_phase2_learning_rate", "2e-4"]
    records = ["--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    one = [*records, "--load_teacher_ckpt_path", teacher, *flags, "--batch_size", "32"]
    assert command("task-distill", *one, "--output_dir", tmp_path / "one") == 0
    words = [2, data / "train", data / "dev", teacher, *flags, "--batch_size", "16"]
    out = tmp_path / "two"
    done = launch("run_distributed_td_cpu.sh", *words, where=out, output_dir=str(out / "td"))
    assert done.returncode == 0, done.stdout + done.stderr
    np.testing.assert_allclose(losses(out / "td"), losses(tmp_path / "one"), rtol=1e-5)
    same(out / "td/phase1/last", tmp_path / "one/phase1/last")
    same(out / "td/last", tmp_path / "one/last")
    assert "The best acc is" in (out / "LOG0/log.txt").read_text()
    assert "Teacher cache: written" in (out / "LOG1/log.txt").read_text()


def test_a_dry_run_prints_what_would_be_started(tmp_path):
    words = {
        "run_distributed_gd_gpu.sh": [8, 1, "/path/data/", "/path/schema.json", "/path/teacher.ckpt"],
        "run_distributed_td_gpu.sh": [8, "/path/train", "/path/dev", "/path/teacher"],
    }
    for script, arguments in words.items():
        done = launch(script, *arguments, "--batch_size", "32", where=tmp_path, DRY_RUN="1")
        assert done.returncode == 0, done.stderr
        for part in ("--worker_num=8", "--local_worker_num=8", "--distribute=true", "--device_target=GPU"):
            assert part in done.stdout.split()
        assert done.stdout.split()[-2:] == ["--batch_size", "32"]
    several = {"WORKER_NUM": "16", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "DRY_RUN": "1"}
    done = launch("run_distributed_gd_gpu.sh", *words["run_distributed_gd_gpu.sh"], where=tmp_path, **several)
    for part in (
        "--worker_num=16",
        "--local_worker_num=8",
        "--node_rank=1",
        "--master_addr=10.0.0.1",
        "--device_num=16",
    ):
        assert part in done.stdout.split()
    assert list(tmp_path.iterdir()) == []
    table, ips = tmp_path / "hccl.json", ",".join(f"192.168.{device}.1" for device in range(8))
    assert command("hccl-config", "--ips", ips, "--server_id", "10.0.0.1", "--output", table) == 0
    done = launch("run_distributed_gd_ascend.sh", 8, 1, table, where=tmp_path, DRY_RUN="1", data_dir="/path/data/")
    for part in (f"--rank_table_file={table}", "--bind_core=True", "--device_target=Ascend", "--data_dir=/path/data/"):
        assert part in done.stdout.split()
    done = launch("run_distributed_gd_ascend.sh", 4, 1, table, where=tmp_path, DRY_RUN="1")
    assert done.returncode == 2 and "has 8 devices, DEVICE_NUM is 4" in done.stderr


def test_wrong_arguments_of_a_launch_are_told(tmp_path):
    for words in (["x", 1, "a", "b", "c"], [0, 1, "a", "b", "c"], [2, 1, "a"]):
        done = launch("run_distributed_gd_gpu.sh", *words, where=tmp_path)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    lonely = {"WORKER_NUM": "4", "DRY_RUN": "1"}
    done = launch("run_distributed_gd_gpu.sh", 2, 1, "a", "b", "c", where=tmp_path, **lonely)
    assert done.returncode != 0 and "NODE_RANK" in done.stderr
