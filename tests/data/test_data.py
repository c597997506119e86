"""Records, loader, tasks and corpus: round trips, and bad input named."""

import bz2
import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minddistill.data import records, shards
from minddistill.data.corpus import fill_segments, mask_tokens, read_documents, sentences
from minddistill.data.loader import Loader, choose_buckets
from minddistill.data.tasks import TASKS, label_table, read_examples, task_named
from minddistill.errors import UserError
from minddistill.files import write_json
from minddistill.problems import MULTI
from minddistill.recipes.common import described_rows

LENGTHS = (5, 3, 8, 6, 4)


def rows():
    for index, size in enumerate(LENGTHS):
        yield records.padded([*range(1, size + 1)], size - index % 3, 8, 0) | {"label_ids": [index % 2]}


@pytest.fixture(params=["tfrecord", "mindrecord"])
def directory(request, tmp_path) -> Path:
    return written(tmp_path / "records", request.param)


def written(path: Path, kind: str = "tfrecord") -> Path:
    table = records.schema(8, 5, "int64")
    file = path / f"part{records.SUFFIXES[kind][0]}"
    write = shards.write_tfrecord if kind == "tfrecord" else shards.write_mindrecord
    assert write(file, rows(), *([table["columns"]] if kind == "mindrecord" else [])) == 5
    records.finish_directory(path, table, {"labels": ["no", "yes"]})
    return path


def kind_of(directory: Path) -> str:
    return "mindrecord" if list(directory.glob("*.mindrecord")) else "tfrecord"


def test_records_round_trip(directory):
    found = records.read_rows(directory, kind=kind_of(directory), vocab_size=20)
    assert found.length.tolist() == list(LENGTHS)
    assert found.second.tolist() == [size - index % 3 for index, size in enumerate(LENGTHS)]
    found.check_classes(2)
    assert found.label.tolist() == [0, 1, 0, 1, 0]
    assert found.ids[2].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_shards_of_mindspores_own_writer_are_read_once_each(tmp_path):
    from mindspore.mindrecord import FileWriter

    columns = records.schema(8, 5, "int64")["columns"]
    writer = FileWriter(str(tmp_path / "zoo.mindrecord"), shard_num=2)
    writer.add_schema({name: {"type": column["type"], "shape": column["shape"]} for name, column in columns.items()})
    writer.write_raw_data([{name: np.asarray(value, np.int64) for name, value in row.items()} for row in rows()])
    writer.commit()
    assert sorted(file.name for file in tmp_path.glob("*.mindrecord?")) == ["zoo.mindrecord0", "zoo.mindrecord1"]
    found = records.read_rows(tmp_path, kind="mindrecord", vocab_size=20)
    assert sorted(found.length.tolist()) == sorted(LENGTHS)


def test_of_names_without_an_ending_those_of_records_are_read(tmp_path):
    path = written(tmp_path / "records")
    (path / "meta.json").unlink()
    (path / "part.tfrecord").rename(path / "part-00000")
    (path / "_SUCCESS").touch()
    assert [file.name for file in records.record_files(path, "tfrecord")] == ["part-00000"]
    (path / "part-00000").rename(path / "train.tf_record-00000")
    (path / "README").write_text("of the rows")
    assert records.read_rows(path).length.tolist() == list(LENGTHS)


def test_rows_that_a_schema_leaves_out_are_told(directory):
    whole = records.read_rows(directory, kind=kind_of(directory))
    table = json.loads((directory / "schema.json").read_text())
    (directory / "schema.json").write_text(json.dumps(table | {"numRows": len(whole) - 2}))
    found = records.read_rows(directory, kind=kind_of(directory))
    assert (whole.cut, found.cut, len(found)) == (0, 2, len(whole) - 2)
    assert "(2 more left out, by numRows of the schema)" in described_rows(found)


def test_schema_numbers_limit_rows(directory):
    table = json.loads((directory / "schema.json").read_text()) | {"numRows": 2}
    write_json(directory / "schema.json", table)
    assert len(records.read_rows(directory, kind=kind_of(directory), vocab_size=20)) == 2


def test_records_of_google_bert_are_read(tmp_path):
    """Other features are ignored, `is_real_example` 0 leaves a row out, and no schema is needed."""
    more = ({**row, "is_real_example": [int(i != 1)], "next_sentence_labels": [0]} for i, row in enumerate(rows()))
    shards.write_tfrecord(tmp_path / "train.tf_record", more)
    found = records.read_rows(tmp_path, vocab_size=20)
    assert found.length.tolist() == [5, 8, 6, 4]
    with pytest.raises(UserError, match=r"train.tf_record: row 3: label_ids is 1; expected"):
        found.check_classes(1)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def empty(directory):
    (directory / "part.tfrecord").write_bytes(b"")


def text(directory):
    (directory / "part.tfrecord").write_text("label\tsentence\n1\tgood\n")


def cut(directory):
    file = directory / "part.tfrecord"
    file.write_bytes(file.read_bytes()[:-30])


def damaged(directory):
    flip(directory / "part.tfrecord", 200)


def no_files(directory):
    (directory / "part.tfrecord").unlink()


def no_column(directory):
    shards.write_tfrecord(directory / "part.tfrecord", [{"input_ids": [1] * 8, "input_mask": [1] * 8}])


def other_shape(directory):
    write_json(directory / "schema.json", records.schema(16, 5, "int64"))


def other_type(directory):
    write_json(directory / "schema.json", records.schema(8, 5, "float32"))


def longer_row(directory):
    more = [*rows(), records.padded([1, 2], 2, 9, 0) | {"label_ids": [0]}]
    (directory / "schema.json").unlink()
    shards.write_tfrecord(directory / "part.tfrecord", more)


def bad_schema(directory):
    (directory / "schema.json").write_text("{")


def beyond_int32(directory):
    more = [{**row, "input_ids": [2**32 + 5, *row["input_ids"][1:]]} for row in rows()]
    shards.write_tfrecord(directory / "part.tfrecord", more)


def not_example(directory):
    data = b"\xff\xff\xff"
    head = struct.pack("<Q", len(data))
    file = directory / "part.tfrecord"
    file.write_bytes(head + shards._masked(head) + data + shards._masked(data))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, "part.tfrecord: the file is empty"),
        (text, "part.tfrecord: not a TFRecord file"),
        (cut, "part.tfrecord: cut short in row 4"),
        (damaged, "part.tfrecord: row 1 is damaged"),
        (no_files, "no tfrecord files in it"),
        (no_column, "row 0 has no column 'segment_ids'"),
        (other_shape, "'input_ids' has 8 values; the schema says 16"),
        (other_type, "'label_ids' is a int64_list; the schema says float32"),
        (longer_row, "row 5: column 'input_ids' has 9 values"),
        (bad_schema, "schema.json: not valid JSON"),
        (beyond_int32, "row 0: input_ids holds 2147483647"),
        (not_example, "row 0 is not a tf.train.Example"),
    ],
)
def test_broken_records_are_named(tmp_path, spoil, message):
    directory = written(tmp_path / "records")
    (directory / "meta.json").unlink()  # as of records made elsewhere: no checksums over whole files
    spoil(directory)
    with pytest.raises(UserError, match=message):
        records.read_rows(directory, vocab_size=20)


def another_value(directory):
    """A row changed and its checksum with it."""
    file = next(directory.glob("part.*record"))
    if file.suffix == ".mindrecord":
        flip(file, file.stat().st_size - 100)
    else:
        more = [{**row, "input_ids": [7, *row["input_ids"][1:]]} for row in rows()]
        shards.write_tfrecord(file, more)


def taken_away(directory):
    next(directory.glob("part.*record")).rename(directory / "part.bak")


def linked(directory):
    file = next(directory.glob("part.*record"))
    file.symlink_to(file.rename(directory.parent / file.name))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (another_value, r"part.*damaged or changed \(checksum\)"),
        (taken_away, "no (tf|mind)record files in it|no such file, though it was written with the others"),
        (linked, "part.*a link out of its directory"),
    ],
)
def test_records_that_are_not_as_written_are_named(directory, spoil, message):
    spoil(directory)
    with pytest.raises(UserError, match=message):
        records.read_rows(directory, kind=kind_of(directory) if spoil is not taken_away else "tfrecord", vocab_size=20)


def test_checksums_can_be_skipped(tmp_path):
    directory = written(tmp_path / "records")
    file = directory / "part.tfrecord"
    data = bytearray(file.read_bytes())
    data[-1] ^= 0xFF  # of the last row's checksum
    file.write_bytes(data)
    with pytest.raises(UserError, match="row 4 is damaged"):
        records.read_rows(directory, vocab_size=20)
    assert len(records.read_rows(directory, vocab_size=20, verify=False)) == 5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", "yes", "labels is 'yes'; expected list of str"),
        ("labels", ["a", "a"], "hold a name twice"),
        ("pad_id", -1, "pad_id is -1"),
        ("seq_length", 9, "seq_length is 9, the records have 8"),
        ("regression", 1, "regression is 1; expected bool"),
    ],
)
def test_descriptions_that_do_not_fit_are_named(directory, name, value, message):
    meta = json.loads((directory / "meta.json").read_text())
    write_json(directory / "meta.json", meta | {name: value})
    with pytest.raises(UserError, match=message):
        records.read_rows(directory, kind=kind_of(directory), vocab_size=20)


def test_values_out_of_range_are_named(directory):
    options = {"kind": kind_of(directory)}
    with pytest.raises(UserError, match=r"row 2: input_ids holds 8; the model's vocabulary has 8 entries"):
        records.read_rows(directory, vocab_size=8, **options)
    with pytest.raises(UserError, match=r"row 1: label_ids is 1; expected a class from 0 to 0"):
        records.read_rows(directory, vocab_size=20, **options).check_classes(1)
    with pytest.raises(UserError, match="no such directory"):
        records.read_rows(directory / "absent", **options)


def many(count=103, longest=30):
    generator = np.random.default_rng(0)
    length = generator.integers(3, longest + 1, count).astype(np.int32)
    ids = np.arange(count)[:, None] * np.ones((1, longest), np.int32)
    return records.Rows(ids.astype(np.int32), length, length, np.zeros(count, np.int32), {}, Path("rows"), str)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("tokens", [0, 160])
def test_every_row_comes_once_an_epoch_on_any_number_of_ranks(size, tokens):
    found, shapes, told = [], [], []
    for rank in range(size):
        loader = Loader(many(), 8, buckets=[10, 20, 30], seed=1, rank=rank, size=size, batch_tokens=tokens)
        batches = list(loader.epoch(0))
        assert len(batches) == len(loader)
        shapes.append([batch["input_ids"].shape for batch in batches])
        told.append([float(batch["rows"].asnumpy()) * size for batch in batches])
        for batch in batches:
            real = batch["weight"].asnumpy() == 1
            found += batch["row"].asnumpy()[real].tolist()
            assert (batch["input_mask"].asnumpy().sum(1) <= batch["input_ids"].shape[1]).all()
    assert sorted(found) == list(range(103))
    assert all(shape == shapes[0] for shape in shapes)
    wanted = {(16 if tokens and length == 10 else 8, length) for length in (10, 20, 30)}
    assert set(shapes[0]) <= wanted and (size > 1 or set(shapes[0]) == wanted)
    # What the ranks divide by is the same, and counts no padding.
    assert all(rows == told[0] for rows in told) and sum(told[0]) == pytest.approx(103)


def test_what_is_left_over_has_the_shortest_length_that_holds_it():
    loader = Loader(many(9, longest=30), 4, buckets=[30], seed=1)
    loader.rows.length[:] = 12
    loader.buckets = [10, 20, 30]
    assert sorted((planned.length, planned.real) for planned in loader.plan(0)) == [(20, 1), (20, 4), (20, 4)]


def test_order_is_of_seed_and_epoch_and_resumes_in_the_middle():
    loader = Loader(many(), 8, buckets=[10, 20, 30], seed=1)
    first = [batch["row"].asnumpy().tolist() for batch in loader.epoch(0)]
    assert first == [
        batch["row"].asnumpy().tolist() for batch in Loader(many(), 8, buckets=[10, 20, 30], seed=1).epoch(0)
    ]
    assert first[5:] == [batch["row"].asnumpy().tolist() for batch in loader.epoch(0, skip=5)]
    assert first != [batch["row"].asnumpy().tolist() for batch in loader.epoch(1)]


def test_lengths_are_mixed_evenly_over_an_epoch():
    """Where in an epoch the batches of each length come is uniform: mean 1/2, variance 1/12."""
    loader, places = Loader(many(1200), 8, buckets=[10, 20, 30], seed=3), {10: [], 20: [], 30: []}
    for epoch in range(20):
        for step, planned in enumerate(loader.plan(epoch)):
            places[planned.length].append((step + 0.5) / len(loader))
    for found in places.values():
        assert len(found) > 500
        assert abs(np.mean(found) - 0.5) < 4 * (12 * len(found)) ** -0.5
        assert np.var(found) == pytest.approx(1 / 12, rel=0.1)


def test_buckets_keep_padding_low_with_few_lengths():
    length = np.random.default_rng(0).integers(3, 65, 5000)
    buckets = choose_buckets(length, 128)
    padded = np.array(buckets)[np.searchsorted(buckets, length)].sum()
    assert len(buckets) <= 6 and buckets[-1] == 64 and padded <= 1.3 * length.sum()
    assert choose_buckets(np.full(10, 16), 64) == [16]


def test_tasks_read_their_columns(tmp_path):
    (tmp_path / "train.tsv").write_text("gj04\t1\t\tIt was good .\ngj04\t0\t*\tGood it was .\n")
    found = list(read_examples(tmp_path / "train.tsv", TASKS["CoLA"], "train"))
    assert [(example.text, example.label) for example in found] == [("It was good .", "1"), ("Good it was .", "0")]
    (tmp_path / "x.csv").write_text('text,label\n"a, b",2\nc,10\n')
    found = list(read_examples(tmp_path / "x.csv", TASKS["SNIPS"], "train"))
    assert found[0].text == "a, b" and list(label_table(TASKS["SNIPS"], (e.label for e in found))) == ["2", "10"]
    (tmp_path / "x.jsonl").write_text('{"text": "t", "label": 3}\n')
    assert next(read_examples(tmp_path / "x.jsonl", TASKS["SNIPS"], "train")).label == "3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"sentence\tlabel\nfine\n", r"x.tsv:2: 1 tab-separated columns; expected 2"),
        (b"words\tlabel\nfine\t1\n", r"x.tsv:2: no column 'sentence'; the file has 'words', 'label'"),
        (b"sentence\tlabel\n\xff\xfe\t1\n", r"x.tsv:2: not UTF-8"),
        (b"sentence\tlabel\n \t1\n", r"x.tsv:2: the text is empty"),
        (b"sentence\tlabel\nfine\t \n", r"x.tsv:2: the label is empty; expected one in column 'label'"),
    ],
)
def test_bad_text_files_are_named(tmp_path, content, message):
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_examples(tmp_path / "x.tsv", task_named("sst-2"), "train"))


def test_labels_may_be_empty_where_none_are_wanted(tmp_path):
    (tmp_path / "x.tsv").write_text("sentence\tlabel\nfine\t\n")
    (found,) = read_examples(tmp_path / "x.tsv", TASKS["SST-2"], "test", labelled=False)
    assert found.label is None


def test_rows_that_line_breaks_tear_apart_are_left_out_of_qqp(tmp_path, capsys):
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    rows = [["0", "1", "2", "one", "two", "0"], ["1", "3", "4", "torn"], ["apart", "0"], ["2", "5", "6", "a", "b", "1"]]
    (tmp_path / "train.tsv").write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
    found = list(read_examples(tmp_path / "train.tsv", TASKS["QQP"], "train"))
    assert [(example.text, example.label) for example in found] == [("one", "0"), ("a", "1")]
    assert "train.tsv: 2 lines left out, which are not 6 columns" in capsys.readouterr().out


def test_half_a_character_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "fine", "label": "a"}\n{"text": "great \\ud83d", "label": "a"}\n')
    with pytest.raises(UserError, match=r"x.jsonl:2: holds half of a surrogate pair"):
        list(read_examples(tmp_path / "x.jsonl", TASKS["SNIPS"], "train"))
    (tmp_path / "y.jsonl").write_text('{"text": "\\ud83d\\ude00", "label": "a"}\n')
    assert next(read_examples(tmp_path / "y.jsonl", TASKS["SNIPS"], "train")).text == "\U0001f600"


def test_labels_that_only_look_like_numbers_are_sorted_as_words():
    assert list(label_table(TASKS["SNIPS"], ["10", "\u00b2", "2", "--5"])) == ["--5", "10", "2", "\u00b2"]


def test_sentences_split_at_their_ends():
    assert sentences("He left. She stayed at 3.5 km! Why? because") == [
        "He left.",
        " She stayed at 3.5 km!",
        " Why? because",
    ]
    quoted = ['He said "No."', "(It rained.)", "[Yes!] We stayed."]
    assert sentences(" ".join(quoted)) == [quoted[0], " (It rained.)", " [Yes!]", " We stayed."]
    chinese = ["\u4ed6\u6765\u4e86\u3002", "\u201c\u771f\u7684\uff1f\uff01\u201d", "\u597d", "\u3002"]
    assert sentences("".join(chinese)) == [*chinese[:2], "".join(chinese[2:])]


@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
def test_documents_are_parted_by_blank_lines_or_as_wikiextractor_does(tmp_path, ending, pack):
    plain = "One.\nTwo.\n\n\nThree.\n"
    extracted = '<doc id="7" url="x?curid=7" title="A < B">\nA\n\nOne.\nTwo.\n</doc>\n\n<doc id="8">\nB\n</doc>\nC\n'
    for text, expected in (
        (plain, [["One.", "Two."], ["Three."]]),
        (extracted, [["A", "One.", "Two."], ["B"], ["C"]]),
    ):
        path = tmp_path / f"wiki_00{ending}"
        path.write_bytes(pack(text.encode()))
        assert list(read_documents(path)) == expected


def test_segments_are_full_and_open_with_whole_sentences():
    documents = [[[10, 11, 12], [20, 21, 22, 23], [30, 31]], [[40] * 9, [50]]]
    ids, second, again = fill_segments(documents, 8, 1, 2, np.random.default_rng(0))
    assert ids.shape[1] == 8 and (ids[:, 0] == 1).all() and (ids[:, -1] == 2).all()
    assert ids[0].tolist() == [1, 10, 11, 12, 2, 20, 21, 2] and second[0] == 5
    assert ids[1].tolist()[:6] == [1, 20, 21, 22, 23, 2]  # the sentence that was cut opens the next segment
    assert ids[2].tolist()[1] == 30 and again == 2 + 1 + 3


def test_a_segment_of_two_documents_has_its_boundary_between_them():
    for seed in range(5):
        documents = [[[10, 11], [20]], [[30], [40]], [[50], [60], [70]]]
        ids, second, _ = fill_segments(documents, 9, 1, 2, np.random.default_rng(seed))
        assert ids[0].tolist() == [1, 10, 11, 20, 30, 40, 2, 50, 2] and second.tolist() == [7]


def test_masks_are_of_ordinary_tokens():
    ids = np.array([1, *range(10, 30), 2], np.int32)
    changed, positions, targets, weights = mask_tokens(ids, {1, 2}, 0.15, 5, 4, 100, np.random.default_rng(0))
    count = int(weights.sum())
    assert count == 3 and (targets[:count] == ids[positions[:count]]).all() and (positions[count:] == 0).all()
    assert (np.flatnonzero(changed != ids)[:, None] == positions[:count]).any(1).all()


def test_of_masked_words_one_in_ten_stays_and_one_is_another():
    ids = np.arange(10, 10010, dtype=np.int32)
    changed, places, *_ = mask_tokens(ids, set(), 0.15, 1500, 5, 20000, np.random.default_rng(0))
    same, masks = (changed[places] == ids[places]).mean(), (changed[places] == 5).mean()
    assert len(places) == 1500 and abs(same - 0.1) < 0.03 and abs(masks - 0.8) < 0.04
    assert abs(1 - same - masks - 0.1) < 0.03
    assert len(set(changed[places])) > 200  # the others are drawn from the whole vocabulary


def test_labels_of_a_multi_label_row_may_be_a_list(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "t", "label": ["a", "b"]}\n')
    several = replace(TASKS["SNIPS"], problem=MULTI)
    assert next(read_examples(tmp_path / "x.jsonl", several, "train")).label == "a|b"
    with pytest.raises(UserError, match=r"x.jsonl:1: 'label' is a list; expected text"):
        next(read_examples(tmp_path / "x.jsonl", TASKS["SNIPS"], "train"))
    assert next(read_examples(tmp_path / "x.jsonl", TASKS["SNIPS"], "test", labelled=False)).label is None
