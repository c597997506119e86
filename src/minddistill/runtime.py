"""The device, the process group and the seed: what has to be set before the first cell is built."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError

DEVICES = ("Ascend", "GPU", "CPU")
_DNNL_FPMATH_BF16 = 1  # dnnl_fpmath_mode_bf16 of oneDNN's C interface


@dataclass(frozen=True)
class Runtime:
    """Where this process runs: device, its number, and its place among those that train together."""

    device: str
    device_id: int = 0
    rank: int = 0
    size: int = 1

    def all(self, true: bool = True) -> bool:
        """Whether it is true in every process; each waits for the others."""
        if self.size == 1:
            return true
        import mindspore as ms
        from mindspore import ops

        return int(ops.AllReduce()(ms.Tensor([int(true)], ms.float32)).asnumpy()[0]) == self.size

    def reducer(self, parameters: Any) -> Any:
        """A cell that averages gradients over all processes; None where there is one."""
        if self.size == 1:
            return None
        from mindspore import nn

        return nn.DistributedGradReducer(parameters, mean=True, degree=self.size)


def available_devices() -> list[str]:
    """The devices that MindSpore finds here, the best first."""
    import mindspore as ms

    found = []
    for device in DEVICES:
        try:
            if ms.hal.is_available(device):
                found.append(device)
        except (RuntimeError, ValueError):
            continue
    return found or ["CPU"]


def start(device: str = "", device_id: int = 0, distribute: bool = False, device_num: int = 1) -> Runtime:
    """Set graph mode and the device, and join the process group where there is one.

    Args:
        device: Ascend, GPU or CPU; empty takes the best that is there.
        distribute: join the group that `msrun` started; its size must be `device_num`.

    Raises:
        UserError: the device is not there, or the processes are not those asked for.
    """
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's own warnings drown the log
    import mindspore as ms

    present = available_devices()
    device = device or present[0]
    if device not in present:
        raise UserError(
            f"--device_target {device}: not available here; this machine has {', '.join(present)}; "
            "choose one of these or install MindSpore's back end for it"
        )
    ms.set_context(mode=ms.GRAPH_MODE)
    if distribute:  # msrun counts the devices of each node
        device_id = int(os.environ.get("DEVICE_ID", device_id))
    ms.set_device(device, device_id) if device != "CPU" else ms.set_device(device)
    if not distribute:
        return Runtime(device, device_id)
    if "MS_WORKER_NUM" not in os.environ:
        raise UserError(
            "--distribute true: not started by msrun; use scripts/run_distributed_*.sh, or --distribute false"
        )
    from mindspore import communication

    communication.init()
    rank, size = communication.get_rank(), communication.get_group_size()
    if size != device_num:
        raise UserError(f"--device_num {device_num}: {size} processes were started; give --device_num {size}")
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=size)
    return Runtime(device, device_id, rank, size)


def precision(compute_type: str, dtype: str, device: str) -> dict[str, Any]:
    """The types that models are built with, out of the `compute_type` and `dtype` options.

    "auto" is float16 on accelerators and float32 on CPU. bfloat16 on CPU leaves tensors in float32 and lets oneDNN
    round the operands of its matrix products to bfloat16, with sums in float32, for this process from now on;
    processors without bfloat16 instructions go on in float32.

    Raises:
        UserError: this MindSpore has no oneDNN whose mode can be set.
    """
    import mindspore as ms

    if compute_type == "auto":
        compute_type = "float32" if device == "CPU" else "float16"
    if compute_type == "bfloat16" and device == "CPU":
        _onednn_bfloat16(Path(ms.__file__).parent / "lib")
        compute_type = "float32"
    kinds = {"float16": ms.float16, "bfloat16": ms.bfloat16, "float32": ms.float32}
    return {"compute_type": kinds[compute_type], "dtype": kinds[dtype]}


def _onednn_bfloat16(libraries: Path) -> None:
    found = sorted(libraries.glob("libdnnl.so*"))
    try:
        status = ctypes.CDLL(str(found[0])).dnnl_set_default_fpmath_mode(_DNNL_FPMATH_BF16)
    except (IndexError, OSError, AttributeError):
        status = None
    if status != 0:
        raise UserError(
            f"--compute_type bfloat16: no oneDNN in {libraries} whose precision can be set; give --compute_type float32"
        )
