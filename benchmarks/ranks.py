"""What several processes cost: 2 processes of 1 thread against 1 process of 2 threads, general distillation.

    python benchmarks/ranks.py --teacher DIR --records DIR [--rounds 2] [--steps 60]

Both take the same 32 rows in each step, padded to one length. Each round runs both in turn; a side's speed is the median
of what its log says for every ten steps but the first twenty, which compile. Prints JSON: sequences a second of each side
in each round, and the share of the first one's that the second loses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from minddistill.files import model_path

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_distributed_gd_cpu.sh"
ROWS, INTERVAL, COMPILING = 32, 10, 20


def speed(processes: int, teacher: Path, records: Path, steps: int) -> float:
    """Sequences a second of all processes, which share two threads."""
    with tempfile.TemporaryDirectory() as out:
        words = ["bash", SCRIPT, processes, 1, records, "", teacher, "--student", "minilm-l3", "--buckets", "off"]
        words += ["--init_from_teacher", "1,3,5", "--batch_size", ROWS // processes, "--train_steps", steps]
        words += ["--log_interval", INTERVAL, "--output_dir", out]
        told = {"FOREGROUND": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": str(2 // processes)}
        command = [str(word) for word in words]
        subprocess.run(command, cwd=out, env=os.environ | told, stdout=subprocess.DEVNULL, check=True)
        rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["sequences_per_second"] for row in rows if row["step"] > COMPILING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="model directory of 6 layers")
    parser.add_argument("--records", type=Path, required=True, help="record directory")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    where = model_path(args.teacher).absolute(), args.records.absolute(), args.steps
    one, two = zip(*[(speed(1, *where), speed(2, *where)) for _ in range(args.rounds)], strict=True)
    lost = [1 - second / first for first, second in zip(one, two, strict=True)]
    found = {"one_process": one, "two_processes": two, "lost": statistics.median(lost)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
