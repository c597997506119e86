"""The ONNX graph of a classifier, built from its configuration and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import need
from ..models import store
from ..models.bert import MASKED_SCORE
from ..models.config import LEAK, ModelConfig, WordConfig
from ..models.heads import POOLER_ACTIVATION
from ..problems import TOKEN
from .session import INPUTS

# The newest that the oldest ONNX Runtime we allow can run.
OPSET = 21
IR_VERSION = 10


class Graph:
    """Nodes and constants of a graph as they are added; what adds a node returns the name of its output."""

    def __init__(self):
        self.onnx = need("onnx", "deploy")
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Add a node, named after the layer it belongs to or by its number. Returns its output, or several."""
        name = name or f"{kind}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, name: str = "") -> str:
        """Add an array; whole numbers as int64. Equal ones without a name are one."""
        array = np.asarray(value)
        array = np.ascontiguousarray(array, np.int64 if array.dtype.kind == "i" else array.dtype).reshape(array.shape)
        name = name or f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.reshape(-1).tolist()}"
        self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name


class Builder:
    """Adds the parts of a model to a graph.

    Widths and numbers of heads are those of each layer's weights, so that layers may differ.

    Args:
        config: of the model.
        values: its weights by path.
    """

    def __init__(self, config: ModelConfig, values: Mapping[str, np.ndarray]):
        self.config, self.values, self.graph = config, values, Graph()

    def inputs(self) -> list[str]:
        """The inputs that the model reads, as transformers names them."""
        return list(INPUTS if self.config.type_vocab_size > 1 else INPUTS[:2])

    def dense(self, path: str, x: str, scale: float = 1.0) -> str:
        """scale (x W^T + b) of the layer at `path`; x is (..., inputs)."""
        weight, bias = self.values[f"{path}.weight"], self.values[f"{path}.bias"]
        weight = self.graph.constant(np.float32(scale) * weight.T, f"{path}.weight")
        product = self.graph.node("MatMul", x, weight, name=path)
        return self.graph.node("Add", product, self.graph.constant(np.float32(scale) * bias, f"{path}.bias"))

    def norm(self, path: str, x: str) -> str:
        gamma = self.graph.constant(self.values[f"{path}.gamma"], f"{path}.gamma")
        beta = self.graph.constant(self.values[f"{path}.beta"], f"{path}.beta")
        epsilon = self.config.layer_norm_eps
        return self.graph.node("LayerNormalization", x, gamma, beta, name=path, axis=-1, epsilon=epsilon)

    def activation(self, name: str, x: str) -> str:
        """An activation by its name in Hugging Face's configurations."""
        if name in ("tanh", "relu"):
            return self.graph.node(name.capitalize(), x)
        if name == "leaky_relu":
            return self.graph.node("LeakyRelu", x, alpha=LEAK)
        return self.graph.node("Gelu", x, approximate="none" if name == "gelu" else "tanh")

    def embeddings(self) -> str:
        """The embedding output (B, S, E) after layer norm."""
        graph, values, path = self.graph, self.values, "encoder.embeddings"
        x = graph.node("Gather", graph.constant(values[f"{path}.word"], f"{path}.word"), "input_ids", name=path)
        if not self.config.use_relative_positions:
            table = graph.constant(values[f"{path}.position"], f"{path}.position")
            x = graph.node("Add", x, self.positions(table))
        if self.config.type_vocab_size == 1:
            x = graph.node("Add", x, graph.constant(values[f"{path}.segment"][0], f"{path}.segment"))
        elif self.config.type_vocab_size:
            table = graph.constant(values[f"{path}.segment"], f"{path}.segment")
            x = graph.node("Add", x, graph.node("Gather", table, "token_type_ids", name=f"{path}.segment_rows"))
        return self.norm(f"{path}.norm", x)

    def positions(self, table: str) -> str:
        """Rows of the position embedding: (S, E), or (B, S, E) where padding is not counted (RoBERTa)."""
        graph = self.graph
        if not self.config.position_offset:
            return graph.node("Slice", table, graph.constant([0]), self.length(), graph.constant([0]))
        pad = graph.constant(self.config.pad_token_id)
        same = graph.node("Equal", "input_ids", pad)
        real = graph.node("Cast", graph.node("Not", same), to=self.graph.onnx.TensorProto.INT64)
        counted = graph.node("Mul", graph.node("CumSum", real, graph.constant(1)), real)
        return graph.node("Gather", table, graph.node("Add", counted, pad), name="encoder.embeddings.position_rows")

    def length(self) -> str:
        """S, as a vector of one."""
        return self.graph.node("Shape", "input_ids", start=1, end=2)

    def mask(self) -> str:
        """What is added to the scores of padded keys (B, 1, 1, S)."""
        graph = self.graph
        real = graph.node("Cast", "attention_mask", to=graph.onnx.TensorProto.FLOAT)
        padded = graph.node("Sub", graph.constant(np.float32(1)), real)
        bias = graph.node("Mul", padded, graph.constant(np.float32(MASKED_SCORE)))
        return graph.node("Unsqueeze", bias, graph.constant([1, 2]))

    def split(self, x: str, heads: int, order: tuple[int, ...]) -> str:
        """x (B, S, A D) as (B, A, S, D), or in another order of (B, S, A, D)."""
        shape = self.graph.constant([0, 0, heads, self.config.attention_head_size])
        return self.graph.node("Transpose", self.graph.node("Reshape", x, shape), perm=order)

    def layer(self, path: str, x: str, mask: str, distances: str, first_only: bool = False, places: str = "") -> str:
        """Self-attention and feed-forward of x (B, S, H); `first_only` of the first position alone, (B, 1, H), with
        `places` (N,) of these positions b S + s, (1, N, H)."""
        size = self.config.attention_head_size
        heads = len(self.values[f"{path}.query.weight"]) // size
        asking = self.first(x) if first_only else x
        query = self.split(self.dense(f"{path}.query", asking, 1 / math.sqrt(size)), heads, (0, 2, 1, 3))
        key = self.split(self.dense(f"{path}.key", x), heads, (0, 2, 3, 1))
        value = self.split(self.dense(f"{path}.value", x), heads, (0, 2, 1, 3))
        scores = self.graph.node("MatMul", query, key, name=f"{path}.scores")
        if distances:
            scores = self.relative(f"{path}.relative.keys", scores, query, distances, "baid,ijd->baij", first_only)
        weights = self.graph.node("Softmax", self.graph.node("Add", scores, mask), axis=-1)
        context = self.graph.node("MatMul", weights, value, name=f"{path}.context")
        if distances:
            context = self.relative(
                f"{path}.relative.values", context, weights, distances, "baij,ijd->baid", first_only
            )
        merged = self.graph.node("Transpose", context, perm=(0, 2, 1, 3))
        merged = self.graph.node("Reshape", merged, self.graph.constant([0, 0, heads * size]))
        if places:
            asking, merged = self.at(asking, places, self.config.hidden_size), self.at(merged, places, heads * size)
        attended = self.graph.node("Add", asking, self.dense(f"{path}.attention_output", merged))
        x = self.norm(f"{path}.attention_norm", attended)
        inner = self.activation(self.config.hidden_act, self.dense(f"{path}.intermediate", x))
        fed = self.graph.node("Add", x, self.dense(f"{path}.output", inner))
        return self.norm(f"{path}.output_norm", fed)

    def distances(self) -> str:
        """Clipped distance of every pair of positions (S, S), counted from 0."""
        graph, limit = self.graph, self.config.max_relative_position
        length = graph.node("Squeeze", self.length())
        places = graph.node("Range", graph.constant(0), length, graph.constant(1))
        rows = graph.node("Unsqueeze", places, graph.constant([1]))
        clipped = graph.node("Clip", graph.node("Sub", places, rows), graph.constant(-limit), graph.constant(limit))
        return graph.node("Add", clipped, graph.constant(limit))

    def relative(self, path: str, x: str, other: str, distances: str, equation: str, first_only: bool) -> str:
        """x + the sums of `other` against the vectors of every pair of positions (Shaw et al. 2018)."""
        graph = self.graph
        if first_only:
            distances = graph.node("Slice", distances, graph.constant([0]), graph.constant([1]), graph.constant([0]))
        vectors = graph.node("Gather", graph.constant(self.values[path], path), distances, name=f"{path}_rows")
        return graph.node("Add", x, graph.node("Einsum", other, vectors, equation=equation))

    def first(self, x: str) -> str:
        """The first position of x (B, S, H), as (B, 1, H)."""
        return self.graph.node("Slice", x, *(self.graph.constant([value]) for value in (0, 1, 1)))

    def at(self, x: str, places: str, width: int) -> str:
        """The vectors (1, N, width) of x (B, S, width) at places (N,), positions b S + s."""
        rows = self.graph.node("Reshape", x, self.graph.constant([1, -1, width]))
        return self.graph.node("Gather", rows, places, axis=1)

    def encoded(self, first_only: bool = False, places: str = "") -> str:
        """The last hidden states (B, S, H), or as `layer` gives them of some positions alone."""
        x = self.embeddings()
        if "encoder.projection.weight" in self.values:
            x = self.dense("encoder.projection", x)
        mask = self.mask()
        distances = self.distances() if self.config.use_relative_positions else ""
        last = self.config.num_hidden_layers - 1
        for index in range(last):
            x = self.layer(f"encoder.layers.{index}", x, mask, distances)
        return self.layer(f"encoder.layers.{last}", x, mask, distances, first_only, places)

    def logits(self) -> str:
        """The whole model: (B, C), or (B, S, C) of a token classifier."""
        tokens = self.config.problem == TOKEN
        # A classifier of texts reads the first position: nothing else of the last layer is computed.
        x = self.encoded(first_only=not tokens)
        if tokens:
            x = self.activation("relu", x) if self.config.relu_before_classifier else x
            return self.graph.node("Identity", self.dense("classifier", x), name="logits")
        # Kept (B, 1, H) to the end: products of matrices become Gemm, which ONNX Runtime runs in float32 only.
        pooled = self.activation(POOLER_ACTIVATION[self.config.family], self.dense("pooler", x))
        if self.config.relu_before_classifier:
            pooled = self.activation("relu", pooled)
        return self.graph.node("Squeeze", self.dense("classifier", pooled), self.graph.constant([1]), name="logits")

    def model(self, name: str, outputs: list[Any], inputs: Sequence[Any] = ()) -> Any:
        """The `onnx.ModelProto` of what was added, of the model's own inputs and others."""
        graph, helper = self.graph, self.graph.onnx.helper
        whole = self.graph.onnx.TensorProto.INT64
        own = [helper.make_tensor_value_info(key, whole, ["batch", "sequence"]) for key in self.inputs()]
        body = helper.make_graph(graph.nodes, name, [*own, *inputs], outputs, list(graph.constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="minddistill")


class WordBuilder(Builder):
    """Adds the parts of a model on word vectors to a graph.

    Convolutions are products of windows, as in `models.cnn`: what quantises products quantises them too.

    Args:
        config: of the model.
        values: its weights by path.
    """

    config: WordConfig

    def inputs(self) -> list[str]:
        """The inputs that the model reads."""
        return list(INPUTS[:2])

    def convolution(self, path: str, x: str, width: int, before: int = 0) -> str:
        """A convolution of x (B, S, E), continued by zeros, `before` of them ahead: (B, S, F)."""
        if width > 1:
            graph = self.graph
            padded = graph.node("Pad", x, graph.constant([0, before, 0, 0, width - 1 - before, 0]))
            x = graph.node("Concat", *(self.shifted(padded, first, width) for first in range(width)), axis=2)
        return self.dense(path, x)

    def shifted(self, padded: str, first: int, width: int) -> str:
        """The place `first` of every window: of S + width - 1 positions S, from this one on."""
        end = first + 1 - width or np.iinfo(np.int64).max
        return self.graph.node("Slice", padded, *(self.graph.constant([value]) for value in (first, end, 1)))

    def dense_block(self, x: str, mask: str) -> str:
        """The densely connected block of x (B, S, E) and layer norm."""
        graph, joined = self.graph, [x]
        for number, column in enumerate(self.config.columns):
            read, made = x, []
            for level, (_, _, width) in enumerate(column):
                found = self.convolution(f"dense.columns.{number}.levels.{level}", read, width, width // 2)
                made.append(self.activation(self.config.activation, graph.node("Mul", found, mask)))
                read = graph.node("Concat", *made, axis=2)
            joined.append(made[-1])
        found = self.dense("dense.join", graph.node("Concat", *joined, axis=2))
        return self.norm("norm", self.activation(self.config.activation, graph.node("Mul", found, mask)))

    def largest(self, x: str, mask: str) -> str:
        """The TextCNN of x (B, S, E): (B, 1, F x widths)."""
        graph, found = self.graph, []
        x = graph.node("Mul", x, mask)
        for number, width in enumerate(self.config.kernels):
            filters = self.activation("relu", self.convolution(f"pool.convolutions.{number}", x, width))
            found.append(graph.node("ReduceMax", graph.node("Mul", filters, mask), graph.constant([1])))
        return graph.node("Concat", *found, axis=2)

    def attended(self, x: str) -> str:
        """Dynamic self-attention over x (B, S, E): (B, 1, heads x size)."""
        graph, heads, size = self.graph, self.config.attention_heads, self.config.attention_size
        values = self.activation("leaky_relu", self.dense("pool.values", x))
        values = graph.node("Reshape", values, graph.constant([0, 0, heads, size]))
        columns = graph.node("Transpose", values, perm=(0, 2, 3, 1))
        values, scores = graph.node("Transpose", values, perm=(0, 2, 1, 3)), self.mask()
        given = self.given(scores, values)
        for _ in range(self.config.attention_steps - 1):
            scores = graph.node("Add", scores, graph.node("MatMul", given, columns))
            given = self.given(scores, values)
        return graph.node("Reshape", given, graph.constant([0, 1, heads * size]))

    def given(self, scores: str, values: str) -> str:
        """What scores (B, heads, 1, S) take of values (B, heads, S, D)."""
        weights = self.graph.node("Softmax", scores, axis=-1)
        return self.graph.node("Tanh", self.graph.node("MatMul", weights, values))

    def logits(self) -> str:
        """The whole model: (B, C)."""
        graph, path = self.graph, "embeddings.word"
        mask = graph.node("Cast", "attention_mask", to=graph.onnx.TensorProto.FLOAT)
        mask = graph.node("Unsqueeze", mask, graph.constant([2]))
        x = graph.node("Gather", graph.constant(self.values[path], path), "input_ids", name="embeddings")
        x = graph.node("Mul", x, mask)
        if self.config.columns:
            x = self.dense_block(x, mask)
        pooled = self.attended(x) if self.config.attention_heads else self.largest(x, mask)
        pooled = self.norm("pooled_norm", pooled)
        if self.config.hidden_size:
            pooled = self.norm("hidden_norm", self.dense("hidden", pooled))
        return graph.node("Squeeze", self.dense("classifier", pooled), graph.constant([1]), name="logits")


def build(weights: store.Weights, fp16: bool = False) -> Any:
    """The checked `onnx.ModelProto` of a classifier, its batch and sequence axes free.

    Inputs and outputs are named as transformers and optimum name them: `input_ids`, `attention_mask` and, where the
    model has segments, `token_type_ids`, (B, S) int64; `logits` (B, C), or (B, S, C) of a token classifier, float32.
    What made the model is kept in the graph's metadata.

    Args:
        weights: of the model.
        fp16: weights and arithmetic in float16; inputs and outputs stay.

    Raises:
        UserError: package onnx is not installed.
    """
    onnx = need("onnx", "deploy")
    kind = WordBuilder if isinstance(weights.config, WordConfig) else Builder
    builder = kind(weights.config, weights.values)
    output = builder.logits()
    make = onnx.helper.make_tensor_value_info
    axes = ["batch", "sequence"] if weights.config.problem == TOKEN else ["batch"]
    outputs = [make(output, onnx.TensorProto.FLOAT, [*axes, weights.config.num_labels])]
    model = builder.model("classifier", outputs)
    if fp16:
        model = need("onnxruntime.transformers.float16", "deploy").convert_float_to_float16(model, keep_io_types=True)
    known = {"source": str(weights.source), "labels": weights.config.labels} | store.read_record(weights.directory)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in known.items()})
    return checked(model)


def checked(model: Any) -> Any:
    """The graph, once onnx has found it sound."""
    need("onnx", "deploy").checker.check_model(model, full_check=True)
    return model


def save(model: Any, path: Path) -> None:
    """Write a graph to a file."""
    path.write_bytes(model.SerializeToString())
