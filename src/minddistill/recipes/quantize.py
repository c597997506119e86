"""A model in int8 for ONNX Runtime, and what it costs in accuracy and saves in size and time."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .. import runtime
from ..bench.measure import INPUTS, Local, alternate, latency
from ..config import flag, parse, unusual
from ..data.loader import Loader, choose_buckets
from ..data.records import Rows
from ..errors import UserError
from ..evaluation.evaluate import predict
from ..export import directory, onnx, quantize
from ..export.arrays import read_arrays
from ..export.session import Forward, graph_forward, read_config, runtime_session
from ..files import model_path, recover_directory, refuse_damaged
from ..models import store
from ..models.config import ModelConfig
from . import common, qat
from .flags import StepFlags
from .judging import EVAL_BATCH, scored
from .labels import check_problem, in_label_order, outputs_of
from .teacher_cache import SETTINGS as TEACHER_CACHES

_CALIBRATION_BATCH = 16
# The sentence that latency is measured on: one row of this length, one thread, as often as that.
_LENGTH, _RUNS = 32, 200


@dataclass
class Config:
    """Quantisation."""

    model: str = flag("", "model directory, or one with a float32 ONNX graph (not for qat)")
    method: Literal["dynamic", "static", "qat"] = flag(
        "dynamic",
        "ranges of activations: dynamic (from each call), static (from calibration), or qat (static, and the model is "
        "trained to compute in int8)",
    )
    output_dir: str = flag("", "where the graph, config.json and the tokenizer go")
    data_dir: str = flag("", "record directory to calibrate and train on, such as the training set")
    eval_data_dir: str = flag(
        "", "record directory on which float32 and int8 are measured; empty measures size and time"
    )
    keep_float: str = flag("", "layers left in float32, by name or its beginning, with commas between")
    schema_dir: str = flag("", "path of the schema file; the record directory's own by default")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")

    @property
    def kept(self) -> list[str]:
        """The names in `keep_float`."""
        return [name.strip() for name in self.keep_float.split(",") if name.strip()]


@dataclass
class Calibration:
    """Calibration (--method static and qat)."""

    calibration: Literal["minmax", "entropy", "percentile"] = flag("minmax", "how a static range comes from the values")
    calibration_rows: int = flag(256, "rows that are calibrated on, drawn by --seed")
    seed: int = flag(42, "of the rows that are calibrated on, and of the training")


# The groups of flags that each method reads beside `Config`.
_READ: dict[str, tuple[type, ...]] = {
    "dynamic": (),
    "static": (Calibration,),
    "qat": (Calibration, qat.Training, StepFlags),
}


def run(
    config: Config, calibration: Calibration, training: qat.Training, step: StepFlags
) -> dict[str, dict[str, float]]:
    """Write the int8 model; print and return the figures of float32 and int8.

    Raises:
        UserError: model, records and flags do not go together.
        KeyboardInterrupt: the training was stopped by a signal, with its state saved.
    """
    target = directory.check_target(config.output_dir)
    if target.exists() and target.resolve() == model_path(config.model).resolve():
        raise UserError(f"--output_dir {target}: is --model, which would be lost; expected another directory")
    _check_flags(config, calibration, training, step)
    runtime.start()
    with tempfile.TemporaryDirectory() as scratch:
        graph, shape, source = _float_graph(model_path(config.model), Path(scratch))
        small = graph.with_name("int8.onnx")
        evaluated = _evaluated(config, shape, source)
        if config.method == "dynamic":
            quantize.dynamic(graph, small, config.kept)
        else:
            rows = _read(config, "data_dir", shape, source)
            batches = calibration_batches(rows, calibration.calibration_rows, calibration.seed)
            quantize.static(graph, small, batches, calibration.calibration, config.kept)
        if config.method == "qat":
            best = qat.train(shape, quantize.grids(small, shape), (config, calibration, training, step))
            trained, shape, _ = _exported(best, small.with_name("trained.onnx"))
            quantize.refill(small, trained, small)
        found = measure({"float32": graph, config.method: small}, evaluated, shape)

        def save(part: Path) -> None:
            shutil.copyfile(small, part / directory.ONNX_FILE)

        settings = {"method": config.method, "keep_float": config.kept}
        if config.method != "dynamic":
            settings |= {"data_dir": config.data_dir} | asdict(calibration)
        if config.method == "qat":
            settings |= {"teacher": training.load_teacher_ckpt_path, "weights": str(best)}
        record = {"quantisation": settings, "metrics": found[config.method], "metrics_float32": found["float32"]}
        if not store.read_record(source).get("parameters"):
            record["parameters"] = sum(value.size for value in read_arrays(graph).values())
        directory.write(target, save, shape, source, f"minddistill quantize --method {config.method}", record)
    for name, values in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    print(f"{config.model}: quantised to {target}")
    return found


def _check_flags(config: Config, calibration: Calibration, training: qat.Training, step: StepFlags) -> None:
    """See that the method reads what was given.

    Raises:
        UserError: a flag has no part in the method, or records are missing.
    """
    if config.method == "qat":
        training.optim()
        if not training.load_teacher_ckpt_path and training.teacher_cache in TEACHER_CACHES:
            raise UserError(
                "--method qat: --teacher is empty; expected the fine-tuned teacher, or its --teacher_cache DIR"
            )
    if config.method != "dynamic" and not config.data_dir:
        raise UserError(f"--method {config.method}: --data_dir is empty; expected records to calibrate on")
    unread = {
        name: value
        for group in (calibration, training, step)
        if type(group) not in _READ[config.method]
        for name, value in unusual(group).items()
    }
    unread |= {"data_dir": config.data_dir} if config.method == "dynamic" and config.data_dir else {}
    if unread:
        told = ", ".join(f"--{name} {value}" for name, value in unread.items())
        raise UserError(f"--method {config.method}: {told} is not used; leave it out, or give another --method")
    path = model_path(config.model)
    if config.method == "qat" and (path / directory.ONNX_FILE).is_file():
        raise UserError(f"--method qat: {path} holds an ONNX graph; expected the model directory it was exported from")


def _float_graph(path: Path, scratch: Path) -> tuple[Path, ModelConfig, Path]:
    """A copy of a model's float32 graph, exported where there is none; the model's configuration and directory."""
    graph = scratch / directory.ONNX_FILE
    recover_directory(path)
    if (path / directory.ONNX_FILE).is_file():
        refuse_damaged(path)
        runtime_session(path / directory.ONNX_FILE)  # which sees that it is a graph
        shutil.copyfile(path / directory.ONNX_FILE, graph)  # ONNX Runtime's tools write beside what they read
        return graph, read_config(path), path
    return _exported(path, graph)


def _exported(path: Path, graph: Path) -> tuple[Path, ModelConfig, Path]:
    weights = store.read_weights(path)
    weights.config.require_classifier(path)
    store.build(weights)  # which sees that all are there, of the right shapes, and numbers
    onnx.save(onnx.build(weights), graph)
    return graph, weights.config, weights.directory


def _read(config: Config, name: str, shape: ModelConfig, source: Path) -> Rows:
    options = {"kind": config.dataset_type, "schema_file": config.schema_dir, "labelled": name == "eval_data_dir"}
    return common.read_checked(getattr(config, name), f"--{name}", shape, source, **options)


def _evaluated(config: Config, shape: ModelConfig, source: Path) -> Rows | None:
    """The rows of `--eval_data_dir`, where there is one, which the model can be measured on."""
    if not config.eval_data_dir:
        return None
    rows = _read(config, "eval_data_dir", shape, source)
    check_problem(shape, rows, "the model")
    rows.require_labels("--eval_data_dir")
    rows.check_classes(shape.num_labels)
    outputs_of(shape, rows, "the model")
    return rows


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
    ids = np.random.default_rng(0).integers(0, shape.vocab_size, (1, min(_LENGTH, shape.max_length)))
    sentence = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    seconds = alternate([Local(*item) for item in forwards.items()], sentence, _RUNS)
    found = {}
    for name, forward in forwards.items():
        found[name] = {} if rows is None else _metrics(forward, rows, shape)
        found[name] |= {"megabytes": graphs[name].stat().st_size / 1e6}
        found[name] |= {"milliseconds": latency(seconds[name])["p50_ms"]}
    return found


def _metrics(forward: Forward, rows: Rows, shape: ModelConfig) -> dict[str, float]:
    batches = Loader(rows, EVAL_BATCH, buckets=choose_buckets(rows.length, rows.seq_length), shuffle=False)
    logits = predict(lambda batch: forward(*(batch[name] for name in INPUTS)), batches)
    return scored(rows, shape, in_label_order(logits, shape, rows, "the model"))


GROUPS = [Config, Calibration, qat.Training, StepFlags]


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill quantize`."""
    run(*parse("minddistill quantize", "A model in int8 for ONNX Runtime.", GROUPS, argv))
