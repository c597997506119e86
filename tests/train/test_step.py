"""The step on a tiny network: update, overflow, clipping, accumulation, schedules."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from minddistill import native
from minddistill.distill.distiller import Distiller
from minddistill.distill.objectives import Labels
from minddistill.errors import UserError
from minddistill.models import store
from minddistill.models.presets import preset
from minddistill.train.optim import OptimConfig, Schedule, build_optimizer
from minddistill.train.step import LossScale, StepConfig, build_step


class Line(nn.Cell):
    """Loss mean(x w) + bias, whose gradient by w is the mean of x."""

    terms = ("line",)

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(3, np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros(1, np.float32)), name="bias")

    def construct(self, batch, step):
        loss = (batch["x"] * self.weight).sum(1).mean() + self.bias.sum()
        return loss, (loss,)


def built(step_config, reducer=lambda parameters: None, **optim):
    cell = Line()
    config = OptimConfig(**{"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.0} | optim)
    optimizer = build_optimizer(dict(cell.parameters_and_names()), config, total_steps=10)
    scale = LossScale(step_config.loss_scale_value, step_config.scale_factor, step_config.scale_window)
    return cell, optimizer, scale, build_step(cell, optimizer, scale, step_config, reducer(optimizer.parameters))


X = Tensor(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], np.float32))


def adam(gradient, rate=0.1):
    """BERT's Adam after one step from zero moments: no bias correction."""
    return rate * 0.1 * gradient / (np.sqrt(0.001 * gradient**2) + 1e-6)


@pytest.mark.parametrize(
    ("clip", "gradient"),
    [
        ("off", (np.full(3, 2.0), np.ones(1))),
        ("global", (np.full(3, 2.0) / np.sqrt(13), np.ones(1) / np.sqrt(13))),
        ("tensor", (np.full(3, 2.0) / np.sqrt(12), np.ones(1))),
    ],
)
def test_one_step_by_hand(clip, gradient):
    cell, optimizer, _, step = built(StepConfig(loss_scale_value=1024.0, clip=clip))
    loss, terms, overflow, scale = step({"x": X})
    assert float(loss.asnumpy()) == pytest.approx(6.0) and float(terms["line"].asnumpy()) == pytest.approx(6.0)
    assert not bool(overflow.asnumpy()) and float(scale.asnumpy()) == 1024.0
    np.testing.assert_allclose(cell.weight.asnumpy(), 1 - adam(gradient[0]), rtol=1e-5)
    np.testing.assert_allclose(cell.bias.asnumpy(), -adam(gradient[1]), rtol=1e-5)
    assert optimizer.global_step.asnumpy()[0] == 1


def test_weight_decays_and_bias_does_not():
    cell, _, _, step = built(StepConfig(clip="off"), weight_decay=0.5)
    step({"x": X})
    np.testing.assert_allclose(cell.weight.asnumpy(), 1 - adam(np.full(3, 2.0)) - 0.1 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(cell.bias.asnumpy(), -adam(np.ones(1)), rtol=1e-5)


def test_overflow_skips_the_update_and_lowers_the_scale():
    cell, optimizer, scale, step = built(StepConfig(loss_scale_value=64.0, scale_window=2))
    before = cell.weight.asnumpy().copy()
    _, _, overflow, used = step({"x": X * float("inf")})
    assert bool(overflow.asnumpy()) and float(used.asnumpy()) == 64.0
    np.testing.assert_array_equal(cell.weight.asnumpy(), before)
    assert optimizer.global_step.asnumpy()[0] == 0
    assert float(scale.value.asnumpy()) == 32.0
    for expected in (32.0, 64.0, 64.0, 128.0):  # doubled after every second good step
        step({"x": X})
        assert float(scale.value.asnumpy()) == expected


def test_the_scale_rises_as_far_as_2_to_the_24():
    _, _, scale, step = built(StepConfig(loss_scale_value=2.0**23, scale_window=1))
    for expected in (2.0**24, 2.0**24):
        step({"x": X})
        assert float(scale.value.asnumpy()) == expected


def test_scaled_gradients_that_overflow_are_noticed():
    _, optimizer, _, step = built(StepConfig(loss_scale_value=2.0**120))
    assert bool(step({"x": X * 1e9})[2].asnumpy()) and optimizer.global_step.asnumpy()[0] == 0


def test_accumulated_micro_batches_equal_one_batch():
    whole, _, _, step = built(StepConfig(clip="off"))
    step({"x": X})
    parts, optimizer, _, micro = built(StepConfig(clip="off", accumulate=2))
    for _ in range(2):  # the second update shows that the sums were cleared
        micro({"x": X[:1]}, False)
        micro({"x": X[1:]}, True)
        if optimizer.global_step.asnumpy()[0] == 1:
            np.testing.assert_allclose(parts.weight.asnumpy(), whole.weight.asnumpy(), rtol=1e-6)
    step({"x": X})
    np.testing.assert_allclose(parts.weight.asnumpy(), whole.weight.asnumpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("original", {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("port", {0: 0.0, 5: 0.5, 10: 0.9, 55: 0.45, 100: 0.0}),
        ("constant", {0: 1.0, 55: 1.0, 100: 1.0}),
    ],
)
def test_schedules(schedule, expected):
    rate = Schedule(OptimConfig(learning_rate=1.0, schedule=schedule, warmup_ratio=0.1), 100)
    for step, value in expected.items():
        assert float(rate(Tensor([step], ms.int32)).asnumpy()[0]) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("wrong", [{"learning_rate": -1.0}, {"warmup_ratio": 1.0}, {"schedule": "cosine"}])
def test_impossible_optimisers_are_refused(wrong):
    with pytest.raises(UserError):
        OptimConfig(**{"learning_rate": 1e-4} | wrong)


@pytest.mark.parametrize(
    "clip", ["global", *(pytest.param(clip, marks=pytest.mark.slow) for clip in ("tensor", "off"))]
)
def test_kernels_train_as_the_plain_step_does(clip, monkeypatch):
    generator = np.random.default_rng(0)
    ids = generator.integers(5, 40, (6, 9)).astype(np.int32)
    batch = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    batch |= {"row": np.arange(6, dtype=np.int32), "weight": np.ones(6, np.float32), "rows": np.float32(6)}
    batch["label_ids"] = np.array([0, 1, 1, 0, 1, 0], np.int32)
    if not native.available():
        pytest.skip("no C compiler here, so that every step is the plain one")
    trained = []
    for library in (native._library, lambda: None):
        monkeypatch.setattr(native, "_library", library)
        config = preset("test-2l-32").with_(vocab_size=40, labels=("no", "yes"), pooler=True)
        model = store.new(config, seed=3)
        cell = Distiller(model, None, Labels())
        optimizer = build_optimizer(cell.trained(), OptimConfig(1e-3), total_steps=12)
        step = build_step(cell, optimizer, LossScale(2.0**8, 2, 5), StepConfig(clip=clip, clip_norm=0.05))
        losses = [float(step({k: Tensor(v) for k, v in batch.items()})[0].asnumpy()) for _ in range(12)]
        assert int(optimizer.global_step.asnumpy().reshape(-1)[0]) == 12 and losses[-1] < losses[0]
        trained.append([losses, *(value.asnumpy() for value in optimizer.moments2), *_values(model)])
    for mine, theirs in zip(*trained, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-4)


def _values(model):
    return [parameter.asnumpy() for parameter in model.get_parameters()]


def test_accumulated_micro_batches_move_a_model_as_their_union_does():
    generator = np.random.default_rng(0)
    ids = generator.integers(5, 40, (4, 8)).astype(np.int32)
    whole = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    whole |= {"row": np.arange(4, dtype=np.int32), "weight": np.ones(4, np.float32)}
    whole["label_ids"] = np.array([0, 1, 1, 0], np.int32)
    moved = []
    for accumulate in (1, 2):
        config = preset("test-2l-32").with_(vocab_size=40, labels=("no", "yes"), pooler=True)
        model = store.new(config, seed=3)
        cell = Distiller(model, None, Labels())
        optimizer = build_optimizer(cell.trained(), OptimConfig(1e-3, schedule="constant"), total_steps=1)
        step = build_step(cell, optimizer, LossScale(256.0, 2, 50), StepConfig(accumulate=accumulate))
        for part in np.array_split(np.arange(4), accumulate):
            batch = {name: Tensor(value[part]) for name, value in whole.items()}
            batch["rows"] = Tensor(len(part), ms.float32)
            _, _, overflow, _ = step(batch, bool(part[-1] == 3))
        assert not overflow.asnumpy()
        moved.append(model.classifier.weight.asnumpy())
    np.testing.assert_allclose(moved[1], moved[0], atol=2e-6)


def test_an_update_of_fewer_micro_batches_is_of_their_mean():
    _, optimizer, _, step = built(StepConfig(clip="off", accumulate=3))
    three = Tensor(3 * X.asnumpy())
    for batch, last in ((X, False), (three, True), (X, True), (three, False), (X, False), (X, True)):
        step({"x": batch}, last)
        if last:
            seen = optimizer.moments1[0].asnumpy()
    # Gradients of the mean of x: (2 + 6) / 2, 2 and (6 + 2 + 2) / 3, each a tenth of Adam's first moment.
    np.testing.assert_allclose(seen, 0.81 * 0.4 + 0.9 * 0.2 + 1 / 3, rtol=1e-5)


def test_fewer_micro_batches_are_clipped_by_the_norm_of_their_mean():
    _, optimizer, _, step = built(StepConfig(clip="global", clip_norm=np.sqrt(13) / 2, accumulate=4))
    step({"x": X}, True)  # the gradient is (2, 2, 2; 1)
    np.testing.assert_allclose(optimizer.moments1[0].asnumpy(), 0.1, rtol=1e-5)
