"""Heads on an encoder: pooled classification or regression, and masked-language modelling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .bert import Encoder
from .config import ModelConfig
from .layers import ACTIVATIONS, Dense, Dropout, DropoutKeys, LayerNorm, dropout_table

# What stands between the first token and the classifier, by family.
POOLER_ACTIVATION = {"bert": "tanh", "roberta": "tanh", "electra": "gelu", "distilbert": "relu"}


_HEAD_ROWS = 128  # positions that a masked-LM head reads at once


class MaskedLMHead(nn.Cell):
    """Dense, activation, layer norm, and a product with the word embedding (or an untied decoder).

    Args:
        config: of the encoder.
        tied: whether the decoder is the word embedding.
    """

    def __init__(self, config: ModelConfig, tied: bool = True):
        super().__init__()
        width = config.embedding_size
        self.transform = Dense(config.hidden_size, width)
        self.activation = ACTIVATIONS["gelu" if config.family == "roberta" else config.hidden_act]()
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.bias = Parameter(Tensor(np.zeros(config.vocab_size, np.float32)), name="bias")
        self.decoder = None
        if not tied:
            self.decoder = Parameter(Tensor(np.zeros((config.vocab_size, width), np.float32)), name="decoder")
        self.width = width
        self.vocabulary = config.vocab_size
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, hidden: Tensor, word: Tensor) -> Tensor:
        """Map hidden states (B, S, H) to scores (B, S, V); `word` (V, E) is the word embedding."""
        x = self.norm(self.activation(self.transform(hidden)))
        table = word if self.decoder is None else self.decoder
        scores = self.matmul(x.reshape(-1, self.width), table) + self.bias
        return scores.reshape(hidden.shape[:2] + (self.vocabulary,))


class TextModel(nn.Cell):
    """An encoder with the heads that its configuration names.

    Args:
        config: shape of encoder and head.
        seed, compute_type, dtype: as for `Encoder`.
        mlm: "" for no masked-LM head, "tied" or "untied" for one whose decoder is or is not the word embedding.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        compute_type: ms.Type = ms.float32,
        dtype: ms.Type = ms.float32,
        mlm: str = "",
    ):
        super().__init__()
        self.encoder = Encoder(config, seed, compute_type, dtype)
        self.pooler = Dense(config.hidden_size, config.hidden_size) if config.pooler else None
        self.activation = ACTIVATIONS[POOLER_ACTIVATION[config.family]]()
        self.relu = config.relu_before_classifier
        self.classifier = Dense(config.hidden_size, config.num_labels) if config.num_labels else None
        self.mlm = MaskedLMHead(config, tied=mlm == "tied") if mlm else None
        probability = config.hidden_dropout_prob
        self.keys = DropoutKeys(seed + 1, 1)
        self.dropout = Dropout(probability, dropout_table(1, config.hidden_size)) if probability else None
        self.config = config

    def construct(self, batch: dict, step: Tensor | None = None, first_only: bool = False) -> dict:
        """Return the encoder's outputs and those of the heads: `mlm_logits` (B, S, V) of a masked-LM model, else, as far
        as the model has them, `pooled` (B, H) and `logits` (B, C). `first_only` is as for `Encoder`."""
        # Each branch builds its dict at once: setting an item has no gradient in graph mode.
        encoded = self.encoder(batch, step, first_only)
        hidden, attentions = encoded["hidden"], encoded["attentions"]
        last = hidden[-1].astype(ms.float32)
        if self.mlm is not None:
            scores = self.mlm(last, self.encoder.embeddings.word)
            return {"hidden": hidden, "attentions": attentions, "mlm_logits": scores}
        if self.pooler is None:
            return {"hidden": hidden, "attentions": attentions}
        pooled = self.activation(self.pooler(last[:, 0]))
        if self.classifier is None:
            return {"hidden": hidden, "attentions": attentions, "pooled": pooled}
        logits = self.classifier(self.prepare(pooled, batch, step))
        return {"hidden": hidden, "attentions": attentions, "pooled": pooled, "logits": logits}

    def prepare(self, pooled: Tensor, batch: dict, step: Tensor | None) -> Tensor:
        """What the classifier sees of the pooled state: rectified as in TinyBERT, or dropped out as in BERT."""
        if self.relu:
            return ops.relu(pooled)
        if self.dropout is not None:
            if step is not None:
                multiplier, offset = self.keys(step, batch["row"])
                keys = multiplier.reshape(-1, 1, 1), offset.reshape(-1, 1, 1)
                pooled = self.dropout(pooled.expand_dims(1), keys[0], keys[1]).squeeze(1)
        return pooled


class MaskedWords(nn.Cell):
    """A masked-LM model whose head reads some positions only: the encoder's outputs and `mlm_logits` (B, M, V).

    Its batches have `masked_lm_positions` (B, M) int32.
    """

    def __init__(self, model: TextModel):
        super().__init__(auto_prefix=False)
        self.model = model
        self.gather = ops.Gather()

    def construct(self, batch: dict, step: Tensor | None = None, first_only: bool = False) -> dict:
        encoded = self.model.encoder(batch, step)
        hidden, attentions = encoded["hidden"], encoded["attentions"]
        last = hidden[-1].astype(ms.float32)
        places = batch["masked_lm_positions"]
        first = ops.arange(0, last.shape[0]).astype(ms.int32).expand_dims(1) * last.shape[1]
        picked = self.gather(last.reshape(-1, last.shape[2]), (places + first).reshape(-1), 0)
        picked = picked.reshape(places.shape + (last.shape[2],))
        scores = self.model.mlm(picked, self.model.encoder.embeddings.word)
        return {"hidden": hidden, "attentions": attentions, "mlm_logits": scores}


class _Last(nn.Cell):
    """A model reduced to its last hidden states (B, S, H)."""

    def __init__(self, model: TextModel):
        super().__init__(auto_prefix=False)
        self.encoder = model.encoder

    def construct(self, input_ids: Tensor, input_mask: Tensor, segment_ids: Tensor) -> Tensor:
        batch = {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        return self.encoder(batch, None)["hidden"][-1].astype(ms.float32)


class _Likeliest(nn.Cell):
    """The words (N, count) that a masked-LM head holds likeliest, of hidden states (N, H)."""

    def __init__(self, model: TextModel, count: int):
        super().__init__(auto_prefix=False)
        self.head, self.word, self.count = model.mlm, model.encoder.embeddings.word, count

    def construct(self, hidden: Tensor) -> Tensor:
        scores = self.head(hidden.expand_dims(0), self.word)
        # A reshape: taking [0] copies all scores, in three times the time that computing them takes.
        return ops.topk(scores.reshape(scores.shape[1:]), self.count, -1)[1]


class Predictor(nn.Cell):
    """A model reduced to its logits, so that graph mode computes nothing else."""

    def __init__(self, model: TextModel):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, input_ids: Tensor, input_mask: Tensor, segment_ids: Tensor) -> Tensor:
        batch = {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        return self.model(batch, None, True)["logits"].astype(ms.float32)


class _Kept(nn.Cell):
    """Some of a model's outputs, one after the other: hidden states, attention scores, logits."""

    def __init__(self, model: TextModel, hidden: Sequence[int], attention: Sequence[int], logits: bool):
        super().__init__(auto_prefix=False)
        self.model, self.hidden, self.attention, self.logits = model, tuple(hidden), tuple(attention), logits
        self.first_only = not self.hidden and not self.attention

    def construct(self, input_ids: Tensor, input_mask: Tensor, segment_ids: Tensor) -> tuple:
        batch = {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        found = self.model(batch, None, self.first_only)
        kept = [found["hidden"][index].astype(ms.float16) for index in self.hidden]
        kept = kept + [found["attentions"][index].astype(ms.float16) for index in self.attention]
        if self.logits:
            kept = kept + [found["logits"].astype(ms.float32)]
        return tuple(kept)


def outputs_function(
    model: TextModel, hidden: Sequence[int], attention: Sequence[int], logits: bool
) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """A function from a batch of arrays to the named hidden states and attention scores (float16) and the logits."""
    cell = _Kept(model, hidden, attention, logits)
    names = ("input_ids", "input_mask", "segment_ids")
    return lambda batch: [value.asnumpy() for value in cell(*(Tensor(batch[name]) for name in names))]


def predict_function(model: TextModel) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A function from a batch of arrays to logits (B, C) as an array; dropout is off."""
    cell = Predictor(model)
    names = ("input_ids", "input_mask", "segment_ids")
    return lambda batch: cell(*(Tensor(batch[name]) for name in names)).asnumpy()


def likeliest_function(
    model: TextModel, count: int
) -> Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]:
    """A function from a batch of arrays, and rows (N,) and positions (N,) in it, to the ids (N, count) of the likeliest words
    there, best first."""
    last, likeliest = _Last(model), _Likeliest(model, count)
    names = ("input_ids", "input_mask", "segment_ids")

    def run(batch: Mapping[str, np.ndarray], rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        hidden = last(*(Tensor(batch[name]) for name in names)).asnumpy()[rows, positions]
        found = np.empty((len(hidden), count), np.int32)
        # The head, which costs most, is compiled once, and reads the wanted positions alone.
        for start in range(0, len(hidden), _HEAD_ROWS):
            part = hidden[start : start + _HEAD_ROWS]
            filled = np.zeros((_HEAD_ROWS, hidden.shape[1]), np.float32)
            filled[: len(part)] = part
            found[start : start + len(part)] = likeliest(Tensor(filled)).asnumpy()[: len(part)]
        return found

    return run
