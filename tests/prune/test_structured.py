"""Smaller tensors: exact where nothing was lost, importance against finite differences, and what can read the result."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from minddistill.distill.distiller import Distiller
from minddistill.distill.objectives import Labels
from minddistill.errors import UserError
from minddistill.export import onnx as graphs
from minddistill.export.session import runtime_session
from minddistill.models import hub, store
from minddistill.models.heads import predict_function
from minddistill.models.presets import preset
from minddistill.prune import importance, structured

pytest.importorskip("onnx")

CONFIG = preset("test-2l-32").with_(vocab_size=40, labels=("no", "yes", "maybe"), initializer_range=0.15)
ROWS, LENGTH = 6, 9


def batch(seed):
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, 40, (ROWS, LENGTH)).astype(np.int32)
    mask = (np.arange(LENGTH) < generator.integers(3, LENGTH + 1, (ROWS, 1))).astype(np.int32)
    values = {"input_ids": ids * mask, "input_mask": mask, "segment_ids": np.zeros_like(ids)}
    values |= {"row": np.arange(ROWS, dtype=np.int32), "weight": np.ones(ROWS, np.float32), "rows": np.float32(ROWS)}
    return values | {"label_ids": generator.integers(0, 3, ROWS).astype(np.int32)}


def tensors(seed):
    return {name: Tensor(value) for name, value in batch(seed).items()}


@pytest.fixture(scope="module")
def model():
    found = store.new(CONFIG, seed=1)
    for path, value in found.parameters_and_names():  # biases that are not zero show where they go
        if path.endswith("bias"):
            value.set_data(Tensor(np.random.default_rng(len(path)).normal(0, 0.3, value.shape).astype(np.float32)))
    return found


@pytest.fixture
def weights(model):
    return store.Weights(CONFIG, {path: value.asnumpy().copy() for path, value in model.parameters_and_names()}, None)


def logits(weights, seed=0):
    """By an ONNX graph, which other tests hold to MindSpore's."""
    weights = store.Weights(weights.config, weights.values, Path("nowhere"))
    session = runtime_session(graphs.build(weights).SerializeToString(), threads=1)
    names = {"input_ids": "input_ids", "attention_mask": "input_mask", "token_type_ids": "segment_ids"}
    return session.run(None, {name: batch(seed)[ours].astype(np.int64) for name, ours in names.items()})[0]


HEADS = [np.array([2, 0]), np.array([1])]
NEURONS = [np.array([5, 40, 3]), np.arange(63, 20, -1)]


def masked(weights, heads, neurons):
    """The full model, in which nothing reads the heads and neurons that do not stay."""
    values = {path: value.copy() for path, value in weights.values.items()}
    for layer in range(2):
        context = values[f"encoder.layers.{layer}.attention_output.weight"].reshape(32, 4, 8)
        context[:, np.setdiff1d(np.arange(4), heads[layer])] = 0
        values[f"encoder.layers.{layer}.output.weight"][:, np.setdiff1d(np.arange(64), neurons[layer])] = 0
    return store.Weights(weights.config, values, weights.source)


def test_pruned_equals_masked_and_is_saved_read_and_exported_with_sizes_by_layer(weights, tmp_path):
    pruned = structured.keep_neurons(structured.keep_heads(weights, HEADS), NEURONS)
    assert pruned.config.layer_heads == (2, 1) and pruned.config.layer_widths == (3, 43)
    assert pruned.values["encoder.layers.0.query.weight"].shape == (16, 32)
    expected = logits(masked(weights, HEADS, NEURONS))
    np.testing.assert_allclose(logits(pruned), expected, atol=1e-5)
    assert np.abs(expected - logits(weights)).max() > 0.01
    options = {"tokenizer_from": None, "command": "test", "parents": {}, "data": {}, "metrics": {}}
    saved = store.save(tmp_path / "pruned", store.build(pruned), **options)
    known = json.loads((saved / "config.json").read_text())
    assert known["num_attention_heads_per_layer"] == [2, 1] and known["intermediate_size_per_layer"] == [3, 43]
    assert known["attention_head_size"] == 8 and known["num_attention_heads"] == 2
    assert json.loads((saved / "minddistill.json").read_text())["transformers"] is False
    read = store.read_weights(saved)
    assert read.config == pruned.config and read.config.parameters == sum(value.size for value in read.values.values())
    np.testing.assert_allclose(predict_function(store.build(read))(batch(0)), expected, atol=1e-5)


def test_heads_and_neurons_without_importance_change_no_logit(weights):
    for layer, (head, neuron) in enumerate(((1, 7), (3, 0))):
        path = f"encoder.layers.{layer}"
        weights.values[f"{path}.attention_output.weight"][:, head * 8 : head * 8 + 8] = 0
        for name in ("intermediate.weight", "intermediate.bias"):
            weights.values[f"{path}.{name}"][neuron] = 0
    model = store.build(weights)
    found = importance.measure(Distiller(model, None, Labels()), model, [tensors(0), tensors(1)])
    for heads, neurons, head, neuron in zip(found.heads, found.neurons, (1, 3), (7, 0), strict=True):
        assert list(np.flatnonzero(heads == 0)) == [head] and list(np.flatnonzero(neurons == 0)) == [neuron]
    kept = [importance.choose(scores, count, False) for scores, count in ((found.heads, 3), (found.neurons, 63))]
    pruned = structured.keep_neurons(structured.keep_heads(weights, kept[0]), kept[1])
    assert pruned.config.num_attention_heads == 3 and pruned.config.intermediate_size == 63
    np.testing.assert_allclose(logits(pruned), logits(weights), atol=1e-6)


class Slopes:
    """The slope of the loss of a batch as one part of the model is scaled, by differences."""

    def __init__(self, model):
        self.model, self.loss = model, Distiller(model, None, Labels())

    def __call__(self, seed, scaled):
        """`scaled` are pairs of a parameter and an index into it."""
        found = []
        for step in (1e-2, -1e-2):
            before = [(parameter, parameter.asnumpy().copy()) for parameter in {id(p): p for p, _ in scaled}.values()]
            for parameter, index in scaled:
                values = parameter.asnumpy().copy()
                values[index] *= 1 + step
                parameter.set_data(Tensor(values))
            found.append(float(self.loss(ms.mutable(tensors(seed)))[0].asnumpy()))
            for parameter, values in before:
                parameter.set_data(Tensor(values))
        return (found[0] - found[1]) / 2e-2


def test_importance_is_the_slope_of_the_loss_in_each_batch_or_accumulated(model):
    slopes, layer = Slopes(model), model.encoder.layers[1]
    head = [(layer.attention_output.weight, np.s_[:, 16:24])]
    inner = [(layer.intermediate.weight, 5), (layer.intermediate.bias, 5)]
    outer = [(layer.output.weight, np.s_[:, 5])]
    hidden = [
        (parameter, 9)
        for cell in model.encoder.layers
        for norm in (cell.attention_norm, cell.output_norm)
        for parameter in (norm.gamma, norm.beta)
    ]
    by_hand = {
        name: [slopes(seed, part) for seed in (0, 1)]
        for name, part in (("head", head), ("inner", inner), ("outer", outer), ("hidden", hidden))
    }
    each = importance.measure(slopes.loss, model, [tensors(0), tensors(1)], output_term=True)
    summed = importance.measure(slopes.loss, model, [tensors(0), tensors(1)], accumulate=True)

    def expected(name, accumulate):
        first, second = by_hand[name]
        return abs(first) + abs(first + second if accumulate else second)

    close = {"rel": 0.02, "abs": 2e-4}
    assert each.heads[1][2] == pytest.approx(expected("head", False), **close)
    assert each.neurons[1][5] == pytest.approx(expected("inner", False) + expected("outer", False), **close)
    assert each.hidden[9] == pytest.approx(expected("hidden", False), **close)
    assert summed.heads[1][2] == pytest.approx(expected("head", True), **close)
    assert summed.neurons[1][5] == pytest.approx(expected("inner", True), **close)


def test_units_are_chosen_by_layer_or_together():
    scores = [np.array([3.0, 1.0, 3.0, 2.0]), np.array([0.1, 0.4, 0.2, 0.3])]

    def chosen(*options):
        return [list(part) for part in importance.choose(scores, 2, *options)]

    assert chosen(False) == [[0, 2], [1, 3]]
    assert chosen(True, False) == [[0, 2, 3], [1]]
    # Of norms 4.80 and 0.55: 0.63 0.21 0.63 0.42 and 0.18 0.73 0.37 0.55.
    assert chosen(True, True) == [[0, 2], [1, 3]]


def test_hidden_units_may_change_places(weights):
    order = np.random.default_rng(0).permutation(32)
    np.testing.assert_allclose(logits(structured.keep_hidden(weights, order)), logits(weights), atol=1e-5)
    fewer = structured.keep_hidden(weights, order[:24])
    assert fewer.config.hidden_size == fewer.config.embedding_size == 24 and fewer.config.attention_head_size == 8
    assert fewer.config.parameters == sum(value.size for value in fewer.values.values()) and logits(fewer).shape == (
        ROWS,
        3,
    )


def test_hidden_units_of_an_encoder_with_narrow_embeddings_may_change_places():
    config = CONFIG.with_(family="electra", embedding_size=16)
    weights = store.Weights(
        config, {p: v.asnumpy().copy() for p, v in store.new(config, 1).parameters_and_names()}, None
    )
    order = np.random.default_rng(0).permutation(32)
    np.testing.assert_allclose(logits(structured.keep_hidden(weights, order)), logits(weights), atol=1e-5)


def test_layers_that_stay_keep_their_weights_and_sizes(weights):
    pruned = structured.keep_heads(weights, HEADS)
    last = structured.keep_layers(pruned, [1])
    assert last.config.num_hidden_layers == 1 and last.config.layer_heads == (1,)
    for path, value in last.values.items():
        np.testing.assert_array_equal(value, pruned.values[path.replace("layers.0", "layers.1")])
    assert last.config.parameters == sum(value.size for value in last.values.values())
    np.testing.assert_array_equal(logits(structured.keep_layers(weights, [0, 1])), logits(weights))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_idle_heads_and_neurons_go_and_constants_stay(weights, activation):
    weights = store.Weights(CONFIG.with_(hidden_act=activation), weights.values, None)
    weights.values["encoder.layers.0.intermediate.weight"][[0, 3, 9]] = 0  # constants, 0 among them
    weights.values["encoder.layers.0.output.weight"][:, 4] = 0  # read by nothing
    weights.values["encoder.layers.1.intermediate.weight"][:] = 0
    weights.values["encoder.layers.1.attention_output.weight"][:, 8:16] = 0
    small = structured.compact(weights)
    assert small.config.layer_widths == (60, 1) and small.config.layer_heads == (4, 3)
    np.testing.assert_allclose(logits(small), logits(weights), atol=1e-5)
    assert structured.compact(small).config == small.config


def test_transformers_loads_fewer_neurons_and_layers(weights, tmp_path):
    torch = pytest.importorskip("torch", reason="compares with PyTorch where it is installed")
    transformers = pytest.importorskip("transformers", reason="compares with transformers where it is installed")
    pruned = structured.keep_layers(structured.keep_neurons(weights, [np.arange(20)] * 2), [1])
    options = {"tokenizer_from": None, "command": "test", "parents": {}, "data": {}, "metrics": {}}
    saved = store.save(tmp_path / "pruned", store.build(pruned), **options)
    assert json.loads((saved / "minddistill.json").read_text())["transformers"] is True
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(saved).eval()
    values = {name: torch.tensor(value).long() for name, value in batch(0).items()}
    with torch.no_grad():
        names = {"input_ids": "input_ids", "attention_mask": "input_mask", "token_type_ids": "segment_ids"}
        found = theirs(**{name: values[ours] for name, ours in names.items()}).logits.numpy()
    np.testing.assert_allclose(found, logits(pruned), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads_per_layer": [2, 0]}, "expected positive whole numbers"),
        ({"num_attention_heads_per_layer": [2]}, "has 1 sizes for 2 layers"),
        ({"intermediate_size_per_layer": "64"}, "expected positive whole numbers"),
    ],
)
def test_sizes_by_layer_that_are_none_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        hub.config_from_hf(hub.config_to_hf(CONFIG) | changes, "config.json")
