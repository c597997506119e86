"""Hugging Face folders in and out: one table per family, read strictly, inverted for writing.

Our parameter paths are the left side everywhere; the right side is the name in a Hugging Face file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..files import read_json
from ..problems import PROBLEMS, REGRESSION, SINGLE, TOKEN
from .config import WORD_FAMILIES, ModelConfig, WordConfig

_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
    "relative.keys": "attention.self.relative_keys",
    "relative.values": "attention.self.relative_values",
}
_DISTILBERT_LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "intermediate": "ffn.lin1",
    "output": "ffn.lin2",
    "output_norm": "output_layer_norm",
    "relative.keys": "attention.relative_keys",
    "relative.values": "attention.relative_values",
}
_EMBEDDINGS = {
    "encoder.embeddings.word": "embeddings.word_embeddings.weight",
    "encoder.embeddings.position": "embeddings.position_embeddings.weight",
    "encoder.embeddings.segment": "embeddings.token_type_embeddings.weight",
    "encoder.embeddings.norm": "embeddings.LayerNorm",
    "encoder.projection": "embeddings_project",
}


@dataclass(frozen=True)
class Family:
    """How one Hugging Face family names things.

    `prefix` stands before the encoder's names in models with a head; `classifier` and `mlm` map heads; `unused`
    matches tensors that a file may hold and we do not read.
    """

    architecture: str
    prefix: str
    layer_path: str
    layer: Mapping[str, str]
    pooler: str
    classifier: Mapping[str, str]
    mlm: Mapping[str, str]
    unused: str


FAMILIES = {
    "bert": Family(
        "Bert",
        "bert.",
        "encoder.layer.",
        _BERT_LAYER,
        "pooler.dense",
        {"pooler": "bert.pooler.dense", "classifier": "classifier"},
        {
            "mlm.transform": "cls.predictions.transform.dense",
            "mlm.norm": "cls.predictions.transform.LayerNorm",
            "mlm.bias": "cls.predictions.bias",
            "mlm.decoder": "cls.predictions.decoder.weight",
        },
        r"cls\.|fit_dense",
    ),
    "roberta": Family(
        "Roberta",
        "roberta.",
        "encoder.layer.",
        _BERT_LAYER,
        "pooler.dense",
        {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
        {
            "mlm.transform": "lm_head.dense",
            "mlm.norm": "lm_head.layer_norm",
            "mlm.bias": "lm_head.bias",
            "mlm.decoder": "lm_head.decoder.weight",
        },
        r"lm_head\.|(roberta\.)?pooler\.",
    ),
    "electra": Family(
        "Electra",
        "electra.",
        "encoder.layer.",
        _BERT_LAYER,
        "",
        {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
        {
            "mlm.transform": "generator_predictions.dense",
            "mlm.norm": "generator_predictions.LayerNorm",
            "mlm.bias": "generator_lm_head.bias",
            "mlm.decoder": "generator_lm_head.weight",
        },
        r"discriminator_predictions\.|generator_",
    ),
    "distilbert": Family(
        "DistilBert",
        "distilbert.",
        "transformer.layer.",
        _DISTILBERT_LAYER,
        "",
        {"pooler": "pre_classifier", "classifier": "classifier"},
        {
            "mlm.transform": "vocab_transform",
            "mlm.norm": "vocab_layer_norm",
            "mlm.bias": "vocab_projector.bias",
            "mlm.decoder": "vocab_projector.weight",
        },
        r"vocab_",
    ),
}

# Field of ModelConfig: key of config.json, where DistilBERT's differ from everybody's.
_DISTILBERT_KEYS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}
_COMMON_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_head_size",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "use_relative_positions",
    "max_relative_position",
    "relu_before_classifier",
    "num_attention_heads_per_layer",
    "intermediate_size_per_layer",
)
_HEAD_FIELDS = ("labels", "problem")  # told as transformers tells them
_MOST_LABELS = 100_000
# How the architecture of a model with a classifier ends.
_HEADS = dict.fromkeys(PROBLEMS, "ForSequenceClassification") | {TOKEN: "ForTokenClassification"}
_OWN_FIELDS = (
    "use_relative_positions",
    "max_relative_position",
    "relu_before_classifier",
    "num_attention_heads_per_layer",
    "intermediate_size_per_layer",
)


def config_from_hf(values: Mapping[str, Any], where: str) -> ModelConfig | WordConfig:
    """Translate the content of a Hugging Face `config.json`, or of one of a model on word vectors, whose names are our own.

    Raises:
        UserError: another architecture, a missing size or an option that is not supported; names `where`.
    """
    family = values.get("model_type", "bert")
    if family in WORD_FAMILIES:
        return _word_config(values, family, where)
    if not isinstance(family, str) or family not in FAMILIES:
        expected = ", ".join((*FAMILIES, *WORD_FAMILIES))
        raise UserError(f"{where}: model_type is {family!r}; expected one of {expected}")
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"{where}: position_embedding_type is {values['position_embedding_type']!r}; expected 'absolute'"
        )
    keys = _DISTILBERT_KEYS if family == "distilbert" else {}
    fields: dict[str, Any] = {"family": family}
    for field in _COMMON_FIELDS:
        if values.get(keys.get(field, field)) is not None:
            fields[field] = values[keys.get(field, field)]
    if family == "distilbert":
        fields["type_vocab_size"] = 0
    if family == "roberta":
        fields.setdefault("pad_token_id", 1)  # transformers' default, from which positions are counted
    if family == "electra":
        fields["embedding_size"] = values.get("embedding_size", 128)
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if field not in fields:
            raise UserError(f"{where}: {keys.get(field, field)} is missing; expected a whole number")
    fields["labels"] = _labels(values, where)
    fields["problem"] = _problem(values, where) if fields["labels"] else SINGLE
    if fields["problem"] == REGRESSION and len(fields["labels"]) > 1:
        raise UserError(f"{where}: a regression with {len(fields['labels'])} outputs; expected one number")
    try:
        return ModelConfig(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _word_config(values: Mapping[str, Any], family: str, where: str) -> WordConfig:
    names = [field.name for field in dataclasses.fields(WordConfig) if field.name not in ("family", *_HEAD_FIELDS)]
    missing = [name for name in names if name not in values]
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing; expected the config.json that minddistill wrote")
    shape = {name: values[name] for name in names}
    try:
        return WordConfig(family, **shape, labels=_labels(values, where), problem=_problem(values, where))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _labels(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    architectures = values.get("architectures") or [""]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise UserError(f"{where}: architectures is {architectures!r}; expected a list of names")
    if not architectures[0].endswith(tuple(_HEADS.values())):
        return ()
    names = values.get("id2label")
    if names is None:
        count = values.get("num_labels", 2)
        if type(count) is not int or not 0 < count <= _MOST_LABELS:
            raise UserError(f"{where}: num_labels is {count!r}; expected a whole number from 1 to {_MOST_LABELS}")
        return tuple(f"LABEL_{index}" for index in range(count))
    try:
        ordered = {int(index): name for index, name in names.items()}
        found = tuple(ordered[index] for index in range(len(ordered)))
    except (AttributeError, ValueError, KeyError):
        raise UserError(f"{where}: id2label is {names!r}; expected names for 0, 1, ... without gaps") from None
    if not all(isinstance(name, str) for name in found) or len(set(found)) < len(names):
        raise UserError(f"{where}: id2label is {names!r}; expected a name of its own for each class")
    return found


def _problem(values: Mapping[str, Any], where: str) -> str:
    if (values.get("architectures") or [""])[0].endswith(_HEADS[TOKEN]):
        return TOKEN
    # As transformers has it: one output is a number.
    known = values.get("problem_type") or (REGRESSION if len(_labels(values, where)) == 1 else SINGLE)
    if known not in PROBLEMS:
        raise UserError(f"{where}: problem_type is {known!r}; expected one of {', '.join(PROBLEMS)}")
    return known


def config_to_hf(config: ModelConfig | WordConfig) -> dict[str, Any]:
    """The `config.json` from which transformers rebuilds the model, as far as it can express it."""
    word = isinstance(config, WordConfig)
    architecture = "Words" if word else FAMILIES[config.family].architecture
    head = _HEADS[config.problem] if config.num_labels else "Model"
    values: dict[str, Any] = {"architectures": [architecture + head], "model_type": config.family}
    values |= _word_fields(config) if word else _encoder_fields(config)
    if config.num_labels:
        values["id2label"] = {str(index): name for index, name in enumerate(config.labels)}
        values["label2id"] = {name: index for index, name in enumerate(config.labels)}
        if config.problem != TOKEN:  # which the architecture says, and transformers knows no such problem_type
            values["problem_type"] = config.problem
    return values


def _word_fields(config: WordConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in ("family", *_HEAD_FIELDS)}


def _encoder_fields(config: ModelConfig) -> dict[str, Any]:
    keys = _DISTILBERT_KEYS if config.family == "distilbert" else {}
    values = {}
    for field in _COMMON_FIELDS:
        if getattr(config, field) is None or (field in _OWN_FIELDS and not getattr(config, field)):
            continue
        if field == "max_relative_position" and not config.use_relative_positions:
            continue
        values[keys.get(field, field)] = getattr(config, field)
    if config.family == "electra":
        values["embedding_size"] = config.embedding_size
    return values


def transformers_can_express(config: ModelConfig | WordConfig) -> bool:
    """Whether transformers' model of the architecture named by `config_to_hf(config)` is the same network."""
    if isinstance(config, WordConfig):
        return False
    plain_heads = config.attention_head_size * config.num_attention_heads == config.hidden_size
    uneven = config.num_attention_heads_per_layer or config.intermediate_size_per_layer
    return plain_heads and not uneven and not config.use_relative_positions and not config.relu_before_classifier


def hf_names(config: ModelConfig | WordConfig, paths: list[str]) -> dict[str, str]:
    """Our parameter paths and their names in a file: with the family's prefix, or, on word vectors, the paths."""
    if isinstance(config, WordConfig):
        return {path: path for path in paths}
    family = FAMILIES[config.family]
    heads = dict(family.mlm)
    if config.problem == TOKEN:
        heads |= {"classifier": "classifier"}
    else:
        heads |= family.classifier if config.num_labels else {"pooler": family.prefix + family.pooler}
    return {path: _hf_name(path, family, heads) for path in paths}


def _hf_name(path: str, family: Family, heads: Mapping[str, str]) -> str:
    layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+?)(\.(?:weight|bias|gamma|beta))?", path)
    if layer:
        number, name, leaf = layer.groups()
        return f"{family.prefix}{family.layer_path}{number}.{family.layer[name]}{_leaf(leaf or '')}"
    for table, prefix in ((_EMBEDDINGS, family.prefix), (heads, "")):
        if path in table:
            return prefix + table[path]
        stem, _, leaf = path.rpartition(".")
        if stem in table:
            return prefix + table[stem] + _leaf("." + leaf)
    raise KeyError(path)


def _leaf(leaf: str) -> str:
    return {".gamma": ".weight", ".beta": ".bias"}.get(leaf, leaf)


def match_names(config: ModelConfig | WordConfig, names: list[str], paths: list[str], where: str) -> dict[str, str]:
    """Find each of our paths among the tensor names of a file, with or without the family's prefix.

    Returns:
        path: name in the file, for those found.

    Raises:
        UserError: the file holds tensors that nothing explains.
    """
    prefix, unused = "", r"classifier\..*"
    if isinstance(config, ModelConfig):
        prefix, unused = FAMILIES[config.family].prefix, _unused(FAMILIES[config.family])
    # Checkpoints converted from TensorFlow call layer norm's weights gamma and beta.
    canonical = {re.sub(r"(LayerNorm|layer_norm)\.(gamma|beta)$", _modern_norm, name): name for name in names}
    found = {}
    for path, name in hf_names(config, paths).items():
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in canonical:
                found[path] = canonical[candidate]
                break
    unexplained = sorted(set(names) - set(found.values()))
    unexplained = [name for name in unexplained if not re.fullmatch(unused, name)]
    if unexplained:
        raise UserError(
            f"{where}: {len(unexplained)} tensors have no place in a model of this shape ({config.summary}): "
            f"{', '.join(unexplained[:4])}{' ...' if len(unexplained) > 4 else ''}; check config.json beside it"
        )
    return found


def _unused(family: Family) -> str:
    """A pattern of the tensors that a file of the family may hold and we do not always read."""
    return rf"(.*position_ids|{family.unused}|(bert\.)?pooler\.|classifier\.|pre_classifier\.|qa_outputs\.|sequence_summary\.).*"


def _modern_norm(match: re.Match[str]) -> str:
    return f"{match[1]}.{'weight' if match[2] == 'gamma' else 'bias'}"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder, through its index where it is sharded.

    Raises:
        UserError: none is there, a shard is missing, or only a pickle is.
    """
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    if index.is_file():
        table = read_json(index, "the index of a sharded model")
        if not isinstance(table, dict) or not isinstance(table.get("weight_map"), dict):
            raise UserError(f"{index}: no weight_map; expected the index of a sharded model")
        names = list(table["weight_map"].values())
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"{index}: weight_map is not a table of file names; copy it again")
        shards = [directory / name for name in sorted(set(names))]
        for shard in shards:
            if shard.parent != directory or not shard.is_file():
                raise UserError(f"{shard}: no such file, though {index} names it; copy all shards of the model")
        return shards
    if (directory / "pytorch_model.bin").is_file():
        raise UserError(refuse_pickle(directory / "pytorch_model.bin"))
    raise UserError(f"{directory}: no model.safetensors in it; expected a model directory")


def refuse_pickle(path: Path) -> str:
    """The message that refuses a pickle and says how to convert it."""
    return (
        f"{path}: a pickle, which could run code when read; expected safetensors; convert it once where PyTorch is "
        'installed: python -c "import torch, sys; from safetensors.torch import save_file; '
        "save_file({k: v.contiguous().clone() for k, v in torch.load(sys.argv[1], weights_only=True).items()}, sys.argv[2], "
        f"metadata={{'format': 'pt'}})\" {path} {path.parent / 'model.safetensors'}"
    )


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a safetensors file; half precision becomes float32.

    Raises:
        UserError: the file is absent, damaged or not safetensors.
    """
    try:
        with safe_open(path, framework="numpy") as handle:
            return {name: _plain(handle, name, path) for name in handle.keys()}  # noqa: SIM118, not a dict
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected weights in safetensors") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from None


def _plain(handle: Any, name: str, path: Path) -> np.ndarray:
    try:
        value = handle.get_tensor(name)
    except TypeError as error:
        raise UserError(
            f"{path}: tensor {name}: {error}; expected float32 or float16; save the model in float32"
        ) from None
    return value.astype(np.float32) if value.dtype.kind == "f" and value.dtype != np.float32 else value
