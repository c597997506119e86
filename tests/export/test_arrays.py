"""Weights out of ONNX graphs, quantised by ONNX Runtime in each of its ways."""

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from minddistill.export.arrays import read_arrays

WEIGHT = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32) * np.linspace(0.1, 1, 8, dtype=np.float32)


class Data(CalibrationDataReader):
    def __init__(self):
        self.batches = [{"x": np.random.default_rng(seed).normal(size=(4, 16)).astype(np.float32)} for seed in range(3)]

    def get_next(self):
        return self.batches.pop() if self.batches else None


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", size]) for name, size in (("x", 16), ("y", 8))
    ]
    nodes = [helper.make_node("MatMul", ["x", "a.weight"], ["p"]), helper.make_node("Add", ["p", "a.bias"], ["q"])]
    nodes.append(helper.make_node("Mul", ["q", "two"], ["y"]))
    constants = [array(WEIGHT, "a.weight"), array(np.ones(8, np.float32), "a.bias"), array(np.float32(2), "two")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(model, str(path))
    return path


def test_weights_are_read_and_constants_are_not(graph):
    found = read_arrays(graph)
    assert found.keys() == {"a.weight", "a.bias"}
    assert (found["a.weight"] == WEIGHT).all()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_quantised_weights_are_the_numbers_they_stand_for(graph, tmp_path, per_channel, static):
    out = tmp_path / "model.onnx"
    kind = {"per_channel": per_channel, "weight_type": QuantType.QInt8}
    if static:
        quantize_static(str(graph), str(out), Data(), quant_format=QuantFormat.QDQ, **kind)
    else:
        quantize_dynamic(str(graph), str(out), **kind)
    weight = read_arrays(out)["a.weight"]
    most = np.abs(WEIGHT).max(0) if per_channel else np.abs(WEIGHT).max()
    assert weight.shape == WEIGHT.shape
    assert (np.abs(weight - WEIGHT) <= 0.51 * most / 127).all() and (weight != WEIGHT).any()
