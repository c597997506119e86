"""Entities of texts, against transformers' pipeline and by hand."""

import numpy as np
import pytest
from small import VOCABULARY
from tokenizers.implementations import BertWordPieceTokenizer

import minddistill
from minddistill.errors import UserError
from minddistill.export.entities import entities
from minddistill.models import store
from minddistill.models.presets import preset
from minddistill.problems import TOKEN

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = [*VOCABULARY, "pe", "##ter", "##s"]
    return BertWordPieceTokenizer({word: index for index, word in enumerate(vocabulary)})


def scores(*tags: str) -> np.ndarray:
    """Probabilities (S, 5): 0.6 for the tag, 0.1 for each other."""
    return np.where(np.array(LABELS) == np.array(tags)[:, None], 0.6, 0.1).astype(np.float32)


def told(found) -> list[tuple]:
    return [(entity["entity_group"], entity["word"], entity["start"], entity["end"]) for entity in found]


def test_words_take_the_class_of_their_first_piece(tokenizer):
    text = "Peters film, the movie"
    encoding = tokenizer.encode(text)
    assert encoding.tokens == ["[CLS]", "pe", "##ter", "##s", "film", ",", "the", "movie", "[SEP]"]
    given = scores("B-LOC", "B-PER", "O", "I-LOC", "I-PER", "O", "I-LOC", "B-LOC", "B-PER")
    found = entities(text, encoding, given, LABELS, "first")
    assert told(found) == [("PER", "Peters film", 0, 11), ("LOC", "the", 13, 16), ("LOC", "movie", 17, 22)]
    assert [entity["score"] for entity in found] == pytest.approx([0.6] * 3)
    simple = entities(text, encoding, given, LABELS, "simple")
    assert told(simple)[:3] == [("PER", "Pe", 0, 2), ("LOC", "s", 5, 6), ("PER", "film", 7, 11)]


TEXTS = ["the film is good, peters acting", "a dull plot", "", "Peter was very great and PETERS plot is poor."]


@pytest.mark.parametrize("strategy", ["first", "simple"])
def test_answers_are_those_of_transformers(strategy, tmp_path):
    transformers = pytest.importorskip("transformers", reason="compares with transformers where it is installed")
    pytest.importorskip("torch", reason="compares with PyTorch where it is installed")
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, "pe", "##ter", "##s"]) + "\n")
    config = preset("test-2l-32").with_(vocab_size=len(VOCABULARY) + 3, labels=LABELS, problem=TOKEN)
    model = store.new(config.with_(initializer_range=0.5), seed=1)
    options = {"command": "test", "parents": {}, "data": {}, "metrics": {}}
    store.save(tmp_path / "model", model, tokenizer_from=tmp_path, **options)
    theirs = transformers.pipeline("token-classification", str(tmp_path / "model"), aggregation_strategy=strategy)
    mine = minddistill.pipeline(tmp_path / "model", batch_size=4)
    found = mine(TEXTS, aggregation_strategy=strategy)
    expected = [theirs(text) if text else [] for text in TEXTS]
    assert sum(map(len, expected)) > 4
    for one, other in zip(found, expected, strict=True):
        assert [told([e])[0][::2] + (e["end"],) for e in one] == [
            (e["entity_group"], e["start"], e["end"]) for e in other
        ]
        np.testing.assert_allclose([e["score"] for e in one], [e["score"] for e in other], atol=1e-4)
    with pytest.raises(UserError, match="aggregation 'max': expected one of first, simple"):
        mine(TEXTS, aggregation_strategy="max")
    with pytest.raises(UserError, match="expected no pairs"):
        mine([{"text": "a", "text_pair": "b"}])
