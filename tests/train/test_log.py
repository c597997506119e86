"""What the progress bar says."""

import io

from rich.console import Console

from minddistill.train.log import RunLog


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
