"""Subjects: processes of their own, in turn, on the same cores; failures are told."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from small import command

from minddistill.bench import measure
from minddistill.errors import UserError
from minddistill.export.session import Session, describe
from minddistill.models import store

UNKNOWN = {"tokenizer_from": None, "command": "test", "parents": {}, "data": {}, "metrics": {}}
BATCH = {name: np.full((2, 3), index, np.int32) for index, name in enumerate(measure.INPUTS, 1)}


class Sums:
    """A model whose logits are sums of its inputs; it notes when it ran."""

    def __init__(self, path, threads):
        if path == "absent":
            raise UserError("absent: no such model")
        self.path, self.threads = path, threads

    def predict(self, input_ids, input_mask, segment_ids):
        if self.path == "mortal":
            os._exit(7)
        with open(self.path, "a") as log:
            log.write(f"{time.monotonic_ns()}\n")
        return (input_ids + input_mask + segment_ids).sum(1)


def facts(model):
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return {
        "threads": model.threads,
        "cores": sorted(cores),
        "process": os.getpid(),
        "omp": os.environ["OMP_NUM_THREADS"],
    }


def test_models_take_turns_in_processes_of_their_own(tmp_path):
    paths = {name: str(tmp_path / name) for name in ("a", "b")}
    with measure.subjects(paths, Sums, facts, 1) as opened:
        (first, mine), (second, theirs) = opened.values()
        assert first.predict(BATCH).tolist() == [18, 18]
        seconds = measure.alternate([first, second], BATCH, 9, warm_up=4, rounds=3)
        peaks = [first.peak_megabytes(), second.peak_megabytes()]
        processes = [first.process, second.process]
    assert all(process.exitcode == 0 for process in processes)
    assert len({mine["process"], theirs["process"], os.getpid()}) == 3
    assert mine["cores"] == theirs["cores"] == measure.pinned_cores(1)
    assert mine["threads"] == 1 and mine["omp"] == "1"
    assert all(10 < peak < 1000 for peak in peaks)
    assert {name: (len(values), bool((values > 0).all())) for name, values in seconds.items()} == dict.fromkeys(
        "ab", (9, True)
    )
    calls = sorted((int(line), name) for name in "ab" for line in (tmp_path / name).read_text().split())
    turns = "".join(name for _, name in calls)
    assert turns == "a" + 7 * "a" + 7 * "b" + 2 * (5 * "a" + 5 * "b")


def test_failures_name_the_model(tmp_path):
    with pytest.raises(UserError, match="absent: no such model"), measure.subjects({"x": "absent"}, Sums, facts, 1):
        pass
    dying = pytest.raises(UserError, match="mortal: its process ended with code 7")
    with dying, measure.subjects({"mortal": "mortal"}, Sums, facts, 1) as opened:
        opened["mortal"][0].predict(BATCH)
    with pytest.raises(UserError, match="--threads 4000: this process may use"):
        measure.pinned_cores(4000)


def test_percentiles_are_in_milliseconds():
    found = measure.latency(np.arange(1, 102) / 1000)
    assert found == pytest.approx(
        {"mean_ms": 51, "std_ms": 29.3002, "p50_ms": 51, "p95_ms": 96, "p99_ms": 100}, rel=1e-4
    )


def test_an_onnx_models_process_does_without_mindspore(tmp_path, tiny_encoder):
    """Its memory is its own, and one of MindSpore's models sets its threads before MindSpore reads them."""
    pytest.importorskip("onnxruntime")
    weights = store.read_weights(tiny_encoder)
    weights = store.Weights(weights.config.with_(labels=("no", "yes")), weights.values, weights.source)
    store.save(tmp_path / "model", store.build(weights, seed=1, may_miss=("classifier.", "pooler.")), **UNKNOWN)
    assert command("export", "--model", tmp_path / "model", "--output_dir", tmp_path / "onnx") == 0
    paths = {"onnx": str(tmp_path / "onnx"), "mindspore": str(tmp_path / "model")}
    with measure.subjects(paths, Session.open, describe, 1) as opened:
        kinds = {name: facts.kind for name, (_, facts) in opened.items()}
        maps = {name: Path(f"/proc/{subject.process.pid}/maps").read_text() for name, (subject, _) in opened.items()}
    assert kinds == {"onnx": "onnx", "mindspore": "mindspore"}
    assert {name: "libmindspore" in text for name, text in maps.items()} == {"onnx": False, "mindspore": True}
