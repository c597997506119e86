"""The quick start, with an encoder and an example that are tiny."""

import json
import shutil

import pytest
from small import command

from minddistill.files import write_json
from minddistill.models import store


@pytest.fixture
def example(tiny_text, tmp_path):
    words = {"text": "sentence", "no": "negative", "yes": "positive"}
    for split in ("train", "dev", "test"):
        rows = [line.split("\t") for line in (tiny_text / f"{split}.tsv").read_text().splitlines()]
        lines = ["\t".join([words.get(text, text), words.get(label, label)]) for text, label in rows]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def encoder(teacher, tmp_path):
    """The tiny teacher under the example's labels: a few steps are too few for one that knows nothing."""
    directory = shutil.copytree(teacher, tmp_path / "encoder")
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | {"id2label": {"0": "negative", "1": "positive"}})
    return directory


@pytest.mark.slow
def test_quickstart_leaves_what_it_says_and_goes_on(example, encoder, tmp_path, capsys):
    out = tmp_path / "quickstart"
    flags = ["--data_dir", example, "--encoder", encoder, "--init_layers", "1,3", "--output_dir", out]
    assert command("quickstart", *flags) == 0
    assert "report.html" in capsys.readouterr().out and (out / "report.html").is_file()
    summary = json.loads((out / "summary.json").read_text())
    models = {name: store.read_weights(out / name).config for name in ("teacher", "student")}
    assert {name: config.num_hidden_layers for name, config in models.items()} == {"teacher": 4, "student": 2}
    for name in models:
        found = json.loads((out / "evaluation" / name / "metrics.json").read_text())
        assert found["test"]["accuracy"] == summary[f"{name}_accuracy"] > 0.8
        assert summary[f"{name}_parameters"] == models[name].parameters
    assert summary["retention"] == summary["student_accuracy"] / summary["teacher_accuracy"]
    assert all((out / "data" / split / "meta.json").is_file() for split in ("train", "dev", "test"))
    before = [(out / name / "model.safetensors").read_bytes() for name in models]
    assert command("quickstart", *flags) == 0
    again = capsys.readouterr().out
    assert again.count("finished before") >= 4  # records, teacher, and both phases
    assert before == [(out / name / "model.safetensors").read_bytes() for name in models]
