"""Students on word vectors: from text and vectors through training to where they run."""

import json
import shutil

import chaos
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small import QUICK, WORDS, command

from minddistill import pipeline
from minddistill.data.tokenizer import load_tokenizer, split_words
from minddistill.export.session import Session
from minddistill.models import store
from minddistill.models.config import WORD_FAMILIES

LENGTH = ["--max_seq_length", 12]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Vectors of 6 for all of the tiny text's words but two, and for one that is not in it."""
    generator, out = np.random.default_rng(0), tmp_path_factory.mktemp("vectors") / "vectors.txt"
    lines = [f"{word} {' '.join(f'{v:.4f}' for v in generator.standard_normal(6))}" for word in ["zebra", *WORDS[2:]]]
    out.write_text("\n".join(lines) + "\n")
    return out


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, tiny_text, teacher):
    """The tiny text with its teacher's logits."""
    out = tmp_path_factory.mktemp("labelled") / "train"
    flags = ["--task_name", "custom", "--train_file", tiny_text / "train.tsv", "--model", teacher]
    assert command("label", *flags, "--output_dir", out) == 0
    return out


def begun(family, out, labelled, tiny_text, vectors):
    """A student before training, and the records that its tokenizer makes."""
    text = ["--task_name", "custom", "--train_file", labelled]
    made = ["--student", family, "--glove", vectors, "--max_length", 16, "--output_dir", out / "student"]
    assert command("init-student", *text, *made) == 0
    files = [*text, "--dev_file", tiny_text / "dev.tsv", "--tokenizer", out / "student"]
    assert command("prepare-task", *files, *LENGTH, "--output_dir", out / "records") == 0
    return out


def training(out, run, *more):
    """The command that trains the student of a directory on its records."""
    sets = ["--train_data_dir", out / "records" / "train", "--eval_data_dir", out / "records" / "dev"]
    flags = ["--load_gd_ckpt_path", out / "student", *sets, "--output_dir", run, "--learning_rate", 2e-3]
    words = ["distill", *flags, "--epoch_size", 10, "--alpha", 0, "--temperature", 2, *QUICK, *more]
    return [str(word) for word in words]


def trained(out, *more):
    assert command(*training(out, out / "run", *more)) == 0
    return out / "run" / "best"


@pytest.fixture(scope="module")
def student(tmp_path_factory, labelled, tiny_text, vectors):
    """A glove-cnn that has learnt from the logits, its vectors frozen."""
    out = begun("glove-cnn", tmp_path_factory.mktemp("glove"), labelled, tiny_text, vectors)
    trained(out, "--freeze_embeddings", "true")
    return out


def test_words_are_split_as_glove_has_them():
    assert split_words("Doesn't IT's well-made, can't.") == [
        *("does", "n't", "it", "'s", "well", "-", "made", ",", "ca", "n't", ".")
    ]
    assert split_words("does n't it 's") == ["does", "n't", "it", "'s"]


def test_vocabulary_and_vectors(student, vectors, tmp_path, tiny_text):
    directory = student / "student"
    weights, tokenizer = store.read_weights(directory), load_tokenizer(directory)
    words = set(" ".join((tiny_text / "train.tsv").read_text().split("\n")[1:]).replace("\t", " ").split()) - {
        "yes",
        "no",
    }
    assert set(tokenizer.get_vocab()) == words | {"[PAD]", "[UNK]", "[SEP]", "[MASK]"}
    table = weights.values["embeddings.word"]
    lines = [line.split(" ") for line in vectors.read_text().splitlines()]
    for word, *numbers in lines[1:]:
        if word in words:
            np.testing.assert_allclose(table[tokenizer.token_to_id(word)], np.array(numbers, np.float32))
    assert not table[0].any() and np.abs(table[1:]).max(1).min() > 0
    assert tokenizer.encode("The PLOT, zebra", "is good [MASK]").ids == [
        tokenizer.token_to_id(word) for word in ("the", "plot", "[UNK]", "[UNK]", "[SEP]", "is", "good", "[MASK]")
    ]
    flags = ["--task_name", "custom", "--train_file", tiny_text / "train.tsv", "--glove", vectors]
    again = [*flags, "--more_words", 1, "--min_count", 45, "--output_dir", tmp_path / "other"]
    assert command("init-student", *again) == 0
    other = load_tokenizer(tmp_path / "other")
    assert other.token_to_id("zebra") is not None and len(other.get_vocab()) < len(words)


def test_student_learns_from_logits_in_the_records(student):
    record = json.loads((student / "run" / "best" / "minddistill.json").read_text())
    assert record["metrics"]["accuracy"] > 0.9
    assert record["parents"] == {
        "teacher's logits": str(student / "records" / "train"),
        "student": str(student / "student"),
    }
    before, after = (store.read_weights(student / name).values for name in ("student", "run/best"))
    np.testing.assert_array_equal(before["embeddings.word"], after["embeddings.word"])
    assert (before["pool.convolutions.0.weight"] != after["pool.convolutions.0.weight"]).any()


def test_a_run_killed_in_a_save_ends_with_the_bytes_of_one_left_alone(student, tmp_path):
    run = tmp_path / "run"
    words = training(student, run, "--freeze_embeddings", "true", "--save_checkpoint_step", 1)
    kills, _, wrong = chaos.chain(words, run, [chaos.Moment(name=40)])
    assert kills == 1 and not wrong and not chaos.temporary(run)
    assert "Resumed from" in (run / "log.txt").read_text()
    for name in ("best", "last"):
        mine, theirs = (path / name / "model.safetensors" for path in (run, student / "run"))
        assert mine.read_bytes() == theirs.read_bytes(), name


def test_it_runs_wherever_a_model_runs(student, tmp_path, capsys):
    best, dev = student / "run" / "best", student / "records" / "dev"
    onnx, int8 = tmp_path / "onnx", tmp_path / "int8"
    assert command("evaluate", "--model", best, "--data_dir", dev, "--output_dir", tmp_path / "evaluation") == 0
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["dev"]
    assert found == json.loads((best / "minddistill.json").read_text())["metrics"]
    assert command("export", "--model", best, "--output_dir", onnx) == 0
    texts = ["the plot is good", "a dull , bad film", "?", "", "the " * 30]
    found = []
    for directory in (best, onnx):
        session = Session.open(directory)
        found.append(session.predict(*session.encode(texts)))
    assert found[0].shape == (5, 2)
    np.testing.assert_allclose(*found, atol=1e-4)
    assert command("quantize", "--model", onnx, "--eval_data_dir", dev, "--output_dir", int8) == 0
    record = json.loads((int8 / "minddistill.json").read_text())
    assert record["metrics"]["accuracy"] > 0.9
    assert (int8 / "model.onnx").stat().st_size < 0.4 * (onnx / "model.onnx").stat().st_size
    assert pipeline(int8)("the plot is good")[0]["label"] == "yes"
    capsys.readouterr()
    assert command("predict", "--model", best, "the plot is bad") == 0
    assert json.loads(capsys.readouterr().out)["label"] == "no"


@pytest.mark.slow
def test_it_is_measured_beside_its_graph(student, tmp_path):
    best, dev, onnx = student / "run" / "best", student / "records" / "dev", tmp_path / "onnx"
    assert command("export", "--model", best, "--output_dir", onnx) == 0
    compared = ["--models", best, onnx, "--data_dir", dev, "--output_dir", tmp_path / "benchmark"]
    assert command("benchmark", *compared, "--runs", 100, "--batch_sizes", 1) == 0
    rows = [json.loads(row) for row in (tmp_path / "benchmark" / "benchmark.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["mindspore", "onnx"]
    assert rows[0]["parameters"] == rows[1]["parameters"] == store.read_weights(best).config.parameters


@pytest.mark.slow
@pytest.mark.parametrize("family", WORD_FAMILIES[1:])
def test_the_other_families_learn_too(family, labelled, tiny_text, vectors, tmp_path):
    best = trained(begun(family, tmp_path, labelled, tiny_text, vectors), "--learning_rate", 1e-4, "--epoch_size", 6)
    weights = store.read_weights(best)
    assert weights.config.family == family
    assert json.loads((best / "minddistill.json").read_text())["metrics"]["accuracy"] > 0.9
    before = store.read_weights(tmp_path / "student").values["embeddings.word"]
    assert (before != weights.values["embeddings.word"]).any()


@pytest.mark.slow
def test_a_bert_of_another_tokenizer_learns_from_text(labelled, tiny_text, teacher, tmp_path):
    """The teacher itself with its vocabulary in another order says the same of a text, and of other ids."""
    shutil.copytree(teacher, tmp_path / "student")
    (tmp_path / "student" / "minddistill.json").unlink()
    words = (teacher / "vocab.txt").read_text().splitlines()
    order = [*range(5), *range(len(words) - 1, 4, -1)]
    (tmp_path / "student" / "vocab.txt").write_text("\n".join(words[place] for place in order) + "\n")
    arrays = load_file(teacher / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    arrays[name] = np.ascontiguousarray(arrays[name][order])
    save_file(arrays, tmp_path / "student" / "model.safetensors")
    files = ["--task_name", "custom", "--train_file", labelled, "--dev_file", tiny_text / "dev.tsv"]
    made = [*files, "--tokenizer", tmp_path / "student", *LENGTH, "--output_dir", tmp_path / "records"]
    assert command("prepare-task", *made) == 0
    still = ["--learning_rate", 1e-6, "--log_interval", 1, "--train_steps", 2]
    best = trained(tmp_path, *still)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["soft_loss"] < 0.05
    assert (best / "vocab.txt").read_text() == (tmp_path / "student" / "vocab.txt").read_text()


def test_mistakes_are_told(student, data, teacher, tmp_path, capsys):
    sets = ["--train_data_dir", student / "records" / "train", "--output_dir", tmp_path / "run"]
    start, plain = ["--load_gd_ckpt_path", student / "student"], ["--train_data_dir", student / "records" / "dev"]
    for flags, told in (
        ([*sets], "--load_teacher_ckpt_path is empty"),
        ([*sets, *start, *plain], "carries no teacher's logits"),
        ([*sets, *start, "--state_loss_ratio", 1], "the records carry logits alone"),
        ([*sets, *start, "--teacher_cache", tmp_path], "holds no teacher"),
        ([*sets, *start, "--load_teacher_ckpt_path", teacher, "--train_data_dir", data / "train"], "minddistill label"),
        ([*sets, "--load_teacher_ckpt_path", student / "run" / "best"], "which has no encoder layers"),
    ):
        assert command("distill", *flags) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "empty.tsv").write_text("text\tlabel\n")
    for name, flags, told in (
        ("init-student", ["--student", "glove"], "no such preset"),
        (
            "init-student",
            ["--task_name", "custom", "--train_file", "x", "--output_dir", student],
            "not a model directory",
        ),
        (
            "init-student",
            ["--student", "glove-cnn", "--task_name", "custom", "--train_file", tmp_path / "empty.tsv", "--glove", "x"],
            "no word occurs 1 times",
        ),
        ("prune", ["--model", student / "run" / "best"], "which has no encoder layers"),
        ("plot", ["--kind", "attention", "--text", "a", "--models", student / "run" / "best", teacher], "no encoder"),
    ):
        assert command(name, *flags, *([] if "--output_dir" in flags else ["--output_dir", tmp_path / "x"])) == 2
        assert told in capsys.readouterr().err
