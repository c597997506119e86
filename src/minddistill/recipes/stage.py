"""One stage of training, from a cell to its model directories; and the run directory that it writes to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from .. import runtime
from ..config import dump
from ..data.loader import Loader
from ..distill.distiller import Distiller
from ..errors import UserError
from ..files import write_json
from ..train.checkpoint import Checkpoints, TrainState
from ..train.log import RunLog
from ..train.loop import Hook, Prefetched, Stopped, fit
from ..train.optim import OptimConfig, build_optimizer
from ..train.step import LossScale, StepConfig, build_step
from .flags import RunFlags


@dataclass
class Stage:
    """One stage of training: everything that `run_stage` needs, handed over as values.

    Of several processes only the first evaluates, saves and writes.

    `build` makes the cell and its batches; it is not called for a stage that was finished before.
    """

    name: str
    directory: Path
    build: Callable[[], tuple[Distiller, Loader]]
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

    def step_of(self, cell: Distiller, updates: int) -> tuple[nn.Optimizer, LossScale, Callable[..., tuple]]:
        """The optimiser over so many updates, the loss scale, and the training step that uses both."""
        optimizer = build_optimizer(cell.trained(), self.optim, updates)
        scale = LossScale(self.step.loss_scale_value, self.step.scale_factor, self.step.scale_window)
        reducer = self.runtime.reducer(optimizer.parameters)
        return optimizer, scale, build_step(cell, optimizer, scale, self.step, reducer)


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
    cell, train = stage.build()
    total = len(train) * stage.epochs
    updates = -(-len(train) // stage.step.accumulate) * stage.epochs
    if stage.most_steps:
        total = min(total, stage.most_steps)
        updates = min(updates, -(-total // stage.step.accumulate))
    optimizer, scale, step = stage.step_of(cell, updates)
    state = TrainState(cell.trained(), optimizer, scale, identity)
    checkpoints = Checkpoints(stage.directory / "checkpoints", stage.keep)
    if stage.flags.resume:
        line = checkpoints.restore(state)
        if line:
            stage.log.line(line)
    leads = stage.runtime.rank == 0
    stage.log.line(
        f"{stage.name}: {len(train.rows)} rows, {len(train)} steps an epoch, {stage.epochs} epochs, lengths "
        f"{','.join(map(str, train.buckets))} ({train.padding():.2f} padded tokens for a real one)"
    )
    stage.log.start(stage.name, total, state.step, len(train.buckets))
    tokens = float(train.rows.length.mean()) * train.batch_size

    def log(state: TrainState, outputs: tuple) -> None:
        stage.log.numbers(state, outputs, stage.name, train.batch_size, tokens)

    latest: dict[str, Any] = {"step": -1, "metrics": {}}

    def judge(state: TrainState, outputs: tuple) -> None:
        if not leads or stage.evaluate is None or latest["step"] == state.step:
            return
        found = stage.evaluate()
        latest.update(step=state.step, metrics=found)
        value = next(iter(found.values()))
        stage.log.metrics(
            stage.name, state.epoch + bool(state.position), state.step, {f"dev_{k}": v for k, v in found.items()}
        )
        if value > state.best.get("value", -np.inf):
            path = stage.save("best", found)
            state.best = {"value": value, "epoch": state.epoch, "metrics": found, "result": str(path)}
            stage.log.line(f"The best acc is {value:.6f}")

    hooks = [Hook(stage.flags.log_interval, log), Hook(1, stage.log.tick)]
    hooks.append(Hook(stage.eval_steps, judge, at_epoch_end=True))
    if leads:
        hooks.append(Hook(stage.save_steps, lambda state, outputs: checkpoints.save(state), at_epoch_end=True))
    began, ahead = time.perf_counter(), Prefetched(train)
    try:
        fit(
            _announced(step, stage.log, len(train.buckets)),
            ahead,
            state,
            epochs=stage.epochs,
            hooks=hooks,
            accumulate=stage.step.accumulate,
            most_steps=stage.most_steps,
            leads=leads,
            stop_early=lambda s: bool(stage.patience) and s.epoch - s.best.get("epoch", s.epoch) > stage.patience,
        )
    except Stopped:
        checkpoints.save(state)
        stage.log.stop()
        stage.log.line(f"{stage.name}: stopped at step {state.step}; the same command goes on from there")
        raise KeyboardInterrupt from None
    finally:
        stage.log.stop()
    judge(state, ())
    last = stage.save("last", latest["metrics"]) if leads else stage.directory / "last"
    result, found = Path(state.best.get("result", str(last))), state.best.get("metrics", {})
    seconds = time.perf_counter() - began
    stage.log.line(
        f"{stage.name}: {state.step} steps in {seconds:.1f} s, {ahead.waited / seconds:.1%} of it waiting for data; "
        f"result in {result}"
    )
    if leads:
        write_json(done, {"identity": identity, "result": str(result), "metrics": found})
    stage.runtime.all()  # what was saved is there for every process
    return result, found


def _announced(step: Callable[..., tuple], log: RunLog, shapes: int) -> Callable[..., tuple]:
    """The step, which tells when it compiles: once for each length, and again for the first that does not update."""
    met: set[tuple[int, bool]] = set()

    def run(batch: dict[str, Tensor], last: bool) -> tuple:
        length = batch["input_ids"].shape[1]
        if (length, last) in met:
            return step(batch, last)
        met.add((length, last))
        with log.waiting(f"compiling length {length}, {len({size for size, _ in met})} of {shapes}"):
            return step(batch, last)

    return run


def open_run(flags: RunFlags, groups: Sequence[Any], place: runtime.Runtime) -> tuple[Path, RunLog]:
    """Make the run directory with `config.yaml`, and its log; the first process writes them, the others print only.

    Raises:
        UserError: `--output_dir` is empty or a file.
    """
    if not flags.output_dir:
        raise UserError("--output_dir is empty; expected the directory of this run")
    directory = Path(flags.output_dir)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output_dir {directory}: is a file; expected a directory")
    if not place.rank:
        directory.mkdir(parents=True, exist_ok=True)
        dump(directory / "config.yaml", groups)
    place.all()  # the directory is there for every process
    return directory, RunLog(None if place.rank else directory, flags.log_interval)
