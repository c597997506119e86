"""Structured pruning: how many heads, neurons, hidden units and layers stay, which they are, and training between."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..bench import measure
from ..config import flag, numbers
from ..distill.distiller import Distiller
from ..distill.objectives import Labels
from ..errors import UserError
from ..export import directory as exports
from ..export import onnx
from ..export.session import ONNX_FILE, Session, describe
from ..files import read_json, write_json
from ..models import store
from ..models.config import ModelConfig
from ..prune import importance, structured
from .benchmark import typical
from .flags import step_config
from .prune_job import Job
from .stage import Stage, Work, run_stage

WIDTHS, UNITS = "widths.json", "units.json"  # what was searched, and what each step keeps

_MULTIPLE = 8  # neurons of a searched width are a multiple
_RUNS, _WARM_UP = 100, 20


@dataclass
class Structure:
    """Structured pruning."""

    target_num_heads: int = flag(0, "attention heads that stay in a layer (on average, with --budget global); 0 all")
    target_ffn_dim: int = flag(0, "neurons that stay in a feed-forward layer, likewise; 0 all")
    target_hidden: int = flag(0, "units of the hidden states that stay; 0 all")
    target_layers: str = flag("", "layers that stay, 0-based, such as 0,2,4; empty for all")
    target_speedup: str = flag(
        "", "such as 2x: the widest heads and feed-forward layers whose ONNX graph is so many times as fast, measured"
    )
    budget: Literal["layer", "global"] = flag("layer", "as many units in each layer, or the best of all layers")
    steps: int = flag(1, "prunings on the way to the target, with training after each")
    importance_rows: int = flag(2000, "training rows, drawn by --seed, that importance is measured on; 0 for all")
    normalize_importance: bool = flag(True, "with --budget global, compare layers by scores of Euclidean norm 1")
    ffn_output_term: bool = flag(False, "add the term of a neuron's outgoing weights to its importance")
    compat: Literal["", "fastformers"] = flag("", "fastformers: gradients of all batches so far count for each batch")

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps {self.steps}: expected a positive whole number")
        if self.target_speedup and (self.target_num_heads or self.target_ffn_dim):
            raise UserError(
                "--target_speedup finds the numbers of heads and neurons; leave --target_num_heads and "
                "--target_ffn_dim out"
            )
        if self.budget == "layer" and not self.normalize_importance:
            raise UserError("--normalize_importance false: has no part without --budget global; leave it out")
        if self.ffn_output_term and not (self.target_ffn_dim or self.target_speedup):
            raise UserError(
                "--ffn_output_term true: has no part without --target_ffn_dim or --target_speedup; leave it out"
            )
        if self.target_speedup and not self.speedup > 1:
            raise UserError(f"--target_speedup {self.target_speedup}: expected more than 1, such as 2x")

    @property
    def speedup(self) -> float:
        """The number in `target_speedup`."""
        try:
            return float(self.target_speedup.removesuffix("x"))
        except ValueError:
            raise UserError(f"--target_speedup {self.target_speedup!r}: expected a number such as 2x") from None

    def directories(self) -> list[str]:
        """Where each step's stage is, in the run directory."""
        return [f"step{number}" for number in range(1, self.steps)] + [""]


@dataclass(frozen=True)
class Target:
    """What stays: heads and neurons a layer, hidden units, layers."""

    heads: int
    neurons: int
    hidden: int
    layers: tuple[int, ...]

    @classmethod
    def whole(cls, config: ModelConfig, budget: str, layers: Sequence[int]) -> Target:
        """What some of a model's layers have: heads and neurons of the largest, or on average, as `--budget` counts them."""
        heads, neurons = (
            sum(sizes) // len(sizes) if budget == "global" else max(sizes)
            for sizes in ([of[layer] for layer in layers] for of in (config.layer_heads, config.layer_widths))
        )
        return cls(heads, neurons, config.hidden_size, tuple(layers))

    def on_the_way(self, config: ModelConfig, budget: str, number: int, steps: int) -> Target:
        """The target of a step; widths go down evenly, layers all at once in the first."""
        sizes = asdict(Target.whole(config, budget, self.layers))
        part = {
            name: round(sizes[name] + (getattr(self, name) - sizes[name]) * number / steps)
            for name in ("heads", "neurons", "hidden")
        }
        return Target(**part, layers=self.layers)


def target_of(structure: Structure, config: ModelConfig, words: bool = False) -> Target:
    """What the flags ask for, of a model.

    Args:
        words: its vocabulary is pruned too.

    Raises:
        UserError: the model has not that much, or nothing is asked for.
    """
    every = list(range(config.num_hidden_layers))
    layers = numbers(structure.target_layers, "--target_layers") or every
    wrong = [layer for layer in layers if not 0 <= layer < config.num_hidden_layers]
    if wrong or len(set(layers)) < len(layers):
        raise UserError(
            f"--target_layers {structure.target_layers}: expected different layers from 0 to {config.num_hidden_layers - 1}"
        )
    whole = Target.whole(config, structure.budget, layers)
    has = {"target_num_heads": whole.heads, "target_ffn_dim": whole.neurons, "target_hidden": whole.hidden}
    asked = {name: getattr(structure, name) for name in has}
    for name, size in has.items():
        if asked[name] > size:
            raise UserError(f"--{name} {asked[name]}: the model has {size}; expected at most that")
    found = Target(*(asked[name] or size for name, size in has.items()), tuple(layers))
    if found == whole and layers == every and not structure.target_speedup and not words:
        raise UserError(
            "nothing to prune: give --target_num_heads, --target_ffn_dim, --target_hidden, --target_layers, "
            "--target_speedup or --prune_vocabulary true"
        )
    steps = range(1, structure.steps + 1)
    widths = {found.on_the_way(config, structure.budget, step, structure.steps).hidden for step in steps}
    if config.embedding_size != config.hidden_size and config.embedding_size in widths:
        raise UserError(
            f"--target_hidden {structure.target_hidden}, --steps {structure.steps}: hidden states become as wide as the "
            f"embeddings, {config.embedding_size}, which are projected onto them; expected other widths on the way"
        )
    return found


def checked_target(job: Job, structure: Structure) -> Target:
    """What the flags ask for, which the losses can be computed for.

    Raises:
        UserError: flags, model and teacher do not go together.
    """
    target = target_of(structure, job.dense.config, job.config.prune_vocabulary)
    job.optim.optim()
    step_config(job.run.step, job.optim)
    job.objective(structured.keep_layers(job.dense, target.layers).config, _learnt_from(job, target))
    return target


def _learnt_from(job: Job, target: Target) -> str:
    """The teacher's layers that those which are left learn from: what they were, where it is as deep as the model."""
    as_deep = job.teacher.config.num_hidden_layers == job.dense.config.num_hidden_layers
    return ",".join(map(str, target.layers)) if as_deep else "uniform"


def structured_stages(job: Job, structure: Structure, target: Target) -> tuple[Path, dict[str, float]]:
    """Prune in steps to a checked target, training after each; returns the last one's model directory and metrics."""
    if structure.target_speedup:
        target = _searched(job, structure, target)
    source, result = job.dense, (job.run.directory, {})
    for number, name in enumerate(structure.directories(), 1):
        result = run_stage(_stage(job, structure, target, number, job.run.directory / name, source))
        source = store.read_weights(result[0])
    return result


def _stage(
    job: Job, structure: Structure, target: Target, number: int, directory: Path, source: store.Weights
) -> Stage:
    now = target.on_the_way(job.dense.config, structure.budget, number, structure.steps)

    def build() -> Work:
        start = structured.keep_layers(source, target.layers) if number == 1 else source
        pruned = cut(start, now, lambda: _chosen(job, structure, now, start, directory), structure)
        job.run.log.line(
            f"pruned, step {number} of {structure.steps}: {_shape(pruned.config)}; {start.config.parameters} parameters "
            f"to {pruned.config.parameters}"
        )
        return job.work(pruned, directory, _learnt_from(job, target), lambda: {"pruned": _shape(pruned.config)})

    return job.stage(directory.name if number < structure.steps else "prune", directory, build, source)


def _shape(config: ModelConfig) -> str:
    heads, widths = ("/".join(map(str, sorted({*sizes}))) for sizes in (config.layer_heads, config.layer_widths))
    return f"{config.num_hidden_layers} layers of width {config.hidden_size}, {heads} heads, {widths} neurons"


def _measured(job: Job, structure: Structure, weights: store.Weights) -> importance.Importance:
    """The importance of a model's units on training rows."""
    rows = job.train
    if 0 < structure.importance_rows < len(rows):
        rows = rows.take(np.random.default_rng(job.run.flags.seed).permutation(len(rows))[: structure.importance_rows])
    model = store.build(weights, seed=job.run.flags.seed)  # in float32: gradients without a loss scale
    loss = Distiller(model, None, Labels(weights.config.problem))
    return importance.measure(
        loss,
        model,
        job.loader(rows).epoch(0),
        accumulate=structure.compat == "fastformers",
        output_term=structure.ffn_output_term,
    )


@dataclass(frozen=True)
class Units:
    """The units that stay, the most important first: heads and neurons by layer, and hidden units; empty where all do."""

    heads: list[np.ndarray]
    neurons: list[np.ndarray]
    hidden: np.ndarray


def units(config: ModelConfig, target: Target, found: importance.Importance, structure: Structure) -> Units:
    """The most important units of a model."""
    together, normalise = structure.budget == "global", structure.normalize_importance
    whole = Target.whole(config, structure.budget, range(config.num_hidden_layers))
    heads, neurons, hidden = [], [], np.zeros(0, int)
    if target.heads < whole.heads:
        heads = importance.choose(found.heads, target.heads, together, normalise)
    if target.neurons < whole.neurons:
        neurons = importance.choose(found.neurons, target.neurons, together, normalise)
    if target.hidden < whole.hidden:
        (hidden,) = importance.choose([found.hidden], target.hidden, False)
    return Units(heads, neurons, hidden)


def cut(weights: store.Weights, target: Target, chosen: Callable[[], Units], structure: Structure) -> store.Weights:
    """A model with some of its units; they are chosen if any is to go."""
    config = weights.config
    whole = Target.whole(config, structure.budget, range(config.num_hidden_layers))
    if (whole.heads, whole.neurons, whole.hidden) == (target.heads, target.neurons, target.hidden):
        return weights
    kept = chosen()
    weights = structured.keep_heads(weights, kept.heads) if kept.heads else weights
    weights = structured.keep_neurons(weights, kept.neurons) if kept.neurons else weights
    return structured.keep_hidden(weights, kept.hidden) if len(kept.hidden) else weights


def _chosen(job: Job, structure: Structure, target: Target, weights: store.Weights, directory: Path) -> Units:
    """The units that a step keeps, chosen once: a resumed step has those of its checkpoints, wherever it goes on."""
    note = directory / UNITS
    asked = {
        "model": weights.fingerprint(),
        "target": asdict(target) | {"layers": list(target.layers)},
        "flags": asdict(structure) | {"seed": job.run.flags.seed},
        "rows": job.train.files,
    }
    if note.is_file():
        known = read_json(note, "the units that a step keeps")
        if known.get("asked") == asked:
            heads, neurons = ([np.array(layer, int) for layer in known[name]] for name in ("heads", "neurons"))
            return Units(heads, neurons, np.array(known["hidden"], int))
    found = units(weights.config, target, _measured(job, structure, weights), structure)
    if not job.run.place.rank:
        directory.mkdir(parents=True, exist_ok=True)
        layers = {name: [layer.tolist() for layer in getattr(found, name)] for name in ("heads", "neurons")}
        write_json(note, {"asked": asked, **layers, "hidden": found.hidden.tolist()})
    return found


def _searched(job: Job, structure: Structure, target: Target) -> Target:
    """The most heads, with as many neurons in proportion, at which a model is fast enough; found once for a run.

    Raises:
        UserError: one head is not fast enough.
    """
    note, config = job.run.directory / WIDTHS, job.dense.config
    asked = {
        "model": job.dense.fingerprint(),
        "target_speedup": structure.target_speedup,
        "hidden": target.hidden,
        "layers": list(target.layers),
    }
    if note.is_file():
        known = read_json(note, "the widths that were searched")
        if known.get("asked") == asked:
            return replace(target, heads=known["heads"], neurons=known["neurons"])
    smaller = len(target.layers) < config.num_hidden_layers or target.hidden < config.hidden_size
    # Fast enough; not fast enough, which all heads are where nothing else goes.
    low, high, fastest = 0, max(config.num_attention_heads + smaller, 2), 0.0
    while high - low > 1:
        heads = (low + high) // 2
        wanted = replace(target, heads=heads, neurons=_neurons(config, heads))
        fastest = _speedup(job, wanted)
        job.run.log.line(f"search: {wanted.heads} heads, {wanted.neurons} neurons: {fastest:.2f} times as fast")
        low, high = (heads, high) if fastest >= structure.speedup else (low, heads)
    if not low:
        raise UserError(
            f"--target_speedup {structure.target_speedup}: with one head a layer it is {fastest:.2f} times as fast; "
            "expected a smaller speed-up, or fewer layers with --target_layers"
        )
    found = replace(target, heads=low, neurons=_neurons(config, low))
    write_json(note, {"asked": asked, "heads": found.heads, "neurons": found.neurons})
    return found


def _neurons(config: ModelConfig, heads: int) -> int:
    share = config.intermediate_size * heads / config.num_attention_heads
    return min(max(round(share / _MULTIPLE), 1) * _MULTIPLE, config.intermediate_size)


def _speedup(job: Job, target: Target) -> float:
    """How many times as fast as the dense model's ONNX graph one of the target's shape is: medians of one row."""
    dense = job.dense
    small = structured.keep_layers(dense, target.layers)
    small = structured.keep_heads(small, [np.arange(min(target.heads, has)) for has in small.config.layer_heads])
    small = structured.keep_neurons(small, [np.arange(min(target.neurons, has)) for has in small.config.layer_widths])
    small = structured.keep_hidden(small, np.arange(target.hidden))
    batch = typical(job.train, 1, 0)
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for name, weights in (("dense", dense), ("small", small)):
            paths[name] = str(Path(scratch) / name)
            _export(weights, Path(scratch) / name)
        with measure.subjects(paths, Session.open, describe, threads=1) as opened:
            seconds = measure.alternate([subject for subject, _ in opened.values()], batch, _RUNS, warm_up=_WARM_UP)
    return float(np.median(seconds["dense"]) / np.median(seconds["small"]))


def _export(weights: store.Weights, target: Path) -> None:
    graph = onnx.build(weights)
    exports.write(
        target,
        lambda part: onnx.save(graph, part / ONNX_FILE),
        weights.config,
        weights.directory,
        "minddistill prune",
        {},
    )
