"""Figures show the numbers they were given."""

import numpy as np

from minddistill.bench import plots


def row(stage, step, **numbers):
    return {"stage": stage, "epoch": 1, "step": step, **numbers}


def lines(figure):
    return {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}


def test_stages_follow_each_other_and_what_is_absent_is_left_out():
    rows = [
        row("phase1", 5, loss=4.0, attention_loss=3.0, hidden_loss=1.0, learning_rate=1e-4),
        row("phase1", 10, loss=2.0, attention_loss=1.5, hidden_loss=0.5, learning_rate=5e-5),
        row("phase2", 5, loss=1.0, soft_loss=1.0, learning_rate=1e-5),
        row("phase2", 5, dev_accuracy=0.75),
    ]
    found = plots.curves(rows)
    assert list(found) == ["Loss", "Terms of the loss", "Dev metrics", "Learning rate"]
    assert lines(found["Loss"]) == {"phase1": [[5, 4], [10, 2]], "phase2": [[15, 1]]}
    assert lines(found["Terms of the loss"])["phase1 hidden loss"] == [[5, 1], [10, 0.5]]
    assert lines(found["Dev metrics"]) == {"accuracy": [[15, 0.75]]}


def test_running_mean_of_a_long_line_and_marks_of_overflows():
    rows = [
        row("train", step, loss=float(step % 2), loss_scale=2.0**step, overflow=float(step == 30)) for step in range(60)
    ]
    found = plots.curves(rows)
    strong, faint = (line.get_ydata() for line in found["Loss"].axes[0].lines)
    assert faint.tolist() == [step % 2 for step in range(60)]
    np.testing.assert_allclose(strong[2:-2], 0.5)
    assert lines(found["Loss scale"])["overflow: step skipped"] == [[30, 2.0**30]]


def test_files_are_whole_and_the_same_every_time(tmp_path):
    spots = [plots.Spot("teacher", 0.907, 12.0, 90.9), plots.Spot("student", 0.899, 6.0, 69.6)]
    for name in ("a", "b"):
        plots.save(plots.trade_off(spots, "student"), tmp_path / name, "benchmark")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["benchmark.png", "benchmark.svg"]
    for kind in ("png", "svg"):
        assert (tmp_path / f"a/benchmark.{kind}").read_bytes() == (tmp_path / f"b/benchmark.{kind}").read_bytes()


def test_a_discs_area_is_the_size_and_the_current_model_is_circled():
    spots = [plots.Spot("teacher", 0.907, 12.0, 90.0), plots.Spot("student", 0.899, 6.0, 45.0)]
    discs = plots.trade_off(spots, "student").axes[0].collections
    places = [disc.get_offsets().tolist()[0] for disc in discs]
    np.testing.assert_allclose(places, [[12.0, 90.7], [6.0, 89.9], [6.0, 89.9]])
    assert discs[0].get_sizes()[0] == 2 * discs[1].get_sizes()[0]
    assert discs[2].get_sizes()[0] > discs[1].get_sizes()[0] and len(discs[2].get_facecolor()) == 0


def test_sparsity_has_a_row_a_kind_and_a_column_a_layer():
    shares = {"encoder.layers.0.query.weight": 0.5, "encoder.layers.1.query.weight": 0.25, "classifier.weight": 0.0}
    axes = plots.sparsity({"pruned": shares}).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["query", "classifier"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["-", "0", "1"]
    assert sorted(text.get_text() for text in axes.texts) == ["0", "25", "50"]


def test_a_run_whose_losses_are_all_broken_is_drawn():
    found = plots.curves([row("train", step, loss=float("nan"), learning_rate=1e-4) for step in (20, 40)])
    assert list(found) == ["Loss", "Learning rate"]


def test_tokens_are_no_formulas_and_maps_are_pictures(tmp_path):
    weights = [np.full((3, 3), 1 / 3)]
    plots.save(plots.attention_maps(["$$", "$x$", "_"], weights, weights, [1], "t"), tmp_path, "attention")
    text = (tmp_path / "attention.svg").read_text()
    assert "$x$" in text and text.count("<image") == 3  # two maps and the bar of colours
