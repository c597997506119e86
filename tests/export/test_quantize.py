"""Int8 graphs: what is int8 in them, what stays float, and what it costs."""

import json

import numpy as np
import pytest
from small import command

from minddistill.data.records import read_rows
from minddistill.export.session import Session
from minddistill.recipes.quantize import calibration_batches

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def exported(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "onnx"
    assert command("export", "--model", teacher, "--output_dir", out) == 0
    return out


def matrices(directory) -> dict[str, int]:
    """Type of every weight matrix of a graph, by name."""
    graph = onnx.load(directory / "model.onnx").graph
    return {t.name: t.data_type for t in graph.initializer if len(t.dims) == 2}


def same_answers(directory, exported, data) -> None:
    rows = read_rows(data / "dev")
    length = int(rows.length.max())
    ids = rows.ids[:, :length].astype(np.int64)
    mask = (np.arange(length) < rows.length[:, None]).astype(np.int64)
    found, expected = (Session.open(path, threads=1).predict(ids, mask, mask * 0) for path in (directory, exported))
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())


def test_dynamic_int8_answers_alike_and_reports_both(exported, data, tmp_path, capsys):
    out = tmp_path / "dynamic"
    flags = ["--model", exported, "--output_dir", out, "--eval_data_dir", data / "dev"]
    assert command("quantize", *flags) == 0
    same_answers(out, exported, data)
    float_matrices = {name for name, kind in matrices(out).items() if kind == onnx.TensorProto.FLOAT}
    assert float_matrices == {"encoder.embeddings.position"}  # a part of it is taken, none of its rows looked up
    record = json.loads((out / "minddistill.json").read_text())
    assert record["quantisation"] == {"method": "dynamic", "keep_float": []}
    assert record["parents"] == {"model": str(exported)}
    assert {"accuracy", "megabytes", "milliseconds"} <= record["metrics"].keys() & record["metrics_float32"].keys()
    assert "float32: accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_static_int8_is_qdq_and_answers_alike(exported, data, tmp_path, calibration):
    out = tmp_path / "static"
    more = ["--data_dir", data / "train", "--calibration", calibration, "--calibration_rows", 40]
    assert command("quantize", "--model", exported, "--method", "static", "--output_dir", out, *more) == 0
    same_answers(out, exported, data)
    nodes = onnx.load(out / "model.onnx").graph.node
    kinds = {node.op_type for node in nodes}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds and "MatMulInteger" not in kinds
    by_channel = [node for node in nodes if node.op_type == "DequantizeLinear" and "query.weight" in node.input[1]]
    assert by_channel and all(a.i == 1 for node in by_channel for a in node.attribute if a.name == "axis")


def test_named_layers_stay_in_float(exported, tmp_path):
    out = tmp_path / "kept"
    flags = ["--model", exported, "--output_dir", out, "--keep_float", "encoder.layers.1,classifier"]
    assert command("quantize", *flags) == 0
    kinds = matrices(out)
    kept = {name for name in kinds if name.startswith(("encoder.layers.1.", "classifier."))}
    assert len(kept) == 7 and {kinds[name] for name in kept} == {onnx.TensorProto.FLOAT}
    others = {name for name in kinds if name.startswith("encoder.layers.") and name not in kept}
    assert others and {kinds[name] for name in others} == {onnx.TensorProto.INT8}


def test_calibration_rows_are_real_unpadded_and_drawn_by_seed(data):
    rows = read_rows(data / "train")
    batches = calibration_batches(rows, 50, seed=1)
    assert sum(len(ids) for ids, _, _ in batches) == 50
    assert all((mask == 1).all() for _, mask, _ in batches)
    texts = {tuple(ids[:length]) for ids, length in zip(rows.ids, rows.length, strict=True)}
    assert {tuple(ids) for batch, _, _ in batches for ids in batch} <= texts
    again = calibration_batches(rows, 50, seed=1)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))


def test_mistakes_are_named(exported, data, tmp_path, capsys):
    def told(*flags) -> str:
        assert command("quantize", "--model", exported, "--output_dir", tmp_path / "out", *flags) == 2
        return capsys.readouterr().err

    assert "--data_dir is empty" in told("--method", "static")
    assert "is not used" in told("--data_dir", data / "train")
    assert "no such layer; expected some of encoder.embeddings" in told("--keep_float", "layer.7")
    assert command("quantize", "--model", exported, "--output_dir", tmp_path / "int8") == 0
    flags = ["--model", tmp_path / "int8", "--output_dir", tmp_path / "twice"]
    assert command("quantize", *flags) == 2
    assert "not a float32 graph" in capsys.readouterr().err
