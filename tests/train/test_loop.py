"""Reading ahead: the same batches, the same errors, no thread left behind. Where the loop ends, and ends again."""

import os
import signal
import threading
import time

import pytest

from minddistill.train.checkpoint import TrainState
from minddistill.train.loop import Hook, Prefetched, Stopped, fit


class Numbers:
    def __init__(self, count, broken=-1, seconds=0.0):
        self.count, self.broken, self.seconds, self.made = count, broken, seconds, []

    def __len__(self):
        return self.count

    def epoch(self, epoch, skip=0):
        for number in range(skip, self.count):
            time.sleep(self.seconds)
            if number == self.broken:
                raise ValueError(f"row {number}")
            self.made.append(number)
            yield {"number": epoch * 100 + number}


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order_from_where_they_should():
    ahead = Prefetched(Numbers(5))
    assert len(ahead) == 5
    assert [batch["number"] for batch in ahead.epoch(2, skip=1)] == [201, 202, 203, 204]
    assert not readers()


def test_an_error_arrives_after_the_batches_before_it():
    seen = []
    with pytest.raises(ValueError, match="row 3"):
        for batch in Prefetched(Numbers(5, broken=3)).epoch(0):
            seen.append(batch["number"])
    assert seen == [0, 1, 2] and not readers()


def test_leaving_early_ends_the_reader_which_was_at_most_a_few_ahead():
    numbers = Numbers(1000)
    batches = Prefetched(numbers, depth=2).epoch(0)
    next(batches)
    batches.close()
    assert not readers() and len(numbers.made) <= 4


def test_waiting_is_counted_where_the_data_is_slow_and_only_there():
    slow, fast = Prefetched(Numbers(5, seconds=0.1)), Prefetched(Numbers(5))
    list(slow.epoch(0))
    for _ in fast.epoch(0):
        time.sleep(0.02)
    # The first number may be on its way before it is waited for.
    assert slow.waited > 0.4 > 0.1 > fast.waited


def train(state, hooks=(), **options):
    """Run the loop over 3 epochs of 4 batches, with nothing learnt; the numbers of the batches it took."""
    taken = []
    try:
        fit(
            lambda batch, last: taken.append(batch["number"]) or (), Numbers(4), state, epochs=3, hooks=hooks, **options
        )
    except Stopped:
        taken.append("stopped")
    return taken


def fresh(**where):
    return TrainState({}, None, None, {}, **where)


def test_a_run_goes_on_at_its_position_and_one_that_had_ended_does_not():
    assert train(fresh(epoch=1, position=2, step=6)) == [102, 103, 200, 201, 202, 203]
    assert train(fresh(epoch=3, step=12)) == []
    for steps in (4, 6):
        state = fresh()
        assert len(train(state, most_steps=steps)) == steps
        assert train(state, most_steps=steps) == []
    state, options = fresh(), {"stop_early": lambda state: state.epoch == 2}
    assert len(train(state, **options)) == 8 and train(state, **options) == []


@pytest.mark.parametrize(
    ("every", "accumulate", "seen"),
    [
        (3, 1, [3, 6, 9, 12]),
        (3, 2, [4, 6, 10, 12]),  # at the next update, wherever the steps between two updates pass a multiple
        (5, 3, [7, 11]),  # updates after 3, 4, 7, 8, 11 and 12 steps: 5 and 10 are passed at 7 and 11
        (2, 4, [4, 8, 12]),
    ],
)
def test_hooks_are_called_at_updates(every, accumulate, seen):
    steps = []
    train(fresh(), [Hook(every, lambda state, outputs: steps.append(state.step))], accumulate=accumulate)
    assert steps == seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_steps_even_at_the_very_end(number):
    def tell(state, outputs):
        os.kill(os.getpid(), number)

    state = fresh()
    assert train(state, [Hook(6, tell)]) == [0, 1, 2, 3, 100, 101, "stopped"]
    assert (state.epoch, state.position, state.step) == (1, 2, 6)
    state = fresh(epoch=2, step=8)
    assert train(state, [Hook(0, tell, at_epoch_end=True)]) == [200, 201, 202, 203, "stopped"]
    assert train(state) == []


def test_a_second_sigterm_lets_the_step_end_and_a_second_ctrl_c_does_not():
    def tell(*numbers):
        def hook(state, outputs):
            for number in numbers:
                os.kill(os.getpid(), number)

        return Hook(6, hook)

    assert train(fresh(), [tell(signal.SIGTERM, signal.SIGTERM)])[-1] == "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), [tell(signal.SIGTERM, signal.SIGINT)])
