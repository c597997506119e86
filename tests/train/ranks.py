"""Steps with an overflow on one rank only; run by msrun in `test_ranks.py`, and there in one process.

python tests/train/ranks.py PROCESSES DIRECTORY
"""

import sys

import mindspore as ms
import numpy as np
from mindspore import Tensor
from test_step import built

from minddistill import runtime
from minddistill.train.step import StepConfig

ROWS, STEPS, OVERFLOWS = 8, 7, (1, 2, 5)


def train(place: runtime.Runtime) -> dict[str, np.ndarray]:
    """What a rank sees step by step, and ends with; in step 1 and 2 the last row overflows, in step 5 the first."""
    cell, optimizer, scale, step = built(StepConfig(loss_scale_value=1024.0, scale_window=2), reducer=place.reducer)
    generator = np.random.default_rng(0)
    mine = slice(place.rank * ROWS // place.size, (place.rank + 1) * ROWS // place.size)
    losses, overflows, scales = [], [], []
    for number in range(STEPS):
        rows = generator.normal(size=(ROWS, 3)).astype(np.float32)
        if number in OVERFLOWS:
            rows[0 if number == 5 else -1] = 3e38  # finite, until it is multiplied by the loss scale
        loss, _, overflow, used = step({"x": Tensor(rows[mine], ms.float32)})
        losses.append(loss.asnumpy())
        overflows.append(overflow.asnumpy())
        scales.append(used.asnumpy())
    return {
        "loss": np.array(losses),
        "overflow": np.array(overflows),
        "scale": np.array([*scales, scale.value.asnumpy()]),
        "updates": optimizer.global_step.asnumpy(),
        "weight": cell.weight.asnumpy(),
        "bias": cell.bias.asnumpy(),
    }


if __name__ == "__main__":
    place = runtime.start("CPU", distribute=True, device_num=int(sys.argv[1]))
    np.savez(f"{sys.argv[2]}/rank_{place.rank}.npz", **train(place))
