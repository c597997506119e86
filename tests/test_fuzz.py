"""A part of the broken inputs of `make fuzz`: every kind of them at least once."""

import fuzz


def test_broken_inputs_are_refused_clearly():
    said: list[str] = []
    good, total = fuzz.fuzz(count=60, seed=1, real_every=0, say=said.append)
    assert total >= 50 and good == total, "\n".join(said)
