"""Every command end to end and tiny: text to records, teacher, student, figures."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small import QUICK, command, stop_in_step

from minddistill.data.records import read_rows
from minddistill.evaluation.evaluate import read_predictions
from minddistill.models import store


def distil(data, teacher, out, *more) -> int:
    flags = ["--load_teacher_ckpt_path", teacher, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    size = ["--student", "test-2l-32", "--td_phase1_epoch_size", 2, "--td_phase2_epoch_size", 2]
    rates = ["--td_phase1_learning_rate", 2e-3, "--td_phase2_learning_rate", 2e-3]
    return command(
        "task-distill", *flags, *size, *rates, "--init_from_teacher", "1,3", "--output_dir", out, *QUICK, *more
    )


@pytest.fixture(scope="module")
def student(tmp_path_factory, data, teacher) -> Path:
    out = tmp_path_factory.mktemp("student")
    assert distil(data, teacher, out) == 0
    return out


def test_records_say_what_they_are(data):
    meta = json.loads((data / "train" / "meta.json").read_text())
    assert meta["labels"] == ["no", "yes"] and meta["rows"] == 240 and meta["seq_length"] == 12
    assert json.loads((data / "train" / "schema.json").read_text())["numRows"] == 240
    rows = read_rows(data / "dev", vocab_size=meta["vocab_size"])
    assert len(rows) == 50 and rows.label.tolist() == [0, 1] * 25


def test_teacher_learns_and_log_has_the_documented_lines(teacher):
    log = (teacher.parent / "log.txt").read_text()
    line = r"epoch: 1, step: 5, outpus are \(Tensor\(shape=\[1\], dtype=Float32, [\d.e-]+\), "
    line += r"Tensor\(shape=\[\], dtype=Bool, False\), Tensor\(shape=\[\], dtype=Float32, 256\)\)"
    assert re.search(line, log)
    best = re.findall(r"^The best acc is (\d\.\d{6})$", log, re.MULTILINE)
    assert best == sorted(best) and float(best[-1]) > 0.9
    metrics = [json.loads(row) for row in (teacher.parent / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "label_loss", "learning_rate", "tokens_per_second"} <= metrics[0].keys()
    assert list((teacher.parent / "tensorboard").iterdir())


def test_student_matches_its_teacher(student, teacher):
    record = json.loads((student / "best" / "minddistill.json").read_text())
    assert record["metrics"]["accuracy"] > 0.9
    assert record["parents"]["teacher"] == str(teacher)
    assert "fit_dense.weight" in load_file(student / "phase1" / "last" / "fit_dense.safetensors")
    assert json.loads((student / "best" / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}


def test_report_sets_the_student_beside_its_teacher(student, teacher):
    page = (student / "report.html").read_text()
    for name in ("teacher", "student"):
        logits = read_predictions(student / f"predictions_{'best' if name == 'student' else name}.tsv")
        assert logits.shape == (50, 2) and f'<td data-title="model">{name}</td>' in page
    best = json.loads((student / "best" / "minddistill.json").read_text())["metrics"]["accuracy"]
    assert f"student, accuracy</dt><dd>{best:.4f}</dd>" in page and str(teacher) in page
    assert "Where teacher and student differ" in page and page.count("<figcaption>student</figcaption>") == 1


def test_interrupted_run_goes_on_to_the_same_bytes(student, data, teacher, tmp_path, monkeypatch):
    stop_in_step(monkeypatch, 19)
    assert distil(data, teacher, tmp_path) == 130
    monkeypatch.undo()
    assert distil(data, teacher, tmp_path) == 0
    assert "Resumed from" in (tmp_path / "log.txt").read_text()
    for name in ("phase1/last", "last", "best"):
        mine, theirs = (path / name / "model.safetensors" for path in (tmp_path, student))
        assert mine.read_bytes() == theirs.read_bytes(), name


def test_second_phase_reads_the_logits_that_the_first_one_cached(student):
    log = (student / "log.txt").read_text()
    assert log.count("Teacher cache: written") == 1 and log.count("Teacher cache: reading") == 1


@pytest.mark.slow
def test_student_learns_from_a_cache_without_the_teacher(data, teacher, tmp_path, capsys):
    caches = tmp_path / "caches"
    sets = ["--train_data_dir", data / "train", "--eval_data_dir", data / "dev", "--buckets", "off"]
    size = ["--student", "test-2l-32", "--teacher_cache", caches]
    assert command("cache-teacher", "--load_teacher_ckpt_path", teacher, *sets, *size) == 0
    short = ["--teacher_cache", caches, "--init_from_teacher", "", "--td_phase1_epoch_size", 1]
    short += ["--td_phase2_epoch_size", 1]
    assert distil(data, "", tmp_path / "without", *short) == 0
    assert distil(data, teacher, tmp_path / "with", *short) == 0
    weights = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("without", "with")]
    assert weights[0] == weights[1]
    next(caches.glob("*/shard_00000.bin")).unlink()
    capsys.readouterr()
    assert distil(data, "", tmp_path / "missing", *short) == 2
    assert "1 of 1 shards are missing, and the teacher is not here" in capsys.readouterr().err
    assert distil(data, "", tmp_path / "layers", *short[:2], "--init_from_teacher", "1,3") == 2
    assert "has no weights" in capsys.readouterr().err


def test_evaluation_counts_every_row_once(student, data, tmp_path):
    flags = ["--model", student / "best", "--data_dir", f"{data / 'dev'},{data / 'test'}", "--output_dir", tmp_path]
    assert command("evaluate", *flags) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    lines = (tmp_path / "predictions_dev.tsv").read_text().splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    assert len(cells) == 50 and [row[3] for row in cells] == ["no", "yes"] * 25
    assert found["dev"]["accuracy"] == pytest.approx(np.mean([row[1] == row[3] for row in cells]))
    record = json.loads((student / "best" / "minddistill.json").read_text())
    assert record["metrics"]["accuracy"] == found["dev"]["accuracy"]
    page = (tmp_path / "evaluation.html").read_text()
    assert "Mistakes, dev" in page and f">{found['test']['accuracy']:.4f}<" in page


def test_evaluation_without_training_says_the_best_acc(student, data, tmp_path, capsys):
    argv = ["--do_train", "false", "--do_eval", "true", "--load_td1_ckpt_path", student / "best"]
    sets = ["--eval_data_dir", f"{data / 'dev'},{data / 'test'}", "--output_dir", tmp_path]
    assert command("task-distill", *argv, *sets) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert f"The best acc is {found['dev']['accuracy']:.6f}" in capsys.readouterr().out
    assert (tmp_path / "predictions_test.tsv").is_file()


def test_general_distillation_lowers_its_loss_and_feeds_task_distillation(tmp_path, tiny_encoder, data, teacher):
    text = "\n\n".join("\n".join(["The film was good. The plot is bad and dull."] * 12) for _ in range(60))
    (tmp_path / "wiki.txt").write_text(text)
    corpus = ["--input", tmp_path / "wiki.txt", "--tokenizer", tiny_encoder, "--output_dir", tmp_path / "corpus"]
    assert command("prepare-corpus", *corpus, "--max_seq_length", 16, "--workers", 1) == 0
    rows = read_rows(tmp_path / "corpus", labelled=False)
    assert (rows.length == 16).all()
    flags = ["--load_teacher_ckpt_path", tiny_encoder, "--data_dir", tmp_path / "corpus", "--learning_rate", 5e-3]
    sizes = ["--student", "test-2l-32", "--epoch_size", 1, "--save_ckpt_path", tmp_path / "gd", *QUICK]
    assert command("general-distill", *flags, *sizes) == 0
    losses = [json.loads(row)["loss"] for row in (tmp_path / "gd" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2
    assert "Terms of the loss" in (tmp_path / "gd" / "report.html").read_text()
    argv = ["--load_gd_ckpt_path", tmp_path / "gd" / "last", "--init_from_teacher", ""]
    sets = ["--train_data_dir", data / "train", "--buckets", "off", "--teacher_cache", tmp_path / "caches"]
    assert command("cache-teacher", "--load_teacher_ckpt_path", teacher, *sets, "--load_gd_ckpt_path", argv[1]) == 0
    assert (
        distil(data, "", tmp_path / "cached", *argv, "--teacher_cache", tmp_path / "caches") == 0
    )  # of the same layers
    assert distil(data, teacher, tmp_path / "td", *argv) == 0
    assert f"from {tmp_path / 'gd' / 'last'}" in (tmp_path / "td" / "log.txt").read_text()


def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_rows(data, tiny_encoder, tmp_path, capsys):
    flags = ["--model", tiny_encoder, "--train_data_dir", data / "train", "--output_dir", tmp_path, *QUICK]
    more = ["--epoch_size", 1, "--save_checkpoint_step", 1, "--warmup_ratio", 0, "--max_skipped_steps", 3]
    assert command("finetune", *flags, *more, "--learning_rate", 1e30) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    found = json.loads(next(tmp_path.glob("nonfinite_step_*.json")).read_text())
    assert f"step {found['step']}: label_loss is nan (3 skipped in a row" in last and "nonfinite_step_" in last
    rows = found["batches"][0]["rows"]
    assert len(set(rows)) == 16 and all(re.match(r".*train-.*\.tfrecord: row \d+$", row) for row in rows)
    assert not (tmp_path / "done.json").exists() and store.read_weights(tmp_path / "last")
    saved = [file.name for file in (tmp_path / "checkpoints").iterdir()]
    assert saved == [f"step_{found['step'] - 1:08d}.safetensors"]
    assert command("finetune", *flags, *more, "--learning_rate", 1e30) == 2
    assert "Resumed from" in (tmp_path / "log.txt").read_text()


def wrong(data, teacher, tmp_path):
    """Command lines that are wrong, and what the one line of the answer must say."""
    td = ["--load_teacher_ckpt_path", teacher, "--train_data_dir", data / "train", "--output_dir", tmp_path / "out"]
    dev, ft = ["--eval_data_dir", data / "dev"], ["--model", teacher, "--output_dir", tmp_path / "out"]
    general = [*td[:2], "--data_dir", data / "train", "--student", "test-2l-32", "--output_dir", tmp_path / "out"]
    empty, unlabelled = tmp_path / "empty.yaml", tmp_path / "unlabelled"
    empty.write_text("# nothing\n")
    shutil.copytree(data / "dev", unlabelled)
    meta = json.loads((unlabelled / "meta.json").read_text())
    (unlabelled / "meta.json").write_text(json.dumps(meta | {"labelled": False}))
    other, aside = tmp_path / "other", ["--load_gd_ckpt_path", teacher, "--num_hidden_layers", 4]
    shutil.copytree(data / "dev", other)
    (other / "meta.json").write_text(json.dumps(meta | {"labels": ["yes", "no"]}))
    mixed = tmp_path / "mixed"
    shutil.copytree(teacher, mixed)
    config = json.loads((mixed / "config.json").read_text()) | {"id2label": {"0": "red", "1": "blue"}}
    (mixed / "config.json").write_text(json.dumps(config))
    return [
        ("task-distill", ["--nope", "3"], "unknown flag --nope"),
        ("task-distill", ["--do_train", "maybe"], "--do_train: expected bool, found maybe"),
        ("task-distill", ["--do_train", "false", "--do_eval", "false"], "nothing to do"),
        ("task-distill", td, "--eval_data_dir is empty"),
        ("task-distill", [*td, "--eval_data_dir", tmp_path / "none"], "none: no such directory"),
        (
            "task-distill",
            [*td, "--eval_data_dir", data / "dev", "--task_name", "QNLI"],
            "--task_name QNLI: the records",
        ),
        ("task-distill", [*td[2:], "--load_teacher_ckpt_path", mixed], "trained on the labels red, blue"),
        ("task-distill", [*td, "--eval_data_dir", data / "dev", "--student", "huge"], "'huge': no such preset"),
        (
            "task-distill",
            [*td, "--eval_data_dir", data / "dev", "--loss_mode", "reference", "--buckets", "8,12"],
            "need one fixed length",
        ),
        ("evaluate", ["--model", tmp_path / "absent", "--data_dir", data / "dev"], "absent: no such file or directory"),
        ("prepare-task", ["--task_name", "SST-9"], "no such task"),
        ("task-distill", [*td, *dev, "--temperature", 0], "temperature 0.0: expected a positive number"),
        ("task-distill", [*td, *dev, "--td_phase2_learning_rate", 0], "learning_rate 0.0: expected a positive number"),
        ("task-distill", ["--resume", "maybe"], "--resume: expected bool, auto, found maybe"),
        ("finetune", ["--compute_type", "int8"], "expected auto, float16, bfloat16, float32, found int8"),
        ("finetune", ["--seed", 2**70], f"--seed {2**70}: expected a number below 2^63"),
        ("finetune", ["--config", empty], f"--config {empty}: holds no flags"),
        ("finetune", ["--output_dir", tmp_path / "out"], "a model without a name"),
        ("finetune", [*ft, "--train_data_dir", unlabelled], f"--train_data_dir {unlabelled}: rows without labels"),
        ("finetune", [*ft, *td[2:4], "--eval_data_dir", unlabelled], "--eval_data_dir"),
        ("finetune", [*ft, *td[2:4], "--eps", 0], "eps 0.0: expected a positive number"),
        ("distill", [*td, *dev, "--train_data_dir", unlabelled], f"{unlabelled}: rows without labels"),
        ("general-distill", [*general, "--seq_length", 8], "rows of 12 tokens, --seq_length is 8"),
        ("general-distill", [*general, "--max_position_embeddings", 8], "the model reads at most 8"),
        (
            "task-distill",
            [*td, "--eval_data_dir", other],
            f"{other}: labels yes, no; the training records have no, yes",
        ),
        ("finetune", [*ft, *td[2:4], "--eval_data_dir", other], "the training records have no, yes"),
        ("prune", [*ft, *td[2:4], "--eval_data_dir", other], "the training records have no, yes"),
        ("finetune", [*ft, *td[2:4], "--patience", 2], "--patience 2: nothing is evaluated"),
        ("distill", [*td, *aside, "--eval_steps", 2], "--eval_steps 2: nothing is evaluated"),
        (
            "task-distill",
            [*td, *aside, "--do_eval", "false", "--eval_steps", 2],
            "--eval_steps 2: nothing is evaluated",
        ),
        (
            "finetune",
            [*ft, *td[2:4], "--lr_schedule", "constant", "--warmup_ratio", 0.2],
            "--warmup_ratio 0.2: has no part in --lr_schedule constant",
        ),
        ("prune", [*ft, *td[2:4], "--eval_steps", 2], "--eval_steps 2: nothing is evaluated"),
        ("plot", ["--kind", "sparsity", "--models", teacher, "--head", 2], "--head 2: has no part in --kind sparsity"),
        (
            "label",
            ["--task_name", "SST-2", "--text_file", "x", "--split", "dev", *ft],
            "--text_file x: --split is given too",
        ),
        ("prepare-task", ["--task_name", "STS-B", "--labels", "a,b"], "--labels a,b: not of regression"),
        (
            "predict",
            ["--model", teacher, "--text_column", "x", "a text"],
            "--text_column x: the command line has texts",
        ),
        ("report", ["--run_dir", mixed], f"--run_dir {mixed / 'config.yaml'}"),
    ]


def test_mistakes_end_in_one_line_and_code_2(data, teacher, tmp_path, capsys):
    for name, argv, message in wrong(data, teacher, tmp_path):
        capsys.readouterr()
        assert command(name, *argv) == 2, argv
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0], (argv, lines)


def test_weak_teacher_is_refused(data, tiny_encoder, tmp_path, teacher, capsys):
    weak = tmp_path / "weak"
    shutil.copytree(teacher, weak)
    from safetensors.numpy import save_file

    tensors = load_file(weak / "model.safetensors")
    tensors["classifier.weight"] *= 0
    save_file(tensors, weak / "model.safetensors", {"format": "pt"})
    assert distil(data, weak, tmp_path / "out") == 2
    assert "damaged or changed (checksum)" in capsys.readouterr().err
    (weak / "minddistill.json").unlink()
    assert distil(data, weak, tmp_path / "out") == 2
    assert "not above 0.5000 of the majority class" in capsys.readouterr().err
