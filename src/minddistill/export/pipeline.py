"""From texts to labels and scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from ..errors import UserError
from ..evaluation.evaluate import softmax
from .session import Session

# Texts that are tokenised together and then put in batches by length: many, so that few batches need padding.
WINDOW = 2048

Text = str | Mapping[str, str]
# Places of some texts in their window, and the inputs of `Session.predict` for them.
Batch = tuple[list[int], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Pipeline:
    """Classifies texts.

    Args:
        session: that runs the model.
        batch_size: texts that are computed together.

    Raises:
        UserError: `batch_size` is not positive, or the model's tokenizer is missing.
    """

    def __init__(self, session: Session, batch_size: int = 32):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; expected a positive whole number")
        self.session, self.batch_size = session, batch_size
        self.labels = session.labels or ["LABEL_0"]
        _ = session.tokenizer  # a missing one is found before the first text

    def __call__(self, inputs: Text | list[Text], **options: int | None) -> list[Any]:
        """Classify what transformers' text-classification pipeline takes, and return what it returns.

        Args:
            inputs: a text, a pair as {"text": ..., "text_pair": ...}, or a list of these.
            options: `top_k` gives a list of that many labels for each text, the best first; None gives all of them.

        Returns:
            For each text {"label", "score"} of the best label, or with `top_k` a list of such.
        """
        if options.keys() - {"top_k"}:
            raise TypeError(f"unknown options {', '.join(options)}; expected top_k")
        single = not isinstance(inputs, list)
        found = [self.ranked(scores) for scores in self.scores([inputs] if single else inputs)]
        if "top_k" in options:
            found = [labels[: options["top_k"]] for labels in found]
            return found[0] if single else found
        best = [labels[0] for labels in found]
        return best[0] if isinstance(inputs, Mapping) else best

    def ranked(self, scores: np.ndarray) -> list[dict[str, Any]]:
        """Labels and scores of one text, the best first."""
        order = np.argsort(-scores, kind="stable")
        return [{"label": self.labels[index], "score": float(scores[index])} for index in order]

    def scores(self, texts: Iterable[Text]) -> Iterator[np.ndarray]:
        """Probabilities (C,) of each text, or its number in a regression task; in order, a window of texts at a time."""
        for logits in self._windows(texts):
            yield from logits if self.session.config.regression else softmax(logits)

    def logits(self, texts: Iterable[Text]) -> Iterator[np.ndarray]:
        """Logits (C,) of each text, as `scores`."""
        for logits in self._windows(texts):
            yield from logits

    def _windows(self, texts: Iterable[Text]) -> Iterator[np.ndarray]:
        """Logits (N, C) of each window. While the model computes one, a thread makes the batches of the next."""
        texts = iter(texts)
        with ThreadPoolExecutor(1) as ahead:
            made = None
            while window := list(islice(texts, WINDOW)):
                following = ahead.submit(self.batches, window)
                if made is not None:
                    yield self._predicted(made.result())
                made = following
            if made is not None:
                yield self._predicted(made.result())

    def batches(self, texts: list[Text]) -> list[Batch]:
        """Texts tokenised, sorted by length, and padded batch by batch."""
        firsts, seconds = zip(*map(_parts, texts), strict=True)
        encodings = self.session.tokens(firsts, seconds)
        order = sorted(range(len(texts)), key=lambda row: len(encodings[row]))
        chosen = (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))
        return [(rows, self.session.padded([encodings[row] for row in rows])) for rows in chosen]

    def _predicted(self, batches: list[Batch]) -> np.ndarray:
        logits = np.empty((sum(len(rows) for rows, _ in batches), len(self.labels)), np.float32)
        for rows, inputs in batches:
            logits[rows] = self.session.predict(*inputs)
        return logits


def _parts(text: Text) -> tuple[str, str | None]:
    return (text, None) if isinstance(text, str) else (text["text"], text.get("text_pair"))
