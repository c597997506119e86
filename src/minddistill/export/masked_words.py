"""The words that a masked-LM model holds likeliest, by ONNX Runtime in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..models import store
from ..problems import SINGLE
from . import onnx, quantize
from .session import INPUTS, runtime_session

PLACES = "places"
Likeliest = Callable[[Mapping[str, np.ndarray]], np.ndarray]


class Builder(onnx.Builder):
    """Adds a masked-LM model to a graph."""

    def likeliest(self, count: int) -> str:
        """The ids (N, count) of the words that are likeliest at `places` (N,), likeliest first."""
        graph, config = self.graph, self.config
        x = self.dense("mlm.transform", self.encoded(places=PLACES))
        x = self.norm("mlm.norm", self.activation(config.mlm_act, x))
        decoder = self.values.get("mlm.decoder", self.values["encoder.embeddings.word"])
        scores = graph.node("MatMul", x, graph.constant(decoder.T, "mlm.decoder.weight"), name="mlm.decoder")
        scores = graph.node("Add", scores, graph.constant(self.values["mlm.bias"], "mlm.bias"))
        _, best = graph.node("TopK", scores, graph.constant([count]), outputs=2)
        return graph.node("Squeeze", best, graph.constant([0]), name="words")


def build(weights: store.Weights, count: int) -> Any:
    """The checked `onnx.ModelProto` of `Builder.likeliest`: `words` (N, count) int64 of a classifier's inputs (B, S) and
    `places` (N,) int64, positions b S + s.

    Args:
        weights: of a masked-LM model.

    Raises:
        UserError: package onnx is not installed, or the model has no masked-LM head.
    """
    shape = weights.config.with_(labels=(), problem=SINGLE, pooler=False)
    store.build(weights, shape, mlm=True)  # sees that all are there, of the right shapes, and numbers
    builder = Builder(weights.config, weights.values)
    output = builder.likeliest(count)
    make, whole = builder.graph.onnx.helper.make_tensor_value_info, builder.graph.onnx.TensorProto.INT64
    inputs, outputs = [make(PLACES, whole, [PLACES])], [make(output, whole, [PLACES, count])]
    return onnx.checked(builder.model("masked words", outputs, inputs))


def likeliest_function(weights: store.Weights, count: int, threads: int | None = None) -> Likeliest:
    """`models.heads.likeliest_function` with weights and the matrix products that read them in int8.

    Raises:
        UserError: onnx or onnxruntime is not installed, or the model has no masked-LM head.
    """
    with TemporaryDirectory() as place:
        plain, rounded = Path(place, "float32.onnx"), Path(place, "int8.onnx")
        onnx.save(build(weights, count), plain)
        quantize.dynamic(plain, rounded)
        return graph_likeliest(rounded, threads)


def graph_likeliest(graph: Path | bytes, threads: int | None = None) -> Likeliest:
    """A function as `models.heads.likeliest_function` makes it, of a graph that `build` made."""
    session = runtime_session(graph, threads)
    names = dict(zip((*INPUTS, PLACES), ("input_ids", "input_mask", "segment_ids", PLACES), strict=True))
    known = [value.name for value in session.get_inputs()]

    def likeliest(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        given = {name: batch[names[name]].astype(np.int64, copy=False) for name in known}
        return session.run(None, given)[0].astype(np.int32)

    return likeliest
