"""Model sizes by name. A new size is a row here."""

from __future__ import annotations

from ..errors import UserError
from .config import ModelConfig, WordConfig

# name: (layers, hidden size, intermediate size, heads)
_SIZES = {
    "tinybert-4l-384": (4, 384, 1536, 12),  # the student of MindSpore's model zoo
    "tinybert-4l-312": (4, 312, 1200, 12),  # TinyBERT-4 of the paper
    "tinybert-6l-768": (6, 768, 3072, 12),  # TinyBERT-6 of the paper
    "bert-base": (12, 768, 3072, 12),
    "minilm-l6": (6, 384, 1536, 12),
    "minilm-l3": (3, 384, 1536, 12),
    "bert-2l-256": (2, 256, 1024, 4),
    "test-2l-32": (2, 32, 64, 4),  # for tests: seconds to compile, a few KB on disk
    "test-4l-32": (4, 32, 64, 4),
}

# Students on word vectors, as dsindex's iclassifier has them.
_WORDS = {
    "glove-cnn": WordConfig("glove-cnn", kernels=(2, 3, 4, 5, 6)),
    "densenet-cnn": WordConfig(
        "densenet-cnn",
        dense_kernels=((1, 1), (3, 3), (3, 5), (3, 7), (3, 9)),
        kernels=(2, 3, 4),
        hidden_size=0,
        dropout=0.3,
    ),
    "densenet-dsa": WordConfig(
        "densenet-dsa",
        dense_kernels=((1, 1), (3, 3), (5, 5), (7, 7), (9, 9)),
        attention_heads=8,
        activation="leaky_relu",
        dropout=0.3,
    ),
}


def word_preset(name: str) -> WordConfig:
    """The configuration of a named student on word vectors, of one word and without labels.

    Raises:
        UserError: no such name.
    """
    if name not in _WORDS:
        raise UserError(f"student {name!r}: no such preset on word vectors; expected one of {', '.join(_WORDS)}")
    return _WORDS[name]


def preset(name: str) -> ModelConfig:
    """The configuration of a named size, without labels.

    Raises:
        UserError: no such name.
    """
    if name not in _SIZES:
        raise UserError(f"student {name!r}: no such preset; expected one of {', '.join(_SIZES)}")
    layers, hidden, intermediate, heads = _SIZES[name]
    return ModelConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=heads
    )
