"""Fast forms against MindSpore's plain ones; dropout masks against what they promise."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from minddistill.models.layers import Dropout, DropoutKeys, Gelu, LayerNorm, Softmax, dropout_table


def values(shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 2)


def both(cell, x, upstream):
    """Output and input gradient of sum(upstream * cell(x))."""

    def weighted(x):
        return (cell(x) * upstream).sum()

    return cell(x).asnumpy(), ms.grad(weighted)(x).asnumpy()


def plain_softmax(x):
    return ops.softmax(x, -1)


@pytest.mark.parametrize(
    ("fast", "plain"),
    [
        (Gelu(), nn.GELU(approximate=False)),
        (Softmax(), plain_softmax),
        (LayerNorm(24, 1e-5), nn.LayerNorm((24,), epsilon=1e-5)),
        (LayerNorm(24, 1e-5).set_train(), nn.LayerNorm((24,), epsilon=1e-5)),
    ],
    ids=["gelu", "softmax", "layer_norm", "layer_norm_training"],
)
def test_fast_form_equals_plain(fast, plain):
    x, upstream = values((3, 5, 24)), values((3, 5, 24), 1)
    for mine, theirs in zip(both(fast, x, upstream), both(plain, x, upstream), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def masks(rows, step, shape=(40, 64), probability=0.1, seed=5):
    keys, drop = DropoutKeys(seed, 3), Dropout(probability, dropout_table(64, 128))
    multiplier, offset = keys(Tensor(step, ms.int32), Tensor(np.array(rows), ms.int32))
    ones = ops.ones((len(rows), *shape), ms.float32)
    return drop(ones, multiplier[:, 1].reshape(-1, 1, 1), offset[:, 1].reshape(-1, 1, 1)).asnumpy()


def test_dropout_keeps_the_stated_share_and_scales_it():
    mask = masks(range(50), 7)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.9)}
    assert abs((mask == 0).mean() - 0.1) < 0.003  # four standard deviations of 128,000 draws


def test_dropout_depends_on_row_and_step_not_on_batch_or_padding():
    mask = masks([3, 8], 7)
    np.testing.assert_array_equal(mask[1], masks([8], 7)[0])
    np.testing.assert_array_equal(mask[:, :10], masks([3, 8], 7, (10, 64)))
    assert abs(((mask[0] == 0) & (mask[1] == 0)).mean() - 0.01) < 0.01
    assert (masks([3], 8)[0] != mask[0]).mean() > 0.1
