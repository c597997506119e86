"""Model directories: Hugging Face folders that also say where they come from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from safetensors.numpy import save_file

from .. import __version__, params
from ..errors import UserError
from ..files import (
    RECORD_FILE,
    checksums,
    model_path,
    read_object,
    recover_directory,
    refuse_damaged,
    refuse_foreign_links,
    replace_directory,
    write_json,
    write_text,
)
from . import hub, zoo
from .config import ModelConfig, WordConfig
from .heads import TextModel
from .words import WordModel

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
WEIGHTS_FILE = "model.safetensors"
FIT_FILE = "fit_dense.safetensors"
OUTLINE_FILE = "outline.json"


@dataclass
class Weights:
    """A model read from disk: its configuration, arrays by our paths, and what came with it.

    An outline is a model of which only configuration and tokenizer are here, with the fingerprint of its arrays: it
    stands for a teacher whose outputs are in a cache.
    """

    config: ModelConfig | WordConfig
    values: dict[str, np.ndarray]
    source: Path
    fit: dict[str, np.ndarray] = field(default_factory=dict)
    outline: str = ""

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the configuration and the arrays, those of `fit` among them."""
        if self.outline:
            return self.outline
        shape = {name: value for name, value in asdict(self.config).items() if value is not None}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
        arrays = self.values | self.fit
        for path in sorted(arrays):
            digest.update(np.ascontiguousarray(arrays[path]))
        return digest.hexdigest()[:16]

    def without(self, prefix: str) -> Weights:
        """All but the arrays whose paths begin so."""
        return replace(self, values={path: value for path, value in self.values.items() if not path.startswith(prefix)})

    @property
    def count(self) -> int:
        """Numbers of the model, without a masked-LM head."""
        return sum(value.size for value in self.without("mlm.").values.values())

    @property
    def directory(self) -> Path:
        """The directory that holds the tokenizer files."""
        return self.source if self.source.is_dir() else self.source.parent


def read_weights(path: str | Path, heads: int = 12) -> Weights:
    """Read a model directory, a `.safetensors` file or a MindSpore `.ckpt`.

    Args:
        path: a Hugging Face folder, the name of an installed package that holds one, or a file; a `config.json`
            beside a file is used.
        heads: attention heads of a `.ckpt` that has no `config.json` beside it.

    Raises:
        UserError: nothing readable is there; the message names the file and what is wrong with it.
    """
    path = model_path(path)
    recover_directory(path)
    if (path / OUTLINE_FILE).is_file():
        config = _config(path)
        known = read_object(path / OUTLINE_FILE, "the outline of a teacher")
        if not isinstance(known.get("teacher"), str):
            raise UserError(f"{path / OUTLINE_FILE}: no teacher's fingerprint; run minddistill cache-teacher again")
        return Weights(config.with_(pooler=bool(config.labels)), {}, path, {}, known["teacher"])
    if path.is_dir():
        return _read_directory(path, hub.weight_files(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; expected a model directory or a .ckpt file")
    if path.suffix == ".safetensors":
        return _read_directory(path.parent, [path])
    if path.suffix == ".ckpt":
        return _read_ckpt(path, heads)
    if path.suffix in (".bin", ".pt", ".pth", ".pkl"):
        raise UserError(hub.refuse_pickle(path))
    raise UserError(f"{path}: unknown kind of file; expected a model directory, .safetensors or .ckpt")


def read_encoder(path: str | Path, heads: int = 12) -> Weights:
    """As `read_weights`, of a model with layers and attention.

    Raises:
        UserError: as `read_weights`, or it is a model on word vectors.
    """
    weights = read_weights(path, heads)
    if isinstance(weights.config, WordConfig):
        raise UserError(f"{path}: a {weights.config.family}, which has no encoder layers; expected a BERT-like model")
    return weights


def _read_directory(directory: Path, files: list[Path]) -> Weights:
    refuse_foreign_links(directory)
    config = _config(directory)
    refuse_damaged(directory)
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= hub.read_safetensors(file)
    fit = {name: value for name, value in tensors.items() if name.startswith("fit_dense")}
    tensors = {name: value for name, value in tensors.items() if name not in fit}
    if (directory / FIT_FILE).is_file():
        fit = hub.read_safetensors(directory / FIT_FILE)
    probe = hub.match_names(config, list(tensors), _paths(config, "untied"), str(files[0]))
    values = {path: tensors[name] for path, name in probe.items()}
    _check_sizes(config, values, files[0])
    for path, value in values.items():
        if value.dtype != np.float32:
            raise UserError(f"{files[0]}: tensor {probe[path]} is {value.dtype}; expected floating point; save it anew")
    if "pooler.weight" not in values and isinstance(config, ModelConfig):
        config = config.with_(pooler=bool(config.labels))
    return Weights(config, values, directory, fit)


def _config(directory: Path) -> ModelConfig | WordConfig:
    path = directory / "config.json"
    return hub.config_from_hf(read_object(path, "the configuration of a model directory"), str(path))


def _check_sizes(config: ModelConfig | WordConfig, values: Mapping[str, np.ndarray], file: Path) -> None:
    """See that a file holds arrays of the sizes that its configuration names, before any of such a size is made.

    Raises:
        UserError: names the array and both sizes.
    """
    last = "" if isinstance(config, WordConfig) else f"encoder.layers.{config.num_hidden_layers - 1}."
    wanted = _encoder_sizes(config, last) if last else config.shapes()
    for path, shape in wanted.items():
        if last and path.startswith(last) and path not in values:
            raise UserError(f"{file}: no layer {config.num_hidden_layers - 1}, though config.json says there is one")
        if path in values and values[path].shape != shape:
            raise UserError(
                f"{file}: weights do not fit the model: {path} is {values[path].shape}, config.json says {shape}; "
                "check that the configuration and the weights belong together"
            )


def _encoder_sizes(config: ModelConfig, last: str) -> dict[str, tuple[int, ...]]:
    """The shapes of an encoder's embeddings, last layer (the beginning of its paths) and classifier."""
    heads = config.layer_heads[-1] * config.attention_head_size
    wanted = {
        "encoder.embeddings.word": (config.vocab_size, config.embedding_size),
        "encoder.embeddings.position": (config.max_position_embeddings, config.embedding_size),
        "encoder.embeddings.segment": (config.type_vocab_size, config.embedding_size),
        f"{last}query.weight": (heads, config.hidden_size),
        f"{last}intermediate.weight": (config.layer_widths[-1], config.hidden_size),
    }
    if config.num_labels:
        wanted["classifier.weight"] = (config.num_labels, config.hidden_size)
    return wanted


def _read_ckpt(path: Path, heads: int) -> Weights:
    values = zoo.read_ckpt(path)
    fit = {name: value for name, value in values.items() if name.startswith("fit_dense")}
    values = {name: value for name, value in values.items() if name not in fit}
    where = path.parent / "config.json"
    if where.is_file():
        config = _config(path.parent)
        _check_sizes(config, values, path)
    else:
        config = zoo.config_from_arrays(values, heads, str(path))
    return Weights(config, values, path, fit)


def _paths(config: ModelConfig | WordConfig, mlm: str) -> list[str]:
    """Parameter paths of a model without building its arrays: one narrow layer stands for all."""
    if isinstance(config, WordConfig):
        return list(config.shapes())
    width = 2
    probe = config.with_(
        num_hidden_layers=1,
        num_attention_heads=1,
        hidden_size=width,
        intermediate_size=1,
        embedding_size=width if config.embedding_size == config.hidden_size else 1,
        vocab_size=1,
        max_position_embeddings=1,
        max_relative_position=1,
        type_vocab_size=min(config.type_vocab_size, 1),
        labels=config.labels[:1],
    )
    paths = list(params.named(TextModel(probe, mlm=mlm)))
    layer = [path for path in paths if path.startswith("encoder.layers.0.")]
    rest = [path for path in paths if path not in layer]
    deeper = [path.replace(".0.", f".{index}.", 1) for index in range(1, config.num_hidden_layers) for path in layer]
    return rest + layer + deeper


def build(
    weights: Weights,
    config: ModelConfig | WordConfig | None = None,
    *,
    seed: int = 0,
    compute_type: ms.Type = ms.float32,
    dtype: ms.Type = ms.float32,
    may_miss: Iterable[str] = (),
    mlm: bool = False,
) -> TextModel | WordModel:
    """Build the cell of `config` (the weights' own by default) and load the weights strictly.

    Args:
        seed: of dropout, and of what `may_miss` allows to be new.
        may_miss: path prefixes that the weights may lack, for example a new "classifier.".
        mlm: with the masked-LM head; its decoder is tied unless the file holds another matrix.

    Raises:
        UserError: weights and configuration do not fit, or the masked-LM head is missing.
    """
    if weights.outline:
        raise UserError(f"{weights.source}: the outline of a teacher, without its weights; they are needed here")
    config = config or weights.config
    if isinstance(config, WordConfig):
        wanted = config.shapes()
        values = {path: value for path, value in weights.values.items() if path in wanted}
        model = WordModel(config, seed, compute_type, dtype)
    else:
        values, head = _encoder_values(weights.values, config, mlm)
        model = TextModel(config, seed, compute_type, dtype, head)
    missing = params.assign(model, values, str(weights.source), may_miss)
    params.initialise(model, seed, config.initializer_range, only=missing)
    return model


def _encoder_values(
    given: Mapping[str, np.ndarray], config: ModelConfig, mlm: bool
) -> tuple[dict[str, np.ndarray], str]:
    """What an encoder of `config` takes of the arrays that were read, and its masked-LM head: "", tied or untied."""
    values = dict(given)
    head = ""
    if mlm:
        decoder = values.get("mlm.decoder")
        word = values.get("encoder.embeddings.word")
        head = "tied" if decoder is None or (word is not None and np.array_equal(decoder, word)) else "untied"
    drop = [] if head == "untied" else ["mlm.decoder"] if head else [path for path in values if path.startswith("mlm.")]
    if not config.num_labels:
        drop += [path for path in values if path.startswith("classifier.")]
    if not config.pooler:
        drop += [path for path in values if path.startswith("pooler.")]
    if not config.type_vocab_size:
        drop.append("encoder.embeddings.segment")
    if config.use_relative_positions:
        drop.append("encoder.embeddings.position")
    for path in drop:
        values.pop(path, None)
    return values, head


def new(
    config: ModelConfig | WordConfig,
    seed: int,
    compute_type: ms.Type = ms.float32,
    dtype: ms.Type = ms.float32,
    mlm: bool = False,
) -> TextModel | WordModel:
    """A model with random weights: matrices from a truncated normal of `config.initializer_range`, biases zero.

    Args:
        mlm: with a masked-LM head, tied to the word embedding.
    """
    if isinstance(config, WordConfig):
        model = WordModel(config, seed, compute_type, dtype)
    else:
        model = TextModel(config, seed, compute_type, dtype, "tied" if mlm else "")
    params.initialise(model, seed, config.initializer_range)
    return model


def save(
    directory: Path,
    model: TextModel | WordModel,
    *,
    tokenizer_from: Path | None,
    command: str,
    parents: Mapping[str, str],
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    fit: Mapping[str, np.ndarray] | None = None,
    mlm: bool = False,
) -> Path:
    """Write a model directory in the place of an earlier one, which stays until the new one is whole.

    Args:
        tokenizer_from: directory whose tokenizer files are copied.
        command, parents, data, metrics: what made the model, from what, and how good it is.
        fit: projection weights (`fit_dense...`) to carry on to the next stage.
        mlm: write the masked-LM head too.
    """
    config = model.config
    values = {path: value for path, value in params.arrays(model).items() if mlm or not path.startswith("mlm.")}
    names = hub.hf_names(config, list(values))
    record = {
        "minddistill": __version__,
        "command": command,
        "parents": dict(parents),
        "data": dict(data),
        "metrics": dict(metrics),
        "parameters": sum(value.size for value in values.values()),
        "transformers": hub.transformers_can_express(config),
    }

    def fill(part: Path) -> None:
        save_file({names[path]: value for path, value in values.items()}, part / WEIGHTS_FILE, {"format": "pt"})
        if fit:
            save_file(dict(fit), part / FIT_FILE)
        weights = [part / name for name in (WEIGHTS_FILE, FIT_FILE) if (part / name).is_file()]
        describe(part, directory.name, config, record | {"files": checksums(weights)})
        if tokenizer_from is not None:
            copy_tokenizer(tokenizer_from, part)

    replace_directory(directory, fill)
    return directory


def save_outline(directory: Path, weights: Weights) -> Path:
    """Write what a student needs to know of its teacher, without the weights."""

    def fill(part: Path) -> None:
        write_json(part / "config.json", hub.config_to_hf(weights.config))
        write_json(part / OUTLINE_FILE, {"teacher": weights.fingerprint(), "source": str(weights.source)})
        copy_tokenizer(weights.directory, part)

    replace_directory(directory, fill)
    return directory


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what there is of tokenizer files from one directory to another."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def describe(directory: Path, name: str, config: ModelConfig | WordConfig, record: Mapping[str, Any]) -> None:
    """Write what stands beside a model's weights: `config.json`, `minddistill.json` (the record) and its card."""
    write_json(directory / "config.json", hub.config_to_hf(config))
    write_json(directory / RECORD_FILE, record)
    write_text(directory / "README.md", _card(name, config, record))


def read_record(directory: Path) -> dict[str, Any]:
    """What made the model in a directory; empty for one that was made elsewhere."""
    path = directory / RECORD_FILE
    return read_object(path, "what made the model") if path.is_file() else {}


def _card(name: str, config: ModelConfig | WordConfig, record: Mapping[str, Any]) -> str:
    lines = [
        f"# {name}",
        "",
        f"{config.summary}, {record['parameters'] / 1e6:.2f} M parameters, made by `{record['command']}` of MindDistill {record['minddistill']}.",
        "",
    ]
    if config.labels:
        lines += ["Labels, in the order of the logits: " + ", ".join(config.labels), ""]
    if not record["transformers"]:
        lines += ["Its shape is one that transformers cannot express; load it with MindDistill.", ""]
    for title in ("metrics", "parents", "data"):
        if record[title]:
            lines += [f"| {title} | |", "| --- | --- |"]
            lines += [f"| {key} | {value} |" for key, value in record[title].items()] + [""]
    return "\n".join(lines)


def from_layers(weights: Weights, config: ModelConfig, layers: list[int]) -> Weights:
    """Take an encoder's embeddings and the named layers (0-based) as the weights of a shallower student, and its masked-LM
    head where it has one.

    Raises:
        UserError: a layer does not exist, their number is not the student's, or the widths differ.
    """
    if weights.outline:
        raise UserError(f"--init_from_teacher: {weights.source} has no weights; give --load_gd_ckpt_path")
    teacher = weights.config
    if len(layers) != config.num_hidden_layers:
        raise UserError(
            f"--init_from_teacher names {len(layers)} layers; the student has {config.num_hidden_layers}; name one each"
        )
    bad = [layer for layer in layers if not 0 <= layer < teacher.num_hidden_layers]
    if bad:
        raise UserError(
            f"--init_from_teacher names layer {bad[0]}; the teacher's layers are 0 to {teacher.num_hidden_layers - 1}"
        )
    for name in ("hidden_size", "embedding_size", "intermediate_size", "num_attention_heads", "attention_head_size"):
        if getattr(config, name) != getattr(teacher, name):
            raise UserError(
                f"--init_from_teacher needs equal widths: {name} is {getattr(config, name)} in the student and "
                f"{getattr(teacher, name)} in the teacher; choose a student of the teacher's widths"
            )

    return Weights(config, take_layers(weights.without("classifier.").values, layers), weights.source)


def take_layers(values: Mapping[str, np.ndarray], layers: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays, by path, of a model with some of its layers, in the order given, and all that is no layer's."""
    found = {path: value for path, value in values.items() if not path.startswith("encoder.layers.")}
    for index, layer in enumerate(layers):
        old, new_ = f"encoder.layers.{layer}.", f"encoder.layers.{index}."
        found |= {new_ + path.removeprefix(old): value for path, value in values.items() if path.startswith(old)}
    return found
