"""Patterns against masks worked out by hand, and what holds of any matrix."""

import numpy as np
import pytest

from minddistill.errors import UserError
from minddistill.prune.patterns import masks, pattern

SCORES = np.array(
    [
        [1, 9, 2, 8],
        [3, 9, 4, 8],
        [5, 1, 6, 2],
        [7, 1, 8, 4],
    ],
    np.float32,
)
# Means of the units: 2x1 blocks 2 9 3 8 / 6 1 7 3; rows 5 6 3.5 5; columns 4 5 5 5.5; 2x2 blocks 5.5 5.5 / 3.5 5.
BY_HAND = {
    ("1x1", 0.25): ["0101", "1111", "1011", "1011"],  # 1 1 1 and the first 2
    ("2x1", 0.25): ["0111", "0111", "1011", "1011"],  # 1 and 2
    ("2x2", 0.25): ["1111", "1111", "0011", "0011"],
    ("1xchannel", 0.5): ["0000", "1111", "0000", "1111"],  # 3.5, then the first of the two 5
    ("channelx1", 0.5): ["0011", "0011", "0011", "0011"],
    ("2:4", 0.5): ["0101", "0101", "1010", "1010"],
    ("1:4", 0.25): ["0111", "0111", "1011", "1011"],
    # Of the groups' two lowest, 3/4 7/4 3/4 5/4, the lowest two groups get their zeros.
    ("2:4", 0.25): ["0101", "1111", "1010", "1111"],
}


@pytest.mark.parametrize(("name", "sparsity"), BY_HAND)
def test_masks_by_hand(name, sparsity):
    found = masks([SCORES], pattern(name), sparsity)[0]
    wanted = [[digit == "1" for digit in row] for row in BY_HAND[name, sparsity]]
    np.testing.assert_array_equal(found, wanted)


def test_scores_of_units_are_means_and_of_groups_sums_of_their_lowest_over_their_size():
    np.testing.assert_allclose(pattern("2x1").units(SCORES), [2, 9, 3, 8, 6, 1, 7, 3])
    np.testing.assert_allclose(pattern("2:4").units(SCORES), [3 / 4, 7 / 4, 3 / 4, 5 / 4])


def test_one_threshold_for_several_matrices_and_limits_of_each():
    low, high = np.arange(1, 9, dtype=np.float32).reshape(2, 4), np.arange(11, 19, dtype=np.float32).reshape(2, 4)
    kept = [int(mask.sum()) for mask in masks([low, high], pattern("1x1"), 0.5)]
    assert kept == [0, 8]
    kept = [int(mask.sum()) for mask in masks([low, high], pattern("1x1"), 0.5, most=0.75)]
    assert kept == [2, 6]  # what the first may not lose goes to the second
    kept = [int(mask.sum()) for mask in masks([low, high], pattern("1x1"), 0.5, least=0.375)]
    assert kept == [3, 5]
    np.testing.assert_array_equal(masks([low, high], pattern("1x1"), 0.5, least=0.375)[1], high > 13)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", ["1x1", "4x1", "1x4", "2x3", "1xchannel", "channelx1", "2:4", "1:3", "3:8"])
def test_sparsity_is_reached_to_one_unit_in_whole_units(name, seed):
    generator, units = np.random.default_rng(seed), pattern(name)
    shapes = [tuple(generator.integers(1, 8, 2) * (4, 24)) for _ in range(3)]
    # Few values, so that many are equal.
    scores = [generator.integers(0, 5, shape).astype(np.float32) for shape in shapes]
    sparsity = float(generator.uniform(0, units.most))
    found = masks(scores, units, sparsity)
    pruned, total = sum(int((~mask).sum()) for mask in found), sum(mask.size for mask in found)
    assert sparsity * total - pruned + 1e-6 >= 0 and sparsity * total - pruned < max(map(units.size, shapes))
    for score, mask in zip(scores, found, strict=True):
        if ":" in name:
            zeros = (~mask).reshape(-1, units.of).sum(1)
            assert set(zeros) <= {0, units.zeros}
            groups, kept = score.reshape(-1, units.of), mask.reshape(-1, units.of)
            assert all(
                group[~keep].max() <= group[keep].min()
                for group, keep in zip(groups, kept, strict=True)
                if not keep.all()
            )
        else:
            assert set(np.unique(units.units(mask.astype(np.float32)))) <= {0.0, 1.0}
    most = [units.units(score)[units.units(mask.astype(float)) < 1] for score, mask in zip(scores, found, strict=True)]
    least = [
        units.units(score)[units.units(mask.astype(float)) == 1] for score, mask in zip(scores, found, strict=True)
    ]
    if ":" not in name and len({units.size(shape) for shape in shapes}) == 1 and pruned:
        assert max(map(np.max, filter(len, most))) <= min(map(np.min, filter(len, least)))


@pytest.mark.parametrize("name", ["2:4", "1:2"])
def test_every_group_has_its_zeros_at_the_largest_sparsity(name):
    units = pattern(name)
    mask = masks([np.random.default_rng(0).random((6, 8))], units, units.most)[0]
    assert set((~mask).reshape(-1, units.of).sum(1)) == {units.zeros}


@pytest.mark.parametrize(
    ("name", "shape", "fits"),
    [
        ("4x1", (2, 8), False),
        ("4x1", (8, 3), True),
        ("2:4", (3, 6), False),
        ("2:4", (3, 8), True),
        ("1xchannel", (3, 7), True),
        ("channelx1", (3, 7), True),
        ("1x4", (4, 6), False),
    ],
)
def test_shapes_that_do_not_divide_are_told(name, shape, fits):
    assert pattern(name).misfit(shape) is not fits


@pytest.mark.parametrize("name", ["", "4:4", "4:2", "0x1", "2:0", "channelxchannel", "4x", "a:b", "channel"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="expected N:M with N below M, NxM"):
        pattern(name)
