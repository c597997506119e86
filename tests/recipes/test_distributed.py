"""Several processes on this machine against one: the same weights, through the launch scripts."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from launched import launch, logged, msrun, same
from small import command

from minddistill.data import teacher_cache

TESTS = Path(__file__).parents[1]

# 240 rows at 32 a step of all processes: the last step of an epoch has 16, so that of 2 processes one has half of its
# rows filled up, and of 4 or 8 half of them have nothing else. The loss scale overflows in the first steps and after
# every few good ones.
SCALED = ["--loss_scale_value", "3e20", "--scale_window", "3", "--log_interval", "1"]


def agree(several, one, *models):
    """The curves of loss and loss scale, and the weights, are those of one process."""
    for name, bound in (("loss", 1e-5), ("overflow", 0), ("loss_scale", 0)):
        found, expected = logged(several, name), logged(one, name)
        assert found.keys() == expected.keys() and len(found) > 10
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=bound, err_msg=name)
    overflows = list(logged(one, "overflow").values())
    assert 0 < sum(overflows) < len(overflows)
    for model in models:
        same(several / model, one / model)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_distil_as_one_on_the_union_of_their_batches(tmp_path, data, tiny_encoder, count):
    flags = ["--student", "test-2l-32", "--learning_rate", "5e-3", "--buckets", "8,12", *SCALED]
    one = ["--load_teacher_ckpt_path", tiny_encoder, "--data_dir", data / "train", *flags, "--epoch_size", "2"]
    assert command("general-distill", *one, "--batch_size", "32", "--output_dir", tmp_path / "one") == 0
    words = [count, 2, data / "train", "", tiny_encoder, *flags, "--batch_size", 32 // count]
    out = tmp_path / "several"
    done = launch("run_distributed_gd_cpu.sh", *words, where=out, save_ckpt_path=str(out / "gd"))
    assert done.returncode == 0, done.stdout + done.stderr
    agree(out / "gd", tmp_path / "one", "last")
    for rank in range(count):
        assert "epoch: 1, step: 5, outpus are" in (out / f"LOG{rank}/log.txt").read_text()


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (4, 8))])
def test_processes_run_both_task_phases_as_one(tmp_path, data, teacher, count):
    flags = ["--student", "test-2l-32", "--init_from_teacher", "1,3", "--buckets", "12", *SCALED]
    flags += ["--td_phase1_epoch_size", "2", "--td_phase2_epoch_size", "2"]
    flags += ["--td_phase1_learning_rate", "2e-3", "--td_phase2_learning_rate", "2e-4"]
    records = ["--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    one = [*records, "--load_teacher_ckpt_path", teacher, *flags, "--batch_size", "32"]
    assert command("task-distill", *one, "--output_dir", tmp_path / "one") == 0
    words = [count, data / "train", data / "dev", teacher, *flags, "--batch_size", 32 // count]
    out = tmp_path / "several"
    done = launch("run_distributed_td_cpu.sh", *words, where=out, output_dir=str(out / "td"))
    assert done.returncode == 0, done.stdout + done.stderr
    agree(out / "td", tmp_path / "one", "phase1/last", "last")
    assert "The best acc is" in (out / "LOG0/log.txt").read_text()
    assert "Teacher cache: written" in (out / f"LOG{count - 1}/log.txt").read_text()


@pytest.mark.slow
def test_processes_distil_in_one_stage_as_one(tmp_path, data, teacher):
    flags = ["--student", "test-2l-32", "--init_from_teacher", "1,3", "--buckets", "12", *SCALED, "--epoch_size", "2"]
    flags += ["--learning_rate", "2e-4", "--state_loss_ratio", "1", "--att_loss_ratio", "1"]
    flags += ["--load_teacher_ckpt_path", teacher, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    assert command("distill", *flags, "--batch_size", "32", "--output_dir", tmp_path / "one") == 0
    done = distilled(tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    agree(tmp_path / "two", tmp_path / "one", "last")


def distilled(out, *flags):
    """What became of 2 processes that distil in one stage into `out / "two"`."""
    (out / "distil.py").write_text(
        "import sys\nfrom minddistill.__main__ import run_command\nsys.exit(run_command('distill', sys.argv[1:]))\n"
    )
    several = ["--distribute", "true", "--device_num", "2", "--batch_size", "16", "--output_dir", out / "two"]
    return msrun(2, out / "logs", out / "distil.py", *flags, *several)


@pytest.mark.slow
def test_patience_ends_all_processes(tmp_path, data, teacher):
    flags = ["--student", "test-2l-32", "--init_from_teacher", "1,3", "--buckets", "12", "--epoch_size", "5"]
    flags += ["--learning_rate", "1e-12", "--patience", "2", "--load_teacher_ckpt_path", teacher]
    done = distilled(tmp_path, *flags, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "distill: 24 steps in" in (tmp_path / "two" / "log.txt").read_text()  # 3 epochs of 8 steps


@pytest.mark.slow
def test_two_nodes_distil_together(tmp_path, data, teacher):
    """Each in a network namespace of its own."""
    flags = ["--student", "test-2l-32", "--init_from_teacher", "1,3", "--buckets", "12", *SCALED]
    flags += ["--td_phase1_epoch_size", "2", "--td_phase2_epoch_size", "2"]
    train, dev = data / "train", data / "dev"
    words = ["bash", TESTS / "two_nodes.sh", tmp_path / "two", train, dev, teacher, *flags, "--batch_size", "16"]
    told = {"PYTHON": sys.executable}
    done = subprocess.run([str(word) for word in words], env=os.environ | told, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert "minddistill-" not in left.stdout
    one = ["--train_data_dir", train, "--eval_data_dir", dev, "--load_teacher_ckpt_path", teacher, *flags]
    assert command("task-distill", *one, "--batch_size", "32", "--output_dir", tmp_path / "one") == 0
    agree(tmp_path / "two/td", tmp_path / "one", "phase1/last", "last")
    for rank in (0, 1):  # one on each node
        assert "epoch: 1, step: 5, outpus are" in (tmp_path / f"two/node{rank}/LOG{rank}/log.txt").read_text()


# Shards of a few rows, so that each process has some.
CACHE = """
import sys
from minddistill.__main__ import run_command
from minddistill.data import teacher_cache

teacher_cache._SHARD_BYTES = 200_000
sys.exit(run_command("cache-teacher", sys.argv[1:]))
"""


@pytest.mark.slow
def test_processes_fill_a_teacher_cache_together(tmp_path, data, teacher, monkeypatch):
    """Each shard is the one that a single process writes."""
    flags = ["--student", "test-2l-32", "--buckets", "12", "--load_teacher_ckpt_path", teacher]
    flags += ["--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    monkeypatch.setattr(teacher_cache, "_SHARD_BYTES", 200_000)
    assert command("cache-teacher", *flags, "--teacher_cache", tmp_path / "one") == 0
    (tmp_path / "fill.py").write_text(CACHE)
    several = ["--distribute", "true", "--device_num", "2", "--teacher_cache", tmp_path / "two"]
    done = msrun(2, tmp_path / "logs", tmp_path / "fill.py", *flags, *several)
    assert done.returncode == 0, done.stdout + done.stderr
    expected, found = (
        {file.relative_to(top): file.read_bytes() for file in top.glob("*_*/*.bin")}
        for top in (tmp_path / "one", tmp_path / "two")
    )
    assert len(found) > 3 and found == expected
    for rank in (0, 1):
        assert "Teacher cache: written" in (tmp_path / f"logs/worker_{rank}.log").read_text()


def test_evaluation_alone_is_not_distributed(capsys):
    assert command("task-distill", "--do_train", "false", "--distribute", "true") == 2
    assert "--do_train false --distribute true: evaluation runs in one process" in capsys.readouterr().err


def shown(script, *words, where, **environment):
    """A dry run: the variables, and the command split at the programs in it."""
    done = launch(script, *words, where=where, DRY_RUN="1", **environment)
    assert done.returncode == 0, done.stderr
    assert list(where.glob("*LOG*")) == []
    (line,) = done.stdout.splitlines()
    first, *command = shlex.split(line)
    watch, program = command.index("--"), command.index("python3")
    return first, command[:watch], command[watch + 1 : program], command[program + 1 :]


WATCH = ["-m", "minddistill.launch", "--address=127.0.0.1:8119", "--node=0", "--wait=120", "--silence=30"]
MSRUN = ["-m", "mindspore.parallel.cluster.run", "--worker_num=8", "--local_worker_num=8", "--master_addr=127.0.0.1"]
MSRUN += ["--master_port=8118", "--cluster_time_out=120", "--join=True", "--tail_worker_log=0"]
PLACE = {"MASTER_PORT": "8118", "OMP_NUM_THREADS": ""}


def test_the_documented_commands_in_a_dry_run(tmp_path):
    """`bash scripts/run_distributed_gd_gpu.sh 8 1 /path/data/ /path/schema.json /path/teacher.ckpt` and its like."""
    general = ["--distribute=true", "--device_target=GPU", "--device_num=8", "--epoch_size=1"]
    general += [f"--save_ckpt_path={tmp_path}/general_distill", "--load_teacher_ckpt_path=/path/teacher.ckpt"]
    general += ["--data_dir=/path/data/", "--schema_dir=/path/schema.json", "--dataset_type=tfrecord"]
    words = [8, 1, "/path/data/", "/path/schema.json", "/path/teacher.ckpt"]
    found = shown("run_distributed_gd_gpu.sh", *words, "--batch_size", 32, where=tmp_path, **PLACE)
    root = TESTS.parent
    logs = [f"--log_dir={tmp_path}/msrun_log"]
    assert found == (
        "OMP_NUM_THREADS=",
        [sys.executable, *WATCH, f"--log={tmp_path}/msrun_log/msrun.log"],
        [sys.executable, *MSRUN, *logs],
        [f"{root}/run_general_distill.py", *general, "--batch_size", "32"],
    )
    task = ["--distribute=true", "--device_target=GPU", "--device_num=8", "--train_data_dir=/path/train"]
    task += ["--eval_data_dir=/path/dev", "--load_teacher_ckpt_path=/path/teacher"]
    words = [8, "/path/train", "/path/dev", "/path/teacher"]
    found = shown("run_distributed_td_gpu.sh", *words, where=tmp_path, **PLACE)
    assert found[2:] == (
        [sys.executable, *MSRUN, *logs],
        [f"{root}/run_task_distill.py", *task, f"--output_dir={tmp_path}/task_distill"],
    )


def test_the_documented_commands_for_ascend_in_a_dry_run(tmp_path):
    """`bash scripts/run_distributed_gd_ascend.sh 8 1 /path/hccl.json`, whose other paths are variables."""
    table, ips = tmp_path / "hccl.json", ",".join(f"192.168.{device}.1" for device in range(8))
    assert command("hccl-config", "--ips", ips, "--server_id", "10.0.0.1", "--output", table) == 0
    paths = {"data_dir": "/path/data/", "schema_dir": "/path/schema.json", "load_teacher_ckpt_path": "/path/t.ckpt"}
    extra = ["--bind_core=True", f"--rank_table_file={table}"]
    general = ["--distribute=true", "--device_target=Ascend", "--device_num=8", "--epoch_size=1"]
    general += [f"--save_ckpt_path={tmp_path}/general_distill", "--load_teacher_ckpt_path=/path/t.ckpt"]
    general += ["--data_dir=/path/data/", "--schema_dir=/path/schema.json", "--dataset_type=tfrecord"]
    for bind in ("1", "0"):
        variables = PLACE | paths | {"BIND_CORES": bind}
        _, _, msrun, run = shown("run_distributed_gd_ascend.sh", 8, 1, table, where=tmp_path, **variables)
        assert msrun == [sys.executable, *MSRUN, f"--log_dir={tmp_path}/msrun_log", *extra[bind == "0" :]]
        assert run == [f"{TESTS.parent}/run_general_distill.py", *general]
    words = [8, "/path/train", "/path/dev", "/path/teacher"]
    variables = PLACE | {"RANK_TABLE_FILE": str(table)}
    _, _, msrun, run = shown("run_distributed_td_ascend.sh", *words, where=tmp_path, **variables)
    assert msrun[-2:] == extra and "--device_target=Ascend" in run
    done = launch("run_distributed_gd_ascend.sh", 4, 1, table, where=tmp_path, DRY_RUN="1")
    assert done.returncode == 2 and "has 8 devices, DEVICE_NUM is 4" in done.stderr


def test_a_dry_run_on_several_nodes(tmp_path):
    several = {"WORKER_NUM": "16", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "LOST_TIMEOUT": "25"}
    words = [8, 1, "/path/data/", "/path/schema.json", "/path/teacher.ckpt"]
    _, watch, msrun, run = shown("run_distributed_gd_gpu.sh", *words, where=tmp_path, **PLACE, **several)
    assert {"--address=10.0.0.1:8119", "--node=1", "--silence=25"} < set(watch)
    assert {"--worker_num=16", "--local_worker_num=8", "--node_rank=1", "--master_addr=10.0.0.1"} < set(msrun)
    assert "--device_num=16" in run


def test_wrong_arguments_of_a_launch_are_told(tmp_path):
    for words in (["x", 1, "a", "b", "c"], [0, 1, "a", "b", "c"], [2, 1, "a"]):
        done = launch("run_distributed_gd_gpu.sh", *words, where=tmp_path)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    several = {"WORKER_NUM": "4", "DRY_RUN": "1"}
    for rank in ("", "x", "08", "2"):
        done = launch("run_distributed_gd_gpu.sh", 2, 1, "a", "b", "c", where=tmp_path, **several, NODE_RANK=rank)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert f"NODE_RANK is '{rank}'; expected the number of this node, from 0 to 1" in done.stderr


def test_what_stands_in_the_environment_by_chance_changes_no_run(tmp_path):
    chance = {"NODE_RANK": "1", "device_target": "CPU"}
    words = [8, 1, "/path/data/", "", "/path/teacher.ckpt"]
    _, watch, msrun, run = shown("run_distributed_gd_gpu.sh", *words, where=tmp_path, **PLACE, **chance)
    assert "--node=0" in watch and not [word for word in msrun if "node_rank" in word]
    assert "--device_target=GPU" in run
    assert "--device_target=CPU" in shown("run_distributed_gd_cpu.sh", *words, where=tmp_path, **PLACE)[3]


def test_standalone_scripts_leave_to_a_file_of_flags_what_is_not_set(tmp_path, data, teacher):
    """And take the example for nothing that further flags name."""
    file = tmp_path / "td.yaml"
    values = {"load_teacher_ckpt_path": str(teacher), "train_data_dir": str(data / "train"), "student": "test-2l-32"}
    file.write_text(yaml.safe_dump(values))
    done = launch("run_standalone_td.sh", "--config", file, where=tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 2 and "--eval_data_dir is empty" in log and "example" not in log + done.stdout


def test_ports_that_cannot_be_are_refused(tmp_path):
    for port in ("65535", "99999999999999999999"):
        done = launch("run_distributed_gd_cpu.sh", 2, 1, "d", "", "t", where=tmp_path, DRY_RUN="1", MASTER_PORT=port)
        assert done.returncode == 2 and f"MASTER_PORT is '{port}'; expected at most 65534" in done.stderr


@pytest.mark.parametrize(
    ("script", "given", "said"),
    [
        ("run_standalone_td.sh", "train_data_dir", "--eval_data_dir is empty"),
        ("run_standalone_gd.sh", "data_dir", "--load_teacher_ckpt_path is empty"),
    ],
)
def test_the_example_does_not_take_the_place_of_what_is_set(tmp_path, data, teacher, script, given, said):
    """The run directory is this one, and so its log is, to which the script appends."""
    told = {given: str(data / "train"), "save_ckpt_path": ".", "output_dir": "."}
    told |= {"load_teacher_ckpt_path": str(teacher)} if "td" in script else {}
    done = launch(script, "--student", "test-2l-32", where=tmp_path, **told)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 2 and said in log and "example" not in log + done.stdout


def test_a_mistake_before_the_group_is_joined_is_told_as_any_other(tmp_path):
    done = launch("run_distributed_gd_cpu.sh", 2, 1, "data", "", "teacher", "--no_such_flag", 1, where=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "unknown flag --no_such_flag" in done.stdout.strip().splitlines()[-1]
