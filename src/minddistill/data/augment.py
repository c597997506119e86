"""Sentences like those of a data set: words replaced by likely or near ones, or masked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from tokenizers import Regex
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Chain

_PLAIN = re.compile(r"[a-z]+")
# Function words alone, as TinyBERT has it: longer lists, such as scikit-learn's, hold words that carry a text's sense
# ("serious", "empty", "system").
_STOP_WORDS = frozenset(
    " ".join(
        [
            "a an the this that these those all any both each few more most other some such same own",
            "i me my myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers",
            "herself it its itself they them their theirs themselves what which who whom whose",
            "am is are was were be been being have has had having do does did doing done",
            "can cannot could may might must shall should will would ought",
            "and but or nor if because as until while although though unless since than whether so no not only too very just",
            "of at by for with without about against between among into onto through during before after above below to from",
            "up down in out on off over under upon within toward towards across along around behind beside besides beyond",
            "again further then once here there when where why how now also else ever",
            # What is left of contractions once they are split, among them negations.
            "n s t d m o y ll re ve ma ain aren couldn didn doesn don hadn hasn haven isn",
            "mightn mustn needn shan shouldn wasn weren won wouldn",
        ]
    ).split()
)
_normalizer = BertNormalizer(lowercase=True)
_splitter = Chain([BertPreTokenizer(), Split(Regex(r"\p{Han}"), "isolated")])

# The augmented sentences of each text field and row, by task (TinyBERT's N).
TIMES = {"SST-2": 20, "QNLI": 20, "MNLI": 10, "QQP": 10, "CoLA": 30, "MRPC": 30, "STS-B": 30, "RTE": 30}
DEFAULT_TIMES = 20


@dataclass(frozen=True)
class Query:
    """A sentence of which some words are to be replaced.

    Attributes:
        text: as it was given.
        words: lower-case words and marks of the text, as BERT's basic tokenizer makes them.
        spans: where in the text each begins and ends.
        places: of the words that may be replaced.
    """

    text: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    places: tuple[int, ...]


def query_of(text: str) -> Query:
    """The sentence of a text; what may be replaced are words of plain letters that are no stop words."""
    parts = _splitter.pre_tokenize_str(text)
    words = tuple(_normalizer.normalize_str(part).strip() for part, _ in parts)
    places = [i for i, word in enumerate(words) if _PLAIN.fullmatch(word) and word not in _STOP_WORDS]
    return Query(text, words, tuple(span for _, span in parts), tuple(places))


def replaced(
    query: Query,
    candidates: Mapping[int, Sequence[str]],
    probability: float,
    times: int,
    generator: np.random.Generator,
) -> list[str]:
    """Sentences in which each candidate word was replaced with a probability (TinyBERT's algorithm 1).

    What stands between the words replaced stays as it was written: another tokenizer may part it at other places.

    Args:
        candidates: what may stand at a place; a word without any stays.
        times: sentences drawn; those that repeat another, or the original, are dropped.

    Returns:
        At most `times` sentences.
    """
    seen = dict.fromkeys([query.text])
    for _ in range(times):
        parts, end = [], 0
        for place in query.places:
            choices = candidates.get(place) or (query.words[place],)
            choice = choices[int(generator.integers(len(choices)))]
            if generator.random() < probability and choice != query.words[place]:
                first, last = query.spans[place]
                parts += [query.text[end:first], choice]
                end = last
        seen.setdefault("".join([*parts, query.text[end:]]))
    return list(seen)[1:]


def masked(
    text: str,
    mask: str,
    times: int,
    generator: np.random.Generator,
    *,
    p_mask: float = 0.1,
    p_pos: float = 0.1,
    p_ngram: float = 0.25,
    longest: int = 5,
    tags: Sequence[str] = (),
    words_of: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[str]:
    """Sentences with words masked, replaced by others of their part of speech, and n-grams masked; at most half of the
    words.

    The sampler of Tang et al. 2019 (arXiv 1903.12136, section 3.3) for students of other kinds than their teacher.

    Args:
        mask: what stands for a masked word.
        p_mask: probability that a word is masked.
        p_pos: that it is replaced by a word of the same part of speech, where `tags` tells it.
        p_ngram: that an n-gram of 1 to `longest` words is masked, in a sentence of more than two words.
        tags: part of speech of each word of `text.split()`; empty replaces nothing.
        words_of: the words of each part of speech.
    """
    original = text.split()
    room = len(original) // 2
    seen = dict.fromkeys([" ".join(original)])
    for _ in range(times):
        words, changed = list(original), 0
        for place, draw in enumerate(generator.random(len(words))):
            if changed == room:
                break
            if draw < p_mask:
                words[place], changed = mask, changed + 1
            elif tags and draw < p_mask + p_pos:
                choices = words_of[tags[place]]
                words[place], changed = choices[int(generator.integers(len(choices)))], changed + 1
        if len(words) > 2 and generator.random() < p_ngram:
            size = int(generator.integers(1, longest + 1))
            if size <= room - changed:
                first = int(generator.integers(0, len(words) - size + 1))
                words[first : first + size] = [mask] * size
        seen.setdefault(" ".join(words))
    return list(seen)[1:]
