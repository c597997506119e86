"""Simulated quantisation, in both of its forms, against its definition in plain numbers."""

from contextlib import nullcontext

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from minddistill import native
from minddistill.models.fake_quant import FakeQuant, Grid

ACTIVATION = Grid(np.float32(0.5), np.float32(3), 0, 255)  # from -1.5 to 126
BY_OUTPUT = Grid(np.float32([[0.5], [0.01]]), np.zeros((2, 1), np.float32), -127, 127)


@pytest.fixture(params=["kernel", "plain"])
def form(request):
    """Cells that are built inside have this form."""
    return nullcontext if request.param == "kernel" else native.off


@pytest.mark.parametrize(
    ("grid", "values", "expected"),
    [
        # Halves go to even; what lies outside goes to the ends.
        (ACTIVATION, [[0.25, 0.75, -0.3, -9.0, 125.9, 500.0]], [[0.0, 1.0, -0.5, -1.5, 126.0, 126.0]]),
        (BY_OUTPUT, [[0.3, -70.0], [0.3, -70.0]], [[0.5, -63.5], [0.3, -1.27]]),
    ],
)
def test_values_go_to_the_nearest_number_of_the_grid(form, grid, values, expected):
    with form():
        found = FakeQuant(grid)(Tensor(values, ms.float32)).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose((grid.quantised(np.float32(values)) - grid.zero) * grid.scale, expected, rtol=1e-6)


class Weighted(nn.Cell):
    """The sum of what a cell gives, times 1, 2, 3 and 4."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.weights = cell, Tensor([[1.0, 2.0, 3.0, 4.0]], ms.float32)

    def construct(self, x):
        return (self.cell(x) * self.weights).sum()


def test_gradient_goes_straight_through_inside_and_nowhere_outside(form):
    with form():
        gradient = ms.grad(Weighted(FakeQuant(ACTIVATION)))
    np.testing.assert_array_equal(gradient(Tensor([[-9.0, -1.4, 20.3, 500.0]], ms.float32)).asnumpy(), [[0, 2, 3, 0]])
