"""Measures MindDistill against two PyTorch loops, side by side, and writes results.json.

    python benchmarks/bench.py --data DIR [--work runs/bench] [--cases T1,T2] [--rounds 3] [--steps 70]

Every round runs each side once, in turn; a case is the median over rounds of (peer's time / our time). What a process
does once (start, cache, compilation, saving) is timed whole, steps are timed for a sample of the epoch and multiplied.
The teacher cache is written in the first round, and its time counts in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
THREADS = {"OMP_NUM_THREADS": "2"}
# Task distillation: batch, epochs, and where the student starts, the same on both sides.
_TASK = ["--student", "minilm-l3", "--init_from_teacher", "1,3,5", "--batch_size", "32", "--do_eval", "false"]
_FAST = ["--compute_type", "bfloat16"]

# Cases in tokens a second have nothing to multiply, and steps that are all alike.
_RATE_STEPS = 25

CASES = {
    "T1": ("phase 1, SST-2, against plain at 128", "ours_sst2", "plain_128_sst2", 12.0),
    "T2": ("phase 1, SST-2, against plain at 64", "ours_sst2", "plain_64_sst2", 6.0),
    "T3": ("phase 1, SST-2, against skilled", "ours_sst2", "skilled_sst2", 2.0),
    "T4": ("phase 1, QNLI, against plain at 128", "ours_qnli", "plain_128_qnli", 4.0),
    "T5": ("phase 2, SST-2, cached logits, against plain at 64", "ours_sst2_phase2", "plain_64_sst2_phase2", 6.0),
    "G1": ("general distillation, packed 128, against plain", "ours_wiki", "plain_128_wiki", 1.2),
    "G2": ("its share of the float32 matrix-product rate", "ours_wiki_float32", "matmul", 0.6),
}


def ours(work: Path, side: str, steps: int) -> list[str]:
    """The command of one of our sides."""
    task = "wiki" if "wiki" in side else "QNLI" if "qnli" in side else "SST-2"
    out = ["--output_dir", str(work / "out" / side), "--load_teacher_ckpt_path", str(work / f"teacher_{task}")]
    out += ["--enable_data_sink", "false", "--save_ckpt_step", "1000000", "--resume", "false"]
    if task == "wiki":
        out += ["--data_dir", str(work / "wiki"), "--student", "minilm-l3", "--init_from_teacher", "1,3,5"]
        out += ["--batch_size", "32"] + ([] if "float32" in side else _FAST)
        return [str(HERE / "ours.py"), "general", str(steps), *out]
    out += [*_TASK, *_FAST, "--train_data_dir", str(work / task / "train")]
    if side.endswith("phase2"):
        first = ["--load_td1_ckpt_path", str(work / "out" / "ours_sst2" / "phase1" / "last")]
        return [str(HERE / "ours.py"), "phase2", str(steps), *out, *first, "--td_phase2_epoch_size", "3"]
    epochs = ["--td_phase1_epoch_size", "3", "--td_phase2_epoch_size", "0"]
    return [str(HERE / "ours.py"), "phase1", str(steps), *out, *epochs]


def peer(work: Path, side: str, steps: int) -> list[str]:
    """The command of one of the peers' sides, such as plain_64_sst2_phase2."""
    kind, *rest = side.split("_")
    length = rest.pop(0) if kind == "plain" else "128"
    rows = {"sst2": "SST-2", "qnli": "QNLI", "wiki": "wiki"}[rest[0]]
    stage = "general" if rows == "wiki" else "phase2" if rest[-1] == "phase2" else "phase1"
    words = ["--kind", kind, "--stage", stage, "--length", length, "--steps", str(steps), "--epochs", "3"]
    words += ["--rows", str(work / f"{rows}.npz"), "--teacher", str(work / f"teacher_{rows}")]
    return [str(HERE / "peer.py"), *words, "--output", str(work / "out" / side)]


def run(words: list[str]) -> dict:
    """Run one side; its JSON, the last line it prints."""
    began = time.time()
    environment = os.environ | THREADS | {"BENCH_BEGAN": str(began)}
    done = subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    found["seconds"] = found["startup"] + found["step"] * found["steps"] if "step" in found else 0.0
    return found


def machine() -> str:
    """Processor, cores and library versions."""
    from importlib.metadata import version

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0] if named else model
    libraries = ", ".join(f"{name} {version(name)}" for name in ("mindspore", "torch"))
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {libraries}"


def compare(name: str, rounds: list[dict[str, dict]]) -> dict:
    """One line of the results: the ratio of the two sides over the rounds."""
    what, mine, theirs, target = CASES[name]
    if name == "G2":
        ratios = [r[mine]["tokens_per_second"] * r["matmul"]["flops_per_token"] / r["matmul"]["rate"] for r in rounds]
        ours_is = statistics.median(r[mine]["tokens_per_second"] for r in rounds)
        peer_is, unit = statistics.median(r["matmul"]["rate"] for r in rounds) / 1e9, "tokens/s; GFLOP/s"
    elif name == "G1":
        ratios = [r[mine]["tokens_per_second"] / r[theirs]["tokens_per_second"] for r in rounds]
        ours_is, peer_is = (statistics.median(r[s]["tokens_per_second"] for r in rounds) for s in (mine, theirs))
        unit = "tokens/s"
    else:
        ratios = [r[theirs]["seconds"] / r[mine]["seconds"] for r in rounds]
        ours_is, peer_is = (statistics.median(r[s]["seconds"] for r in rounds) for s in (mine, theirs))
        unit = "s, from records on disk to the student on disk"
    ratio = statistics.median(ratios)
    return {
        "id": name,
        "ratio": round(ratio, 2),
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "target": target,
        "ours": round(ours_is, 1),
        "peer": round(peer_is, 1),
        "note": f"{what}; {unit}; {len(rounds)} rounds",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/SST-2, glue/QNLI and wiki/*.txt")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--cases", default=",".join([*CASES, "D1"]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=70, help="steps timed on each side in each round")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    cases = args.cases.split(",")
    if not (args.work / "written.json").is_file() or "D1" in cases:
        subprocess.run([sys.executable, str(HERE / "inputs.py"), str(args.data), str(args.work)], check=True)
    sides = list(dict.fromkeys(side for name in cases if name in CASES for side in CASES[name][1:3]))
    if "ours_sst2_phase2" in sides and "ours_sst2" not in sides:
        sides.insert(0, "ours_sst2")  # whose student phase 2 goes on with
    for side in sides:
        shutil.rmtree(args.work / "out" / side, ignore_errors=True)
    rounds: list[dict[str, dict]] = []
    for number in range(args.rounds):
        rounds.append({})
        for side in sides:
            words = [str(HERE / "matmul.py")] if side == "matmul" else None
            steps = _RATE_STEPS if "wiki" in side else args.steps
            words = words or (ours if side.startswith("ours") else peer)(args.work, side, steps)
            found = run(words)
            if number and "cache" in found:
                found["seconds"] += rounds[0][side]["cache"] - found["cache"]
            rounds[-1][side] = found
            print(f"round {number + 1}, {side}: {json.dumps(found)}", flush=True)
    for side in sides:
        shutil.rmtree(args.work / "out" / side / "teacher_cache", ignore_errors=True)
    results = [compare(name, rounds) for name in cases if name in CASES]
    if "D1" in cases:
        written = json.loads((args.work / "written.json").read_text())
        for key, target in (("sentences_per_second", 20000), ("megabytes_per_second", 3)):
            note = f"{key.replace('_', ' ')} of records written, process start included; SST-2 and wiki text"
            result = {"id": "D1", "ratio": round(written[key] / target, 2), "spread": [], "target": target}
            results.append(result | {"ours": round(written[key], 1), "peer": target, "note": note})
    earlier = json.loads(args.output.read_text()) if args.output.is_file() else {"machine": "", "cases": []}
    names = {result["id"] for result in results}
    kept = [{"machine": earlier["machine"], **case} for case in earlier["cases"] if case["id"] not in names]
    ordered = sorted(kept + results, key=lambda case: [*CASES, "D1"].index(case["id"]))
    args.output.write_text(json.dumps({"machine": machine(), "cases": ordered}, indent=2) + "\n")
    for result in results:
        print(f"{result['id']}: {result['ratio']} ({result['target']} wanted), {result['note']}")


if __name__ == "__main__":
    main()
