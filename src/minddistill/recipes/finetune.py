"""Fine-tune an encoder on a task, to be a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import runtime
from ..config import flag, parse
from ..data.loader import Loader
from ..distill.distiller import Distiller
from ..distill.objectives import Labels
from ..errors import UserError
from ..models import store
from ..train.log import RunLog
from . import common
from .flags import OptimFlags, RunFlags, StepFlags, step_config
from .stage import Stage, open_run, run_stage


@dataclass
class Config:
    """Fine-tuning."""

    model: str = flag("", "model directory or .ckpt of a pretrained encoder")
    train_data_dir: str = flag("", "record directory to train on")
    eval_data_dir: str = flag("", "record directory that selects the best model; empty keeps the last")
    schema_dir: str = flag("", "schema file, where the record directories have none")
    dataset_type: str = flag("tfrecord", "tfrecord or mindrecord")
    epoch_size: int = flag(3, "epochs")
    patience: int = flag(0, "epochs without a better dev metric after which to stop; 0 never")
    eval_steps: int = flag(0, "steps between evaluations besides the end of each epoch; 0 for none")
    save_checkpoint_step: int = flag(1000, "steps between checkpoints", "save_ckpt_step")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    num_attention_heads: int = flag(12, "attention heads of a .ckpt that has no config.json beside it")
    relu_before_classifier: bool = flag(False, "ReLU between pooler and classifier, as TinyBERT has it")
    device_target: str = flag("", "Ascend, GPU or CPU; empty takes the best that is there")
    device_id: int = flag(0, "number of the device")


def run(config: Config, optim: OptimFlags, run_flags: RunFlags, step_flags: StepFlags) -> tuple[Path, dict[str, float]]:
    """Train and return the best model directory with its dev metrics.

    Raises:
        UserError: flags, records or model do not go together.
    """
    place = runtime.start(config.device_target, config.device_id)
    directory, log = open_run(run_flags, [config, optim, run_flags, step_flags], place)
    try:
        return _run(config, optim, run_flags, step_flags, place, directory, log)
    finally:
        log.close()


def _run(
    config: Config,
    optim: OptimFlags,
    run_flags: RunFlags,
    step_flags: StepFlags,
    place: runtime.Runtime,
    directory: Path,
    log: RunLog,
) -> tuple[Path, dict[str, float]]:
    weights = store.read_weights(config.model, config.num_attention_heads)
    options = {"kind": config.dataset_type, "schema_file": config.schema_dir}
    train = common.read_checked(config.train_data_dir, "--train_data_dir", weights.config, weights.directory, **options)
    names, regression = train.meta.get("labels", []), bool(train.meta.get("regression"))
    if not regression:
        names = names or [f"LABEL_{index}" for index in range(int(train.label.max()) + 1)]
        train.check_classes(len(names))
    model_config = weights.config.with_(
        labels=("score",) if regression else tuple(names),
        regression=regression,
        pooler=True,
        relu_before_classifier=config.relu_before_classifier,
    )
    model = store.build(
        weights if weights.config.labels == model_config.labels else _without_classifier(weights),
        model_config,
        seed=run_flags.seed,
        may_miss=("classifier.", "pooler."),
        **runtime.precision(step_flags.compute_type, step_flags.dtype, place.device),
    )
    buckets = common.buckets_for(step_flags.buckets, train, fixed=False)
    loader = Loader(train, step_flags.batch_size, buckets=buckets, seed=run_flags.seed)
    evaluate = None
    if config.eval_data_dir:
        dev = common.read_checked(config.eval_data_dir, "--eval_data_dir", model_config, None, **options)
        if not regression:
            dev.check_classes(len(names))
        if dev.meta.get("labels", names) != names:
            raise UserError(f"{config.eval_data_dir}: labels {dev.meta['labels']}; the training records have {names}")
        evaluate = common.Evaluator(model, dev, common.eval_buckets(buckets, dev)).metrics

    def save(name: str, found: dict[str, float]) -> Path:
        return store.save(
            directory / name,
            model,
            tokenizer_from=weights.directory,
            command="minddistill finetune",
            parents={"encoder": str(config.model)},
            data={"train": str(config.train_data_dir), "rows": len(train), "task": train.meta.get("task", "")},
            metrics=found,
        )

    stage = Stage(
        name="finetune",
        directory=directory,
        build=lambda: (Distiller(model, None, Labels(regression)), loader),
        epochs=config.epoch_size,
        optim=optim.optim(),
        step=step_config(step_flags, optim),
        flags=run_flags,
        runtime=place,
        log=log,
        save=save,
        evaluate=evaluate,
        eval_steps=config.eval_steps,
        save_steps=config.save_checkpoint_step,
        keep=config.max_ckpt_num,
        patience=config.patience,
        identity={
            "model": str(config.model),
            "train": str(config.train_data_dir),
            "rows": len(train),
            "buckets": buckets,
        }
        | step_flags.identity(),
    )
    return run_stage(stage)


def _without_classifier(weights: store.Weights) -> store.Weights:
    values = {path: value for path, value in weights.values.items() if not path.startswith("classifier.")}
    return store.Weights(weights.config, values, weights.source, weights.fit)


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill finetune`."""
    groups = [Config, OptimFlags, RunFlags, StepFlags]
    run(*parse("minddistill finetune", "Train an encoder on a task.", groups, argv))
