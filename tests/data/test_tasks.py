"""Labels of every kind of problem, from files to `label_ids`."""

import json

import numpy as np
import pytest
from small import command

from minddistill.data.records import read_rows
from minddistill.data.tasks import Task, encode_label, label_table
from minddistill.data.tokenizer import load_tokenizer
from minddistill.data.tokens import read_sentences, word_labels
from minddistill.problems import IGNORED, MULTI, TOKEN

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
Peter NNP B-NP I-PER
Blackburn NNP I-NP I-PER
Brussels NNP B-NP B-LOC

the DT O
"""


def test_conll_becomes_iob2_and_texts(tmp_path):
    (tmp_path / "train.txt").write_text(CONLL + "film O O\n")
    first, second = read_sentences(tmp_path / "train.txt")
    assert first.text == "EU rejects Peter Blackburn Brussels" and first.words == (0, 3, 11, 17, 27)
    assert first.label == "B-ORG O B-PER I-PER B-LOC"
    assert (second.text, second.label) == ("the film", "O O")
    (tmp_path / "test.txt").write_text("EU\nrejects\n")
    (untagged,) = read_sentences(tmp_path / "test.txt", labelled=False)
    assert (untagged.text, untagged.label) == ("EU rejects", None)


def test_cluener_spans_become_tags_of_characters_and_words(tmp_path):
    row = {"text": "在NBA2K看 Kobe", "label": {"game": {"NBA2K": [[1, 5]]}, "name": {"Kobe": [[8, 11]]}}}
    cut = {"text": "在NBA2K看", "label": {"organization": {"NBA": [[1, 3]]}}}
    inner = {"京": [[1, 1]]}  # within a longer one, which has the tags
    pair = {"text": "北京上海", "label": {"short": inner, "city": {"北京": [[0, 1]], "上海": [[2, 3]]}}}
    lines = [json.dumps(value, ensure_ascii=False) for value in (row, cut, pair, {"id": 0, "text": "在"})]
    (tmp_path / "dev.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = list(read_sentences(tmp_path / "dev.json", labelled=False))
    assert [example.words for example in found] == [(0, 1, 6, 8), (0, 1, 4, 6), (0, 1, 2, 3), (0,)]
    assert [example.label for example in found] == [
        "O B-game O B-name",
        "O B-organization O O",
        "B-city I-city B-city I-city",
        None,
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "EU\n", "a.txt:1: one column; expected a word and"),
        ("a.txt", "EU S-ORG\n", "a.txt:1: tag 'S-ORG'; expected O, B-TYPE or I-TYPE"),
        ("a.json", '{"text": "ab", "label": {"x": {"a": [[1, 1]]}}}\n', "a.json:1: 'a' is not at [1, 1]"),
        ("a.json", '{"text": "ab", "label": {"x": [1]}}\n', "a.json:1: label is {'x': [1]}; expected {type:"),
        ("a.json", '{"label": {}}\n', "a.json:1: no 'text'"),
    ],
)
def test_mistakes_in_token_files_are_named(name, text, message, tmp_path, vocabulary, capsys):
    (tmp_path / name).write_text(text)
    flags = ["--task_name", "custom", "--problem_type", "token_classification", "--train_file", tmp_path / name]
    assert command("prepare-task", *flags, "--tokenizer", vocabulary, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_the_first_piece_of_a_word_has_its_label(tmp_path, vocabulary):
    """With a WordPiece vocabulary that cuts words, and a row that is too long."""
    (tmp_path / "tokenizer").mkdir()
    entries = (vocabulary / "vocab.txt").read_text().split() + ["pe", "##ter", "##s"]
    (tmp_path / "tokenizer" / "vocab.txt").write_text("\n".join(entries) + "\n")
    (tmp_path / "train.txt").write_text("Peters B-PER\nthe O\npeter B-PER\nfilm I-PER\n\nfilm B-ART\n")
    flags = ["--task_name", "custom", "--problem_type", "token_classification", "--train_file", tmp_path / "train.txt"]
    more = ["--tokenizer", tmp_path / "tokenizer", "--output_dir", tmp_path / "out", "--max_seq_length", 8]
    assert command("prepare-task", *flags, *more) == 0
    rows = read_rows(tmp_path / "out" / "train")
    assert rows.meta["labels"] == ["O", "B-ART", "I-ART", "B-PER", "I-PER"] and rows.problem == TOKEN
    rows.check_classes(5)
    tokens = [load_tokenizer(tmp_path / "tokenizer").id_to_token(number) for number in rows.ids[0]]
    assert tokens == ["[CLS]", "pe", "##ter", "##s", "the", "pe", "##ter", "[SEP]"]  # "film" is cut off
    assert rows.label[0].tolist() == [IGNORED, 3, IGNORED, IGNORED, 0, 3, IGNORED, IGNORED]
    assert rows.label[1].tolist() == [IGNORED, 1] + [IGNORED] * 6
    assert rows.answers.tolist() == [3, 0, 3, 1]
    assert json.loads((tmp_path / "out" / "train" / "schema.json").read_text())["columns"]["label_ids"]["shape"] == [8]


def test_byte_level_pieces_have_the_labels_of_words(tmp_path, shared):
    (tmp_path / "train.txt").write_text("unbelievable B-X\n\U0001f600 O\nfilm I-X\n")
    flags = ["--task_name", "custom", "--problem_type", "token_classification", "--train_file", tmp_path / "train.txt"]
    more = ["--tokenizer", shared / "tokenizer-roberta-base", "--output_dir", tmp_path / "out", "--max_seq_length", 16]
    assert command("prepare-task", *flags, *more) == 0
    rows = read_rows(tmp_path / "out" / "train")
    tokenizer = load_tokenizer(shared / "tokenizer-roberta-base")
    marked = [tokenizer.id_to_token(rows.ids[0, place]) for place in np.flatnonzero(rows.label[0] != IGNORED)]
    assert marked[0] == "un" and len(marked) == 3 and marked[2] == "\u0120film"
    assert rows.label[0][rows.label[0] != IGNORED].tolist() == [1, 0, 1]  # I after O begins an entity


def test_labels_of_a_multi_label_row():
    task = Task("custom", problem=MULTI, separator=";")
    table = label_table(task, ["b; a", "", "c"])
    assert list(table) == ["a", "b", "c"]
    assert encode_label(task, table, "c;a", "f: row 1") == [1, 0, 1]
    assert encode_label(task, table, "", "f: row 1") == encode_label(task, table, None, "f: row 1") == [0, 0, 0]


def custom(tmp_path, vocabulary, capsys, *flags) -> str:
    """What `prepare-task` says of a custom task; its last line."""
    words = ["--tokenizer", vocabulary, "--output_dir", tmp_path / "out", "--max_seq_length", 8]
    command("prepare-task", *words, *flags)
    told = capsys.readouterr()
    return (told.err or told.out).strip().splitlines()[-1]


def test_a_custom_task_in_one_yaml(tmp_path, vocabulary, capsys):
    """Columns, labels, problem type and metrics of a user's CSV."""
    (tmp_path / "a.csv").write_text(
        'id,sentence,tags\n1,"the film, is good",fun;plot\n2,a dull film,\n3,bad plot,plot\n'
    )
    (tmp_path / "task.yaml").write_text(
        f"task_name: custom\ntrain_file: {tmp_path / 'a.csv'}\ntext_column: sentence\nlabel_column: tags\n"
        "labels: plot,fun\nproblem_type: multi_label_classification\nlabel_separator: ;\nmetrics: macro_f1,accuracy\n"
    )
    assert custom(tmp_path, vocabulary, capsys, "--config", tmp_path / "task.yaml").startswith("train: 3 rows")
    rows = read_rows(tmp_path / "out" / "train")
    rows.check_classes(2)
    assert rows.label.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert rows.meta["labels"] == ["plot", "fun"] and rows.meta["metrics"] == ["macro_f1", "accuracy"]
    assert rows.meta["problem_type"] == "multi_label_classification"


def test_a_dash_is_a_label_but_for_mnli(tmp_path, vocabulary, capsys):
    (tmp_path / "a.csv").write_text("text,label\ngood film,+\nbad film,-\na plot,-\n")
    flags = ["--task_name", "custom", "--train_file", tmp_path / "a.csv"]
    assert custom(tmp_path, vocabulary, capsys, *flags).startswith("train: 3 rows")
    assert read_rows(tmp_path / "out" / "train").meta["labels"] == ["+", "-"]


def test_rows_out_of_scope_are_a_class_where_training_rows_have_it(tmp_path, vocabulary, capsys):
    (tmp_path / "in.csv").write_text("text,label\ngood film,play\nbad film,book\n")
    (tmp_path / "all.csv").write_text("text,label\ngood film,play\na plot,oos\nbad film,book\n")
    flags = ["--task_name", "custom", "--out_of_scope", "oos", "--dev_file", tmp_path / "all.csv"]
    for name, labels, found in (
        ("in", ["book", "play"], [1, 2, 0]),
        ("all", ["book", "oos", "play"], [2, 1, 0]),
    ):
        out = ["--train_file", tmp_path / f"{name}.csv", "--output_dir", tmp_path / name]
        assert custom(tmp_path, vocabulary, capsys, *flags, *out).startswith("dev: 3 rows")
        rows = read_rows(tmp_path / name / "dev")
        rows.check_classes(len(labels))
        assert rows.meta["labels"] == labels and rows.label.tolist() == found
        assert rows.meta["metrics"] == ["accuracy", "f1", "in_scope_accuracy", "out_of_scope_recall"]
    with pytest.raises(Exception, match="label_ids is 2; expected a class from 0 to 1"):
        read_rows(tmp_path / "in" / "dev").check_classes(2, learnt=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task_name", "SNIPS", "--metrics", "f1"], "--metrics is for --task_name custom; SNIPS has its own"),
        (["--task_name", "custom", "--metrics", "f2"], "--metrics f2: not a metric of single_label_classification"),
        (
            ["--task_name", "custom", "--problem_type", "regression", "--out_of_scope", "x"],
            "--out_of_scope x: not of regression",
        ),
        (
            ["--task_name", "custom", "--label_separator", ";"],
            "--label_separator ;: not of single_label_classification",
        ),
        (
            ["--task_name", "custom", "--problem_type", "multi_label_classification", "--label_separator", " "],
            "--label_separator is empty",
        ),
        (
            ["--task_name", "custom", "--problem_type", "token_classification", "--text_column", "x"],
            "--text_column x: not of token_classification",
        ),
        (["--task_name", "custom", "--problem_type", "ranking"], "--problem_type"),
        (
            ["--task_name", "custom", "--problem_type", "regression", "--labels", "a,b"],
            "--labels a,b: not of regression",
        ),
        (["--task_name", "custom", "--metrics", "out_of_scope_recall"], "out_of_scope_recall: needs --out_of_scope"),
        (["--task_name", "custom"], "holds the files of a named task"),
    ],
)
def test_flags_that_contradict_each_other(flags, message, tmp_path, vocabulary, capsys):
    assert message in custom(tmp_path, vocabulary, capsys, *flags, "--data_dir", tmp_path)


def test_labels_that_do_not_fit_the_problem_are_refused(tmp_path, vocabulary, capsys):
    (tmp_path / "a.csv").write_text("text,label\ngood film,a|b\nbad film,c\n")
    flags = [
        "--task_name",
        "custom",
        "--problem_type",
        "multi_label_classification",
        "--train_file",
        tmp_path / "a.csv",
    ]
    assert "rows of" in custom(tmp_path, vocabulary, capsys, *flags)
    with pytest.raises(Exception, match=r"label_ids has shape \[3\] a row; expected \[4\]"):
        read_rows(tmp_path / "out" / "train").check_classes(4)
    meta = tmp_path / "out" / "train" / "meta.json"
    meta.write_text(meta.read_text().replace("multi_label_classification", "ranking"))
    with pytest.raises(Exception, match="problem_type is 'ranking'; expected one of"):
        read_rows(tmp_path / "out" / "train")


def test_words_of_conll_may_hold_other_blanks_than_columns(tmp_path):
    (tmp_path / "x.txt").write_text("New\u00a0York  \tB-LOC\n\u00a0 O\nfilm O \n")
    (found,) = read_sentences(tmp_path / "x.txt")
    assert found.text == "New\u00a0York \u00a0 film" and found.label == "B-LOC O O"


def test_a_word_has_its_label_though_the_tokenizer_drops_its_first_mark(vocabulary):
    """A space of no width before "film", and a soft hyphen inside it; the third word is no more than such a mark."""
    text = "the \u200bfi\u00adlm \u200b good"
    words = (0, 4, 11, 13)
    encoding = load_tokenizer(vocabulary).encode(text)
    assert encoding.tokens == ["[CLS]", "the", "film", "good", "[SEP]"]
    assert word_labels(text, encoding, words, [7, 8, 9, 6], 6) == [IGNORED, 7, 8, 6, IGNORED, IGNORED]


def test_logits_of_any_row_are_all_rows_logits(tmp_path, vocabulary, capsys):
    rows = ['{"text": "good film", "label": "a"}', '{"text": "bad film", "label": "b", "logits": {"a": 1, "b": 2}}']
    for number in (0, 1):
        file = tmp_path / f"{number}.jsonl"
        file.write_text("\n".join(rows[:: 1 - 2 * number]) + "\n")
        flags = ["--task_name", "custom", "--train_file", file, "--tokenizer", vocabulary, "--workers", 1]
        assert command("prepare-task", *flags, "--output_dir", tmp_path / str(number)) == 2
        assert "logits" in capsys.readouterr().err
