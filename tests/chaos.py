"""Kill a small two-phase run at random moments, go on with it, and compare what comes out with a run left alone.

`python tests/chaos.py` prints what falls short, and last `chaos: 50/50 byte-identical`. Half of the kills fall at a
drawn time, half at the sight of a drawn temporary name, which is in the middle of writing a file. After every kill each
file under a final name must be whole; after the run that goes on to the end nothing temporary may be left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")
import minddistill  # noqa: F401  # isort: skip  (before MindSpore, which reads what it sets)

import small

from minddistill.errors import UserError
from minddistill.files import checksum
from minddistill.models import store
from minddistill.train.checkpoint import Checkpoints

# Kills in a row before the run that is let go on to its end.
_CHAINS = (1, 1, 1, 2)
_RESULTS = ("phase1/last", "last", "best")
_LONGEST_RUN = 600
# Seconds between two looks for temporary names, which stand for a millisecond or more.
_GLANCE = 0.0005


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after the first line of the log, or at the sight of the nth temporary name."""

    seconds: float = float("inf")
    name: int = sys.maxsize


@dataclass(frozen=True)
class Watched:
    """What was seen of a run: whether it was killed, its exit code, its seconds from the first line, its temporary names."""

    killed: bool
    code: int
    seconds: float
    names: int


def arguments(data: Path, teacher: Path, out: Path) -> list[str]:
    """The run: two phases that save at every step, and an evaluation of two sets."""
    flags = {
        "load_teacher_ckpt_path": teacher,
        "train_data_dir": data / "train",
        "eval_data_dir": f"{data / 'dev'},{data / 'test'}",
        "output_dir": out,
        "student": "test-2l-32",
        "init_from_teacher": "1,3",
        "td_phase1_epoch_size": 2,
        "td_phase2_epoch_size": 2,
        "learning_rate": 2e-3,
        "save_ckpt_step": 1,
        "max_ckpt_num": 2,
        "eval_steps": 4,
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return ["task-distill", *words, *small.QUICK]


def start(words: Sequence[str], out: Path, prefix: Sequence[str]) -> subprocess.Popen:
    """Start the command in a session of its own, which can be killed as a whole."""
    line = [*prefix, sys.executable, "-m", "minddistill", *words]
    with open(out.with_suffix(".out"), "ab") as said:
        return subprocess.Popen(line, stdout=said, stderr=said, start_new_session=True)


def run(words: Sequence[str], out: Path, moment: Moment, prefix: Sequence[str] = ()) -> Watched:
    """Start the command and kill it, with -9, at a moment; a run that ends before is not killed."""
    log = out / "log.txt"
    before = log.stat().st_size if log.is_file() else 0
    process = start(words, out, prefix)
    began, names, seen, killed = 0.0, 0, set(), False
    while process.poll() is None:
        if not began:
            began = time.perf_counter() if log.is_file() and log.stat().st_size > before else 0.0
            time.sleep(0.002)
            continue
        present = temporary(out)
        names, seen = names + len(present - seen), present
        elapsed = time.perf_counter() - began
        if elapsed > min(moment.seconds, _LONGEST_RUN) or names >= moment.name:
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
            break
        time.sleep(_GLANCE)
    return Watched(killed, process.wait(), time.perf_counter() - began, names)


def temporary(directory: Path) -> set[str]:
    """All temporary names under a directory."""
    found = set()
    for place, directories, files in os.walk(directory):
        found |= {os.path.join(place, name) for name in directories + files if name.endswith(".part")}
    return found


def not_whole(out: Path) -> Iterator[str]:
    """What a later command would take for whole, and is not."""
    for directory in out.rglob("checkpoints"):
        _, broken = Checkpoints(directory, 1).newest()
        yield from (f"{directory / name}: broken" for name in broken)
    for path in out.rglob("*.json"):
        if not _temporary(path, out):
            try:
                json.loads(path.read_text())
            except ValueError as error:
                yield f"{path}: {error}"
    for path in [*out.rglob("best*"), *out.rglob("last*")]:
        if not _temporary(path, out):
            try:
                store.build(store.read_weights(path))
            except UserError as error:
                yield f"{path}: {error}"
    for note in out.rglob("shard_*.json"):
        known = json.loads(note.read_text())
        if not _temporary(note, out) and checksum(note.with_suffix(".bin")) != known["crc32c"]:
            yield f"{note}: not the checksum of its shard"


def _temporary(path: Path, out: Path) -> bool:
    return any(part.endswith(".part") for part in path.relative_to(out).parts)


def results(out: Path) -> dict[str, bytes]:
    """What must not depend on kills: weights, projection, and what was measured."""
    files = [f"{name}/model.safetensors" for name in _RESULTS]
    files += ["phase1/last/fit_dense.safetensors", "evaluation/metrics.json", "evaluation/predictions_dev.tsv"]
    return {name: (out / name).read_bytes() for name in files}


def other(out: Path, wanted: dict[str, bytes]) -> list[str]:
    """In what a finished run is not like the one left alone."""
    left = [f"{name}: left behind" for name in sorted(temporary(out))]
    return left + [f"{out / name}: other bytes" for name, value in results(out).items() if value != wanted[name]]


def moments(generator: random.Random, alone: Watched) -> Iterator[Moment]:
    """Times and temporary names in turn, over the whole of a run."""
    while True:
        yield Moment(name=generator.randint(1, alone.names))
        yield Moment(seconds=generator.uniform(0, alone.seconds))


def chain(words: Sequence[str], out: Path, when: Sequence[Moment], prefix: Sequence[str] = ()) -> tuple[int, int, list]:
    """Kill a run and those that go on with it, then let one end.

    Returns:
        Kills, how many of them left a temporary name behind, and what falls short.
    """
    kills = inside = 0
    wrong: list[str] = []
    for moment in when:
        watched = run(words, out, moment, prefix)
        if not watched.killed:
            break
        kills, inside = kills + 1, inside + bool(temporary(out))
        wrong += [f"{moment}: {line}" for line in not_whole(out)]
    if code := start(words, out, prefix).wait(_LONGEST_RUN):
        wrong.append(f"{when}: exit code {code}, see {out.with_suffix('.out')}")
    return kills, inside, wrong


def chaos(data: Path, teacher: Path, work: Path, kills: int, seed: int, prefix: Sequence[str] = ()) -> tuple[int, int]:
    """Do it all.

    Returns:
        How many kills were followed by the bytes of the run left alone, and how many fell in the middle of a save.
    """
    alone = run(arguments(data, teacher, work / "alone"), work / "alone", Moment(), prefix)
    assert alone.code == 0 and not list(not_whole(work / "alone")), f"see {work / 'alone.out'}"
    wanted = results(work / "alone")
    drawn = moments(random.Random(seed), alone)
    done = good = inside = 0
    for number, length in enumerate(itertools.cycle(_CHAINS if kills > 2 else (kills,))):
        if done >= kills:
            return good, inside
        out = work / f"run{number}"
        when = [next(drawn) for _ in range(min(length, kills - done))]
        killed, landed, wrong = chain(arguments(data, teacher, out), out, when, prefix)
        wrong += [] if wrong else other(out, wanted)
        done, inside, good = done + killed, inside + landed, good + (0 if wrong else killed)
        print(*wrong, f"{done} kills, {inside} in the middle of a save; {good} byte-identical", sep="\n", flush=True)
        if not wrong:
            shutil.rmtree(out)
    raise AssertionError


def main() -> int:
    """Entry of the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix", default="", help="words before each command, such as 'taskset -c 0'")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos_") as name:
        work = Path(name)
        words = small.vocabulary(_made(work / "vocabulary"))
        data = small.records(work / "data", small.text(_made(work / "text")), words)
        teacher = small.teacher(work / "teacher", data, small.encoder(work / "encoder", words))
        good, inside = chaos(data, teacher, work, chosen.kills, chosen.seed, chosen.prefix.split())
    print(f"{inside} of {chosen.kills} kills fell in the middle of a save")
    print(f"chaos: {good}/{chosen.kills} byte-identical")
    return 0 if good == chosen.kills else 1


def _made(path: Path) -> Path:
    path.mkdir()
    return path


if __name__ == "__main__":
    sys.exit(main())
