"""A model directory as a function from token ids to logits, whatever runs it: MindSpore or ONNX Runtime."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from ..data.tokenizer import load_tokenizer
from ..errors import UserError, need
from ..files import model_path, read_json, recover_directory, refuse_damaged
from ..models import hub
from ..models.config import ModelConfig, WordConfig
from ..problems import TOKEN

if TYPE_CHECKING:
    from ..models import store

ONNX_FILE = "model.onnx"
# ONNX Runtime's addition and layer norm in one: in int8 graphs on CPU slower than the two (`benchmarks/session.py`).
SLOW_FUSION = "SkipLayerNormFusion"
# What the inputs of an ONNX graph hold, by the names that transformers and optimum give them.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Forward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Session:
    """A classifier of texts or tokens that is ready to run.

    Attributes:
        kind: "mindspore" or "onnx".
        config: shape of the model.
        labels: class names in the order of the logits.
        directory: where the model and its tokenizer are.
    """

    def __init__(self, kind: str, config: ModelConfig | WordConfig, directory: Path, forward: Forward):
        self.kind, self.config, self.directory, self.forward = kind, config, directory, forward
        self.labels = list(config.labels)

    @classmethod
    def open(cls, directory: str | Path, threads: int | None = None) -> Session:
        """Load a MindSpore model directory, or one with an ONNX graph in `model.onnx`.

        Args:
            threads: that compute one batch; the runtime's own choice by default.

        Raises:
            UserError: nothing that can be run is there, it is no classifier, or MindSpore runs in this process with
                another number of threads already.
        """
        if not str(directory):
            raise UserError("--model is empty; expected a model directory, or one with an ONNX graph")
        path = model_path(directory)
        recover_directory(path)
        if (path / ONNX_FILE).is_file():
            refuse_damaged(path)
            return cls("onnx", read_config(path), path, graph_forward(path / ONNX_FILE, threads))
        if not path.exists():
            raise UserError(f"{path}: no such model; expected a model directory, or one with an ONNX graph")
        if importlib.util.find_spec("mindspore") is None:
            raise UserError(
                f"{path}: no {ONNX_FILE} in it, and MindSpore, which runs other models, is not installed; expected a "
                "directory that minddistill export or quantize wrote"
            )
        _start_mindspore(threads)
        from ..models import store

        weights = store.read_weights(path)
        weights.config.require_classifier(directory)
        return cls("mindspore", weights.config, weights.directory, _mindspore_forward(weights))

    def predict(self, input_ids: np.ndarray, input_mask: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        """Logits, (B, C) or a token classifier's (B, S, C), float32 of a batch of whole numbers (B, S)."""
        return self.forward(input_ids, input_mask, segment_ids)

    def of_batch(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The logits of a batch of the loader's."""
        return self.predict(batch["input_ids"], batch["input_mask"], batch["segment_ids"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the model's directory.

        Raises:
            UserError: none is there, or its vocabulary is larger than the model's.
        """
        tokenizer = load_tokenizer(self.directory)
        if tokenizer.get_vocab_size() > self.config.vocab_size:
            raise UserError(
                f"{self.directory}: its tokenizer has {tokenizer.get_vocab_size()} entries, the model "
                f"{self.config.vocab_size}; expected the tokenizer that the model was trained with"
            )
        tokenizer.enable_truncation(self.config.max_length, strategy="longest_first")
        return tokenizer

    def tokens(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None = None, max_length: int | None = None
    ) -> list[Encoding]:
        """Tokenise texts, each with its pair where it has one, cut to `max_length` or what the model can read."""
        longest = min(max_length or self.config.max_length, self.config.max_length)
        if self.tokenizer.truncation["max_length"] != longest:  # another thread may be using it
            self.tokenizer.enable_truncation(longest, strategy="longest_first")
        inputs = [
            text if pair is None else (text, pair)
            for text, pair in zip(texts, pairs or [None] * len(texts), strict=True)
        ]
        if self.config.problem == TOKEN:
            return self.tokenizer.encode_batch(inputs)
        return self.tokenizer.encode_batch_fast(inputs)  # which knows no places in the text

    def padded(self, encodings: Sequence[Encoding]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three inputs of `predict`, (B, S) int64, S being the longest of the tokenised texts."""
        shape = len(encodings), max(1, *map(len, encodings))  # word tokenizers make nothing of an empty text
        ids = np.full(shape, self.config.pad_token_id, np.int64)
        mask, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding)] = encoding.ids
            mask[row, : len(encoding)] = 1
            segments[row, : len(encoding)] = encoding.type_ids
        return ids, mask, segments

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None = None, max_length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Texts as the three inputs of `predict`, (B, S) int64, padded to the longest of them."""
        return self.padded(self.tokens(texts, pairs, max_length))


@dataclass(frozen=True)
class Facts:
    """What can be told of a session to another process."""

    kind: str
    config: ModelConfig | WordConfig
    directory: Path


def describe(session: Session) -> Facts:
    """What another process may want to know of an opened model.

    Here and not beside what asks for it: the model's process imports this module, and MindSpore only once its number of
    threads is set.
    """
    return Facts(session.kind, session.config, session.directory)


def read_config(directory: Path) -> ModelConfig | WordConfig:
    """The configuration of the classifier whose graph is in a directory.

    Raises:
        UserError: there is none, or it is that of an encoder alone.
    """
    where = directory / "config.json"
    config = hub.config_from_hf(read_json(where, "the configuration beside an ONNX graph"), str(where))
    config.require_classifier(directory)
    return config


def runtime_session(graph: Path | bytes, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU whose waiting threads do not spin.

    Raises:
        UserError: the file is not a graph that this ONNX Runtime can run.
    """
    runtime = need("onnxruntime", "deploy")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    # Spinning threads take the cores from the tokenizer, and from other models in the process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if sums_overflow(platform.machine(), _processor()):
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        source = graph if isinstance(graph, bytes) else str(graph)
        return runtime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=[SLOW_FUSION]
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        reason = str(error).splitlines()[0]
        raise UserError(f"{graph}: ONNX Runtime cannot run it ({reason}); export it again") from None


def sums_overflow(machine: str, flags: Collection[str]) -> bool:
    """Whether a processor's fast kernel lets sums of int8 products overflow: x64 without VNNI.

    Others are not asked for the exact kernel, as ONNX Runtime takes it there too, at two thirds of the speed.

    Args:
        machine: as `platform.machine` has it.
        flags: the processor's features by Linux's names.
    """
    return machine in ("x86_64", "AMD64") and not {"avx512_vnni", "avx_vnni"} & {*flags}


def _processor() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(
                (line.split() for line in file if line.startswith("flags")), []
            )  # the other cores have the same
    except OSError:
        return []  # not told here


def graph_forward(graph: Path, threads: int | None = None) -> Forward:
    """A function from the three inputs of `Session.predict` to logits, by an ONNX graph.

    Raises:
        UserError: it cannot be run, or is not a text classifier's.
    """
    session = runtime_session(graph, threads)
    known = [value.name for value in session.get_inputs()]
    if not {*INPUTS[:2]} <= {*known} <= {*INPUTS}:
        raise UserError(f"{graph}: its inputs are {', '.join(known)}; expected those of {', '.join(INPUTS)}")

    def forward(*values: np.ndarray) -> np.ndarray:
        batch = dict(zip(INPUTS, values, strict=True))
        logits = session.run(None, {name: batch[name].astype(np.int64, copy=False) for name in known})[0]
        return logits.astype(np.float32, copy=False)

    return forward


@cache
def _start_mindspore(threads: int | None) -> None:
    """Start MindSpore with so many threads for its kernels and ours, which can be said once in a process."""
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # read when MindSpore is imported
    from .. import runtime

    runtime.start()
    if threads:
        from mindspore.device_context.cpu import op_tuning

        try:
            op_tuning.threads_num(threads)
        except RuntimeError:
            raise UserError(f"{threads} threads: MindSpore runs in this process with another number already") from None


def _mindspore_forward(weights: store.Weights) -> Forward:
    from ..models import heads, store

    run = heads.predict_function(store.build(weights))
    limit = weights.config.max_length

    def forward(*values: np.ndarray) -> np.ndarray:
        # Every shape is compiled anew: both axes go up to powers of two, of which there are few.
        rows, length = values[0].shape
        room = (0, _power_of_two(rows) - rows), (0, min(_power_of_two(length), limit) - length)
        fills = weights.config.pad_token_id, 0, 0
        names = ("input_ids", "input_mask", "segment_ids")
        batch = {
            name: np.pad(value, room, constant_values=fill).astype(np.int32)
            for name, value, fill in zip(names, values, fills, strict=True)
        }
        logits = run(batch)[:rows]
        return logits[:, :length] if logits.ndim > 2 else logits

    return forward


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
