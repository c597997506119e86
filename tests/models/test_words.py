"""Models on word vectors: sizes, the same numbers as PyTorch's operators give, and model directories."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from minddistill import params
from minddistill.distill.distiller import Distiller
from minddistill.distill.objectives import Labels
from minddistill.errors import UserError
from minddistill.models import heads, store
from minddistill.models.config import WORD_FAMILIES, WordConfig
from minddistill.models.presets import word_preset

LABELS = ("no", "yes")
# Of iclassifier's configurations with vectors of 300: all but the vectors.
PARAMETERS = {"glove-cnn": 1_868_802, "densenet-cnn": 2_607_842, "densenet-dsa": 3_785_282}


def small(family, **changes):
    """A preset of its depth and kernels, narrow."""
    sizes = {"first_filters": 5, "growth": 3, "joined_size": 7, "filters": 6, "attention_size": 4, "embedding_size": 8}
    hidden = {"hidden_size": 9} if word_preset(family).hidden_size else {}
    return word_preset(family).with_(vocab_size=12, max_length=32, labels=LABELS, **sizes | hidden | changes)


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    length = np.array([9, 1, 4])
    mask = (np.arange(9) < length[:, None]).astype(np.int32)
    ids = generator.integers(1, 12, (3, 9)).astype(np.int32) * mask
    return {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(ids)}


def filled(config):
    """A model whose vectors, biases and norms are random too, so that each of them shows."""
    model = store.new(config, seed=1)
    generator = np.random.default_rng(2)
    for path, parameter in params.named(model).items():
        noise = generator.standard_normal(parameter.shape).astype(np.float32)
        scale = 1.0 if path == "embeddings.word" else 0.3
        parameter.set_data(Tensor(parameter.asnumpy() + scale * noise))
    return model


@pytest.mark.parametrize("family", WORD_FAMILIES)
def test_sizes(family):
    config = word_preset(family).with_(labels=LABELS, vocab_size=1)
    assert config.parameters - config.embedding_size == PARAMETERS[family]
    narrow = small(family)
    found = {path: parameter.shape for path, parameter in params.named(store.new(narrow, 0)).items()}
    assert found == narrow.shapes()


def torch_values(model):
    """A model's arrays as PyTorch's, which take gradients."""
    torch = pytest.importorskip("torch")
    return {path: torch.tensor(value, requires_grad=True) for path, value in params.arrays(model).items()}


def torch_logits(config, values, ids, mask):
    """The networks as iclassifier composes them, of PyTorch's operators; windows behind a text do not count."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    mask = torch.tensor(mask).float().unsqueeze(-1)
    activation = functional.leaky_relu if config.activation == "leaky_relu" else functional.relu

    def convolution(path, x, width, before):
        weight = values[f"{path}.weight"].reshape(-1, width, x.shape[-1]).permute(0, 2, 1)
        padded = functional.pad(x.permute(0, 2, 1), (before, width - 1 - before))
        return functional.conv1d(padded, weight, values[f"{path}.bias"]).permute(0, 2, 1)

    def linear(path, x):
        return functional.linear(x, values[f"{path}.weight"], values[f"{path}.bias"])

    def norm(path, x):
        return functional.layer_norm(x, x.shape[-1:], values[f"{path}.gamma"], values[f"{path}.beta"], 1e-5)

    x = values["embeddings.word"][torch.tensor(ids).long()] * mask
    if config.dense_kernels:
        joined = [x]
        for number in range(2):
            made = []
            for level, widths in enumerate(config.dense_kernels):
                path, width = f"dense.columns.{number}.levels.{level}", widths[number]
                read = torch.cat(made, -1) if made else x
                made.append(activation(convolution(path, read, width, width // 2) * mask))
            joined.append(made[-1])
        x = norm("norm", activation(linear("dense.join", torch.cat(joined, -1)) * mask))
    if config.attention_heads:
        heads_ = functional.leaky_relu(linear("pool.values", x)).unflatten(-1, (config.attention_heads, -1))
        value, hidden = heads_.permute(0, 2, 1, 3), mask.permute(0, 2, 1).unsqueeze(-1) == 0
        scores = torch.zeros(value.shape[:3] + (1,))
        for _ in range(config.attention_steps):
            weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), 2).detach()
            given = torch.tanh((weights * value).sum(2, keepdim=True))
            scores = scores + (value * given).sum(-1, keepdim=True)
        pooled = given.flatten(1)
    else:
        found = [
            (functional.relu(convolution(f"pool.convolutions.{i}", x * mask, width, 0)) * mask).amax(1)
            for i, width in enumerate(config.kernels)
        ]
        pooled = torch.cat(found, -1)
    pooled = norm("pooled_norm", pooled)
    if config.hidden_size:
        pooled = norm("hidden_norm", linear("hidden", pooled))
    return linear("classifier", pooled)


@pytest.mark.parametrize("family", WORD_FAMILIES)
def test_logits_are_those_of_pytorch_whatever_the_padding(family, batch):
    model = filled(small(family))
    found = heads.predict_function(model.set_train(False))(batch)
    assert np.abs(found - found[0]).max() > 0.1
    values = torch_values(model)
    for row, length in enumerate(batch["input_mask"].sum(1)):  # each text alone, without padding
        alone = (batch[name][row : row + 1, :length] for name in ("input_ids", "input_mask"))
        expected = torch_logits(model.config, values, *alone)[0].detach().numpy()
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


class Trained(nn.Cell):
    """Loss and gradients of a distiller's parameters."""

    def __init__(self, cell):
        super().__init__()
        self.gradients = ms.value_and_grad(cell, None, list(cell.trained().values()), has_aux=True)

    def construct(self, batch, step):
        (loss, _), grads = self.gradients(batch, step)
        return loss, grads


def labelled(batch):
    """The batch with what an objective on labels reads, as tensors."""
    given = {**batch, "row": np.arange(3, dtype=np.int32), "label_ids": np.array([0, 1, 1], np.int32)}
    given |= {"weight": np.ones(3, np.float32), "rows": np.float32(3)}
    return ms.mutable({name: Tensor(value) for name, value in given.items()})


@pytest.mark.parametrize("family", ["glove-cnn", *(pytest.param(f, marks=pytest.mark.slow) for f in WORD_FAMILIES[1:])])
def test_gradients_are_those_of_pytorch_every_time(family, batch):
    """An operator of MindSpore may be right the first time only."""
    model = filled(small(family, dropout=0.0))
    cell = Distiller(model, None, Labels())
    trained = Trained(cell)
    for _ in range(3):
        loss, gradients = trained(labelled(batch), Tensor(0, ms.int32))
    values = torch_values(model)
    logits = torch_logits(model.config, values, batch["input_ids"], batch["input_mask"])
    torch = pytest.importorskip("torch")
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1]))
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-4)
    assert len(values) == len(gradients)
    for path, gradient in zip(cell.trained(), gradients, strict=True):
        wanted = values[path.removeprefix("student.")].grad.numpy()
        np.testing.assert_allclose(gradient.asnumpy(), wanted, atol=1e-5, err_msg=path)


def test_dropout_is_drawn_by_step_and_frozen_vectors_take_no_gradient(batch):
    model = filled(small("glove-cnn", dropout=0.5))
    model.embeddings.word.requires_grad = False
    cell = Distiller(model, None, Labels())
    assert not any(path.endswith("embeddings.word") for path in cell.trained())
    trained, given = Trained(cell), labelled(batch)
    first, again, other = (float(trained(given, Tensor(step, ms.int32))[0]) for step in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("family", WORD_FAMILIES)
def test_a_directory_gives_the_model_back(family, tmp_path):
    model = filled(small(family))
    facts = {"command": "test", "parents": {}, "data": {}, "metrics": {}}
    store.save(tmp_path / "model", model, tokenizer_from=None, **facts)
    weights = store.read_weights(tmp_path / "model")
    assert weights.config == model.config
    back = params.arrays(store.build(weights))
    assert all(np.array_equal(value, back[path]) for path, value in params.arrays(model).items())
    assert f"{weights.config.parameters / 1e6:.2f} M parameters" in (tmp_path / "model" / "README.md").read_text()
    encoder = {path: value for path, value in weights.values.items() if not path.startswith("classifier.")}
    bare = store.build(store.Weights(weights.config, encoder, weights.source), may_miss=("classifier.",))
    assert np.abs(params.arrays(bare)["classifier.weight"]).max() > 0


def test_a_model_on_word_vectors_is_no_encoder(tmp_path):
    facts = {"command": "test", "parents": {}, "data": {}, "metrics": {}}
    store.save(tmp_path / "model", store.new(small("glove-cnn"), 0), tokenizer_from=None, **facts)
    with pytest.raises(UserError, match="a glove-cnn, which has no encoder layers"):
        store.read_encoder(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"filters": 7}, "config.json says"),
        ({"filters": None}, "filters is None; expected int"),
        ({"kernels": [2, 0]}, "kernels is"),
        ({"dense_kernels": [[1, 1], [3]]}, "as many columns"),
        ({"dense_kernels": [[2]]}, "expected positive odd numbers"),
        ({"kernels": []}, "expected one of both to pool"),
        ({"model_type": "glove-rnn"}, "model_type is 'glove-rnn'"),
        ({"dropout": 1.5}, "dropout is 1.5"),
    ],
)
def test_broken_configurations_are_told(change, told, tmp_path):
    facts = {"command": "test", "parents": {}, "data": {}, "metrics": {}}
    store.save(tmp_path / "model", store.new(small("glove-cnn"), 0), tokenizer_from=None, **facts)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=told):
        store.read_weights(tmp_path / "model")


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="expected one of glove-cnn"):
        word_preset("glove")
    with pytest.raises(UserError, match="activation is 'gelu'"):
        WordConfig(kernels=(2,), activation="gelu")
