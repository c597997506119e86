"""Texts whose words are labelled: CoNLL and CLUENER files, and labels at the pieces that a tokenizer makes of words."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding

from ..errors import UserError
from ..problems import IGNORED
from .tasks import Example, json_lines, text_lines

_COLUMNS = re.compile("[ \\t]+")  # not every white space: words may hold a no-break space

_CHINESE = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
# What BERT's tokenizer takes for a word: one Chinese character, a run of other letters and digits, one other sign.
_WORD = re.compile(rf"[{_CHINESE}]|[^\W{_CHINESE}]+|[^\w\s]")


def read_sentences(path: Path, labelled: bool = True) -> Iterator[Example]:
    """Read sentences with a tag for each word.

    `.jsonl` and `.json` are CLUENER's: a line {"text": ..., "label": {type: {mention: [[first, last], ...]}}}, characters
    counted from 0, the last one included; tags are those of its words in IOB2, and of entities that overlap the longest
    has them. Others are CoNLL's: a line a word, the
    word in the first and the tag in the last of columns between blanks or tabs, an empty line after each sentence; tags are
    IOB2 or IOB1, which becomes IOB2.

    Args:
        labelled: whether there must be labels; without them, those that are there are read.

    Raises:
        UserError: names the file and line of what is wrong.
    """
    return _cluener(path, labelled) if path.suffix.lower() in (".jsonl", ".json") else _conll(path, labelled)


def _conll(path: Path, labelled: bool) -> Iterator[Example]:
    words: list[str] = []
    tags: list[str] = []
    for number, line in text_lines(path):
        cells = _COLUMNS.split(line.strip(" \t")) if line.strip() else []
        if cells and cells[0] != "-DOCSTART-":
            if labelled and len(cells) < 2:
                raise UserError(f"{path}:{number}: one column; expected a word and, in the last column, its tag")
            words.append(cells[0])
            if len(cells) > 1:
                tags.append(_iob2(cells[-1], tags[-1] if tags else "O", f"{path}:{number}"))
            if tags and len(tags) < len(words):
                raise UserError(f"{path}:{number}: no tag; the words before it have one")
        elif words:
            yield _sentence(words, tags)
            words, tags = [], []
    if words:
        yield _sentence(words, tags)


def _iob2(tag: str, before: str, where: str) -> str:
    """A tag as IOB2 has it: an entity begins with B.

    Raises:
        UserError: it is no tag of IOB.
    """
    if not re.fullmatch(r"O|[BI]-\S+", tag):
        raise UserError(f"{where}: tag {tag!r}; expected O, B-TYPE or I-TYPE (IOB2)")
    begins = tag[0] == "I" and before[2:] != tag[2:]
    return f"B-{tag[2:]}" if begins else tag


def _sentence(words: Sequence[str], tags: Sequence[str]) -> Example:
    starts = [0]
    for word in words[:-1]:
        starts.append(starts[-1] + len(word) + 1)
    return Example(" ".join(words), None, " ".join(tags) if tags else None, tuple(starts))


def _cluener(path: Path, labelled: bool) -> Iterator[Example]:
    for number, row in json_lines(path):
        where, text = f"{path}:{number}", row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: no 'text', or an empty one; expected a sentence")
        if labelled and "label" not in row:
            raise UserError(f"{where}: no 'label'; expected {{type: {{mention: [[first, last]]}}}}")
        begins, inside = {}, {}
        for kind, start, end in _mentions(row.get("label", {}), text, where):
            begins[start] = kind
            inside |= dict.fromkeys(range(start, end), kind)
        words = _words(text, {place for place in range(1, len(text)) if _cut(place, begins, inside)})
        tags = [f"{'B' if at in begins else 'I'}-{inside[at]}" if at in inside else "O" for at in words]
        yield Example(text, None, " ".join(tags) if "label" in row else None, words)


def _mentions(label: Any, text: str, where: str) -> Iterator[tuple[str, int, int]]:
    """Type, begin and end of each entity; of those that overlap, the longest.

    Raises:
        UserError: the label is not in CLUENER's form, or a mention does not stand where it says.
    """
    try:
        found = [
            (k, m, first, last) for k, mentions in label.items() for m, ps in mentions.items() for first, last in ps
        ]
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{where}: label is {label!r}; expected {{type: {{mention: [[first, last]]}}}}") from None
    taken: set[int] = set()
    for kind, mention, first, last in sorted(found, key=lambda entity: -len(entity[1])):
        if not re.fullmatch(r"\S+", kind):
            raise UserError(f"{where}: type {kind!r}; expected a name without spaces")
        if type(first) is not int or type(last) is not int or not mention or text[first : last + 1] != mention:
            raise UserError(
                f"{where}: {mention!r} is not at [{first}, {last}] of the text; expected first and last place"
            )
        if not taken & set(range(first, last + 1)):
            taken |= set(range(first, last + 1))
            yield kind, first, last + 1


def _cut(place: int, begins: Mapping[int, str], inside: Mapping[int, str]) -> bool:
    """Whether an entity begins or ends at a place."""
    return place in begins or (place - 1 in inside) != (place in inside)


def _words(text: str, cuts: set[int]) -> tuple[int, ...]:
    """Where the words begin: those of the pattern, cut where entities begin and end."""
    found = []
    for word in _WORD.finditer(text):
        found += [word.start(), *sorted(cut for cut in cuts if word.start() < cut < word.end())]
    return tuple(found)


def word_labels(
    text: str, encoding: Encoding, words: Sequence[int], classes: Sequence[int], seq_length: int
) -> list[int]:
    """The class of each word at its first piece, `IGNORED` at all other positions; `seq_length` numbers.

    A word whose first piece is cut off, or that begins inside a piece, has no position.
    """
    waiting = dict(zip(words, classes, strict=True))
    found, read = [], 0
    for start, end in encoding.offsets:
        piece = text[start:end]
        begin = start + len(piece) - len(piece.lstrip())  # some tokenizers count the space before a word
        word = words[bisect_right(words, begin) - 1] if words else 0
        # Marks that a word begins with may be in no piece: tokenizers drop those that have no width.
        first = end > start and read <= word <= begin
        found.append(waiting.pop(word, IGNORED) if first else IGNORED)
        read = max(read, end)
    return found + [IGNORED] * (seq_length - len(found))
