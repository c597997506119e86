"""Int8 graphs: what is int8 in them, what stays float, and what it costs."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small import command

from minddistill.data.records import read_rows
from minddistill.export import quantize
from minddistill.export.session import Session
from minddistill.files import write_json
from minddistill.models import store
from minddistill.models.fake_quant import simulate
from minddistill.models.heads import predict_function
from minddistill.recipes import common
from minddistill.recipes.quantize import calibration_batches

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def exported(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "onnx"
    assert command("export", "--model", teacher, "--output_dir", out) == 0
    return out


@pytest.fixture(scope="module")
def static(exported, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("static") / "int8"
    more = ["--method", "static", "--data_dir", data / "train", "--calibration_rows", 40]
    assert command("quantize", "--model", exported, "--output_dir", out, *more) == 0
    return out


def qat_flags(teacher, data, out) -> list[object]:
    records = ["--data_dir", data / "train", "--eval_data_dir", data / "dev", "--calibration_rows", 40]
    training = ["--teacher", teacher, "--learning_rate", 1e-3, "--train_steps", 12, "--batch_size", 16]
    more = ["--buckets", "off", "--keep_float", "classifier", "--output_dir", out]
    return ["--model", teacher, "--method", "qat", *records, *training, *more]


@pytest.fixture(scope="module")
def trained(teacher, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "int8"
    assert command("quantize", *qat_flags(teacher, data, out)) == 0
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


def test_residuals_are_not_rounded_with_what_matrix_products_read(static):
    nodes = onnx.load(static / "model.onnx").graph.node
    makers = {node.output[0]: node.op_type for node in nodes}
    read = {node.input[0] for node in nodes if node.op_type == "MatMul"}
    rounded = {name for name in read if makers[name] == "DequantizeLinear"}
    assert rounded and not rounded & {name for node in nodes if node.op_type != "MatMul" for name in node.input}


def test_calibration_needs_no_labels(exported, tiny_text, vocabulary, static, tmp_path):
    lines = (tiny_text / "train.tsv").read_text().splitlines()
    (tmp_path / "plain.tsv").write_text("".join(line.split("\t")[0] + "\n" for line in lines))
    files = ["--train_file", tiny_text / "train.tsv", "--test_file", tmp_path / "plain.tsv", "--max_seq_length", 12]
    flags = ["--task_name", "custom", "--tokenizer", vocabulary, "--output_dir", tmp_path]
    assert command("prepare-task", *flags, *files) == 0
    assert not read_rows(tmp_path / "test", labelled=False).meta["labelled"]
    more = ["--method", "static", "--data_dir", tmp_path / "test", "--calibration_rows", 40]
    assert command("quantize", "--model", exported, *more, "--output_dir", tmp_path / "int8") == 0
    found, expected = ((path / "model.onnx").read_bytes() for path in (tmp_path / "int8", static))
    assert found == expected  # the same rows


def simulated_and_computed(trained, rows) -> np.ndarray:
    """The trained network's logits, rounded as it was trained; those of the int8 graph are the same."""
    ids, mask = rows.ids.astype(np.int32), (np.arange(rows.seq_length) < rows.length[:, None]).astype(np.int32)
    weights = store.read_weights(trained.with_name("int8-run") / "best")
    model = store.build(weights)
    simulate(model, quantize.grids(trained / "model.onnx", weights.config))
    simulated = predict_function(model)({"input_ids": ids, "input_mask": mask, "segment_ids": mask * 0})
    found = Session.open(trained, threads=1).predict(ids, mask, mask * 0)
    np.testing.assert_allclose(found, simulated, atol=0.01 * np.abs(simulated).max())
    return simulated


def test_qat_trains_the_students_own_head_whatever_the_teachers_is(teacher, data, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    write_json(other / "config.json", config | {"relu_before_classifier": True})
    more = ["--teacher", other, "--allow_weak_teacher", "true", "--train_steps", 3]
    assert command("quantize", *qat_flags(teacher, data, tmp_path / "int8"), *more) == 0
    simulated_and_computed(tmp_path / "int8", read_rows(data / "dev"))
    assert not store.read_weights(tmp_path / "int8-run" / "best").config.relu_before_classifier


def test_qat_trains_what_onnx_runtime_computes(trained, static, teacher, data):
    rows = read_rows(data / "dev")
    simulated = simulated_and_computed(trained, rows)
    record = json.loads((trained / "minddistill.json").read_text())
    simulated_accuracy = float((simulated.argmax(1) == rows.label).mean())
    assert record["metrics"]["accuracy"] == pytest.approx(simulated_accuracy, abs=0.002)
    known = json.loads((trained.with_name("int8-run") / "best" / "minddistill.json").read_text())
    assert known["metrics"]["accuracy"] == pytest.approx(simulated_accuracy, abs=0.002)


def test_qat_learns_and_keeps_what_is_named_in_float(trained, teacher):
    before, after = (
        store.read_weights(teacher).values,
        store.read_weights(trained.with_name("int8-run") / "best").values,
    )
    assert all(
        not np.array_equal(before[path], after[path]) for path in ("encoder.layers.0.query.weight", "pooler.weight")
    )
    kinds = matrices(trained)
    assert kinds["classifier.weight"] == onnx.TensorProto.FLOAT
    assert kinds["encoder.embeddings.word_quantized"] == onnx.TensorProto.UINT8
    graph = onnx.load(trained / "model.onnx").graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    np.testing.assert_array_equal(values["classifier.weight"], after["classifier.weight"].T)
    scale, rounded = values["pooler.weight_scale"], values["pooler.weight_quantized"].astype(np.float32)
    inside = np.abs(after["pooler.weight"].T) <= 127 * scale
    assert inside.mean() > 0.95  # the largest of an output may grow beyond its scale, and is cut off
    assert np.abs(rounded * scale - after["pooler.weight"].T)[inside].max() <= scale.max() * 0.51


def test_qat_goes_on_where_it_was_and_refuses_another_training(trained, exported, data, teacher, capsys):
    flags = qat_flags(teacher, data, trained)
    before = (trained / "model.onnx").read_bytes()
    assert command("quantize", *flags) == 0
    assert "qat: finished before" in capsys.readouterr().out and (trained / "model.onnx").read_bytes() == before
    assert command("quantize", *flags, "--calibration_rows", 10) == 2
    assert "--calibration_rows was 40, is 10" in capsys.readouterr().err


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
    assert "--data_dir" in told("--data_dir", data / "train")
    assert "--learning_rate 0.1 is not used" in told("--learning_rate", 0.1)
    qat = ["--method", "qat", "--data_dir", data / "train"]
    assert "--teacher is empty; expected the fine-tuned teacher" in told(*qat)
    assert "learning_rate" in told(*qat, "--teacher", exported, "--learning_rate", 0)
    assert "holds an ONNX graph" in told(*qat, "--teacher", exported)
    assert "no such layer; expected some of encoder.embeddings" in told("--keep_float", "layer.7")
    assert command("quantize", "--model", exported, "--output_dir", tmp_path / "int8") == 0
    flags = ["--model", tmp_path / "int8", "--output_dir", tmp_path / "twice"]
    assert command("quantize", *flags) == 2
    assert "not a float32 graph" in capsys.readouterr().err


def relabelled(source, target, names) -> None:
    """A copy of an exported model whose outputs have other names."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    config.pop("label2id", None)
    (target / "config.json").write_text(json.dumps(config))


def test_outputs_are_measured_by_their_names(exported, data, tmp_path, capsys):
    accuracies = []
    for number, names in enumerate((["no", "yes"], ["LABEL_0", "LABEL_1"], ["YES", "NO"])):
        relabelled(exported, tmp_path / f"model{number}", names)
        out = tmp_path / f"int8{number}"
        flags = ["--model", tmp_path / f"model{number}", "--eval_data_dir", data / "dev", "--output_dir", out]
        assert command("quantize", *flags) == 0
        accuracies.append(json.loads((out / "minddistill.json").read_text())["metrics_float32"]["accuracy"])
    assert accuracies[0] == accuracies[1] == pytest.approx(1 - accuracies[2])
    relabelled(exported, tmp_path / "other", ["red", "blue"])
    flags = ["--model", tmp_path / "other", "--eval_data_dir", data / "dev", "--output_dir", tmp_path / "x"]
    assert command("quantize", *flags) == 2
    assert "the model: trained on the labels red, blue" in capsys.readouterr().err


def test_the_model_itself_is_not_replaced_and_its_parameters_are_counted(exported, teacher, tmp_path, capsys):
    shutil.copytree(exported, tmp_path / "onnx")
    assert command("quantize", "--model", tmp_path / "onnx", "--output_dir", tmp_path / "onnx") == 2
    assert "is --model, which would be lost" in capsys.readouterr().err
    (tmp_path / "onnx" / "minddistill.json").unlink()
    assert command("quantize", "--model", tmp_path / "onnx", "--output_dir", tmp_path / "int8") == 0
    counted = json.loads((tmp_path / "int8" / "minddistill.json").read_text())["parameters"]
    assert counted == json.loads((teacher / "minddistill.json").read_text())["parameters"]


@pytest.mark.parametrize("name", ["export", "quantize"])
def test_weights_that_lack_one_are_refused(teacher, tmp_path, capsys, name):
    shutil.copytree(teacher, tmp_path / "model")
    (tmp_path / "model" / "minddistill.json").unlink()
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    del tensors["bert.pooler.dense.weight"]
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert command(name, "--model", tmp_path / "model", "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "pooler.weight" in error and error.count("\n") == 1


def test_qat_refuses_a_student_whose_labels_are_in_another_order(teacher, data, tmp_path, capsys):
    relabelled(teacher, tmp_path / "student", ["yes", "no"])
    flags = qat_flags(teacher, data, tmp_path / "int8")
    flags[1] = tmp_path / "student"
    assert command("quantize", *flags) == 2
    error = capsys.readouterr().err
    assert "its labels are yes, no, those of" in error and error.count("\n") == 1


def test_weights_of_a_graph_are_those_of_the_model(exported, teacher):
    mine, theirs = common.arrays(exported), common.arrays(teacher)
    for path in ("encoder.layers.0.query.weight", "encoder.layers.1.query.bias", "encoder.layers.0.key.weight"):
        found = mine[path].T if mine[path].ndim > 1 else mine[path]
        np.testing.assert_allclose(found, theirs[path], rtol=1e-6)


def test_damaged_graphs_are_refused(exported, tmp_path, capsys):
    damaged = shutil.copytree(exported, tmp_path / "onnx")
    graph = damaged / "model.onnx"
    flags = ["--model", damaged, "--output_dir", tmp_path / "int8"]
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 2
    graph.write_bytes(content)
    assert command("quantize", *flags) == 2
    assert f"{graph}: damaged or changed (checksum)" in capsys.readouterr().err
    (damaged / "minddistill.json").unlink()
    for other in (b"", bytes(content[:1000]), b"no graph"):
        graph.write_bytes(other)
        assert command("quantize", *flags) == 2
        assert f"{graph}: ONNX Runtime cannot run it" in capsys.readouterr().err
    plots = ["--kind", "weights", "--models", damaged, exported, "--output_dir", tmp_path / "plots"]
    assert command("plot", *plots) == 2
    assert f"{graph}: not an ONNX graph" in capsys.readouterr().err
    assert not (tmp_path / "int8").exists()
