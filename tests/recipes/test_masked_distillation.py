"""Distillation on masked words (DistilBERT's) end to end and tiny."""

import json

import pytest
from safetensors.numpy import load
from small import QUICK, command

from minddistill.models import store


def flags(teacher, data, out) -> list:
    paths = ["--load_teacher_ckpt_path", teacher, "--data_dir", data / "train", "--output_dir", out]
    return [*paths, "--student", "test-2l-32", "--objective", "mlm", *QUICK]


def test_student_learns_masked_words_with_its_teacher(mlm, data, tmp_path):
    out = tmp_path / "run"
    assert command("general-distill", *flags(mlm, data, out), "--epoch_size", 3, "--learning_rate", 3e-3) == 0
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        total = 2 * row["mlm_loss"] + 5 * row["soft_loss"] + row["hidden_loss"]
        assert row["loss"] == pytest.approx(total, rel=1e-4)
    assert all(rows[-1][term] < 0.5 * rows[0][term] for term in ("soft_loss", "hidden_loss"))
    values = store.read_weights(out / "last").values
    assert "mlm.transform.weight" in values and not [name for name in values if name.startswith("pooler.")]


def test_hidden_states_alone_move_the_student(mlm, data, tmp_path):
    more = ["--alpha_ce", 0, "--alpha_mlm", 0, "--save_ckpt_step", 1, "--max_ckpt_num", 2, "--train_steps", 2]
    assert command("general-distill", *flags(mlm, data, tmp_path), *more) == 0
    name, states = "encoder.layers.1.output.weight", []
    for step in (1, 2):
        data = (tmp_path / "checkpoints" / f"step_0000000{step}.safetensors").read_bytes()
        states.append(load(data[:-32]))  # a checksum stands behind it
    (path,) = [path for path in states[0] if path.endswith(name) and "moment" not in path]
    assert (states[0][path] != states[1][path]).any()


def test_student_of_the_teachers_layers_has_its_head(mlm):
    weights = store.read_weights(mlm)
    taken = store.from_layers(weights, weights.config.with_(num_hidden_layers=2), [1, 3])
    head = [name for name in weights.values if name.startswith("mlm.")]
    assert len(head) == 5 and all(taken.values[name] is weights.values[name] for name in head)
    for mine, theirs in ((0, 1), (1, 3)):
        part = {name: value for name, value in taken.values.items() if f".layers.{mine}." in name}
        assert part and all(
            v is weights.values[n.replace(f"layers.{mine}.", f"layers.{theirs}.")] for n, v in part.items()
        )
    assert not [name for name in taken.values if ".layers.2." in name]


def test_mistakes_end_in_one_line(mlm, tiny_encoder, data, tmp_path, capsys):
    cases = [
        (tiny_encoder, [], "has no masked-LM head; minddistill pretrain-mlm trains one"),
        (mlm, ["--layer_map", "last"], "--layer_map last: has no part in --objective mlm"),
        (mlm, ["--objective", "layers", "--alpha_cos", 2], "--alpha_cos 2.0: has no part in --objective layers"),
        (mlm, ["--masked_lm_prob", 1], "--masked_lm_prob 1.0: expected a number between 0 and 1"),
        (mlm, ["--temperature", 0], "--temperature 0.0: expected a positive number"),
    ]
    for teacher, more, message in cases:
        assert command("general-distill", *flags(teacher, data, tmp_path), *more) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1, error
