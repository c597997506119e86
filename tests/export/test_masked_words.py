"""The likeliest words by ONNX Runtime against MindSpore's."""

from pathlib import Path

import numpy as np
import pytest
from test_onnx import LONGEST, every_length, small

from minddistill import params
from minddistill.export import masked_words
from minddistill.models import store
from minddistill.models.heads import likeliest_function
from minddistill.problems import SINGLE

pytest.importorskip("onnx")

COUNT = 5
# Two words of rows that have them, out of order, and one of them twice.
PLACES = np.array([LONGEST * row + place for row in (11, 3, 7, 4) for place in (2, 0)] + [LONGEST * 3], np.int32)


def masked_lm(name: str) -> store.Weights:
    """A random masked-LM model of a family; ELECTRA's with a decoder of its own."""
    config = small(name).with_(labels=(), problem=SINGLE, pooler=False)
    values, generator = params.arrays(store.new(config, seed=1, mlm=True)), np.random.default_rng(2)
    if name == "electra":
        values["mlm.decoder"] = values["encoder.embeddings.word"]
    for path in values:
        if path.startswith("mlm."):
            values[path] = generator.normal(scale=0.5, size=values[path].shape).astype(np.float32)
    return store.Weights(config, values, Path("random"))


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "pruned heads", "relative positions"])
def test_words_equal_mindspore(name):
    weights = masked_lm(name)
    batch = every_length(weights.config) | {"places": PLACES}
    expected = likeliest_function(store.build(weights, mlm=True), COUNT)(batch)
    graph = masked_words.build(weights, COUNT).SerializeToString()
    assert len({*map(tuple, expected)}) > 6  # they differ, so that equal ones say something
    np.testing.assert_array_equal(masked_words.graph_likeliest(graph, threads=1)(batch), expected)


def test_words_in_int8_are_among_the_likeliest():
    weights = masked_lm("bert")
    batch = every_length(weights.config) | {"places": PLACES}
    graph = masked_words.build(weights, COUNT + 3).SerializeToString()
    likely = masked_words.graph_likeliest(graph, threads=1)(batch)
    found = masked_words.likeliest_function(weights, COUNT, threads=1)(batch)
    assert found.shape == (len(PLACES), COUNT)
    assert all({*words} <= {*more} for words, more in zip(found, likely, strict=True))  # of 40
