"""The report of a run: what its directory holds, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.environment import environment
from ..bench.plots import curves
from ..bench.report import Column, Section, Table, write_report
from ..config import flag, parse, read_yaml
from ..data.records import Rows, read_rows
from ..errors import UserError
from ..evaluation.evaluate import Truth, read_labels, read_predictions, told
from ..files import RECORD_FILE, read_json, require_directory
from ..models import store
from ..problems import REGRESSION
from ..train.log import read_metrics
from .comparison import Measured, compare, headline, measured, model_table
from .judging import scored, truth_of
from .run import BEST_PREDICTIONS, DONE, Run

NAME = "report.html"
TEACHER_PREDICTIONS = "predictions_teacher.tsv"


@dataclass
class Config:
    """Report."""

    run_dir: str = flag("", "run directory of a command that trains")


def run(config: Config) -> Path:
    """Write `report.html` of a run anew, whether the run has ended or not. Returns its path.

    Raises:
        UserError: `--run_dir` is not a run directory.
    """
    path = write(require_directory(config.run_dir, "a run directory (--run_dir)"))
    print(path)
    return path


def at_end(run: Run) -> None:
    """Write the report of a run that has ended, in the process that writes; where that fails the run is whole all the
    same, and a line says why."""
    if run.place.rank:
        return
    try:
        run.log.line(f"Report: {write(run.directory)}")
    except (UserError, OSError) as error:
        run.log.line(f"No report: {error}")


def write(directory: Path) -> Path:
    """Write `report.html` of a run directory out of its files.

    Raises:
        UserError: it has no `config.yaml` or `metrics.jsonl`, or a file in it is damaged.
    """
    flags, rows = read_yaml(directory / "config.yaml", "--run_dir"), read_metrics(directory)
    ended = _done(directory, "").get("result")
    names = [ended] if ended else ["best", "last"]
    found = next((directory / name for name in names if (directory / name).is_dir()), None)
    made = read_json(found / RECORD_FILE, "where a model comes from") if found else {}
    models, compared = _results(directory, flags, found, made["parents"].get("teacher", "")) if found else ([], [])
    resolved = (directory / "config.yaml").read_text(encoding="utf-8")
    steps = f"Every {flags['log_interval']} steps; strong lines are running means."
    sections = [
        Section("What ran", facts=_facts(made, flags), table=_stages(directory, rows)),
        *([Section("Models", table=model_table(models))] if models else []),
        Section("Curves", steps, figures=curves(rows)),
        *compared,
        Section("Configuration", "The same run again: --config config.yaml", code=resolved),
        environment_section(),
    ]
    command = made.get("command", "training").removeprefix("minddistill ").split(" (")[0]
    task = made.get("data", {}).get("task", "")
    title = " · ".join(filter(None, (command.replace("-", " ").capitalize(), task)))
    tiles = headline(models)
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses and not any(model.metrics for model in models):
        tiles.insert(0, ("Loss", f"{losses[-1]:.4g}", f"from {losses[0]:.4g}"))
    return write_report(directory / NAME, title, str(directory), tiles, sections)


def _facts(made: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Where the model comes from."""
    found = {"Command": made.get("command", "")}
    found |= {
        name.capitalize() if name.startswith("teacher") else "Starts from": origin
        for name, origin in made.get("parents", {}).items()
    }
    data = made.get("data", {})
    found |= {"Training records": data.get("train") or data.get("corpus", ""), "Training rows": data.get("rows", "")}
    found |= {"Evaluated on": flags.get("eval_data_dir", ""), "Seed": flags["seed"]}
    return {name: value for name, value in found.items() if value != ""}


def _stages(directory: Path, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a stage: how far it went, how long its last start took, and where its loss began and ended."""
    columns = [
        Column("stage"),
        Column("epochs", ",d"),
        Column("steps", ",d"),
        Column("seconds since last start", ",.0f"),
    ]
    columns += [Column("first loss", ".4g"), Column("last loss", ".4g")]
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        mine = [row for row in rows if row["stage"] == stage]
        losses = [row["loss"] for row in mine if "loss" in row] or [None]
        done = _done(directory, stage)
        steps = done.get("steps", mine[-1]["step"])
        lines.append([stage, mine[-1]["epoch"], steps, done.get("seconds"), losses[0], losses[-1]])
    return Table(columns, lines)


def _done(directory: Path, stage: str) -> dict[str, Any]:
    """What a finished stage left in `done.json`, in a directory of its own or else in the run's; empty before."""
    own = directory / stage
    path = (own if own.is_dir() else directory) / DONE
    return read_json(path, "the note of a finished stage") if path.is_file() else {}


def _results(
    directory: Path, flags: Mapping[str, Any], found: Path, teacher: str
) -> tuple[list[Measured], list[Section]]:
    """The run's model, after its teacher where it has one, and how they predict the evaluation rows."""
    files = {
        "teacher": (teacher, TEACHER_PREDICTIONS),
        "student" if teacher else "model": (str(found), BEST_PREDICTIONS),
    }
    files = {name: pair for name, pair in files.items() if pair[0]}
    logits = {
        name: read_predictions(directory / file) for name, (_, file) in files.items() if (directory / file).is_file()
    }
    scores: dict[str, dict[str, float]] = {}
    sections: list[Section] = []
    if logits:
        rows = _evaluated(flags)
        config = store.read_weights(found).config
        truth = truth_of(rows, config)
        if not _same_rows({name: read_labels(directory / files[name][1]) for name in logits}, rows, truth):
            why = f"Left out: {rows.directory} holds other rows now than those that were predicted."
            sections = [Section("Predictions", why)]
        else:
            scores = {name: scored(rows, config, values) for name, values in logits.items()}
            sections = compare(rows, truth, found, logits)
    heads = dict.fromkeys(files, 12) | {"teacher": _teacher_heads(flags)}
    return [measured(name, path, scores.get(name, {}), heads[name]) for name, (path, _) in files.items()], sections


def _teacher_heads(flags: Mapping[str, Any]) -> int:
    """Attention heads of a teacher without `config.json`, which each command's flags name in their own way."""
    return flags.get("teacher_num_attention_heads", flags.get("num_attention_heads")) or 12


def _same_rows(predicted: Mapping[str, Sequence[str]], rows: Rows, truth: Truth) -> bool:
    """Whether what was predicted, by its true labels, are the rows that are there now, as far as labels tell."""
    labels = [] if truth.labels is None else told(truth.labels, truth)
    named = rows.meta.get("labels") or rows.problem == REGRESSION  # else each model has names of its own
    return all(found == labels if named else len(found) == len(labels) for found in predicted.values())


def _evaluated(flags: Mapping[str, Any]) -> Rows:
    first = flags["eval_data_dir"].split(",")[0]
    return read_rows(first, kind=flags["dataset_type"], schema_file=flags["schema_dir"], flag="--eval_data_dir")


def environment_section() -> Section:
    """Where this ran."""
    return Section("Environment", facts=environment())


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill report`."""
    run(*parse("minddistill report", "Write a run's report.html anew.", [Config], argv))
