"""ONNX graphs in int8: weights by channel, the embedding with them, activations as they come or as calibrated."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, need
from ..models.config import ModelConfig
from ..models.fake_quant import Grid
from .arrays import QUANTIZED
from .session import INPUTS

CALIBRATIONS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
# The part of the values, in percent, that `percentile` keeps within the range.
PERCENTILE = 99.99

_KINDS = ("MatMul", "Gather")
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def dynamic(source: Path, target: Path, keep_float: Sequence[str] = ()) -> None:
    """Write a graph whose activations are quantised by the range that they have in each call.

    Args:
        source: a float32 graph.
        keep_float: layers that stay in float32, by name or the beginning of their names up to a dot.

    Raises:
        UserError: onnxruntime is missing, the graph is not in float32, or a name is no layer's.
    """
    tool = _tool()
    with _quietly():
        tool.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(_KINDS),
            per_channel=True,
            weight_type=tool.QuantType.QInt8,
            nodes_to_exclude=_in_float(source, keep_float),
        )


def static(
    source: Path, target: Path, batches: Sequence[Batch], calibration: str = "minmax", keep_float: Sequence[str] = ()
) -> None:
    """Write a graph in QDQ form whose activations have ranges fixed by calibration.

    Args:
        source: a float32 graph.
        batches: token ids, masks and segments (B, S) of real texts without padding, which would widen the ranges.
        calibration: how a range comes from the values seen: minmax, entropy or percentile.
        keep_float: as for `dynamic`.

    Raises:
        UserError: as `dynamic`.
    """
    tool = _tool()
    options = {
        # Batches differ in length: each is collected by itself.
        "CalibStridedMinMax": 1,
        "CalibPercentile": PERCENTILE,
        # What leaves a matrix product is added to in float32, so that it need not be rounded.
        "OpTypesToExcludeOutputQuantization": ["MatMul"],
    }
    with _quietly():
        tool.quantize_static(
            source,
            target,
            _reader(tool, source, batches),
            quant_format=tool.QuantFormat.QDQ,
            op_types_to_quantize=list(_KINDS),
            per_channel=True,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            nodes_to_exclude=_in_float(source, keep_float),
            calibrate_method=getattr(tool.CalibrationMethod, CALIBRATIONS[calibration]),
            extra_options=options,
        )
    _float_residuals(target)


def _float_residuals(graph: Path) -> None:
    """Round nothing but what matrix products read: the tool gives it to the residual beside them too."""
    onnx = need("onnx", "deploy")
    model = onnx.load(graph)
    makers = {output: node for node in model.graph.node for output in node.output}
    read = {node.input[0] for node in model.graph.node if node.op_type == "MatMul"}
    rounded = {name for name in read if name in makers and makers[name].op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type != "MatMul":
            for place, name in enumerate(node.input):
                if name in rounded:
                    node.input[place] = makers[makers[name].input[0]].input[0]
    onnx.save(model, graph)


def grids(graph: Path, config: ModelConfig) -> dict[str, Grid]:
    """How the int8 graph of a model rounds, as `models.fake_quant.simulate` takes it.

    Args:
        graph: written by `static`.
        config: of the model.
    """
    onnx = need("onnx", "deploy")
    body = onnx.load(graph).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in body.initializer}
    makers = {node.output[0]: node for node in body.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in makers.values():
        if node.input[0] in stored:
            path = node.input[0].removesuffix(QUANTIZED)
            scale, zero = (stored[name] for name in node.input[1:])
            if scale.size > 1:  # the graph holds (inputs, outputs), the model (outputs, inputs)
                scale, zero = scale.reshape(-1, 1), zero.reshape(-1, 1)
            if path.endswith(".query.weight"):  # the graph's have the scores' 1 / sqrt(D) in them
                scale = scale * math.sqrt(config.attention_head_size)
            found[path] = _grid(scale, zero)
    for node in body.node:
        if node.op_type == "MatMul" and {*node.input} <= makers.keys():
            found[node.name] = _grid(*(stored[name] for name in makers[node.input[0]].input[1:]))
    return found


def _grid(scale: np.ndarray, zero: np.ndarray) -> Grid:
    ends = np.iinfo(zero.dtype)
    return Grid(scale, zero.astype(np.float32), max(ends.min, -ends.max), ends.max)


def refill(graph: Path, source: Path, target: Path) -> None:
    """Write an int8 graph with the weights of another model of its shape, rounded at the graph's own scales.

    Args:
        graph: written by `static`.
        source: the other model's float32 graph.
    """
    onnx = need("onnx", "deploy")
    model = onnx.load(graph)
    arrays, values = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in body.initializer}
        for body in (model.graph, onnx.load(source).graph)
    )
    for tensor in model.graph.initializer:
        path = tensor.name.removesuffix(QUANTIZED)
        if path in values:
            value = values[path]
            if path != tensor.name:  # scales go along the last axis, that of the outputs
                zero = arrays[f"{path}_zero_point"]
                value = _grid(arrays[f"{path}_scale"], zero).quantised(value).astype(zero.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save(model, target)


def _tool() -> Any:
    """ONNX Runtime's quantiser, which needs the package onnx."""
    need("onnx", "deploy")
    return need("onnxruntime.quantization", "deploy")


def _reader(tool: Any, source: Path, batches: Sequence[Batch]) -> Any:
    """Batches under the names of the graph's inputs, as the calibrators ask for them: a range, then one by one."""
    known = [value.name for value in need("onnx", "deploy").load(source, load_external_data=False).graph.input]

    class Reader(tool.CalibrationDataReader):
        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.part = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.part, None)
            named = zip(INPUTS, batch or (), strict=False)
            return {name: value.astype(np.int64) for name, value in named if name in known} or None

    return Reader()


def _in_float(source: Path, keep_float: Sequence[str]) -> list[str]:
    """Names of the nodes that stay as they are: those kept, and products of two activations (scores and context)."""
    onnx = need("onnx", "deploy")
    graph = onnx.load(source).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node.name for node in graph.node if node.op_type in _KINDS and weights.keys() & {*node.input}]
    if any(tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16) for tensor in weights.values()):
        raise UserError(f"{source}: not a float32 graph; expected one that minddistill export wrote without --fp16")
    for name in keep_float:
        if not any(f"{layer}.".startswith(f"{name}.") for layer in layers):
            raise UserError(f"--keep_float {name}: no such layer; expected some of {', '.join(layers)}")
    kept = [layer for layer in layers if any(f"{layer}.".startswith(f"{name}.") for name in keep_float)]
    return kept + [node.name for node in graph.node if node.op_type in _KINDS and node.name not in layers]


@contextmanager
def _quietly():
    """ONNX Runtime's tools print their progress and log advice that does not hold for these graphs."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
