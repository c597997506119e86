"""Chinese text, with a user's own vocabulary of characters: every character is a word of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from small import QUICK, command

from minddistill.data.records import read_rows
from minddistill.models import store
from minddistill.models.presets import preset
from minddistill.problems import IGNORED

NAMES, PLACES = ("王小明", "李雷", "韩梅"), ("北京", "上海", "天津")
CHARACTERS = sorted(set("".join((*NAMES, *PLACES, "我们在看见和去了的好坏电影"))))
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, "2008", "。", "##年"]


def sentences(count: int):
    """CLUENER's lines: somebody goes somewhere."""
    for index in range(count):
        name, place = NAMES[index % 3], PLACES[index // 3 % 3]
        text = f"{('我们看见', '')[index % 2]}{name}{('和我', '')[index // 2 % 2]}去了{place}。"
        spans = {"name": name, "address": place}
        label = {k: {m: [[text.index(m), text.index(m) + len(m) - 1]]} for k, m in spans.items()}
        yield {"text": text, "label": label}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """An encoder with the vocabulary, and records of CLUENER's files."""
    out = tmp_path_factory.mktemp("chinese")
    (out / "vocabulary").mkdir()
    (out / "vocabulary" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    config = preset("test-2l-32").with_(vocab_size=len(VOCABULARY), max_position_embeddings=24, initializer_range=0.1)
    options = {"tokenizer_from": out / "vocabulary", "command": "test", "parents": {}, "data": {}, "metrics": {}}
    store.save(out / "encoder", store.new(config, seed=1), **options)
    for split, count in (("train", 180), ("dev", 36)):
        lines = [json.dumps(row, ensure_ascii=False) for row in sentences(count)]
        (out / f"{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ["--task_name", "CLUENER", "--data_dir", out, "--tokenizer", out / "encoder", "--max_seq_length", 20]
    assert command("prepare-task", *flags, "--output_dir", out / "records") == 0
    return out


def test_each_character_is_a_piece_with_its_label(data):
    rows = read_rows(data / "records" / "dev", vocab_size=len(VOCABULARY))
    for index, line in enumerate(sentences(36)):
        pieces = [VOCABULARY[number] for number in rows.ids[index, 1 : rows.length[index] - 1]]
        assert pieces == list(line["text"])
    names = rows.meta["labels"]
    assert names == ["O", "B-address", "I-address", "B-name", "I-name"]
    tags = [names[int(label)] for label in rows.label[1] if label != IGNORED]
    assert tags == ["B-name", "I-name", "O", "O", "O", "O", "B-address", "I-address", "O"]


def test_texts_of_several_scripts_become_ids_of_the_users_vocabulary(data, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n我去了2008年的北京。,好\n电影 坏 film,坏\n", encoding="utf-8")
    flags = ["--task_name", "custom", "--train_file", tmp_path / "a.csv", "--tokenizer", data / "encoder"]
    assert command("prepare-task", *flags, "--output_dir", tmp_path / "out", "--max_seq_length", 16) == 0
    rows = read_rows(tmp_path / "out" / "train")
    told = [[VOCABULARY[number] for number in ids[:length]] for ids, length in zip(rows.ids, rows.length, strict=True)]
    # 年 stands apart though the vocabulary has it as a continuation only; what it has not is unknown.
    assert told[0] == ["[CLS]", *"我去了", "2008", "[UNK]", *"的北京。", "[SEP]"]
    assert told[1] == ["[CLS]", *"电影坏", "[UNK]", "[SEP]"]
    assert rows.meta["labels"] == ["坏", "好"]


@pytest.mark.slow
def test_chinese_entities_from_text_to_predictions(data, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    sets = ["--train_data_dir", data / "records" / "train", "--eval_data_dir", data / "records" / "dev"]
    flags = ["--model", data / "encoder", *sets, "--epoch_size", 12, "--learning_rate", 3e-3]
    assert command("finetune", *flags, "--output_dir", tmp_path / "run", *QUICK) == 0
    model = tmp_path / "run" / "best"
    assert json.loads((model / "minddistill.json").read_text())["metrics"]["entity_f1"] > 0.95
    assert command("export", "--model", model, "--output_dir", tmp_path / "onnx") == 0
    capsys.readouterr()
    text = "我们看见韩梅去了天津。"
    assert command("predict", "--model", tmp_path / "onnx", text) == 0
    found = json.loads(capsys.readouterr().out)["entities"]
    assert [(e["entity_group"], e["word"], e["start"], e["end"]) for e in found] == [
        ("name", "韩梅", 4, 6),
        ("address", "天津", 8, 10),
    ]
    assert np.mean([e["score"] for e in found]) > 0.5
