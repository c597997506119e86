"""Raw text to segments for general distillation.

Text is one paragraph a line with a blank line between documents, or what WikiExtractor writes: documents between lines
`<doc id=...>` and `</doc>`. Every segment is full: `[CLS] A [SEP] B [SEP]` of exactly the length asked for, A and B whole
sentences of one document in their order, only the last one cut where the segment ends; the next segment opens with that
sentence, whole. What does not fill a segment at a document's end goes on with the next document behind a new `[SEP]`.
"""

from __future__ import annotations

import bz2
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import UserError

# A sentence ends at . ! or ?, with closing quotes, before white space and what may open a sentence; at the marks of
# Chinese and Japanese wherever they stand.
_SENTENCE_END = re.compile(
    r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])"
    r"|(?<=[\u3002\uff01\uff1f])(?![\u3002\uff01\uff1f])[\"')\]\u201d\u2019\u300d\u300f\uff09]*\s*"
)
_DOCUMENT = re.compile(r"<doc id=.*>|</doc>")
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open}


def corpus_files(paths: Sequence[str]) -> list[Path]:
    """The text files named, and those of directories named, by name.

    Raises:
        UserError: one is absent, or a directory holds no text.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
            if not inside:
                raise UserError(f"{path}: an empty directory; expected text files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file; expected text, plain or packed by gzip or bzip2")
    if not found:
        raise UserError("--input is empty; expected text files or directories")
    return found


def read_documents(path: Path) -> Iterator[list[str]]:
    """Documents of a file as lists of paragraphs; a name that ends in .gz or .bz2 is unpacked on the way.

    Raises:
        UserError: the file is not UTF-8 or not whole; names the line.
    """
    document: list[str] = []
    number, inside = 0, False
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):  # noqa: B007, the messages below name it
                line = line.strip()
                mark = _DOCUMENT.fullmatch(line)
                if line and not mark:
                    document.append(line)
                    continue
                inside = line.startswith("<doc ") if mark else inside
                if document and (mark or not inside):  # blank lines part only documents that nothing else parts
                    yield document
                    document = []
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 after line {number} ({error.reason}); convert the file to UTF-8") from None
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {number} ({error}); copy the file again") from None
    if document:
        yield document


def chunks(files: Sequence[Path], characters: int) -> Iterator[list[list[str]]]:
    """Whole documents in groups of about `characters`; a longer document is cut between paragraphs."""
    group: list[list[str]] = []
    size = 0
    for file in files:
        for document in read_documents(file):
            group.append([])
            for paragraph in document:
                group[-1].append(paragraph)
                size += len(paragraph)
                if size >= characters:
                    yield group
                    group, size = [[]], 0
            if not group[-1]:
                group.pop()
    if group:
        yield group


def sentences(paragraph: str) -> list[str]:
    """Split a paragraph at the ends of sentences.

    What stood behind white space begins with a blank, by which byte-level pieces tell that a word begins.
    """
    ends = [0, *(end.end() for end in _SENTENCE_END.finditer(paragraph)), len(paragraph)]
    parts = []
    for begin, end in pairwise(ends):
        if part := paragraph[begin:end].strip():
            parted = any(mark.isspace() for mark in paragraph[max(begin - 1, 0) : begin + 1])
            parts.append(" " + part if parted else part)
    return parts


def fill_segments(
    documents: Sequence[Sequence[Sequence[int]]],
    length: int,
    start: int,
    separator: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Pack the sentences of documents, as ids, into full segments.

    Args:
        documents: of sentences of ids.
        length: of a segment, special tokens included.
        start, separator: ids of [CLS] and [SEP].
        generator: places the boundary between A and B among the sentence ends, in segments of one document.

    Returns:
        (N, length) int32 ids, (N,) int32 where B begins, and the number of tokens read twice because a segment opens
        with the sentence that the one before had to cut.
    """
    room = length - 3
    rows, seconds, again = [], [], 0
    pieces: list[Sequence[int]] = []
    size = carried = 0  # tokens, and pieces that are of earlier documents
    for document in documents:
        for sentence in document:
            sentence = list(sentence)
            while sentence:
                pieces.append(sentence[: room - size])
                size += len(pieces[-1])
                if size < room:
                    break
                rows.append(_join(pieces, carried, start, separator, generator, seconds))
                cut = len(pieces[-1])
                alone = len(pieces) == 1
                pieces, size, carried = [], 0, 0
                if cut == len(sentence):
                    break
                # A sentence longer than a segment goes on where it was cut; others open the next one whole.
                again += 0 if alone else cut
                sentence = sentence[cut:] if alone else sentence
        carried = len(pieces)
    ids = np.array(rows, np.int32).reshape(-1, length)
    return ids, np.array(seconds, np.int32), again


def _join(
    pieces: list[Sequence[int]],
    carried: int,
    start: int,
    separator: int,
    generator: np.random.Generator,
    seconds: list[int],
) -> list[int]:
    """One row: A is the first pieces, those of earlier documents where there are such, B the rest; a single piece is halved."""
    if len(pieces) == 1:
        middle = len(pieces[0]) // 2
        first, second = list(pieces[0][:middle]), list(pieces[0][middle:])
    else:
        boundary = carried or int(generator.integers(1, len(pieces)))
        first = [token for piece in pieces[:boundary] for token in piece]
        second = [token for piece in pieces[boundary:] for token in piece]
    seconds.append(len(first) + 2)
    return [start, *first, separator, *second, separator]


def masked_count(candidates: int, probability: float, most: int) -> int:
    """How many of a row's candidates are masked: one at least where there is any."""
    return min(most, candidates, max(1, round(candidates * probability)))


def mask_tokens(
    ids: np.ndarray,
    special: set[int],
    probability: float,
    most: int,
    mask: int,
    vocabulary: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Masked-LM data as google-research/bert makes it: 80 % [MASK], 10 % another word, 10 % unchanged.

    Returns:
        The row with masks, and `masked_lm_positions`, `masked_lm_ids` (both (most,) int32, zeros behind the last) and
        `masked_lm_weights` (most,) float32.
    """
    candidates = np.flatnonzero(~np.isin(ids, list(special)))
    count = masked_count(len(candidates), probability, most)
    chosen = np.sort(generator.permutation(candidates)[:count])
    draw = generator.random(count)
    changed = ids.copy()
    changed[chosen[draw < 0.8]] = mask
    other = chosen[draw >= 0.9]
    changed[other] = generator.integers(0, vocabulary, len(other))
    positions, targets, weights = np.zeros(most, np.int32), np.zeros(most, np.int32), np.zeros(most, np.float32)
    positions[:count], targets[:count], weights[:count] = chosen, ids[chosen], 1.0
    return changed, positions, targets, weights
