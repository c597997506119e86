"""MindDistill: distil large BERT-family text classifiers into small, fast ones on MindSpore."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from google.protobuf.internal import api_implementation

if TYPE_CHECKING:
    from pathlib import Path

    from .export.pipeline import Pipeline

# MindSpore's and our CPU kernels share cores: one's idle threads must not spin while the other works. OpenMP reads this
# when MindSpore loads it. Measured: half of the matrix products' time.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# MindSpore asks for the form of Protocol Buffers in plain Python where none is named, of this process and its children.
# Measured: reading the records of SST-2 takes ten times as long.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", api_implementation.Type())

__version__ = "0.1.0"


def pipeline(model: str | Path, *, threads: int | None = None, batch_size: int = 32) -> Pipeline:
    """A classifier of texts, called like transformers' text-classification pipeline.

    Args:
        model: model directory, of MindSpore or with an ONNX graph.
        threads: that compute one batch; the runtime's own choice by default.
        batch_size: texts that are computed together.

    Raises:
        UserError: no classifier that can be run is there, or its tokenizer is missing.
    """
    from .export.pipeline import Pipeline
    from .export.session import Session
    from .workers import check_threads

    if threads is not None:
        check_threads(threads)
    return Pipeline(Session.open(model, threads), batch_size)
