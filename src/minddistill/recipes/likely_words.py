"""The words that a masked-LM model holds likely at the places of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from .. import runtime
from ..data import augment
from ..data.tokenizer import WORD_BEGINS, byte_level, load_tokenizer, pad_id, special_id
from ..export import masked_words
from ..models import heads, store
from ..problems import SINGLE

_bytes = ByteLevel()
_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 256, 512)  # to which sentences are padded where each shape is compiled


@dataclass(frozen=True)
class _Asked:
    """A sentence of which some words are masked, and, as the second, the sentence itself.

    Attributes:
        number: of the query.
        words: their places in the query.
        ids: of both sentences, (S,).
        second: where the second begins.
        positions: of the masks among the ids.
    """

    number: int
    words: list[int]
    ids: list[int]
    second: int
    positions: list[int]


class LikelyWords:
    """Asks a masked-LM model for the words at masked places, with the original sentence as the second (TinyBERT).

    Args:
        model: directory of a model with a masked-LM head.
        count: words for each place, before those that are none are left out.
        together: words masked in one forward; 0 for all of a sentence.
        batch_size: sentences of 32 word pieces that are read together; more of shorter, fewer of longer ones.
        compute_type: as for `runtime.precision`, or int8, by ONNX Runtime.
        threads: of ONNX Runtime.

    Raises:
        UserError: it cannot be read, has no such head, or what runs it is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        count: int = 15,
        together: int = 0,
        batch_size: int = 64,
        compute_type: str = "auto",
        threads: int | None = None,
    ):
        device = runtime.start().device
        weights = store.read_encoder(model)
        self.tokenizer = load_tokenizer(weights.directory)
        self.longest = min(weights.config.max_length, _LENGTHS[-1])
        self.together, self.batch = together, batch_size
        self.mask = special_id(self.tokenizer, "[MASK]", "<mask>")
        self.start = special_id(self.tokenizer, "[CLS]", "<s>")
        self.end = special_id(self.tokenizer, "[SEP]", "</s>")
        self.pad = pad_id(self.tokenizer)
        self.vocabulary = Pieces(self.tokenizer)
        self.compiled = compute_type != "int8"
        self.likeliest = _likeliest_function(weights, count, compute_type, device, threads)

    def candidates(self, queries: Sequence[augment.Query]) -> list[dict[int, list[str]]]:
        """The likeliest words at the places of one word piece, by query and place."""
        found: list[dict[int, list[str]]] = [{} for _ in queries]
        asked = [row for number, query in enumerate(queries) for row in self._rows(number, query)]
        asked.sort(key=lambda row: len(row.ids))  # sentences of like length together
        for part in self._batches(asked):
            for row, words in zip(part, self._words(part), strict=True):
                found[row.number] |= dict(zip(row.words, words, strict=True))
        return found

    def _batches(self, asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
        """What is asked together, of rows from short to long."""
        part: list[_Asked] = []
        masks = 0
        for row in asked:
            rows, places = self._room(self._padded(len(row.ids)))
            if len(part) >= rows or masks + len(row.positions) > places:
                yield part
                part, masks = [], 0
            part.append(row)
            masks += len(row.positions)
        if part:
            yield part

    def _padded(self, length: int) -> int:
        return min(next(size for size in _LENGTHS if size >= length), self.longest)

    def _room(self, length: int) -> tuple[int, int]:
        """Rows and masks of a batch of that length: room for one sentence at least."""
        return max(self.batch * 32 // length, 1), max(self.batch * 4, length // 2)

    def _rows(self, number: int, query: augment.Query) -> Iterator[_Asked]:
        """What is asked for a query."""
        pieces = [self.vocabulary.of(word) for word in query.words]
        places = [place for place in query.places if len(pieces[place]) == 1]
        first = np.cumsum([1, *(len(part) for part in pieces)])
        original = [piece for part in pieces for piece in part]
        if 2 * len(original) + 3 > self.longest:
            original = original[: (self.longest - 3) // 2]
            places = [place for place in places if first[place] <= len(original)]
        size = self.together or max(len(places), 1)
        for start in range(0, len(places), size):
            group = places[start : start + size]
            masked = list(original)
            for place in group:
                masked[first[place] - 1] = self.mask
            ids = [self.start, *masked, self.end, *original, self.end]
            yield _Asked(number, group, ids, len(masked) + 2, [int(first[place]) for place in group])

    def _words(self, rows: Sequence[_Asked]) -> Iterator[list[list[str]]]:
        """The words for each place of each row; MindSpore compiles each shape, so that there is one for each length."""
        length = max(len(row.ids) for row in rows)
        count, most = len(rows), sum(len(row.positions) for row in rows)
        if self.compiled:
            length = self._padded(length)
            count, most = self._room(length)
        ids = np.full((count, length), self.pad, np.int32)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        places = np.zeros(most, np.int32)
        mask[:, 0] = 1  # rows that fill the batch up are not empty
        for index, row in enumerate(rows):
            size = len(row.ids)
            ids[index, :size], mask[index, :size], segments[index, row.second : size] = row.ids, 1, 1
        asked = [index * length + place for index, row in enumerate(rows) for place in row.positions]
        places[: len(asked)] = asked
        names = ("input_ids", "input_mask", "segment_ids", "places")
        best = iter(self.likeliest(dict(zip(names, (ids, mask, segments, places), strict=True))))
        for row in rows:
            yield [self.vocabulary.words(next(best)) for _ in row.positions]


class Pieces:
    """What a tokenizer makes of words inside a text, and which of its pieces are words.

    A byte-level piece tells by its first mark that a word begins, one of WordPiece that a word goes on.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.byte_level = byte_level(tokenizer)
        self.known: dict[str, list[int]] = {}

    def of(self, word: str) -> list[int]:
        """The ids of a word."""
        if word not in self.known:
            text = f" {word}" if self.byte_level else word
            self.known[word] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.known[word]

    def words(self, ids: Iterable[int]) -> list[str]:
        """The words among some ids: without pieces that continue a word, and special ones."""
        pieces = [self.tokenizer.id_to_token(int(number)) or "" for number in ids]
        if self.byte_level:
            pieces = [_bytes.decode([piece]).strip() for piece in pieces if piece.startswith(WORD_BEGINS)]
            pieces = [piece for piece in pieces if "\ufffd" not in piece]  # it ended inside a character
        return [piece for piece in pieces if piece and piece[0] not in "[<" and not piece.startswith("##")]


def _likeliest_function(
    weights: store.Weights, count: int, compute_type: str, device: str, threads: int | None
) -> masked_words.Likeliest:
    """`models.heads.likeliest_function` by what runs the type of products asked for."""
    if compute_type == "int8":
        return masked_words.likeliest_function(weights, count, threads)
    types = runtime.precision(compute_type, "float32", device)
    shape = weights.config.with_(labels=(), problem=SINGLE, pooler=False)
    return heads.likeliest_function(store.build(weights, shape, mlm=True, **types), count)
