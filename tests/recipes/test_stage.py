"""A stage's numbers."""

from pathlib import Path

import pytest

from minddistill.errors import UserError
from minddistill.recipes.stage import Stage
from minddistill.train.loop import fit
from minddistill.train.step import StepConfig


class Batches:
    """So many numbers an epoch."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def epoch(self, epoch, skip=0):
        yield from range(skip, self.count)


class State:
    epoch = position = step = 0


def stage(epochs, accumulate, most_steps=0) -> Stage:
    parts = {"run": None, "name": "x", "directory": Path(), "build": None, "optim": None, "groups": (), "content": {}}
    return Stage(**parts, epochs=epochs, step=StepConfig(accumulate=accumulate), most_steps=most_steps)


@pytest.mark.parametrize("most_steps", [0, 2, 7, 12, 30, 1000])
@pytest.mark.parametrize(("an_epoch", "accumulate"), [(3, 1), (3, 2), (4, 2), (5, 4), (1, 2)])
def test_updates_are_those_that_the_loop_makes(an_epoch, accumulate, most_steps):
    taken = []
    limits = {"epochs": 9, "most_steps": most_steps}
    fit(
        lambda batch, last: taken.append(last) or (),
        Batches(an_epoch),
        State(),
        hooks=(),
        accumulate=accumulate,
        **limits,
    )
    if not sum(taken):
        with pytest.raises(UserError, match=r"--train_steps 2: ends before the first update of --accumulation_steps 4"):
            stage(9, accumulate, most_steps).steps(an_epoch)
    else:
        assert stage(9, accumulate, most_steps).steps(an_epoch) == (len(taken), sum(taken))
