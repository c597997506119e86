"""Reading ahead: the same batches, the same errors, no thread left behind."""

import threading
import time

import pytest

from minddistill.train.loop import Prefetched


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
    slow, fast = Prefetched(Numbers(5, seconds=0.02)), Prefetched(Numbers(5))
    list(slow.epoch(0))
    for _ in fast.epoch(0):
        time.sleep(0.02)
    assert slow.waited >= 0.1 > 0.05 > fast.waited
