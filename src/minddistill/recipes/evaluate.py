"""Measure a model on record directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .. import runtime
from ..bench.report import Column, Section, Table, write_report
from ..config import flag, parse
from ..data.loader import choose_buckets
from ..data.records import Rows
from ..data.tasks import TASKS
from ..errors import UserError
from ..evaluation.evaluate import read_predictions, write_submission
from ..export.session import ONNX_FILE, Session
from ..files import checksum, model_path, read_json, remove_parts, write_json
from ..models import store
from ..models.heads import TextModel
from ..problems import MULTI
from . import common, comparison, report
from .judging import Evaluator, truth_of
from .labels import align_labels, aligned_session

_NOTES = "evaluated.json"


@dataclass
class Config:
    """Evaluation."""

    model: str = flag("", "model directory, MindSpore's or ONNX, or .ckpt")
    data_dir: str = flag("", "record directory, or several with commas between (MNLI's matched and mismatched)")
    schema_dir: str = flag("", "path of the schema file; the record directory's own by default")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    verify_records: bool = flag(True, "check the checksums of the records")
    output_dir: str = flag("", "where metrics.json, predictions and evaluation.html go; empty prints only")
    threshold: float = flag(
        0.0,
        "least probability of a label that is predicted: a row without one is out of scope; 0 for none, which in a "
        "multi-label task stands for 0.5",
    )
    submission: bool = flag(False, "write GLUE's test file of each record directory into output_dir")
    task_name: str = flag("", "the records' task; checked where given")
    num_attention_heads: int = flag(12, "attention heads of a .ckpt that has no config.json beside it")
    device_target: Literal["", "Ascend", "GPU", "CPU"] = flag("", "Ascend, GPU or CPU; empty takes the best there is")
    device_id: int = flag(0, "number of the device")


def run(config: Config, flag_name: str = "--data_dir") -> dict[str, dict[str, float]]:
    """Print and return the metrics of each record directory, by its name.

    With `--output_dir`, what was measured there before, of the same model on the same records, is not measured again.

    Args:
        flag_name: the flag that named the directories, for messages.

    Raises:
        UserError: model and records do not go together.
    """
    if config.submission and not config.output_dir:
        raise UserError("--submission true: --output_dir is empty; expected where to write the files")
    weights, session = _opened(config)
    directories = [name.strip() for name in config.data_dir.split(",") if name.strip()]
    if not directories:
        raise UserError(f"{flag_name} is empty; expected a record directory")
    if len({Path(directory).name for directory in directories}) < len(directories):
        raise UserError(f"{flag_name} {config.data_dir}: two directories of one name; evaluate them one by one")
    if config.output_dir:
        remove_parts(Path(config.output_dir))
    measured = [_measure(config, weights, session, name, flag_name) for name in directories]
    found = {rows.directory.name: scores for rows, scores in measured}
    if config.output_dir:
        write_json(Path(config.output_dir) / "metrics.json", found)
        print(f"Report: {_report(config, weights, measured)}")
    return found


def _opened(config: Config) -> tuple[store.Weights, Session | None]:
    """The model; of one whose graph ONNX Runtime runs, the outline, and what runs it."""
    path = model_path(config.model)
    if not config.model or not (path / ONNX_FILE).is_file():
        runtime.start(config.device_target, config.device_id)
        weights = store.read_weights(config.model, config.num_attention_heads)
        weights.config.require_classifier(config.model)
        return weights, None
    if config.device_target not in ("", "CPU"):
        raise UserError(
            f"--device_target {config.device_target}: {path / ONNX_FILE} is measured on the CPU; leave the flag out"
        )
    session = Session.open(path)
    content = "-".join(str(checksum(path / name)) for name in (ONNX_FILE, "config.json"))
    return store.Weights(session.config, {}, path, outline=content), session


def _measure(
    config: Config, weights: store.Weights, session: Session | None, directory: str, flag_name: str
) -> tuple[Rows, dict[str, float]]:
    """The rows of a record directory and the metrics on them."""
    options = {"kind": config.dataset_type, "schema_file": config.schema_dir, "verify": config.verify_records}
    rows = common.read_checked(directory, flag_name, weights.config, weights.directory, config.task_name, **options)
    if not config.output_dir:
        return rows, _metrics(config, weights, session, rows)
    notes, name = Path(config.output_dir) / _NOTES, rows.directory.name
    known = read_json(notes, "the notes of earlier evaluations") if notes.is_file() else {}
    of = {"model": weights.fingerprint(), "records": rows.files, "submission": config.submission}
    of |= {"threshold": config.threshold} if config.threshold else {}
    if known.get(name, {}).get("of") == of and _predictions(config, rows).is_file():
        print(f"{directory}: measured before, {_shown(known[name]['metrics'])}")
        return rows, known[name]["metrics"]
    found = _metrics(config, weights, session, rows)
    write_json(notes, known | {name: {"of": of, "metrics": found}})
    return rows, found


def _predictions(config: Config, rows: Rows) -> Path:
    return Path(config.output_dir) / f"predictions_{rows.directory.name}.tsv"


def _shown(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.6f}" for name, value in found.items()) or "no labels"


def _metrics(config: Config, weights: store.Weights, session: Session | None, rows: Rows) -> dict[str, float]:
    shape, directory = weights.config, rows.directory
    if session:
        model: Session | TextModel = aligned_session(session, rows)
    else:
        model = store.build(align_labels(weights, rows, print))
    rows.check_classes(model.config.num_labels)
    _check_threshold(config, rows)
    buckets = choose_buckets(rows.length, rows.seq_length, most=3)
    evaluator = Evaluator(model, rows, buckets, config.threshold)
    logits = evaluator.logits()
    found = evaluator.metrics(logits)
    print(f"{directory}: {len(rows)} rows{common.left_out(rows)}, {_shown(found)}")
    if config.output_dir:
        out = Path(config.output_dir)
        evaluator.write(_predictions(config, rows))
        if config.submission:
            task = TASKS.get(rows.meta.get("task", ""))
            name = task.submission.get(rows.meta.get("split", "")) if task else None
            if name is None:
                raise UserError(f"{directory}: not a GLUE test split; --submission needs one that prepare-task wrote")
            write_submission(out / name, logits, shape.regression, rows.meta["raw_labels"])
    return found


def _check_threshold(config: Config, rows: Rows) -> None:
    """See that a threshold can decide something.

    Raises:
        UserError: it is no probability, or the records have no label for what is below it.
    """
    if not config.threshold:
        return
    if config.threshold >= 1:
        raise UserError(f"--threshold {config.threshold:g}: expected a probability below 1")
    if rows.problem != MULTI and rows.out_of_scope is None:
        raise UserError(
            f"--threshold {config.threshold:g}: {rows.directory} has no label for rows out of scope; prepare the records "
            "with --out_of_scope LABEL"
        )


def _report(config: Config, weights: store.Weights, measured: Sequence[tuple[Rows, dict[str, float]]]) -> Path:
    """Write `evaluation.html`. Returns its path."""
    shape, scores = weights.config, measured[0][1]
    columns = [Column("records"), Column("rows", ",d"), *(Column(name, ".4f") for name in scores)]
    table = Table(columns, [[rows.directory.name, len(rows), *found.values()] for rows, found in measured])
    model = comparison.measured("model", str(weights.source), scores, config.num_attention_heads)
    if weights.outline:
        size = sum(value.size for value in common.arrays(weights.directory).values())
        model = replace(model, config=shape, parameters=size, megabytes=common.megabytes(weights.source))
    sections = [Section("Metrics", table=table), Section("Model", table=comparison.model_table([model]))]
    for rows, found in measured:
        if found:
            truth = truth_of(rows, shape)
            logits = {"model": read_predictions(_predictions(config, rows))}
            name = rows.directory.name
            sections += comparison.compare(rows, truth, weights.directory, logits, name, config.threshold)
    sections.append(report.environment_section())
    path = Path(config.output_dir) / "evaluation.html"
    return write_report(path, "Evaluation", str(weights.source), comparison.headline([model]), sections)


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill evaluate`."""
    run(*parse("minddistill evaluate", "Measure a model on records.", [Config], argv))
