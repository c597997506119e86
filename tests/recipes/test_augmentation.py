"""Augmentation and the masked-LM head it needs, from commands to records."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small
import spacy
from small import QUICK, command
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from minddistill.data import augment as augment_data
from minddistill.data import records
from minddistill.data.loader import MaskedLoader
from minddistill.data.tasks import TASKS, Example
from minddistill.data.tokenizer import load_tokenizer
from minddistill.files import write_json
from minddistill.models import store
from minddistill.recipes import augment, likely_words
from minddistill.recipes.likely_words import LikelyWords


@pytest.fixture
def words(tiny_text, tmp_path):
    return ["--task_name", "custom", "--train_file", tiny_text / "train.tsv", "--max_seq_length", "12"] + [
        *("--output_dir", tmp_path / "augmented", "--times", "4")
    ]


def texts(directory, encoder):
    """Text and label of every row."""
    tokenizer, rows = load_tokenizer(encoder), records.read_rows(directory)
    lines = [tokenizer.decode(ids[:n].tolist()) for ids, n in zip(rows.ids, rows.length, strict=True)]
    return lines, [rows.meta["labels"][int(label)] for label in rows.label]


def test_masks_change_by_epoch_and_count_once(data):
    rows = records.read_rows(data / "train", labelled=False)
    options = {"mask": 4, "special": {0, 2, 3, 4}, "vocabulary": 24, "probability": 0.3, "seed": 1}
    whole = MaskedLoader(rows, batch_size=32, **options)
    planned = next(planned for planned in whole.plan(0) if planned.real == 32)
    first, again, next_ = (whole.arrays(planned, epoch) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first["input_ids"], again["input_ids"])
    assert (first["input_ids"] != next_["input_ids"]).any()
    assert first["masked"] == first["masked_lm_weights"].sum() > 0
    plain = whole.batch(planned)["input_ids"]
    for row in range(32):
        count = int(first["masked_lm_weights"][row].sum())
        where = first["masked_lm_positions"][row, :count]
        np.testing.assert_array_equal(plain[row, where], first["masked_lm_ids"][row, :count])
        untouched = np.setdiff1d(np.arange(plain.shape[1]), where)
        np.testing.assert_array_equal(plain[row, untouched], first["input_ids"][row, untouched])
    halves = [MaskedLoader(rows, batch_size=16, rank=rank, size=2, **options).arrays(planned, 0) for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([half["input_ids"] for half in halves]), first["input_ids"])
    assert halves[0]["masked"] == pytest.approx(first["masked"] / 2)
    short = next(planned for planned in whole.plan(0) if planned.real < 32)
    last = whole.arrays(short, 0)
    assert last["masked_lm_weights"][short.real :].sum() == 0 < last["masked"] == last["masked_lm_weights"].sum()


def test_head_is_trained_and_the_encoder_kept(mlm, data, tiny_encoder, tmp_path):
    flags = ["--model", tiny_encoder, "--data_dir", data / "train", "--train_steps", "3", "--output_dir", tmp_path]
    assert command("pretrain-mlm", *flags, *QUICK) == 0
    before, after = store.read_weights(tiny_encoder).values, store.read_weights(tmp_path / "last").values
    kept = [path for path in after if path.startswith("encoder.")]
    assert all(np.array_equal(before[path], after[path]) for path in kept) and len(kept) > 20
    assert np.abs(after["mlm.bias"]).max() > 0 and "mlm.transform.weight" in after


def test_rows_are_augmented_behind_their_original(words, mlm, tiny_encoder, tiny_text, tmp_path, monkeypatch):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("film 1 0\nmovie 0.9 0.1\nplot 0 1\nacting 0.1 0.9\n")
    flags = [*words, "--mlm", mlm, "--glove", vectors, "--candidates", "5", "--batch_size", "32"]
    monkeypatch.setattr(augment, "_ROWS_A_SHARD", 100)
    assert command("augment", *flags) == 0
    out = tmp_path / "augmented"
    lines, labels = texts(out, tiny_encoder)
    source = [line.split("\t") for line in (tiny_text / "train.tsv").read_text().splitlines()[1:]]
    meta = records.read_rows(out).meta
    assert meta["augmented_from"] == 240 and len(lines) == meta["rows"] > 400
    place = -1
    for text, label in source:  # in their order, each with its label
        place = lines.index(" ".join(text.split()), place + 1)
        assert labels[place] == label
    # A row stands behind the one it was drawn from: as long, with its label, and equal in all stop words.
    original = [i for i, line in enumerate(lines) if [line, labels[i]] in [[" ".join(t.split()), y] for t, y in source]]
    for i in set(range(len(lines))) - set(original):
        parent = max(j for j in original if j < i)
        pairs = list(zip(lines[i].split(), lines[parent].split(), strict=True))
        assert labels[i] == labels[parent] and any(new != old for new, old in pairs)
        assert all(new == old for new, old in pairs if old in ("the", "is", "a", "was"))
    bytes_ = {file.name: file.read_bytes() for file in out.glob("*.tfrecord")}
    assert len(bytes_) == 3
    # Killed after two shards, it goes on to the same bytes.
    (out / "meta.json").unlink()
    (out / "train-00001-of-00003.tfrecord").unlink()
    (out / ".work").mkdir()
    records.write_json(out / ".work/plan.json", {"plan": meta["plan"], "workers": 1})
    assert command("augment", *flags) == 0
    assert {file.name: file.read_bytes() for file in out.glob("*.tfrecord")} == bytes_
    assert command("augment", *flags, "--seed", "7") == 2  # another run's


def test_words_are_asked_in_int8(words, mlm, tmp_path):
    flags, lines = [*words, "--mlm", mlm, "--candidates", "3", "--dataset_type", "jsonl"], {}
    for kind in ("float32", "int8"):
        assert command("augment", *flags, "--compute_type", kind, "--output_dir", tmp_path / kind) == 0
        files = (tmp_path / kind).glob("*.jsonl")
        lines[kind] = {line for file in files for line in file.read_text().splitlines()}
    shared = lines["float32"] & lines["int8"]
    assert len(lines["int8"]) > 60 and len(shared) > 0.8 * len(lines["int8"])
    more = ["--compute_type", "int8", "--batch_size", "8", "--output_dir", tmp_path / "int8"]
    assert command("augment", *flags, *more) == 2  # rounds differently


def test_text_is_augmented_as_records_are(words, vocabulary, tmp_path):
    """As text, for students of another tokenizer; prepared, it is the records that are written at once."""
    flags = [*words, "--method", "mask", "--tokenizer", vocabulary, "--p_mask", "0.5"]
    assert command("augment", *flags) == 0
    text = tmp_path / "text"
    assert command("augment", *flags, "--dataset_type", "jsonl", "--output_dir", text) == 0
    again = ["--task_name", "custom", "--train_file", text, "--max_seq_length", "12", "--tokenizer", vocabulary]
    assert command("prepare-task", *again, "--output_dir", tmp_path / "prepared") == 0
    one, other = records.read_rows(tmp_path / "augmented"), records.read_rows(tmp_path / "prepared" / "train")
    assert one.meta["rows"] == other.meta["rows"] > 400
    assert one.fingerprint() == other.fingerprint() and (one.label == other.label).all()


def test_pairs_keep_the_field_that_is_not_replaced(tiny_encoder, tmp_path):
    (tmp_path / "pairs.tsv").write_text("a\tb\tlabel\ngood film\tbad plot\tyes\ndull movie\tgreat acting\tno\n")
    vectors = tmp_path / "vectors.txt"
    vectors.write_text(
        "good 1 0\ngreat 1 0.1\nbad 0 1\npoor 0.1 1\nfilm 1 1\nmovie 1 0.9\nplot 2 1\nacting 2 1.1\ndull -1 0\n"
    )
    flags = ["--task_name", "custom", "--train_file", tmp_path / "pairs.tsv", "--text_column", "a"]
    flags += ["--text_pair_column", "b", "--tokenizer", tiny_encoder, "--glove", vectors, "--p_replace", "1"]
    assert command("augment", *flags, "--candidates", "1", "--times", "1", "--output_dir", tmp_path / "out") == 0
    rows = records.read_rows(tmp_path / "out")
    tokenizer = load_tokenizer(tiny_encoder)
    found = [
        (tokenizer.decode(ids[:second].tolist()), tokenizer.decode(ids[second:n].tolist()))
        for ids, second, n in zip(rows.ids, rows.second, rows.length, strict=True)
    ]
    assert found[:3] == [("good film", "bad plot"), ("great movie", "bad plot"), ("good film", "poor acting")]


def test_masks_and_a_teacher_that_must_be_convinced(words, teacher, tiny_encoder, tmp_path, capsys):
    flags = [*words, "--method", "mask", "--tokenizer", tiny_encoder, "--p_mask", "0.5"]
    assert command("augment", *flags) == 0
    every, _ = texts(tmp_path / "augmented", tiny_encoder)
    rows = records.read_rows(tmp_path / "augmented")
    assert (rows.ids == 4).any(1).sum() == len(rows) - 240 > 200
    judged = [*flags, "--teacher", teacher, "--confidence", "0.9", "--output_dir", tmp_path / "judged"]
    assert command("augment", *judged) == 0
    kept, _ = texts(tmp_path / "judged", tiny_encoder)
    assert 240 < len(kept) < len(every)
    other = shutil.copytree(teacher, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    write_json(other / "config.json", config | {"id2label": {"0": "No", "1": "YES"}})
    again = [*flags, "--teacher", other, "--confidence", "0.9", "--output_dir", tmp_path / "again"]
    assert command("augment", *again) == 0 and texts(tmp_path / "again", tiny_encoder)[0] == kept
    write_json(other / "config.json", config | {"id2label": {"0": "bad", "1": "good"}})
    assert command("augment", *again, "--output_dir", tmp_path / "wrong") == 2
    assert "trained on the labels bad, good" in capsys.readouterr().err


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A spaCy pipeline that knows three words and calls all others X."""
    pipeline = spacy.blank("en")
    rules = pipeline.add_pipe("attribute_ruler")
    rules.add([[{}]], {"POS": "X"})
    for word, kind in {"good": "ADJ", "bad": "ADJ", "film": "NOUN"}.items():
        rules.add([[{"LOWER": word}]], {"POS": kind})
    directory = tmp_path_factory.mktemp("speech") / "pipeline"
    pipeline.to_disk(directory)
    return directory


def test_words_are_replaced_by_others_of_their_part_of_speech(tiny_encoder, speech, tmp_path):
    (tmp_path / "rows.tsv").write_text("text\tlabel\ngood good good good film\tyes\nbad bad bad bad film\tno\n")
    flags = ["--method", "mask", "--task_name", "custom", "--train_file", tmp_path / "rows.tsv", "--p_mask", "0"]
    flags += ["--tokenizer", tiny_encoder, "--p_ngram", "0", "--p_pos", "0.5", "--pos_model", speech]
    assert command("augment", *flags, "--output_dir", tmp_path / "out") == 0
    lines, labels = texts(tmp_path / "out", tiny_encoder)
    assert {word for line in lines for word in line.split()[:4]} == {"good", "bad"}
    assert {line.split()[4] for line in lines} == {"film"}  # the only noun
    for line, label in zip(lines, labels, strict=True):  # two of five words at most
        assert line.split().count("good" if label == "yes" else "bad") >= 2
    assert len(lines) > 4


def test_several_processes_write_the_same_bytes(words, tiny_encoder, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(augment, "_ROWS_A_SHARD", 100)
    flags = ["--method", "mask", "--tokenizer", tiny_encoder, "--pos_model", speech]
    bytes_ = []
    for count in ("1", "2"):
        out = tmp_path / count
        assert command("augment", *words, *flags, "--workers", count, "--output_dir", out) == 0
        bytes_.append({file.name: file.read_bytes() for file in out.iterdir() if file.is_file()})
    assert bytes_[0] == bytes_[1] and len(bytes_[0]) == 5


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--method", "mask", "--pos_model", "absent"], "--pos_model absent: "),
        (["--mlm", ""], "expected --mlm"),
        (["--glove", "x", "--p_replace", "1.5"], "--p_replace 1.5: expected a probability"),
        (["--glove", "absent.txt"], "absent.txt"),
        (["--glove", "x", "--split", "test"], "--split test: no such file"),
        (["--glove", "x", "--dataset_type", "mindrecord"], "written as tfrecord"),
        (["--method", "mask", "--glove", "x"], "--glove x: has no part in --method mask"),
        (["--glove", "x", "--masks_together", 1], "--masks_together 1: has no part in --method tinybert"),
        (["--method", "mask", "--p_pos", 0.2], "--p_pos 0.2: has no part in --method mask"),
        (["--glove", "x", "--confidence", 0.9], "--confidence 0.9: has no part in --method tinybert"),
    ],
)
def test_wrong_flags_end_in_a_line(words, tiny_encoder, capsys, flags, told):
    assert command("augment", *words, "--tokenizer", tiny_encoder, *flags) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_pieces_of_words_and_words_of_pieces(tiny_encoder):
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.train_from_iterator(["a great film", "the greatest film"] * 9, trainers.BpeTrainer(show_progress=False))
    pieces = likely_words.Pieces(byte_level)
    (great,) = pieces.of("great")
    assert byte_level.id_to_token(great) == "\u0120great"
    rest = byte_level.token_to_id("t")
    assert pieces.words([great, rest, *pieces.of("film")]) == ["great", "film"]
    accents = Tokenizer(models.BPE())
    accents.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    accents.train_from_iterator(["a caf\u00e9"] * 9, trainers.BpeTrainer(show_progress=False))
    words = likely_words.Pieces(accents)
    assert words.words(words.of("caf\u00e9")) == ["caf\u00e9"]
    plain = likely_words.Pieces(load_tokenizer(tiny_encoder))
    special = plain.tokenizer.token_to_id("[MASK]")
    assert plain.words([special, *plain.of("film")]) == ["film"]


def test_a_corrected_mistake_goes_on_where_nothing_was_written(words, tiny_encoder, tmp_path):
    flags = [*words, "--tokenizer", tiny_encoder, "--output_dir", tmp_path / "out"]
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("film 1 0\nmovie 1 0.1\nplot 0 1\n")
    assert command("augment", *flags, "--glove", tmp_path / "absent.txt") == 2
    assert command("augment", *flags, "--glove", vectors) == 0
    vectors.write_text("film 1 0\nmovie 1 0.2\nplot 0 1\n")
    assert command("augment", *flags, "--glove", vectors) == 2  # other words than those that were written


def test_an_encoder_without_the_head_is_refused(words, tiny_encoder, capsys):
    assert command("augment", *words, "--mlm", tiny_encoder) == 2
    assert "mlm." in capsys.readouterr().err


def test_rows_that_the_teacher_contradicts_are_left_out(teacher):
    config = augment.Config(teacher=str(teacher), confidence=0.5)
    judge = augment._Judge(config, TASKS["SST-2"], ["no", "yes"], Path("rows"))
    good, bad = (Example(text, None, None) for text in ("the plot is good", "the plot is bad"))
    assert judge.kept([[good, bad], [good, bad]], ["yes", "no"]) == [[good], [bad]]


def test_both_methods_give_what_each_gives(words, mlm, tiny_encoder, tmp_path):
    replace, mask, found = ["--mlm", mlm], ["--p_mask", "0.5"], {}
    for method, more in {"tinybert": replace, "mask": [*mask, "--tokenizer", mlm], "both": replace + mask}.items():
        assert command("augment", *words, "--method", method, *more, "--output_dir", tmp_path / method) == 0
        rows = records.read_rows(tmp_path / method)
        masked = (rows.ids == small.VOCABULARY.index("[MASK]")).any(1)
        found[method] = (~masked).sum() - 240, masked.sum()
    replaced, masked = found["both"]
    assert found["tinybert"][0] > 200 and found["tinybert"][1] == 0 and found["mask"][0] == 0 and found["mask"][1] > 200
    assert replaced == found["tinybert"][0] and masked > 200


def test_what_is_asked_of_the_masked_lm(mlm):
    """All places at once or one at a time, with the text as second sentence: [CLS] the [MASK] is [MASK] [SEP] the film is
    great [SEP]."""
    asked, query = LikelyWords(str(mlm)), augment_data.query_of("the film is great")
    the, film, was, great = (small.VOCABULARY.index(word) for word in ("the", "film", "is", "great"))
    cls, sep, mask = (small.VOCABULARY.index(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    second = [the, film, was, great, sep]
    (row,) = asked._rows(0, query)
    assert (row.ids, row.second, row.positions) == ([cls, the, mask, was, mask, sep, *second], 6, [2, 4])
    asked.together = 1
    found = [(row.ids, row.positions) for row in asked._rows(0, query)]
    assert found == [
        ([cls, the, mask, was, great, sep, *second], [2]),
        ([cls, the, film, was, mask, sep, *second], [4]),
    ]
