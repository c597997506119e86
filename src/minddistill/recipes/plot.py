"""Figures of a run or of models, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from .. import runtime
from ..bench import plots
from ..config import flag, parse, unusual
from ..data.tokenizer import load_tokenizer
from ..distill.layer_map import layer_map
from ..errors import UserError
from ..evaluation.evaluate import softmax
from ..files import model_path, require_directory
from ..models import store
from ..models.heads import outputs_function
from ..train.log import read_metrics
from . import common

# The flags that each kind of figure reads.
_READ = {
    "curves": ("run_dir",),
    "weights": ("models",),
    "sparsity": ("models",),
    "attention": ("models", "text", "layer_map", "head"),
}


@dataclass
class Config:
    """Plots."""

    kind: Literal["curves", "weights", "sparsity", "attention"] = flag(
        "curves",
        "curves: loss, terms, dev metrics, learning rate, loss scale of --run_dir; weights: histograms of two --models, "
        "before and after; sparsity: zeros in each matrix of --models; attention: maps of --models TEACHER STUDENT",
    )
    run_dir: str = flag("", "run directory of finetune, general-distill or task-distill")
    models: tuple[str, ...] = flag((), "model directories, MindSpore's or ONNX")
    text: str = flag("", "sentence whose attention is drawn")
    layer_map: str = flag("uniform", "teacher layers that attention maps are compared with, as in task-distill")
    head: int = flag(0, "attention head, counted from 1; 0 for the mean of all")
    output_dir: str = flag("plots", "where the figures go")


def run(config: Config) -> list[Path]:
    """Draw what `--kind` says and print the paths, which are returned.

    Raises:
        UserError: a flag that the kind needs is missing, or what it names cannot be drawn.
    """
    for name, value in unusual(config).items():
        if name not in ("kind", "output_dir", *_READ[config.kind]):
            raise UserError(f"--{name} {value}: has no part in --kind {config.kind}; leave it out")
    out, paths = Path(config.output_dir), []
    for title, figure in _KINDS[config.kind](config).items():
        paths += plots.save(figure, out, title.lower().replace(" ", "_"))
    print("\n".join(map(str, paths)))
    return paths


def _curves(config: Config) -> dict[str, Figure]:
    return plots.curves(read_metrics(require_directory(config.run_dir, "a run directory (--run_dir)")))


def _weights(config: Config) -> dict[str, Figure]:
    names = _named(config, 2, "the model before and after quantisation")
    before, after = (common.arrays(path) for path in names.values())
    shared = [path for path, value in before.items() if value.ndim > 1 and path in after]
    if not shared:
        raise UserError(f"--models {' '.join(config.models)}: no matrix of the same name in both; nothing to compare")
    return {"Weights": plots.weight_histograms({path: before[path] for path in shared}, after, list(names))}


def _sparsity(config: Config) -> dict[str, Figure]:
    if not config.models:
        raise UserError("--models is empty; expected the model directories whose zeros are counted")
    names = dict(zip(common.short_names(config.models), map(model_path, config.models), strict=True))
    shares = {
        name: {path: float((value == 0).mean()) for path, value in common.arrays(model).items() if value.ndim > 1}
        for name, model in names.items()
    }
    return {"Sparsity": plots.sparsity(shares)}


def _named(config: Config, count: int, what: str) -> dict[str, Path]:
    """`--models` by names that tell them apart: the last parts of their paths.

    Raises:
        UserError: there are not `count` of them, or one is given twice.
    """
    if len(config.models) != count:
        raise UserError(f"--models names {len(config.models)} directories; expected {count}: {what}")
    return dict(zip(common.short_names(config.models), map(model_path, config.models), strict=True))


def _attention(config: Config) -> dict[str, Figure]:
    if not config.text:
        raise UserError("--text is empty; expected the sentence whose attention is drawn")
    runtime.start()
    teacher, student = (store.read_encoder(path) for path in _named(config, 2, "teacher and student").values())
    depths = [weights.config.num_hidden_layers for weights in (student, teacher)]
    layers = layer_map(config.layer_map, *depths).attention
    encoding = load_tokenizer(teacher.directory).encode(config.text)
    if load_tokenizer(student.directory).encode(config.text).ids != encoding.ids:
        raise UserError(
            f"--models {' '.join(config.models)}: their tokenizers differ; expected a student of the teacher"
        )
    batch = {
        "input_ids": np.array([encoding.ids], np.int32),
        "input_mask": np.ones((1, len(encoding)), np.int32),
        "segment_ids": np.array([encoding.type_ids], np.int32),
    }
    taught, learnt = (
        _maps(weights, chosen, batch, config.head)
        for weights, chosen in ((teacher, layers), (student, range(depths[0])))
    )
    title = "mean of all heads" if not config.head else f"head {config.head}"
    return {"Attention": plots.attention_maps(encoding.tokens, taught, learnt, layers, title)}


def _maps(
    weights: store.Weights, layers: Sequence[int], batch: Mapping[str, np.ndarray], head: int
) -> list[np.ndarray]:
    """Attention weights (S, S) of a batch of one sentence, of one head (from 1) or the mean of all (0)."""
    heads, longest = min(weights.config.layer_heads[layer] for layer in layers), weights.config.max_length
    if head > heads:
        raise UserError(f"--head {head}: {weights.source} has heads 1 to {heads}")
    if batch["input_ids"].shape[1] > longest:
        raise UserError(f"--text: {batch['input_ids'].shape[1]} tokens; {weights.source} reads at most {longest}")
    scores = outputs_function(store.build(weights), [], layers, False)(batch)
    found = [
        softmax(value[0].astype(np.float32).reshape(-1, value.shape[-1])).reshape(value.shape[1:]) for value in scores
    ]
    return [value[head - 1] if head else value.mean(0) for value in found]


_KINDS: dict[str, Callable[[Config], dict[str, Figure]]] = {
    "curves": _curves,
    "weights": _weights,
    "sparsity": _sparsity,
    "attention": _attention,
}


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill plot`."""
    run(*parse("minddistill plot", "Draw a run or models.", [Config], argv))
