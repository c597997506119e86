"""SST-2 and MRPC dense and sparse over several seeds, and their table: sparsity, mean and best of each, relative drop.

    python benchmarks/pruning.py --sst2 data/sst2 --mrpc data/mrpc --output_dir runs/pruning [--seeds 1,2,3] [--processes 2]

Each seed fine-tunes a dense model and prunes it with the three patterns, the dense model as teacher (`configs/*_teacher.yaml`,
`configs/*_sparse_*.yaml`). A run that is finished is not made again; all runs of a process have one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
# Fewer epochs than the teacher of the distillation has: three models are needed.
DENSE = {"sst2": ("--epoch_size", "2", "--learning_rate", "6e-5", "--eval_steps", "500"), "mrpc": ()}
PATTERNS = {"2of4": "2:4", "4x1": "4x1", "1xchannel": "1xchannel"}
METRICS = {"sst2": ("accuracy",), "mrpc": ("accuracy", "f1")}


def train(command: str, config: str, data: Path, out: Path, seed: int, *flags: str) -> None:
    """Run a command to its end, in a process of one thread.

    Raises:
        subprocess.CalledProcessError: it failed; its last lines are printed.
    """
    words = [
        sys.executable,
        "-m",
        "minddistill",
        command,
        "--config",
        CONFIGS / f"{config}.yaml",
        "--seed",
        seed,
        *flags,
    ]
    words += ["--train_data_dir", data / "train", "--eval_data_dir", data / "dev", "--output_dir", out]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True)
    print(f"{out}: {'finished' if done.returncode == 0 else done.stderr[-500:]}", file=sys.stderr, flush=True)
    done.check_returncode()


def result(run: Path) -> dict[str, float]:
    """Dev metrics, seconds, and sparsity, 0 of a dense model."""
    done = json.loads((run / "done.json").read_text())
    model = json.loads((run / done["result"] / "minddistill.json").read_text())
    return done["metrics"] | {"seconds": done["seconds"], "sparsity": model["data"].get("sparsity", 0.0)}


def rows(task: str, dense: list[dict], sparse: dict[str, list[dict]]) -> list[str]:
    """Lines of the table of a task: of each pattern and metric, from the results of all seeds."""
    lines = []
    for pattern, found in sparse.items():
        for metric in METRICS[task]:
            before, after = ([one[metric] for one in part] for part in (dense, found))
            drop = 1 - statistics.mean(after) / statistics.mean(before)
            cells = [task, metric, pattern, f"{statistics.mean(one['sparsity'] for one in found):.1%}"]
            cells += [f"{statistics.mean(values):.4f} / {max(values):.4f}" for values in (before, after)]
            cells += [f"{drop:.2%}", f"{statistics.mean(one['seconds'] for one in found) / 60:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sst2", type=Path)
    parser.add_argument("--mrpc", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    data = {name: getattr(options, name) for name in ("sst2", "mrpc") if getattr(options, name)}
    jobs = [(task, seed) for task in data for seed in map(int, options.seeds.split(","))]

    def place(task: str, name: str, seed: int) -> Path:
        return options.output_dir / f"{task}_{name}_{seed}"

    def dense(job: tuple[str, int]) -> None:
        task, seed = job
        train("finetune", f"{task}_teacher", data[task], place(task, "dense", seed), seed, *DENSE[task])

    def sparse(job: tuple[str, int, str]) -> None:
        task, seed, name = job
        model = place(task, "dense", seed) / "best"
        train("prune", f"{task}_sparse_{name}", data[task], place(task, name, seed), seed, "--model", str(model))

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(dense, jobs))
        list(pool.map(sparse, [(*job, name) for name in PATTERNS for job in jobs]))
    print("| task | metric | pattern | sparsity | dense mean / max | sparse mean / max | relative drop | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for task in data:
        seeds = [seed for name, seed in jobs if name == task]
        found = {label: [result(place(task, name, seed)) for seed in seeds] for name, label in PATTERNS.items()}
        print("\n".join(rows(task, [result(place(task, "dense", seed)) for seed in seeds], found)))


if __name__ == "__main__":
    main()
