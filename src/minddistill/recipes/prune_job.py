"""What the stages of a pruning share: models, records and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mindspore import nn

from ..config import flag, unusual
from ..data.loader import Loader
from ..data.records import Rows
from ..data.tokenizer import load_tokenizer
from ..distill.distiller import Distiller
from ..distill.layer_map import LayerMap, layer_map
from ..distill.objectives import Intermediate, Labels, Prediction, Weighted
from ..errors import UserError
from ..models import store
from ..models.config import ModelConfig
from ..models.heads import TextModel
from ..prune import vocabulary
from . import common, report
from .checks import Load
from .flags import OptimFlags, step_config
from .judging import Evaluator, check_teacher, eval_buckets, refuse_unevaluated
from .labels import align_labels, check_evaluated
from .matching import projection
from .run import Run
from .stage import Stage, Work


@dataclass
class Config:
    """Pruning."""

    method: Literal["sparse", "structured"] = flag("sparse", "zeros among the weights, or smaller tensors")
    model: str = flag("", "model directory or .ckpt of a classifier")
    teacher: str = flag("", "model directory or .ckpt that is learnt from; the model before pruning by default")
    train_data_dir: str = flag("", "record directory to train on, and that importance is measured on", "data_dir")
    eval_data_dir: str = flag("", "record directory that selects the best model; empty keeps the last")
    schema_dir: str = flag("", "schema file, where the record directories have none")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    epoch_size: int = flag(3, "epochs; of structured pruning, after each of its steps; 0 prunes only")
    train_steps: int = flag(0, "training steps at which to stop; 0 for no limit")
    eval_steps: int = flag(0, "steps between evaluations besides the end of each epoch; 0 for none")
    save_checkpoint_step: int = flag(1000, "steps between checkpoints", "save_ckpt_step")
    max_ckpt_num: int = flag(1, "checkpoints kept")
    prune_vocabulary: bool = flag(False, "in the end, take away word pieces that the records do not use (WordPiece)")
    num_attention_heads: int = flag(12, "attention heads of a .ckpt that has no config.json beside it")
    allow_weak_teacher: bool = flag(False, "go on with a teacher that does not beat the majority class")
    device_target: str = flag("", "Ascend, GPU or CPU; empty takes the best that is there")
    device_id: int = flag(0, "number of the device")


@dataclass
class Losses:
    """Loss: labels, the teacher's predictions, its hidden states and attention scores, each with a weight."""

    label_weight: float = flag(0.0, "weight of the cross-entropy with the labels")
    soft_weight: float = flag(1.0, "weight of the cross-entropy with the teacher's predictions")
    intermediate_weight: float = flag(1.0, "weight of the squared errors of hidden states and attention scores")
    temperature: float = flag(1.0, "temperature of the softmaxes of predictions")


@dataclass
class Job:
    """What the stages of a pruning share.

    Attributes:
        dense: the model before pruning.
        groups: of flags, all of them.
    """

    run: Run
    config: Config
    losses: Losses
    optim: OptimFlags
    groups: Sequence[Any]
    dense: store.Weights
    teacher: store.Weights
    train: Rows
    dev: Rows | None
    buckets: list[int]

    def build(self, weights: store.Weights) -> TextModel:
        """A model on this job's device and in its types."""
        return store.build(weights, seed=self.run.flags.seed, **self.run.types)

    def loader(self, rows: Rows) -> Loader:
        """Batches of rows, as they are trained on."""
        return Loader(rows, **self.run.batching(self.buckets))

    def work(
        self, weights: store.Weights, directory: Path, layers: str, facts: Callable[[], Mapping[str, Any]]
    ) -> Work:
        """What trains a student.

        Args:
            weights: it starts from.
            directory: where its models go.
            layers: of the teacher, that it learns from, as for `--layer_map`.
            facts: what its record says of the pruning.
        """
        objective = self.objective(weights.config, layers)
        student, teacher = self.build(weights), self._taught()
        evaluator = None
        if self.dev is not None:
            evaluator = Evaluator(student, self.dev, eval_buckets(self.buckets, self.dev))

        def save(name: str, found: Mapping[str, float]) -> Path:
            return store.save(
                directory / name,
                student,
                tokenizer_from=self.dense.directory,
                command=f"minddistill prune --method {self.config.method}",
                parents={"model": str(self.config.model)} | ({"teacher": str(self.teacher.source)} if teacher else {}),
                data={
                    "train": str(self.config.train_data_dir),
                    "rows": len(self.train),
                    "task": self.train.meta.get("task", ""),
                    **facts(),
                },
                metrics=found,
            )

        return Work(Distiller(student, teacher, objective), self.loader(self.train), save, evaluator)

    def stage(self, name: str, directory: Path, build: Callable[[], Work], source: store.Weights) -> Stage:
        """A stage that trains what `build` makes of `source`."""
        content = {
            "model": {"weights": source.fingerprint()},
            "teacher": {"weights": self.teacher.fingerprint()},
            "train_data_dir": self.train.files,
            "eval_data_dir": {} if self.dev is None else self.dev.files,
        }
        return Stage(
            run=self.run,
            name=name,
            directory=directory,
            build=build,
            epochs=self.config.epoch_size,
            optim=self.optim.optim(),
            step=step_config(self.run.step, self.optim),
            groups=self.groups,
            content=content,
            free=("teacher", "prune_vocabulary"),
            eval_steps=self.config.eval_steps,
            save_steps=self.config.save_checkpoint_step,
            keep=self.config.max_ckpt_num,
            most_steps=self.config.train_steps,
        )

    def _taught(self) -> TextModel | None:
        """The teacher, measured on the dev records; None where the labels alone are learnt from."""
        if not self.losses.soft_weight and not self.losses.intermediate_weight:
            return None
        teacher = self.build(self.teacher)
        if self.dev is not None:
            shapes = eval_buckets(self.buckets, self.dev)
            found = check_teacher(teacher, self.dev, shapes, self.config.allow_weak_teacher, self.run.log.line)
            found.write(self.run.directory / report.TEACHER_PREDICTIONS)
        return teacher

    def objective(self, student: ModelConfig, layers: str) -> nn.Cell:
        """What is minimised.

        Raises:
            UserError: the weights of its parts, or the teacher's layers, do not go together.
        """
        losses, problem = self.losses, self.teacher.config.problem
        parts: list[tuple[float, nn.Cell]] = [
            (losses.label_weight, Labels(problem)),
            (losses.soft_weight, Prediction(losses.temperature, problem=problem)),
        ]
        if losses.intermediate_weight:
            parts.append((losses.intermediate_weight, self._intermediate(student, layers)))
        return Weighted(parts)

    def _intermediate(self, student: ModelConfig, layers: str) -> Intermediate:
        teacher = self.teacher.config
        if layers == "uniform" and teacher.num_hidden_layers % student.num_hidden_layers:
            raise UserError(
                f"--teacher {self.teacher.source}: {teacher.num_hidden_layers} layers, the model has "
                f"{student.num_hidden_layers}; expected a multiple of these, or --intermediate_weight 0"
            )
        pairs = layer_map(layers, student.num_hidden_layers, teacher.num_hidden_layers)
        if student.layer_heads != tuple(teacher.layer_heads[layer] for layer in pairs.attention):
            self.run.log.line(
                "heads: not as many as the teacher has; hidden states are compared, attention scores are not"
            )
            pairs = LayerMap((), pairs.hidden)
        return Intermediate(pairs, projection(student, teacher, pairs, self.run.flags.seed))


def prepare(run: Run, config: Config, losses: Losses, optim: OptimFlags, groups: Sequence[Any]) -> Job:
    """Read and check what the flags name.

    Raises:
        UserError: they do not go together.
    """
    with run.log.check("model") as found:
        dense = store.read_encoder(config.model, config.num_attention_heads)
        dense.config.require_classifier(dense.source)
        found(common.described(dense))
    with run.log.check("teacher") as found:
        teacher = store.read_encoder(config.teacher, config.num_attention_heads) if config.teacher else dense
        teacher.config.require_classifier(teacher.source)
        if config.teacher and not (losses.soft_weight or losses.intermediate_weight):
            raise UserError(
                f"--teacher {config.teacher}: has no part where --soft_weight and --intermediate_weight are 0; leave it out"
            )
        if teacher.config.vocab_size != dense.config.vocab_size:
            raise UserError(
                f"--teacher {config.teacher}: reads {teacher.config.vocab_size} word pieces, the model "
                f"{dense.config.vocab_size}; both read the same records"
            )
        found(common.described(teacher))
    options = run.reading(config)
    train = common.read_checked(config.train_data_dir, "--train_data_dir", dense.config, dense.directory, **options)
    common.check_vocabulary(train, teacher.config, teacher.directory)
    if config.prune_vocabulary:
        last = int(vocabulary.used(load_tokenizer(dense.directory), [])[-1])
        if last >= dense.config.vocab_size:
            raise UserError(
                f"{dense.directory}: its tokenizer has a piece of id {last}, the model {dense.config.vocab_size} pieces; "
                "expected the tokenizer that the model was trained with"
            )
    dev = None
    if config.eval_data_dir:
        dev = common.read_checked(config.eval_data_dir, "--eval_data_dir", dense.config, dense.directory, **options)
    else:
        refuse_unevaluated(eval_steps=config.eval_steps)
    if "temperature" in unusual(losses) and not losses.soft_weight:
        raise UserError(f"--temperature {losses.temperature}: has no part where --soft_weight is 0; leave it out")
    if losses.label_weight or config.method == "structured":
        train.require_labels("--train_data_dir")
    with run.log.check("labels") as found:
        dense = align_labels(dense, train, run.log.line)
        teacher = align_labels(teacher, train, run.log.line) if config.teacher else dense
        train.check_classes(dense.config.num_labels, learnt=True)
        if dev is not None:
            check_evaluated(dev, dense.config)
        found("a number" if dense.config.regression else ", ".join(dense.config.labels))
    buckets = common.buckets_for(run.step.buckets, train, fixed=False)
    load = Load(
        trained=2 * dense.config.parameters,  # with masks and scores
        model=dense.config,
        teacher=teacher.config,
        teacher_parameters=teacher.config.parameters,
        matched=dense.config.num_hidden_layers if losses.intermediate_weight else 0,
        batch_size=run.step.batch_size,
        buckets=buckets,
        keep=config.max_ckpt_num,
    )
    run.check_load(load)
    return Job(run, config, losses, optim, groups, dense, teacher, train, dev, buckets)
