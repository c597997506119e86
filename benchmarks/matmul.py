"""The float32 matrix-product rate of this machine, and what a token of general distillation costs in such products.

The rate is the faster one of PyTorch's library and MindSpore's, which processors suit differently.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

LENGTH, HIDDEN, INNER, TEACHER, STUDENT = 128, 384, 1536, 6, 3
_SIZE, _RUNS = 2048, 15


def rate(product: Callable[[], object]) -> float:
    """Floating point operations a second, the median."""
    found = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        product()
        found.append(2 * _SIZE**3 / (time.perf_counter() - began))
    return statistics.median(found)


def torch_rate() -> float:
    import torch

    torch.set_num_threads(2)
    left, right = map(torch.from_numpy, matrices())
    return rate(lambda: left @ right)


def mindspore_rate() -> float:
    import minddistill  # noqa: F401  # isort: skip  (before MindSpore, which reads what it sets)
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)  # in the other, products have one thread
    ms.set_device("CPU")
    left, right = map(ms.Tensor, matrices())
    multiply = ms.ops.MatMul()
    return rate(lambda: multiply(left, right).asnumpy())


def matrices() -> np.ndarray:
    return np.random.default_rng(0).random((2, _SIZE, _SIZE), np.float32)


def main() -> None:
    rates = {"torch": torch_rate, "mindspore": mindspore_rate}
    if len(sys.argv) > 1:
        print(rates[sys.argv[1]]())
        return
    # Each in a process of its own, as one library's threads are in the other's way.
    runs = {
        name: subprocess.run([sys.executable, __file__, name], stdout=subprocess.PIPE, check=True) for name in rates
    }
    found = {name: float(run.stdout.split()[-1]) for name, run in runs.items()}
    # Six products of a layer, and scores and context; a forward for the teacher, forward and backward for the student.
    layer = 2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) + 2 * 2 * LENGTH * HIDDEN
    project = 2 * HIDDEN * HIDDEN * (STUDENT + 1)
    per_token = layer * (TEACHER + 3 * STUDENT) + 3 * project
    print(json.dumps({"startup": 0.0, "rate": max(found.values()), "rates": found, "flops_per_token": per_token}))


if __name__ == "__main__":
    main()
