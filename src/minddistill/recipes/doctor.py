"""Look at everything that a stage of training needs, without training: one line for each thing."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import native, runtime
from ..config import config_files, parse, read_yaml
from ..errors import UserError
from ..train.log import RunLog
from . import distill, finetune, general_distill, meta_pseudo_labels, pretrain_mlm, prune, task_distill
from .run import Run

_GUESSED = {"finetune": finetune, "general-distill": general_distill, "task-distill": task_distill}
# Many configurations of the above are possible ones of these too: they are meant where none of the above fits.
_OTHERS = {"distill": distill, "meta-pseudo-labels": meta_pseudo_labels, "pretrain-mlm": pretrain_mlm, "prune": prune}
STAGES = _GUESSED | _OTHERS
_WITHOUT_DEFAULT = ("finetune", "pretrain-mlm", "prune")  # stages that want an --output_dir
_STYLES = {"ok": "green", "warning": "yellow", "wrong": "red"}


class Findings(RunLog):
    """Takes the place of a run's log: keeps what the checks find, and says nothing."""

    def __init__(self) -> None:
        super().__init__(None)
        self.rows: list[tuple[str, str, str]] = []

    def line(self, text: str) -> None:
        """What a run would say meanwhile is not asked for."""

    @contextmanager
    def check(self, name: str) -> Iterator[Callable[..., None]]:
        """One row of the table: what was found, or the mistake that ended the check (or one inside it)."""
        try:
            yield lambda text, good=True: self.rows.append((name, "ok" if good else "warning", text))
        except UserError as error:
            if not self.rows or self.rows[-1][1:] != ("wrong", str(error)):
                self.rows.append((name, "wrong", str(error)))
            raise

    def table(self) -> Table:
        """One line each."""
        table = Table(box=None, pad_edge=False)
        for title in ("check", "", "found"):
            table.add_column(title, overflow="fold")
        for name, state, text in self.rows:
            table.add_row(name, f"[{_STYLES[state]}]{state}[/]", escape(text))
        return table


def run(name: str, groups: list[Any]) -> Findings:
    """Make the checks of the stage `name` with its flags.

    MindSpore, device and run directory are looked at whatever comes of them; then the stage makes its own checks, which
    build on each other, up to the first mistake.
    """
    flags = {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
    findings, place = Findings(), runtime.Runtime("CPU")
    with suppress(UserError), findings.check("MindSpore") as found:
        found(_build())
    with suppress(UserError), findings.check("device") as found:
        place = runtime.start(flags["device_target"], flags["device_id"])
        found(f"{place.device}, of {', '.join(runtime.available_devices())}")
    directory = Path(flags["output_dir"] or flags.get("save_ckpt_path") or f"runs/{name.replace('-', '_')}")
    with suppress(UserError), findings.check("run directory") as found:
        if not flags["output_dir"] and name in _WITHOUT_DEFAULT:
            raise UserError("--output_dir is empty; expected the directory of this run")
        _see_writable(directory)
        found(f"{directory}: can be written")
    with suppress(UserError), findings.check("flags"):
        *own, flags_of_run, flags_of_step = groups
        STAGES[name].examine(Run(place, directory, findings, flags_of_run, flags_of_step), *own)
    return findings


def _build() -> str:
    import mindspore as ms

    if not ms.__version__.startswith("2.10."):
        raise UserError(f"MindSpore {ms.__version__}: expected 2.10; pip install 'mindspore>=2.10,<2.11'")
    kernels = "with fused kernels" if native.available() else "without fused kernels (no C compiler)"
    return f"{ms.__version__}, {kernels}"


def _see_writable(directory: Path) -> None:
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"--output_dir {directory}: {place} is a file; expected a directory")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"--output_dir {directory}: {place} cannot be written ({error.strerror})") from None


def _stage_of(argv: list[str]) -> tuple[str, list[str]]:
    """The stage that the command line names, or the only one that has all keys of the `--config` file and all flags.

    Raises:
        UserError: none has, or several.
    """
    if argv and not argv[0].startswith("-"):
        if argv[0] not in STAGES:
            raise UserError(f"no stage {argv[0]!r}; expected {', '.join(STAGES)}")
        return argv[0], argv[1:]
    keys = {word[2:].split("=")[0] for word in argv if word.startswith("--")} - {"config"}
    for file in config_files(argv):
        keys |= set(map(str, read_yaml(file)))
    for stages in (_GUESSED, _OTHERS):
        fitting = [name for name, module in stages.items() if keys <= _names(module.GROUPS)]
        if fitting:
            break
    if len(fitting) != 1:
        which = "fit several stages" if fitting else "fit no stage"
        raise UserError(f"the flags and keys {which}; name it: minddistill doctor {'|'.join(STAGES)} --config FILE")
    return fitting[0], argv


def _names(groups: list[type]) -> set[str]:
    found = [field for group in groups for field in dataclasses.fields(group)]
    return {name for field in found for name in (field.name, *field.metadata["aliases"])}


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill doctor`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in ([], ["-h"], ["--help"]):
        print(f"usage: minddistill doctor [{'|'.join(STAGES)}] --config FILE [flags of the stage]\n\n{__doc__}")
        return
    name, words = _stage_of(words)
    findings = run(name, parse(f"minddistill doctor {name}", f"Check what {name} needs.", STAGES[name].GROUPS, words))
    width = None if sys.stdout.isatty() else 500  # a line each where nobody folds it
    Console(width=width, highlight=False).print(findings.table())
    wrong = [check for check, state, _ in findings.rows if state == "wrong"]
    if wrong:
        raise UserError(
            f"{name} cannot start: wrong: {', '.join(wrong)} (see the table, which ends where it cannot go on)"
        )
