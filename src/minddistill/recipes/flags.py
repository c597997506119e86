"""Groups of flags that several training commands share, and the configurations made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..config import flag, numbers, unusual
from ..errors import UserError
from ..models.config import ModelConfig, WordConfig
from ..models.presets import preset
from ..train.optim import OptimConfig
from ..train.step import StepConfig


@dataclass
class RunFlags:
    """The run."""

    output_dir: str = flag("", "run directory: config.yaml, log.txt, metrics.jsonl, checkpoints, best and last models")
    resume: bool | Literal["auto"] = flag(
        "auto",
        "go on with the earlier run in output_dir: auto (if there is one), true (there must be), false (start over)",
    )
    seed: int = flag(42, "fixes initial weights, order of rows and dropout")
    log_interval: int = flag(100, "steps between two lines of the log")
    max_skipped_steps: int = flag(20, "overflows in a row after which to stop, with the rows of the batch saved")
    verify_records: bool = flag(True, "check the checksums of the records, once, before the first epoch")

    def __post_init__(self) -> None:
        if self.max_skipped_steps < 1:
            raise UserError(f"--max_skipped_steps {self.max_skipped_steps}: expected a positive whole number")


@dataclass
class OptimFlags:
    """Optimiser."""

    learning_rate: float = flag(5e-5, "highest learning rate")
    end_learning_rate: float = flag(1e-14, "learning rate at the end, positive")
    power: float = flag(1.0, "power of the polynomial decay")
    weight_decay: float = flag(0.01, "decoupled weight decay; not on biases and layer norms")
    eps: float = flag(1e-6, "added to Adam's denominator")
    lr_schedule: Literal["original", "port", "constant"] = flag(
        "original", "warm-up and polynomial decay: original, port (of the model zoo) or constant"
    )
    warmup_ratio: float = flag(0.1, "part of all steps that warm-up takes")
    loss_scale_value: float = flag(256.0, "initial loss scale")
    scale_window: int = flag(50, "steps without overflow after which the loss scale rises")

    def optim(self, learning_rate: float | None = None) -> OptimConfig:
        """The optimiser's configuration, with another highest learning rate if one is given.

        Raises:
            UserError: a number is out of range, or has no part in the schedule.
        """
        given = unusual(self)
        for name in ("end_learning_rate", "power", "warmup_ratio"):
            if self.lr_schedule == "constant" and name in given:
                raise UserError(f"--{name} {given[name]}: has no part in --lr_schedule constant; leave it out")
        return OptimConfig(
            self.learning_rate if learning_rate is None else learning_rate,
            self.end_learning_rate,
            self.power,
            self.weight_decay,
            self.eps,
            self.lr_schedule,
            self.warmup_ratio,
        )


@dataclass
class StepFlags:
    """Step: loss scale, clipping, batches."""

    batch_size: int = flag(16, "rows a step on each device")
    accumulation_steps: int = flag(1, "batches whose gradients make one update")
    scale_factor: int = flag(2, "factor by which the loss scale changes")
    clip: Literal["global", "tensor", "off"] = flag("global", "clip by the norm of all gradients, or of each tensor")
    clip_norm: float = flag(1.0, "largest norm after clipping")
    buckets: str = flag("auto", "lengths that batches are padded to: auto, off, or a list such as 16,32,64")
    compute_type: Literal["auto", "float16", "bfloat16", "float32"] = flag(
        "auto", "type of the matrix products; auto is float16 on Ascend and GPU, float32 on CPU"
    )
    dtype: Literal["float16", "float32"] = flag("float32", "type of the hidden states between layers")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size}: expected a positive whole number")


# Flags of a student's network: those that replace what its preset has, and those that it takes as they are.
_PRESET = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SIZES = (*_PRESET, "attention_head_size")
_TAKEN = (
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "use_relative_positions",
)


@dataclass
class StudentFlags:
    """Student network."""

    student: str = flag("tinybert-4l-384", "preset of the student's size")
    seq_length: int = flag(128, "longest sequence; records must not be longer")
    vocab_size: int = flag(0, "rows of the word embedding; 0 takes the teacher's")
    hidden_size: int = flag(0, "width of the encoder; 0 takes the preset's")
    num_hidden_layers: int = flag(0, "encoder layers; 0 takes the preset's")
    num_attention_heads: int = flag(0, "attention heads; 0 takes the preset's (12)")
    attention_head_size: int = flag(0, "width of a head; 0 divides the hidden size among the heads")
    intermediate_size: int = flag(0, "width of the feed-forward layer; 0 takes the preset's")
    hidden_act: str = flag("gelu", "activation of the feed-forward layer")
    hidden_dropout_prob: float = flag(0.1, "dropout of embeddings and sub-layer outputs")
    attention_probs_dropout_prob: float = flag(0.1, "dropout of attention probabilities")
    max_position_embeddings: int = flag(512, "rows of the position embedding")
    type_vocab_size: int = flag(2, "rows of the segment embedding")
    initializer_range: float = flag(0.02, "standard deviation of initial weights")
    use_relative_positions: bool = flag(False, "relative positions (Shaw et al. 2018) in place of absolute ones")
    init_from_teacher: str = flag("", "teacher layers that the student starts from, 0-based, such as 1,3,5")
    layer_map: str = flag("uniform", "uniform, last, first, or one teacher layer for each student layer: 1,3,5")
    fit_dense: Literal["shared", "layer"] = flag("shared", "one projection for all hidden states, or one each")
    loss_mode: Literal["masked", "reference"] = flag(
        "masked", "average over real positions, or over the padded block as the original does (fixed length only)"
    )

    @property
    def heads(self) -> int:
        """Attention heads, as far as these flags tell."""
        return self.num_attention_heads or preset(self.student).num_attention_heads

    def refuse_other(self, config: ModelConfig | WordConfig, source: object) -> None:
        """See that a student that is read has what these flags say of one.

        Raises:
            UserError: it has not; names the flag and `source`.
        """
        given = unusual(self).keys()
        if self.vocab_size and self.vocab_size != config.vocab_size:
            raise UserError(f"--vocab_size {self.vocab_size}: {source} has {config.vocab_size}; leave the flag out")
        for name in (*_SIZES, *_TAKEN):
            of_preset = "student" in given and name in _PRESET and name not in given
            if of_preset and name == "num_hidden_layers" and self.init_from_teacher:
                continue  # which says how deep it is
            if name in given or of_preset:
                value = getattr(preset(self.student) if of_preset else self, name)
                has = getattr(config, name, None)
                if value != has:
                    flag_name = f"student {self.student}: {name} {value}" if of_preset else f"{name} {value}"
                    raise UserError(f"--{flag_name}: {source} has {has}; leave the flag out, it starts as it was saved")

    def config(self, teacher: ModelConfig) -> ModelConfig:
        """The student's configuration; vocabulary and padding are the teacher's, depth that of `init_from_teacher`."""
        base = preset(self.student)
        changes: dict[str, Any] = {name: getattr(self, name) for name in _SIZES if getattr(self, name)}
        changes |= {name: getattr(self, name) for name in _TAKEN}
        if self.init_from_teacher and not self.num_hidden_layers:
            changes["num_hidden_layers"] = len(numbers(self.init_from_teacher, "--init_from_teacher"))
        if self.init_from_teacher or teacher.family != "bert":
            # The student is of the teacher's family, so that its embeddings mean the same.
            given = unusual(self).keys()
            for name in ("family", "type_vocab_size", "max_position_embeddings", "hidden_act", "layer_norm_eps"):
                changes[name] = getattr(teacher, name)
                if name in given and getattr(self, name) != changes[name]:
                    raise UserError(
                        f"--{name} {getattr(self, name)}: the teacher has {changes[name]}, and so has its student"
                    )
            if teacher.embedding_size != teacher.hidden_size:
                changes["embedding_size"] = teacher.embedding_size
        if self.vocab_size and self.vocab_size != teacher.vocab_size:
            raise UserError(
                f"--vocab_size {self.vocab_size}: the teacher's is {teacher.vocab_size}; both read the same records"
            )
        changes |= {"vocab_size": teacher.vocab_size, "pad_token_id": teacher.pad_token_id}
        return base.with_(**changes)


def step_config(flags: StepFlags, optim: OptimFlags) -> StepConfig:
    """The step's configuration."""
    scale = optim.loss_scale_value, flags.scale_factor, optim.scale_window
    return StepConfig(*scale, flags.clip, flags.clip_norm, flags.accumulation_steps)
