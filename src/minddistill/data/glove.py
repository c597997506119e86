"""Word vectors of GloVe's text format (Pennington et al. 2014), and the nearest words by cosine."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Container, Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError

_BLOCK = 256  # words whose neighbours are computed together


class WordVectors:
    """Words, in the file's order, with their vectors.

    Attributes:
        words: the words.
        vectors, unit: (N, D) float32, as they were read and of unit length.
    """

    def __init__(self, words: list[str], vectors: np.ndarray):
        self.words, self.vectors = words, vectors
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
        self._places = {word: place for place, word in enumerate(words)}
        self._known: dict[tuple[str, int], list[str]] = {}

    def nearest(self, wanted: Iterable[str], count: int) -> dict[str, list[str]]:
        """The `count` words of largest cosine with each wanted word, itself left out; none for an unknown word.

        Exact, and computed once for a word.
        """
        wanted = list(dict.fromkeys(wanted))
        new = [word for word in wanted if (word, count) not in self._known and word in self._places]
        for start in range(0, len(new), _BLOCK):
            part = new[start : start + _BLOCK]
            mine = np.array([self._places[word] for word in part])
            cosine = self.unit[mine] @ self.unit.T
            cosine[np.arange(len(part)), mine] = -np.inf
            most = min(count, len(self.words) - 1)
            best = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
            order = np.argsort(-np.take_along_axis(cosine, best, 1), axis=1, kind="stable")
            for word, places in zip(part, np.take_along_axis(best, order, 1), strict=True):
                self._known[word, count] = [self.words[place] for place in places]
        return {word: self._known.get((word, count), []) for word in wanted}


def _numbers(parts: list[str], line: int) -> np.ndarray:
    try:
        return np.array(parts, np.float32)
    except ValueError as error:
        raise ValueError(f"line {line}: {error}") from None


def _more(word: str) -> bool:
    """Whether what stands before the numbers ends with one more."""
    _, _, last = word.rpartition(" ")
    try:
        return last != word and np.isfinite(float(last))
    except ValueError:
        return False


def read_vectors(path: Path, most: int = 100_000, also: Container[str] = ()) -> WordVectors:
    """Read a text file of a word and its numbers a line, gzipped or not; the first `most` words, and those of `also`.

    Raises:
        UserError: the file is absent, not such text, or a line's numbers are not as many as the first one's; names the line.
    """
    words, rows, size = [], [], 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if len(words) >= most and not also:
                    break
                # A word may hold blanks itself; the first line tells how many numbers there are.
                word, *numbers = line.rstrip(" \r\n").rsplit(" ", size or -1)
                if number == 1 and len(numbers) == 1:
                    continue  # word2vec's text format opens with its sizes
                if len(words) >= most and word not in also:
                    continue
                vector = _numbers(numbers, number)
                size = size or len(vector)
                if _more(word):
                    raise ValueError(f"line {number}: more numbers than the {size} of the first line")
                if len(vector) != size or not size or not np.isfinite(vector).all():
                    raise ValueError(f"line {number}: {len(vector)} numbers, the first line has {size}")
                words.append(word)
                rows.append(vector)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path}: {' '.join(str(error).split())}; expected a word and its numbers on each line"
        ) from None
    if not words:
        wanted = " of the words that are wanted" if also else ""
        raise UserError(f"{path}: no word vectors{wanted} in it; expected a word and its numbers on each line")
    return WordVectors(words, np.stack(rows))
