"""MindIR: MindSpore's own graph of a classifier, for MindSpore and MindSpore Lite."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from .. import native
from ..models import store
from ..models.heads import Predictor


def save(weights: store.Weights, path: Path) -> None:
    """Write the graph from `input_ids`, `input_mask`, `segment_ids` (B, S) int32, both axes free, to logits (B, C)."""
    with native.off():
        model = Predictor(store.build(weights)).set_train(False)
    inputs = [Tensor(shape=[None, None], dtype=ms.int32) for _ in range(3)]
    ms.export(model, *inputs, file_name=str(path), file_format="MINDIR")
