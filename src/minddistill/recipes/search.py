"""Hyper-parameter search: a command's configuration, run in trials that vary some of its flags."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from ..bench import plots
from ..config import flag, parse, read_yaml
from ..errors import UserError
from ..files import read_json, write_json, write_text
from ..train.log import read_metrics
from ..workers import threads_each
from . import distill, finetune, task_distill
from .resume import KEEPING
from .stage import DONE

_STAGES = {"finetune": finetune, "task-distill": task_distill, "distill": distill}
# Of a trial that is not the best: its models and states. Its numbers stay.
_LARGE = ("best", "last", "phase1", "checkpoints", "teacher_cache")
_LOOK = 0.5  # seconds between two looks at a trial's metrics


@dataclass
class Config:
    """A search."""

    config: str = flag("", "YAML of the command's flags that stay")
    space: str = flag("", "YAML of the flags that vary: NAME: [a, b] or NAME: {low: 1, high: 5, log: false}")
    command: Literal["task-distill", "finetune", "distill"] = flag("task-distill", "command whose flags these are")
    trials: int = flag(20, "trials in the whole study, those of earlier runs and other processes included")
    processes: int = flag(1, "processes that run trials side by side; the same command elsewhere may join them")
    prune: bool = flag(True, "stop a trial whose dev metric at an epoch is below the median of earlier trials'")
    refit: int = flag(3, "runs of the best configuration with other seeds; 0 for none")
    seed: int = flag(42, "seed of the search; refits take the configuration's seed plus 1, 2, ...")
    output_dir: str = flag("", "directory of the study: study.db, trials/, best.yaml, search.json, plots")


def run(config: Config) -> dict[str, Any]:
    """Search, write the best configuration, and fit it again with other seeds.

    Run again, it goes on: trials count in the study, a stopped one goes on from its checkpoint.

    Returns:
        What `search.json` holds.

    Raises:
        UserError: a file or flag is wrong, or no trial came to a metric.
        KeyboardInterrupt: stopped; the running trial is saved.
    """
    from ..search.space import read_space  # Optuna is an extra

    space = read_space(_file(config.space, "--space"))
    base = _checked(config, space)
    directory = Path(config.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    helpers = _helpers(config)
    try:
        study = _search(config, base, space, directory)
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            helper.terminate()
    return _conclude(config, base, study, directory)


def _file(path: str, name: str) -> Path:
    if not path:
        raise UserError(f"{name} is empty; expected a YAML file")
    return Path(path)


def _checked(config: Config, space: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration's values, after the command has read both ends of the space with them."""
    from ..search.space import ends

    if not config.output_dir:
        raise UserError("--output_dir is empty; expected the directory of the study")
    if config.trials < 1 or config.processes < 1:
        raise UserError(f"--trials {config.trials}, --processes {config.processes}: expected 1 or more")
    file = _file(config.config, "--config")
    base = read_yaml(file)
    held = sorted({"output_dir", "resume", "distribute"} & space.keys())
    if held:
        raise UserError(f"--space {config.space}: {held[0]}: cannot vary; take it out")
    kinds = _kinds(_STAGES[config.command].GROUPS)
    for name, values in space.items():
        if name not in kinds:
            raise UserError(f"--space {config.space}: unknown flag --{name} of {config.command}")
        odd = [value for value in getattr(values, "choices", ()) if kinds[name] is str and not isinstance(value, str)]
        if odd and not isinstance(odd[0], bool):
            raise UserError(f"--space {config.space}: {name}: expected text, YAML reads the number {odd[0]}; quote it")
        read = [value for value in getattr(values, "choices", ()) if isinstance(value, bool)]
        if read and kinds.get(name, bool) is not bool:
            raise UserError(f"--space {config.space}: {name}: YAML reads {read[0]} there; put the word in quotes")
    for setting in ends(space):
        try:
            parse(f"minddistill {config.command}", "", _STAGES[config.command].GROUPS, _words(file, setting))
        except UserError as error:
            raise UserError(f"--config {file} with --space {config.space}: {error}") from None
    if not base.get("eval_data_dir"):
        raise UserError(f"--config {file}: eval_data_dir is not in it; expected the records that trials are judged by")
    return base


def _kinds(groups: Sequence[type]) -> dict[str, Any]:
    """The type of each flag, by each of its names."""
    kinds = {}
    for group in groups:
        hints = get_type_hints(group)
        for field in dataclasses.fields(group):
            kinds |= dict.fromkeys((field.name, *field.metadata.get("aliases", ())), hints[field.name])
    return kinds


def _words(file: Path, setting: Mapping[str, Any]) -> list[str]:
    return ["--config", str(file), *(f"--{name}={value}" for name, value in setting.items())]


def _helpers(config: Config) -> list[subprocess.Popen]:
    """The same search in further processes, which leave the end of it to this one."""
    words = [sys.executable, "-m", "minddistill", "search", "--config", config.config, "--space", config.space]
    words += ["--command", config.command, "--trials", str(config.trials), "--prune", str(config.prune).lower()]
    words += ["--output_dir", config.output_dir, "--refit", "0", "--seed", str(config.seed)]
    if config.processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_each(config.processes)))
    return [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(config.processes - 1)]


def _search(config: Config, base: Mapping[str, Any], space: Mapping[str, Any], directory: Path) -> Any:
    from ..search import study as studies
    from ..search.space import ends

    fixed = {name: value for name, value in base.items() if name not in space and name not in KEEPING}
    fixed["command"] = config.command
    study = studies.open_study(directory / "study.db", space, config.seed, config.prune, fixed)
    if not studies.ended(study):
        _examine(config, ends(space), directory)

    def evaluate(trial: Any, setting: dict[str, Any]) -> float:
        place = directory / "trials" / _name(setting)
        if setting in studies.settings(study) and (place / DONE).is_file():
            return _metric(place, config)[1]  # known; its models may be gone
        told = ", ".join(f"{name} {_short(value)}" for name, value in setting.items())
        seen: set[int] = set()
        pruned = ""
        with _Run(config, setting, place) as process:
            for epoch, value in process.epochs():
                if epoch not in seen:
                    seen.add(epoch)
                    trial.report(value, epoch)
                if trial.should_prune():
                    pruned = f"pruned after epoch {epoch} at {value:.4f}"
                    break
        if pruned:
            _shrink(place)
            print(f"trial {trial.number}: {pruned}; {told}", flush=True)
            raise studies.optuna.TrialPruned
        if process.code == 130:
            raise studies.Interrupted
        if process.code == 1:  # no mistake that the command knows
            raise studies.Broken(process.reason())
        if process.code:
            _shrink(place)
            print(f"trial {trial.number}: refused: {process.reason()}; {told}", flush=True)
            raise studies.Refused(process.reason())
        value = _metric(place, config)[1]
        best = study.best_params if studies.beaten(study, value) else setting
        for other in (setting, *studies.settings(study)):
            if other != best:
                _shrink(directory / "trials" / _name(other))
        print(f"trial {trial.number}: {value:.4f}; {told}", flush=True)
        return value

    try:
        studies.optimize(study, space, config.trials, evaluate, config.seed)
    except studies.Interrupted:
        raise KeyboardInterrupt from None
    except studies.Broken as error:
        raise UserError(f"a trial broke off: {error}; the same command begins with it") from None
    return study


def _examine(config: Config, settings: Sequence[Mapping[str, Any]], directory: Path) -> None:
    """See that the command takes the configuration with one of some settings, before trials are spent on it.

    Raises:
        UserError: it takes none; what is wrong is in no setting.
    """
    doctor, place = [sys.executable, "-m", "minddistill", "doctor", config.command], directory / "trials" / "first"
    wrong = []
    for setting in settings:
        words = [*doctor, *_words(Path(config.config), setting), f"--output_dir={place}"]
        done = subprocess.run(words, capture_output=True, text=True)
        if not done.returncode:
            return
        found = re.findall(r"\swrong\s+(\S.*)", done.stdout) or done.stderr.strip().splitlines() or ["doctor broke off"]
        wrong.append(found[-1].strip())
    raise UserError(f"--config {config.config}: {wrong[0]}")


def _name(setting: Mapping[str, Any]) -> str:
    """A directory for a setting: the same setting goes on where it stopped."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:12]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shrink(place: Path) -> None:
    for name in _LARGE:
        shutil.rmtree(place / name, ignore_errors=True)


class _Run:
    """One run of the command in a process of its own, stopped when it is left early."""

    def __init__(self, config: Config, setting: Mapping[str, Any], place: Path):
        self.place, self.log = place, place.with_suffix(".log")
        place.parent.mkdir(parents=True, exist_ok=True)
        words = _words(Path(config.config), setting)
        self.words = [sys.executable, "-m", "minddistill", config.command, *words, f"--output_dir={place}"]

    def __enter__(self) -> _Run:
        # Two searches may draw one setting, and a trial outlives a search that is killed: the lock is the trial's too.
        self.lock = open(self.place.with_suffix(".lock"), "wb")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        with open(self.log, "wb") as log:
            # In a session of its own: Ctrl-C reaches this process only, which stops the trial once.
            self.process = subprocess.Popen(
                self.words, stdout=log, stderr=log, start_new_session=True, pass_fds=[self.lock.fileno()]
            )
        return self

    def __exit__(self, *error: Any) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # it saves first
        self.code = self.process.wait()
        self.lock.close()

    def epochs(self) -> Iterator[tuple[int, float]]:
        """Epoch and dev metric of the evaluations so far, as they come, until the process ends."""
        over = False
        while not over:
            over = self.process.poll() is not None
            yield from _evaluations(self.place)
            if not over:
                time.sleep(_LOOK)
        self.code = self.process.returncode

    def reason(self) -> str:
        """The last line that the process wrote."""
        lines = self.log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
        return f"{lines[-1]} (exit code {self.code}, {self.log})"


def _evaluations(place: Path) -> list[tuple[int, float]]:
    """Epoch and main dev metric of each evaluation that a run has logged."""
    try:
        rows = read_metrics(place)
    except UserError:  # nothing is logged yet
        return []
    found = ((row["epoch"], [value for name, value in row.items() if name.startswith("dev_")]) for row in rows)
    return [(epoch, values[0]) for epoch, values in found if values]


def _metric(place: Path, config: Config) -> tuple[str, float]:
    """Name and value of the main dev metric of a finished run."""
    metrics = read_json(place / DONE, "the note of a finished stage")["metrics"]
    if not metrics:
        raise UserError(f"--config {config.config}: nothing is evaluated; give eval_data_dir, and do_eval true")
    return next(iter(metrics.items()))


def _conclude(config: Config, base: Mapping[str, Any], study: Any, directory: Path) -> dict[str, Any]:
    """Write what the search found, and fit the best configuration again."""
    from ..search import study as studies

    trials = studies.ended(study)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        refused = [trial.user_attrs["refused"] for trial in trials if "refused" in trial.user_attrs]
        raise UserError(
            f"{directory}: none of {len(trials)} trials came to a metric; {(refused or ['all were pruned'])[-1]}"
        )
    best = study.best_trial
    metric = _metric(directory / "trials" / _name(best.params), config)[0]
    chosen = {**base, **best.params}
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    write_text(directory / "best.yaml", f"# minddistill {config.command} --config {directory / 'best.yaml'}\n{text}")
    shares = studies.importance(study)
    plots.save(
        plots.search_history([trial.value if trial in complete else None for trial in trials], metric),
        directory,
        "history",
    )
    if shares:
        plots.save(plots.search_importance(shares), directory, "importance")
    found = {
        "metric": metric,
        "best": {"value": best.value, "setting": best.params},
        "importance": shares,
        "trials": [
            {"setting": trial.params, "value": trial.value, "state": trial.state.name.lower()} for trial in trials
        ],
    }
    told = ", ".join(f"{name} {_short(value)}" for name, value in best.params.items())
    print(f"best {metric} of {len(trials)} trials: {best.value:.4f} with {told}; {directory / 'best.yaml'}", flush=True)
    write_json(directory / "search.json", found)
    if config.refit:
        found["refit"] = _refit(config, chosen, directory)
        write_json(directory / "search.json", found)
    return found


def _refit(config: Config, chosen: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The best configuration's metric with other seeds: mean, and sample standard deviation."""
    first = parse("", "", _STAGES[config.command].GROUPS, ["--config", str(directory / "best.yaml")])
    seed = next(group.seed for group in first if hasattr(group, "seed"))
    values = {}
    for number in range(seed + 1, seed + 1 + config.refit):
        place = directory / "refit" / _name(chosen) / f"seed{number}"
        fixed = Config(**{**vars(config), "config": str(directory / "best.yaml")})
        with _Run(fixed, {"seed": number}, place) as process:
            process.process.wait()
        if process.code == 130:
            raise KeyboardInterrupt
        if process.code:
            raise UserError(f"--refit: seed {number}: {process.reason()}")
        values[number] = _metric(place, config)[1]
        print(f"refit, seed {number}: {values[number]:.4f}", flush=True)
    mean = statistics.mean(values.values())
    spread = statistics.stdev(values.values()) if len(values) > 1 else 0.0
    print(f"refit: {mean:.4f} ± {spread:.4f} over {len(values)} seeds", flush=True)
    return {"values": values, "mean": mean, "standard_deviation": spread}


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill search`."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError('search needs Optuna; pip install "minddistill[search]"') from None
    run(*parse("minddistill search", "Search a command's flags.", [Config], argv))
