"""From the classes of tokens to the entities of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding

STRATEGIES = ("first", "simple")


def entities(
    text: str, encoding: Encoding, scores: np.ndarray, labels: Sequence[str], strategy: str = "first"
) -> list[dict[str, Any]]:
    """Entities of a text as transformers' token-classification pipeline gives them.

    Neighbours of one type are one entity unless the second begins with B. An entity's score is the mean of its words'.

    Args:
        encoding: the text's tokens.
        scores: (S, C) probabilities of the tokens, S at least their number.
        labels: names of the classes, in IOB2.
        strategy: "first" gives each word of the tokenizer the class of its first piece, as in training; "simple" takes
            every piece for a word.

    Returns:
        {"entity_group", "score", "word", "start", "end"} each; the word is what stands in the text from `start` to `end`.
    """
    groups: list[tuple[str, list[float], int, int]] = []
    last = "O"
    for first, start, end in _words(encoding, strategy):
        best = int(scores[first].argmax())
        tag, score = labels[best], float(scores[first, best])
        kind = tag[2:] if tag[:2] in ("B-", "I-") else tag
        if tag != "O":
            if kind == last and tag[:2] != "B-":
                kind, values, begin, _ = groups.pop()
                groups.append((kind, [*values, score], begin, end))
            else:
                groups.append((kind, [score], start, end))
        last = kind
    return [
        {"entity_group": kind, "score": float(np.mean(values)), "word": text[start:end], "start": start, "end": end}
        for kind, values, start, end in groups
    ]


def _words(encoding: Encoding, strategy: str) -> list[tuple[int, int, int]]:
    """First piece of each word, and where the word starts and ends in the text."""
    found: list[tuple[int, int, int]] = []
    before = None
    pieces = zip(encoding.word_ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
    for place, (word, (start, end), special) in enumerate(pieces):
        if special:
            continue
        if strategy == "first" and found and word == before:
            found[-1] = (*found[-1][:2], end)
        else:
            found.append((place, start, end))
        before = word
    return found
