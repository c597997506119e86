"""Heads on an encoder: classification or regression of the whole text or of each token, and masked-language modelling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..problems import TOKEN
from .bert import Encoder
from .config import ModelConfig
from .layers import ACTIVATIONS, Dense, Dropout, DropoutKeys, LayerNorm, dropout_table

# What stands between the first token and the classifier, by family.
POOLER_ACTIVATION = {"bert": "tanh", "roberta": "tanh", "electra": "gelu", "distilbert": "relu"}

# Families whose head, in transformers, drops out what its dense layer reads too.
_TWICE = ("roberta", "electra")

_BLOCK = 64  # words of the vocabulary whose best is looked for first


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
        self.activation = ACTIVATIONS[config.mlm_act]()
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.bias = Parameter(Tensor(np.zeros(config.vocab_size, np.float32)), name="bias")
        self.decoder = None
        if not tied:
            self.decoder = Parameter(Tensor(np.zeros((config.vocab_size, width), np.float32)), name="decoder")
        self.width = width
        self.vocabulary = config.vocab_size
        self.matmul = ops.MatMul(transpose_b=True)

    def states(self, hidden: Tensor) -> Tensor:
        """What the decoder reads (..., E) of hidden states (..., H)."""
        return self.norm(self.activation(self.transform(hidden)))

    def construct(self, hidden: Tensor, word: Tensor) -> Tensor:
        """Map hidden states (B, S, H) to scores (B, S, V); `word` (V, E) is the word embedding."""
        table = word if self.decoder is None else self.decoder
        scores = self.matmul(self.states(hidden).reshape(-1, self.width), table) + self.bias
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
        self.tokens = config.problem == TOKEN and self.classifier is not None
        probability, places = config.hidden_dropout_prob, config.max_position_embeddings if self.tokens else 1
        # DistilBERT's is for the classifier of whole texts alone.
        if config.classifier_dropout is not None and not (self.tokens and config.family == "distilbert"):
            probability = config.classifier_dropout
        self.twice = config.family in _TWICE and not self.tokens
        self.keys = DropoutKeys(seed + 1, 2 if self.twice else 1)
        self.dropout = Dropout(probability, dropout_table(places, config.hidden_size)) if probability else None
        self.config = config

    def construct(self, batch: dict, step: Tensor | None = None, first_only: bool = False) -> dict:
        """Return the encoder's outputs and those of the heads: `mlm_logits` (B, S, V) of a masked-LM model, `logits`
        (B, S, C) of a token classifier, else, as far as the model has them, `pooled` (B, H) and `logits` (B, C).

        `first_only` is as for `Encoder`; a token classifier, which reads every position, takes no notice of it."""
        # Each branch builds its dict at once: setting an item has no gradient in graph mode.
        encoded = self.encoder(batch, step, first_only and not self.tokens)
        hidden, attentions = encoded["hidden"], encoded["attentions"]
        last = hidden[-1].astype(ms.float32)
        if self.mlm is not None:
            scores = self.mlm(last, self.encoder.embeddings.word)
            return {"hidden": hidden, "attentions": attentions, "mlm_logits": scores}
        if self.tokens:
            logits = self.classifier(self.prepare(last, batch, step))
            return {"hidden": hidden, "attentions": attentions, "logits": logits}
        if self.pooler is None:
            return {"hidden": hidden, "attentions": attentions}
        first = last[:, 0]
        if self.twice and self.classifier is not None and not self.relu:
            first = self.dropped(first, batch, step, 1)
        pooled = self.activation(self.pooler(first))
        if self.classifier is None:
            return {"hidden": hidden, "attentions": attentions, "pooled": pooled}
        logits = self.classifier(self.prepare(pooled, batch, step))
        return {"hidden": hidden, "attentions": attentions, "pooled": pooled, "logits": logits}

    def prepare(self, state: Tensor, batch: dict, step: Tensor | None) -> Tensor:
        """What the classifier sees of the pooled state (B, H), or of a token classifier's hidden states (B, S, H):
        rectified as in TinyBERT, or dropped out as in BERT."""
        if self.relu:
            return ops.relu(state)
        return self.dropped(state, batch, step, 0)

    def dropped(self, state: Tensor, batch: dict, step: Tensor | None, site: int) -> Tensor:
        """The state (B, H) or (B, S, H) with the head's dropout, where a step is given; each site has masks of its own."""
        if self.dropout is None or step is None:
            return state
        multiplier, offset = self.keys(step, batch["row"])
        keys = multiplier[:, site].reshape(-1, 1, 1), offset[:, site].reshape(-1, 1, 1)
        if self.tokens:
            return self.dropout(state, keys[0], keys[1])
        return self.dropout(state.expand_dims(1), keys[0], keys[1]).squeeze(1)


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


class _Best(nn.Cell):
    """The words that a masked-LM model holds likeliest at some places.

    A word among the `count` best stands in a block whose best word is among the `count` best of all blocks, so that two
    short lists are sorted in place of the whole vocabulary. The head's bias is one more column of its decoder: adding it to
    the scores would take as long as their product.
    """

    def __init__(self, model: TextModel, count: int):
        super().__init__(auto_prefix=False)
        vocabulary = model.config.vocab_size
        self.model, self.count, self.blocks = model, count, -(-vocabulary // _BLOCK)
        self.most = min(count, self.blocks)
        decoder = model.encoder.embeddings.word if model.mlm.decoder is None else model.mlm.decoder
        table = np.zeros((self.blocks * _BLOCK, decoder.shape[1] + 1), np.float32)
        table[:vocabulary, :-1], table[:vocabulary, -1] = decoder.asnumpy(), model.mlm.bias.asnumpy()
        table[vocabulary:, -1] = -np.inf
        self.table = Parameter(Tensor(table), name="table", requires_grad=False)
        self.gather, self.highest, self.matmul = ops.Gather(), ops.ReduceMax(), ops.MatMul(transpose_b=True)

    def construct(self, input_ids: Tensor, input_mask: Tensor, segment_ids: Tensor, places: Tensor) -> Tensor:
        batch = {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        last = self.model.encoder(batch, None, False, places)["hidden"][-1].astype(ms.float32)
        count = places.shape[0]
        states = self.model.mlm.states(last[0])
        scores = self.matmul(ops.concat((states, ops.ones((count, 1), ms.float32)), 1), self.table)
        best = self.highest(scores.reshape(count, self.blocks, _BLOCK), -1)
        block = ops.topk(best, self.most)[1].astype(ms.int32)
        row = ops.arange(0, count).astype(ms.int32).expand_dims(1) * self.blocks
        words = self.gather(scores.reshape(-1, _BLOCK), (block + row).reshape(-1), 0)
        ids = block.expand_dims(2) * _BLOCK + ops.arange(0, _BLOCK).astype(ms.int32)
        place = ops.topk(words.reshape(count, -1), self.count)[1].astype(ms.int32)
        return ops.gather_elements(ids.reshape(count, -1), 1, place)


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
    """A function from a batch of arrays to logits, (B, C) or a token classifier's (B, S, C), as an array; dropout is off."""
    cell = Predictor(model)
    names = ("input_ids", "input_mask", "segment_ids")
    return lambda batch: cell(*(Tensor(batch[name]) for name in names)).asnumpy()


def likeliest_function(model: TextModel, count: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A function from a batch of arrays to the ids of the likeliest words at `places` (N,), positions b S + s in the
    batch's (B, S): (N, count) int32, likeliest first."""
    cell = _Best(model, count)
    names = ("input_ids", "input_mask", "segment_ids", "places")
    return lambda batch: cell(*(Tensor(batch[name]) for name in names)).asnumpy()
