"""Distillation in one stage, from several teachers and on augmented rows: end to end and tiny."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small import QUICK, command

from minddistill.data.records import read_rows
from minddistill.data.teacher_cache import Layout, TeacherCache
from minddistill.distill.distiller import Ensemble
from minddistill.distill.layer_map import LayerMap, layer_map
from minddistill.errors import UserError
from minddistill.models import store
from minddistill.models.heads import predict_function
from minddistill.models.presets import preset
from minddistill.recipes import distill
from minddistill.recipes.common import check_vocabulary
from minddistill.recipes.flags import StudentFlags
from minddistill.recipes.labels import align_labels, label_order
from minddistill.recipes.matching import projection
from minddistill.recipes.task_job import mean_logits

ALL_TERMS = ["--state_loss_ratio", 1.0, "--state_loss", "cosine", "--att_loss_ratio", 0.5]


def flags(data, teacher, out) -> list:
    sets = ["--load_teacher_ckpt_path", teacher, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    size = ["--student", "test-2l-32", "--init_from_teacher", "1,3", "--learning_rate", 2e-3, "--output_dir", out]
    return [*sets, *size, *QUICK]


@pytest.fixture(scope="module")
def augmented(tmp_path_factory, tiny_text, vocabulary) -> Path:
    out = tmp_path_factory.mktemp("augmented") / "train"
    text = ["--task_name", "custom", "--train_file", tiny_text / "train.tsv", "--tokenizer", vocabulary]
    assert command("augment", "--method", "mask", "--times", 2, "--max_seq_length", 12, *text, "--output_dir", out) == 0
    return out


def test_student_learns_from_labels_predictions_states_and_attention(data, teacher, tmp_path):
    more = ["--epoch_size", 3, "--alpha", 0.3, "--temperature", 2, *ALL_TERMS]
    assert command("distill", *flags(data, teacher, tmp_path), *more) == 0
    record = json.loads((tmp_path / "best" / "minddistill.json").read_text())
    assert record["metrics"]["accuracy"] > 0.9 and record["parents"]["teacher"] == str(teacher)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    for row in rows:
        soft = 0.3 * row["label_loss"] + 0.7 * row["soft_loss"]
        assert row["loss"] == pytest.approx(soft + 0.5 * row["attention_loss"] + row["hidden_loss"], rel=1e-4)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert "student, accuracy" in (tmp_path / "report.html").read_text()
    assert "Teacher cache: written" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_student_of_two_teachers_learns_from_augmented_rows(data, teacher, augmented, tmp_path):
    # The mean of a teacher and itself is that teacher, so that the student is the one of a single teacher.
    short = ["--aug_train", augmented, "--epoch_size", 1, "--train_steps", 8]
    for name, teachers in (("one", teacher), ("two", f"{teacher},{teacher}")):
        assert command("distill", *flags(data, teachers, tmp_path / name), *short, "--teacher_cache", tmp_path) == 0
    one, two = ((tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    record = json.loads((tmp_path / "two" / "last" / "minddistill.json").read_text())
    assert record["parents"]["teacher"] == record["parents"]["teacher 2"] == str(teacher)
    rows = json.loads((augmented / "meta.json").read_text())["rows"]
    assert record["data"] == {"train": str(augmented), "rows": rows, "task": "custom"} and rows > 240
    assert f"Training on {rows} augmented rows in place of 240" in (tmp_path / "two" / "log.txt").read_text()


@pytest.mark.slow
def test_both_phases_of_task_distillation_take_augmented_rows(data, teacher, augmented, tmp_path):
    epochs = ["--td_phase1_epoch_size", 1, "--td_phase2_epoch_size", 1]
    names = ["--learning_rate", 2e-3, "--train_data_dir", ""]
    assert command("task-distill", *flags(data, teacher, tmp_path), *epochs, *names, "--aug_train", augmented) == 0
    rows = json.loads((augmented / "meta.json").read_text())["rows"]
    log = (tmp_path / "log.txt").read_text()
    assert f"phase1: {rows} rows" in log and f"phase2: {rows} rows" in log


def test_several_teachers_say_the_mean_of_their_logits(tmp_path):
    config = preset("test-2l-32").with_(vocab_size=20, labels=("a", "b"), pooler=True)
    teachers = [store.new(config, seed=seed) for seed in (1, 2)]
    names = ("input_ids", "input_mask", "segment_ids")
    batch = {name: np.ones((2, 4), np.int32) for name in names}
    apart = [predict_function(teacher)(batch) for teacher in teachers]
    mean = (apart[0] + apart[1]) / 2
    np.testing.assert_allclose(predict_function(Ensemble(teachers))(batch), mean, rtol=1e-5)
    caches = [
        TeacherCache(tmp_path / str(i), Layout((), (), 32, 2, 2), np.full(2, 4), {"teacher": i}) for i in range(2)
    ]
    none = np.zeros(0, np.float16)
    for cache, logits in zip(caches, apart, strict=True):
        cache.missing()
        cache.write(0, iter([(row, none, none, logits[row]) for row in range(2)]))
    np.testing.assert_array_equal(mean_logits(caches)(np.array([1, 0]), 4)["teacher_logits"], mean[::-1])


def test_the_reference_loss_has_its_teacher_at_every_step_and_patience_ends(data, teacher, tmp_path):
    more = ["--att_loss_ratio", 1, "--loss_mode", "reference", "--epoch_size", 6, "--patience", 2]
    assert command("distill", *flags(data, teacher, tmp_path), *more, "--learning_rate", 1e-12) == 0
    log = (tmp_path / "log.txt").read_text()
    assert "Teacher cache" not in log
    assert "distill: 45 steps in" in log  # the first of 3 epochs of 15 was the best


def test_mistakes_end_in_one_line(data, teacher, tiny_encoder, augmented, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for file in augmented.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"labels": ["yes", "no"]}))
    cases = [
        (["--alpha", 2], "--alpha 2.0: expected a number from 0"),
        (["--temperature", 0], "--temperature 0.0: expected a positive number"),
        (["--alpha", 1, "--temperature", 4], "--temperature 4: has no part with --alpha 1"),
        (["--state_loss", "cosine"], "--state_loss cosine: has no part without --state_loss_ratio above 0"),
        (
            ["--layer_map", "last"],
            "--layer_map last: has no part without --state_loss_ratio or --att_loss_ratio above 0",
        ),
        ([*ALL_TERMS, "--loss_mode", "reference"], "--state_loss cosine wants masked"),
        ([*ALL_TERMS, "--load_teacher_ckpt_path", f"{teacher},{teacher}"], "--state_loss_ratio wants one"),
        (["--load_teacher_ckpt_path", f"{teacher},{tiny_encoder}"], "trained on the labels (none"),
        (["--aug_train", other], f"--aug_train {other}: labels ['yes', 'no']"),
        (["--init_from_teacher", "", "--num_attention_heads", 2, *ALL_TERMS], "the student has 2 attention heads"),
    ]
    alien = tmp_path / "alien"
    model = store.new(preset("test-2l-32").with_(vocab_size=50, labels=("no", "yes")), seed=1)
    store.save(alien, model, tokenizer_from=None, command="test", parents={}, data={}, metrics={})
    start = ["--init_from_teacher", ""]
    cases += [
        ([*start, "--load_gd_ckpt_path", alien], f"{alien}: a student of 50 word pieces, its teacher has"),
        (
            [*start, "--load_gd_ckpt_path", teacher],
            f"--student test-2l-32: num_hidden_layers 2: {teacher} has 4; leave the flag out",
        ),
        (
            [*start, "--load_gd_ckpt_path", teacher, "--num_hidden_layers", 4, "--hidden_size", 64],
            f"--hidden_size 64: {teacher} has 32",
        ),
        (["--hidden_act", "relu"], "--hidden_act relu: the teacher has gelu, and so has its student"),
        ([*start, "--max_position_embeddings", 8], "the model reads at most 8"),
        (
            ["--att_loss_ratio", 1, "--loss_mode", "reference", "--teacher_cache", tmp_path / "cache"],
            "keeps real positions",
        ),
    ]
    for more, message in cases:
        assert command("distill", *flags(data, teacher, tmp_path / "run"), *more) == 2, message
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1, error
    phases = flags(data, f"{teacher},{teacher}", tmp_path / "run")
    assert command("task-distill", *phases) == 2
    assert "phase 1 (--load_td1_ckpt_path leaves it out) wants one" in capsys.readouterr().err
    assert command("doctor", "distill", *flags(data, teacher, tmp_path / "run"), *ALL_TERMS) == 0
    assert "learn from teacher layers (1, 3)" in capsys.readouterr().out


def test_a_classifier_of_other_labels_is_learnt_anew(data, teacher, tmp_path):
    """Its rows would be taken for those of the labels that stand in their places."""
    other = tmp_path / "other"
    config = store.read_weights(teacher).config.with_(labels=("yes", "no"))
    store.save(
        other, store.new(config, seed=1), tokenizer_from=teacher, command="test", parents={}, data={}, metrics={}
    )
    start = ["--init_from_teacher", "", "--load_gd_ckpt_path", other, "--num_hidden_layers", 4, "--epoch_size", 1]
    assert command("distill", *flags(data, teacher, tmp_path / "run"), *start) == 0
    assert (
        "its classifier is of yes, no (single_label_classification); that of no, yes (single"
        in (tmp_path / "run/log.txt").read_text()
    )
    assert store.read_weights(tmp_path / "run" / "best").config.labels == ("no", "yes")


def test_labels_that_differ_in_case_alone_are_told_apart():
    place = Path("records")
    assert label_order(["May", "may"], ["may", "May"], "m", place) == [1, 0]
    assert label_order(["YES", "NO"], ["no", "yes"], "m", place) == [1, 0]
    with pytest.raises(UserError, match="trained on the labels May, may"):
        label_order(["May", "may"], ["MAY", "may"], "m", place)


def test_a_projection_for_each_layer_is_refused_where_there_is_one_or_none():
    wide, narrow = preset("test-4l-32"), preset("test-2l-32").with_(hidden_size=16)
    pairs = layer_map("uniform", 2, 4)
    with pytest.raises(UserError, match="equally wide"):
        projection(preset("test-2l-32"), wide, pairs, 1, "layer")
    carried = {"fit_dense.weight": np.zeros((32, 16), np.float32), "fit_dense.bias": np.zeros(32, np.float32)}
    with pytest.raises(UserError, match="the student brings one for all layers"):
        projection(narrow, wide, pairs, 1, "layer", carried)


def test_a_teachers_outputs_are_put_in_the_records_order_of_labels(data, teacher):
    weights = store.read_weights(teacher)
    turned = replace(weights, config=weights.config.with_(labels=("yes", "no")))
    said = []
    found = align_labels(turned, read_rows(data / "dev"), said.append)  # no, yes
    assert found.config.labels == ("no", "yes") and "order of labels: no, yes" in said[0]
    for leaf in ("weight", "bias"):
        np.testing.assert_array_equal(found.values[f"classifier.{leaf}"], weights.values[f"classifier.{leaf}"][::-1])


def test_layers_that_are_compared_are_those_of_the_flags():
    """A student of 2 layers and a teacher of 4."""
    log = SimpleNamespace(check=lambda name: nullcontext(str))
    teacher = SimpleNamespace(config=preset("test-4l-32"))
    job = SimpleNamespace(
        student=StudentFlags(), teacher=teacher, run=SimpleNamespace(log=log), require_one_teacher=str
    )

    def pairs(**given):
        return distill._matched(job, distill.Learning(**given), preset("test-2l-32"))

    assert pairs(state_loss_ratio=1, att_loss_ratio=1) == LayerMap((1, 3), (0, 4), (0, 2))
    assert pairs(state_loss_ratio=1, att_loss_ratio=1, state_layers="mapped") == LayerMap((1, 3), (0, 2, 4))
    assert pairs(state_loss_ratio=1) == LayerMap((), (0, 4), (0, 2))
    assert pairs(att_loss_ratio=1) == LayerMap((1, 3), ())


def test_a_learning_rate_told_twice_is_refused(data, teacher, tmp_path, capsys):
    rates = ["--learning_rate", 1e-3, "--td_phase2_learning_rate", 5e-5]
    start = ["--load_td1_ckpt_path", teacher, "--num_hidden_layers", 4]
    paths = ["--load_teacher_ckpt_path", teacher, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    assert command("task-distill", *paths, *start, *rates, "--output_dir", tmp_path) == 2
    assert "--learning_rate 0.001, --td_phase2_learning_rate 5e-05: the first is for both" in capsys.readouterr().err


def test_flags_that_phase_2_does_not_read_are_named(data, teacher, tmp_path):
    paths = ["--load_teacher_ckpt_path", teacher, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    more = ["--load_td1_ckpt_path", teacher, "--load_gd_ckpt_path", teacher, "--layer_map", "last", *QUICK]
    assert command("task-distill", *paths, *more, "--td_phase2_epoch_size", 1, "--output_dir", tmp_path) == 0
    told = (
        f"Phase 1 is left out (--load_td1_ckpt_path), which alone reads --layer_map last, --load_gd_ckpt_path {teacher}"
    )
    assert told in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_a_classifier_that_is_trained_further_keeps_its_form(data, tiny_encoder, tmp_path):
    sets = ["--train_data_dir", data / "train", "--epoch_size", 1, *QUICK]
    first = ["--model", tiny_encoder, "--relu_before_classifier", "true", "--output_dir", tmp_path / "first"]
    assert command("finetune", *first, *sets) == 0
    again = ["--model", tmp_path / "first" / "last", "--output_dir", tmp_path / "again"]
    assert command("finetune", *again, *sets) == 0
    assert store.read_weights(tmp_path / "again" / "last").config.relu_before_classifier


def test_records_of_another_byte_level_tokenizer_are_refused(data, teacher, tmp_path):
    """Of files without tokenizer.json, as RoBERTa's older ones are."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"made with another tokenizer"):
        check_vocabulary(read_rows(data / "dev"), store.read_weights(teacher).config, tmp_path)
