"""One encoder for BERT, RoBERTa, ELECTRA and DistilBERT (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .config import ModelConfig
from .fused import AddNorm, AttentionWeights, BiasActivation, MergeHeads, SplitHeads
from .layers import Dense, Dropout, DropoutKeys, LayerNorm, dropout_table

# What is added to the scores of padded keys, as in the original BERT and TinyBERT code.
MASKED_SCORE = -10000.0

# Masks of the embeddings, and per layer of the attention output and of the feed-forward output; then the heads'.
_SITES_PER_LAYER = 2


class Embeddings(nn.Cell):
    """Word, position and segment embeddings, layer norm, and the projection of ELECTRA."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.embedding_size
        self.word = Parameter(Tensor(np.zeros((config.vocab_size, width), np.float32)), name="word")
        self.absolute = not config.use_relative_positions
        if self.absolute:
            rows = config.max_position_embeddings
            self.position = Parameter(Tensor(np.zeros((rows, width), np.float32)), name="position")
        self.segments = config.type_vocab_size
        if self.segments:
            self.segment = Parameter(Tensor(np.zeros((config.type_vocab_size, width), np.float32)), name="segment")
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.offset = config.position_offset
        self.pad = config.pad_token_id
        self.width = width
        # What `models.fake_quant` puts others in the place of, as in `Dense`.
        self.quantise_word, self.quantise_position, self.quantise_segment = nn.Identity(), nn.Identity(), nn.Identity()

    def construct(self, input_ids: Tensor, segment_ids: Tensor) -> Tensor:
        batch, length = input_ids.shape
        words = ops.gather(self.word, input_ids.reshape(-1), 0)
        x = self.quantise_word(words).reshape(batch, length, self.width)
        if self.absolute:
            if self.offset:
                real = (input_ids != self.pad).astype(ms.float32)
                positions = (ops.cumsum(real, 1) * real).astype(ms.int32) + self.pad
                x = x + self.quantise_position(ops.gather(self.position, positions, 0))
            else:
                x = x + self.position[:length]
        if self.segments == 1:
            x = x + self.segment[0]
        elif self.segments == 2:
            # Two rows: a blend is far cheaper to differentiate than a gather, and equal to it.
            second = segment_ids.astype(ms.float32).reshape(batch, length, 1)
            segment = self.quantise_segment(self.segment)
            x = x + segment[0] + second * (segment[1] - segment[0])
        elif self.segments > 2:
            x = x + self.quantise_segment(ops.gather(self.segment, segment_ids, 0))
        return self.norm(x)


class RelativePositions(nn.Cell):
    """Learned vectors of clipped distances between positions, for keys and values (Shaw et al. 2018, arXiv 1803.02155)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        limit = config.max_relative_position
        shape = (2 * limit + 1, config.attention_head_size)
        self.keys = Parameter(Tensor(np.zeros(shape, np.float32)), name="keys")
        self.values = Parameter(Tensor(np.zeros(shape, np.float32)), name="values")
        places = np.arange(config.max_position_embeddings)
        self.distance = Tensor((np.clip(places[None] - places[:, None], -limit, limit) + limit).astype(np.int32))
        self.quantise_keys, self.quantise_values = nn.Identity(), nn.Identity()

    def construct(self, x: Tensor, table: Tensor, transpose: bool) -> Tensor:
        """Sum x (B, A, S, D or S) against the vectors of every pair of positions: scores, or their weighted values."""
        batch, heads, length, width = x.shape
        vectors = ops.gather(table, self.distance[:length, :length], 0).astype(x.dtype)  # (S, S, D)
        rows = x.transpose(2, 0, 1, 3).reshape(length, batch * heads, width)
        if transpose:
            vectors = vectors.transpose(0, 2, 1)
        return ops.bmm(rows, vectors).reshape(length, batch, heads, -1).transpose(1, 2, 0, 3)


class Layer(nn.Cell):
    """Self-attention and feed-forward, each followed by dropout, the residual and layer norm (post-norm)."""

    def __init__(self, config: ModelConfig, index: int, compute_type: ms.Type, table: Tensor):
        super().__init__()
        hidden, size = config.hidden_size, config.attention_head_size
        heads, width = config.layer_heads[index], config.layer_widths[index]
        self.query = Dense(hidden, heads * size, compute_type)
        self.key = Dense(hidden, heads * size, compute_type)
        self.value = Dense(hidden, heads * size, compute_type)
        self.attention_output = Dense(heads * size, hidden, compute_type)
        self.intermediate = Dense(hidden, width, compute_type)
        self.output = Dense(width, hidden, compute_type)
        self.activation = BiasActivation(config.hidden_act)
        self.split_scaled = SplitHeads(heads, size, 1.0 / math.sqrt(size))
        self.split, self.merge = SplitHeads(heads, size), MergeHeads(heads, size)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.context = ops.BatchMatMul()
        self.relative = RelativePositions(config) if config.use_relative_positions else None
        probability = config.attention_probs_dropout_prob
        self.weights = AttentionWeights(Dropout(probability, table) if probability else None)
        dropout = Dropout(config.hidden_dropout_prob, table) if config.hidden_dropout_prob else None
        self.attention_norm = AddNorm(hidden, config.layer_norm_eps, dropout)
        self.output_norm = AddNorm(hidden, config.layer_norm_eps, dropout)

    def construct(
        self, x: Tensor, bias: Tensor, keys: tuple, first_only: bool = False, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map x (B, S, H) and an additive mask (B, 1, 1, S) to the next x and the scores (B, A, S, S).

        `keys` are the dropout keys of the attention weights and of the two branches, each None without dropout. With
        `first_only` the next x (B, 1, H) and the scores (B, A, 1, S) are those of the first position; with `places`
        (N,) the next x (1, N, H) is that of these positions b S + s, without dropout.
        """
        mine = x[:, :1] if first_only else x
        query = self.split_scaled(self.query.product(mine), self.query.bias)
        scores = self.scores(query, self.split(self.key.product(x), self.key.bias))
        if self.relative is not None:
            scores = scores + self.relative(query, self.relative.quantise_keys(self.relative.keys), True)
        scores = scores.astype(ms.float32)
        weights = self.weights(scores, bias, keys[0]).astype(query.dtype)
        context = self.context(weights, self.split(self.value.product(x), self.value.bias))
        if self.relative is not None:
            context = context + self.relative(weights, self.relative.quantise_values(self.relative.values), False)
        context = self.merge(context)
        if places is not None:
            mine, context = self.at(mine, places), self.at(context, places)
        attended = self.attention_output.product(context)
        x = self.attention_norm(mine, attended, self.attention_output.bias, keys[1]).astype(x.dtype)
        fed = self.output.product(self.activation(self.intermediate.product(x), self.intermediate.bias))
        x = self.output_norm(x, fed, self.output.bias, keys[2]).astype(x.dtype)
        return x, scores + bias

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """The vectors (1, N, H) of x (B, S, H) at places (N,)."""
        return ops.gather(x.reshape(-1, x.shape[2]), places, 0).expand_dims(0)


class Encoder(nn.Cell):
    """Embeddings and layers.

    Args:
        config: shape of the network.
        seed: of the dropout masks.
        compute_type: of the matrix products in the layers; float16 on Ascend and GPU.
        dtype: of the hidden states between them.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        compute_type: ms.Type = ms.float32,
        dtype: ms.Type = ms.float32,
    ):
        super().__init__()
        self.embeddings = Embeddings(config)
        project = config.embedding_size != config.hidden_size
        self.projection = Dense(config.embedding_size, config.hidden_size, compute_type) if project else None
        rows = config.max_position_embeddings
        table = dropout_table(rows, max(rows, config.hidden_size, config.embedding_size))
        self.layers = nn.CellList([Layer(config, i, compute_type, table) for i in range(config.num_hidden_layers)])
        self.depth = config.num_hidden_layers
        self.absolute = not config.use_relative_positions
        self.dtype = dtype
        self.hidden_sites = 1 + _SITES_PER_LAYER * self.depth
        heads = config.layer_heads
        self.keys = DropoutKeys(seed, self.hidden_sites + sum(heads))
        self.head_sites = tuple(self.hidden_sites + sum(heads[:i]) for i in range(self.depth + 1))
        probability = config.hidden_dropout_prob
        self.dropout = Dropout(probability, table) if probability else None

    def construct(
        self, batch: dict, step: Tensor | None = None, first_only: bool = False, places: Tensor | None = None
    ) -> dict:
        """Encode a batch.

        Args:
            batch: `input_ids`, `input_mask`, `segment_ids` (B, S) int32; `row` (B,) int32 where step is given.
            step: () int32, the optimiser step whose dropout masks apply; None encodes without dropout.
            first_only: compute the last layer at the first position alone, which is all that a classifier reads; its
                dropout there is the same. Not with relative positions, where it changes nothing.
            places: (N,) int32 positions b S + s of the batch at which alone the last layer is computed, where `step` is
                None; the last hidden state is (1, N, H).

        Returns:
            `hidden`: L+1 tensors (B, S, H), the embedding output first; `attentions`: L tensors (B, A, S, S), the
            scaled scores before softmax with the mask added.
        """
        mask = batch["input_mask"]
        bias = ((1.0 - mask.astype(ms.float32)) * MASKED_SCORE).reshape(mask.shape[0], 1, 1, mask.shape[1])
        x = self.embeddings(batch["input_ids"], batch["segment_ids"])
        multiplier, offset = None, None
        if step is not None:
            multiplier, offset = self.keys(step, batch["row"])
            if self.dropout is not None:
                x = self.dropout(x, multiplier[:, 0].reshape(-1, 1, 1), offset[:, 0].reshape(-1, 1, 1))
        if self.projection is not None:
            x = self.projection(x)
        x = x.astype(self.dtype)
        hidden, attentions = (x,), ()
        for index in range(self.depth):
            keys = (None, None, None)
            if step is not None:
                first = 1 + _SITES_PER_LAYER * index
                head, end = self.head_sites[index], self.head_sites[index + 1]
                keys = (
                    self.broadcast(multiplier[:, head:end], offset[:, head:end]),
                    self.broadcast(multiplier[:, first], offset[:, first]),
                    self.broadcast(multiplier[:, first + 1], offset[:, first + 1]),
                )
            if index == self.depth - 1:
                x, scores = self.layers[index](x, bias, keys, first_only and self.absolute, places)
            else:
                x, scores = self.layers[index](x, bias, keys)
            hidden += (x,)
            attentions += (scores,)
        return {"hidden": hidden, "attentions": attentions}

    def broadcast(self, multiplier: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Dropout keys (B) or (B, A), to be broadcast over two more axes (B, 1, 1) or (B, A, 1, 1)."""
        shape = multiplier.shape + (1, 1)
        return multiplier.reshape(shape), offset.reshape(shape)
