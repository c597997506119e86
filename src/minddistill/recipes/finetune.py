"""Fine-tune an encoder on a task, to be a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import runtime
from ..config import flag, parse
from ..data.loader import Loader
from ..distill.distiller import Distiller
from ..distill.objectives import Labels
from ..models import store
from ..problems import REGRESSION
from . import common, report
from .checks import Load
from .flags import OptimFlags, RunFlags, StepFlags, step_config
from .judging import Evaluator, eval_buckets, refuse_unevaluated
from .labels import check_evaluated, head_fields
from .run import Run, open_run
from .stage import Stage, Work, run_stage


@dataclass
class Config:
    """Fine-tuning."""

    model: str = flag("", "model directory or .ckpt of a pretrained encoder, or of a student on word vectors")
    train_data_dir: str = flag("", "record directory to train on")
    eval_data_dir: str = flag("", "record directory that selects the best model; empty keeps the last")
    schema_dir: str = flag("", "schema file, where the record directories have none")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
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
    with open_run(run_flags, step_flags, place) as opened:
        result = run_stage(prepare(opened, config, optim))
        report.at_end(opened)
        return result


def prepare(run: Run, config: Config, optim: OptimFlags) -> Stage:
    """Read and check what the flags name; the stage that they describe.

    Raises:
        UserError: they do not go together.
    """
    with run.log.check("model") as found:
        weights = store.read_weights(config.model, config.num_attention_heads)
        found(common.described(weights))
    options = run.reading(config)
    train = common.read_checked(config.train_data_dir, "--train_data_dir", weights.config, weights.directory, **options)
    train.require_labels("--train_data_dir")
    names, problem = train.meta.get("labels", []), train.problem
    with run.log.check("labels") as found:
        if problem == REGRESSION:
            names = ["score"]
        else:
            names = names or [f"LABEL_{index}" for index in range(int(train.label.max()) + 1)]
        train.check_classes(len(names), learnt=True)
        found("a number" if problem == REGRESSION else ", ".join(names))
    kept = (weights.config.labels, weights.config.problem) == (tuple(names), problem)
    # A classifier that is trained further keeps its form.
    has_relu = kept and getattr(weights.config, "relu_before_classifier", False)
    relu = config.relu_before_classifier or has_relu
    if relu and not config.relu_before_classifier:
        run.log.line(f"{config.model}: has a ReLU before its classifier, and keeps it")
    model_config = weights.config.with_(**head_fields(weights.config, names, problem, relu))
    buckets = common.buckets_for(run.step.buckets, train, fixed=False)
    size = model_config.parameters
    run.check_load(
        Load(
            trained=size,
            model=model_config,
            batch_size=run.step.batch_size,
            buckets=buckets,
            keep=config.max_ckpt_num,
        )
    )
    dev = None
    if not config.eval_data_dir:
        refuse_unevaluated(patience=config.patience, eval_steps=config.eval_steps)
    else:
        dev = common.read_checked(config.eval_data_dir, "--eval_data_dir", model_config, None, **options)
        with run.log.check("labels to evaluate") as found:
            check_evaluated(dev, model_config)
            found("the same")

    def build() -> Work:
        model = store.build(
            weights if kept else weights.without("classifier."),
            model_config,
            seed=run.flags.seed,
            may_miss=("classifier.", "pooler."),
            **run.types,
        )

        loader = Loader(train, **run.batching(buckets))
        evaluator = None if dev is None else Evaluator(model, dev, eval_buckets(buckets, dev))

        def save(name: str, found: Mapping[str, float]) -> Path:
            return store.save(
                run.directory / name,
                model,
                tokenizer_from=weights.directory,
                command="minddistill finetune",
                parents={"encoder": str(config.model)},
                data={"train": str(config.train_data_dir), "rows": len(train), "task": train.meta.get("task", "")},
                metrics=found,
            )

        return Work(Distiller(model, None, Labels(problem)), loader, save, evaluator)

    return Stage(
        run=run,
        name="finetune",
        directory=run.directory,
        build=build,
        epochs=config.epoch_size,
        optim=optim.optim(),
        step=step_config(run.step, optim),
        groups=[config, optim, run.flags, run.step],
        content={
            "model": {"weights": weights.fingerprint()} | ({"classifier": "rectified"} if has_relu else {}),
            "train_data_dir": train.files,
            "eval_data_dir": {} if dev is None else dev.files,
        },
        eval_steps=config.eval_steps,
        save_steps=config.save_checkpoint_step,
        keep=config.max_ckpt_num,
        patience=config.patience,
    )


GROUPS = [Config, OptimFlags, RunFlags, StepFlags]
examine = prepare  # all that `minddistill doctor` looks at


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill finetune`."""
    run(*parse("minddistill finetune", "Train an encoder on a task.", GROUPS, argv))
