"""The command: sparse and structured, end to end and tiny."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from small import QUICK, command, stop_in_step

from minddistill.data.tokenizer import load_tokenizer
from minddistill.export.session import Session
from minddistill.models import store
from minddistill.prune import structured
from minddistill.recipes import prune_structured


def prune(model, data, out, *more) -> int:
    flags = ["--model", model, "--data_dir", data / "train", "--eval_data_dir", data / "dev", "--output_dir", out]
    return command("prune", *flags, "--learning_rate", 2e-3, *QUICK, *more)


LIGHT = ["--intermediate_weight", 0, "--label_weight", 0.5, "--soft_weight", 0.5]
SPARSE = ["--pattern", "2:4", "--target_sparsity", 0.5, "--cooldown_epochs", 0.5, "--frequency", 4]
SPARSE += ["--include", r"layers\.[01]\.", "--epoch_size", 2, *LIGHT]


def linear_weights(model) -> dict[str, np.ndarray]:
    """The matrices of the encoder's layers in a model directory."""
    values = load_file(model / "model.safetensors")
    return {name: value for name, value in values.items() if ".layer." in name and value.ndim == 2}


@pytest.fixture(scope="module")
def sparse(tmp_path_factory, teacher, data):
    out = tmp_path_factory.mktemp("sparse")
    assert prune(teacher, data, out, *SPARSE) == 0
    return out


def test_every_group_of_the_best_model_has_its_zeros_and_it_still_classifies(sparse, teacher):
    record = json.loads((sparse / "best" / "minddistill.json").read_text())
    assert record["data"]["sparsity"] == 0.5 and record["data"]["patterns"] == "2:4"
    assert record["metrics"]["accuracy"] > 0.9 and record["parents"]["teacher"] == str(teacher)
    weights = linear_weights(sparse / "best")
    assert len(weights) == 24
    for name, value in weights.items():
        pruned = ".0." in name or ".1." in name
        assert set((value.reshape(-1, 4) == 0).sum(1)) == {2 if pruned else 0}, name
    log = (sparse / "log.txt").read_text()
    assert "12 matrices of 16384 weights: 2:4 to 0.5 by snip_momentum" in log
    assert "pruned at step 0: sparsity 0.0000" in log and "pruned at step 20: sparsity 0.5000" in log
    terms = {"soft_loss", "label_loss"}
    assert terms <= json.loads((sparse / "metrics.jsonl").read_text().splitlines()[0]).keys()
    assert "compressed (zlib)" in log and (sparse / "report.html").is_file()


@pytest.mark.slow
def test_masks_and_scores_survive_a_stop_to_the_same_bytes(sparse, teacher, data, tmp_path, monkeypatch):
    stop_in_step(monkeypatch, 10)
    assert prune(teacher, data, tmp_path, *SPARSE) == 130
    monkeypatch.undo()
    assert prune(teacher, data, tmp_path, *SPARSE) == 0
    assert "Resumed from" in (tmp_path / "log.txt").read_text()
    for name in ("best", "last"):
        mine, theirs = (path / name / "model.safetensors" for path in (tmp_path, sparse))
        assert mine.read_bytes() == theirs.read_bytes(), name


def test_rows_that_are_zero_leave_a_smaller_model_with_the_same_labels(teacher, data, tmp_path):
    config = tmp_path / "groups.yaml"
    config.write_text(
        "criterion: magnitude\n"
        "cooldown_epochs: 0\n"
        "groups:\n"
        "- {include: intermediate, pattern: 1xchannel, target_sparsity: 0.5}\n"
        "- {include: 'query|key', pattern: 4x1, target_sparsity: 0.25, scope: local}\n"
    )
    flags = ["--config", config, "--epoch_size", 0, "--soft_weight", 0, "--label_weight", 1, "--intermediate_weight", 0]
    assert prune(teacher, data, tmp_path / "out", *flags) == 0
    best = tmp_path / "out" / "best"
    weights = linear_weights(best)
    for name, value in weights.items():
        if "intermediate" not in name:
            assert (value == 0).mean() == (0.25 if "query" in name or "key" in name else 0.0), name
    rows = np.concatenate([value.any(1) for name, value in weights.items() if "intermediate" in name])
    assert rows.mean() == 0.5
    compact = store.read_weights(tmp_path / "out" / "compact")
    assert sum(compact.config.layer_widths) == rows.sum()
    for model, name in ((tmp_path / "out" / "compact", "onnx"), (best, "full")):
        assert command("export", "--model", model, "--output_dir", tmp_path / name) == 0
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("onnx", "full")]
    assert sizes[0] < 0.85 * sizes[1]
    found = [Session.open(tmp_path / name) for name in ("onnx", "full")]
    texts = ["the plot is great", "a dull film"]
    logits = [session.predict(*session.encode(texts)) for session in found]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_structured_in_one_shot_with_the_vocabulary(teacher, data, tmp_path):
    flags = ["--method", "structured", "--target_num_heads", 2, "--target_ffn_dim", 40, "--budget", "global"]
    more = ["--target_layers", "1,3", "--epoch_size", 0, "--prune_vocabulary", "true"]
    assert prune(teacher, data, tmp_path, *flags, *more) == 0
    best, small = (store.read_weights(tmp_path / name) for name in ("best", "small_vocabulary"))
    assert best.config.num_hidden_layers == 2 and sum(best.config.layer_heads) == 4
    assert sum(best.config.layer_widths) == 80 and min(best.config.layer_heads) >= 1
    kept = load_tokenizer(tmp_path / "small_vocabulary").get_vocab()
    assert small.config.vocab_size == len(kept) < best.config.vocab_size and "poor" in kept and "acting" not in kept
    sessions = [Session.open(tmp_path / name) for name in ("best", "small_vocabulary")]
    texts = ["the plot is great", "the a film plot is dull"]
    logits = [session.predict(*session.encode(texts)) for session in sessions]
    np.testing.assert_array_equal(*logits)


@pytest.mark.slow
def test_structured_in_steps_learns_again_and_goes_on_from_a_finished_step(teacher, data, tmp_path, capsys):
    flags = ["--method", "structured", "--target_num_heads", 2, "--target_ffn_dim", 24, "--target_hidden", 24]
    more = ["--steps", 2, "--epoch_size", 2]
    assert prune(teacher, data, tmp_path, *flags, *more) == 0
    shapes = [store.read_weights(tmp_path / name).config for name in ("step1/best", "best")]
    assert [(c.num_attention_heads, c.intermediate_size, c.hidden_size) for c in shapes] == [(3, 44, 28), (2, 24, 24)]
    assert json.loads((tmp_path / "best" / "minddistill.json").read_text())["metrics"]["accuracy"] > 0.9
    shutil.rmtree(tmp_path / "best")
    (tmp_path / "done.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    capsys.readouterr()
    before = (tmp_path / "last" / "model.safetensors").read_bytes()
    assert prune(teacher, data, tmp_path, *flags, *more) == 0
    assert "step1: finished before" in capsys.readouterr().out
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_widths_are_searched_by_measured_speed_once(teacher, data, tmp_path, capsys):
    flags = ["--method", "structured", "--target_speedup", "1.05x", "--epoch_size", 0, *LIGHT]
    assert prune(teacher, data, tmp_path, *flags) == 0
    assert "times as fast" in capsys.readouterr().out
    widths = json.loads((tmp_path / "widths.json").read_text())
    config = store.read_weights(tmp_path / "best").config
    assert (config.num_attention_heads, config.intermediate_size) == (widths["heads"], widths["neurons"])
    assert widths["neurons"] == 16 * widths["heads"]
    assert prune(teacher, data, tmp_path, *flags) == 0
    said = capsys.readouterr().out
    assert "finished before" in said and "times as fast" not in said
    assert prune(teacher, data, tmp_path / "more", *flags[:3], "1000x", *flags[4:]) == 2
    assert "expected a smaller speed-up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pattern", "4:2"], "expected N:M with N below M"),
        (["--target_num_heads", 2], "--target_num_heads 2: has no part in --method sparse"),
        (["--method", "structured"], "nothing to prune"),
        (["--method", "structured", "--target_num_heads", 5], "the model has 4; expected at most that"),
        (["--method", "structured", "--target_layers", "1,7"], "expected different layers from 0 to 3"),
        (["--method", "structured", "--target_speedup", "fast"], "expected a number such as 2x"),
        (["--method", "structured", "--target_num_heads", 2, "--frequency", 5], "--frequency 5: has no part in"),
        (["--groups", '{"patern": "2:4"}'], "patern"),
        (["--groups", '{"cooldown_epochs": -1}'], "--cooldown_epochs -1.0: expected a number, 0 or more"),
        (["--groups", '{"pattern": 124}'], "expected text, found the number"),
        (["--config", "GROUPS"], "groups is 3; expected a list"),
        (["--groups", '{"scope": null}'], "--scope: null; leave the key out to take its default"),
        (["--start", 2, "--sparsity_warmup_epochs", 1], "--start 2, --sparsity_warmup_epochs 1: the same told twice"),
        (["--frequency", 500], "--frequency 500: longer than the pruning, from step 0 to"),
        (["--method", "structured", "--target_num_heads", 2, "--clip_norm", -1], "clip_norm"),
        (
            ["--method", "structured", "--target_layers", "0,1", "--normalize_importance", "false"],
            "without --budget global",
        ),
        (
            ["--method", "structured", "--target_num_heads", 2, "--ffn_output_term", "true"],
            "without --target_ffn_dim or",
        ),
        (["--include", "nothing"], "group 1 of those to be pruned has no weight"),
        (["--movement_form", "soft"], "--movement_form soft: has no part in --criterion snip_momentum"),
        (
            ["--criterion", "movement", "--movement_form", "soft", "--target_sparsity", 0.5, "--pattern", "1x1"],
            "--target_sparsity 0.5: has no part in --criterion movement --movement_form soft",
        ),
        (["--epoch_size", 1, "--start", 5], "pruning starts at step 5; of 15 steps, the last 15 are"),
        (
            ["--teacher", "TEACHER", "--soft_weight", 0, "--intermediate_weight", 0, "--label_weight", 1],
            "has no part where --soft_weight and --intermediate_weight are 0",
        ),
        (["--temperature", 4, "--soft_weight", 0], "--temperature 4.0: has no part where --soft_weight is 0"),
        (["--model", "nowhere"], "nowhere: no such file or directory"),
    ],
)
def test_mistakes_end_in_one_line(teacher, data, tmp_path, capsys, flags, message):
    places = {"TEACHER": teacher, "GROUPS": tmp_path / "groups.yaml"}
    places["GROUPS"].write_text("groups: 3\n")
    assert prune(teacher, data, tmp_path, *[places.get(word, word) for word in flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and message in said[0]


def test_the_vocabulary_alone(teacher, data, tmp_path, capsys):
    assert (
        prune(teacher, data, tmp_path, "--method", "structured", "--prune_vocabulary", "true", "--epoch_size", 0) == 0
    )
    before, after = (store.read_weights(path).config for path in (teacher, tmp_path / "small_vocabulary"))
    assert after.vocab_size < before.vocab_size
    assert after.with_(vocab_size=before.vocab_size, pad_token_id=before.pad_token_id) == before


def test_heads_that_differ_between_layers_are_pruned_to_as_many(teacher, data, tmp_path, capsys):
    weights, uneven = store.read_weights(teacher), tmp_path / "uneven"
    heads = [np.arange(4), np.arange(1), np.arange(1), np.arange(1)]
    model, empty = store.build(structured.keep_heads(weights, heads)), {}
    store.save(uneven, model, tokenizer_from=teacher, command="test", parents=empty, data=empty, metrics=empty)
    flags = ["--method", "structured", "--epoch_size", 0, *LIGHT]
    assert prune(uneven, data, tmp_path / "even", *flags, "--target_num_heads", 2) == 0
    assert store.read_weights(tmp_path / "even" / "best").config.layer_heads == (2, 1, 1, 1)
    assert prune(uneven, data, tmp_path / "all", *flags, "--budget", "global", "--target_num_heads", 3) == 2
    assert "--target_num_heads 3: the model has 1; expected at most that" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_keeps_the_units_that_it_chose_first(teacher, data, tmp_path, monkeypatch):
    """Another device, or another rounding, might rate them otherwise when it goes on."""
    flags = ["--method", "structured", "--target_num_heads", 2, "--budget", "global", "--epoch_size", 2, *LIGHT]
    assert prune(teacher, data, tmp_path / "whole", *flags) == 0
    stop_in_step(monkeypatch, 20)
    assert prune(teacher, data, tmp_path / "cut", *flags) == 130
    monkeypatch.undo()
    turned = prune_structured._measured

    def rated(*given):
        found = turned(*given)
        return replace(found, heads=[-scores for scores in found.heads])

    monkeypatch.setattr(prune_structured, "_measured", rated)
    assert prune(teacher, data, tmp_path / "cut", *flags) == 0
    models = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert models[0] == models[1]
    assert prune(teacher, data, tmp_path / "cut", *flags, "--resume", "false") == 0  # which chooses anew
    assert (tmp_path / "cut" / "last" / "model.safetensors").read_bytes() != models[0]


@pytest.mark.slow
def test_units_are_chosen_anew_under_other_flags(teacher, data, tmp_path):
    flags = ["--method", "structured", "--target_num_heads", 2, "--epoch_size", 0, *LIGHT]
    units = []
    for more in ([], ["--importance_rows", 20], []):
        assert prune(teacher, data, tmp_path, *flags, *more, "--resume", "auto") == 0
        units.append(json.loads((tmp_path / "units.json").read_text())["asked"]["flags"]["importance_rows"])
        (tmp_path / "done.json").unlink()
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    assert units == [2000, 20, 2000]


def test_a_new_run_leaves_nothing_of_an_earlier_one(teacher, data, tmp_path):
    flags = ["--method", "structured", "--epoch_size", 0, *LIGHT]
    assert prune(teacher, data, tmp_path, *flags, "--target_layers", "0,2", "--prune_vocabulary", "true") == 0
    assert (tmp_path / "small_vocabulary").is_dir()
    assert prune(teacher, data, tmp_path, *flags, "--target_layers", "0,2", "--resume", "false") == 0
    assert not (tmp_path / "small_vocabulary").exists()
    assert prune(teacher, data, tmp_path, *flags, "--prune_vocabulary", "true", "--resume", "false") == 0
    small = tmp_path / "small_vocabulary"
    records = ["--data_dir", data / "train", "--eval_data_dir", ""]
    assert prune(small, data, tmp_path, *flags, "--target_layers", "9", *records, "--resume", "false") == 2
    assert (small / "model.safetensors").is_file()  # what is refused, or read, loses nothing
