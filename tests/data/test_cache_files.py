"""A teacher's outputs come back as they were written; what is missing, foreign or damaged is named."""

import numpy as np
import pytest

from minddistill.data import teacher_cache
from minddistill.data.teacher_cache import Layout, TeacherCache

LENGTH = np.array([3, 5, 2, 4], np.int32)
LAYOUT = Layout(hidden=(0, 2), attention=(1,), width=4, heads=2, classes=3)


def outputs(row):
    generator = np.random.default_rng(row)
    size = int(LENGTH[row])
    hidden = generator.standard_normal((2, size, 4)).astype(np.float16)
    attention = generator.standard_normal((1, 2, size, size)).astype(np.float16)
    return hidden, attention, generator.standard_normal(3).astype(np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "_SHARD_BYTES", 200)  # a row or two in each shard
    return TeacherCache(tmp_path / "cache", LAYOUT, LENGTH, {"teacher": "a"})


def fill(cache):
    for shard in cache.missing()[0]:
        rows = cache.rows_of(shard)
        cache.write(shard, ((int(row), *outputs(row)) for row in rows[::-1]))


def test_bytes_follow_from_lengths():
    # 2 hidden states of 4 and 2 heads of S scores for each of S tokens, 2 bytes each; 3 logits of 4 bytes a row.
    assert LAYOUT.bytes(LENGTH) == sum(2 * (s * 8 + s * s * 2) + 12 for s in (3, 5, 2, 4))


def test_rows_come_back_padded(cache):
    fill(cache)
    assert len(cache.shards) > 1 and cache.missing() == ([], [])
    found = cache.batch(np.array([1, 0, 3]), 6)
    for place, row in enumerate((1, 0, 3)):
        hidden, attention, logits = outputs(row)
        size = LENGTH[row]
        for index in (0, 1):
            np.testing.assert_array_equal(found[f"teacher_hidden_{index}"][place, :size], hidden[index])
            assert not found[f"teacher_hidden_{index}"][place, size:].any()
        np.testing.assert_array_equal(found["teacher_attention_0"][place, :, :size, :size], attention[0])
        assert not found["teacher_attention_0"][place, :, size:].any()
        np.testing.assert_array_equal(found["teacher_logits"][place], logits)
    np.testing.assert_array_equal(cache.logits(np.array([2]), 6)["teacher_logits"][0], outputs(2)[2])


def test_interrupted_writing_goes_on_where_it_stopped(cache):
    first, *rest = cache.missing()[0]
    rows = cache.rows_of(first)
    cache.write(first, ((int(row), *outputs(row)) for row in rows))

    def broken():
        yield int(cache.rows_of(rest[0])[0]), *outputs(cache.rows_of(rest[0])[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write(rest[0], broken())
    assert cache.missing() == (rest, [])


def test_a_token_classifier_has_logits_at_every_position(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "_SHARD_BYTES", 60)
    layout = Layout(hidden=(), attention=(), width=4, heads=2, classes=3, tokens=True)
    cache = TeacherCache(tmp_path / "cache", layout, LENGTH, {"teacher": "a"})
    logits = [np.full((size, 3), row + 1, np.float32) for row, size in enumerate(LENGTH)]
    nothing = np.zeros(0, np.float16)
    for shard in cache.missing()[0]:
        cache.write(shard, ((int(row), nothing, nothing, logits[row]) for row in cache.rows_of(shard)))
    assert len(cache.shards) > 1 and layout.bytes(LENGTH) == 4 * 3 * LENGTH.sum()
    found = cache.logits(np.array([3, 0]), 6)["teacher_logits"]
    assert found[:, :, 0].tolist() == [[4, 4, 4, 4, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_damage_is_named_and_only_its_shard_is_lost(cache):
    fill(cache)
    path = cache.directory / "shard_00000.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    left, dropped = cache.missing()
    assert left == [0] and dropped == [f"{path}: damaged (checksum)"]
    path.write_bytes(data[:-1])
    assert cache.missing() == ([0], [f"{path}: its size is not the one it was written with"])


def test_damaged_notes_are_as_damaged_shards(cache):
    fill(cache)
    (cache.directory / "shard_00000.json").write_text("{")
    left, dropped = cache.missing()
    assert left == [0] and dropped == [
        f"{cache.directory}/shard_00000.bin: its size is not the one it was written with"
    ]
    (cache.directory / "cache.json").write_text("[]")
    left, dropped = cache.missing()
    assert left == list(cache.shards) and dropped == [f"{cache.directory}: of another teacher, data or precision"]


def test_cache_of_another_teacher_is_not_used(cache):
    fill(cache)
    other = TeacherCache(cache.directory, LAYOUT, LENGTH, {"teacher": "b"})
    left, dropped = other.missing()
    assert left == list(other.shards) and dropped == [f"{cache.directory}: of another teacher, data or precision"]


def test_a_whole_cache_is_read_where_nothing_can_be_written(cache, monkeypatch):
    assert cache.bytes_to_write() == LAYOUT.bytes(LENGTH)
    first, *_ = cache.missing()[0]
    rows = cache.rows_of(first)
    cache.write(first, ((int(row), *outputs(row)) for row in rows))
    assert cache.bytes_to_write() == LAYOUT.bytes(LENGTH) - LAYOUT.bytes(LENGTH[rows])
    fill(cache)
    monkeypatch.setattr(teacher_cache, "write_json", None)
    assert cache.missing() == ([], []) and cache.bytes_to_write() == 0
