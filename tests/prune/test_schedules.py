"""Courses of sparsity against values worked out by hand."""

import pytest

from minddistill.errors import UserError
from minddistill.prune.schedules import COURSES, Schedule


@pytest.mark.parametrize(
    ("course", "quarter", "half"),
    [
        ("exp", 0.437659, 0.683772),  # 1 - 0.1^t
        ("cos", 0.068508, 0.263604),  # 0.9 (1 - cos(pi t / 2))
        ("linear", 0.225, 0.45),
        ("cube", 0.0140625, 0.1125),
        ("cubic", 0.5203125, 0.7875),
    ],
)
def test_courses_by_hand(course, quarter, half):
    schedule = Schedule(course, 0.9, start=100, end=2100, frequency=50)
    assert schedule.last == 40
    for event, value in ((0, 0.0), (10, quarter), (20, half), (40, 0.9)):
        assert schedule.sparsity(event) == pytest.approx(value, abs=1e-6)
    rising = [schedule.sparsity(event) for event in range(41)]
    assert rising == sorted(rising)


def test_events_are_every_so_many_steps_from_start_to_end():
    schedule = Schedule("linear", 0.5, start=3, end=10, frequency=3)
    assert [schedule.due(step) for step in (0, 2, 3, 5, 6, 9, 10, 99)] == [-1, -1, 0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("end", [7, 9])
def test_one_event_prunes_to_the_target(end):
    schedule = Schedule("cube", 0.5, start=7, end=end, frequency=10)
    assert schedule.last == 0 and schedule.sparsity(schedule.due(7)) == 0.5 and schedule.due(6) == -1


@pytest.mark.parametrize("wrong", [{"course": "cuboid"}, {"end": 1}, {"frequency": 0}])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(UserError):
        Schedule(**{"course": "exp", "target": 0.5, "start": 2, "end": 4, "frequency": 1} | wrong)


def test_all_courses_are_tried():
    assert set(COURSES) == {"exp", "cos", "linear", "cube", "cubic"}
