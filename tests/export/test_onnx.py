"""Exported graphs against MindSpore: logits, names, metadata, and what a directory holds."""

import json
import shutil

import numpy as np
import pytest
from small import command

from minddistill.errors import UserError
from minddistill.export import onnx as graphs
from minddistill.export import session
from minddistill.export.session import Session, runtime_session
from minddistill.models import store
from minddistill.models.config import WORD_FAMILIES, ModelConfig, WordConfig
from minddistill.models.heads import predict_function
from minddistill.models.presets import preset, word_preset
from minddistill.problems import TOKEN

onnx = pytest.importorskip("onnx")

LONGEST = 12
FAMILIES = {
    "bert": {},
    "tokens": {"problem": TOKEN},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "electra": {"embedding_size": 16},
    "distilbert": {"type_vocab_size": 0},
    # Shapes and parts that Hugging Face's own models do not have.
    "pruned heads": {"num_attention_heads": 3, "attention_head_size": 8, "hidden_act": "gelu_new"},
    "relative positions": {"use_relative_positions": True, "max_relative_position": 3, "relu_before_classifier": True},
}


def small(name: str) -> ModelConfig:
    family = name if name in ("roberta", "electra", "distilbert") else "bert"
    config = preset("test-2l-32").with_(family=family, vocab_size=40, labels=("no", "yes", "maybe"))
    return config.with_(initializer_range=0.3, **FAMILIES[name])


def small_words(name: str) -> WordConfig:
    sizes = {"embedding_size": 8, "first_filters": 5, "growth": 3, "joined_size": 7, "filters": 6, "attention_size": 4}
    return word_preset(name).with_(vocab_size=40, max_length=LONGEST, labels=("no", "yes", "maybe"), **sizes)


def weights_of(config: ModelConfig | WordConfig, tmp_path) -> store.Weights:
    options = {
        "tokenizer_from": None,
        "command": "test",
        "parents": {"teacher": "t"},
        "data": {},
        "metrics": {"f1": 0.5},
    }
    return store.read_weights(store.save(tmp_path / "model", store.new(config, seed=1), **options))


def every_length(config: ModelConfig | WordConfig) -> dict[str, np.ndarray]:
    """One row of each length up to the longest, and a second segment where there can be one."""
    mask = np.tril(np.ones((LONGEST, LONGEST), np.int32))
    ids = np.random.default_rng(0).integers(2, 40, mask.shape).astype(np.int32)
    two = getattr(config, "type_vocab_size", 0) > 1
    segments = np.where(np.arange(LONGEST) > 4, mask, 0) if two else mask * 0
    return {
        "input_ids": np.where(mask == 1, ids, config.pad_token_id).astype(np.int32),
        "input_mask": mask,
        "segment_ids": segments.astype(np.int32),
    }


def run(graph, batch) -> np.ndarray:
    session = runtime_session(graph.SerializeToString(), threads=1)
    names = dict(zip(("input_ids", "attention_mask", "token_type_ids"), batch.values(), strict=True))
    return session.run(["logits"], {i.name: names[i.name].astype(np.int64) for i in session.get_inputs()})[0]


@pytest.mark.parametrize("name", [*FAMILIES, *WORD_FAMILIES])
def test_logits_equal_mindspore_at_every_length(name, tmp_path):
    weights = weights_of(small_words(name) if name in WORD_FAMILIES else small(name), tmp_path)
    batch = every_length(weights.config)
    expected = predict_function(store.build(weights))(batch)
    graph = graphs.build(weights)
    assert np.ptp(expected, 0).min() > 0.05  # the rows differ, so that equal logits say something
    np.testing.assert_allclose(run(graph, batch), expected, atol=1e-4)
    for row in range(LONGEST):
        alone = {key: value[row : row + 1, : row + 1] for key, value in batch.items()}
        mine = expected[row, : row + 1] if name == "tokens" else expected[row]
        np.testing.assert_allclose(run(graph, alone)[0], mine, atol=1e-4)


def test_half_precision_keeps_inputs_outputs_and_nearly_the_logits(tmp_path):
    weights = weights_of(small("bert"), tmp_path)
    batch = every_length(weights.config)
    half, full = graphs.build(weights, fp16=True), graphs.build(weights)
    assert {t.data_type for t in half.graph.initializer if len(t.dims) == 2} == {onnx.TensorProto.FLOAT16}
    assert half.ByteSize() < 0.6 * full.ByteSize()
    np.testing.assert_allclose(run(half, batch), run(full, batch), atol=0.05)


def test_layers_may_differ_in_heads_and_width(tmp_path):
    weights = weights_of(small("bert"), tmp_path)
    batch, size = every_length(weights.config), weights.config.attention_head_size
    path = "encoder.layers.0."
    # Heads whose values are zero, and units that nothing reads, change nothing when they are cut.
    for name in ("value.weight", "value.bias"):
        weights.values[path + name][size:] = 0
    weights.values[path + "output.weight"][:, 20:] = 0
    expected = run(graphs.build(weights), batch)
    cut = dict(weights.values)
    for name in ("query", "key", "value"):
        for leaf in ("weight", "bias"):
            cut[f"{path}{name}.{leaf}"] = cut[f"{path}{name}.{leaf}"][:size]
    cut[path + "attention_output.weight"] = cut[path + "attention_output.weight"][:, :size]
    cut[path + "output.weight"] = cut[path + "output.weight"][:, :20]
    for leaf in ("weight", "bias"):
        cut[f"{path}intermediate.{leaf}"] = cut[f"{path}intermediate.{leaf}"][:20]
    graph = graphs.build(store.Weights(weights.config, cut, weights.source))
    np.testing.assert_allclose(run(graph, batch), expected, atol=1e-5)


def test_graph_says_what_it_is(tmp_path):
    graph = graphs.build(weights_of(small("bert"), tmp_path))
    assert [value.name for value in graph.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [dim.dim_param for dim in graph.graph.input[0].type.tensor_type.shape.dim] == ["batch", "sequence"]
    assert [value.name for value in graph.graph.output] == ["logits"]
    known = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert known["labels"] == ["no", "yes", "maybe"] and known["parents"] == {"teacher": "t"}
    assert known["metrics"] == {"f1": 0.5}


def test_exported_directory_runs_without_its_model(teacher, tmp_path):
    out = tmp_path / "exported"
    assert command("export", "--model", teacher, "--output_dir", out) == 0
    opened, original = Session.open(out, threads=1), Session.open(teacher, threads=1)
    assert opened.kind == "onnx" and original.kind == "mindspore" and opened.labels == ["no", "yes"]
    batch = opened.encode(["the film is good", "a dull plot"], ["and fun", None])
    np.testing.assert_allclose(opened.predict(*batch), original.predict(*batch), atol=1e-4)
    record = json.loads((out / "minddistill.json").read_text())
    assert record["parents"] == {"model": str(teacher)} and record["metrics"]["accuracy"] > 0.9
    assert {"config.json", "vocab.txt", "README.md"} <= {file.name for file in out.iterdir()}
    assert command("export", "--model", teacher, "--output_dir", out) == 0  # in the place of the earlier one
    link = tmp_path / "current"
    link.symlink_to("exported")
    before = (out / "model.onnx").stat().st_ino
    assert command("export", "--model", teacher, "--output_dir", link) == 0
    assert link.is_symlink() and (out / "model.onnx").stat().st_ino != before
    assert {file.name for file in tmp_path.iterdir()} == {"exported", "current"}


def test_only_what_was_exported_is_replaced(teacher, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert command("export", "--model", teacher, "--output_dir", ".") == 0
    assert (tmp_path / "here" / "model.onnx").is_file()
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "here", other)
    (other / "minddistill.json").unlink()  # another maker's
    assert command("export", "--model", teacher, "--output_dir", other) == 2 and (other / "model.onnx").is_file()
    (tmp_path / "here" / "notes.txt").write_text("mine")
    assert command("export", "--model", teacher, "--output_dir", tmp_path / "here") == 2
    assert "holds notes.txt, not an exported model" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "here" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("machine", "flags", "overflow"),
    [
        ("x86_64", ["avx2", "avx512f"], True),
        ("x86_64", ["avx2", "avx512_vnni"], False),
        ("AMD64", ["avx_vnni"], False),
        ("AMD64", [], True),
        ("aarch64", ["asimd"], False),
    ],
)
def test_exact_int8_sums_are_asked_for_where_the_fast_ones_overflow(teacher, monkeypatch, machine, flags, overflow):
    assert session.sums_overflow(machine, flags) == overflow
    monkeypatch.setattr(session, "_processor", lambda: flags)
    monkeypatch.setattr(session.platform, "machine", lambda: machine)
    graph = graphs.build(store.read_weights(teacher)).SerializeToString()
    options = runtime_session(graph).get_session_options()
    key = "session.x64quantprecision"
    if overflow:
        assert options.get_session_config_entry(key) == "1"
    else:
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)


def test_mindir_loads_with_the_same_logits_at_any_shape(tmp_path):
    import mindspore as ms
    from mindspore import nn

    from minddistill.export import mindir

    weights = weights_of(small("bert"), tmp_path)
    batch = every_length(weights.config)
    mindir.save(weights, tmp_path / "model.mindir")
    graph = nn.GraphCell(ms.load(str(tmp_path / "model.mindir")))
    expected = predict_function(store.build(weights))(batch)
    found = graph(*(ms.Tensor(value) for value in batch.values())).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = graph(*(ms.Tensor(value[3:4, :4]) for value in batch.values())).asnumpy()
    np.testing.assert_allclose(alone, expected[3:4], atol=1e-5)


def test_mistakes_are_named(teacher, tiny_encoder, tmp_path, capsys):
    assert command("export", "--model", tiny_encoder, "--output_dir", tmp_path / "out") == 2
    assert "an encoder without a classifier" in capsys.readouterr().err
    assert command("export", "--model", teacher, "--output_dir", teacher) == 2
    assert "not an exported model; expected a new directory" in capsys.readouterr().err
    assert command("export", "--model", teacher, "--output_dir", tmp_path, "--format", "mindir", "--fp16", "true") == 2
    assert "--fp16 true: expected --format onnx" in capsys.readouterr().err
    with pytest.raises(UserError, match="ONNX Runtime cannot run it"):
        (tmp_path / "model.onnx").write_bytes(b"no graph")
        runtime_session(tmp_path / "model.onnx")


@pytest.mark.slow
def test_real_encoder_at_every_length_of_real_sentences(shared, tmp_path):
    """Unpadded by ONNX Runtime, padded by MindSpore: 6 layers of hidden 384 and SST-2's dev set."""
    from minddistill.recipes.quickstart import encoder_directory

    encoder = store.read_weights(encoder_directory())
    config = encoder.config.with_(labels=("negative", "positive"), initializer_range=0.5)
    model = store.build(encoder, config, seed=1, may_miss=("classifier.",))
    options = {"command": "test", "parents": {}, "data": {}, "metrics": {}}
    store.save(tmp_path / "model", model, tokenizer_from=encoder.directory, **options)
    assert command("export", "--model", tmp_path / "model", "--output_dir", tmp_path / "onnx") == 0
    original, exported = Session.open(tmp_path / "model"), Session.open(tmp_path / "onnx")
    texts = [line.split("\t")[0] for line in (shared / "glue" / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    by_length: dict[int, list[str]] = {}
    for text, tokens in zip(texts, exported.tokens(texts), strict=True):
        by_length.setdefault(len(tokens), []).append(text)
    assert len(by_length) > 40
    for same in by_length.values():
        batch = exported.encode(same)
        np.testing.assert_allclose(exported.predict(*batch), original.predict(*batch), atol=1e-4)
