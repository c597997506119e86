"""Studies: how many trials run, what becomes of those that end early, and what is found."""

import subprocess
import sys

import optuna
import pytest
from optuna.distributions import FloatDistribution

from minddistill.errors import UserError
from minddistill.search import study as studies

SPACE = {"x": FloatDistribution(0.0, 1.0), "idle": FloatDistribution(0.0, 1.0)}


@pytest.fixture
def opened(tmp_path):
    def open_(space=SPACE, **fixed):
        return studies.open_study(tmp_path / "study.db", space, seed=0, prune=True, fixed=fixed)

    return open_


def hill(trial, setting):
    return 1 - (setting["x"] - 0.3) ** 2


def test_trials_count_over_runs_and_find_the_hill(opened):
    studies.optimize(opened(), SPACE, 10, hill, seed=0)
    first = opened()
    assert len(studies.ended(first)) == 10
    studies.optimize(first, SPACE, 25, hill, seed=0)
    again = opened()
    assert len(studies.ended(again)) == 25 and again.best_params["x"] == pytest.approx(0.3, abs=0.1)
    drawn = [trial.params["x"] for trial in studies.ended(again)]
    assert len(set(drawn)) == 25  # a search that goes on draws new settings
    shares = studies.importance(again)
    assert list(shares) == ["x", "idle"] and shares["x"] > 0.8 and sum(shares.values()) == pytest.approx(1)
    assert studies.beaten(again, 0.5) and not studies.beaten(again, 1.1)


def test_a_stopped_setting_is_the_next(opened):
    met = []

    def stopped_once(trial, setting):
        met.append(setting)
        if len(met) == 2:
            raise KeyboardInterrupt
        return 0.5

    study = opened()
    with pytest.raises(studies.Interrupted):
        studies.optimize(study, SPACE, 4, stopped_once, seed=0)
    assert len(studies.ended(study)) == 1  # the stopped one does not count
    studies.optimize(opened(), SPACE, 4, stopped_once, seed=0)
    assert met[2] == met[1] and len(studies.ended(opened())) == 4


def test_a_setting_that_breaks_off_is_tried_once_more(opened):
    met = []

    def broken(trial, setting):
        met.append(setting)
        if setting["x"] == met[0]["x"]:
            raise studies.Broken("out of memory")
        return 0.5

    with pytest.raises(studies.Broken, match="out of memory"):
        studies.optimize(opened(), SPACE, 3, broken, seed=0)
    assert not studies.ended(opened())
    studies.optimize(opened(), SPACE, 3, broken, seed=0)
    assert met[0] == met[1] != met[2] and len(met) == 4
    assert [trial.user_attrs.get("refused") for trial in studies.ended(opened())] == ["out of memory", None, None]


def test_refused_settings_count_and_carry_their_reason(opened):
    def refused(trial, setting):
        raise studies.Refused("no such layer")

    study = opened()
    studies.optimize(study, SPACE, 3, refused, seed=0)
    assert [trial.user_attrs["refused"] for trial in studies.ended(study)] == ["no such layer"] * 3
    assert studies.importance(study) == {}


def test_trials_below_the_median_are_pruned(opened):
    def watched(trial, setting):
        value = 0.9 if trial.number < 6 else 0.1
        for epoch in (1, 2):
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = opened()
    studies.optimize(study, SPACE, 8, watched, seed=0)
    states = [trial.state.name for trial in studies.ended(study)]
    assert states == ["COMPLETE"] * 6 + ["PRUNED"] * 2


def test_trials_with_other_flags_are_not_mixed(opened):
    opened(model="a")
    opened(model="a")
    with pytest.raises(UserError, match=r"model was 'a', is 'b'; give what they had, or another --output_dir"):
        opened(model="b")


def test_another_space_and_a_file_that_is_no_study_are_refused(opened, tmp_path):
    opened()
    with pytest.raises(UserError, match=r"is of a search over .*give another --output_dir"):
        opened({"y": FloatDistribution(0.0, 1.0)})
    (tmp_path / "study.db").write_text("not a database, but long enough to be taken for the header of one" * 3)
    with pytest.raises(UserError, match="expected a study of an earlier search"):
        opened()


def test_what_a_killed_process_left_is_run_by_another(opened, monkeypatch):
    monkeypatch.setattr(studies, "_BEAT", 1)
    study = opened()
    left = study.ask(SPACE)
    study._storage.record_heartbeat(left._trial_id)
    drawn = []
    studies.optimize(opened(), SPACE, 2, lambda trial, setting: drawn.append(setting) or hill(trial, setting), seed=0)
    assert len(studies.ended(opened())) == 2 and left.params in drawn


def test_searches_that_begin_together_draw_settings_of_their_own(opened):
    met, both = [], (opened(), opened())
    for count in range(1, 9):
        studies.optimize(both[count % 2], SPACE, count, lambda trial, setting: met.append(setting["x"]) or 0.5, seed=0)
    assert len(set(met)) == 8


def test_processes_may_open_a_study_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from optuna.distributions import FloatDistribution as F\n"
        "from minddistill.search.study import open_study\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "open_study(Path(sys.argv[1]), {'x': F(0.0, 1.0)}, 0, True, {'model': 'a'})"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "study.db")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(words, **pipes) for _ in range(3)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        assert process.communicate()[1] == "" and process.returncode == 0
