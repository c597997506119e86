"""Which layer of the teacher each layer of the student learns from."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError

MODES = ("uniform", "last", "first")


@dataclass(frozen=True)
class LayerMap:
    """0-based teacher layers for the student's attentions, and teacher hidden states (0 is the embedding output).

    Attributes:
        states: the student's hidden states that learn from those of `hidden`, one each; by default all, in order.
    """

    attention: tuple[int, ...]
    hidden: tuple[int, ...]
    states: tuple[int, ...] = ()

    @property
    def hidden_pairs(self) -> tuple[tuple[int, int], ...]:
        """Hidden states of student and teacher that are compared."""
        return tuple(zip(self.states or range(len(self.hidden)), self.hidden, strict=True))

    def kept(self) -> LayerMap:
        """The same map onto a teacher of which only the outputs it names were kept, in their order."""
        return LayerMap(tuple(range(len(self.attention))), tuple(range(len(self.hidden))), self.states)

    def ends(self, student_layers: int, teacher_layers: int) -> LayerMap:
        """The same attentions, with the embedding output and the last hidden state of both models."""
        return LayerMap(self.attention, (0, teacher_layers), (0, student_layers))


def layer_map(spec: str, student_layers: int, teacher_layers: int) -> LayerMap:
    """Build a map from its name or from a list.

    "uniform": every k-th layer, k = L_T / L_S, as TinyBERT does (a 4-layer student of a 12-layer teacher: attentions
    2,5,8,11 and hidden states 0,3,6,9,12). "last": the teacher's last layers in order. "first": its first ones.
    "1,3,5": these teacher layers, 0-based, one for each student layer. A student layer learns the attention of its
    teacher layer and the hidden state behind it; embeddings always learn from embeddings.

    Raises:
        UserError: the numbers of layers do not go together; says which lists would.
    """
    if spec in MODES and student_layers > teacher_layers:
        raise UserError(f"--layer_map {spec}: the student has {student_layers} layers, the teacher {teacher_layers}")
    if spec == "uniform":
        if teacher_layers % student_layers:
            raise UserError(
                f"--layer_map uniform: the teacher's {teacher_layers} layers are not a multiple of the student's "
                f"{student_layers}; give a list of {student_layers} teacher layers from 0 to {teacher_layers - 1}, "
                f"such as --layer_map {','.join(map(str, _spread(student_layers, teacher_layers)))}, or last, or first"
            )
        step = teacher_layers // student_layers
        chosen = [index * step + step - 1 for index in range(student_layers)]
    elif spec in ("last", "first"):
        start = teacher_layers - student_layers if spec == "last" else 0
        chosen = list(range(start, start + student_layers))
    else:
        try:
            chosen = [int(part) for part in spec.split(",")]
        except ValueError:
            raise UserError(f"--layer_map {spec!r}: expected {', '.join(MODES)} or a list such as 1,3,5") from None
        if len(chosen) != student_layers:
            raise UserError(
                f"--layer_map {spec}: {len(chosen)} layers for a student of {student_layers}; name one each"
            )
        bad = [layer for layer in chosen if not 0 <= layer < teacher_layers]
        if bad:
            raise UserError(f"--layer_map {spec}: no layer {bad[0]}; the teacher's are 0 to {teacher_layers - 1}")
    return LayerMap(tuple(chosen), (0, *(layer + 1 for layer in chosen)))


def _spread(student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher layers about evenly apart, the last one among them."""
    return [round((index + 1) * teacher_layers / student_layers) - 1 for index in range(student_layers)]
