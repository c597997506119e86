"""The doctor: one line each, the stages' own checks, and nothing trained; no network is asked."""

import re
import shutil
import socket

import numpy as np
import pytest
import yaml
from small import command

from minddistill.models.presets import preset
from minddistill.recipes import checks
from minddistill.recipes.checks import Load


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to reach a network fails."""

    def refuse(*args, **options):
        raise AssertionError("a network call")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def config(tmp_path, data, tiny_encoder):
    """A configuration of fine-tuning; the file, and its values to change."""
    values = {"model": str(tiny_encoder), "train_data_dir": str(data / "train"), "eval_data_dir": str(data / "dev")}
    path = tmp_path / "finetune.yaml"
    path.write_text(yaml.safe_dump(values | {"output_dir": str(tmp_path / "run")}))
    return path


def table(text: str) -> dict[str, tuple[str, str]]:
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines()[1:]]
    return {name: tuple(re.split(r"\s+", rest, maxsplit=1)) for name, rest in rows}


def test_all_is_well(config, tmp_path, capsys, offline):
    assert command("doctor", "--config", config) == 0
    found = table(capsys.readouterr().out)
    expected = ["MindSpore", "device", "run directory", "model", "records --train_data_dir"]
    expected += ["vocabulary --train_data_dir", "labels", "records --eval_data_dir", "disk", "memory"]
    assert set(expected) <= set(found) and {state for state, _ in found.values()} == {"ok"}
    assert found["labels"][1] == "no, yes" and "240 rows of 12 tokens" in found["records --train_data_dir"][1]
    assert not (tmp_path / "run").exists()


def test_pruning_is_known_by_its_flags(teacher, data, tmp_path, capsys, offline):
    flags = ["--model", teacher, "--train_data_dir", data / "train", "--output_dir", tmp_path / "run"]
    assert command("doctor", *flags, "--pattern", "2:4", "--target_sparsity", "0.5") == 0
    assert {"teacher", "labels", "memory"} <= set(table(capsys.readouterr().out))
    assert command("doctor", "prune", *flags, "--method", "structured", "--target_num_heads", "64") == 2
    assert "--target_num_heads 64: the model has" in capsys.readouterr().out
    none = ["--label_weight", "0", "--soft_weight", "0", "--intermediate_weight", "0"]
    for method in (["--target_sparsity", "0.5"], ["--method", "structured", "--target_num_heads", "2"]):
        assert command("doctor", "prune", *flags, *method, *none) == 2
        assert "wrong" in capsys.readouterr().out
    assert command("doctor", "prune", *flags, "--target_num_heads", "1") == 2
    assert "--target_num_heads 1: has no part in --method sparse" in capsys.readouterr().out


def test_task_distillation_shows_layers_heads_and_cache(config, data, tiny_encoder, tmp_path, capsys, offline):
    student = tmp_path / "student"
    flags = ["--load_teacher_ckpt_path", tiny_encoder, "--train_data_dir", data / "train", "--do_eval", "false"]
    sizes = ["--student", "test-2l-32", "--output_dir", student]
    assert command("doctor", "task-distill", *flags, *sizes) == 2
    captured = capsys.readouterr()
    assert "trained on the labels (none: it has no classifier)" in table(captured.out)["labels"][1]
    assert captured.err.startswith("minddistill doctor: task-distill cannot start: wrong: labels (see the table")
    assert len(captured.err.strip().splitlines()) == 1


def test_general_distillation_shows_layers_and_heads(data, tiny_encoder, tmp_path, capsys, offline):
    flags = ["--load_teacher_ckpt_path", tiny_encoder, "--data_dir", data / "train", "--output_dir", tmp_path / "gd"]
    assert command("doctor", *flags, "--student", "test-2l-32") == 0
    found = table(capsys.readouterr().out)
    assert found["layers"] == ("ok", "the student's 2 learn from teacher layers (1, 3)")
    assert found["heads"][0] == "ok"
    assert command("doctor", *flags, "--student", "test-2l-32", "--num_attention_heads", 2) == 2
    assert table(capsys.readouterr().out)["heads"][0] == "wrong"


def test_wrong_things_are_found_together(config, data, tmp_path, capsys):
    broken = tmp_path / "records"
    shutil.copytree(data / "train", broken)
    shard = next(broken.glob("*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-3])
    (tmp_path / "file").write_text("")
    argv = ["--train_data_dir", broken, "--output_dir", tmp_path / "file", "--device_target", "Ascend"]
    assert command("doctor", "--config", config, *argv) == 2
    found = table(capsys.readouterr().out)
    wrong = {name for name, (state, _) in found.items() if state == "wrong"}
    assert wrong == {"device", "run directory", "records --train_data_dir"}
    assert "cut short in row" in found["records --train_data_dir"][1]


def test_a_run_directory_is_wanted_where_the_stage_has_no_default(data, tiny_encoder, capsys):
    assert command("doctor", "finetune", "--model", tiny_encoder, "--train_data_dir", data / "train") == 2
    assert "--output_dir is empty" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "value"), [("buckets", 4), ("batch_size", 0), ("max_skipped_steps", 0)])
def test_flags_that_the_stage_would_refuse_are_wrong(config, name, value, capsys):
    assert command("doctor", "--config", config, f"--{name}", value) == 2
    captured = capsys.readouterr()
    assert f"--{name}" in captured.out + captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["distil"],
            "no stage 'distil'; expected finetune, general-distill, task-distill, distill, meta-pseudo-labels",
        ),
        (["--learning_rate", "1"], "fit several stages; name it"),
        (["--nope", "1"], "fit no stage"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_stage_that_cannot_be_told_is_asked_for(argv, message, capsys):
    assert command("doctor", *argv) == 2
    assert message in capsys.readouterr().err


def load(**changes) -> Load:
    values = {"trained": 22_700_000, "model": preset("minilm-l6"), "teacher": None, "teacher_parameters": 0}
    values |= {"matched": 0, "batch_size": 32, "buckets": [64], "keep": 1, "cache": {}}
    return Load(**values | changes)


def test_memory_is_about_what_was_measured(monkeypatch):
    """Peaks of short runs on 2 cores: fine-tuning 6 layers, and a distillation of 3 from 6, rows of 64."""
    student = {"trained": 17_400_000, "model": preset("minilm-l3"), "teacher": preset("minilm-l6"), "matched": 3}
    student["teacher_parameters"] = 22_700_000
    measured = [(True, {}, 32, 3094), (True, {}, 128, 4385), (True, student, 32, 3157), (True, student, 128, 5518)]
    measured += [(False, {}, 32, 7051), (False, {}, 96, 14241)]
    for kernels, changes, batch, mebibytes in measured:
        monkeypatch.setattr(checks.native, "available", lambda kernels=kernels: kernels)
        estimate = load(**changes, batch_size=batch).memory() / 2**20
        np.testing.assert_allclose(estimate, mebibytes, rtol=0.2)


def test_too_little_memory_or_disk_is_refused(config, monkeypatch, capsys):
    monkeypatch.setattr(checks, "machine_memory", lambda: (10**9, 2 * 10**9))
    assert command("doctor", "--config", config) == 2
    captured = table(capsys.readouterr().out)
    assert captured["memory"][0] == "wrong" and "fewer --buckets" in captured["memory"][1]
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert command("doctor", "--config", config) == 2
    assert "0.00 GB free or its own; checkpoints" in table(capsys.readouterr().out)["disk"][1]


def test_only_what_a_run_writes_over_counts_as_its_own(tmp_path):
    for name in ("checkpoints/a", "phase1/best/b", "teacher_cache/c", "d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(100))
    assert checks._held(tmp_path) == 200
