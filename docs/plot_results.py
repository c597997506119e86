"""Draw docs/results.png out of docs/results.json, the figures of the README's results table.

.venv/bin/python docs/plot_results.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
TEACHER, STUDENT = "#8896a8", "#1f77b4"


def main() -> None:
    """Bars of accuracy by task, and of what the two models cost."""
    figures = json.loads((HERE / "results.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(3, 2))
    tasks = list(figures["accuracy"])
    for offset, name, color in ((-0.2, "teacher", TEACHER), (0.2, "student", STUDENT)):
        values = [100 * figures["accuracy"][task][name] for task in tasks]
        bars = left.bar([place + offset for place in range(len(tasks))], values, 0.38, label=name, color=color)
        left.bar_label(bars, fmt="%.1f", fontsize=9)
    left.set_xticks(range(len(tasks)), tasks)
    left.set_ylim(50, 100)
    left.set_ylabel("dev accuracy, %")
    left.legend(loc="lower left", framealpha=1)
    left.set_title("Accuracy: 6-layer teacher, 3-layer student", fontsize=10)
    cost = figures["cost"]
    names = list(cost)
    ratios = [cost[name]["teacher"] / cost[name]["student"] for name in names]
    bars = right.barh(names, ratios, color=STUDENT)
    labels = [f"{cost[n]['student']:g} of {cost[n]['teacher']:g}, {r:.2f}x" for n, r in zip(names, ratios, strict=True)]
    right.bar_label(bars, labels, fontsize=9, padding=3)
    right.set_xlim(0, max(ratios) * 1.9)
    right.invert_yaxis()
    right.set_title("Times smaller and faster", fontsize=10)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "results.png", dpi=150)


if __name__ == "__main__":
    main()
