"""One stage of training, from a cell to its model directories; and the run directory that it writes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mindspore import Parameter, Tensor, nn

from .. import runtime
from ..config import dump
from ..data.loader import Loader
from ..distill.distiller import Distiller
from ..errors import UserError
from ..files import read_json, remove_parts, write_json
from ..prune.sparse import Pruner
from ..train.checkpoint import Checkpoints, Saved, TrainState
from ..train.log import RunLog
from ..train.loop import Hook, Prefetched, Stopped, fit
from ..train.optim import OptimConfig, Update, build_optimizer
from ..train.step import LossScale, StepConfig, build_step
from ..train.watch import INTERVAL, Watch
from . import resume
from .flags import RunFlags

DONE = "done.json"


class Companion(Protocol):
    """A network that trains beside the one of a stage."""

    def tensors(self) -> dict[str, Parameter]:
        """All of it that changes, by name, so that a run can be resumed."""

    def around(self, step: Callable[..., tuple], state: TrainState) -> Callable[..., tuple]:
        """The stage's step with its own around it, which takes the same and returns the same."""


@dataclass
class Work:
    """What a stage works with, once it is built.

    Attributes:
        save: writes the model directory of a name (best, last) with its metrics.
        evaluate: the metrics that choose the best model, the main one first.
        pruner: makes trained weights sparse; the best model is chosen among those of its full sparsity.
        companion: trains beside the cell.
    """

    cell: Distiller
    batches: Loader
    save: Callable[[str, Mapping[str, float]], Path]
    evaluate: Callable[[], dict[str, float]] | None = None
    pruner: Pruner | None = None
    companion: Companion | None = None


@dataclass
class Stage:
    """One stage of training: everything that `run_stage` needs, handed over as values.

    Of several processes only the first evaluates, saves and writes.

    Attributes:
        build: makes models and batches; it is not called for a stage that was finished before.
        groups: all flags of the command.
        content: fingerprints of what the stage reads, by flag and by file or part.
        free: flags that have no part in this stage.
    """

    name: str
    directory: Path
    build: Callable[[], Work]
    epochs: int
    optim: OptimConfig
    step: StepConfig
    flags: RunFlags
    runtime: runtime.Runtime
    log: RunLog
    groups: Sequence[Any]
    content: Mapping[str, Mapping[str, str]]
    free: Collection[str] = ()
    eval_steps: int = 0
    save_steps: int = 0
    keep: int = 1
    patience: int = 0
    most_steps: int = 0

    def step_of(
        self, cell: Distiller, updates: int, pruner: Pruner | None = None
    ) -> tuple[nn.Optimizer, LossScale, Callable[..., tuple]]:
        """The optimiser over so many updates, the loss scale, and the training step that uses both."""
        optimizer = build_optimizer(cell.trained(), self.optim, updates)
        scale = LossScale(self.step.loss_scale_value, self.step.scale_factor, self.step.scale_window)
        reducer = self.runtime.reducer(optimizer.parameters)
        optimise = pruner.around(Update(optimizer), optimizer) if pruner else None
        return optimizer, scale, build_step(cell, optimizer, scale, self.step, reducer, optimise)


def run_stage(stage: Stage) -> tuple[Path, dict[str, float]]:
    """Train to the end, or from where an earlier run stopped.

    Returns:
        The best model directory (the last one where nothing is evaluated) and its metrics.

    Raises:
        UserError: an earlier run in the same directory is another one.
        KeyboardInterrupt: stopped by a signal, with the state saved.
    """
    identity = resume.identity(stage.groups, stage.content, stage.free, stage.runtime.size)
    done, checkpoints = stage.directory / DONE, Checkpoints(stage.directory / "checkpoints", stage.keep)
    if done.is_file():
        record = read_json(done, "the note of a finished stage")
        resume.refuse_another(done, record["identity"], identity)
        result = stage.directory / record["result"]
        stage.log.line(f"{stage.name}: finished before; its result is {result}")
        return result, record["metrics"]
    saved, broken = checkpoints.newest()
    if broken:
        stage.log.line(f"{stage.name}: passed over as broken in {checkpoints.directory}: {', '.join(broken)}")
    if saved:
        resume.refuse_another(saved.file, saved.identity, identity)
    if stage.log.directory is not None:
        dump(stage.log.directory / "config.yaml", stage.groups)
    return _train(stage, identity, checkpoints, saved)


def _train(
    stage: Stage, identity: dict[str, Any], checkpoints: Checkpoints, saved: Saved | None
) -> tuple[Path, dict[str, float]]:
    work = stage.build()
    cell, train = work.cell, work.batches
    total = len(train) * stage.epochs
    updates = -(-len(train) // stage.step.accumulate) * stage.epochs
    if stage.most_steps:
        total = min(total, stage.most_steps)
        updates = min(updates, -(-total // stage.step.accumulate))
    pruner = work.pruner
    optimizer, scale, step = stage.step_of(cell, updates, pruner)
    more = {name: value for part in (pruner, work.companion) if part for name, value in part.tensors().items()}
    state = TrainState(cell.trained(), optimizer, scale, identity, more=more)
    if work.companion:
        step = work.companion.around(step, state)
    if saved:
        saved.into(state)
        stage.log.line(f"Resumed from {saved.file} (epoch {state.epoch + 1}, step {state.step})")
    if pruner:
        pruner.begin(state.step, resumed=saved is not None)
    stage.log.rewind(stage.name, state.step)
    leads = stage.runtime.rank == 0
    stage.log.line(
        f"{stage.name}: {len(train.rows)} rows, {len(train)} steps an epoch, {stage.epochs} epochs, lengths "
        f"{','.join(map(str, train.buckets))} ({train.padding():.2f} padded tokens for a real one)"
    )
    stage.log.start(stage.name, total, state.step, len(train.buckets))
    rows = train.batch_size * train.size
    tokens = float(train.rows.length.mean()) * rows

    def log(state: TrainState, outputs: tuple) -> None:
        stage.log.numbers(state, outputs, stage.name, rows, tokens)

    latest: dict[str, Any] = {"step": -1, "metrics": {}}

    def judge(state: TrainState, outputs: tuple) -> None:
        if not leads or work.evaluate is None or latest["step"] == state.step:
            return
        found = work.evaluate()
        latest.update(step=state.step, metrics=found)
        value = next(iter(found.values()))
        stage.log.metrics(
            stage.name, state.epoch + bool(state.position), state.step, {f"dev_{k}": v for k, v in found.items()}
        )
        if pruner and not pruner.finished(state.step):
            stage.log.line(f"dev: {value:.6f} at sparsity {pruner.sparsity():.4f}")
        elif value > state.best.get("value", -np.inf):
            work.save("best", found)
            state.best = {"value": value, "epoch": state.epoch, "metrics": found}
            stage.log.line(f"The best acc is {value:.6f}")

    def rows_of(epoch: int, position: int) -> list[str]:
        planned = train.plan(epoch)[position]
        return [train.rows.place(int(row)) for row in planned.rows[: planned.real]]

    announced = _announced(step, stage.log, len(train.buckets))
    watch = Watch(announced, state, stage.flags.max_skipped_steps, rows_of, stage.directory if leads else None)
    # Looked at before anything is saved, and by every process at the same steps, so that all come to the same end.
    hooks = [Hook(every, watch.check, at_epoch_end=True) for every in (INTERVAL, stage.eval_steps, stage.save_steps)]
    hooks += [Hook(stage.flags.log_interval, log), Hook(1, stage.log.tick)]
    if pruner:  # before anything is measured or saved
        hooks.append(Hook(1, lambda state, outputs: pruner.at(state.step)))
    hooks.append(Hook(stage.eval_steps, judge, at_epoch_end=True))
    if leads:
        hooks.append(Hook(stage.save_steps, lambda state, outputs: checkpoints.save(state), at_epoch_end=True))
    began, ahead = time.perf_counter(), Prefetched(train)
    try:
        fit(
            watch,
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
        watch.check(state, ())
        checkpoints.save(state)
        stage.log.stop()
        again = " with --resume auto" if stage.flags.resume is False else ""
        stage.log.line(f"{stage.name}: stopped at step {state.step}; the same command{again} goes on from there")
        raise KeyboardInterrupt from None
    finally:
        stage.log.stop()
    watch.check(state, ())  # of a run that ended inside an epoch
    judge(state, ())
    if leads:
        work.save("last", latest["metrics"])
    name, found = "best" if state.best else "last", state.best.get("metrics", {})
    result = stage.directory / name
    seconds = time.perf_counter() - began
    stage.log.line(
        f"{stage.name}: {state.step} steps in {seconds:.1f} s, {ahead.waited / seconds:.1%} of it waiting for data; "
        f"result in {result}"
    )
    if leads:
        record = {"identity": identity, "result": name, "metrics": found, "steps": state.step, "seconds": seconds}
        write_json(stage.directory / DONE, record)
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


@contextmanager
def open_run(flags: RunFlags, place: runtime.Runtime, stages: Sequence[str] = ("",)) -> Iterator[tuple[Path, RunLog]]:
    """Make the run directory, and its log; the first process writes them, the others print only. The log is closed at
    the end.

    Args:
        stages: the directories of the command's stages in the run directory, in which an earlier run is forgotten if
            `--resume` says so, and what a killed one left half-written is removed.

    Raises:
        UserError: `--output_dir` is empty or a file, or holds no earlier run where `--resume true` wants one.
    """
    if not flags.output_dir:
        raise UserError("--output_dir is empty; expected the directory of this run")
    directory = Path(flags.output_dir)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output_dir {directory}: is a file; expected a directory")
    if flags.resume is True and not (directory / "config.yaml").is_file():
        raise UserError(f"--resume true: {directory} holds no earlier run; give its --output_dir, or --resume auto")
    if not place.rank:
        directory.mkdir(parents=True, exist_ok=True)
        for stage in [directory / name for name in stages]:
            _tidy(stage, start_over=flags.resume is False)
    place.all()  # the directory is there for every process
    log = RunLog(None if place.rank else directory, flags.log_interval)
    try:
        yield directory, log
    finally:
        log.close()


def _tidy(stage: Path, start_over: bool) -> None:
    checkpoints = Checkpoints(stage / "checkpoints", 1)
    if start_over:
        (stage / DONE).unlink(missing_ok=True)
        checkpoints.clear()
    for directory in (stage, checkpoints.directory):
        remove_parts(directory)
