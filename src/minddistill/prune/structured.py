"""Models with parts taken away: what is left is smaller tensors, and a configuration that says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mindspore import Tensor

from ..models.config import ModelConfig
from ..models.layers import ACTIVATIONS
from ..models.store import Weights, take_layers

# The axes of a parameter that hidden states go along, by the end of its path; all others have none.
_HIDDEN_AXES = {
    r"(query|key|value|intermediate)\.weight": (1,),
    r"(attention_output|output)\.(weight|bias)": (0,),
    r"(attention_norm|output_norm)\.(gamma|beta)": (0,),
    r"pooler\.weight": (0, 1),
    r"pooler\.bias": (0,),
    r"classifier\.weight": (1,),
    r"projection\.(weight|bias)": (0,),
}
_EMBEDDING_AXES = {r"embeddings\.(word|position|segment)": (1,), r"embeddings\.norm\.(gamma|beta)": (0,)}


def keep_heads(weights: Weights, kept: Sequence[np.ndarray]) -> Weights:
    """A model with some attention heads of each layer, in the order given."""
    size, values = weights.config.attention_head_size, _values(weights)
    for layer, heads in enumerate(kept):
        rows = (np.asarray(heads)[:, None] * size + np.arange(size)).reshape(-1)
        path = f"encoder.layers.{layer}"
        for name in ("query", "key", "value"):
            _take(values, f"{path}.{name}.weight", rows)
            _take(values, f"{path}.{name}.bias", rows)
        _take(values, f"{path}.attention_output.weight", rows, axis=1)
    return _with(weights, values, num_attention_heads_per_layer=tuple(map(len, kept)))


def keep_neurons(weights: Weights, kept: Sequence[np.ndarray]) -> Weights:
    """A model with some neurons of each feed-forward layer, in the order given."""
    values = _values(weights)
    for layer, neurons in enumerate(kept):
        path = f"encoder.layers.{layer}"
        _take(values, f"{path}.intermediate.weight", neurons)
        _take(values, f"{path}.intermediate.bias", neurons)
        _take(values, f"{path}.output.weight", neurons, axis=1)
    return _with(weights, values, intermediate_size_per_layer=tuple(map(len, kept)))


def keep_hidden(weights: Weights, kept: np.ndarray) -> Weights:
    """A model with some units of its hidden states, in the order given; layer norms see fewer, so none is free."""
    config, values = weights.config, _values(weights)
    narrow = config.embedding_size != config.hidden_size
    table = _HIDDEN_AXES if narrow else _HIDDEN_AXES | _EMBEDDING_AXES
    for path in values:
        for end, axes in table.items():
            if re.search(rf"(^|\.){end}$", path):
                for axis in axes:
                    _take(values, path, kept, axis)
    width = config.embedding_size if narrow else len(kept)
    # Heads keep their number and size.
    changes = {"hidden_size": len(kept), "embedding_size": width, "attention_head_size": config.attention_head_size}
    return _with(weights, values, **changes)


def keep_layers(weights: Weights, kept: Sequence[int]) -> Weights:
    """A model with some of its layers, in the order given."""
    config = weights.config
    per_layer = {
        "num_attention_heads_per_layer": tuple(config.layer_heads[layer] for layer in kept),
        "intermediate_size_per_layer": tuple(config.layer_widths[layer] for layer in kept),
    }
    return _with(weights, take_layers(_values(weights), kept), num_hidden_layers=len(kept), **per_layer)


def keep_words(weights: Weights, kept: np.ndarray) -> Weights:
    """A model with some word pieces (ids, ascending); the id of one is then its place among them."""
    values = _values(weights)
    _take(values, "encoder.embeddings.word", kept)
    pad = int(np.searchsorted(kept, weights.config.pad_token_id))
    return _with(weights, values, vocab_size=len(kept), pad_token_id=pad)


def compact(weights: Weights) -> Weights:
    """Take away what sparsity has made idle: heads and neurons that nothing reads, neurons that do not depend on x.

    A neuron whose weights are all zero has activation(b1), which goes into the bias of what reads it. The logits stay.
    """
    config, values = weights.config, _values(weights)
    activation, heads, neurons = ACTIVATIONS[config.hidden_act](), [], []
    for layer in range(config.num_hidden_layers):
        path = f"encoder.layers.{layer}"
        inner, outer = values[f"{path}.intermediate.weight"], values[f"{path}.output.weight"]
        idle = ~inner.any(1)
        neurons.append(_needed(~idle & outer.any(0)))
        idle[neurons[-1]] = False
        constant = activation(Tensor(values[f"{path}.intermediate.bias"])).asnumpy()
        values[f"{path}.output.bias"] = values[f"{path}.output.bias"] + outer[:, idle] @ constant[idle]
        read = values[f"{path}.attention_output.weight"].any(0).reshape(config.layer_heads[layer], -1)
        heads.append(_needed(read.any(1)))
    return keep_neurons(keep_heads(replace(weights, values=values), heads), neurons)


def _needed(needed: np.ndarray) -> np.ndarray:
    """The places that are needed; the first where none is, as there must be one."""
    return np.flatnonzero(needed) if needed.any() else np.array([0])


def _values(weights: Weights) -> dict[str, np.ndarray]:
    """A copy of the table of arrays, without a masked-LM head, which is not pruned along."""
    return weights.without("mlm.").values


def _take(values: dict[str, np.ndarray], path: str, kept: np.ndarray, axis: int = 0) -> None:
    values[path] = np.ascontiguousarray(values[path].take(kept, axis))


def _with(weights: Weights, values: Mapping[str, np.ndarray], **changes: Any) -> Weights:
    config: ModelConfig = weights.config.with_(**changes)
    return Weights(config, dict(values), weights.source)
