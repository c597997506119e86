"""What the heads read of the encoder."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from minddistill import params
from minddistill.models import heads, store
from minddistill.models.presets import preset

CONFIG = preset("test-4l-32").with_(
    vocab_size=50, max_position_embeddings=16, labels=("a", "b", "c"), initializer_range=0.3
)


class Loss(nn.Cell):
    """A number that depends on all logits."""

    def __init__(self, model, first_only):
        super().__init__()
        self.model, self.first_only = model, first_only
        self.share = Tensor([1.0, -2.0, 0.5], ms.float32)

    def construct(self, batch, step):
        logits = self.model(batch, step, self.first_only)["logits"]
        return (logits * self.share).sum(), logits


@pytest.mark.parametrize("changes", [{}, {"use_relative_positions": True, "max_relative_position": 3}])
def test_last_layer_at_the_first_position_gives_all_logits_and_gradients(changes):
    """With dropout, on padded rows: the words that are left out of the last layer have no part in the logits."""
    config, rng = CONFIG.with_(**changes), np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(1, 50, (3, 9)).astype(np.int32),
        "input_mask": (np.arange(9) < np.array([[9], [4], [1]])).astype(np.int32),
        "segment_ids": (np.arange(9) > 5).astype(np.int32)[None].repeat(3, 0),
        "row": np.array([5, 9, 2], np.int32),
    }
    found = []
    for first_only in (False, True):
        model = store.new(config, seed=0)
        step = ms.value_and_grad(Loss(model, first_only), None, model.trainable_params(), has_aux=True)
        (_, logits), gradients = step(
            ms.mutable({name: Tensor(value) for name, value in batch.items()}), Tensor(7, ms.int32)
        )
        names = list(params.named(model))
        found.append((logits.asnumpy(), dict(zip(names, [g.asnumpy() for g in gradients], strict=True))))
    (whole, slow), (first, fast) = found
    np.testing.assert_allclose(first, whole, atol=1e-5)
    assert np.ptp(whole) > 0.1
    for name, gradient in slow.items():
        np.testing.assert_allclose(fast[name], gradient, atol=1e-5 * max(1.0, np.abs(gradient).max()), err_msg=name)


class Scores(nn.Cell):
    """The masked-LM scores of every position."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def construct(self, batch):
        return self.model(batch)["mlm_logits"]


def test_masked_words_and_the_likeliest_are_those_of_the_whole_model():
    """Of a vocabulary of several blocks, the last of them not full."""
    config, rng = CONFIG.with_(vocab_size=300, labels=(), pooler=False), np.random.default_rng(1)
    model = store.new(config, seed=0, mlm=True)
    lengths = np.array([[9], [9], [5], [2]])
    batch = {
        "input_ids": rng.integers(1, 300, (4, 9)).astype(np.int32),
        "input_mask": (np.arange(9) < lengths).astype(np.int32),
        "segment_ids": (np.arange(9) > 5).astype(np.int32)[None].repeat(4, 0),
    }
    places = np.array([[3, 8], [0, 2], [2, 2], [1, 0]], np.int32)
    tensors = {name: Tensor(value) for name, value in (batch | {"masked_lm_positions": places}).items()}
    whole, some = (Scores(cell)(ms.mutable(tensors)).asnumpy() for cell in (model, heads.MaskedWords(model)))
    picked = np.take_along_axis(whole, places[:, :, None], 1)
    np.testing.assert_allclose(some, picked, atol=1e-5)
    flat = (places + 9 * np.arange(4)[:, None]).astype(np.int32).reshape(-1)
    best = heads.likeliest_function(model, 4)(batch | {"places": flat})
    expected = np.argsort(-picked.reshape(8, 300), -1)[:, :4]
    np.testing.assert_array_equal(best, expected)
    assert expected.max() >= 256 and len({word // 64 for word in expected.flat}) == 5
