"""Losses and layer maps against values worked out by hand."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from minddistill.data.loader import Loader
from minddistill.data.records import Rows
from minddistill.distill import losses
from minddistill.distill.layer_map import layer_map
from minddistill.distill.objectives import (
    AttentionScores,
    FitDense,
    HiddenStates,
    Intermediate,
    Labels,
    Prediction,
    Same,
    SoftLabels,
    check_heads,
    logits,
)
from minddistill.errors import UserError
from minddistill.models.presets import preset
from minddistill.problems import MULTI, REGRESSION, TOKEN
from minddistill.recipes.matching import fit_arrays, fit_dense


def tensor(values):
    return Tensor(np.array(values, np.float32))


ONE = tensor([1.0])


def test_soft_cross_entropy_of_uniform_logits_is_log_c_over_c():
    for classes, expected in ((2, np.log(2) / 2), (3, np.log(3) / 3)):
        zeros = tensor(np.zeros((4, classes)))
        found = losses.soft_cross_entropy(zeros, zeros, 1.0, tensor(np.ones(4)), tensor(4.0))
        assert float(found.asnumpy()) == pytest.approx(expected, abs=1e-6)


def test_soft_cross_entropy_has_temperature_and_no_square_of_it():
    student, teacher = tensor([[2.0, 0.0]]), tensor([[0.0, 4.0]])
    target = 1 / (1 + np.exp(4 / 2))  # of class 0 at T = 2
    expected = -(target * -np.log1p(np.exp(-1)) + (1 - target) * -(1 + np.log1p(np.exp(-1)))) / 2
    found = losses.soft_cross_entropy(student, teacher, 2.0, ONE, tensor(1.0))
    assert float(found.asnumpy()) == pytest.approx(expected, abs=1e-6)


def test_rows_of_weight_zero_do_not_count():
    student, teacher = tensor([[1.0, 0.0], [9.0, -9.0]]), tensor([[0.0, 0.0], [-9.0, 9.0]])
    alone = losses.soft_cross_entropy(student[:1], teacher[:1], 1.0, ONE, tensor(1.0))
    filled = losses.soft_cross_entropy(student, teacher, 1.0, tensor([1.0, 0.0]), tensor(1.0))
    assert float(filled.asnumpy()) == pytest.approx(float(alone.asnumpy()), abs=1e-7)


def test_hidden_mse_by_hand():
    student, teacher = tensor([[[1.0, 2.0], [5.0, 5.0]]]), tensor([[[0.0, 0.0], [5.0, 1.0]]])
    mask = Tensor(np.array([[1, 0]], np.int32))
    assert float(losses.HiddenMSE()(student, teacher, mask, ONE, tensor(1.0)).asnumpy()) == pytest.approx((1 + 4) / 2)
    assert float(losses.hidden_mse_reference(student, teacher, ONE, tensor(1.0)).asnumpy()) == pytest.approx(
        (1 + 4 + 16) / 4
    )


def test_hidden_cosine_by_hand():
    # Cosines 1 / sqrt(2) and -1; the third position is padding, the second row only fills the batch.
    student = tensor([[[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0]] * 3])
    teacher = tensor([[[3.0, 0.0], [-5.0, 0.0], [9.0, 9.0]], [[0.0, 1.0]] * 3])
    mask = Tensor(np.array([[1, 1, 0], [1, 1, 1]], np.int32))
    found = losses.hidden_cosine(student, teacher, mask, tensor([1.0, 0.0]), tensor(2.0))
    assert float(found.asnumpy()) == pytest.approx(((1 - 0.5**0.5) + 2) / 2, rel=1e-5)


def test_hidden_states_at_the_ends_alone():
    generator = np.random.default_rng(1)
    student, teacher = (generator.standard_normal((states, 1, 2, 3)).astype(np.float32) for states in (4, 5))
    batch = {"input_mask": Tensor(np.ones((1, 2), np.int32)), "weight": ONE, "rows": tensor(1.0), "tokens": tensor(2.0)}
    pairs = layer_map("0,1,2", 3, 4).ends(3, 4)
    assert pairs.hidden_pairs == ((0, 0), (3, 4)) and pairs.kept().hidden_pairs == ((0, 0), (3, 1))
    states = [{"hidden": tuple(map(Tensor, values))} for values in (student, teacher)]
    loss, _ = HiddenStates(pairs, Same())(*map(ms.mutable, (batch, *states)))
    expected = sum(((student[i] - teacher[j]) ** 2).mean() for i, j in ((0, 0), (3, 4)))
    assert float(loss.asnumpy()) == pytest.approx(expected, rel=1e-5)


def test_attention_mse_by_hand():
    student = tensor([[[[1.0, -10000.0], [3.0, -10001.0]]]])
    teacher = tensor([[[[0.0, -10000.0], [1.0, -10000.0]]]])
    mask = Tensor(np.array([[1, 0]], np.int32))
    assert float(losses.AttentionMSE()(student, teacher, mask, ONE, tensor(1.0)).asnumpy()) == pytest.approx(1.0)
    assert float(losses.attention_mse_reference(student, teacher, ONE, tensor(1.0)).asnumpy()) == pytest.approx(
        (1 + 4) / 4
    )


def test_reference_zeroes_scores_at_most_minus_100_only():
    student, teacher = tensor([[[[-100.0, -99.9], [0.0, 0.0]]]]), tensor(np.zeros((1, 1, 2, 2)))
    found = losses.attention_mse_reference(student, teacher, ONE, tensor(1.0))
    assert float(found.asnumpy()) == pytest.approx(99.9**2 / 4, rel=1e-6)


def outputs(generator, length, real, width):
    hidden = generator.standard_normal((2, 3, 4, width)).astype(np.float32)
    scores = generator.standard_normal((2, 3, 2, 4, 4)).astype(np.float32)
    padded_hidden = np.full((2, 3, length, width), 7.0, np.float32)
    padded_hidden[:, :, :4] = hidden
    padded_scores = np.full((2, 3, 2, length, length), -10000.0, np.float32)
    padded_scores[:, :, :, :4, :4] = scores
    return {
        "hidden": tuple(Tensor(layer) for layer in padded_hidden),
        "attentions": tuple(Tensor(layer) for layer in padded_scores),
    }


@pytest.mark.parametrize("mode", ["masked", "reference"])
def test_padding_changes_the_reference_loss_and_not_the_masked_one(mode):
    found = []
    for length in (4, 14):
        generator = np.random.default_rng(0)
        student, teacher = outputs(generator, length, 4, 6), outputs(generator, length, 4, 6)
        fit = FitDense(6, 6, 1)
        fit.weights[0].set_data(Tensor(np.eye(6, dtype=np.float32)))
        mask = np.zeros((3, length), np.int32)
        mask[:, :4] = 1
        batch = {"input_mask": Tensor(mask), "weight": tensor(np.ones(3))}
        batch |= {"rows": tensor(3.0), "tokens": tensor(3 * 4.0), "pairs": tensor(3 * 16.0)}
        objective = Intermediate(layer_map("0", 1, 2), fit, mode)
        loss, terms = objective(ms.mutable(batch), ms.mutable(student), ms.mutable(teacher))
        assert len(terms) == len(objective.terms) == 2
        found.append(float(loss.asnumpy()))
    assert (abs(found[0] - found[1]) < 1e-6) == (mode == "masked")


def test_prediction_mixes_labels_in_by_weight():
    batch = {"weight": ONE, "rows": tensor(1.0), "label_ids": Tensor([1], ms.int32)}
    student, teacher = {"logits": tensor([[1.0, 0.0]])}, {"logits": tensor([[0.0, 0.0]])}
    soft = float(Prediction()(*map(ms.mutable, (batch, student, teacher)))[0].asnumpy())
    loss, terms = Prediction(hard_weight=0.25)(*map(ms.mutable, (batch, student, teacher)))
    hard = np.log1p(np.exp(1))
    assert float(terms[1].asnumpy()) == pytest.approx(hard, rel=2e-6)
    assert float(loss.asnumpy()) == pytest.approx(0.75 * soft + 0.25 * hard, rel=2e-6)


def test_softened_kl_by_hand_without_the_row_that_fills_the_batch():
    # At T = 2 the student says (1/2, 1/2) and the teacher (e / (1 + e), 1 / (1 + e)).
    student, teacher = tensor([[3.0, 3.0], [9.0, -9.0]]), tensor([[2.0, 0.0], [-9.0, 9.0]])
    first = np.e / (1 + np.e)
    expected = 4 * (first * np.log(first / 0.5) + (1 - first) * np.log((1 - first) / 0.5))
    found = losses.softened_kl(student, teacher, 2.0, tensor([1.0, 0.0]), tensor(1.0))
    assert float(found.asnumpy()) == pytest.approx(expected, rel=1e-5)


def test_logits_mixes_labels_and_predictions_by_alpha():
    batch = {"weight": tensor([1.0, 0.0]), "rows": tensor(1.0), "label_ids": Tensor([1, 0], ms.int32)}
    student, teacher = {"logits": tensor([[0.0, 0.0], [5.0, 1.0]])}, {"logits": tensor([[4.0, 0.0], [1.0, 8.0]])}
    first = 1 / (1 + np.exp(-2))  # the teacher's class 0 at T = 2
    soft = 4 * (first * np.log(first / 0.5) + (1 - first) * np.log((1 - first) / 0.5))
    objective = logits(0.25, 2.0)
    loss, terms = objective(*map(ms.mutable, (batch, student, teacher)))
    assert dict(zip(objective.terms, map(float, terms), strict=True)) == pytest.approx(
        {"label_loss": np.log(2), "soft_loss": soft}, rel=1e-5
    )
    assert float(loss.asnumpy()) == pytest.approx(0.25 * np.log(2) + 0.75 * soft, rel=1e-5)
    assert objective.needs_head and objective.logits_only
    assert logits(0.0, 2.0).terms == ("soft_loss",) and logits(1.0, 2.0).terms == ("label_loss",)


def test_logits_of_a_regression_are_squared_errors():
    batch = {"weight": ONE, "rows": tensor(1.0), "label_ids": tensor([3.0])}
    student, teacher = {"logits": tensor([[1.0]])}, {"logits": tensor([[2.0]])}
    loss, _ = logits(0.5, 4.0, REGRESSION)(*map(ms.mutable, (batch, student, teacher)))
    assert float(loss.asnumpy()) == pytest.approx(0.5 * 4 + 0.5 * 1)


@pytest.mark.parametrize(("alpha", "temperature", "flag"), [(1.5, 1.0, "--alpha 1.5"), (0.5, 0.0, "--temperature 0.0")])
def test_weights_and_temperatures_out_of_range_are_refused(alpha, temperature, flag):
    with pytest.raises(UserError, match=flag):
        logits(alpha, temperature)


def test_layer_maps():
    assert layer_map("uniform", 4, 12).attention == (2, 5, 8, 11)
    assert layer_map("uniform", 4, 12).hidden == (0, 3, 6, 9, 12)
    assert layer_map("uniform", 6, 12).attention == (1, 3, 5, 7, 9, 11)
    assert layer_map("uniform", 6, 12).hidden == (0, 2, 4, 6, 8, 10, 12)
    assert layer_map("last", 2, 6).attention == (4, 5)
    assert layer_map("first", 2, 6).hidden == (0, 1, 2)
    assert layer_map("1,3,5", 3, 6).hidden == (0, 2, 4, 6)


@pytest.mark.parametrize(
    ("spec", "student", "message"),
    [
        ("uniform", 4, "not a multiple of the student's 4; give a list of 4 teacher layers"),
        ("1,2", 3, "2 layers for a student of 3"),
        ("1,6", 2, "no layer 6"),
        ("middle", 2, "expected uniform, last, first"),
        ("last", 7, "the student has 7 layers"),
    ],
)
def test_impossible_layer_maps_are_refused(spec, student, message):
    with pytest.raises(UserError, match=message):
        layer_map(spec, student, 6)


def test_unequal_heads_are_refused():
    with pytest.raises(UserError, match="4 attention heads, the teacher 12"):
        check_heads(layer_map("last", 1, 2), [4], [12, 12])
    with pytest.raises(UserError, match=r"6 attention heads, the teacher 12 \(layer 3\)"):
        check_heads(layer_map("1,3", 2, 4), [12, 6], [6, 12, 6, 12])
    check_heads(layer_map("1,2", 2, 4), [12, 6], [6, 12, 6, 12])


def test_binary_cross_entropy_by_hand():
    logits, labels = tensor([[0.0, 2.0], [-1.0, 500.0]]), tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = (np.log(2) + np.log1p(np.exp(2)) + np.log1p(np.exp(1)) + 0) / 4
    found = losses.binary_cross_entropy(logits, labels, tensor([1.0, 1.0]), tensor(2.0))
    assert float(found.asnumpy()) == pytest.approx(expected, abs=1e-6)
    alone = losses.binary_cross_entropy(logits, labels, tensor([1.0, 0.0]), tensor(1.0))
    assert float(alone.asnumpy()) == pytest.approx((np.log(2) + np.log1p(np.exp(2))) / 2, abs=1e-6)


def test_the_gradient_of_binary_cross_entropy_at_zero_is_a_half_less_the_label():
    slope = ms.grad(losses.binary_cross_entropy)
    found = slope(tensor([[0.0, 0.0]]), tensor([[1.0, 0.0]]), tensor([1.0]), tensor(1.0)).asnumpy()
    np.testing.assert_allclose(found, [[-0.25, 0.25]], atol=1e-6)


def test_soft_binary_cross_entropy_has_the_temperature_on_both_sides():
    target, z = 1 / (1 + np.exp(-4 / 2)), 2 / 2
    expected = target * np.log1p(np.exp(-z)) + (1 - target) * np.log1p(np.exp(z))
    found = losses.soft_binary_cross_entropy(tensor([[2.0]]), tensor([[4.0]]), 2.0, ONE, tensor(1.0))
    assert float(found.asnumpy()) == pytest.approx(expected, abs=1e-6)


def words_of(logits, labels, weight):
    """A batch and outputs of two rows of three positions."""
    batch = {
        "label_ids": Tensor(np.array(labels, np.int32)),
        "weight": tensor(weight),
        "rows": tensor(2.0),
        "words": tensor(float(sum((np.array(row) >= 0).sum() for row in labels))),
    }
    return batch, {"logits": tensor(logits)}


def test_token_losses_count_the_first_pieces_of_words_alone():
    """Two words in row 0 and one in row 1; what the other positions say does not matter."""
    mine = [[[9.0, 9.0], [0.0, 1.0], [2.0, 0.0]], [[1.0, 0.0], [7.0, -7.0], [0.0, 0.0]]]
    labels = [[-100, 1, 0], [1, -100, -100]]
    batch, student = words_of(mine, labels, [1.0, 1.0])
    terms = [np.log1p(np.exp(-1)), np.log1p(np.exp(-2)), np.log1p(np.exp(1))]
    loss, _ = Labels(TOKEN)(batch, student, {})
    assert float(loss.asnumpy()) == pytest.approx(sum(terms) / 3, abs=1e-5)
    teacher = {"logits": tensor(np.zeros((2, 3, 2)))}
    loss, _ = Prediction(problem=TOKEN)(batch, student, teacher)
    # Against a uniform teacher: the mean of both classes' -log p, over the classes too.
    expected = sum((np.log1p(np.exp(-d)) + np.log1p(np.exp(d))) / 2 for d in (1, 2, 1)) / (2 * 3)
    assert float(loss.asnumpy()) == pytest.approx(expected, abs=1e-5)


def test_hard_and_soft_losses_of_each_problem_are_weighed():
    student, teacher = {"logits": tensor([[2.0, 0.0]])}, {"logits": tensor([[0.0, 0.0]])}
    batch = {"label_ids": tensor([[1.0, 0.0]]), "weight": ONE, "rows": tensor(1.0)}
    hard = (np.log1p(np.exp(-2)) + np.log(2)) / 2
    soft = ((np.log1p(np.exp(-2)) + np.log1p(np.exp(2))) / 2 + np.log(2)) / 2
    loss, terms = Prediction(hard_weight=0.25, problem=MULTI)(batch, student, teacher)
    assert [float(term.asnumpy()) for term in terms] == pytest.approx([soft, hard], abs=1e-5)
    assert float(loss.asnumpy()) == pytest.approx(0.75 * soft + 0.25 * hard, abs=1e-5)


def test_softened_divergence_of_sigmoids_has_the_square_of_the_temperature():
    t, z = 1 / (1 + np.exp(-4 / 2)), 1 / (1 + np.exp(-2 / 2))
    expected = 4 * (t * np.log(t / z) + (1 - t) * np.log((1 - t) / (1 - z)))
    batch = {"label_ids": tensor([[1.0]]), "weight": ONE, "rows": tensor(1.0)}
    loss, _ = SoftLabels(2.0, MULTI)(batch, {"logits": tensor([[2.0]])}, {"logits": tensor([[4.0]])})
    assert float(loss.asnumpy()) == pytest.approx(expected, abs=1e-5)


def test_attention_loss_of_a_loaded_batch_by_hand():
    """Of rows of 2 and 1 tokens: the mean over heads and pairs of real positions, summed over layers."""
    length = np.array([2, 1], np.int32)
    rows = Rows(np.ones((2, 3), np.int32), length, length, np.zeros(2, np.int32), {}, Path("rows"), str)
    (batch,) = Loader(rows, 4, shuffle=False).epoch(0)
    assert [float(batch[name].asnumpy()) for name in ("rows", "tokens", "pairs")] == [2, 2 + 1, 4 + 1]
    scores = np.zeros((4, 2, 3, 3), np.float32)  # other ones at padding, too, and in the rows that fill the batch
    scores[:, 0], scores[:, 1] = 1, 3
    student, teacher = ({"attentions": tuple(map(tensor, pair))} for pair in ((0 * scores,) * 2, (scores, 2 * scores)))
    loss, _ = AttentionScores(layer_map("0,1", 2, 2))(*map(ms.mutable, (batch, student, teacher)))
    assert float(loss.asnumpy()) == pytest.approx((1 + 9) / 2 + (4 + 36) / 2)


def test_reference_attention_loss_is_a_mean_over_heads_too():
    scores = tensor([[[[1.0, 1.0], [1.0, 1.0]], [[3.0, 3.0], [3.0, 3.0]]]])
    found = losses.attention_mse_reference(scores, scores * 0, ONE, tensor(1.0))
    assert float(found.asnumpy()) == pytest.approx((1 + 9) / 2)


def test_projections_by_hand():
    fit, weight = FitDense(2, 3, 2), np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    fit.weights[0].set_data(tensor(weight))
    fit.biases[0].set_data(tensor([0.5, 0, -1]))
    fit.weights[1].set_data(tensor(2 * weight))
    hidden = tensor([[[1, -1]]])
    assert fit(hidden, 0).asnumpy().tolist() == [[[-0.5, -1, -2]]] and fit(hidden, 1).asnumpy().tolist() == [[[-2] * 3]]


def test_projections_are_carried_on_or_one_for_each_hidden_state():
    narrow, wide = preset("test-2l-32").with_(hidden_size=16), preset("test-4l-32")
    pairs = layer_map("uniform", 2, 4)
    carried = {"fit_dense.weight": np.arange(512).reshape(32, 16), "fit_dense.bias": np.arange(32)}
    carried = {name: value.astype(np.float32) for name, value in carried.items()}
    found = fit_arrays(fit_dense("shared", narrow, wide, pairs, carried, seed=1))
    assert found.keys() == carried.keys() and all(np.array_equal(found[name], carried[name]) for name in carried)
    each = fit_arrays(fit_dense("layer", narrow, wide, pairs, {}, seed=1))
    assert sorted(each) == sorted(f"fit_denses.{index}.{leaf}" for index in range(3) for leaf in ("weight", "bias"))
    again = fit_arrays(fit_dense("shared", narrow, wide, pairs, each, seed=2))
    assert again.keys() == each.keys() and all(np.array_equal(again[name], each[name]) for name in each)


def test_token_losses_leave_out_rows_that_fill_a_batch():
    mine = [[[9.0, 9.0], [0.0, 1.0], [2.0, 0.0]], [[1.0, 0.0], [7.0, -7.0], [0.0, 0.0]]]
    batch, student = words_of(mine, [[-100, 1, 1], [1, -100, -100]], [1.0, 0.0])
    batch["words"] = tensor(2.0)
    loss, _ = Labels(TOKEN)(batch, student, {})
    assert float(loss.asnumpy()) == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(2))) / 2, abs=1e-5)


def test_squared_logits_by_hand_without_the_row_that_fills_the_batch():
    found = losses.squared_logits(tensor([[1, 2], [9, 9]]), tensor([[0, 4], [0, 0]]), tensor([1.0, 0.0]))
    assert float(found.asnumpy()) == 1 + 4
