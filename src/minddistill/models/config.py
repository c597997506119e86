"""The configuration of an encoder and of the head on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import UserError
from ..problems import PROBLEMS, REGRESSION, SINGLE, TOKEN

FAMILIES = ("bert", "roberta", "electra", "distilbert")
ACTIVATION_NAMES = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "tanh")

MOST_LAYERS = 1000


@dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of a model; the names are those of Hugging Face configurations."""

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
        for item in fields(self):
            _check_type(item.name, getattr(self, item.name), str(item.type))
        if self.attention_head_size == 0:
            if self.hidden_size % max(self.num_attention_heads, 1):
                raise UserError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}; give attention_head_size, or sizes that divide"
                )
            object.__setattr__(self, "attention_head_size", self.hidden_size // self.num_attention_heads)
        if self.embedding_size == 0:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.problem not in PROBLEMS:
            raise UserError(f"problem is {self.problem!r}; expected one of {', '.join(PROBLEMS)}")
        # A token classifier reads every position; some families have a pooler only as a part of their classifier.
        if self.problem == TOKEN or (self.family in ("electra", "distilbert") and not self.labels):
            object.__setattr__(self, "pooler", False)
        for name in ("num_attention_heads", "intermediate_size"):
            self._take_per_layer(name, f"{name}_per_layer")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected a positive whole number")
        if self.num_hidden_layers > MOST_LAYERS:
            raise UserError(f"num_hidden_layers is {self.num_hidden_layers}; expected at most {MOST_LAYERS}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number from 0 up to, not including, 1")
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
    def regression(self) -> bool:
        """Whether the output is a number."""
        return self.problem == REGRESSION

    @property
    def num_labels(self) -> int:
        """Number of outputs of the classifier; 0 for an encoder alone."""
        return 1 if self.regression else len(self.labels)

    @property
    def position_offset(self) -> int:
        """Position of the first token: RoBERTa counts from pad_token_id + 1."""
        return self.pad_token_id + 1 if self.family == "roberta" else 0

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

    def require_classifier(self, source: object) -> None:
        """See that the model has what predicts.

        Raises:
            UserError: it is an encoder alone; names `source`.
        """
        if not self.num_labels:
            raise UserError(f"{source}: an encoder without a classifier; fine-tune it first (minddistill finetune)")


def _check_type(name: str, value: Any, kind: str) -> None:
    """See that a field holds what its annotation says; numbers are finite and none of them is negative."""
    expected = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}.get(kind)
    if expected is None:
        return
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
        raise UserError(f"{name} is {value!r}; expected {kind}")
    if kind in ("int", "float") and not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} is {value}; expected a number, 0 or more")
