"""The device, the process group and the seed: what has to be set before the first cell is built."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import link
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
        return bool(self._sum(int(true)) == self.size)

    def same(self, number: int) -> bool:
        """Whether a whole number is the same in every process, as far as float32 tells."""
        return self.all(bool(self._sum(0 if self.rank else number) == np.float32(number)))

    def _sum(self, number: int) -> np.float32:
        """The sum over all processes; each waits for the others."""
        if self.size == 1:
            return np.float32(number)
        import mindspore as ms
        from mindspore import ops

        return ops.AllReduce()(ms.Tensor([number], ms.float32)).asnumpy()[0]

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
        UserError: the device is not there, or the processes are not those asked for or did not come together.
    """
    os.environ.setdefault("GLOG_v", "4")  # MindSpore's own lines drown ours; what ends a run comes as an exception
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

    _join_group()
    rank, size = communication.get_rank(), communication.get_group_size()
    if size != device_num:
        raise UserError(f"--device_num {device_num}: {size} processes were started; give --device_num {size}")
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=size)
    return Runtime(device, device_id, rank, size)


# The line to the launcher that watches this process; None where it was not started by one, or is not yet.
_launcher: link.Link | None = None


def _join_group() -> None:
    """Join the process group, watched by the launcher from now on.

    Raises:
        UserError: the processes did not come together in time.
    """
    global _launcher
    from mindspore import communication

    # On CPU a collective waits 30 s for the slowest rank, less than an evaluation of the first rank takes; whether a
    # rank is lost is the launcher's to tell.
    os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", str(7 * 86400))
    if link.SILENCE in os.environ:  # the scheduler, which would end the run after 30 s, comes after it
        os.environ.setdefault("MS_NODE_TIMEOUT", str(round(float(os.environ[link.SILENCE])) + 60))
    _launcher = link.of_rank()
    try:
        communication.init()
    except RuntimeError as error:
        if "are not successfully spawned" not in str(error):
            raise
        where = f"{os.environ.get('MS_SCHED_HOST')}:{os.environ.get('MS_SCHED_PORT')}"
        raise UserError(
            f"the scheduler at {where} (MASTER_ADDR, MASTER_PORT) did not bring {os.environ['MS_WORKER_NUM']} processes "
            f"together within {os.environ.get('MS_TOPO_TIMEOUT')} s (CLUSTER_TIMEOUT); check that all nodes were started "
            "with the same three, reach this address, and that nothing else uses the port"
        ) from None
    if _launcher is not None:
        _launcher.watch()


def leave(code: int, why: str) -> None:
    """Tell the launcher, where there is one, that this process ends by itself, and why."""
    launcher = _launcher
    if launcher is None and code:  # before it joined the group
        with contextlib.suppress(UserError):
            launcher = link.of_rank(wait=3.0)
    if launcher is not None:
        launcher.end(code, why)


def precision(compute_type: str, dtype: str, device: str) -> dict[str, Any]:
    """The types that models are built with, out of the `compute_type` and `dtype` options.

    "auto" is float16 on accelerators and float32 on CPU. bfloat16 on CPU leaves tensors in float32 and lets oneDNN
    round the operands of its matrix products to bfloat16, with sums in float32, for this process from now on;
    processors without AMX go on in float32 (docs/mindspore.md).

    Raises:
        UserError: this MindSpore has no oneDNN whose mode can be set.
    """
    import mindspore as ms

    compute_type = type_names(compute_type, dtype, device)["compute_type"]
    if compute_type == "bfloat16" and device == "CPU":
        _onednn_bfloat16(Path(ms.__file__).parent / "lib")
        compute_type = "float32"
    kinds = {"float16": ms.float16, "bfloat16": ms.bfloat16, "float32": ms.float32}
    return {"compute_type": kinds[compute_type], "dtype": kinds[dtype]}


def type_names(compute_type: str, dtype: str, device: str) -> dict[str, str]:
    """The types that the options of `precision` come to on a device."""
    auto = "float32" if device == "CPU" else "float16"
    return {"compute_type": auto if compute_type == "auto" else compute_type, "dtype": dtype}


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
