"""One encoder for BERT, RoBERTa, ELECTRA and DistilBERT (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .config import ModelConfig
from .layers import ACTIVATIONS, Dense, Dropout, DropoutKeys, LayerNorm, Softmax, dropout_table

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

    def construct(self, input_ids: Tensor, segment_ids: Tensor) -> Tensor:
        batch, length = input_ids.shape
        x = ops.gather(self.word, input_ids.reshape(-1), 0).reshape(batch, length, self.width)
        if self.absolute:
            if self.offset:
                real = (input_ids != self.pad).astype(ms.float32)
                positions = (ops.cumsum(real, 1) * real).astype(ms.int32) + self.pad
                x = x + ops.gather(self.position, positions, 0)
            else:
                x = x + self.position[:length]
        if self.segments == 1:
            x = x + self.segment[0]
        elif self.segments == 2:
            # Two rows: a blend is far cheaper to differentiate than a gather, and equal to it.
            second = segment_ids.astype(ms.float32).reshape(batch, length, 1)
            x = x + self.segment[0] + second * (self.segment[1] - self.segment[0])
        elif self.segments > 2:
            x = x + ops.gather(self.segment, segment_ids, 0)
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

    def __init__(self, config: ModelConfig, compute_type: ms.Type, table: Tensor):
        super().__init__()
        hidden, inner = config.hidden_size, config.num_attention_heads * config.attention_head_size
        self.query = Dense(hidden, inner, compute_type)
        self.key = Dense(hidden, inner, compute_type)
        self.value = Dense(hidden, inner, compute_type)
        self.attention_output = Dense(inner, hidden, compute_type)
        self.attention_norm = LayerNorm(hidden, config.layer_norm_eps)
        self.intermediate = Dense(hidden, config.intermediate_size, compute_type)
        self.output = Dense(config.intermediate_size, hidden, compute_type)
        self.output_norm = LayerNorm(hidden, config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.hidden_act]()
        self.heads = config.num_attention_heads
        self.head_size = config.attention_head_size
        self.scale = 1.0 / math.sqrt(config.attention_head_size)
        self.softmax = Softmax()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.context = ops.BatchMatMul()
        self.relative = RelativePositions(config) if config.use_relative_positions else None
        self.hidden_dropout = Dropout(config.hidden_dropout_prob, table) if config.hidden_dropout_prob else None
        probability = config.attention_probs_dropout_prob
        self.attention_dropout = Dropout(probability, table) if probability else None

    def split(self, x: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        return x.reshape(batch, length, self.heads, self.head_size).transpose(0, 2, 1, 3)

    def construct(self, x: Tensor, bias: Tensor, keys: tuple | None) -> tuple[Tensor, Tensor]:
        """Map x (B, S, H), additive mask (B, 1, 1, S) and dropout keys to the next x and the scores (B, A, S, S)."""
        batch, length = x.shape[:2]
        query = self.split(self.query(x) * self.scale)
        scores = self.scores(query, self.split(self.key(x)))
        if self.relative is not None:
            scores = scores + self.relative(query, self.relative.keys, True)
        scores = scores.astype(ms.float32) + bias
        probabilities = self.softmax(scores).astype(query.dtype)
        if self.attention_dropout is not None:  # graph mode resolves one condition at a time
            if keys is not None:
                shape = (batch, self.heads, 1, 1)
                probabilities = self.attention_dropout(probabilities, keys[2].reshape(shape), keys[3].reshape(shape))
        context = self.context(probabilities, self.split(self.value(x)))
        if self.relative is not None:
            context = context + self.relative(probabilities, self.relative.values, False)
        context = context.transpose(0, 2, 1, 3).reshape(batch, length, self.heads * self.head_size)
        attended = self.drop(self.attention_output(context), keys, 0)
        x = self.attention_norm(x + attended.astype(x.dtype)).astype(x.dtype)
        fed = self.drop(self.output(self.activation(self.intermediate(x))), keys, 1)
        return self.output_norm(x + fed.astype(x.dtype)).astype(x.dtype), scores

    def drop(self, x: Tensor, keys: tuple | None, site: int) -> Tensor:
        if self.hidden_dropout is not None:
            if keys is not None:
                multiplier = keys[0][:, site].reshape(-1, 1, 1)
                x = self.hidden_dropout(x, multiplier, keys[1][:, site].reshape(-1, 1, 1))
        return x


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
        self.layers = nn.CellList([Layer(config, compute_type, table) for _ in range(config.num_hidden_layers)])
        self.depth = config.num_hidden_layers
        self.heads = config.num_attention_heads
        self.dtype = dtype
        self.hidden_sites = 1 + _SITES_PER_LAYER * self.depth
        self.keys = DropoutKeys(seed, self.hidden_sites + self.depth * self.heads)
        probability = config.hidden_dropout_prob
        self.dropout = Dropout(probability, table) if probability else None

    def construct(self, batch: dict, step: Tensor | None = None) -> dict:
        """Encode a batch.

        Args:
            batch: `input_ids`, `input_mask`, `segment_ids` (B, S) int32; `row` (B,) int32 where step is given.
            step: () int32, the optimiser step whose dropout masks apply; None encodes without dropout.

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
            keys = None
            if step is not None:
                first = 1 + _SITES_PER_LAYER * index
                head = self.hidden_sites + self.heads * index
                keys = (
                    multiplier[:, first : first + _SITES_PER_LAYER],
                    offset[:, first : first + _SITES_PER_LAYER],
                    multiplier[:, head : head + self.heads],
                    offset[:, head : head + self.heads],
                )
            x, scores = self.layers[index](x, bias, keys)
            hidden += (x,)
            attentions += (scores,)
        return {"hidden": hidden, "attentions": attentions}
