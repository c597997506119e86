"""A study of Optuna's (arXiv 1907.10902): trials in an SQLite file, which several processes may share and which outlives them."""

from __future__ import annotations

import fcntl
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from ..errors import UserError

_BEAT = 30  # seconds between a running trial's signs of life; after four without, it is taken up by others
_LOOK = 1.0  # seconds between two looks at trials that others run
_SPACE, _FIXED = "space", "fixed"  # attributes of a study


_BROKE = "broke"  # of a trial, for other processes and later searches


class Refused(Exception):
    """A trial whose setting the command does not take; the search goes on with others."""


class Broken(Exception):
    """A trial that broke off as no mistake in its setting ends; it is the first to be run when the search goes on, and is
    given up where it breaks off again."""


class Interrupted(Exception):
    """A trial that was stopped; it is the first to be run when the search goes on."""


def open_study(
    file: Path, space: Mapping[str, BaseDistribution], seed: int, prune: bool, fixed: Mapping[str, Any]
) -> optuna.Study:
    """Open the study that a file holds, or begin it: TPE over the space, and the median rule on values per epoch.

    Args:
        fixed: what all trials have in common.

    Raises:
        UserError: the file is no study, or one over another space, or of other trials.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # trials are told of by who runs them
    beats = {
        "heartbeat_interval": _BEAT,
        "grace_period": 4 * _BEAT,
        "heartbeat_stale_trial_callback": lambda study, trial: study.enqueue_trial(trial.params),
    }
    try:
        with warnings.catch_warnings(), open(file.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # searches that begin together make the tables once
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
            storage = optuna.storages.RDBStorage(f"sqlite:///{file}", **beats)
            study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
        described = {name: optuna.distributions.distribution_to_json(kind) for name, kind in space.items()}
        known, before = study.user_attrs.get(_SPACE), study.user_attrs.get(_FIXED, fixed)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(
            f"{file}: {' '.join(str(error).split())[:200]}; expected a study of an earlier search"
        ) from None
    if known not in (None, described):
        raise UserError(
            f"{file}: is of a search over {_told(known)}, not {_told(described)}; give another --output_dir"
        )
    changed = sorted(name for name in before.keys() | fixed.keys() if before.get(name) != fixed.get(name))
    if changed:
        told = ", ".join(f"{name} was {before.get(name)!r}, is {fixed.get(name)!r}" for name in changed)
        raise UserError(f"{file}: its trials have other flags: {told}; give what they had, or another --output_dir")
    study.set_user_attr(_SPACE, described)
    study.set_user_attr(_FIXED, dict(fixed))
    study.sampler = _sampler(seed)
    study.pruner = optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner()
    return study


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _told(space: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in space.items())


def optimize(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    trials: int,
    evaluate: Callable[[Trial, dict[str, Any]], float],
    seed: int,
) -> None:
    """Run trials until the study has so many that ended: complete, pruned or refused.

    Args:
        seed: of what is drawn; each trial has its own, by its number, so that no other process, and no search that goes
            on, draws it again.
        evaluate: the value of a setting; it reports values per epoch to the trial, and may raise Refused or
            optuna.TrialPruned.

    Raises:
        Interrupted: a trial was stopped; its setting is queued again.
        Broken: likewise, where it broke off for the first time.
    """

    def objective(trial: Trial) -> float:
        study.sampler = _sampler(seed + trial.number)
        setting = {name: _drawn(trial, name, kind) for name, kind in space.items()}
        try:
            return evaluate(trial, setting)
        except Refused as error:
            trial.set_user_attr("refused", str(error))
            raise
        except Broken as error:
            trials = study.get_trials(deepcopy=False)
            if any(other.user_attrs.get(_BROKE) and other.params == setting for other in trials):
                trial.set_user_attr("refused", str(error))  # twice is no accident
                raise Refused(str(error)) from None
            trial.set_user_attr(_BROKE, True)
            study.enqueue_trial(setting)
            raise
        except (Interrupted, KeyboardInterrupt):
            study.enqueue_trial(setting)
            raise Interrupted from None

    while len(ended(study)) < trials:
        if sum(map(_counts, study.get_trials(deepcopy=False))) < trials:
            study.optimize(objective, n_trials=1, catch=(Refused,))  # takes up what killed processes left, as below
        else:  # others run the last ones
            time.sleep(_LOOK)
            _fail_stale(study)


def _fail_stale(study: optuna.Study) -> None:
    """Queue the settings of trials whose process was killed: those whose signs of life are too old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those that were asked for: also one that another process runs now."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return trial.state in ended or "refused" in trial.user_attrs


def _drawn(trial: Trial, name: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    if isinstance(kind, optuna.distributions.IntDistribution):
        return trial.suggest_int(name, kind.low, kind.high, step=kind.step, log=kind.log)
    return trial.suggest_float(name, kind.low, kind.high, step=kind.step, log=kind.log)


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have come to an end, in their order."""
    found = study.get_trials(deepcopy=False)
    return [trial for trial in found if trial.state != TrialState.RUNNING and _counts(trial)]


def importance(study: optuna.Study) -> dict[str, float]:
    """How much of the value's variance each flag explains (fANOVA, Hutter et al. 2014), greatest first.

    Empty where there are too few complete trials, or all have the same value.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        return {}
    return dict(get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)))


def settings(study: optuna.Study) -> list[dict[str, Any]]:
    """The settings of the study's complete trials."""
    return [trial.params for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]


def beaten(study: optuna.Study, value: float) -> bool:
    """Whether a complete trial of the study is at least as good as a value."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return any(trial.value >= value for trial in complete)
