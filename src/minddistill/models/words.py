"""Classifiers on word vectors: glove-cnn, densenet-cnn, densenet-dsa."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .cnn import TextCNN
from .config import WordConfig
from .densenet import DenseBlock, DynamicSelfAttention
from .layers import Dense, Dropout, DropoutKeys, LayerNorm, dropout_table

# Masks of the word vectors, of the block's output, and of what the two linear layers read.
_SITES = 4


class WordVectors(nn.Cell):
    """The vectors of words."""

    def __init__(self, words: int, size: int):
        super().__init__()
        self.word = Parameter(Tensor(np.zeros((words, size), np.float32)), name="word")
        self.size = size

    def set_vectors(self, values: np.ndarray) -> None:
        """Give each word its vector (V, D)."""
        self.word.set_data(Tensor(np.ascontiguousarray(values, np.float32)))

    def construct(self, ids: Tensor) -> Tensor:
        return ops.gather(self.word, ids.reshape(-1), 0).reshape(ids.shape + (self.size,))


class WordModel(nn.Cell):
    """Word vectors, a dense block where the configuration has one, pooling over positions, and linear layers.

    Args:
        config: shape of the network.
        seed: of the dropout masks.
        compute_type: of the matrix products; float16 on Ascend and GPU.
        dtype: of what is kept between layers.
    """

    def __init__(
        self,
        config: WordConfig,
        seed: int = 0,
        compute_type: ms.Type = ms.float32,
        dtype: ms.Type = ms.float32,
    ):
        super().__init__()
        self.embeddings = WordVectors(config.vocab_size, config.embedding_size)
        self.dense = self.norm = self.hidden = self.hidden_norm = self.classifier = None
        epsilon = config.layer_norm_eps
        if config.columns:
            self.dense = DenseBlock(config, compute_type)
            self.norm = LayerNorm(config.joined_size, epsilon)
        if config.attention_heads:
            self.pool = DynamicSelfAttention(config, compute_type)
        else:
            self.pool = TextCNN(config.pool_inputs, config.filters, config.kernels, compute_type)
        self.pooled_norm = LayerNorm(config.pooled_size, epsilon)
        if config.hidden_size:
            self.hidden = Dense(config.pooled_size, config.hidden_size)
            self.hidden_norm = LayerNorm(config.hidden_size, epsilon)
        if config.num_labels:
            self.classifier = Dense(config.hidden_size or config.pooled_size, config.num_labels)
        widest = max(config.embedding_size, config.joined_size, config.pooled_size, config.hidden_size)
        self.keys = DropoutKeys(seed, _SITES)
        self.dropout = Dropout(config.dropout, dropout_table(config.max_length, widest)) if config.dropout else None
        self.config, self.dtype = config, dtype

    def construct(self, batch: dict, step: Tensor | None = None, first_only: bool = False) -> dict:
        """Return `pooled` (B, H), what the classifier reads, and `logits` (B, C) where there is a classifier.

        Args:
            batch: `input_ids` and `input_mask` (B, S) int32; `row` (B,) int32 where step is given.
            step: () int32, the optimiser step whose dropout masks apply; None drops nothing.
            first_only: changes nothing; encoders compute less with it.
        """
        multiplier, offset = None, None
        if step is not None:
            multiplier, offset = self.keys(step, batch["row"])
        mask = batch["input_mask"].astype(self.dtype).expand_dims(-1)
        x = self.dropped(self.embeddings(batch["input_ids"]), 0, multiplier, offset).astype(self.dtype) * mask
        if self.dense is not None:
            x = self.dropped(self.norm(self.dense(x, mask)), 1, multiplier, offset).astype(self.dtype)
        pooled = self.pooled_norm(self.pool(x, mask))
        pooled = self.dropped(pooled.expand_dims(1), 2, multiplier, offset)
        if self.hidden is not None:
            pooled = self.dropped(self.hidden_norm(self.hidden(pooled)), 3, multiplier, offset)
        pooled = pooled.squeeze(1)
        if self.classifier is None:
            return {"pooled": pooled}
        return {"pooled": pooled, "logits": self.classifier(pooled)}

    def dropped(self, x: Tensor, site: int, multiplier: Tensor | None, offset: Tensor | None) -> Tensor:
        """x (B, S, H) with the dropout mask of one of the sites."""
        if self.dropout is not None:
            if multiplier is not None:
                x = self.dropout(x, multiplier[:, site].reshape(-1, 1, 1), offset[:, site].reshape(-1, 1, 1))
        return x
