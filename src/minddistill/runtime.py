"""The device, the process group and the seed: what has to be set before the first cell is built."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .errors import UserError

DEVICES = ("Ascend", "GPU", "CPU")


@dataclass(frozen=True)
class Runtime:
    """Where this process runs: device, its number, and its place among those that train together."""

    device: str
    device_id: int = 0
    rank: int = 0
    size: int = 1

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


def float_type(name: str, device: str) -> Any:
    """The MindSpore type of a `compute_type` or `dtype` option; "auto" is float16 on accelerators, float32 on CPU."""
    import mindspore as ms

    if name == "auto":
        name = "float32" if device == "CPU" else "float16"
    return {"float16": ms.float16, "float32": ms.float32}[name]
