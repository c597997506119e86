"""Fused kernels for training on CPU, compiled by this machine's C compiler when first needed.

MindSpore runs GELU, layer norm, dropout and their gradients as a dozen passes over memory each; `kernels.c` makes one.
Where the device is not CPU, there is no compiler, or MINDDISTILL_NATIVE=off, cells keep MindSpore's own operators.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import mindspore as ms
from mindspore import ops

from ..files import whole_file

SWITCH = "MINDDISTILL_NATIVE"
_wanted = ContextVar("fused kernels", default=True)
_SOURCE = Path(__file__).with_name("kernels.c")
# Not -ffast-math: infinities and NaN must come through for the overflow check, and linking with it changes how the
# whole process treats small numbers.
_FLAGS = ["-std=c11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
if platform.machine() == "x86_64":
    _FLAGS.append("-mprefer-vector-width=512")

# The shapes of each kernel's outputs from those of its inputs; the kernels' own comments say what these are.
_SHAPES: dict[str, Callable] = {
    "layer_norm": lambda x, gamma, beta, epsilon: x,
    "layer_norm_grad": lambda x, gamma, epsilon, dy: (x, gamma, gamma),
    "dropout": lambda x, table, multiplier, offset, threshold: x,
    "attention_weights": lambda x, *_: x,
    "attention_weights_grad": lambda x, *_: x,
    "split_heads": lambda x, bias, heads, scale: [x[0], heads[0], x[1], heads[1]],
    "merge_heads_grad": lambda x, heads: [x[0], heads[0], x[1], heads[1]],
    "merge_heads": lambda x, scale: [x[0], x[2], x[1] * x[3]],
    "bias_gelu": lambda x, bias: x,
    "bias_gelu_grad": lambda x, bias, dy: (x, bias),
    "add_norm": lambda x, *_: x,
    "add_norm_grad": lambda x, fed, bias, *_: (x, x, bias, bias, bias),
    "sum_rows": lambda x: x[-1:],
    "squared_distance": lambda *_: [1],
    "squared_distance_grad": lambda x, *_: x,
    "fake_quant": lambda x, *_: x,
    "fake_quant_grad": lambda x, *_: x,
    "square_sums": lambda *tensors: [len(tensors)],
    "adam": lambda *_: [1],
}
_OUTPUTS = {"layer_norm_grad": 3, "bias_gelu_grad": 2, "add_norm_grad": 5}


def available() -> bool:
    """Whether cells run the kernels: on CPU, compiled, and not switched off."""
    return _wanted.get() and ms.get_context("device_target") == "CPU" and _library() is not None


@contextmanager
def off() -> Iterator[None]:
    """Cells that are built inside keep MindSpore's own operators: a graph with ours cannot leave this machine."""
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)


def operator(name: str) -> ops.Custom | None:
    """The kernel of that name as an operator of graph mode, or None where the plain operators have to do."""
    if not available():
        return None
    kinds = (ms.float32,) * _OUTPUTS[name] if name in _OUTPUTS else ms.float32
    return ops.Custom(f"{_library()}:{name}", _SHAPES[name], lambda *_: kinds, "aot")


@cache
def _library() -> Path | None:
    """The compiled kernels; built once for a source, compiler and processor, and kept in the user's cache directory."""
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "false"):
        return None
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
        key = hashlib.sha256(_SOURCE.read_bytes() + version + _processor() + " ".join(_FLAGS).encode()).hexdigest()
        cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minddistill"
        library = cached / f"kernels-{key[:16]}.so"
        if not library.exists():
            with whole_file(library) as temporary:
                command = [*compiler, *_FLAGS, "-o", str(temporary), str(_SOURCE), "-lm"]
                subprocess.run(command, capture_output=True, check=True)
        ctypes.CDLL(str(library))  # a place that programs cannot be loaded from is told here
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None)
        reason = said.decode(errors="replace").strip().splitlines()[0] if said else error
        logging.getLogger(__name__).warning(
            "no fused CPU kernels (%s); training takes about twice as long. Install a C compiler, or set CC to one; "
            "%s=off silences this line",
            reason,
            SWITCH,
        )
        return None
    return library


def _processor() -> bytes:
    """What -march=native depends on: a home directory may be shared between different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
        return b"\n".join(line for line in lines if line.startswith((b"flags", b"model name", b"Features")))
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
