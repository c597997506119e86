"""Student, teacher and objective together: what rows are padded to changes no loss, dropout included."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from minddistill.data.loader import Loader
from minddistill.data.records import Rows
from minddistill.distill.distiller import Distiller
from minddistill.distill.layer_map import layer_map
from minddistill.distill.objectives import FitDense, Intermediate, Prediction
from minddistill.models import store
from minddistill.models.presets import preset
from minddistill.params import initialise

LONGEST, PADDED = 9, 24


def rows() -> Rows:
    generator = np.random.default_rng(0)
    length = generator.integers(3, LONGEST + 1, 11).astype(np.int32)
    ids = generator.integers(5, 40, (11, PADDED)) * (np.arange(PADDED) < length[:, None])
    return Rows(ids.astype(np.uint16), length, length - 1, np.zeros(11, np.int32), {}, Path("rows"), str)


@pytest.mark.parametrize("phase", [1, 2])
def test_losses_are_the_same_whatever_the_padding(phase):
    shape = {"vocab_size": 40, "labels": ("no", "yes"), "pooler": True, "max_position_embeddings": PADDED}
    # Weights as large as trained ones, so that the losses are no rounding errors.
    teacher = store.new(preset("test-4l-32").with_(**shape, initializer_range=0.3), seed=1)
    student = store.new(preset("test-2l-32").with_(**shape, initializer_range=0.3), seed=2)
    fit = FitDense(32, 32, 1)
    initialise(fit, 3, 0.3)
    objective = Intermediate(layer_map("uniform", 2, 4), fit) if phase == 1 else Prediction()
    losses = []
    for buckets in ([LONGEST], [PADDED]):
        cell = Distiller(student, teacher, objective)
        batches = Loader(rows(), 4, buckets=buckets, shuffle=False).epoch(
            0
        )  # the last of three rows and one that fills
        losses.append([float(cell(ms.mutable(batch), Tensor(3, ms.int32))[0].asnumpy()) for batch in batches])
    assert len(losses[0]) == 3 and min(losses[0]) > 0.1
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
