"""What the training commands share: flags, records against models, and one stage of training from cell to directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import params, runtime
from ..config import dump, flag, numbers
from ..data.loader import Loader, choose_buckets
from ..data.records import Rows, read_rows
from ..data.tokenizer import fingerprint, load_tokenizer
from ..distill.distiller import Distiller
from ..distill.layer_map import LayerMap
from ..distill.objectives import FitDense
from ..errors import UserError
from ..evaluation import metrics
from ..evaluation.evaluate import predict
from ..files import write_json
from ..models import store
from ..models.config import ModelConfig
from ..models.heads import TextModel, predict_function
from ..models.presets import preset
from ..train.checkpoint import Checkpoints, TrainState
from ..train.log import RunLog
from ..train.loop import Hook, Stopped, fit
from ..train.optim import OptimConfig, build_optimizer
from ..train.step import LossScale, StepConfig, build_step

EVAL_BATCH = 64
Schedules = Literal["original", "port", "constant"]


@dataclass
class RunFlags:
    """The run."""

    output_dir: str = flag("", "run directory: config.yaml, log.txt, metrics.jsonl, checkpoints, best and last models")
    resume: bool = flag(True, "go on from the newest whole checkpoint in output_dir")
    seed: int = flag(42, "fixes initial weights, order of rows and dropout")
    log_interval: int = flag(100, "steps between two lines of the log")


@dataclass
class StepFlags:
    """Step: loss scale, clipping, batches."""

    batch_size: int = flag(32, "rows a step on each device")
    accumulation_steps: int = flag(1, "batches whose gradients make one update")
    scale_factor: int = flag(2, "factor by which the loss scale changes")
    clip: Literal["global", "tensor", "off"] = flag("global", "clip by the norm of all gradients, or of each tensor")
    clip_norm: float = flag(1.0, "largest norm after clipping")
    buckets: str = flag("auto", "lengths that batches are padded to: auto, off, or a list such as 16,32,64")
    compute_type: Literal["auto", "float16", "float32"] = flag(
        "auto", "type of the matrix products; auto is float16 on Ascend and GPU, float32 on CPU"
    )
    dtype: Literal["float16", "float32"] = flag("float32", "type of the hidden states between layers")


@dataclass
class StudentFlags:
    """Student network."""

    student: str = flag("tinybert-4l-384", "preset of the student's size")
    seq_length: int = flag(128, "longest sequence; records must not be longer")
    vocab_size: int = flag(0, "rows of the word embedding; 0 takes the teacher's")
    hidden_size: int = flag(0, "width of the encoder; 0 takes the preset's")
    num_hidden_layers: int = flag(0, "encoder layers; 0 takes the preset's")
    num_attention_heads: int = flag(0, "attention heads; 0 takes the preset's (12)")
    intermediate_size: int = flag(0, "width of the feed-forward layer; 0 takes the preset's")
    hidden_act: str = flag("gelu", "activation of the feed-forward layer")
    hidden_dropout_prob: float = flag(0.1, "dropout of embeddings and sub-layer outputs")
    attention_probs_dropout_prob: float = flag(0.1, "dropout of attention probabilities")
    max_position_embeddings: int = flag(512, "rows of the position embedding")
    type_vocab_size: int = flag(2, "rows of the segment embedding")
    initializer_range: float = flag(0.02, "standard deviation of initial weights")
    use_relative_positions: bool = flag(False, "relative positions (Shaw et al. 2018) in place of absolute ones")
    init_from_teacher: str = flag("", "teacher layers that the student starts from, 0-based, such as 1,3,5")
    layer_map: str = flag("uniform", "uniform, last, first, or one teacher layer for each student layer: 1,3,5")
    fit_dense: Literal["shared", "layer"] = flag("shared", "one projection for all hidden states, or one each")
    loss_mode: Literal["masked", "reference"] = flag(
        "masked", "average over real positions, or over the padded block as the original does (fixed length only)"
    )

    def config(self, teacher: ModelConfig) -> ModelConfig:
        """The student's configuration; vocabulary and padding are the teacher's."""
        base = preset(self.student)
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        changes: dict[str, Any] = {name: getattr(self, name) for name in sizes if getattr(self, name)}
        taken = (
            "hidden_act",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "max_position_embeddings",
            "type_vocab_size",
            "initializer_range",
            "use_relative_positions",
        )
        changes |= {name: getattr(self, name) for name in taken}
        if self.init_from_teacher or teacher.family != "bert":
            # The student is of the teacher's family, so that its embeddings mean the same.
            for name in ("family", "type_vocab_size", "max_position_embeddings", "hidden_act", "layer_norm_eps"):
                changes[name] = getattr(teacher, name)
        if self.vocab_size and self.vocab_size != teacher.vocab_size:
            raise UserError(
                f"--vocab_size {self.vocab_size}: the teacher's is {teacher.vocab_size}; both read the same records"
            )
        changes |= {"vocab_size": teacher.vocab_size, "pad_token_id": teacher.pad_token_id}
        return base.with_(**changes)


def read_checked(
    directory: str, flag_name: str, config: ModelConfig, tokenizer_dir: Path | None, **options: Any
) -> Rows:
    """Read records and see that they fit a model: vocabulary, length, and the tokenizer where both name one.

    Raises:
        UserError: they do not.
    """
    rows = read_rows(directory, vocab_size=config.vocab_size, flag=flag_name, **options)
    if rows.seq_length > config.max_length:
        raise UserError(
            f"{directory}: rows of {rows.seq_length} tokens; the model reads at most {config.max_length}; "
            "prepare the records with a smaller --max_seq_length"
        )
    theirs = rows.meta.get("tokenizer")
    if theirs and tokenizer_dir is not None and any((tokenizer_dir / n).is_file() for n in store.TOKENIZER_FILES[:2]):
        mine = fingerprint(load_tokenizer(tokenizer_dir))
        if mine != theirs:
            raise UserError(
                f"{directory}: made with another tokenizer ({theirs}) than that of {tokenizer_dir} ({mine}); "
                "prepare the records with the model's tokenizer"
            )
    return rows


def align_labels(weights: store.Weights, labels: Sequence[str], say: Callable[[str], None]) -> store.Weights:
    """Bring a teacher's outputs into the order of the data's labels.

    Raises:
        UserError: the teacher was not trained on these labels.
    """
    have = weights.config.labels
    if not labels or tuple(labels) == have:
        return weights
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(have))
    if unnamed and len(have) == len(labels):
        say(f"The teacher {weights.source} does not name its labels; taken to be {', '.join(labels)} in this order")
        return store.Weights(weights.config.with_(labels=tuple(labels)), weights.values, weights.source, weights.fit)
    low = [name.lower() for name in have]
    wanted = [name.lower() for name in labels]
    if sorted(low) != sorted(wanted):
        raise UserError(
            f"{weights.source}: trained on the labels {', '.join(have) or '(none: it has no classifier)'}; the records "
            f"have {', '.join(labels)}; fine-tune a teacher on this task first (minddistill finetune)"
        )
    order = [low.index(name) for name in wanted]
    values = dict(weights.values)
    for name in ("classifier.weight", "classifier.bias"):
        values[name] = values[name][order]
    say(f"The teacher's outputs were put in the records' order of labels: {', '.join(labels)}")
    return store.Weights(weights.config.with_(labels=tuple(labels)), values, weights.source, weights.fit)


def buckets_for(spec: str, rows: Rows, fixed: bool) -> list[int]:
    """The lengths of `--buckets`; `fixed` says why there can be only one.

    Raises:
        UserError: a list was asked for where the length must be fixed.
    """
    if spec == "off" or (fixed and spec == "auto"):
        return [rows.seq_length]
    if fixed:
        raise UserError(
            f"--buckets {spec}: --loss_mode reference and data sink need one fixed length; give --buckets off, "
            "or --loss_mode masked"
        )
    return choose_buckets(rows.length, rows.seq_length) if spec == "auto" else numbers(spec, "--buckets")


def step_config(flags: StepFlags, loss_scale: float, window: int) -> StepConfig:
    """The step's configuration out of flags and a stage's own loss scale."""
    return StepConfig(loss_scale, flags.scale_factor, window, flags.clip, flags.clip_norm, flags.accumulation_steps)


def note_data_sink(wanted: bool, place: runtime.Runtime, log: RunLog) -> None:
    """Say what becomes of `--enable_data_sink`: batches of several lengths are fed step by step on every device."""
    if wanted:
        log.line(f"Data sink: batches are fed step by step on {place.device}, so that their lengths may differ")


def fit_dense(
    kind: str,
    student: ModelConfig,
    teacher: ModelConfig,
    pairs: LayerMap,
    carried: Mapping[str, np.ndarray],
    seed: int,
) -> FitDense:
    """The projection of the student's hidden states, from an earlier stage where it brings one.

    Raises:
        UserError: the one it brings is of another width or count.
    """
    if carried:
        count = 1 if "fit_dense.weight" in carried else len(carried) // 2
    else:
        count = 1 if kind == "shared" else len(pairs.hidden)
    fit = FitDense(student.hidden_size, teacher.hidden_size, count)
    params.initialise(fit, seed, student.initializer_range)
    if carried:
        names = {ours: theirs for ours, theirs in _fit_paths(fit).items()}
        missing = [theirs for theirs in names.values() if theirs not in carried]
        if missing or (count > 1 and count != len(pairs.hidden)):
            raise UserError(f"the student's fit_dense has {count} projections; the layer map needs {len(pairs.hidden)}")
        params.assign(fit, {ours: carried[theirs] for ours, theirs in names.items()}, "fit_dense of the student")
    return fit


def _fit_paths(fit: FitDense) -> dict[str, str]:
    return {path: fit.names()[path.rsplit(".", 1)[-1]] for path in params.named(fit)}


def fit_arrays(fit: FitDense) -> dict[str, np.ndarray]:
    """The projection's weights under their names in checkpoints."""
    paths = _fit_paths(fit)
    return {paths[path]: value for path, value in params.arrays(fit).items()}


def evaluate_rows(
    model: TextModel, rows: Rows, buckets: list[int] | None = None
) -> tuple[np.ndarray, dict[str, float]]:
    """Logits of all rows and the task's metrics (none where the rows have no labels)."""
    loader = Loader(rows, EVAL_BATCH, buckets=buckets, shuffle=False)
    logits = predict(predict_function(model), loader)
    names = rows.meta.get("metrics", ["accuracy"])
    if rows.label is None or not rows.meta.get("labelled", True):
        return logits, {}
    return logits, metrics.compute(names, rows.label, logits, model.config.regression)


def eval_buckets(train: list[int], rows: Rows) -> list[int]:
    """The lengths of training, which are compiled already for the teacher, up to what the rows need."""
    longest = int(rows.length.max())
    useful = [length for length in train if length <= rows.seq_length]
    return useful if useful and useful[-1] >= longest else [*useful, rows.seq_length]


def check_teacher(
    model: TextModel, rows: Rows, buckets: list[int], allow_weak: bool, say: Callable[[str], None]
) -> float:
    """Measure a teacher before anything is learnt from it. Returns its main metric.

    Raises:
        UserError: it does not beat the majority class (or, in a regression task, explains nothing).
    """
    logits, found = evaluate_rows(model, rows, buckets)
    if model.config.regression:
        name, value, floor = "pearson", found["pearson"], 0.1
    else:
        assert rows.label is not None
        floor = float(np.bincount(rows.label).max() / len(rows))
        name, value = "accuracy", metrics.compute(["accuracy"], rows.label, logits, False)["accuracy"]
    say(f"Teacher on {rows.directory}: {name} {value:.6f} (majority class or floor {floor:.6f}, {len(rows)} rows)")
    if value <= floor and not allow_weak:
        raise UserError(
            f"the teacher's {name} on {rows.directory} is {value:.4f}, not above {floor:.4f} of the majority class; it "
            "was not trained on this task or its labels are mixed up; --allow_weak_teacher true goes on all the same"
        )
    return next(iter(found.values()))


@dataclass
class Stage:
    """One stage of training: everything that `run_stage` needs, handed over as values."""

    name: str
    directory: Path
    cell: Distiller
    student: TextModel
    train: Loader
    epochs: int
    optim: OptimConfig
    step: StepConfig
    flags: RunFlags
    runtime: runtime.Runtime
    log: RunLog
    save: Callable[[str, Mapping[str, float]], Path]
    evaluate: Callable[[], dict[str, float]] | None = None
    eval_steps: int = 0
    save_steps: int = 0
    keep: int = 1
    patience: int = 0
    most_steps: int = 0
    identity: dict[str, Any] = field(default_factory=dict)


def run_stage(stage: Stage) -> tuple[Path, dict[str, float]]:
    """Train to the end, or from where an earlier run stopped.

    Returns:
        The best model directory (the last one where nothing is evaluated) and its metrics.

    Raises:
        UserError: an earlier run in the same directory is another one.
        KeyboardInterrupt: stopped by a signal, with the state saved.
    """
    done = stage.directory / "done.json"
    identity = stage.identity | {"stage": stage.name, "epochs": stage.epochs, "seed": stage.flags.seed}
    # What JSON makes of it is what is compared: tuples become lists.
    identity = json.loads(json.dumps(identity | {"optim": vars(stage.optim), "step": vars(stage.step)}))
    if stage.flags.resume and done.is_file():
        record = json.loads(done.read_text())
        if record["identity"] == identity:
            stage.log.line(f"{stage.name}: finished before; its result is {record['result']}")
            return Path(record["result"]), record["metrics"]
    trained = stage.cell.trained()
    updates = -(-len(stage.train) // stage.step.accumulate) * stage.epochs
    optimizer = build_optimizer(trained, stage.optim, updates)
    scale = LossScale(stage.step.loss_scale_value, stage.step.scale_factor, stage.step.scale_window)
    state = TrainState(trained, optimizer, scale, identity)
    checkpoints = Checkpoints(stage.directory / "checkpoints", stage.keep)
    if stage.flags.resume:
        line = checkpoints.restore(state)
        if line:
            stage.log.line(line)
    step = build_step(stage.cell, optimizer, scale, stage.step, stage.runtime.reducer(optimizer.parameters))
    total = stage.most_steps or len(stage.train) * stage.epochs
    stage.log.line(
        f"{stage.name}: {len(stage.train.rows)} rows, {len(stage.train)} steps an epoch, {stage.epochs} epochs, lengths "
        f"{','.join(map(str, stage.train.buckets))} ({stage.train.padding():.2f} padded tokens for a real one)"
    )
    stage.log.start(stage.name, total, state.step, len(stage.train.buckets))
    tokens = float(stage.train.rows.length.mean()) * stage.train.batch_size

    def log(state: TrainState, outputs: tuple) -> None:
        stage.log.numbers(state, outputs, stage.name, stage.train.batch_size, tokens)

    def judge(state: TrainState, outputs: tuple) -> None:
        assert stage.evaluate is not None
        found = stage.evaluate()
        value = next(iter(found.values()))
        stage.log.metrics(
            stage.name, state.epoch + bool(state.position), state.step, {f"dev_{k}": v for k, v in found.items()}
        )
        if value > state.best.get("value", -np.inf):
            path = stage.save("best", found)
            state.best = {"value": value, "epoch": state.epoch, "metrics": found, "result": str(path)}
            stage.log.line(f"The best acc is {value:.6f}")

    hooks = [Hook(stage.flags.log_interval, log), Hook(1, stage.log.tick)]
    if stage.evaluate is not None:
        hooks.append(Hook(stage.eval_steps, judge, at_epoch_end=True))
    hooks.append(Hook(stage.save_steps, lambda state, outputs: checkpoints.save(state), at_epoch_end=True))
    began = time.perf_counter()
    try:
        fit(
            step,
            stage.train,
            state,
            epochs=stage.epochs,
            hooks=hooks,
            accumulate=stage.step.accumulate,
            most_steps=stage.most_steps,
            stop_early=lambda s: bool(stage.patience) and s.epoch - s.best.get("epoch", s.epoch) > stage.patience,
        )
    except Stopped:
        checkpoints.save(state)
        stage.log.stop()
        stage.log.line(f"{stage.name}: stopped at step {state.step}; the same command goes on from there")
        raise KeyboardInterrupt from None
    finally:
        stage.log.stop()
    last_metrics = state.best.get("metrics", {})
    if stage.evaluate is not None and stage.most_steps:
        judge(state, ())
    last = stage.save("last", last_metrics if stage.evaluate is None else stage.evaluate())
    result, found = Path(state.best.get("result", str(last))), state.best.get("metrics", {})
    stage.log.line(f"{stage.name}: {state.step} steps in {time.perf_counter() - began:.1f} s; result in {result}")
    write_json(done, {"identity": identity, "result": str(result), "metrics": found})
    return result, found


def open_run(flags: RunFlags, groups: Sequence[Any]) -> tuple[Path, RunLog]:
    """Make the run directory with `config.yaml`, and its log.

    Raises:
        UserError: `--output_dir` is empty or a file.
    """
    if not flags.output_dir:
        raise UserError("--output_dir is empty; expected the directory of this run")
    directory = Path(flags.output_dir)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output_dir {directory}: is a file; expected a directory")
    directory.mkdir(parents=True, exist_ok=True)
    dump(directory / "config.yaml", groups)
    return directory, RunLog(directory, flags.log_interval)
