"""The float32 matrix-product rate of this machine, and what a token of general distillation costs in such products."""

from __future__ import annotations

import json
import statistics
import time

import torch

LENGTH, HIDDEN, INNER, TEACHER, STUDENT = 128, 384, 1536, 6, 3


def main() -> None:
    torch.set_num_threads(2)
    rates = []
    size = 2048
    left, right = torch.rand(size, size), torch.rand(size, size)
    for _ in range(15):
        began = time.perf_counter()
        left @ right
        rates.append(2 * size**3 / (time.perf_counter() - began))
    # Six products of a layer, and scores and context; a forward for the teacher, forward and backward for the student.
    layer = 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) + 2 * 2 * LENGTH * HIDDEN
    project = 2 * HIDDEN * HIDDEN * (STUDENT + 1)
    per_token = layer * (TEACHER + 3 * STUDENT) + 3 * project
    print(json.dumps({"startup": 0.0, "rate": statistics.median(rates), "flops_per_token": per_token}))


if __name__ == "__main__":
    main()
