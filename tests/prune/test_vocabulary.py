"""A smaller vocabulary cuts the texts it was made of into the same pieces, under new ids, with the same logits."""

import json

import numpy as np
import pytest
from small import VOCABULARY

from minddistill.data.tokenizer import load_tokenizer
from minddistill.errors import UserError
from minddistill.models import store
from minddistill.models.presets import preset
from minddistill.prune import structured
from minddistill.prune.vocabulary import used, write_tokenizer

TEXTS = ["the film is great", "a dull, poor plot", "not bad"]


@pytest.fixture(scope="module", params=["vocab.txt", "tokenizer.json"])
def source(request, tmp_path_factory, vocabulary):
    """A model directory's tokenizer files, in both forms that are read."""
    path = tmp_path_factory.mktemp("source")
    store.copy_tokenizer(vocabulary, path)
    if request.param == "tokenizer.json":
        load_tokenizer(vocabulary).save(str(path / "tokenizer.json"))
        (path / "vocab.txt").unlink()
        options = {
            "do_lower_case": True,
            "added_tokens_decoder": {"2": {"content": "[CLS]"}, "4": {"content": "[MASK]"}},
        }
        (path / "tokenizer_config.json").write_text(json.dumps(options))
    return path


def test_round_trip(source, tmp_path):
    old = load_tokenizer(source)
    ids = [np.array(encoding.ids) for encoding in old.encode_batch([*TEXTS, (TEXTS[0], TEXTS[1])])]
    kept = used(old, ids)
    words = {word for text in TEXTS for word in text.replace(",", " ,").split()}
    assert {VOCABULARY[i] for i in kept} == words | {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    write_tokenizer(source, tmp_path, kept)
    new = load_tokenizer(tmp_path)
    assert new.get_vocab_size() == len(kept)
    for text, before in zip([*TEXTS, (TEXTS[0], TEXTS[1])], ids, strict=True):
        found = new.encode(*text) if isinstance(text, tuple) else new.encode(text)
        np.testing.assert_array_equal(kept[found.ids], before)
    assert new.encode("movie").tokens == ["[CLS]", "[UNK]", "[SEP]"]  # a word that was dropped
    if (source / "vocab.txt").is_file():
        assert (tmp_path / "vocab.txt").read_text().split() == [VOCABULARY[i] for i in kept]
    else:
        names = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        assert {new.id_to_token(int(i)): entry["content"] for i, entry in names.items()} == {
            "[CLS]": "[CLS]",
            "[MASK]": "[MASK]",
        }


def test_rows_of_the_embedding_follow_their_ids():
    config = preset("test-2l-32").with_(vocab_size=9, pad_token_id=3)
    word = np.arange(9 * 32, dtype=np.float32).reshape(9, 32)
    kept = np.array([1, 3, 4, 8])
    small = structured.keep_words(store.Weights(config, {"encoder.embeddings.word": word}, None), kept)
    assert small.config.vocab_size == 4 and small.config.pad_token_id == 1
    np.testing.assert_array_equal(small.values["encoder.embeddings.word"], word[kept])


def test_byte_level_tokenizers_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="a BPE tokenizer; expected WordPiece"):
        used(load_tokenizer(tmp_path), [])


def test_tokens_that_were_added_keep_their_place(vocabulary, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        directory.mkdir()
    store.copy_tokenizer(vocabulary, source)
    (source / "added_tokens.json").write_text(json.dumps({"[E1]": len(VOCABULARY)}))
    ids = np.array(load_tokenizer(source).encode("the [E1] film").ids)
    kept = used(load_tokenizer(source), [ids])
    write_tokenizer(source, target, kept)
    assert json.loads((target / "added_tokens.json").read_text()) == {"[E1]": len(kept) - 1}
    for form in ("tokenizer.json", "vocab.txt"):
        np.testing.assert_array_equal(kept[load_tokenizer(target).encode("the [E1] film").ids], ids)
        (target / "tokenizer.json").unlink(missing_ok=True)
        assert (target / "vocab.txt").is_file(), form
