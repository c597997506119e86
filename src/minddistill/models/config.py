"""The configuration of a classifier: an encoder with its head, or a convolutional network on word vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ..errors import UserError
from ..problems import PROBLEMS, REGRESSION, SINGLE, TOKEN

FAMILIES = ("bert", "roberta", "electra", "distilbert")
ACTIVATION_NAMES = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "tanh")

LEAK = 0.01  # slope of leaky_relu below 0
WORD_FAMILIES = ("glove-cnn", "densenet-cnn", "densenet-dsa")

MOST_LAYERS = 1000


class _Classifier:
    """What the configurations of all classifiers have in common."""

    labels: tuple[str, ...]
    problem: str

    @property
    def regression(self) -> bool:
        """Whether the output is a number."""
        return self.problem == REGRESSION

    @property
    def num_labels(self) -> int:
        """Number of outputs of the classifier; 0 where there is none."""
        return 1 if self.regression else len(self.labels)

    def require_classifier(self, source: object) -> None:
        """See that the model has what predicts.

        Raises:
            UserError: it has not; names `source`.
        """
        if not self.num_labels:
            raise UserError(f"{source}: an encoder without a classifier; fine-tune it first (minddistill finetune)")

    def _check_fields(self, positive: Sequence[str], probabilities: Sequence[str]) -> None:
        """See that fields hold what their annotations say; labels become a tuple."""
        for item in fields(self):
            _check_type(item.name, getattr(self, item.name), str(item.type))
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.problem not in PROBLEMS:
            raise UserError(f"problem is {self.problem!r}; expected one of {', '.join(PROBLEMS)}")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected a positive whole number")
        for name in probabilities:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number from 0 up to, not including, 1")


@dataclass(frozen=True)
class ModelConfig(_Classifier):
    """Shape and numerics of an encoder; the names are those of Hugging Face configurations."""

    family: str = "bert"
    """Which published architecture the weights follow: bert, roberta, electra or distilbert."""
    vocab_size: int = 30522
    """Rows of the word embedding; must agree with the tokenizer of the records."""
    hidden_size: int = 384
    """Width of the encoder's hidden states."""
    num_hidden_layers: int = 4
    """Number of encoder layers."""
    num_attention_heads: int = 12
    """Attention heads per layer."""
    attention_head_size: int = 0
    """Width of one head; 0 stands for hidden_size / num_attention_heads."""
    intermediate_size: int = 1536
    """Width of the feed-forward layer."""
    embedding_size: int = 0
    """Width of the embeddings, projected to hidden_size where it differs (ELECTRA); 0 stands for hidden_size."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward layer; gelu is the exact form."""
    hidden_dropout_prob: float = 0.1
    """Dropout of embeddings and of both sub-layers' outputs."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout of attention probabilities."""
    classifier_dropout: float | None = None
    """Dropout before the classifier; None is that of the embeddings."""
    max_position_embeddings: int = 512
    """Rows of the position embedding."""
    type_vocab_size: int = 2
    """Rows of the segment embedding; 0 for none (DistilBERT)."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal that new weights are drawn from."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in layer norm."""
    pad_token_id: int = 0
    """Id of padding; RoBERTa's positions start behind it."""
    use_relative_positions: bool = False
    """Relative positions in keys and values (Shaw et al. 2018) in place of absolute ones."""
    max_relative_position: int = 16
    """Distances beyond this share one relative embedding."""
    pooler: bool = True
    """Whether the model has the dense layer over the first token."""
    relu_before_classifier: bool = False
    """ReLU between pooler and classifier, as TinyBERT's original code has it; transformers cannot express it."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the logits; empty for an encoder without a classifier."""
    problem: str = SINGLE
    """What the outputs mean: one class of several, several labels at once, a number, or a class for each token."""
    num_attention_heads_per_layer: tuple[int, ...] = ()
    """Heads of each layer where they differ (pruned models); num_attention_heads is then the most of them."""
    intermediate_size_per_layer: tuple[int, ...] = ()
    """Widths of the feed-forward layers where they differ; intermediate_size is then the widest."""

    def __post_init__(self) -> None:
        positive = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        own = () if self.classifier_dropout is None else ("classifier_dropout",)
        self._check_fields(positive, ("hidden_dropout_prob", "attention_probs_dropout_prob", *own))
        if self.attention_head_size == 0:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}; give attention_head_size, or sizes that divide"
                )
            object.__setattr__(self, "attention_head_size", self.hidden_size // self.num_attention_heads)
        if self.embedding_size == 0:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        # A token classifier reads every position; some families have a pooler only as a part of their classifier.
        if self.problem == TOKEN or (self.family in ("electra", "distilbert") and not self.labels):
            object.__setattr__(self, "pooler", False)
        for name in ("num_attention_heads", "intermediate_size"):
            self._take_per_layer(name, f"{name}_per_layer")
        if self.num_hidden_layers > MOST_LAYERS:
            raise UserError(f"num_hidden_layers is {self.num_hidden_layers}; expected at most {MOST_LAYERS}")
        if self.hidden_act not in ACTIVATION_NAMES:
            raise UserError(f"hidden_act is {self.hidden_act!r}; expected one of {', '.join(ACTIVATION_NAMES)}")
        if self.family not in FAMILIES:
            raise UserError(f"family is {self.family!r}; expected one of {', '.join(FAMILIES)}")

    def _take_per_layer(self, name: str, per_layer: str) -> None:
        """Check a list of sizes, one a layer; equal ones need no list."""
        sizes = getattr(self, per_layer)
        if not sizes:
            return
        if not isinstance(sizes, (list, tuple)) or not all(type(size) is int and size > 0 for size in sizes):
            raise UserError(f"{per_layer} is {sizes!r}; expected positive whole numbers, one a layer")
        if len(sizes) != self.num_hidden_layers:
            raise UserError(
                f"{per_layer} has {len(sizes)} sizes for {self.num_hidden_layers} layers; expected one each"
            )
        object.__setattr__(self, name, max(sizes))
        object.__setattr__(self, per_layer, tuple(sizes) if len(set(sizes)) > 1 else ())

    @property
    def layer_heads(self) -> tuple[int, ...]:
        """Attention heads of each layer."""
        return self.num_attention_heads_per_layer or (self.num_attention_heads,) * self.num_hidden_layers

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Width of each feed-forward layer."""
        return self.intermediate_size_per_layer or (self.intermediate_size,) * self.num_hidden_layers

    @property
    def position_offset(self) -> int:
        """Position of the first token: RoBERTa counts from pad_token_id + 1."""
        return self.pad_token_id + 1 if self.family == "roberta" else 0

    @property
    def mlm_act(self) -> str:
        """Activation of a masked-LM head: GELU, whatever the encoder's, where transformers has it so."""
        return "gelu" if self.family in ("roberta", "electra") else self.hidden_act

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens, that the model can read."""
        return self.max_position_embeddings - self.position_offset

    def with_(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed; derived sizes are derived anew where their source changes."""
        if {"hidden_size", "num_attention_heads"} & changes.keys():
            changes.setdefault("attention_head_size", 0)
        for name in ("num_attention_heads", "intermediate_size"):
            if {name, "num_hidden_layers"} & changes.keys():
                changes.setdefault(f"{name}_per_layer", ())
        if "hidden_size" in changes:
            changes.setdefault("embedding_size", 0)
        return replace(self, **changes)

    @property
    def parameters(self) -> int:
        """Numbers that a model of this shape has, heads included."""
        wide, size = self.hidden_size, self.attention_head_size
        places = 0 if self.use_relative_positions else self.max_position_embeddings
        embedding = (self.vocab_size + places + self.type_vocab_size + 2) * self.embedding_size
        projection = (self.embedding_size + 1) * wide if self.embedding_size != wide else 0
        layer = 6 * wide + (2 * (2 * self.max_relative_position + 1) * size if self.use_relative_positions else 0)
        attention = sum(self.layer_heads) * size * (4 * wide + 3)
        fed = sum(self.layer_widths) * (2 * wide + 1)
        heads = ((wide + 1) * wide if self.pooler else 0) + (wide + 1) * self.num_labels
        return embedding + projection + self.num_hidden_layers * layer + attention + fed + heads

    @property
    def summary(self) -> str:
        """The shape in a few words."""
        layers, heads = self.num_hidden_layers, self.num_attention_heads
        return f"{self.family}, {layers} layers of width {self.hidden_size}, {heads} heads"

    def values(self, length: int) -> int:
        """Numbers that a training step keeps of one token of a row of this length, about."""
        wide = 6 * self.hidden_size + 2 * self.intermediate_size
        return self.num_hidden_layers * (wide + 4 * self.num_attention_heads * length)


@dataclass(frozen=True)
class WordConfig(_Classifier):
    """Shape of a convolutional classifier on word vectors: TextCNN (Kim 2014, arXiv 1408.5882), after a densely connected
    block in the densenet families, or dynamic self-attention (Yoon et al. 2018, arXiv 1808.07383) in its place."""

    family: str = "glove-cnn"
    """glove-cnn, densenet-cnn or densenet-dsa."""
    vocab_size: int = 1
    """Words, those for padding and unknown words among them."""
    embedding_size: int = 300
    """Width of the word vectors."""
    dense_kernels: tuple[tuple[int, ...], ...] = ()
    """Widths of the dense block's convolutions, by level and column; none without that block."""
    first_filters: int = 200
    """Filters of the block's first level."""
    growth: int = 100
    """Filters of each further level, which reads all levels of its column before it."""
    joined_size: int = 400
    """Width to which word vectors and last levels of all columns are brought together."""
    kernels: tuple[int, ...] = ()
    """Widths of the TextCNN's convolutions; none where attention pools."""
    filters: int = 256
    """Filters of each of them."""
    attention_heads: int = 0
    """Heads of the dynamic self-attention; 0 where the TextCNN pools."""
    attention_size: int = 300
    """Width of one of them."""
    attention_steps: int = 2
    """Times that attention is computed."""
    hidden_size: int = 256
    """Width of the layer before the classifier; 0 for none."""
    activation: str = "relu"
    """Of the dense block: relu or leaky_relu."""
    dropout: float = 0.2
    """Of word vectors, the block's output, and what the linear layers read."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in layer norm."""
    max_length: int = 512
    """The longest text, in words."""
    pad_token_id: int = 0
    """Id of padding."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the logits."""
    problem: str = SINGLE
    """What the outputs mean, one of `problems.PROBLEMS`, of whole texts."""

    initializer_range: ClassVar[None] = None  # new matrices are drawn as He et al. have it (2015, arXiv 1502.01852)

    def __post_init__(self) -> None:
        positive = ("vocab_size", "embedding_size", "max_length", "filters", "first_filters", "growth", "joined_size")
        self._check_fields((*positive, "attention_size", "attention_steps"), ("dropout",))
        object.__setattr__(self, "kernels", _widths("kernels", self.kernels))
        levels = self.dense_kernels if isinstance(self.dense_kernels, (list, tuple)) else ()
        object.__setattr__(self, "dense_kernels", tuple(_widths("dense_kernels", level, odd=True) for level in levels))
        if len({len(level) for level in self.dense_kernels}) > 1:
            raise UserError(f"dense_kernels is {self.dense_kernels}; expected as many columns in each level")
        if bool(self.kernels) == bool(self.attention_heads):
            raise UserError(
                f"kernels is {self.kernels}, attention_heads {self.attention_heads}; expected one of both to pool"
            )
        if self.problem == TOKEN:
            raise UserError(f"problem is {TOKEN}; a {self.family} says nothing of single words")
        if self.family not in WORD_FAMILIES:
            raise UserError(f"family is {self.family!r}; expected one of {', '.join(WORD_FAMILIES)}")
        if self.activation not in ("relu", "leaky_relu"):
            raise UserError(f"activation is {self.activation!r}; expected relu or leaky_relu")

    def with_(self, **changes: Any) -> WordConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @property
    def columns(self) -> tuple[tuple[tuple[int, int, int], ...], ...]:
        """The dense block's convolutions, by column and level: inputs, filters and width."""
        return tuple(
            tuple(
                (self.first_filters + self.growth * (level - 1), self.growth, width)
                if level
                else (self.embedding_size, self.first_filters, width)
                for level, width in enumerate(column)
            )
            for column in zip(*self.dense_kernels, strict=True)
        )

    @property
    def pool_inputs(self) -> int:
        """Width of what is pooled."""
        return self.joined_size if self.dense_kernels else self.embedding_size

    @property
    def pooled_size(self) -> int:
        """Width of what comes of pooling."""
        return self.attention_heads * self.attention_size or self.filters * len(self.kernels)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every array of the model by its path."""
        linear: dict[str, tuple[int, int]] = {}
        norms: dict[str, int] = {"pooled_norm": self.pooled_size}
        for number, column in enumerate(self.columns):
            for level, (inputs, filters, width) in enumerate(column):
                linear[f"dense.columns.{number}.levels.{level}"] = (filters, width * inputs)
        if self.columns:
            last = sum(column[-1][1] for column in self.columns)
            linear["dense.join"], norms["norm"] = (self.joined_size, self.embedding_size + last), self.joined_size
        for number, width in enumerate(self.kernels):
            linear[f"pool.convolutions.{number}"] = (self.filters, width * self.pool_inputs)
        if self.attention_heads:
            linear["pool.values"] = (self.pooled_size, self.pool_inputs)
        if self.hidden_size:
            linear["hidden"], norms["hidden_norm"] = (self.hidden_size, self.pooled_size), self.hidden_size
        if self.num_labels:
            linear["classifier"] = (self.num_labels, self.hidden_size or self.pooled_size)
        found: dict[str, tuple[int, ...]] = {"embeddings.word": (self.vocab_size, self.embedding_size)}
        for path, shape in linear.items():
            found |= {f"{path}.weight": shape, f"{path}.bias": shape[:1]}
        return found | {f"{path}.{leaf}": (size,) for path, size in norms.items() for leaf in ("gamma", "beta")}

    @property
    def parameters(self) -> int:
        """Numbers that a model of this shape has, word vectors included."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def summary(self) -> str:
        """The shape in a few words."""
        return f"{self.family}, {self.vocab_size} words, vectors of {self.embedding_size}"

    def values(self, length: int) -> int:
        """Numbers that a training step keeps of one token of a row, about: the windows that are multiplied, and filters."""
        return sum(
            3 * size for path, shape in self.shapes().items() if path.startswith(("dense.", "pool.")) for size in shape
        )


def _widths(name: str, given: Any, odd: bool = False) -> tuple[int, ...]:
    """See that a list holds widths of convolutions.

    Raises:
        UserError: it does not; names the field.
    """
    known = isinstance(given, (list, tuple)) and all(type(width) is int and width > 0 for width in given)
    if not known or (odd and not all(width % 2 for width in given)):
        raise UserError(f"{name} is {given!r}; expected positive {'odd' if odd else 'whole'} numbers")
    return tuple(given)


_NONE = " | None"


def _check_type(name: str, value: Any, kind: str) -> None:
    """See that a field holds what its annotation says; numbers are finite and none of them is negative."""
    if value is None and kind.endswith(_NONE):
        return
    kind = kind.removesuffix(_NONE)
    expected = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}.get(kind)
    if expected is None:
        return
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
        raise UserError(f"{name} is {value!r}; expected {kind}")
    if kind in ("int", "float") and not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} is {value}; expected a number, 0 or more")
