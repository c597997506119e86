"""Device and number types."""

import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from minddistill import runtime
from minddistill.errors import UserError
from minddistill.models import store
from minddistill.models.heads import predict_function
from minddistill.models.presets import preset

# In a process of its own: oneDNN's mode is the whole process's.
_PRODUCT = """
import numpy as np, mindspore as ms
from mindspore import Tensor
from minddistill import runtime
from minddistill.models.layers import Dense
runtime.start("CPU")
types = runtime.precision("bfloat16", "float32", "CPU")
assert types == {"compute_type": ms.float32, "dtype": ms.float32}, types
x = np.random.default_rng(0).standard_normal((2048, 256)).astype(np.float32)
dense = Dense(256, 512)
dense.weight.set_data(Tensor(x[:512]))
exact = x.astype(np.float64) @ x[:512].T.astype(np.float64)
print(np.abs(dense(Tensor(x)).asnumpy() - exact).max())
"""


def test_bfloat16_on_cpu_rounds_the_operands_of_products():
    done = subprocess.run([sys.executable, "-c", _PRODUCT], capture_output=True, text=True, check=True)
    error = float(done.stdout.split()[-1])
    # A diagonal element is a sum of 256 squares of about 1 whose factors lose up to 2^-9 each.
    assert error < 256 * 2 * 2.0**-9
    flags = Path("/proc/cpuinfo")
    if flags.is_file() and "amx_bf16" in flags.read_text():
        assert error > 1e-3  # float32 would be exact to about 2e-4


def test_bfloat16_without_onednn_is_refused(tmp_path):
    with pytest.raises(UserError, match="--compute_type float32"):
        runtime._onednn_bfloat16(tmp_path)


@pytest.mark.parametrize(("compute_type", "dtype"), [("float16", "float32"), ("float16", "float16")])
def test_half_precision_stays_near_single(compute_type, dtype):
    config = preset("test-2l-32").with_(vocab_size=40, labels=("no", "yes"), pooler=True, initializer_range=0.3)
    half = store.new(config, seed=1, **runtime.precision(compute_type, dtype, "CPU"))
    single = store.new(config, seed=1, **runtime.precision("auto", "float32", "CPU"))
    ids = np.random.default_rng(0).integers(5, 40, (4, 12)).astype(np.int32)
    batch = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    found, exact = predict_function(half)(batch), predict_function(single)(batch)
    assert 0 < np.abs(found - exact).max() < 5e-3 and np.ptp(exact) > 0.5


def test_auto_is_half_precision_on_accelerators():
    assert runtime.precision("auto", "float32", "Ascend") == {"compute_type": ms.float16, "dtype": ms.float32}
    assert runtime.precision("auto", "float32", "CPU") == {"compute_type": ms.float32, "dtype": ms.float32}


def test_absent_device_is_named():
    with pytest.raises(UserError, match=r"--device_target TPU: not available here; this machine has"):
        runtime.start("TPU")
