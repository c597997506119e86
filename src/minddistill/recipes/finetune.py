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
from ..train.optim import OptimConfig
from . import common


@dataclass
class Config:
    """Fine-tuning."""

    model: str = flag("", "model directory or .ckpt of a pretrained encoder")
    train_data_dir: str = flag("", "record directory to train on")
    eval_data_dir: str = flag("", "record directory that selects the best model; empty keeps the last")
    schema_dir: str = flag("", "schema file, where the record directories have none")
    dataset_type: str = flag("tfrecord", "tfrecord or mindrecord")
    epoch_size: int = flag(3, "epochs")
    learning_rate: float = flag(5e-5, "highest learning rate")
    end_learning_rate: float = flag(1e-14, "learning rate at the end")
    power: float = flag(1.0, "power of the polynomial decay")
    weight_decay: float = flag(0.01, "decoupled weight decay; not on biases and layer norms")
    eps: float = flag(1e-6, "added to Adam's denominator")
    lr_schedule: common.Schedules = flag("original", "warm-up and polynomial decay: original, port or constant")
    warmup_ratio: float = flag(0.1, "part of all steps that warm-up takes")
    loss_scale_value: float = flag(256.0, "initial loss scale")
    scale_window: int = flag(50, "steps without overflow after which the loss scale rises")
    patience: int = flag(0, "epochs without a better dev metric after which to stop; 0 never")
    eval_steps: int = flag(0, "steps between evaluations besides the end of each epoch; 0 for none")
    save_checkpoint_step: int = flag(1000, "steps between checkpoints", "save_ckpt_step")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    num_attention_heads: int = flag(12, "attention heads of a .ckpt that has no config.json beside it")
    relu_before_classifier: bool = flag(False, "ReLU between pooler and classifier, as TinyBERT has it")
    device_target: str = flag("", "Ascend, GPU or CPU; empty takes the best that is there")
    device_id: int = flag(0, "number of the device")


def run(config: Config, run_flags: common.RunFlags, step_flags: common.StepFlags) -> tuple[Path, dict[str, float]]:
    """Train and return the best model directory with its dev metrics.

    Raises:
        UserError: flags, records or model do not go together.
    """
    directory, log = common.open_run(run_flags, [config, run_flags, step_flags])
    place = runtime.start(config.device_target, config.device_id)
    weights = store.read_weights(config.model, config.num_attention_heads)
    options = {"kind": config.dataset_type, "schema_file": config.schema_dir}
    train = common.read_checked(config.train_data_dir, "--train_data_dir", weights.config, weights.directory, **options)
    names, regression = train.meta.get("labels", []), bool(train.meta.get("regression"))
    if not regression and not names:
        names = [f"LABEL_{index}" for index in range(int(train.label.max()) + 1)]
    model_config = weights.config.with_(
        labels=("score",) if regression else tuple(names),
        regression=regression,
        pooler=True,
        relu_before_classifier=config.relu_before_classifier,
    )
    train = common.read_checked(
        config.train_data_dir,
        "--train_data_dir",
        model_config,
        None,
        labels=None if regression else len(names),
        **options,
    )
    model = store.build(
        weights if weights.config.labels == model_config.labels else _without_classifier(weights),
        model_config,
        seed=run_flags.seed,
        compute_type=runtime.float_type(step_flags.compute_type, place.device),
        dtype=runtime.float_type(step_flags.dtype, place.device),
        may_miss=("classifier.", "pooler."),
    )
    buckets = common.buckets_for(step_flags.buckets, train, fixed=False)
    loader = Loader(train, step_flags.batch_size, buckets=buckets, seed=run_flags.seed)
    evaluate = None
    if config.eval_data_dir:
        dev = common.read_checked(
            config.eval_data_dir,
            "--eval_data_dir",
            model_config,
            None,
            labels=None if regression else len(names),
            **options,
        )
        if dev.meta.get("labels", names) != names:
            raise UserError(f"{config.eval_data_dir}: labels {dev.meta['labels']}; the training records have {names}")
        shapes = common.eval_buckets(buckets, dev)

        def evaluate() -> dict[str, float]:
            return common.evaluate_rows(model, dev, shapes)[1]

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

    optim = OptimConfig(
        config.learning_rate,
        config.end_learning_rate,
        config.power,
        config.weight_decay,
        config.eps,
        config.lr_schedule,
        config.warmup_ratio,
    )
    stage = common.Stage(
        name="finetune",
        directory=directory,
        cell=Distiller(model, None, Labels(regression)),
        student=model,
        train=loader,
        epochs=config.epoch_size,
        optim=optim,
        step=common.step_config(step_flags, config.loss_scale_value, config.scale_window),
        flags=run_flags,
        runtime=place,
        log=log,
        save=save,
        evaluate=evaluate,
        eval_steps=config.eval_steps,
        save_steps=config.save_checkpoint_step,
        keep=config.max_ckpt_num,
        patience=config.patience,
        identity={"model": str(config.model), "train": str(config.train_data_dir), "buckets": buckets},
    )
    try:
        return common.run_stage(stage)
    finally:
        log.close()


def _without_classifier(weights: store.Weights) -> store.Weights:
    values = {path: value for path, value in weights.values.items() if not path.startswith("classifier.")}
    return store.Weights(weights.config, values, weights.source, weights.fit)


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill finetune`."""
    groups = [Config, common.RunFlags, common.StepFlags]
    run(*parse("minddistill finetune", "Train an encoder on a task.", groups, argv))
