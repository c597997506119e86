"""Measure a model on record directories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import runtime
from ..config import flag, parse
from ..data.loader import choose_buckets
from ..data.tasks import TASKS
from ..errors import UserError
from ..evaluation.evaluate import write_predictions, write_submission
from ..files import write_json
from ..models import store
from . import common


@dataclass
class Config:
    """Evaluation."""

    model: str = flag("", "model directory or .ckpt")
    data_dir: str = flag("", "record directory, or several with commas between (MNLI's matched and mismatched)")
    schema_dir: str = flag("", "path of the schema file; the record directory's own by default")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    output_dir: str = flag("", "where metrics.json and predictions go; empty prints only")
    submission: bool = flag(False, "write GLUE's test file of each record directory into output_dir")
    task_name: str = flag("", "the records' task; checked where given")
    num_attention_heads: int = flag(12, "attention heads of a .ckpt that has no config.json beside it")
    device_target: Literal["", "Ascend", "GPU", "CPU"] = flag("", "Ascend, GPU or CPU; empty takes the best there is")
    device_id: int = flag(0, "number of the device")


def run(config: Config, flag_name: str = "--data_dir") -> dict[str, dict[str, float]]:
    """Print and return the metrics of each record directory, by its name.

    Args:
        flag_name: the flag that named the directories, for messages.

    Raises:
        UserError: model and records do not go together.
    """
    runtime.start(config.device_target, config.device_id)
    if config.submission and not config.output_dir:
        raise UserError("--submission true: --output_dir is empty; expected where to write the files")
    weights = store.read_weights(config.model, config.num_attention_heads)
    if not weights.config.num_labels:
        raise UserError(f"{config.model}: an encoder without a classifier; fine-tune it first (minddistill finetune)")
    directories = [name.strip() for name in config.data_dir.split(",") if name.strip()]
    if not directories:
        raise UserError(f"{flag_name} is empty; expected a record directory")
    if len({Path(directory).name for directory in directories}) < len(directories):
        raise UserError(f"{flag_name} {config.data_dir}: two directories of one name; evaluate them one by one")
    found = {Path(name).name: _measure(config, weights, name, flag_name) for name in directories}
    if config.output_dir:
        write_json(Path(config.output_dir) / "metrics.json", found)
    return found


def _measure(config: Config, weights: store.Weights, directory: str, flag_name: str) -> dict[str, float]:
    options = {"kind": config.dataset_type, "schema_file": config.schema_dir}
    shape = weights.config
    rows = common.read_checked(directory, flag_name, shape, weights.directory, config.task_name, **options)
    aligned = common.align_labels(weights, [] if shape.regression else rows.meta.get("labels", []), print)
    if not shape.regression:
        rows.check_classes(aligned.config.num_labels)
    model = store.build(aligned)
    evaluator = common.Evaluator(model, rows, choose_buckets(rows.length, rows.seq_length, most=3))
    logits = evaluator.logits()
    found = evaluator.metrics(logits)
    shown = ", ".join(f"{name} {value:.6f}" for name, value in found.items()) or "no labels"
    print(f"{directory}: {len(rows)} rows, {shown}")
    if config.output_dir:
        labelled = rows.meta.get("labelled", True)
        out = Path(config.output_dir)
        labels = rows.label if labelled else None
        path = out / f"predictions_{Path(directory).name}.tsv"
        write_predictions(path, logits, labels, aligned.config.labels, shape.regression)
        if config.submission:
            task = TASKS.get(rows.meta.get("task", ""))
            name = task.submission.get(rows.meta.get("split", "")) if task else None
            if name is None:
                raise UserError(f"{directory}: not a GLUE test split; --submission needs one that prepare-task wrote")
            write_submission(out / name, logits, shape.regression, rows.meta["raw_labels"])
    return found


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill evaluate`."""
    run(*parse("minddistill evaluate", "Measure a model on records.", [Config], argv))
