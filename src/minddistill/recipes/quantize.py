"""A model in int8 for ONNX Runtime, and what it costs in accuracy and saves in size and time."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import runtime
from ..config import flag, parse
from ..data.loader import Loader, choose_buckets
from ..data.records import Rows
from ..errors import UserError
from ..evaluation import metrics
from ..evaluation.evaluate import predict
from ..export import directory, onnx, quantize
from ..export.session import Forward, graph_forward, read_config
from ..files import model_path
from ..models import store
from ..models.config import ModelConfig
from . import common

_CALIBRATION_BATCH = 16
# The sentence that latency is measured on: one row of this length, one thread, as often as that.
_LENGTH, _RUNS, _WARM_UP = 32, 200, 10


@dataclass
class Config:
    """Quantisation."""

    model: str = flag("", "model directory, or one with a float32 ONNX graph")
    method: Literal["dynamic", "static"] = flag(
        "dynamic", "ranges of activations: dynamic (from each call), or static (from calibration)"
    )
    output_dir: str = flag("", "where the graph, config.json and the tokenizer go")
    data_dir: str = flag("", "record directory that static ranges are calibrated on, such as the training set")
    eval_data_dir: str = flag(
        "", "record directory on which float32 and int8 are measured; empty measures size and time"
    )
    calibration: Literal["minmax", "entropy", "percentile"] = flag("minmax", "how a static range comes from the values")
    calibration_rows: int = flag(256, "rows that are calibrated on, drawn by --seed")
    keep_float: str = flag("", "layers left in float32, by name or its beginning, with commas between")
    seed: int = flag(42, "of the rows that are calibrated on")
    schema_dir: str = flag("", "path of the schema file; the record directory's own by default")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")

    @property
    def kept(self) -> list[str]:
        """The names in `keep_float`."""
        return [name.strip() for name in self.keep_float.split(",") if name.strip()]


def run(config: Config) -> dict[str, dict[str, float]]:
    """Write the int8 model; print and return the figures of float32 and int8.

    Raises:
        UserError: model, records and flags do not go together.
    """
    target = directory.check_target(config.output_dir)
    if (config.method == "static") != bool(config.data_dir):
        state = "is empty" if config.method == "static" else f"{config.data_dir} is not used"
        raise UserError(
            f"--method {config.method}: --data_dir {state}; static calibrates on its rows, dynamic does not"
        )
    runtime.start()
    with tempfile.TemporaryDirectory() as scratch:
        graph, shape, source = _float_graph(model_path(config.model), Path(scratch))
        small = _int8_graph(config, graph, shape, source)
        rows = _read(config, "eval_data_dir", shape, source) if config.eval_data_dir else None
        found = measure({"float32": graph, config.method: small}, rows, shape)

        def save(part: Path) -> None:
            shutil.copyfile(small, part / directory.ONNX_FILE)

        command = f"minddistill quantize --method {config.method}"
        directory.write(target, save, shape, source, command, _record(config, found))
    for name, values in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    print(f"{config.model}: quantised to {target}")
    return found


def _float_graph(path: Path, scratch: Path) -> tuple[Path, ModelConfig, Path]:
    """A copy of a model's float32 graph, exported where there is none; the model's configuration and directory."""
    graph = scratch / directory.ONNX_FILE
    if (path / directory.ONNX_FILE).is_file():
        shutil.copyfile(path / directory.ONNX_FILE, graph)  # ONNX Runtime's tools write beside what they read
        return graph, read_config(path), path
    weights = store.read_weights(path)
    weights.config.require_classifier(path)
    onnx.save(onnx.build(weights), graph)
    return graph, weights.config, weights.directory


def _int8_graph(config: Config, graph: Path, shape: ModelConfig, source: Path) -> Path:
    """The int8 form of a graph, written beside it."""
    small = graph.with_name("int8.onnx")
    if config.method == "dynamic":
        quantize.dynamic(graph, small, config.kept)
    else:
        rows = _read(config, "data_dir", shape, source)
        batches = calibration_batches(rows, config.calibration_rows, config.seed)
        quantize.static(graph, small, batches, config.calibration, config.kept)
    return small


def _record(config: Config, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What `minddistill.json` says of the int8 model."""
    settings: dict[str, Any] = {"method": config.method, "keep_float": config.kept}
    if config.method == "static":
        settings |= {name: getattr(config, name) for name in ("calibration", "calibration_rows", "data_dir", "seed")}
    return {"quantisation": settings, "metrics": found[config.method], "metrics_float32": found["float32"]}


def _read(config: Config, name: str, shape: ModelConfig, source: Path) -> Rows:
    options = {"kind": config.dataset_type, "schema_file": config.schema_dir, "labelled": name == "eval_data_dir"}
    return common.read_checked(getattr(config, name), f"--{name}", shape, source, **options)


def calibration_batches(rows: Rows, count: int, seed: int) -> list[quantize.Batch]:
    """Random rows in batches of one length each, so that none is padded."""
    if count < 1:
        raise UserError(f"--calibration_rows {count}: expected at least 1")
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    batches = []
    for length in np.unique(rows.length[chosen]):
        same = chosen[rows.length[chosen] == length]
        for first in range(0, len(same), _CALIBRATION_BATCH):
            part = same[first : first + _CALIBRATION_BATCH]
            ids = rows.ids[part, :length]
            batches.append((ids, np.ones_like(ids), np.arange(length) >= rows.second[part, None]))
    return batches


def measure(graphs: dict[str, Path], rows: Rows | None, shape: ModelConfig) -> dict[str, dict[str, float]]:
    """The task's metrics where there are rows, megabytes, and milliseconds of one row of 32 tokens on one thread."""
    forwards = {name: graph_forward(path, threads=1) for name, path in graphs.items()}
    latency = _milliseconds(list(forwards.values()), min(_LENGTH, shape.max_length), shape.vocab_size)
    found = {}
    for (name, forward), milliseconds in zip(forwards.items(), latency, strict=True):
        found[name] = {} if rows is None else _metrics(forward, rows, shape)
        found[name] |= {"megabytes": graphs[name].stat().st_size / 1e6, "milliseconds": milliseconds}
    return found


def _metrics(forward: Forward, rows: Rows, shape: ModelConfig) -> dict[str, float]:
    theirs = tuple(rows.meta.get("labels", shape.labels))
    if not shape.regression and theirs != shape.labels:
        raise UserError(f"{rows.directory}: labels {', '.join(theirs)}; the model's are {', '.join(shape.labels)}")
    if rows.label is None or not rows.meta.get("labelled", True):
        raise UserError(f"{rows.directory}: rows without labels; expected labelled ones (--eval_data_dir)")
    if not shape.regression:
        rows.check_classes(shape.num_labels)
    batches = Loader(rows, common.EVAL_BATCH, buckets=choose_buckets(rows.length, rows.seq_length), shuffle=False)
    names = ("input_ids", "input_mask", "segment_ids")
    logits = predict(lambda batch: forward(*(batch[name] for name in names)), batches)
    return metrics.compute(rows.meta.get("metrics", ["accuracy"]), rows.label, logits, shape.regression)


def _milliseconds(forwards: Sequence[Forward], length: int, vocabulary: int) -> list[float]:
    """Medians of runs that alternate, so that a busy machine is the same to all."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (1, length))
    batch: list[Any] = [ids, np.ones_like(ids), np.zeros_like(ids)]
    seconds = np.empty((_WARM_UP + _RUNS, len(forwards)))
    for row in seconds:
        for index, forward in enumerate(forwards):
            began = time.perf_counter()
            forward(*batch)
            row[index] = time.perf_counter() - began
    return [float(value) for value in np.median(seconds[_WARM_UP:], 0) * 1e3]


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill quantize`."""
    run(*parse("minddistill quantize", "A model in int8 for ONNX Runtime.", [Config], argv))
