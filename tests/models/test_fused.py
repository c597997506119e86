"""Kernels against the plain cells: outputs and every gradient, with and without dropout, on awkward shapes."""

import shutil

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from minddistill import native
from minddistill.distill.losses import SquaredDistance
from minddistill.models.fused import AddNorm, AttentionWeights, BiasActivation, MergeHeads, SplitHeads
from minddistill.models.layers import Dropout, DropoutKeys, LayerNorm, dropout_table

ROWS, HEADS, LENGTH, SIZE = 3, 2, 7, 5
WIDTH = HEADS * SIZE


def draw(*shape, seed=0, scale=2.0):
    return Tensor((np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32))


def keys(*shape):
    multiplier, offset = DropoutKeys(5, int(np.prod(shape[1:])))(Tensor(9, ms.int32), Tensor(np.arange(ROWS), ms.int32))
    return multiplier.reshape(*shape, 1, 1), offset.reshape(*shape, 1, 1)


def counted(length):
    """(B, S) of 0 and 1: the first of each row, fewer from row to row."""
    return Tensor((np.arange(length) < length - np.arange(ROWS)[:, None]).astype(np.float32))


def dropout():
    return Dropout(0.3, dropout_table(16, 16))


# The cell, its inputs, and what else it is called with; the last is made late, as it runs operators.
CASES = {
    "split_heads": (lambda: SplitHeads(HEADS, SIZE, 0.3), [draw(ROWS, LENGTH, WIDTH), draw(WIDTH)], tuple),
    "split_heads_unscaled": (lambda: SplitHeads(HEADS, SIZE), [draw(ROWS, LENGTH, WIDTH), draw(WIDTH)], tuple),
    "merge_heads": (lambda: MergeHeads(HEADS, SIZE), [draw(ROWS, HEADS, LENGTH, SIZE)], tuple),
    "gelu": (lambda: BiasActivation("gelu"), [draw(ROWS, LENGTH, 33, scale=4.0), draw(33)], tuple),
    "tanh": (lambda: BiasActivation("tanh"), [draw(ROWS, LENGTH, 33), draw(33)], tuple),
    "layer_norm": (lambda: LayerNorm(33, 1e-5).set_train(), [draw(ROWS, LENGTH, 33)], tuple),
    "add_norm": (
        lambda: AddNorm(WIDTH, 1e-5, None).set_train(),
        [draw(ROWS, LENGTH, WIDTH), draw(ROWS, LENGTH, WIDTH, seed=1), draw(WIDTH)],
        lambda: (None,),
    ),
    "add_norm_dropout": (
        lambda: AddNorm(WIDTH, 1e-5, dropout()).set_train(),
        [draw(ROWS, LENGTH, WIDTH), draw(ROWS, LENGTH, WIDTH, seed=1), draw(WIDTH)],
        lambda: (keys(ROWS),),
    ),
    "attention_weights": (
        lambda: AttentionWeights(None),
        [draw(ROWS, HEADS, LENGTH, LENGTH)],
        lambda: (Tensor(np.tile(np.where(np.arange(LENGTH) < 4, 0.0, -1e4).astype("f"), (ROWS, 1, 1, 1))), None),
    ),
    "attention_weights_dropout": (
        lambda: AttentionWeights(dropout()),
        [draw(ROWS, HEADS, LENGTH, LENGTH)],
        lambda: (draw(ROWS, 1, 1, LENGTH), keys(ROWS, HEADS)),
    ),
    "squared_distance": (
        SquaredDistance,
        [draw(ROWS, LENGTH, WIDTH), draw(ROWS, LENGTH, WIDTH, seed=1)],
        lambda: (counted(LENGTH), None),
    ),
    "squared_distance_columns": (
        SquaredDistance,
        [draw(ROWS, HEADS, LENGTH, SIZE), draw(ROWS, HEADS, LENGTH, SIZE, seed=1)],
        lambda: (counted(LENGTH), counted(SIZE)),
    ),
    "dropout": (dropout, [draw(ROWS, LENGTH, 13)], lambda: keys(ROWS)),
}


def everything(cell, inputs, more):
    """The output of a cell, and the gradients of a weighted sum of it by its inputs and its parameters."""

    class Weighted(nn.Cell):
        def __init__(self):
            super().__init__()
            self.cell, self.weight = cell, None

        def construct(self, *inputs):
            y = self.cell(*inputs, *more)
            return (y * self.weight).sum(), y

    weighted = Weighted()
    shape = cell(*inputs, *more).shape
    weighted.weight = draw(*shape, seed=3)
    parameters = list(cell.trainable_params())
    gradients = ms.value_and_grad(weighted, tuple(range(len(inputs))), parameters or None, has_aux=True)
    (_, y), found = gradients(*inputs)
    by_inputs, by_parameters = found if parameters else (found, ())
    by_inputs = by_inputs if isinstance(by_inputs, tuple) else (by_inputs,)
    return [value.asnumpy() for value in (y, *by_inputs, *by_parameters)]


def need_kernels():
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here, so that every cell runs in its plain form")


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_plain_form(name):
    need_kernels()
    make, inputs, rest = CASES[name]
    more = rest()
    fast = make()
    with native.off():
        slow = make()
    assert native.available()
    for parameter in (*fast.get_parameters(), *slow.get_parameters()):
        parameter.set_data(draw(*parameter.shape, seed=len(parameter.name)))
    for mine, theirs in zip(everything(fast, inputs, more), everything(slow, inputs, more), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_kernels_pass_on_what_is_not_finite(bad):
    need_kernels()
    x = np.ones((2, 3, 4), np.float32)
    x[1, 2, 3] = bad
    assert not np.isfinite(BiasActivation("gelu")(Tensor(x), Tensor(np.zeros(4, np.float32))).asnumpy()[1, 2, 3])
    assert not np.isfinite(LayerNorm(4, 1e-5).set_train()(Tensor(x)).asnumpy()[1, 2]).any()
    assert not np.isfinite(native.operator("square_sums")(Tensor(x)).asnumpy()[0])


def test_square_sum_is_right_on_a_large_tensor():
    need_kernels()
    x = np.random.default_rng(0).standard_normal(3_000_001).astype(np.float32)
    found = native.operator("square_sums")(Tensor(x[:5]), Tensor(x)).asnumpy()
    assert found == pytest.approx([np.square(part.astype(np.float64)).sum() for part in (x[:5], x)], rel=1e-6)


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    yield tmp_path
    native._library.cache_clear()


def test_without_a_compiler_one_line_says_what_to_do(fresh_library, monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not native.available() and not native.available()
    assert native.operator("bias_gelu") is None
    assert len(caplog.records) == 1
    assert "no-such-compiler" in caplog.text and "set CC" in caplog.text


def test_kernels_are_built_once_and_can_be_switched_off(fresh_library, monkeypatch):
    need_kernels()
    assert native.available()
    (built,) = (fresh_library / "minddistill").iterdir()
    native._library.cache_clear()
    written = built.stat().st_mtime_ns
    assert native._library() == built and built.stat().st_mtime_ns == written
    native._library.cache_clear()
    monkeypatch.setenv(native.SWITCH, "off")
    assert not native.available()
