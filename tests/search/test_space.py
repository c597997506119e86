"""Spaces as users write them."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from minddistill.errors import UserError
from minddistill.search.space import ends, read_space


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return path

    return write


def test_ranges_and_choices(written):
    space = read_space(
        written(
            "learning_rate: {low: 1e-5, high: 1e-4, log: true}\n"  # YAML reads both as words
            "temperature: {low: 1.0, high: 8}\n"
            "td_phase2_epoch_size: {low: 1, high: 5, step: 2}\n"
            "batch_size: [16, 32]\n"
            "layer_map: [uniform, last]\n"
        )
    )
    assert space == {
        "learning_rate": FloatDistribution(1e-5, 1e-4, log=True),
        "temperature": FloatDistribution(1.0, 8.0),
        "td_phase2_epoch_size": IntDistribution(1, 5, step=2),
        "batch_size": CategoricalDistribution((16, 32)),
        "layer_map": CategoricalDistribution(("uniform", "last")),
    }
    low, high = ends(space)
    assert low == {
        "learning_rate": 1e-5,
        "temperature": 1.0,
        "td_phase2_epoch_size": 1,
        "batch_size": 16,
        "layer_map": "uniform",
    }
    assert list(high.values()) == [1e-4, 8.0, 5, 32, "last"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("- a", "holds list"),
        ("alpha: 0.5", "alpha: expected a list of choices or {low, high}"),
        ("alpha: []", "alpha: expected at least one choice"),
        ("alpha: [{a: 1}]", "alpha: expected at least one choice"),
        ("alpha: {low: 1}", "alpha: expected a list"),
        ("alpha: {low: 1, hihg: 2}", "alpha: expected a list"),
        ("alpha: {low: x, high: 2}", "alpha: 'x' is no number"),
        ("alpha: {low: 2.0, high: 1.0}", "alpha: "),
        ("alpha: {low: 0, high: 1.0, log: true}", "alpha: "),
        ("alpha: {low: 1, high: 4, step: 0.5}", "alpha: "),
        ("alpha: {low: 1, high: 4, log: maybe}", "alpha: log is 'maybe'; expected true or false"),
    ],
)
def test_wrong_spaces_name_file_and_key(written, text, told):
    path = written(text)
    with pytest.raises(UserError) as refused:
        read_space(path)
    assert str(refused.value).startswith(f"--space {path}: ") and told in str(refused.value)
    assert "\n" not in str(refused.value)
