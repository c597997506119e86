"""Prune a classifier: weights set to zero by masks, or heads, neurons, layers and word pieces taken away."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import runtime
from ..config import changed, flag, parse, unusual
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..models import store
from ..prune import structured, vocabulary
from ..prune.sparse import Pruner, Sparsity, chosen
from . import report
from .flags import OptimFlags, RunFlags, StepFlags
from .prune_job import Config, Job, Losses, prepare
from .prune_structured import UNITS, WIDTHS, Structure, checked_target, structured_stages
from .run import Run, open_run
from .stage import Stage, Work, run_stage

_COMPACT, _SMALL_VOCABULARY = "compact", "small_vocabulary"
_WORTH = 0.01  # the part of a model's parameters that must go for a smaller one to be written


@dataclass
class Groups:
    """Several groups of weights."""

    groups: tuple[dict, ...] = flag((), "sparse: a list of tables of the flags above; what one leaves out is as above")


def run(
    config: Config,
    sparsity: Sparsity,
    groups: Groups,
    structure: Structure,
    losses: Losses,
    optim: OptimFlags,
    run_flags: RunFlags,
    step_flags: StepFlags,
) -> tuple[Path, dict[str, float]]:
    """Prune, train what is left, and return its model directory with its dev metrics.

    Raises:
        UserError: flags, records and models do not go together.
    """
    settings = settings_of(config, sparsity, groups, structure)
    place = runtime.start(config.device_target, config.device_id)
    steps = structure.directories() if config.method == "structured" else [""]
    with open_run(run_flags, step_flags, place, steps) as opened:
        flags = [config, sparsity, groups, structure, losses, optim, run_flags, step_flags]
        job = prepare(opened, config, losses, optim, flags)
        if config.method == "sparse":
            stage = sparse_stage(job, settings)
            _forget(job)
            result = shrunk(job, *run_stage(stage))
        else:
            target = checked_target(job, structure)
            _forget(job)
            result = structured_stages(job, structure, target)
        if config.prune_vocabulary:
            result = without_words(job, *result)
        report.at_end(opened)
        return result


def _forget(job: Job) -> None:
    """With `--resume false`, remove what an earlier run left beside its stages, but what this one reads."""
    if job.run.flags.resume is not False:
        return
    directory, read = job.run.directory, [path.directory.resolve() for path in (job.dense, job.teacher)]
    for note in (directory / WIDTHS, *directory.rglob(UNITS)):
        note.unlink(missing_ok=True)
    for name in (_COMPACT, _SMALL_VOCABULARY):
        if (directory / name).resolve() not in read:
            shutil.rmtree(directory / name, ignore_errors=True)


def settings_of(config: Config, sparsity: Sparsity, groups: Groups, structure: Structure) -> list[Sparsity]:
    """The flags of each group of weights.

    Raises:
        UserError: one is set that has no part in the method, or in any group's criterion.
    """
    for group in (sparsity, groups) if config.method == "structured" else (structure,):
        for name, value in unusual(group).items():
            raise UserError(
                f"--{name} {value}: has no part in --method {config.method}; leave it out, or give the other --method"
            )
    settings = [changed(sparsity, values, "--groups") for values in groups.groups] or [sparsity]
    for setting in settings:
        setting.refuse_twice()
        for name in sorted(setting.unread() & unusual(setting).keys()):
            # What stands above the groups may be for some of them only.
            given = [other for other in settings if getattr(other, name) == getattr(setting, name)]
            if all(name in other.unread() for other in given):
                form = f" --movement_form {setting.movement_form}" if setting.criterion == "movement" else ""
                raise UserError(
                    f"--{name} {getattr(setting, name)}: has no part in --criterion {setting.criterion}{form}; leave it out"
                )
    return settings


def sparse_stage(job: Job, settings: Sequence[Sparsity]) -> Stage:
    """Training with masks, which make groups of weights sparse.

    Raises:
        UserError: the groups do not suit the model, or its training.
    """

    def build() -> Work:
        def facts() -> dict[str, Any]:
            return {"patterns": ", ".join(group.pattern for group in settings), "sparsity": work.pruner.sparsity()}

        work = job.work(job.dense, job.run.directory, "uniform", facts)
        work.pruner = Pruner(work.cell.trained(), settings, an_epoch, steps, job.run.log.line)
        return work

    job.objective(job.dense.config, "uniform")  # what it refuses is told before anything is built
    stage = job.stage("prune", job.run.directory, build, job.dense)
    an_epoch = len(job.loader(job.train))
    steps, _ = stage.steps(an_epoch)
    chosen({path: value.shape for path, value in job.dense.values.items()}, settings)
    for setting in settings:
        setting.course(an_epoch, steps)
    return stage


def shrunk(job: Job, result: Path, found: dict[str, float]) -> tuple[Path, dict[str, float]]:
    """Tell what sparsity saves, and take away heads and neurons that it has made idle, where there are any."""
    weights = store.read_weights(result)
    file = (result / store.WEIGHTS_FILE).read_bytes()
    job.run.log.line(
        f"{result}: {len(file) / 1e6:.1f} MB, {len(zlib.compress(file)) / 1e6:.1f} MB compressed (zlib); zeros take as long "
        "as before on runtimes without kernels for them, MindSpore and ONNX Runtime among these (NVIDIA's sparse tensor "
        "cores have them for 2:4, Intel's sparse kernels for 4x1)"
    )
    small = structured.compact(weights)
    if small.config.parameters > (1 - _WORTH) * weights.config.parameters:
        # One is of an earlier run, which --resume false forgot.
        shutil.rmtree(job.run.directory / _COMPACT, ignore_errors=True)
        return result, found
    return _derived(job, small, _COMPACT, result, found), found


def without_words(job: Job, result: Path, found: dict[str, float]) -> tuple[Path, dict[str, float]]:
    """The model and tokenizer of the word pieces that the records use."""
    weights, rows = store.read_weights(result), [part.ids for part in (job.train, job.dev) if part is not None]
    kept = vocabulary.used(load_tokenizer(result), rows)
    small = structured.keep_words(weights, kept)
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary.write_tokenizer(result, Path(scratch), kept)
        return _derived(job, small, _SMALL_VOCABULARY, result, found, Path(scratch)), found


def _derived(
    job: Job,
    weights: store.Weights,
    name: str,
    source: Path,
    found: Mapping[str, float],
    tokenizer: Path | None = None,
) -> Path:
    """Write a model that computes what the one in `source` does."""
    record = store.read_record(source)
    directory = store.save(
        job.run.directory / name,
        store.build(weights),
        tokenizer_from=tokenizer or source,
        command=record["command"],
        parents=record["parents"] | {"before": str(source)},
        data=record["data"],
        metrics=found,
    )
    before, after = record["parameters"], store.read_record(directory)["parameters"]
    job.run.log.line(f"{directory}: the same model with {after} parameters, {after / before:.3f} of those of {source}")
    return directory


def examine(
    run: Run,
    config: Config,
    sparsity: Sparsity,
    groups: Groups,
    structure: Structure,
    losses: Losses,
    optim: OptimFlags,
) -> Job:
    """All that `minddistill doctor` looks at: what `run` does before its first stage is built.

    Raises:
        UserError: flags, records and models do not go together.
    """
    settings = settings_of(config, sparsity, groups, structure)
    job = prepare(run, config, losses, optim, [])
    if config.method == "structured":
        checked_target(job, structure)
    else:
        sparse_stage(job, settings)
    return job


GROUPS = [Config, Sparsity, Groups, Structure, Losses, OptimFlags, RunFlags, StepFlags]


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill prune`."""
    run(
        *parse(
            "minddistill prune", "Make a classifier sparse or smaller, with its dense form as teacher.", GROUPS, argv
        )
    )
