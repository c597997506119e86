"""A model and its export side by side: figures against what is known of them."""

import json
import shutil

import numpy as np
import pytest
from small import command

from minddistill.bench.measure import INPUTS
from minddistill.data.records import read_rows
from minddistill.recipes.benchmark import typical

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "onnx"
    assert command("export", "--model", teacher, "--output_dir", out) == 0
    return out


@pytest.mark.slow
def test_a_model_and_its_export_side_by_side(teacher, exported, data, tmp_path, capsys):
    flags = ["--models", teacher, exported, "--data_dir", data / "dev", "--runs", 100, "--batch_sizes", 1, 32]
    assert command("benchmark", *flags, "--output_dir", tmp_path) == 0
    rows = [json.loads(line) for line in (tmp_path / "benchmark.jsonl").read_text().splitlines()]
    known = json.loads((teacher / "minddistill.json").read_text())
    assert [row["kind"] for row in rows] == ["mindspore", "onnx"]
    files = teacher / "model.safetensors", exported / "model.onnx"
    for row, file in zip(rows, files, strict=True):
        assert row["metrics"] == known["metrics"] and row["parameters"] == known["parameters"]
        assert row["megabytes"] == file.stat().st_size / 1e6
        times = row["latency"]
        assert 0 < times["p50_ms"] <= times["p95_ms"] <= times["p99_ms"] and times["std_ms"] > 0
        assert row["throughput"].keys() == {"1", "32"} and min(row["throughput"].values()) > 0
        assert row["peak_megabytes"] > 50 and row["threads"] == len(row["cores"]) == 1 and row["runs"] == 100
    assert rows[1]["peak_megabytes"] < rows[0]["peak_megabytes"]  # MindSpore's runtime is not in it
    assert {"report.html", "benchmark.png", "benchmark.svg"} <= {file.name for file in tmp_path.iterdir()}
    said = capsys.readouterr().out
    for name in ("best", "onnx", "100 runs after 20 untimed ones", "1 thread, pinned to core"):
        assert name in said


def test_an_exported_model_is_evaluated_as_the_model_is(teacher, exported, data, tmp_path, capsys):
    flags = ["--model", exported, "--data_dir", data / "dev"]
    assert command("evaluate", *flags, "--output_dir", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["dev"]
    assert found == json.loads((teacher / "minddistill.json").read_text())["metrics"]
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert f"{(exported / 'model.onnx').stat().st_size / 1e6:.1f}" in page
    assert command("evaluate", *flags, "--output_dir", tmp_path / "out") == 0
    assert "measured before" in capsys.readouterr().out
    # With its outputs' names exchanged, it gives every row the other label.
    shutil.copytree(exported, tmp_path / "exchanged")
    config = json.loads((exported / "config.json").read_text())
    config["id2label"] = dict(zip(config["id2label"], reversed(config["id2label"].values()), strict=True))
    config.pop("label2id")
    (tmp_path / "exchanged" / "config.json").write_text(json.dumps(config))
    assert command("evaluate", "--model", tmp_path / "exchanged", *flags[2:], "--output_dir", tmp_path / "other") == 0
    other = json.loads((tmp_path / "other" / "metrics.json").read_text())["dev"]
    assert other["accuracy"] == pytest.approx(1 - found["accuracy"])
    assert command("evaluate", *flags, "--device_target", "GPU") == 2
    assert "--device_target GPU" in capsys.readouterr().err


def test_a_typical_sentence_is_of_median_length(data):
    rows = read_rows(data / "dev")
    one, eight = typical(rows, 1), typical(rows, 8)
    assert one.keys() == set(INPUTS) and one["input_ids"].shape == (1, int(np.median(rows.length)))
    assert typical(rows, 1, 99)["input_ids"].shape == (1, rows.length.max())
    assert eight["input_mask"].shape[0] == 8 and (eight["input_ids"][0] == one["input_ids"][0]).all()


def test_wrong_requests_end_in_one_line(teacher, data, tmp_path, capsys):
    whole = ["--models", teacher, "--data_dir", data / "dev", "--output_dir", tmp_path / "out"]
    for flags, message in (
        (whole[2:], "--models is empty"),
        ([*whole, "--runs", 50], "--runs 50: expected at least 100"),
        ([*whole, "--current", "other"], "--current other: not among --models"),
        ([*whole, "--batch_sizes", 0, 8], "--batch_sizes 0 8: expected positive"),
        ([*whole, "--threads", 0], "--threads 0: this process may use"),
        ([*whole[2:], "--models", tmp_path / "absent"], "absent: no such file or directory"),
    ):
        assert command("benchmark", *flags) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0], lines
    assert not (tmp_path / "out").exists()
