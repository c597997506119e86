"""Parts of speech, told by a spaCy pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import UserError


class Tagger:
    """A spaCy pipeline, of which nothing is run but what tells parts of speech.

    Args:
        name: package or directory of the pipeline.

    Raises:
        UserError: spaCy is not installed, or has no such pipeline.
    """

    def __init__(self, name: str):
        try:
            import spacy
        except ImportError:
            raise UserError(f"--pos_model {name}: needs spaCy; pip install 'minddistill[pos]'") from None
        try:
            self.pipeline = spacy.load(name, exclude=["parser", "ner", "lemmatizer", "senter"])
        except OSError as error:
            raise UserError(
                f"--pos_model {name}: {' '.join(str(error).split())[:160]}; expected a spaCy pipeline, such as "
                "en_core_web_sm once it is installed"
            ) from None
        if not self.pipeline.pipe_names:
            raise UserError(f"--pos_model {name}: tells no parts of speech; expected a pipeline with a tagger")

    def tags(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """The universal part of speech of each word of `text.split()`, by text."""
        from spacy.tokens import Doc

        documents = (Doc(self.pipeline.vocab, words=text.split()) for text in texts)
        for document in self.pipeline.pipe(documents):
            yield [token.pos_ for token in document]
