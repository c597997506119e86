"""T2 and T5 run to their end on both sides, with a fine-tuned teacher: seconds, and both students' accuracy on dev.

    python benchmarks/whole.py WORK TEACHER DEV [--peer plain_64] [--seed 0] [--output whole.json]

WORK is what bench.py made, TEACHER a classifier of SST-2, DEV its dev records. The seconds are to be compared with
those that bench.py extrapolates from a sample of the steps. A phase that is finished is not run again; one that was
stopped begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import bench


def timed(words: list[str]) -> float:
    """Seconds of a process from its start to its end."""
    began = time.time()
    environment = os.environ | bench.THREADS | {"BENCH_BEGAN": str(began)}
    subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.time() - began


def ours(work: Path, teacher: Path, out: Path, seed: int) -> list[list[str]]:
    """Our commands of the two phases."""
    commands = []
    for side in ("ours_sst2", "ours_sst2_phase2"):
        words = bench.ours(work, side, 0)[3:]
        for flag, value in (
            ("--output_dir", out / side),
            ("--load_teacher_ckpt_path", teacher),
            ("--load_td1_ckpt_path", out / "ours_sst2" / "phase1" / "last"),
        ):
            if flag in words:
                words[words.index(flag) + 1] = str(value)
        commands.append(["-m", "minddistill", "task-distill", *words, "--seed", str(seed)])
    return commands


def peer(work: Path, teacher: Path, out: Path, seed: int, kind: str) -> list[list[str]]:
    """The peer's commands of the two phases."""
    commands = []
    for side in (f"{kind}_sst2", f"{kind}_sst2_phase2"):
        words = bench.peer(work, side, 0)
        words[words.index("--teacher") + 1] = str(teacher)
        words[words.index("--output") + 1] = str(out / side)
        commands.append([*words, "--seed", str(seed)])
    commands[1] += ["--student", str(out / f"{kind}_sst2"), "--rate", "2e-5"]  # our phase 2's default
    return commands


def accuracy(model: Path, dev: Path, out: Path) -> float:
    """Accuracy on the dev records, by `minddistill evaluate`."""
    timed(["-m", "minddistill", "evaluate", "--model", str(model), "--data_dir", str(dev), "--output_dir", str(out)])
    (measured,) = json.loads((out / "metrics.json").read_text()).values()
    return measured["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--peer", default="plain_64", help="plain_128, plain_64 or skilled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("whole.json"))
    args = parser.parse_args()
    out = args.work / "whole" / str(args.seed)
    found = json.loads(args.output.read_text()) if args.output.is_file() else {}
    sides = {"ours": ours(args.work, args.teacher, out, args.seed)}
    sides[args.peer] = peer(args.work, args.teacher, out, args.seed, args.peer)
    students = {"ours": out / "ours_sst2_phase2" / "last", args.peer: out / f"{args.peer}_sst2_phase2"}
    for side, commands in sides.items():
        measured = found.setdefault(f"{side}, seed {args.seed}", {})
        for phase, words in zip(("phase 1", "phase 2"), commands, strict=True):
            if phase not in measured:
                if side == "ours":  # the peer's keeps nothing on the way
                    shutil.rmtree(words[words.index("--output_dir") + 1], ignore_errors=True)
                measured[phase] = round(timed(words), 1)
                args.output.write_text(json.dumps(found, indent=2) + "\n")
        if "accuracy" not in measured:
            measured["accuracy"] = round(accuracy(students[side], args.dev, out / f"{side}_dev"), 4)
            args.output.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{side}, seed {args.seed}: {json.dumps(measured)}", flush=True)


if __name__ == "__main__":
    main()
