"""The search command: trials as processes, resumed, and its best configuration fitted again."""

import json
import signal
import subprocess
import sys
import time

import optuna
import pytest
import yaml
from small import command

from minddistill.recipes import search


@pytest.fixture
def files(tmp_path, data, tiny_encoder):
    """A configuration of fine-tuning, and a space over two of its flags."""
    config, space = tmp_path / "finetune.yaml", tmp_path / "space.yaml"
    values = {"model": str(tiny_encoder), "train_data_dir": str(data / "train"), "eval_data_dir": str(data / "dev")}
    values |= {"epoch_size": 1, "batch_size": 24, "buckets": "12", "seed": 5}
    config.write_text(yaml.safe_dump(values))
    space.write_text("learning_rate: {low: 1e-4, high: 1e-2, log: true}\nwarmup_ratio: [0.0, 0.1]\n")
    return ["--command", "finetune", "--config", config, "--space", space, "--output_dir", tmp_path / "study"]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ("epochs: [1, 2]", "unknown flag --epochs"),
        ("learning_rate: [x]", "learning_rate"),
        ("batch_size: {low: -4, high: 8}", "batch_size"),
        ("output_dir: [a, b]", "output_dir: cannot vary"),
        ("buckets: ['8,12', off]", "buckets: YAML reads False there; put the word in quotes"),
        ("buckets: [16, 32]", "buckets: expected text, YAML reads the number 16; quote it"),
        ("epoch: [1, 2]", "unknown flag --epoch of finetune"),
    ],
)
def test_flags_of_the_space_are_checked_before_any_trial(files, capsys, space, told, tmp_path):
    files[5].write_text(space)
    assert command("search", *files) == 2
    error = capsys.readouterr().err
    assert str(files[5]) in error and told in error and error.count("\n") == 1
    assert not (tmp_path / "study/study.db").exists()


def test_records_to_judge_by_are_wanted(files, capsys):
    values = yaml.safe_load(files[3].read_text())
    del values["eval_data_dir"]
    files[3].write_text(yaml.safe_dump(values))
    assert command("search", *files) == 2
    assert "eval_data_dir is not in it" in capsys.readouterr().err


@pytest.mark.slow
def test_search_goes_on_and_fits_its_best_again(files, tmp_path, capsys):
    study = tmp_path / "study"
    words = [sys.executable, "-m", "minddistill", "search", *map(str, files), "--trials", "3", "--refit", "2"]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not list(study.glob("trials/*/log.txt")) and time.monotonic() < until:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 130 and errors.startswith("minddistill search: stopped")
    assert command("search", *files, "--trials", "3", "--refit", "2") == 0
    shown = capsys.readouterr().out
    found = json.loads((study / "search.json").read_text())
    assert len(found["trials"]) == 3 and found["best"]["value"] == max(trial["value"] for trial in found["trials"])
    assert len(list(study.glob("trials/*.log"))) == 3  # the stopped setting was the first to go on
    assert list(found["refit"]["values"]) == ["6", "7"] and "refit: " in shown
    best = yaml.safe_load((study / "best.yaml").read_text())
    assert best["learning_rate"] == found["best"]["setting"]["learning_rate"] and best["epoch_size"] == 1
    assert command("finetune", "--config", study / "best.yaml", "--output_dir", tmp_path / "again") == 0
    models = list(study.glob("trials/*/best/model.safetensors"))
    assert [model.parent.parent.name for model in models] == [search._name(found["best"]["setting"])]
    assert (study / "history.svg").read_text().startswith("<?xml")
    assert (study / "importance.svg").is_file() == bool(found["importance"])  # none where all trials are equally good
    taken = {file: file.stat().st_mtime_ns for file in study.glob("trials/*/metrics.jsonl")}
    opened = optuna.load_study(study_name="search", storage=f"sqlite:///{study / 'study.db'}")
    for trial in (trial for trial in opened.trials if trial.state.name == "COMPLETE"):
        opened.enqueue_trial(trial.params)
    assert command("search", *files, "--trials", "6", "--refit", "0") == 0  # the same settings again
    values = [trial["value"] for trial in json.loads((study / "search.json").read_text())["trials"]]
    assert sorted(values[:3]) == sorted(values[3:])
    assert taken == {file: file.stat().st_mtime_ns for file in study.glob("trials/*/metrics.jsonl")}
    capsys.readouterr()
    assert command("search", *files, "--trials", "6", "--refit", "0") == 0
    assert "trial " not in capsys.readouterr().out.replace("trials", "")  # nothing is left to do


def test_what_no_setting_mends_is_told_before_any_trial(files, tmp_path, capsys):
    values = yaml.safe_load(files[3].read_text())
    files[3].write_text(yaml.safe_dump(values | {"train_data_dir": str(tmp_path / "absent")}))
    assert command("search", *files, "--trials", 2) == 2
    error = capsys.readouterr().err
    assert f"--config {files[3]}:" in error and f"{tmp_path / 'absent'}" in error and error.count("\n") == 1
    assert not list(tmp_path.glob("study/trials/*.log"))
