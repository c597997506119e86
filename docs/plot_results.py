"""Draw docs/results.png out of docs/results.json, the figures of the README's results table.

.venv/bin/python docs/plot_results.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLORS = {"teacher": "#8896a8", "student": "#1f77b4", "student, int8": "#2ca02c"}


def main() -> None:
    """Bars of accuracy by task, and of how many times smaller and faster than the teacher the students are."""
    figures = json.loads((HERE / "results.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(3, 2))
    tasks, cost = figures["accuracy"], figures["cost"]
    for place, (name, color) in enumerate(COLORS.items()):
        at = [number + 0.27 * (place - 1) for number, task in enumerate(tasks) if name in tasks[task]]
        bars = left.bar(
            at, [100 * task[name] for task in tasks.values() if name in task], 0.26, label=name, color=color
        )
        left.bar_label(bars, fmt="%.1f", fontsize=8)
        if name != "teacher":
            ratios = [row["teacher"] / row[name] for row in cost.values()]
            bars = right.barh([number + 0.36 * (place - 1.5) for number in range(len(cost))], ratios, 0.34, color=color)
            told = [
                f"{row[name]:g} of {row['teacher']:g}, {ratio:.1f}x"
                for row, ratio in zip(cost.values(), ratios, strict=True)
            ]
            right.bar_label(bars, told, fontsize=9, padding=3)
    left.set_xticks(range(len(tasks)), list(tasks))
    left.set_ylim(50, 100)
    left.set_ylabel("dev accuracy, %")
    left.legend(loc="upper right", framealpha=1)
    left.set_title("Accuracy: 6-layer teacher, 3-layer student", fontsize=10)
    right.set_yticks(range(len(cost)), list(cost))
    right.set_xlim(0, 11)
    right.invert_yaxis()
    right.set_title("Times smaller and faster, as ONNX", fontsize=10)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "results.png", dpi=150)


if __name__ == "__main__":
    main()
