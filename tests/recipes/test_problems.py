"""Every kind of problem, each in another family of models: records, teacher, both phases, figures, graph, predictions."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small import VOCABULARY, command
from tokenizers import ByteLevelBPETokenizer

from minddistill.data.records import read_rows
from minddistill.evaluation.evaluate import read_predictions
from minddistill.files import write_json
from minddistill.models import store
from minddistill.models.presets import preset
from minddistill.recipes.judging import check_teacher

SHAPES = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "electra": {"embedding_size": 16},
    "distilbert": {"type_vocab_size": 0},
}
FILL = ("is", "was", "not", "very", "and")
GOOD, BAD = ("good", "great", "fun"), ("bad", "dull", "poor")
ROWS = {"train": 240, "dev": 60, "test": 40}


def sentences(count: int):
    """Words of sentences whose last one tells whether they are good, and whose second what they are about."""
    for index in range(count):
        kind = (GOOD, BAD)[index % 2][index % 3]
        yield ["the", ("film", "plot", "acting", "a")[index % 4], *FILL[index % 5 : index % 5 + index % 3], kind]


def text_of(problem: str, split: str) -> str:
    """A file of a problem."""
    lines = [] if problem == "token_classification" else ["text\tlabel"]
    for words in sentences(ROWS[split]):
        text, last = " ".join(words), words[-1]
        if problem == "token_classification":
            tags = ["O", "B-ABOUT" if words[1] != "a" else "O", *["O"] * (len(words) - 3), f"B-{last in GOOD}"]
            lines += [f"{word}\t{tag}" for word, tag in zip(words, tags, strict=True)] + [""]
        elif problem == "regression":
            lines.append(f"{text}\t{1 if last in GOOD else -1}")
        elif problem == "multi_label_classification":
            labels = [name for name, there in ((words[1], words[1] != "a"), ("nice", last in GOOD)) if there]
            lines.append(f"{text}\t{'|'.join(labels)}")
        else:
            lines.append(f"{text}\t{'yes' if last in GOOD else 'no'}")
    return "\n".join(lines) + "\n"


def tokenizer(directory: Path, family: str) -> int:
    """Write a tokenizer of a family. Returns its number of entries."""
    directory.mkdir()
    if family != "roberta":
        (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        return len(VOCABULARY)
    made = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator([f" {' '.join(words)}" for words in sentences(60)], 300, special_tokens=special)
    made.save_model(str(directory))
    write_json(directory / "tokenizer_config.json", {"add_prefix_space": True})
    return made.get_vocab_size()


def encoder(directory: Path, family: str, **changes) -> Path:
    """Write a random encoder of a family, with its tokenizer."""
    size = tokenizer(directory.parent / f"{directory.name}_tokenizer", family)
    config = preset("test-2l-32").with_(
        family=family, vocab_size=size, max_position_embeddings=26, initializer_range=0.1
    )
    model = store.new(config.with_(**SHAPES[family], **changes), seed=3)
    source = directory.parent / f"{directory.name}_tokenizer"
    return store.save(directory, model, tokenizer_from=source, command="test", parents={}, data={}, metrics={})


def records(out: Path, problem: str, model: Path, text: Callable[[str], str] | None = None) -> Path:
    """Prepare the records of a problem, of its own text or another."""
    files = []
    for split in ROWS:
        path = out / f"{split}.{'txt' if problem == 'token_classification' else 'tsv'}"
        path.write_text(text(split) if text else text_of(problem, split))
        files += [f"--{split}_file", path]
    flags = ["--task_name", "custom", "--problem_type", problem, "--tokenizer", model, "--output_dir", out / "records"]
    assert command("prepare-task", *flags, *files, "--max_seq_length", 24) == 0
    return out / "records"


QUICK = ["--batch_size", 16, "--buckets", "off", "--log_interval", 15]


def taught(out: Path, data: Path, model: Path) -> Path:
    """Fine-tune a teacher."""
    flags = ["--model", model, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    more = ["--epoch_size", 16, "--learning_rate", 3e-3, "--output_dir", out / "teacher"]
    assert command("finetune", *flags, *more, *QUICK) == 0
    return out / "teacher" / "best"


def distilled(out: Path, data: Path, teacher: Path, *more) -> Path:
    """Distil a student of one layer in both phases."""
    flags = ["--load_teacher_ckpt_path", teacher, "--train_data_dir", data / "train", "--eval_data_dir", data / "dev"]
    size = ["--student", "test-2l-32", "--num_hidden_layers", 1, "--td_phase1_epoch_size", 2]
    rates = ["--td_phase2_epoch_size", 6, "--learning_rate", 3e-3, "--output_dir", out / "student"]
    assert command("task-distill", *flags, *size, *rates, *(more or ("--init_from_teacher", 1)), *QUICK) == 0
    return out / "student" / "best"


def metrics(model: Path) -> dict[str, float]:
    return json.loads((model / "minddistill.json").read_text())["metrics"]


def predicted(capsys, *argv) -> list[dict]:
    capsys.readouterr()
    assert command("predict", *argv) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check_token(student: Path, exported: Path, data: Path, out: Path, capsys) -> None:
    """Entities of raw text, as the records' words have them; every word is evaluated once."""
    text = " ".join(list(sentences(3))[2])  # the acting not very fun
    (mine,), (theirs,) = (predicted(capsys, "--model", model, text) for model in (student, exported))
    assert [(e["entity_group"], e["word"], e["start"], e["end"]) for e in mine["entities"]] == [
        ("ABOUT", "acting", 4, 10),
        ("True", "fun", 20, 23),
    ]
    for one, other in zip(mine["entities"], theirs["entities"], strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-4) and one == other
    words = sum(len(sentence) for sentence in sentences(ROWS["dev"]))
    assert len(read_predictions(out / "evaluated" / "predictions_dev.tsv")) == words
    page = (out / "evaluated" / "evaluation.html").read_text()
    assert "Confusion, dev" in page
    assert "pooler.dense.weight" not in str(load_file(student / "model.safetensors").keys())


def check_multi(student: Path, exported: Path, data: Path, out: Path, capsys) -> None:
    """All labels above the threshold, from MindSpore and from the graph; a table of labels in the report."""
    texts = ["the film is good", "the a is bad"]
    for model in (student, exported):
        found = predicted(capsys, "--model", model, *texts)
        assert [line["labels"] for line in found] == [["film", "nice"], []]
        assert found[0]["scores"].keys() == {"acting", "film", "nice", "plot"}
    assert predicted(capsys, "--model", exported, "--threshold", 0.999999, *texts)[0]["labels"] == []
    lines = [line.split("\t") for line in (out / "evaluated" / "predictions_dev.tsv").read_text().splitlines()[1:]]
    assert lines[0][3] == "film|nice" and np.mean([line[1] == line[3] for line in lines]) > 0.9
    assert "Labels, dev" in (out / "evaluated" / "evaluation.html").read_text()
    assert json.loads((student / "config.json").read_text())["problem_type"] == "multi_label_classification"


def check_regression(student: Path, exported: Path, data: Path, out: Path, capsys) -> None:
    """A number."""
    good, bad = predicted(capsys, "--model", exported, "the film is good", "the plot is bad")
    assert good["score"] > bad["score"] + 1 and good.keys() == {"text", "score"}


CHAINS = {
    "roberta": ("token_classification", check_token),
    "electra": ("regression", check_regression),
    "distilbert": ("multi_label_classification", check_multi),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", CHAINS)
def test_text_to_predictions(family, tmp_path, capsys):
    problem, check = CHAINS[family]
    model = encoder(tmp_path / "encoder", family)
    data = records(tmp_path, problem, model)
    teacher = taught(tmp_path, data, model)
    student = distilled(tmp_path, data, teacher)
    main = next(iter(metrics(teacher)))
    assert metrics(teacher)[main] > 0.9 and metrics(student)[main] > 0.9
    assert json.loads((student / "config.json").read_text())["model_type"] == family
    assert command("export", "--model", student, "--output_dir", tmp_path / "onnx") == 0
    flags = ["--model", student, "--data_dir", data / "dev", "--output_dir", tmp_path / "evaluated"]
    assert command("evaluate", *flags) == 0
    check(student, tmp_path / "onnx", data, tmp_path, capsys)


@pytest.mark.slow
def test_a_distilbert_student_of_a_bert_teacher(tmp_path):
    """Of one vocabulary; the student, which has no segments, starts from its own weights."""
    problem = "single_label_classification"
    data = records(tmp_path, problem, encoder(tmp_path / "encoder", "bert"))
    teacher = taught(tmp_path, data, tmp_path / "encoder")
    start = encoder(tmp_path / "start", "distilbert", num_hidden_layers=1)
    student = distilled(tmp_path, data, teacher, "--load_gd_ckpt_path", start)
    assert metrics(teacher)["accuracy"] > 0.9 and metrics(student)["accuracy"] > 0.9
    assert json.loads((student / "config.json").read_text())["model_type"] == "distilbert"


def test_out_of_scope_by_a_threshold(teacher, tiny_text, vocabulary, tmp_path, capsys):
    """A model that knows no class for them finds rows out of scope by how sure it is."""
    lines = (tiny_text / "dev.tsv").read_text().splitlines()
    (tmp_path / "dev.tsv").write_text("\n".join([*lines, "the film and a movie\toos", "not\toos"]) + "\n")
    flags = ["--task_name", "custom", "--dev_file", tmp_path / "dev.tsv", "--labels", "no,yes", "--out_of_scope", "oos"]
    more = ["--tokenizer", vocabulary, "--output_dir", tmp_path / "records", "--max_seq_length", 12]
    assert command("prepare-task", *flags, *more) == 0
    measure = ["--model", teacher, "--data_dir", tmp_path / "records" / "dev", "--output_dir", tmp_path / "out"]

    def measured(*more) -> tuple[dict, list[list[str]]]:
        assert command("evaluate", *measure, *more) == 0
        rows = [line.split("\t") for line in (tmp_path / "out" / "predictions_dev.tsv").read_text().splitlines()[1:]]
        return json.loads((tmp_path / "out" / "metrics.json").read_text())["dev"], rows

    found, _ = measured()
    assert found["out_of_scope_recall"] == 0 and found["in_scope_accuracy"] > 0.9
    assert found["accuracy"] == pytest.approx(found["in_scope_accuracy"] * 50 / 52)
    scores = sorted(float(row[2]) for row in measured()[1])
    threshold = (scores[20] + scores[21]) / 2
    found, rows = measured("--threshold", threshold)
    assert [row[1] == "oos" for row in rows] == [float(row[2]) < threshold for row in rows]
    assert found["in_scope_accuracy"] == pytest.approx(np.mean([row[1] == row[3] for row in rows[:50]]))
    assert found["out_of_scope_recall"] == np.mean([row[1] == "oos" for row in rows[50:]])
    (line,) = predicted(capsys, "--model", teacher, "--threshold", 0.9999999, "the plot is good")
    assert line["label"] is None and line["scores"].keys() == {"no", "yes"}


def test_thresholds_and_models_that_do_not_fit_are_refused(data, teacher, tmp_path, capsys):
    flags = ["--model", teacher, "--data_dir", data / "dev"]
    assert command("evaluate", *flags, "--threshold", 0.5) == 2
    assert "has no label for rows out of scope; prepare the records with --out_of_scope" in capsys.readouterr().err
    (tmp_path / "a.csv").write_text("text,label\ngood film,0.5\nbad film,1\n")
    words = ["--task_name", "custom", "--problem_type", "regression", "--dev_file", tmp_path / "a.csv"]
    more = ["--tokenizer", teacher, "--output_dir", tmp_path / "records", "--max_seq_length", 12]
    assert command("prepare-task", *words, *more) == 0
    assert command("evaluate", "--model", teacher, "--data_dir", tmp_path / "records" / "dev") == 2
    error = capsys.readouterr().err
    assert "a model for single_label_classification; the labels of" in error and "are for regression" in error
    assert command("predict", "--model", teacher, "--aggregation", "simple", "good") == 2
    assert "--aggregation simple:" in capsys.readouterr().err


def shouted(split: str) -> str:
    """A file of classes, in capital letters below its header."""
    header, rows = text_of("single_label_classification", split).split("\n", 1)
    return f"{header}\n{rows.upper()}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights-sapiens-roberta/vh", "fixture-electra-random"])
def test_real_weights_from_fine_tuning_to_a_graph(name, shared, tmp_path, capsys):
    """A RoBERTa of proteins, whose tokens are letters, and an ELECTRA with its projection: no weight of them is lost."""
    problem, model = "single_label_classification", tmp_path / "encoder"
    shutil.copytree(shared / name, model, copy_function=shutil.copyfile)
    if "roberta" in name:
        (model / "merges.txt").write_text("#version: 0.2\n")
    data = records(tmp_path, problem, model, text=shouted)
    teacher = taught(tmp_path, data, model)
    shape = store.read_weights(teacher).config
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads")
    same = [word for size in sizes for word in (f"--{size}", getattr(shape, size))]
    last = f"{shape.num_hidden_layers - 2},{shape.num_hidden_layers - 1}"
    start = ("--init_from_teacher", last, "--layer_map", "last", "--num_hidden_layers", 2, "--learning_rate", 1e-3)
    student = distilled(tmp_path, data, teacher, *start, *same)
    assert metrics(teacher)["accuracy"] > 0.9 and metrics(student)["accuracy"] > 0.9
    assert command("export", "--model", student, "--output_dir", tmp_path / "onnx") == 0
    texts = ["THE FILM IS GOOD", "THE PLOT IS DULL"]
    (good, dull), theirs = (predicted(capsys, "--model", path, *texts) for path in (tmp_path / "onnx", student))
    assert (good["label"], dull["label"]) == ("YES", "NO")
    assert [row["score"] for row in theirs] == pytest.approx([good["score"], dull["score"]], abs=1e-4)


def test_a_teacher_is_judged_by_rows_of_its_classes(teacher, tiny_text, vocabulary, tmp_path):
    """Most of dev is out of scope, which it cannot say."""
    lines = (tiny_text / "dev.tsv").read_text().splitlines()
    (tmp_path / "dev.tsv").write_text("\n".join([*lines, *["the film and a movie\toos"] * 60]) + "\n")
    flags = ["--task_name", "custom", "--dev_file", tmp_path / "dev.tsv", "--labels", "no,yes", "--out_of_scope", "oos"]
    more = ["--tokenizer", vocabulary, "--output_dir", tmp_path / "records", "--max_seq_length", 12]
    assert command("prepare-task", *flags, *more) == 0
    said, rows = [], read_rows(tmp_path / "records" / "dev")
    check_teacher(store.build(store.read_weights(teacher)), rows, [12], allow_weak=False, say=said.append)
    assert re.search(r"accuracy (0\.9\d+|1\.0+) \(majority class or floor 0\.500000, 50 rows\)", said[0])
