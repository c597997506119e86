"""One stage of training, from a cell to its model directories."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mindspore import Parameter, Tensor, nn

from ..config import dump
from ..data.loader import Loader
from ..distill.distiller import Distiller
from ..errors import UserError
from ..files import read_json, write_json
from ..prune.sparse import Pruner
from ..signals import handled
from ..train.checkpoint import Checkpoints, Saved, TrainState
from ..train.log import RunLog
from ..train.loop import Hook, Prefetched, Stopped, fit
from ..train.optim import OptimConfig, Update, build_optimizer
from ..train.step import LossScale, StepConfig, build_step
from ..train.watch import INTERVAL, Watch
from . import resume
from .judging import Evaluator
from .run import BEST_PREDICTIONS, DONE, Run

_LATER = 5.0  # seconds that the first process has, to write the rows that broke a run, before another ends it


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
        evaluator: measures the model for the metrics that choose the best, the main one first.
        pruner: makes trained weights sparse; the best model is chosen among those of its full sparsity.
        companion: trains beside the cell.
    """

    cell: Distiller
    batches: Loader
    save: Callable[[str, Mapping[str, float]], Path]
    evaluator: Evaluator | None = None
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

    run: Run
    name: str
    directory: Path
    build: Callable[[], Work]
    epochs: int
    optim: OptimConfig
    step: StepConfig
    groups: Sequence[Any]
    content: Mapping[str, Mapping[str, str]]
    free: Collection[str] = ()
    eval_steps: int = 0
    save_steps: int = 0
    keep: int = 1
    patience: int = 0
    most_steps: int = 0

    def steps(self, an_epoch: int) -> tuple[int, int]:
        """Batches and updates of the whole stage, of so many batches an epoch.

        Raises:
            UserError: it ends before its first update.
        """
        batches, accumulate = an_epoch * self.epochs, self.step.accumulate
        if self.most_steps:
            batches = min(batches, self.most_steps)
        whole, rest = divmod(batches, an_epoch)  # an epoch's last update is of what is left
        updates = whole * -(-an_epoch // accumulate) + rest // accumulate
        if batches and not updates:
            raise UserError(
                f"--train_steps {self.most_steps}: ends before the first update of --accumulation_steps {accumulate}; "
                "give more steps"
            )
        return batches, updates

    def step_of(
        self, cell: Distiller, updates: int, pruner: Pruner | None = None
    ) -> tuple[nn.Optimizer, LossScale, Callable[..., tuple]]:
        """The optimiser over so many updates, the loss scale, and the training step that uses both."""
        optimizer = build_optimizer(cell.trained(), self.optim, updates)
        scale = LossScale(self.step.loss_scale_value, self.step.scale_factor, self.step.scale_window)
        reducer = self.run.place.reducer(optimizer.parameters)
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
    identity = resume.identity(stage.groups, stage.content, stage.free, stage.run.place.size)
    done, checkpoints = stage.directory / DONE, Checkpoints(stage.directory / "checkpoints", stage.keep)
    saved, broken = (None, []) if done.is_file() else checkpoints.newest()
    if not stage.run.place.same(-1 if done.is_file() else saved.step if saved else 0):
        raise UserError(
            f"--output_dir {stage.directory}: the processes see different checkpoints; the nodes of a run need a directory "
            "that they share"
        )
    if done.is_file():
        record = read_json(done, "the note of a finished stage")
        resume.refuse_another(done, record["identity"], identity)
        result = stage.directory / record["result"]
        stage.run.log.line(f"{stage.name}: finished before; its result is {result}")
        if record["metrics"]:
            stage.run.log.line(_best(record["metrics"]))
        return result, record["metrics"]
    if broken:
        stage.run.log.line(f"{stage.name}: passed over as broken in {checkpoints.directory}: {', '.join(broken)}")
    if saved:
        resume.refuse_another(saved.file, saved.identity, identity)
    if stage.run.log.directory is not None:
        dump(stage.run.log.directory / "config.yaml", stage.groups)
    training = _Training(stage, identity, checkpoints, saved)
    training.fit()
    return training.finish()


class _Training:
    """A stage under way: made from an earlier run's state where there is one, then `fit`, then `finish`."""

    def __init__(self, stage: Stage, identity: dict[str, Any], checkpoints: Checkpoints, saved: Saved | None):
        self.stage, self.log, self.leads = stage, stage.run.log, stage.run.place.rank == 0
        self.identity, self.checkpoints = identity, checkpoints
        self.work = work = stage.build()
        self.total, updates = stage.steps(len(work.batches))
        optimizer, scale, step = stage.step_of(work.cell, updates, work.pruner)
        more = {name: value for part in (work.pruner, work.companion) if part for name, value in part.tensors().items()}
        self.state = TrainState(work.cell.trained(), optimizer, scale, identity, more=more)
        if work.companion:
            step = work.companion.around(step, self.state)
        if saved:
            saved.into(self.state)
            self.log.line(f"Resumed from {saved.file} (epoch {self.state.epoch + 1}, step {self.state.step})")
        if work.pruner:
            work.pruner.begin(self.state.step, resumed=saved is not None)
        announced = _announced(step, self.log, len(work.batches.buckets))
        directory = stage.directory if self.leads else None
        # All come to the same end at the same step, save where only one was told to stop: it must not wait for the others.
        wait = 0.0 if self.leads else _LATER
        self.watch = Watch(announced, self.state, stage.run.flags.max_skipped_steps, self._places, directory, wait)
        self.judged, self.metrics = -1, {}  # the step and the metrics of the latest evaluation
        self.logged = -1  # the latest step whose numbers were
        self.kept: tuple[int, dict[str, float]] | None = None  # step and metrics of the model in last/
        last, given = (stage.directory / "last").resolve(), [value for g in stage.groups for value in vars(g).values()]
        self.saves = last not in [Path(value).resolve() for value in given if isinstance(value, str)]
        self.seconds = self.waited = 0.0  # of the training, and of these for data

    def fit(self) -> None:
        """Train to the end.

        Raises:
            KeyboardInterrupt: stopped by a signal, with the state saved.
        """
        stage, state, train = self.stage, self.state, self.work.batches
        self.log.rewind(stage.name, state.step)
        self.log.line(
            f"{stage.name}: {len(train.rows)} rows, {len(train)} steps an epoch, {stage.epochs} epochs, lengths "
            f"{','.join(map(str, train.buckets))} ({train.padding():.2f} padded tokens for a real one)"
        )
        self.log.start(stage.name, self.total, state.step, len(train.buckets))
        began, ahead = time.perf_counter(), Prefetched(train)
        try:
            outputs = fit(
                self.watch,
                ahead,
                state,
                epochs=stage.epochs,
                hooks=self._hooks(),
                accumulate=stage.step.accumulate,
                most_steps=stage.most_steps,
                leads=self.leads,
                stop_early=self._no_better if stage.patience else None,
            )
        except Stopped:
            with handled(signal.SIG_IGN, signal.SIGTERM):  # one more is of the same order, and does not break this off
                self.watch.check(state, ())
                self._save(state, ())
            self.log.stop()
            again = " with --resume auto" if stage.run.flags.resume is False else ""
            self.log.line(f"{stage.name}: stopped at step {state.step}; the same command{again} goes on from there")
            raise KeyboardInterrupt from None
        finally:
            self.log.stop()
        if outputs and self.logged != state.step:
            self._log(state, outputs)
        self.watch.check(state, ())  # of a run that ended inside an epoch
        if self.work.pruner:  # or inside an update
            self.work.pruner.at(state.step)
        self._judge(state, ())
        self.seconds = time.perf_counter() - began
        self.waited = ahead.waited

    def _no_better(self, state: TrainState) -> bool:
        """Whether so many epochs brought nothing better; all processes come to the answer of the one that evaluates."""
        waited = state.epoch - state.best.get("epoch", state.epoch)
        return not self.stage.run.place.all(not self.leads or waited < self.stage.patience)

    def finish(self) -> tuple[Path, dict[str, float]]:
        """Save the last model, and note that the stage is done; returns its result, as `run_stage` does."""
        stage, state = self.stage, self.state
        if self.leads:
            self._save_last()
        if self.leads and not state.best:  # one that is there is of an earlier run, which --resume false forgot
            shutil.rmtree(stage.directory / "best", ignore_errors=True)
            (stage.directory / BEST_PREDICTIONS).unlink(missing_ok=True)
        name, found = "best" if state.best else "last", state.best.get("metrics", {})
        result = stage.directory / name
        self.log.line(
            f"{stage.name}: {state.step} steps in {self.seconds:.1f} s, {self.waited / self.seconds:.1%} of it waiting for "
            f"data; result in {result}"
        )
        if self.leads:
            done = {"result": name, "metrics": found, "steps": state.step, "seconds": self.seconds}
            write_json(stage.directory / DONE, {"identity": self.identity, **done})
        stage.run.place.all()  # what was saved is there for every process
        return result, found

    def _hooks(self) -> list[Hook]:
        stage, pruner = self.stage, self.work.pruner
        # Looked at before anything is saved, and by every process at the same steps, so that all come to the same end.
        looks = (INTERVAL, stage.eval_steps, stage.save_steps)
        hooks = [Hook(every, self.watch.check, at_epoch_end=True) for every in looks]
        hooks += [Hook(stage.run.flags.log_interval, self._log), Hook(1, self.log.tick)]
        if pruner:  # before anything is measured or saved
            hooks.append(Hook(1, lambda state, outputs: pruner.at(state.step)))
        hooks.append(Hook(stage.eval_steps, self._judge, at_epoch_end=True))
        if self.leads:
            hooks.append(Hook(stage.save_steps, self._save, at_epoch_end=True))
        return hooks

    def _save(self, state: TrainState, outputs: tuple) -> None:
        """The state, and the model as it is now: a long run's is of use before its end. One that the run begins with stays
        until then."""
        self.checkpoints.save(state)
        if self.saves:
            self._save_last()

    def _save_last(self) -> None:
        """Write `last/`, unless the checkpoint of this step has."""
        now = self.state.step, self.metrics if self.judged == self.state.step else {}
        if self.kept != now:
            self.work.save("last", now[1])
            self.kept = now

    def _log(self, state: TrainState, outputs: tuple) -> None:
        train = self.work.batches
        rows = train.batch_size * train.size
        self.log.numbers(state, outputs, self.stage.name, rows, float(train.rows.length.mean()) * rows)
        self.logged = state.step

    def _judge(self, state: TrainState, outputs: tuple) -> None:
        work, name = self.work, self.stage.name
        if not self.leads or work.evaluator is None or self.judged == state.step:
            return
        found = work.evaluator.metrics()
        self.judged, self.metrics = state.step, found
        value = next(iter(found.values()))
        told = {f"dev_{metric}": value for metric, value in found.items()}
        self.log.metrics(name, state.epoch + bool(state.position), state.step, told)
        if work.pruner and not work.pruner.finished:
            self.log.line(f"dev: {value:.6f} at sparsity {work.pruner.sparsity():.4f}")
        elif value > state.best.get("value", -np.inf):
            work.evaluator.write(self.stage.run.directory / BEST_PREDICTIONS)
            work.save("best", found)
            state.best = {"value": value, "epoch": state.epoch + bool(state.position), "metrics": found}
            self.log.line(_best(found))

    def _places(self, epoch: int, position: int) -> list[str]:
        """Where the rows of a batch come from."""
        train = self.work.batches
        planned = train.plan(epoch)[position]
        return [train.rows.place(int(row)) for row in planned.rows[: planned.real]]


def _best(metrics: Mapping[str, float]) -> str:
    return f"The best acc is {next(iter(metrics.values())):.6f}"


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
