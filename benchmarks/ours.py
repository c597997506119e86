"""MindDistill's side: the stage that the command line would run, with every part of it timed.

Prints one JSON object of seconds; run by bench.py. Times so many steps in the order of training, after one of each
length to compile it; everything else (start, reading, cache, compilation, saving) is what a whole run does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from minddistill import runtime
from minddistill.config import parse
from minddistill.recipes import general_distill, task_distill
from minddistill.recipes.run import open_run
from minddistill.recipes.stage import Stage
from minddistill.train.loop import Prefetched


@contextmanager
def opened(which: str, argv: list[str]) -> Iterator[Stage]:
    """The stage that a command would run."""
    recipe = general_distill if which == "general" else task_distill
    *groups, run_flags, step_flags = parse("bench", "", recipe.GROUPS, argv)
    with open_run(run_flags, step_flags, runtime.start("CPU")) as run:
        if which == "general":
            yield general_distill.prepare(run, *groups)
            return
        job = task_distill.prepare(run, *groups)
        first = Path(job.config.load_td1_ckpt_path)
        yield task_distill.phase_one(job) if which == "phase1" else task_distill.phase_two(job, first)


def main() -> None:
    which, sample, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    with opened(which, argv) as stage:
        print(json.dumps(measured(stage, sample)))


def measured(stage: Stage, sample: int) -> dict[str, Any]:
    """Seconds of the parts of a stage, of which so many steps are run."""
    ready = time.time() - float(os.environ["BENCH_BEGAN"])
    at = time.perf_counter()
    work = stage.build()
    cell, train = work.cell, work.batches
    caching = time.perf_counter() - at
    total = len(train) * stage.epochs
    _, _, step = stage.step_of(cell, total)
    lengths = [planned.length for planned in train.plan(0)]
    compiling, times, tokens = {}, defaultdict(list), 0
    ahead = Prefetched(train)
    counted = waited = 0.0
    for batch in ahead.epoch(0):
        length = batch["input_ids"].shape[1]
        real = int(batch["input_mask"].asnumpy().sum())
        at = time.perf_counter()
        step(batch)[0].asnumpy()
        took = time.perf_counter() - at
        if length not in compiling:
            compiling[length] = took
            waited = ahead.waited
        else:
            times[length].append(took)
            tokens, counted = tokens + real, counted + took
        if sum(map(len, times.values())) >= sample and all(times[each] for each in set(lengths)):
            break
    at = time.perf_counter()
    work.save("last", {})
    saving = time.perf_counter() - at
    epoch = sum(float(np.mean(times[length])) for length in lengths)
    return {
        "startup": ready + caching + sum(compiling.values()) + saving,
        "ready": ready,
        "cache": caching,
        "compile": sum(compiling.values()),
        "first_step": ready + caching + next(iter(compiling.values())),
        "shapes": sorted(compiling),
        "step": epoch / len(train),
        "steps": total,
        "measured": sum(map(len, times.values())),
        "tokens_per_second": tokens / counted if counted else 0.0,
        "data_wait": (ahead.waited - waited) / counted if counted else 0.0,
    }


if __name__ == "__main__":
    main()
