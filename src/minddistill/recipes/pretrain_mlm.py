"""A masked-LM head for an encoder that has none, or an encoder trained further, on a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import runtime
from ..config import flag, parse
from ..data.loader import MaskedLoader
from ..distill.distiller import Distiller
from ..distill.objectives import MaskedLM
from ..models import store
from ..models.heads import MaskedWords
from ..problems import SINGLE
from . import common, report
from .checks import Load
from .flags import OptimFlags, RunFlags, StepFlags, step_config
from .run import Run, open_run
from .stage import Stage, Work, run_stage


@dataclass
class Config:
    """Masked-language modelling."""

    model: str = flag("", "model directory or .ckpt of an encoder, with a masked-LM head or without")
    data_dir: str = flag("", "record directory of a corpus, without masks of its own")
    train: Literal["head", "all"] = flag("head", "what is trained: the new head, or the encoder too")
    masked_lm_prob: float = flag(0.15, "part of the words that is masked, others in every epoch")
    epoch_size: int = flag(1, "epochs")
    train_steps: int = flag(0, "stop after so many steps; 0 for all epochs")
    schema_dir: str = flag("", "schema file, where the record directory has none")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    save_checkpoint_step: int = flag(1000, "steps between checkpoints", "save_ckpt_step")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    num_attention_heads: int = flag(12, "attention heads of a .ckpt that has no config.json beside it")
    device_target: str = flag("", "Ascend, GPU or CPU; empty takes the best that is there")
    device_id: int = flag(0, "number of the device")


@dataclass
class Learning(OptimFlags):
    """Optimiser."""

    learning_rate: float = flag(5e-4, "highest learning rate; about 5e-5 with --train all")


def run(config: Config, learning: Learning, run_flags: RunFlags, step_flags: StepFlags) -> Path:
    """Train and return the model directory, whose model has the head.

    Raises:
        UserError: flags, records or model do not go together.
    """
    place = runtime.start(config.device_target, config.device_id)
    with open_run(run_flags, step_flags, place) as opened:
        result = run_stage(prepare(opened, config, learning))[0]
        report.at_end(opened)
        return result


def prepare(run: Run, config: Config, learning: Learning) -> Stage:
    """Read and check what the flags name; the stage that they describe.

    Raises:
        UserError: they do not go together.
    """
    with run.log.check("model") as found:
        weights = store.read_encoder(config.model, config.num_attention_heads)
        found(common.described(weights))
    rows = common.read_checked(
        config.data_dir,
        "--data_dir",
        weights.config,
        weights.directory,
        labelled=False,
        **run.reading(config),
    )
    common.require_whole_text(rows)
    masking = common.masking(weights, config.masked_lm_prob, run.log)
    wanted = weights.config.with_(labels=(), problem=SINGLE, pooler=False)
    buckets = common.buckets_for(run.step.buckets, rows, fixed=False)
    load = Load(
        trained=wanted.parameters,
        model=wanted,
        batch_size=run.step.batch_size,
        buckets=buckets,
        keep=config.max_ckpt_num,
    )
    run.check_load(load)

    def build() -> Work:
        model = store.build(weights, wanted, seed=run.flags.seed, may_miss=("mlm.",), mlm=True, **run.types)
        if config.train == "head":
            for parameter in model.encoder.get_parameters():
                parameter.requires_grad = False

        def save(name: str, found: Mapping[str, float]) -> Path:
            return store.save(
                run.directory / name,
                model,
                tokenizer_from=weights.directory,
                command="minddistill pretrain-mlm",
                parents={"encoder": str(config.model)},
                data={"corpus": str(config.data_dir), "rows": len(rows)},
                metrics=found,
                mlm=True,
            )

        batches = MaskedLoader(rows, **masking, **run.batching(buckets))
        return Work(Distiller(MaskedWords(model), None, MaskedLM()), batches, save)

    return Stage(
        run=run,
        name="mlm",
        directory=run.directory,
        build=build,
        epochs=config.epoch_size,
        optim=learning.optim(),
        step=step_config(run.step, learning),
        groups=[config, learning, run.flags, run.step],
        content={"model": {"weights": weights.fingerprint()}, "data_dir": rows.files},
        save_steps=config.save_checkpoint_step,
        keep=config.max_ckpt_num,
        most_steps=config.train_steps,
    )


GROUPS = [Config, Learning, RunFlags, StepFlags]
examine = prepare  # all that `minddistill doctor` looks at


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill pretrain-mlm`."""
    run(*parse("minddistill pretrain-mlm", "Train a masked-LM head on a corpus.", GROUPS, argv))
