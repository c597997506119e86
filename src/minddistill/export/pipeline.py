"""From texts to labels and scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, tee
from typing import Any

import numpy as np
from tokenizers import Encoding

from ..errors import UserError
from ..evaluation.evaluate import scores
from ..problems import TOKEN
from .entities import STRATEGIES, entities
from .session import Session

# Texts that are tokenised together and then put in batches by length: many, so that few batches need padding.
WINDOW = 2048

Text = str | Mapping[str, str]
# Places of some texts in their window, and the inputs of `Session.predict` for them.
Batch = tuple[list[int], tuple[np.ndarray, np.ndarray, np.ndarray]]
# Texts as tokens, and their batches.
Window = tuple[list[Encoding], list[Batch]]


class Pipeline:
    """Classifies texts, or finds entities in them.

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

    def __call__(self, inputs: Text | list[Text], **options: Any) -> list[Any]:
        """Classify what transformers' text-classification pipeline takes, and return what it returns; find entities, of
        a token classifier, as its token-classification pipeline does.

        Args:
            inputs: a text, a pair as {"text": ..., "text_pair": ...}, or a list of these.
            options: `top_k` gives a list of that many labels for each text, the best first; None gives all of them.
                `aggregation_strategy`, of a token classifier, is "first" or "simple" as in `entities`.

        Returns:
            For each text {"label", "score"} of the best label, or with `top_k` a list of such; of a token classifier the
            text's entities, or a list of such.
        """
        tokens = self.session.config.problem == TOKEN
        known = "aggregation_strategy" if tokens else "top_k"
        if options.keys() - {known}:
            raise TypeError(f"unknown options {', '.join(options)}; expected {known}")
        single = not isinstance(inputs, list)
        texts = [inputs] if single else inputs
        if tokens:
            found = list(self.entities(texts, **options))
            return found[0] if single else found
        found = [self.ranked(values) for values in self.scores(texts)]
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
        return (scores(logits, self.session.config.problem) for _, logits in self.computed(texts))

    def logits(self, texts: Iterable[Text]) -> Iterator[np.ndarray]:
        """Logits of each text, as `scores`."""
        return (logits for _, logits in self.computed(texts))

    def entities(self, texts: Iterable[str], aggregation_strategy: str = "first") -> Iterator[list[dict[str, Any]]]:
        """Entities of each text, in order, by a token classifier; `aggregation_strategy` is as in `entities`.

        Raises:
            UserError: a text is a pair, or there is no such strategy.
        """
        if aggregation_strategy not in STRATEGIES:
            raise UserError(f"aggregation {aggregation_strategy!r}: expected one of {', '.join(STRATEGIES)}")
        read, kept = tee(texts)  # the model reads ahead by a window
        for text, (encoding, logits) in zip(kept, self.computed(read), strict=False):
            if not isinstance(text, str):
                raise UserError(f"{self.session.directory}: finds entities in single texts; expected no pairs")
            found = scores(logits, self.session.config.problem)
            yield entities(text, encoding, found, self.labels, aggregation_strategy)

    def computed(self, texts: Iterable[Text]) -> Iterator[tuple[Encoding, np.ndarray]]:
        """Tokens and logits of each text, (C,) or a token classifier's (S, C); in order, a window of texts at a time.

        While the model computes a window, a thread makes the batches of the next one.
        """
        texts = iter(texts)
        with ThreadPoolExecutor(1) as ahead:
            made = None
            while window := list(islice(texts, WINDOW)):
                following = ahead.submit(self.batches, window)
                if made is not None:
                    yield from self._predicted(made.result())
                made = following
            if made is not None:
                yield from self._predicted(made.result())

    def batches(self, texts: list[Text]) -> Window:
        """Texts tokenised, sorted by length, and padded batch by batch."""
        firsts, seconds = zip(*map(_parts, texts), strict=True)
        encodings = self.session.tokens(firsts, seconds)
        order = sorted(range(len(texts)), key=lambda row: len(encodings[row]))
        chosen = (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))
        return encodings, [(rows, self.session.padded([encodings[row] for row in rows])) for rows in chosen]

    def _predicted(self, window: Window) -> Iterator[tuple[Encoding, np.ndarray]]:
        encodings, batches = window
        logits: list[Any] = [None] * len(encodings)
        for rows, inputs in batches:
            for row, found in zip(rows, self.session.predict(*inputs), strict=True):
                logits[row] = found
        return zip(encodings, logits, strict=True)


def _parts(text: Text) -> tuple[str, str | None]:
    return (text, None) if isinstance(text, str) else (text["text"], text.get("text_pair"))
