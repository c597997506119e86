"""Which layers of student and teacher are compared, and what brings their hidden states to one width."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import params
from ..distill.layer_map import LayerMap, layer_map
from ..distill.objectives import FitDense, Same, check_heads
from ..errors import UserError
from ..models.config import ModelConfig
from ..train.log import RunLog


def matched_layers(
    spec: str, student: ModelConfig, teacher: ModelConfig, log: RunLog, attention: bool = True
) -> LayerMap:
    """The layer map of `--layer_map`, for attention scores that can be compared.

    Args:
        attention: whether they are compared at all; without them, heads may differ.

    Raises:
        UserError: layers or heads do not go together.
    """
    with log.check("layers") as found:
        pairs = layer_map(spec, student.num_hidden_layers, teacher.num_hidden_layers)
        found(f"the student's {student.num_hidden_layers} learn from teacher layers {pairs.attention}")
    if not attention:
        return LayerMap((), pairs.hidden)
    with log.check("heads") as found:
        check_heads(pairs, student.layer_heads, teacher.layer_heads)
        found(f"{student.num_attention_heads}, as the teacher has")
    return pairs


def projection(
    student: ModelConfig,
    teacher: ModelConfig,
    pairs: LayerMap,
    seed: int,
    kind: str = "shared",
    carried: Mapping[str, np.ndarray] | None = None,
) -> FitDense | Same:
    """What brings the student's hidden states to the teacher's width: nothing where they have it."""
    if student.hidden_size == teacher.hidden_size:
        if kind == "layer":
            raise UserError("--fit_dense layer: student and teacher are equally wide, and need none; leave it out")
        return Same()
    return fit_dense(kind, student, teacher, pairs, carried or {}, seed)


def fit_dense(
    kind: str,
    student: ModelConfig,
    teacher: ModelConfig,
    pairs: LayerMap,
    carried: Mapping[str, np.ndarray],
    seed: int,
) -> FitDense:
    """The projection of the student's hidden states, from an earlier stage where it brings one.

    Raises:
        UserError: the one it brings is of another width or count.
    """
    if carried:
        count = 1 if "fit_dense.weight" in carried else len(carried) // 2
        if kind == "layer" and count == 1:
            raise UserError("--fit_dense layer: the student brings one for all layers; leave it out")
    else:
        count = 1 if kind == "shared" else len(pairs.hidden)
    fit = FitDense(student.hidden_size, teacher.hidden_size, count)
    params.initialise(fit, seed, student.initializer_range)
    if carried:
        names = {ours: theirs for ours, theirs in _fit_paths(fit).items()}
        missing = [theirs for theirs in names.values() if theirs not in carried]
        if missing or (count > 1 and count != len(pairs.hidden)):
            raise UserError(f"the student's fit_dense has {count} projections; the layer map needs {len(pairs.hidden)}")
        params.assign(fit, {ours: carried[theirs] for ours, theirs in names.items()}, "fit_dense of the student")
    return fit


def _fit_paths(fit: FitDense) -> dict[str, str]:
    return {path: fit.names()[path.rsplit(".", 1)[-1]] for path in params.named(fit)}


def fit_arrays(fit: FitDense | Same) -> dict[str, np.ndarray]:
    """The projection's weights under their names in checkpoints; none where there is none."""
    if isinstance(fit, Same):
        return {}
    paths = _fit_paths(fit)
    return {paths[path]: value for path, value in params.arrays(fit).items()}
