"""Memory over many steps: phase 1 on SST-2 with every length, 2,000 steps, as JSON.

python benchmarks/soak.py WORK [STEPS]     (WORK is what bench.py made)
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import bench
from ours import opened


def resident() -> float:
    """Resident memory of this process in GB, without the pages of mapped files, which the system takes back at will."""
    all_pages, mapped = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (all_pages - mapped) * resource.getpagesize() / 1e9


def main() -> None:
    inputs, most = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    words = bench.ours(inputs, "ours_sst2", 0)[3:]
    with tempfile.TemporaryDirectory(dir=inputs) as out:
        with opened("phase1", [*words, "--output_dir", out]) as stage:
            work = stage.build()
            _, _, step = stage.step_of(work.cell, len(work.batches) * stage.epochs)
            levels = {}
            for number, batch in zip(range(1, most + 1), work.batches.epoch(0), strict=False):
                step(batch)[0].asnumpy()
                if number in (1, 200, 500, 1000, 1500, most):
                    levels[number] = round(resident(), 3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"lengths": work.batches.buckets, "resident_gb": levels, "peak_gb": round(peak, 3)}))


if __name__ == "__main__":
    main()
