"""General distillation on a corpus: a student learns a pretrained teacher's layers (TinyBERT, arXiv 1909.10351), or the
masked words as the teacher sees them (DistilBERT, arXiv 1910.01108)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import params, runtime
from ..config import flag, numbers, parse, unusual
from ..data.loader import Loader, MaskedLoader
from ..distill.distiller import Distiller
from ..distill.layer_map import LayerMap
from ..distill.objectives import (
    FitDense,
    HiddenStates,
    Intermediate,
    MaskedLM,
    MaskedSoftLabels,
    Same,
    Weighted,
)
from ..errors import UserError
from ..models import store
from ..models.config import ModelConfig
from ..models.heads import MaskedWords
from ..problems import SINGLE
from . import common, report
from .checks import Load
from .flags import OptimFlags, RunFlags, StepFlags, StudentFlags, step_config
from .matching import fit_arrays, fit_dense, matched_layers, projection
from .run import Run, open_run
from .stage import Stage, Work, run_stage


@dataclass
class Config:
    """General distillation, as documented."""

    device_target: Literal["", "Ascend", "GPU", "CPU"] = flag("", "Ascend, GPU or CPU; empty takes the best there is")
    distribute: bool = flag(False, "train on several devices, started by msrun")
    epoch_size: int = flag(1, "epochs")
    device_id: int = flag(0, "number of the device")
    device_num: int = flag(1, "number of devices")
    save_ckpt_path: str = flag("", "run directory, where --output_dir is not given")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    do_shuffle: bool = flag(True, "shuffle the rows every epoch")
    enable_data_sink: bool = flag(True, "answered in the log: a thread makes batches ahead on every device")
    data_sink_steps: int = flag(1, "of the model zoo; batches are fed one by one")
    save_checkpoint_step: int = flag(1000, "steps between checkpoints", "save_ckpt_step")
    load_teacher_ckpt_path: str = flag("", "the pretrained teacher: model directory or .ckpt")
    data_dir: str = flag("", "record directory of the corpus")
    schema_dir: str = flag("", "path of the schema file; the record directory's own by default")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    train_steps: int = flag(0, "stop after so many steps; 0 for all epochs")
    objective: Literal["layers", "mlm"] = flag(
        "layers",
        "learn the teacher's layers (TinyBERT), or masked words and what the teacher says of them (DistilBERT)",
    )


@dataclass
class Words:
    """Loss of --objective mlm, whose weights are DistilBERT's."""

    alpha_ce: float = flag(5.0, "weight of the divergence from the teacher's predictions of the masked words")
    alpha_mlm: float = flag(2.0, "weight of the masked words themselves")
    alpha_cos: float = flag(1.0, "weight of 1 - cosine of the last hidden states")
    temperature: float = flag(2.0, "temperature T of the predictions, whose divergence is multiplied by its square")
    masked_lm_prob: float = flag(0.15, "part of the words that is masked, others in every epoch")


@dataclass
class Learning(OptimFlags):
    """Optimiser."""

    loss_scale_value: float = flag(65536.0, "initial loss scale")
    scale_window: int = flag(1000, "steps without overflow after which the loss scale rises")
    teacher_num_attention_heads: int = flag(12, "heads of a teacher .ckpt without config.json beside it")


def run(
    config: Config,
    words: Words,
    learning: Learning,
    student_flags: StudentFlags,
    run_flags: RunFlags,
    step_flags: StepFlags,
) -> Path:
    """Distil and return the student's model directory.

    Raises:
        UserError: flags, records and teacher do not go together.
    """
    run_flags.output_dir = run_flags.output_dir or config.save_ckpt_path or "runs/general_distill"
    place = runtime.start(config.device_target, config.device_id, config.distribute, config.device_num)
    with open_run(run_flags, step_flags, place) as opened:
        result = run_stage(prepare(opened, config, words, learning, student_flags))[0]
        report.at_end(opened)
        return result


def prepare(run: Run, config: Config, words: Words, learning: Learning, student_flags: StudentFlags) -> Stage:
    """Read and check what the flags name; the stage that they describe.

    Raises:
        UserError: they do not go together.
    """
    masked = config.objective == "mlm"
    _refuse_unused(config, words, student_flags)
    common.note_data_sink(config.enable_data_sink, run)
    if not config.load_teacher_ckpt_path:
        raise UserError("--load_teacher_ckpt_path is empty; expected the pretrained teacher's directory or .ckpt")
    with run.log.check("teacher") as found:
        weights = store.read_encoder(config.load_teacher_ckpt_path, learning.teacher_num_attention_heads)
        found(common.described(weights))
        if masked and "mlm.bias" not in weights.values:
            raise UserError(f"{weights.source}: has no masked-LM head; minddistill pretrain-mlm trains one")
    rows = common.read_checked(
        config.data_dir,
        "--data_dir",
        weights.config,
        weights.directory,
        labelled=False,
        **run.reading(config),
    )
    if masked:
        common.require_whole_text(rows)
    masking = common.masking(weights, words.masked_lm_prob, run.log) if masked else {}
    with run.log.check("student") as found:
        wanted = student_flags.config(weights.config).with_(pooler=weights.config.pooler and not masked)
        common.check_vocabulary(rows, wanted, None)
        common.check_seq_length(rows, student_flags.seq_length)
        found(f"{wanted.num_hidden_layers} layers of width {wanted.hidden_size}")
    if masked:
        pairs, fit, objective = _masked_words(run, words, wanted, weights.config)
    else:
        pairs, fit, objective = _layers(run, student_flags, wanted, weights.config)
    buckets = common.buckets_for(run.step.buckets, rows, student_flags.loss_mode == "reference")
    encoder = weights.config.with_(labels=(), problem=SINGLE, pooler=weights.config.pooler and not masked)
    load = Load(
        trained=wanted.parameters + params.count(fit),
        model=wanted,
        teacher=weights.config,
        teacher_parameters=encoder.parameters,
        matched=len(pairs.attention),
        batch_size=run.step.batch_size,
        buckets=buckets,
        keep=config.max_ckpt_num,
    )
    run.check_load(load)

    def build() -> Work:
        types = run.types
        teacher = store.build(weights, encoder, mlm=masked, **types)
        if student_flags.init_from_teacher:
            layers = numbers(student_flags.init_from_teacher, "--init_from_teacher")
            student = store.build(store.from_layers(weights, wanted, layers), seed=run.flags.seed, mlm=masked, **types)
        else:
            student = store.new(wanted, run.flags.seed, mlm=masked, **types)
        told = "the masked words" if masked else f"teacher layers {pairs.attention}"
        run.log.line(f"The student has {wanted.num_hidden_layers} layers; they learn from {told}")

        def save(name: str, found: Mapping[str, float]) -> Path:
            return store.save(
                run.directory / name,
                student,
                tokenizer_from=weights.directory,
                command="minddistill general-distill",
                parents={"teacher": str(config.load_teacher_ckpt_path)},
                data={"corpus": str(config.data_dir), "rows": len(rows)},
                metrics=found,
                fit=fit_arrays(fit),
                mlm=masked,
            )

        options = run.batching(buckets, config.do_shuffle)
        if masked:
            batches: Loader = MaskedLoader(rows, **masking, **options)
            return Work(Distiller(MaskedWords(student), MaskedWords(teacher), objective), batches, save)
        return Work(Distiller(student, teacher, objective), Loader(rows, **options), save)

    return Stage(
        run=run,
        name="general",
        directory=run.directory,
        build=build,
        epochs=config.epoch_size,
        optim=learning.optim(),
        step=step_config(run.step, learning),
        groups=[config, words, learning, student_flags, run.flags, run.step],
        content={"load_teacher_ckpt_path": {"weights": weights.fingerprint()}, "data_dir": rows.files},
        save_steps=config.save_checkpoint_step,
        keep=config.max_ckpt_num,
        most_steps=config.train_steps,
    )


def _refuse_unused(config: Config, words: Words, student: StudentFlags) -> None:
    """See that no flag of the other objective is set."""
    idle = unusual(words)
    if config.objective == "mlm":
        idle = {
            name: value for name, value in unusual(student).items() if name in ("layer_map", "fit_dense", "loss_mode")
        }
    for name, value in idle.items():
        raise UserError(f"--{name} {value}: has no part in --objective {config.objective}; leave it out")


def _layers(
    run: Run, flags: StudentFlags, student: ModelConfig, teacher: ModelConfig
) -> tuple[LayerMap, FitDense | Same, Intermediate]:
    """The layers that learn from others, what brings them to one width, and the squared errors between them."""
    pairs = matched_layers(flags.layer_map, student, teacher, run.log)
    fit = fit_dense(flags.fit_dense, student, teacher, pairs, {}, run.flags.seed)
    return pairs, fit, Intermediate(pairs, fit, flags.loss_mode)


def _masked_words(
    run: Run, words: Words, student: ModelConfig, teacher: ModelConfig
) -> tuple[LayerMap, FitDense | Same, Weighted]:
    """The last layers, what brings them to one width, and the loss alpha_mlm MLM + alpha_ce T^2 KL, both at the masked
    words, + alpha_cos (1 - cosine of the last hidden states)."""
    pairs = LayerMap((), (teacher.num_hidden_layers,), (student.num_hidden_layers,))
    fit = projection(student, teacher, pairs, run.flags.seed)
    parts = [
        (words.alpha_mlm, MaskedLM()),
        (words.alpha_ce, MaskedSoftLabels(words.temperature)),
        (words.alpha_cos, HiddenStates(pairs, fit, distance="cosine")),
    ]
    return pairs, fit, Weighted(parts)


GROUPS = [Config, Words, Learning, StudentFlags, RunFlags, StepFlags]
examine = prepare  # all that `minddistill doctor` looks at


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill general-distill` and `run_general_distill.py`."""
    run(*parse("minddistill general-distill", "Distil a pretrained teacher on a corpus.", GROUPS, argv))
