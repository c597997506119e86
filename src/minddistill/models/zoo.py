"""MindSpore `.ckpt` files of the model zoo's BERT and TinyBERT, and our own.

The zoo saves parameters under the path they had in its training cell, so the same tensor goes by several prefixes
(`bert.bert.bert_encoder...`, `bert.tinybert_encoder...`, none); two vintages name the embeddings differently.
"""

from __future__ import annotations

import re
from pathlib import Path

import mindspore as ms
import numpy as np

from ..errors import UserError
from .config import ModelConfig

# What may stand before the names of the model itself.
_PREFIX = re.compile(r"^(?:(?:bert|tinybert|teacher|student|network|backbone)\.)*")
_BODY = (
    (r"(?:tiny)?bert_embedding_lookup\.embedding_table", "encoder.embeddings.word"),
    (
        r"(?:tiny)?bert_embedding_postprocessor\.(?:token_type_embedding\.)?embedding_table",
        "encoder.embeddings.segment",
    ),
    (
        r"(?:tiny)?bert_embedding_postprocessor\.full_position_embedding(?:s|\.embedding_table)",
        "encoder.embeddings.position",
    ),
    (r"(?:tiny)?bert_embedding_postprocessor\.layernorm\.(gamma|beta)", r"encoder.embeddings.norm.\1"),
    (
        r"(?:tiny)?bert_encoder\.layers\.(\d+)\.attention\.attention\.(query|key|value)_layer\.(weight|bias)",
        r"encoder.layers.\1.\2.\3",
    ),
    (
        r"(?:tiny)?bert_encoder\.layers\.(\d+)\.attention\.output\.dense\.(weight|bias)",
        r"encoder.layers.\1.attention_output.\2",
    ),
    (
        r"(?:tiny)?bert_encoder\.layers\.(\d+)\.attention\.output\.layernorm\.(gamma|beta)",
        r"encoder.layers.\1.attention_norm.\2",
    ),
    (r"(?:tiny)?bert_encoder\.layers\.(\d+)\.intermediate\.(weight|bias)", r"encoder.layers.\1.intermediate.\2"),
    (r"(?:tiny)?bert_encoder\.layers\.(\d+)\.output\.dense\.(weight|bias)", r"encoder.layers.\1.output.\2"),
    (r"(?:tiny)?bert_encoder\.layers\.(\d+)\.output\.layernorm\.(gamma|beta)", r"encoder.layers.\1.output_norm.\2"),
    (r"dense\.(weight|bias)", r"pooler.\1"),
    (r"dense_1\.(weight|bias)", r"classifier.\1"),
    (r"cls1\.dense\.(weight|bias)", r"mlm.transform.\1"),
    (r"cls1\.layernorm\.(gamma|beta)", r"mlm.norm.\1"),
    (r"cls1\.output_bias", "mlm.bias"),
    (r"(fit_dense|fit_denses\.\d+)\.(weight|bias)", r"\1.\2"),
)
_BODY_PATTERNS = [(re.compile(pattern), ours) for pattern, ours in _BODY]
# Optimiser moments, counters and the next-sentence head: known, and of no use here.
_IGNORED = re.compile(
    r".*(adam_[mv]\.|moments?[12]?\.|adam\.|lamb_|global_step|learning_rate|loss_scale|scale_sense|beta[12]_power|"
    r"current_iterator_step|last_overflow_iterator_step|epoch_num|step_num|cls2\.|total_num|start_num|end_num).*"
)


def read_ckpt(path: Path) -> dict[str, np.ndarray]:
    """Read a MindSpore checkpoint under our parameter paths, `fit_dense` and `fit_denses.N` included.

    Raises:
        UserError: the file is absent or damaged, or holds a tensor whose name is not known.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a MindSpore .ckpt file or a model directory")
    try:
        raw = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a whole MindSpore checkpoint ({first[:120]}); copy it again") from None
    values, unknown = {}, []
    for name, parameter in raw.items():
        if _IGNORED.fullmatch(name):
            continue
        ours = _ours(name)
        if ours is None:
            unknown.append(name)
        else:
            values[ours] = parameter.asnumpy()
    if unknown or not values:
        found = ", ".join(unknown[:4]) or "no weights"
        raise UserError(f"{path}: tensors with names that are not the model zoo's: {found}; expected BERT or TinyBERT")
    return values


def _ours(name: str) -> str | None:
    if name.startswith(("encoder.", "pooler.", "classifier.", "mlm.")):
        return name
    bare = _PREFIX.sub("", name)
    for pattern, ours in _BODY_PATTERNS:
        match = pattern.fullmatch(bare)
        if match:
            return match.expand(ours)
    return None


def config_from_arrays(values: dict[str, np.ndarray], heads: int, where: str) -> ModelConfig:
    """Work out the shape of a model from its weights; the number of heads cannot be seen in them.

    Raises:
        UserError: the word embedding or the first layer is missing.
    """
    try:
        vocabulary, embedding = values["encoder.embeddings.word"].shape
        inner, hidden = values["encoder.layers.0.intermediate.weight"].shape
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} is missing; expected the weights of a whole encoder") from None
    layers = 1 + max(int(path.split(".")[2]) for path in values if path.startswith("encoder.layers."))
    classes = values["classifier.bias"].size if "classifier.bias" in values else 0
    position = values.get("encoder.embeddings.position")
    return ModelConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        embedding_size=embedding,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=512 if position is None else position.shape[0],
        type_vocab_size=values["encoder.embeddings.segment"].shape[0] if "encoder.embeddings.segment" in values else 0,
        pooler="pooler.weight" in values,
        # The zoo's classifiers put a ReLU where BERT has dropout.
        relu_before_classifier=classes > 0,
        labels=tuple(f"LABEL_{index}" for index in range(classes)),
        hidden_act="gelu_new",
        layer_norm_eps=1e-7,  # MindSpore's default, which the zoo's models have
    )
