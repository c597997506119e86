"""What a run tells: the documented lines on standard output and in `log.txt`, `metrics.jsonl`, TensorBoard, a bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import UserError
from ..files import append_line, telling_full_disk, write_text
from .checkpoint import TrainState

METRICS, BOARD = "metrics.jsonl", "tensorboard"  # what a run directory holds of a run's numbers

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter


class RunLog:
    """Writes lines and numbers of one run.

    Args:
        directory: the run directory; None prints lines only (ranks other than 0).
    """

    def __init__(self, directory: Path | None):
        self.directory = directory
        self._console = Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False)
        self._bar: Progress | None = None
        self._task: Any = None
        self._events: EventsWriter | None = None
        self._since = (time.perf_counter(), 0)
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def line(self, text: str) -> None:
        """Print a line and keep it in `log.txt`."""
        (self._bar.console if self._bar else self._console).print(text)
        sys.stdout.flush()
        if self.directory is not None:
            append_line(self.directory / "log.txt", text)

    @contextmanager
    def check(self, name: str) -> Iterator[Callable[..., None]]:
        """One of the checks before a stage: yields found(text, good=True), which logs what was found."""
        yield lambda text, good=True: self.line(f"{name}: {text}" if good else f"{name}: warning: {text}")

    def start(self, title: str, total: int, done: int, first_shapes: int) -> None:
        """Begin a stage of `total` steps; `first_shapes` shapes are compiled as they are met."""
        self.stop()
        if self.directory is not None:  # seconds with PyTorch installed, which are no steps' time
            import tensorboardX.summary  # noqa: F401
        self._since = (time.perf_counter(), done)
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, completed=done)
        else:
            self.line(f"{title}: {total} steps, compiling {first_shapes} shapes as they are met")

    def tick(self, state: TrainState, outputs: tuple) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.step)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Let the bar say what it stands still for; without a terminal, `start` has said it."""
        if self._bar is None:
            yield
            return
        title = self._bar.tasks[self._task].description
        self._bar.update(self._task, description=f"{title}: {what}", refresh=True)
        try:
            yield
        finally:
            self._bar.update(self._task, description=title)

    def stop(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """End the bar and flush TensorBoard."""
        self.stop()
        if self._events is not None:
            with telling_full_disk(self._board):
                self._events.close()
            self._events = None

    def numbers(self, state: TrainState, outputs: tuple, stage: str, rows: int, tokens: float) -> None:
        """Log the outputs of a step; the only place that waits for the device.

        Args:
            rows, tokens: sequences and real tokens of an average step of all processes.
        """
        loss, terms, overflow, scale = outputs
        value, over, factor = float(loss.asnumpy()), bool(overflow.asnumpy()), float(scale.asnumpy())
        now = time.perf_counter()
        rate = max(state.step - self._since[1], 1) / max(now - self._since[0], 1e-9)
        self._since = (now, state.step)
        epoch = state.epoch + (1 if state.position else 0)
        self.line(
            f"epoch: {epoch}, step: {state.step}, outpus are (Tensor(shape=[1], dtype=Float32, {value:.6g}), "
            f"Tensor(shape=[], dtype=Bool, {over}), Tensor(shape=[], dtype=Float32, {factor:g}))"
        )
        found = {"loss": value, **{name: float(term.asnumpy()) for name, term in terms.items()}}
        found |= {"overflow": float(over), "loss_scale": factor, "learning_rate": _rate(state)}
        found |= {"sequences_per_second": rate * rows, "tokens_per_second": rate * tokens}
        self.metrics(stage, epoch, state.step, found)

    def metrics(self, stage: str, epoch: int, step: int, found: dict[str, float]) -> None:
        """Write numbers to `metrics.jsonl` and TensorBoard."""
        if self.directory is None:
            return
        row = {"stage": stage, "epoch": epoch, "step": step, **found}
        append_line(self.directory / METRICS, json.dumps(row))
        # Not at the top: with PyTorch installed it takes seconds, which commands that train nothing need not wait for.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with telling_full_disk(self._board):
            if self._events is None:
                self._board.mkdir(exist_ok=True)
                # Not SummaryWriter, whose thread dies of a full disk, unheard, and then blocks the run.
                self._events = EventsWriter(str(self._board / "events"))
            for name, value in found.items():
                summary = scalar(f"{stage}/{name}", value)
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def rewind(self, stage: str, step: int) -> None:
        """Drop what `metrics.jsonl` holds of a stage's later steps, which are done again, and a line cut short."""
        path = self.directory / METRICS if self.directory else None
        if path is None or not path.is_file():
            return
        kept = [row for row in _rows(path) if not (row["stage"] == stage and row["step"] > step)]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    @property
    def _board(self) -> Path:
        return self.directory / BOARD


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a kill


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; a line that a killed process tore is left out.

    Raises:
        UserError: there is no such file, or it has no rows.
    """
    path = directory / METRICS
    if not path.is_file():
        raise UserError(f"{directory}: no metrics.jsonl in it; expected a run directory")
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path}: holds no rows yet; a run logs every --log_interval steps")
    return rows


def _rate(state: TrainState) -> float:
    schedule = state.optimizer.learning_rate
    return float(schedule(state.optimizer.global_step).asnumpy().reshape(-1)[0])
