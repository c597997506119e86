"""Tokenizers by their files, against ids worked out by hand."""

import json
import shutil

import pytest
from small import VOCABULARY

from minddistill.data.corpus import sentences
from minddistill.data.tokenizer import fingerprint, load_tokenizer
from minddistill.errors import UserError

CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")
ADDED = len(VOCABULARY)
LETTERS = {piece: index for index, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", "a", "b", "."])}


@pytest.fixture
def wordpiece(vocabulary, tmp_path):
    return shutil.copytree(vocabulary, tmp_path / "wordpiece")


@pytest.fixture
def byte_level(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(LETTERS))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return tmp_path


def options(directory, **values):
    path = directory / "tokenizer_config.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | values))


def test_tokens_that_were_added_are_read_whole(wordpiece, vocabulary):
    (wordpiece / "added_tokens.json").write_text(json.dumps({"<b>": ADDED + 1, "[E1]": ADDED}))
    options(wordpiece, additional_special_tokens=["[E1]"])
    found = load_tokenizer(wordpiece).encode("the [E1] film<B>")
    the, film = VOCABULARY.index("the"), VOCABULARY.index("film")
    # "<b>" is no special token, so that it is written as the text is: in lower case.
    assert found.ids == [CLS, the, ADDED, film, ADDED + 1, SEP]
    assert found.special_tokens_mask == [1, 0, 0, 0, 0, 1]
    assert fingerprint(load_tokenizer(wordpiece)) != fingerprint(load_tokenizer(vocabulary))


def test_tokens_that_were_added_may_stand_in_the_configuration(wordpiece):
    told = {
        "content": "movie",
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
        "special": False,
    }
    mask = told | {"content": "[MASK]", "special": True}
    options(
        wordpiece, added_tokens_decoder={str(VOCABULARY.index("movie")): told, str(VOCABULARY.index("[MASK]")): mask}
    )
    ids = load_tokenizer(wordpiece).encode("Movie movie").ids
    assert ids == [CLS, VOCABULARY.index("movie"), VOCABULARY.index("movie"), SEP]


def test_tokens_added_to_another_vocabulary_are_refused(wordpiece):
    (wordpiece / "added_tokens.json").write_text(json.dumps({"[E1]": ADDED + 5}))
    with pytest.raises(
        UserError, match=rf"'\[E1\]' was added to its vocabulary as {ADDED + 5}, which would be {ADDED} here"
    ):
        load_tokenizer(wordpiece)


@pytest.mark.parametrize("name", ["BertTokenizer", "DistilBertTokenizerFast", None])
def test_tokenizers_like_berts_are_read(wordpiece, name):
    options(wordpiece, tokenizer_class=name)
    assert load_tokenizer(wordpiece).encode("Film").ids == [CLS, VOCABULARY.index("film"), SEP]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"},
            r"BertJapaneseTokenizer \(mecab\)",
        ),
        ({"tokenizer_class": "BertweetTokenizer"}, "BertweetTokenizer"),
        ({"tokenizer_class": "RobertaTokenizer"}, "RobertaTokenizer"),
    ],
)
def test_files_of_another_kind_of_tokenizer_are_refused(wordpiece, values, told):
    options(wordpiece, **values)
    with pytest.raises(
        UserError, match=rf"its tokenizer is a {told}, whose way to split is not in its files; expected BERT's"
    ):
        load_tokenizer(wordpiece)


def test_sentences_inside_a_text_begin_with_a_blank_for_byte_level_pieces(byte_level):
    assert sentences("\u4e2d\u3002\u4e2d\u3002 a") == ["\u4e2d\u3002", "\u4e2d\u3002", " a"]
    assert sentences(" a b") == [" a b"]
    parts = sentences("a b.  Ab.")
    assert parts == ["a b.", " Ab."]
    tokenizer = load_tokenizer(byte_level)
    encoded = [tokenizer.encode(part.lower(), add_special_tokens=False).tokens for part in parts[:2]]
    assert encoded == [["a", "Ġ", "b", "."], ["Ġ", "a", "b", "."]]
    whole = tokenizer.encode("a b. ab.", add_special_tokens=False).tokens
    assert encoded[0] + encoded[1] == whole
