"""What is drawn from a sentence, and the nearest words of a vector file."""

import gzip

import numpy as np
import pytest

from minddistill.data import augment
from minddistill.data.glove import WordVectors, read_vectors
from minddistill.errors import UserError


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def test_words_are_those_of_berts_basic_tokenizer():
    query = augment.query_of("The Café's plot isn't GREAT, 3-D fun!")
    assert query.words == ("the", "cafe", "'", "s", "plot", "isn", "'", "t", "great", ",", "3", "-", "d", "fun", "!")
    assert [query.words[place] for place in query.places] == ["cafe", "plot", "great", "fun"]
    query = augment.query_of("not a serious thing about an empty system")  # function words alone are left out
    assert [query.words[place] for place in query.places] == ["serious", "thing", "empty", "system"]


def test_every_candidate_word_is_replaced_at_probability_one():
    query = augment.query_of("the plot was great")
    found = augment.replaced(query, {1: ["story"], 3: ["superb"]}, 1.0, 5, generator())
    assert found == ["the story was superb"]  # five times the same, told once
    assert augment.replaced(query, {1: ["story"], 3: ["superb"]}, 0.0, 5, generator()) == []
    assert augment.replaced(query, {}, 1.0, 5, generator()) == []  # a word without candidates stays


def test_what_stands_between_replaced_words_stays_as_it_was():
    """So that a tokenizer of other words than BERT's still finds them, such as "n't"."""
    query = augment.query_of("A caf\u00e9 : it 's n't GREAT, I\u2019d say  so!")
    assert query.words == (
        "a",
        "cafe",
        ":",
        "it",
        "'",
        "s",
        "n",
        "'",
        "t",
        "great",
        ",",
        "i",
        "\u2019",
        "d",
        "say",
        "so",
        "!",
    )
    found = augment.replaced(query, {1: ["bar"], 9: ["superb"]}, 1.0, 1, generator())
    assert found == ["A bar : it 's n't superb, I\u2019d say  so!"]
    assert augment.replaced(query, {9: ["great"]}, 1.0, 1, generator()) == []  # the word itself
    assert augment.query_of("abc\u4e2d\u6587def").words == ("abc", "\u4e2d", "\u6587", "def")


def test_words_are_replaced_at_their_rate_and_uniformly():
    query = augment.query_of("alpha beta")
    drawn = generator(1)
    found = [augment.replaced(query, {0: ["x", "y", "z"]}, 0.4, 1, drawn) for _ in range(3000)]
    changed = [lines[0].split()[0] for lines in found if lines]
    assert len(changed) / 3000 == pytest.approx(0.4, abs=0.03)
    for word in "xyz":
        assert changed.count(word) / len(changed) == pytest.approx(1 / 3, abs=0.05)


def test_at_most_half_of_the_words_are_masked():
    text = " ".join(f"w{i}" for i in range(11))
    seen = set()
    for seed in range(40):
        for line in augment.masked(text, "[MASK]", 20, generator(seed), p_mask=0.2, p_ngram=0.5):
            words = line.split()
            assert len(words) == 11 and all(word in ("[MASK]", f"w{i}") for i, word in enumerate(words))
            assert 1 <= words.count("[MASK]") <= 5
            seen.add(words.count("[MASK]"))
    assert seen == {1, 2, 3, 4, 5}


def test_ngrams_are_masked_as_one_run():
    lines = augment.masked("a b c d e f g h", "_", 200, generator(), p_mask=0.0, p_ngram=1.0, longest=3)
    assert lines and {line.replace(" ", "").strip("abcdefgh") for line in lines} == {"_", "__", "___"}
    assert augment.masked("a b", "_", 50, generator(), p_mask=0.0, p_ngram=1.0) == []


def test_words_of_a_part_of_speech_replace_words():
    options = {"p_mask": 0.0, "p_pos": 1.0, "p_ngram": 0.0, "tags": ["NOUN", "VERB", "NOUN", "ADV"]}
    found = augment.masked(
        "cat runs home fast", "_", 30, generator(), words_of={"NOUN": ["A"], "VERB": ["B"]}, **options
    )
    assert found == ["A B home fast"]  # half of four
    assert augment.masked("cat runs home fast", "_", 30, generator(), p_mask=0.0, p_pos=1.0, p_ngram=0.0) == []


def test_nearest_words_are_those_of_largest_cosine():
    vectors = np.array([[1, 0], [10, 1], [0, 1], [-1, 0], [1, 1]], np.float32)
    words = WordVectors(["east", "almost", "north", "west", "between"], vectors)
    assert words.nearest(["east", "unknown"], 3) == {"east": ["almost", "between", "north"], "unknown": []}
    assert words.nearest(["east"], 10)["east"] == ["almost", "between", "north", "west"]
    rng = np.random.default_rng(0)
    many = WordVectors([f"w{i}" for i in range(700)], rng.normal(size=(700, 20)))
    found = many.nearest(many.words, 15)
    plain = many.unit @ many.unit.T - 2 * np.eye(700)
    assert found == {f"w{i}": [f"w{j}" for j in np.argsort(-plain[i], kind="stable")[:15]] for i in range(700)}


def test_vector_files(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("the 1 0\ncat 0 2\ndog 1 1\n")
    assert read_vectors(path).words == ["the", "cat", "dog"] and read_vectors(path, 2).words == ["the", "cat"]
    np.testing.assert_allclose(read_vectors(path).unit[2], np.sqrt([0.5, 0.5]), rtol=1e-6)
    path.write_text("the 1 0\n. . . 0 2\nat x@y.z 1 1\n")  # as GloVe's largest files have it
    assert read_vectors(path).words == ["the", ". . .", "at x@y.z"]
    zipped = tmp_path / "v.txt.gz"
    zipped.write_bytes(gzip.compress(b"3 2\n" + path.read_bytes()))
    assert read_vectors(zipped).words == ["the", ". . .", "at x@y.z"]
    path.write_text("2 2\nthe 1 0 \ncat 0 2 \r\n")  # as word2vec and fastText write it
    assert read_vectors(path).words == ["the", "cat"]
    broken = bytearray(zipped.read_bytes())
    broken[14] ^= 255
    zipped.write_bytes(broken)
    with pytest.raises(UserError, match="expected a word and its numbers"):
        read_vectors(zipped)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no word vectors"),
        (b"the 1 0\ncat 0\n", "line 2: 1 numbers, the first line has 2"),
        (b"the 1 0\ncat 0 1 2\n", "line 2: more numbers than the 2 of the first line"),
        (b"the 1 0\ncat 0 x\n", "line 2: could not convert"),
        (b"the 1 x\n", "expected a word and its numbers"),
        (b"the 1 nan\n", "line 1"),
        (b"\xff\xfe 1 0\n", "expected a word and its numbers"),
    ],
)
def test_broken_vector_files_are_named(tmp_path, content, told):
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_vectors(path)
    assert str(path) in str(refused.value) and told in str(refused.value)
    with pytest.raises(UserError, match="expected a word"):
        read_vectors(tmp_path / "absent.txt")
