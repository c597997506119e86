"""The weights inside an ONNX graph, by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, need

# What ONNX Runtime's quantiser puts behind the name of an array that it rounds.
QUANTIZED = "_quantized"


def read_arrays(graph: Path) -> dict[str, np.ndarray]:
    """The weights in a graph by name; quantised ones as the numbers that they stand for.

    Numbers alone are constants of the computation, no weights. ONNX Runtime's quantiser keeps an array X as `X_quantized`, `X_scale` and `X_zero_point`.

    Raises:
        UserError: package onnx is not installed, or the file is no graph.
    """
    onnx = need("onnx", "deploy")
    try:
        model = onnx.load(str(graph)).graph
    except Exception as error:  # protobuf's, which has no public base
        raise UserError(f"{graph}: not an ONNX graph ({str(error).splitlines()[0]}); export it again") from None
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.initializer}
    axes = {node.input[0]: _axis(node) for node in model.node if node.op_type == "DequantizeLinear"}
    found = {}
    for name, value in stored.items():
        path = name.removesuffix(QUANTIZED)
        if path != name:
            value = _dequantized(value, stored[f"{path}_scale"], stored[f"{path}_zero_point"], axes.get(name, -1))
        elif value.dtype.kind != "f" or not value.ndim or any(name.endswith(end) for end in ("_scale", "_zero_point")):
            continue
        found[path] = value
    return found


def _axis(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _dequantized(value: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> np.ndarray:
    """(value - zero) scale, where scale and zero are one number or one for each place on `axis`."""
    if scale.size > 1:
        shape = [1] * value.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (value.astype(np.float32) - zero.astype(np.float32)) * scale
