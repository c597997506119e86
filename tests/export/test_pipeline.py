"""Texts to labels and scores, in Python and on the command line."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small import command

import minddistill
from minddistill.export import pipeline as module

pytest.importorskip("onnxruntime")
TEXTS = ["the film is good", "a dull plot", "great", "the acting was very bad and the plot is poor"]


@pytest.fixture(scope="module")
def exported(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "onnx"
    assert command("export", "--model", teacher, "--output_dir", out) == 0
    return out


@pytest.fixture(scope="module")
def classify(exported):
    return minddistill.pipeline(exported, threads=1, batch_size=2)


def test_answers_are_those_of_transformers(teacher, classify):
    transformers = pytest.importorskip("transformers", reason="compares with transformers where it is installed")
    pytest.importorskip("torch", reason="compares with PyTorch where it is installed")
    theirs = transformers.pipeline("text-classification", str(teacher))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    calls = [
        (TEXTS[0], {}),
        (TEXTS, {}),
        (TEXTS, {"top_k": None}),
        (TEXTS[0], {"top_k": 1}),
        (TEXTS, {"top_k": 2}),
        (pair, {}),
        ([pair, pair], {}),
    ]
    for inputs, options in calls:
        found, expected = classify(inputs, **options), theirs(inputs, **options)
        assert _labels(found) == _labels(expected), (inputs, options)
        np.testing.assert_allclose(_scores(found), _scores(expected), atol=1e-4)


def _labels(value):
    """The structure with its scores taken out."""
    if isinstance(value, list):
        return [_labels(part) for part in value]
    return value["label"]


def _scores(value) -> list[float]:
    return [s for part in value for s in _scores(part)] if isinstance(value, list) else [value["score"]]


def test_order_is_kept_over_windows_and_batches(classify, monkeypatch):
    many = [f"{text} {'very ' * (index % 5)}good" for index, text in enumerate(TEXTS * 5)]
    alone = [classify(text)[0]["score"] for text in many]
    monkeypatch.setattr(module, "WINDOW", 7)
    np.testing.assert_allclose([row["score"] for row in classify(many)], alone, atol=1e-5)
    assert classify([]) == []


def test_mindspore_and_onnx_directories_answer_alike(teacher, classify):
    found = minddistill.pipeline(teacher, threads=1)(TEXTS)
    np.testing.assert_allclose(_scores(found), _scores(classify(TEXTS)), atol=1e-5)
    assert _labels(found) == _labels(classify(TEXTS))


def printed(capsys, *argv) -> list[dict]:
    assert command("predict", *argv) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_texts_pairs_files_and_standard_input(exported, classify, tmp_path, capsys, monkeypatch):
    lines = printed(capsys, "--model", exported, *TEXTS[:2])
    best = classify(TEXTS[:2])
    assert [line["text"] for line in lines] == TEXTS[:2]
    assert [line["label"] for line in lines] == [row["label"] for row in best]
    assert lines[0]["scores"].keys() == {"no", "yes"} and sum(lines[0]["scores"].values()) == pytest.approx(1)
    # A pair as words, as a line of standard input, and as a row of a file.
    pair = printed(capsys, "--model", exported, "--pairs", "true", *TEXTS[:2])
    assert pair[0]["text_pair"] == TEXTS[1] and pair[0]["score"] != lines[0]["score"]
    stdin = io.TextIOWrapper(io.BytesIO("\t".join(TEXTS[:2]).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert printed(capsys, "--model", exported, "--pairs", "true") == pair
    (tmp_path / "pairs.tsv").write_text("a\tb\n" + "\t".join(TEXTS[:2]) + "\n")
    columns = ["--text_column", "a", "--text_pair_column", "b"]
    assert printed(capsys, "--model", exported, "--file", tmp_path / "pairs.tsv", *columns) == pair
    # An empty line is a text too, so that lines in and out go together.
    (tmp_path / "texts.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n")
    out = tmp_path / "out.jsonl"
    assert printed(capsys, "--model", exported, "--file", tmp_path / "texts.txt", "--output_file", out) == []
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [TEXTS[0], "", TEXTS[1]]
    (tmp_path / "texts.csv").write_text(f"number,text\n1,{TEXTS[0]}\n2,\n3,{TEXTS[1]}\n")
    table = printed(capsys, "--model", exported, "--file", tmp_path / "texts.csv")
    assert table == [json.loads(line) for line in out.read_text().splitlines()]


def test_what_is_no_file_is_not_replaced_by_the_output(exported, tmp_path, capsys):
    flags = ["--model", exported, "--output_file"]
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    read: list[str] = []
    reader.start()
    assert command("predict", *flags, pipe, "good") == 0
    reader.join(10)
    assert json.loads(read[0])["text"] == "good" and pipe.is_fifo()
    link.symlink_to(file)
    assert command("predict", *flags, link, "good") == 0
    assert link.is_symlink() and json.loads(file.read_text())["text"] == "good"
    assert command("predict", *flags, tmp_path, "good") == 2
    assert f"--output_file {tmp_path}: is a directory" in capsys.readouterr().err


def test_mistakes_are_named(exported, tmp_path, capsys):
    def told(*flags) -> str:
        assert command("predict", *flags) == 2
        return capsys.readouterr().err

    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\xfe\n")
    assert "bad.txt:2: not UTF-8" in told("--model", exported, "--file", tmp_path / "bad.txt")
    (tmp_path / "one.txt").write_text("no tab\n")
    found = told("--model", exported, "--file", tmp_path / "one.txt", "--pairs", "true")
    assert "one.txt:1: 1 parts between tabs" in found
    assert "texts stand on the command line too" in told("--model", exported, "--file", "x.txt", "good")
    assert "batch_size is 0" in told("--model", exported, "--batch_size", "0", "good")
    assert "not UTF-8; expected text" in told("--model", exported, "a\udcff")
    (tmp_path / "reviews.csv").write_text("review\ngood\n")
    found = told("--model", exported, "--file", tmp_path / "reviews.csv")
    assert "no column 'text'; the file has 'review'; --text_column and the like name its own" in found
    broken = shutil.copytree(exported, tmp_path / "broken")
    with open(broken / "model.onnx", "r+b") as graph:
        graph.seek(5000)
        graph.write(b"\0\1\2\3")
    assert "model.onnx: damaged or changed (checksum)" in told("--model", broken, "good")


def test_a_host_without_mindspore_is_told_what_it_can_run(exported, teacher, tmp_path):
    code = (
        "import sys; sys.modules['mindspore'] = None\n"
        "from minddistill.__main__ import run_command; sys.exit(run_command('predict', ['--model', *sys.argv[1:]]))"
    )

    def run(*words):
        return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)

    assert json.loads(run(exported, "good").stdout)["label"]
    for model, told in (
        (tmp_path / "absent", "no such model"),
        (teacher, "MindSpore, which runs other models, is not"),
    ):
        found = run(model, "good")
        assert found.returncode == 2 and told in found.stderr and found.stderr.count("\n") == 1


def test_whoever_stops_reading_is_not_told_of_it(exported):
    words = [sys.executable, "-m", "minddistill", "predict", "--model", str(exported), *["good"] * 3000]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == "" and run.wait() == 141


def test_several_threads_share_a_pipeline(exported):
    classify = minddistill.pipeline(exported, threads=1, batch_size=2)
    texts = [f"{'very ' * (index % 7)}good" for index in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: classify(text)[0]["score"], texts))
    np.testing.assert_allclose(found, [row["score"] for row in classify(texts)], atol=1e-5)


def test_an_onnx_model_answers_without_mindspore_or_its_trainer(exported):
    code = (
        "import sys, minddistill; print(minddistill.pipeline(sys.argv[1])('good')); print('mindspore' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, exported], capture_output=True, text=True, env=os.environ.copy())
    assert run.stdout.splitlines()[-1] == "False", run.stdout + run.stderr
    script = [sys.executable, "-X", "importtime", "-m", "minddistill", "predict", "--model", exported, "good"]
    run = subprocess.run(script, capture_output=True, text=True, env=os.environ.copy())
    assert json.loads(run.stdout)["label"] and "mindspore" not in run.stderr
