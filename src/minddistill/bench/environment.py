"""Where something was measured or trained: machine and versions."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..workers import core_count

_PACKAGES = ("mindspore", "numpy", "tokenizers", "safetensors", "onnx", "onnxruntime")


def environment() -> dict[str, str]:
    """Names and values: processor, cores, memory, system, Python, and the packages that figures depend on."""
    found = {
        "Processor": _processor(),
        "Cores of this process": str(core_count()),
        "Memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "System": platform.platform(terse=True),
        "Python": platform.python_version(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's model and its instructions for reduced precision, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    useful = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    present = [name for name in useful if flags and name in flags[1].split()]
    return " · ".join([model[1] if model else platform.machine(), *([", ".join(present)] if present else [])])
