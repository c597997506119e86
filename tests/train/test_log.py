"""What the progress bar says, and what `metrics.jsonl` tells a reader."""

import io

import pytest
from rich.console import Console

from minddistill.errors import UserError
from minddistill.train.log import RunLog, read_metrics


def test_bar_says_what_it_waits_for_and_then_its_title_again():
    log, screen = RunLog(None), io.StringIO()
    log._console = Console(file=screen, force_terminal=True, width=200)
    log.start("phase 1", total=10, done=0, first_shapes=2)
    with log.waiting("compiling length 16, 1 of 2"):
        assert "phase 1: compiling length 16, 1 of 2" in screen.getvalue()
    screen.truncate(0)
    log._bar.refresh()
    assert "phase 1" in screen.getvalue() and "compiling" not in screen.getvalue()
    log.stop()


def test_without_a_terminal_a_line_says_that_shapes_are_compiled(capsys):
    log = RunLog(None)
    log.start("phase 1", total=10, done=0, first_shapes=2)
    with log.waiting("compiling length 16, 1 of 2"):
        pass
    assert capsys.readouterr().out == "phase 1: 10 steps, compiling 2 shapes as they are met\n"


def test_a_torn_line_is_left_out_and_no_rows_at_all_are_told(tmp_path):
    log = RunLog(tmp_path)
    with pytest.raises(UserError, match="expected a run directory"):
        read_metrics(tmp_path)
    log.metrics("phase1", 1, 5, {"loss": 2.0})
    log.metrics("phase1", 1, 10, {"loss": 1.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-4])
    assert read_metrics(tmp_path) == [{"stage": "phase1", "epoch": 1, "step": 5, "loss": 2.0}]
    path.write_text("")
    with pytest.raises(UserError, match="holds no rows yet"):
        read_metrics(tmp_path)
