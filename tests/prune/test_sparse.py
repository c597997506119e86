"""Scores and masks in the training step, on a loss whose gradient is known."""

import inspect

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from minddistill.errors import UserError
from minddistill.prune.sparse import Pruner, Sparsity
from minddistill.train.checkpoint import Checkpoints, TrainState
from minddistill.train.optim import OptimConfig, Update, build_optimizer
from minddistill.train.step import LossScale, StepConfig, build_step

W = np.array([[1.0, -2.0, 3.0, -4.0], [5.0, 6.0, -7.0, 8.0]], np.float32)
G = np.array([[2.0, 2.0, -1.0, 1.0], [1.0, -0.5, 1.0, 0.25]], np.float32)
STILL = 1e-30  # a learning rate that moves no weight


class Line(nn.Cell):
    """Loss sum(x w), whose gradient is x."""

    terms = ("line",)

    def __init__(self, weight=W):
        super().__init__()
        self.weight = Parameter(Tensor(weight), name="weight")
        self.bias = Parameter(Tensor(np.ones(2, np.float32)), name="bias")

    def construct(self, batch, step):
        loss = (batch["x"] * self.weight).sum() + self.bias.sum()
        return loss, (loss,)


class Run:
    """A pruned cell with its step; `take` makes steps as the loop does."""

    def __init__(self, rate, epochs=10, weight=W, accumulate=1, **settings):
        self.cell, self.step, self.said = Line(weight), 0, []
        self.trained = dict(self.cell.parameters_and_names())
        optim = OptimConfig(rate, end_learning_rate=min(rate, 1e-14), schedule="constant", weight_decay=0.5)
        self.optimizer = build_optimizer(self.trained, optim, total_steps=10)
        settings = {"include": "weight", "cooldown_epochs": 0.0, "frequency": 1, "pattern": "1x1"} | settings
        self.pruner = Pruner(self.trained, [Sparsity(**settings)], 1, epochs, self.said.append)
        self.scale, config = LossScale(1024.0, 2, 50), StepConfig(clip="off", accumulate=accumulate)
        optimise = self.pruner.around(Update(self.optimizer), self.optimizer)
        self.compiled = build_step(self.cell, self.optimizer, self.scale, config, optimise=optimise)
        self.pruner.begin(0, resumed=False)

    def take(self, *gradients):
        for gradient in gradients:
            self.compiled({"x": Tensor(gradient)})
            self.step += 1
            self.pruner.at(self.step)
        return self

    @property
    def state(self):
        return TrainState(self.trained, self.optimizer, self.scale, {}, step=self.step, more=self.pruner.tensors())

    def tensor(self, name):
        return self.pruner.tensors()[f"{name}/weight"].asnumpy()

    @property
    def weight(self):
        return self.cell.weight.asnumpy().copy()


@pytest.mark.parametrize(
    ("criterion", "after_three"),
    [
        ("snip_momentum", 2.71 * np.abs(W * G)),  # (1 - 0.9^3) / 0.1
        ("snip", np.abs(W * G)),
        ("gradient", np.abs(G)),
        ("movement", -3 * 0.5 * W * G),
    ],
)
def test_scores_by_hand(criterion, after_three):
    run = Run(STILL, criterion=criterion, start=9, end=9, movement_rate=0.5).take(G, G, G)
    np.testing.assert_allclose(run.tensor("score"), after_three, rtol=1e-5)
    np.testing.assert_array_equal(run.weight, W)


@pytest.mark.parametrize(
    ("criterion", "wanted"),
    [
        ("magnitude", [1, 2, 3, 4]),
        ("snip", [1, 3, 6, 8]),  # |W G| = 2 4 3 4 / 5 3 7 2
        ("gradient", [6, 8, 3, 4]),  # 2 2 1 1 / 1 0.5 1 0.25, the earlier of equal ones first
    ],
)
def test_the_lowest_scores_are_pruned(criterion, wanted):
    run = Run(STILL, criterion=criterion, start=1, end=1, target_sparsity=0.5).take(G)
    assert set(np.abs(W[run.weight == 0])) == set(wanted)
    np.testing.assert_array_equal(run.tensor("mask"), run.weight != 0)
    assert run.said[-1] == "pruned at step 1: sparsity 0.5000"


def test_pruned_weights_stay_zero_through_moments_and_the_others_train_as_if_alone():
    dense = Run(1e-2, criterion="snip_momentum", start=9, end=9).take(*[G] * 6)
    sparse = Run(1e-2, criterion="snip_momentum", start=2, end=2, target_sparsity=0.5).take(*[G] * 6)
    kept = sparse.tensor("mask") == 1
    assert kept.sum() == 4
    np.testing.assert_array_equal(sparse.weight, dense.weight * kept)
    for moments in (sparse.optimizer.moments1, sparse.optimizer.moments2):
        np.testing.assert_array_equal(moments[0].asnumpy() != 0, kept)
    assert np.all(dense.weight != W) and np.all(sparse.cell.bias.asnumpy() != 1)


def test_new_masks_compile_nothing_anew():
    run = Run(1e-2, criterion="snip_momentum", start=0, end=8, target_sparsity=0.5).take(G)
    cells = inspect.getclosurevars(run.compiled).nonlocals["update"], run.pruner._apply
    run.take(*[G] * 8)
    assert [len(cell.compile_cache) for cell in cells] == [1, 1] and len(
        {line for line in run.said if line.startswith("pruned")}
    ) == 9
    assert (run.weight == 0).sum() == 4


def test_movement_prunes_what_moves_to_zero_and_brings_back_the_value_beneath():
    run = Run(STILL, criterion="movement", start=1, end=3, schedule="linear", target_sparsity=0.5, pattern="1x4")
    run.take(G)  # first pruning: sparsity 0
    scores = -W * G  # -2 4 3 4 / -5 3 7 -2
    np.testing.assert_allclose(run.tensor("score"), scores)
    run.take(G, G)  # means of rows 2.25 and 0.75: the second goes, at the last pruning
    np.testing.assert_array_equal(run.weight, W * [[1], [0]])
    np.testing.assert_array_equal(run.tensor("beneath"), W * [[0], [1]])
    run.pruner.parts[0].schedule = type(run.pruner.parts[0].schedule)("linear", 0.5, 1, 4, 1)
    run.take(-9 * G)  # pruned weights have scores that go on moving: means -13.5 and -4.5
    np.testing.assert_allclose(run.tensor("score"), 3 * scores - 9 * scores)
    np.testing.assert_array_equal(run.weight, W * [[0], [1]])


def test_soft_movement_prunes_below_a_threshold_of_the_penalised_scores():
    settings = {"criterion": "movement", "movement_form": "soft", "movement_penalty": 4.0, "movement_threshold": 0.2}
    run = Run(STILL, start=1, end=3, schedule="linear", target_sparsity=0.5, **settings)
    run.take(np.zeros_like(G), np.zeros_like(G), np.zeros_like(G))
    # The penalty rises 0, 2, 4 with the first three prunings; sigmoid'(0) = 1/4, sigmoid'(-1/2) = 0.235.
    np.testing.assert_allclose(run.tensor("score"), np.full_like(W, -0.5), rtol=1e-5)
    assert run.tensor("penalty") == 4.0 and np.all(run.weight == W)
    gradient = np.zeros_like(G)
    gradient[0, 0] = -3.0  # W G = -3 lifts this one's score
    run.pruner.parts[0].schedule = type(run.pruner.parts[0].schedule)("linear", 0.5, 1, 4, 1)
    run.take(gradient)
    low = -0.5 - 4 * 0.2350037
    np.testing.assert_allclose(run.tensor("score"), np.where(gradient, low + 3, low), rtol=1e-5)
    np.testing.assert_array_equal(run.tensor("mask"), gradient != 0)  # sigmoid(-1.44) = 0.192


def test_all_prunings_are_behind_when_they_were_made():
    run = Run(STILL, criterion="magnitude", start=1, end=3, target_sparsity=0.5)
    run.step = 3
    assert not run.pruner.finished
    run.pruner.at(3)
    assert run.pruner.finished and run.pruner.sparsity() == 0.5


def test_penalties_of_several_weights_have_names_of_their_own():
    pruner, _ = two({"exclude": "^c", "criterion": "movement", "start": 1, "end": 5})
    names = [value.name for value in pruner.tensors().values()]
    assert len(set(names)) == len(names) == 8 and "penalty.b.weight" in names


def test_accumulated_batches_make_one_score():
    run = Run(STILL, criterion="snip_momentum", start=9, end=9, accumulate=2)
    run.compiled({"x": Tensor(G)}, False)
    run.compiled({"x": Tensor(3 * G)}, True)
    np.testing.assert_allclose(run.tensor("score"), np.abs(2 * W * G), rtol=1e-6)


def test_a_checkpoint_brings_back_masks_scores_and_values_beneath(tmp_path):
    settings = {"criterion": "movement", "start": 1, "end": 5, "target_sparsity": 0.5, "schedule": "linear"}
    whole = Run(1e-2, **settings).take(*[G] * 6)
    Checkpoints(tmp_path, 1).save(Run(1e-2, **settings).take(*[G] * 3).state)
    other = Run(1e-2, **settings)
    Checkpoints(tmp_path, 1).newest()[0].into(other.state)
    other.step = 3
    other.pruner.begin(3, resumed=True)
    assert other.pruner.sparsity() == 0.25 and (other.tensor("beneath") != 0).sum() == 2
    other.take(*[G] * 3)
    assert len(whole.pruner.tensors()) == 4 and other.pruner.sparsity() == 0.5
    for name, value in whole.state.tensors().items():
        np.testing.assert_array_equal(other.state.tensors()[name].asnumpy(), value.asnumpy(), err_msg=name)


class Two(nn.Cell):
    """Weights of which one does not divide into blocks of four outputs."""

    def __init__(self):
        super().__init__()
        for name, shape in (("a", (8, 4)), ("b", (8, 4)), ("c", (2, 4))):
            setattr(self, name, nn.Dense(shape[1], shape[0]))


def two(*groups):
    said = []
    trained = dict(Two().parameters_and_names())
    groups = [Sparsity(**{"include": "", "criterion": "magnitude", "cooldown_epochs": 0.0} | group) for group in groups]
    return Pruner(trained, groups, 10, 10, said.append), said


def test_indivisible_weights_are_named_and_skipped():
    pruner, said = two({})
    assert said[0] == "c.weight (2, 4) does not divide into 4x1; it stays dense"
    assert [cell.path for cell in pruner.masked] == ["a.weight", "b.weight"]


def test_groups_have_settings_of_their_own_and_scopes():
    pruner, _ = two(
        {"include": "^a", "pattern": "2:4", "target_sparsity": 0.5, "start": 1, "end": 1},
        {"exclude": "^a", "pattern": "1x1", "scope": "local", "target_sparsity": 0.25, "start": 1, "end": 1},
    )
    optimizer = build_optimizer(pruner.trained, OptimConfig(1e-3), 10)
    pruner.around(Update(optimizer), optimizer)
    pruner.at(1)
    assert {path: 1 - mask.mean() for path, mask in pruner.masks.items()} == {
        "a.weight": 0.5,
        "b.weight": 0.25,
        "c.weight": 0.25,
    }
    assert pruner.sparsity() == pytest.approx((0.5 * 32 + 0.25 * 40) / 72)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"include": "a"}, {"include": "a|b"}], "a.weight is in groups 1 and 2"),
        ([{"include": "nothing"}], "group 1 of those to be pruned has no weight"),
        ([{"include": "c"}], "group 1 of those to be pruned has no weight"),
        ([{"start": 11, "end": 12}], "ends at step 12; there are 10"),
        ([{"criterion": "snip", "cooldown_epochs": 1.0}], "prunes at step 0, before any gradient"),
        ([{"criterion": "snip", "cooldown_epochs": 1.0, "start": 2}], "starts at step 2; of 10 steps, the last 10 are"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        two(*groups)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "2:4"}, "expected 0 to 0.5 with --pattern 2:4"),
        ({"target_sparsity": 1.0}, "expected 0 to"),
        ({"max_sparsity_per_layer": 0.5}, "expected each not below the one before"),
        ({"include": "("}, "expected a regular expression"),
        ({"pattern": "2:4", "target_sparsity": 0.5, "criterion": "movement", "movement_form": "soft"}, "blocks"),
        ({"criterion": "movement", "movement_form": "soft", "movement_threshold": 0.5}, "less than 0.5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Sparsity(**settings)
