"""Hugging Face folders and MindSpore checkpoints in and out."""

import json
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import load_file, save_file

from minddistill import params
from minddistill.errors import UserError
from minddistill.models import hub, store
from minddistill.models.bert import RelativePositions
from minddistill.models.config import ModelConfig
from minddistill.models.heads import MaskedLMHead, TextModel, predict_function
from minddistill.models.layers import ACTIVATIONS
from minddistill.models.presets import preset
from minddistill.problems import MULTI, REGRESSION, SINGLE, TOKEN

BATCH = {
    "input_ids": np.array([[2, 5, 6, 7, 3, 0], [2, 8, 3, 9, 10, 3]], np.int32),
    "input_mask": np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], np.int32),
    "segment_ids": np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]], np.int32),
}


@pytest.mark.parametrize(
    ("name", "vocabulary", "count"),
    [
        ("tinybert-4l-384", 30522, 19_164_288),
        ("tinybert-4l-384", 21128, 15_556_992),
        ("tinybert-4l-312", 30522, 14_350_248),
        ("bert-base", 30522, 109_482_240),
    ],
)
def test_parameter_counts(name, vocabulary, count):
    assert params.count(TextModel(preset(name).with_(vocab_size=vocabulary))) == count


REFERENCES = [
    ("minilm", "teacher-all-minilm-l6-v2", False),
    ("weights-rxnfp-bert-12l", "weights-rxnfp-bert-12l", False),
    ("weights-sapiens-roberta/vh", "weights-sapiens-roberta/vh", True),
    ("fixture-electra-random", "fixture-electra-random", False),
]


def everything(model, batch):
    """All outputs of a model; a compiled function returns tuples, not dicts."""

    class Outer(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.model = model

        def construct(self, batch):
            found = self.model(batch)
            if self.model.mlm is not None:
                return found["hidden"], found["attentions"], found["mlm_logits"]
            return found["hidden"], found["attentions"]

    return dict(zip(("hidden", "attentions", "mlm_logits"), Outer()(ms.mutable(batch)), strict=False))


@pytest.mark.parametrize(("model", "reference", "mlm"), REFERENCES, ids=[row[0] for row in REFERENCES])
def test_hidden_states_and_attentions_equal_the_reference(shared, model, reference, mlm):
    if model == "minilm":
        from minddistill.recipes.quickstart import encoder_directory

        directory = encoder_directory()
    else:
        directory = shared / model
    expected = np.load(shared / reference / "reference_outputs.npz")
    cell = store.build(store.read_weights(directory), mlm=mlm)
    ids = expected["input_ids"].astype(np.int32)
    segments = expected["token_type_ids"].astype(np.int32) if "token_type_ids" in expected else ids * 0
    batch = {
        "input_ids": Tensor(ids),
        "input_mask": Tensor(expected["attention_mask"].astype(np.int32)),
        "segment_ids": Tensor(segments),
    }
    found = everything(cell, batch)
    assert len(found["hidden"]) == sum(name.startswith("hidden_") for name in expected)
    for index, hidden in enumerate(found["hidden"]):
        np.testing.assert_allclose(hidden.asnumpy(), expected[f"hidden_{index}"], atol=1e-4)
    for index, scores in enumerate(found["attentions"]):
        probabilities = ms.ops.softmax(scores, -1).asnumpy()
        np.testing.assert_allclose(probabilities, expected[f"attn_{index}"], atol=1e-4)
    if mlm:
        np.testing.assert_allclose(found["mlm_logits"].asnumpy(), expected["logits"], atol=1e-4)


def small(family: str) -> ModelConfig:
    config = preset("test-2l-32").with_(family=family, vocab_size=40, labels=("no", "yes", "maybe"))
    changes = {
        "roberta": {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        "electra": {"embedding_size": 16},
        "distilbert": {"type_vocab_size": 0},
    }
    return config.with_(**changes.get(family, {}))


def saved(directory: Path, config: ModelConfig) -> Path:
    options = {"tokenizer_from": None, "command": "test", "parents": {}, "data": {}, "metrics": {}}
    return store.save(directory, store.new(config, seed=1), **options)


def batch_of(family: str) -> dict[str, np.ndarray]:
    batch = {name: value.copy() for name, value in BATCH.items()}
    if family == "roberta":
        batch["input_ids"][batch["input_mask"] == 0] = 1
    if family in ("roberta", "distilbert"):
        batch["segment_ids"] *= 0
    return batch


# What transformers 5.23 gives for `small(family).with_(initializer_range=0.3)` of seed 1 and `batch_of(family)`.
GOLDEN = {
    "bert": [[-0.65898, 0.87869, 0.49892], [0.43541, 0.42552, -1.96242]],
    "roberta": [[0.20874, 0.54948, -1.99175], [0.34572, -0.12416, -1.30334]],
    "electra": [[0.18925, -0.02481, -1.16926], [1.12523, 0.66868, -1.87380]],
    "distilbert": [[1.84990, 1.70663, -0.84548], [0.52396, 0.25990, -1.50678]],
}


@pytest.mark.parametrize("family", GOLDEN)
def test_logits_are_those_that_transformers_gave(family):
    found = predict_function(store.new(small(family).with_(initializer_range=0.3), seed=1))(batch_of(family))
    np.testing.assert_allclose(found, GOLDEN[family], atol=3e-5)


def test_one_output_is_a_number(tmp_path):
    """As transformers takes it where `config.json` does not say."""
    directory = saved(tmp_path / "one", small("bert").with_(labels=("score",), problem=REGRESSION))
    config = json.loads((directory / "config.json").read_text())
    assert config.pop("problem_type") == REGRESSION
    (directory / "config.json").write_text(json.dumps(config))
    assert store.read_weights(directory).config.problem == REGRESSION


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        *((family, SINGLE) for family in ("bert", "roberta", "electra", "distilbert")),
        *((family, TOKEN) for family in ("bert", "roberta", "electra", "distilbert")),
        ("bert", MULTI),
    ],
)
def test_saved_models_load_in_transformers_with_equal_logits(tmp_path, family, problem):
    torch = pytest.importorskip("torch", reason="compares with PyTorch where it is installed")
    transformers = pytest.importorskip("transformers", reason="compares with transformers where it is installed")
    directory = saved(tmp_path / family, small(family).with_(problem=problem, initializer_range=0.3))
    batch = batch_of(family)
    mine = predict_function(store.build(store.read_weights(directory)))(batch)
    kind = "AutoModelForTokenClassification" if problem == TOKEN else "AutoModelForSequenceClassification"
    theirs, info = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = {"input_ids": torch.tensor(batch["input_ids"]), "attention_mask": torch.tensor(batch["input_mask"])}
    if family in ("bert", "electra"):
        inputs["token_type_ids"] = torch.tensor(batch["segment_ids"])
    with torch.no_grad():
        expected = theirs.eval()(**{name: value.long() for name, value in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(mine, expected, atol=1e-5)
    assert theirs.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert theirs.config.problem_type == (None if problem == TOKEN else problem)


def test_prefixes_old_names_and_shards_are_read(tmp_path):
    directory = saved(tmp_path / "model", small("bert"))
    expected = store.read_weights(directory).values
    tensors = load_file(directory / "model.safetensors")
    old = {
        name.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    (directory / "model.safetensors").unlink()
    (directory / "minddistill.json").unlink()
    names = sorted(old)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: old[name] for name in members}, directory / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    found = store.read_weights(directory).values
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], expected[path]) for path in expected)


@pytest.mark.parametrize("prefix", ["bert.bert.bert_", "bert.tinybert_", ""])
def test_zoo_checkpoints_are_read(tmp_path, prefix):
    config = small("bert").with_(relu_before_classifier=True, hidden_act="gelu_new", layer_norm_eps=1e-7)
    model = store.new(config, seed=2)
    body = prefix or "bert_"
    table = {
        "encoder.embeddings.word": f"{body}embedding_lookup.embedding_table",
        "encoder.embeddings.segment": f"{body}embedding_postprocessor.token_type_embedding.embedding_table",
        "encoder.embeddings.position": f"{body}embedding_postprocessor.full_position_embedding.embedding_table",
        "encoder.embeddings.norm": f"{body}embedding_postprocessor.layernorm",
        "query": "attention.attention.query_layer",
        "key": "attention.attention.key_layer",
        "value": "attention.attention.value_layer",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.layernorm",
        "intermediate": "intermediate",
        "output": "output.dense",
        "output_norm": "output.layernorm",
        "pooler": f"{body.rpartition('.')[0] + '.' if '.' in body else ''}dense",
        "classifier": "bert.dense_1",
    }
    renamed = []
    for path, value in params.arrays(model).items():
        stem, _, leaf = path.rpartition(".")
        if path in table:
            name = table[path]
        elif path.startswith("encoder.layers."):
            _, _, number, inner, leaf = path.split(".")
            name = f"{body}encoder.layers.{number}.{table[inner]}.{leaf}"
        else:
            name = f"{table[stem]}.{leaf}"
        renamed.append({"name": name, "data": Tensor(value)})
    renamed.append({"name": "fit_dense.weight", "data": Tensor(np.ones((64, 32), np.float32))})
    renamed.append({"name": "fit_dense.bias", "data": Tensor(np.zeros(64, np.float32))})
    ms.save_checkpoint(renamed, str(tmp_path / "zoo.ckpt"))
    weights = store.read_weights(tmp_path / "zoo.ckpt", heads=4)
    assert weights.config.with_(labels=config.labels) == config
    assert set(weights.fit) == {"fit_dense.weight", "fit_dense.bias"}
    np.testing.assert_array_equal(predict_function(store.build(weights))(BATCH), predict_function(model)(BATCH))


def broken_config(directory):
    (directory / "config.json").write_text("{")


def no_config(directory):
    (directory / "config.json").unlink()


def wrong_layers(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))


def more_layers(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def cut_weights(directory):
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[: len(data) // 2])


def nan_weights(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["classifier.bias"][0] = np.nan
    save_file(tensors, directory / "model.safetensors")


def pickle_only(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_config, "config.json: not valid JSON"),
        (no_config, "config.json: no such file"),
        (wrong_layers, r"no place in a model of this shape \(bert, 1 layers"),
        (more_layers, "no layer 2, though config.json says"),
        (cut_weights, "not a whole safetensors file"),
        (nan_weights, "classifier.bias holds NaN"),
        (pickle_only, "a pickle"),
    ],
)
def test_broken_model_directories_are_refused(tmp_path, spoil, message):
    directory = saved(tmp_path / "model", small("bert"))
    (directory / "minddistill.json").unlink()  # as of models made elsewhere: no checksums
    spoil(directory)
    with pytest.raises(UserError, match=message):
        store.build(store.read_weights(directory))


def flipped(directory):
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (directory / "model.safetensors").write_bytes(data)


def linked(directory):
    file = directory / "model.safetensors"
    file.symlink_to(file.rename(directory.parent / file.name))


def other_sizes(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 10**12}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flipped, r"model.safetensors: damaged or changed \(checksum\)"),
        (linked, "model.safetensors: a link out of its directory"),
        (other_sizes, "encoder.embeddings.word is .*, config.json says"),
    ],
)
def test_models_that_are_not_as_written_are_refused(tmp_path, spoil, message):
    directory = saved(tmp_path / "model", small("bert"))
    spoil(directory)
    with pytest.raises(UserError, match=message):
        store.read_weights(directory)


def test_snapshots_of_the_hub_are_links_and_are_read(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1a2b"
    saved(snapshot, small("bert"))
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.symlink_to(file.rename(blobs / str(number)))
    assert store.read_weights(snapshot).config == small("bert")


def test_a_saved_directory_replaces_the_earlier_one_whole(tmp_path):
    directory = saved(tmp_path / "model", small("bert"))
    (directory / "stray").write_text("of the earlier model")
    saved(directory, small("bert"))
    assert not (directory / "stray").exists()
    shutil.move(directory, tmp_path / "model.old")  # as if killed between the two renames
    assert store.read_weights(directory).config == small("bert")


def test_relative_positions_equal_the_formula(tmp_path):
    config = small("bert").with_(use_relative_positions=True, max_relative_position=2)
    relative = RelativePositions(config)
    generator = np.random.default_rng(0)
    table = generator.standard_normal((5, 8)).astype(np.float32)
    query = generator.standard_normal((2, 4, 6, 8)).astype(np.float32)
    weights = generator.standard_normal((2, 4, 6, 6)).astype(np.float32)
    distance = np.array([[min(max(j - i, -2), 2) + 2 for j in range(6)] for i in range(6)])
    scores = np.einsum("baid,ijd->baij", query, table[distance])
    values = np.einsum("baij,ijd->baid", weights, table[distance])
    np.testing.assert_allclose(relative(Tensor(query), Tensor(table), True).asnumpy(), scores, atol=1e-5)
    np.testing.assert_allclose(relative(Tensor(weights), Tensor(table), False).asnumpy(), values, atol=1e-5)


def test_relative_positions_are_saved_and_tell_order(tmp_path):
    config = small("bert").with_(use_relative_positions=True, max_relative_position=2, initializer_range=0.5)
    directory = saved(tmp_path / "relative", config)
    forward = predict_function(store.build(store.read_weights(directory)))
    found = forward(BATCH)
    np.testing.assert_allclose(found, predict_function(store.new(config, seed=1))(BATCH), atol=1e-6)
    swapped = {name: value[:, [0, 2, 1, 3, 4, 5]] for name, value in BATCH.items()}
    assert np.abs(forward(swapped)[0] - found[0]).max() > 1e-3


def test_relative_positions_have_names_in_every_family(tmp_path):
    for family in ("bert", "roberta", "electra", "distilbert"):
        config = small(family).with_(use_relative_positions=True, max_relative_position=2)
        found = store.read_weights(saved(tmp_path / family, config))
        assert found.config == config and "encoder.layers.1.relative.keys" in found.values


@pytest.mark.parametrize("told", [{}, {"pad_token_id": None}])
def test_a_roberta_whose_padding_is_not_told_has_transformers_own(tmp_path, told):
    directory = saved(tmp_path / "roberta", small("roberta"))
    config = json.loads((directory / "config.json").read_text())
    del config["pad_token_id"]
    (directory / "config.json").write_text(json.dumps(config | told))
    assert store.read_weights(directory).config.pad_token_id == 1


class Logits(nn.Cell):
    """A model's logits alone, as a compiled function may return no dict."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, batch, step):
        return self.model(batch, step)["logits"]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_dropout_before_the_classifier_is_read_applied_and_written(tmp_path, family):
    key = "seq_classif_dropout" if family == "distilbert" else "classifier_dropout"
    config = small(family).with_(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.5)
    config = config.with_(labels=("no", "yes"), pooler=True)
    values = hub.config_to_hf(config)
    assert values[key] == 0.5 and hub.config_from_hf(values, "x") == config
    assert key not in hub.config_to_hf(config.with_(classifier_dropout=None))
    with pytest.raises(UserError, match=r"classifier_dropout is 1\.5; expected a number from 0"):
        hub.config_from_hf(values | {key: 1.5}, "x")
    ids = np.arange(5, 13, dtype=np.int32).reshape(1, 8)
    batch = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": ids * 0, "row": np.zeros(1, np.int32)}
    batch = {name: Tensor(value) for name, value in batch.items()}
    for probability, same in ((0.5, False), (0.0, True), (None, True)):
        model = Logits(store.new(config.with_(classifier_dropout=probability), seed=1))
        plain, trained = (model(ms.mutable(batch), step).asnumpy() for step in (None, Tensor(3, ms.int32)))
        assert np.array_equal(plain, trained) == same


class Pooled(Logits):
    """What stands before the classifier's own dropout."""

    def construct(self, batch, step):
        return self.model(batch, step)["pooled"]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_roberta_and_electra_drop_out_what_the_dense_layer_reads(family):
    """A dense layer that changes nothing shows what it was given: zero, or twice the state with a probability of 0.5."""
    config = small(family).with_(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.5)
    model = store.new(config.with_(labels=("no", "yes"), pooler=True), seed=1)
    weight = params.named(model)["pooler.weight"]
    weight.set_data(Tensor(np.eye(config.hidden_size, dtype=np.float32)))
    model.activation = nn.Identity()
    ids = np.arange(5, 13, dtype=np.int32).reshape(1, 8)
    batch = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": ids * 0, "row": np.zeros(1, np.int32)}
    batch = ms.mutable({name: Tensor(value) for name, value in batch.items()})
    plain, trained = (Pooled(model)(batch, step).asnumpy() for step in (None, Tensor(3, ms.int32)))
    if family in ("bert", "distilbert"):
        return np.testing.assert_array_equal(trained, plain)
    zero = trained == 0
    np.testing.assert_allclose(trained, np.where(zero, 0, 2 * plain), rtol=1e-5)
    assert 0.2 < zero.mean() < 0.8


@pytest.mark.parametrize("name", ["qa_outputs", "sequence_summary.summary"])
def test_heads_for_other_uses_are_left_out(tmp_path, name):
    directory = saved(tmp_path / "model", small("electra").with_(labels=(), problem=SINGLE))
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {f"{name}.weight": np.zeros((2, 32), np.float32)}, directory / "model.safetensors")
    (directory / "minddistill.json").unlink()
    assert store.read_encoder(directory).config.hidden_size == 32


def test_a_regression_has_one_output():
    values = hub.config_to_hf(small("bert").with_(labels=("valence", "arousal"))) | {"problem_type": REGRESSION}
    with pytest.raises(UserError, match="here: a regression with 2 outputs; expected one number"):
        hub.config_from_hf(values, "here")


def test_masked_lm_heads_of_electra_and_roberta_have_gelu():
    """As transformers' have, whatever the encoder's activation."""
    for family, kind in (("electra", "gelu"), ("roberta", "gelu"), ("bert", "relu"), ("distilbert", "relu")):
        head = MaskedLMHead(small(family).with_(hidden_act="relu"))
        assert type(head.activation) is ACTIVATIONS[kind], family
