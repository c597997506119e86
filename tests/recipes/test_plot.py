"""Figures of a real run and of real models, as files; and what is asked for wrongly."""

import pytest
from small import command

from minddistill.errors import UserError
from minddistill.recipes.common import short_names


def drawn(out, *flags):
    assert command("plot", *flags, "--output_dir", out) == 0
    for file in out.glob("*.svg"):
        assert file.read_text().rstrip().endswith("</svg>")
    return {file.stem for file in out.glob("*.svg")} & {file.stem for file in out.glob("*.png")}


def test_every_kind_is_drawn(teacher, tiny_encoder, tmp_path):
    found = drawn(tmp_path / "curves", "--kind", "curves", "--run_dir", teacher.parent)
    assert found == {"loss", "terms_of_the_loss", "dev_metrics", "learning_rate", "loss_scale", "speed"}
    assert drawn(tmp_path / "w", "--kind", "weights", "--models", tiny_encoder, teacher) == {"weights"}
    assert "layers.3" not in (tmp_path / "w" / "weights.svg").read_text()
    assert "3 query" in (tmp_path / "w" / "weights.svg").read_text()
    assert drawn(tmp_path / "s", "--kind", "sparsity", "--models", tiny_encoder, teacher) == {"sparsity"}
    pair = ["--models", teacher, teacher.parent / "last", "--text", "the film is not good", "--head", 1]
    assert drawn(tmp_path / "a", "--kind", "attention", *pair) == {"attention"}
    text = (tmp_path / "a" / "attention.svg").read_text()
    for words in ("teacher, layer 3", "student, layer 3", "[CLS]", ">film<", "head 1"):
        assert words in text


def test_wrong_requests_end_in_one_line(teacher, tiny_encoder, tmp_path, capsys):
    pair = ["--models", teacher, tiny_encoder]
    for flags, message in (
        (["--kind", "pie"], "--kind"),
        (["--kind", "curves", "--run_dir", tmp_path], "no metrics.jsonl in it"),
        (["--kind", "weights", "--models", teacher], "--models names 1 directories; expected 2"),
        (["--kind", "sparsity"], "--models is empty"),
        (["--kind", "attention", *pair], "--text is empty"),
        (["--kind", "attention", *pair, "--text", "film", "--head", 99], "--head 99"),
        (["--kind", "attention", *pair, "--text", "film", "--layer_map", "1,2"], "--layer_map 1,2"),
    ):
        assert command("plot", *flags, "--output_dir", tmp_path / "out") == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_names_are_the_shortest_that_differ():
    assert short_names(["runs/a", "b"]) == ["a", "b"]
    assert short_names(["runs/teacher/best", "runs/student/best"]) == ["teacher", "student"]
    assert short_names(["a/x/best", "b/x/best", "b/y/best"]) == ["a/x", "b/x", "b/y"]
    assert short_names(["onnx", "runs/onnx"]) == ["onnx", "runs/onnx"]
    with pytest.raises(UserError, match="one of them twice"):
        short_names(["a/b", "a/b/"])
