"""A few hundred real sentences and the real encoder, from text to a distilled student."""

import json

import pytest

from minddistill.__main__ import run_command
from minddistill.recipes.quickstart import encoder_directory

pytestmark = pytest.mark.slow


def test_sst2_in_small(shared, tmp_path):
    encoder = encoder_directory()
    text = tmp_path / "text"
    text.mkdir()
    for split, count in (("train", 1280), ("dev", 200)):
        lines = (shared / "glue" / "SST-2" / f"{split}.tsv").read_text().splitlines()[: count + 1]
        (text / f"{split}.tsv").write_text("\n".join(lines) + "\n")

    def command(name, *argv):
        assert run_command(name, [str(word) for word in argv]) == 0

    data = tmp_path / "data"
    command(
        "prepare-task",
        *("--task_name", "SST-2", "--data_dir", text, "--tokenizer", encoder),
        *("--output_dir", data, "--max_seq_length", 32),
    )
    sets = ["--train_data_dir", data / "train", "--eval_data_dir", data / "dev", "--buckets", "off"]
    command(
        "finetune",
        *("--model", encoder, *sets, "--epoch_size", 2, "--batch_size", 16),
        *("--learning_rate", 8e-5, "--output_dir", tmp_path / "teacher"),
    )
    command(
        "task-distill",
        *("--task_name", "SST-2", "--load_teacher_ckpt_path", tmp_path / "teacher" / "best", *sets),
        *("--student", "minilm-l3", "--init_from_teacher", "1,3,5", "--learning_rate", 1e-4, "--batch_size", 16),
        *("--td_phase1_epoch_size", 1, "--td_phase2_epoch_size", 1, "--output_dir", tmp_path / "student"),
    )
    found = {
        name: json.loads((tmp_path / name / "best" / "minddistill.json").read_text())["metrics"]["accuracy"]
        for name in ("teacher", "student")
    }
    assert found["teacher"] > 0.7 and found["student"] > 0.9 * found["teacher"], found
