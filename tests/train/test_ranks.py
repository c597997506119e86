"""An overflow on one rank: all skip the step and lower the loss scale together, as one process would."""

from pathlib import Path

import numpy as np
import pytest
import ranks
from launched import msrun

from minddistill.runtime import Runtime


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_an_overflow_on_one_rank_is_skipped_by_all(tmp_path, count):
    done = msrun(count, tmp_path / "logs", Path(ranks.__file__), count, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    one = ranks.train(Runtime("CPU"))
    assert one["overflow"].nonzero()[0].tolist() == list(ranks.OVERFLOWS)
    assert one["scale"].tolist() == [1024.0, 1024.0, 512.0, 256.0, 256.0, 512.0, 256.0, 256.0]
    for rank in range(count):
        found = np.load(tmp_path / f"rank_{rank}.npz")
        assert sorted(found) == sorted(one)
        for name in one:
            np.testing.assert_allclose(found[name], one[name], rtol=1e-5, err_msg=f"{name} of rank {rank}")
