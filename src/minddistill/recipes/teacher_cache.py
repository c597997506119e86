"""A teacher's outputs, computed once: whether it pays, and filling the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.loader import Loader
from ..data.records import Rows
from ..data.teacher_cache import NOTE, Layout, TeacherCache, noted
from ..distill.layer_map import LayerMap
from ..errors import UserError
from ..models import store
from ..models.config import ModelConfig
from ..models.heads import TextModel, outputs_function
from ..problems import TOKEN
from ..runtime import Runtime
from .judging import EVAL_BATCH

SETTINGS = ("auto", "off")  # of --teacher_cache, besides a directory
_MOST_OF_FREE_DISK = 0.5
# Batches of short rows are large: 64 rows of 8 tokens take 1.4 times as long a row as 256 do.
_BATCH_TOKENS = 2048


def layout_of(config: ModelConfig, pairs: LayerMap | None) -> Layout:
    """What phase 1 needs of a teacher (`pairs`), or phase 2 (None); the logits are kept in both.

    Raises:
        UserError: its layers differ in their number of heads.
    """
    hidden, attention = (pairs.hidden, pairs.attention) if pairs else ((), ())
    heads = {config.layer_heads[layer] for layer in attention} or {config.num_attention_heads}
    if len(heads) > 1:
        raise UserError(
            f"the teacher's layers have {', '.join(map(str, sorted(heads)))} attention heads; a cache keeps as many of each; "
            "give --teacher_cache off"
        )
    sizes = config.hidden_size, heads.pop(), config.num_labels
    return Layout(tuple(hidden), tuple(attention), *sizes, tokens=config.problem == TOKEN)


def pays(layout: Layout, rows: Rows, epochs: int, output_dir: Path, say: Callable[[str], None]) -> bool:
    """Whether a cache is worth writing: the teacher would run in more than one epoch, and half of the disk is enough."""
    size, free = layout.bytes(rows.length), shutil.disk_usage(output_dir).free
    if epochs < 2 or size <= _MOST_OF_FREE_DISK * free:
        return epochs > 1
    say(f"Teacher cache: would take {size / 1e9:.2f} GB of {free / 1e9:.2f} GB free; the teacher runs live")
    return False


def identity(teacher: store.Weights, rows: Rows, types: dict[str, str], caches: Path) -> dict[str, Any]:
    """What a cache belongs to: the teacher's weights and shape, the rows, and the types it was computed in.

    Args:
        types: from `runtime.type_names`. A teacher that is only an outline was computed elsewhere: where nothing of
            these types is under `caches`, those of what is found there stand.

    Raises:
        UserError: the outline's cache holds other rows.
    """
    mine = {"teacher": teacher.fingerprint(), "rows": rows.fingerprint()}
    if not teacher.outline:
        return mine | {"types": types}
    notes = map(noted, sorted(caches.glob(f"*/{NOTE}")))
    found = [known["types"] for known in notes if {name: known.get(name) for name in mine} == mine]
    if found:
        return mine | {"types": types if types in found else found[0]}
    raise UserError(
        f"{caches}: holds nothing of the teacher {teacher.source} for the rows of {rows.directory}; "
        "run minddistill cache-teacher on these records where the teacher is"
    )


def outline_in(caches: str) -> str:
    """The outline of the only teacher under a directory of caches, or "".

    Raises:
        UserError: there are several.
    """
    found = sorted(Path(caches).glob(f"teacher_*/{store.OUTLINE_FILE}")) if caches not in SETTINGS else []
    if len(found) > 1:
        names = ", ".join(str(note.parent) for note in found)
        raise UserError(f"--teacher_cache {caches}: of several teachers; give one as --load_teacher_ckpt_path: {names}")
    return str(found[0].parent) if found else ""


def whole(caches: Path, owner: dict[str, Any], length: np.ndarray) -> Layout | None:
    """The layout of a cache in which all shards are that hold this teacher's logits for rows of these lengths, or None."""
    for note in sorted(caches.glob(f"{_key(owner)}_*/{NOTE}")):
        known = noted(note).get("layout")
        if known is None:
            continue
        layout = Layout(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
        shards = len(TeacherCache(note.parent, layout, length, owner).shards)
        if layout.classes and len(list(note.parent.glob("shard_*.json"))) == shards:
            return layout
    return None


def opened(caches: Path, layout: Layout, rows: Rows, owner: dict[str, Any]) -> TeacherCache:
    """The cache of one layout of one teacher's outputs for one data set, as far as it is there."""
    return TeacherCache(path_of(caches, owner, layout), layout, rows.length, owner)


def path_of(caches: Path, owner: dict[str, Any], layout: Layout) -> Path:
    """The directory of one layout of one teacher's outputs for one data set."""
    return caches / f"{_key(owner)}_{layout.name}"


def _key(owner: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(owner, sort_keys=True).encode()).hexdigest()[:12]


def filled(
    caches: Path,
    layout: Layout,
    rows: Rows,
    owner: dict[str, Any],
    teacher: TextModel | None,
    buckets: list[int],
    epochs: int,
    place: Runtime,
    say: Callable[[str], None],
) -> TeacherCache:
    """The cache of `layout` under `caches`, whole: what is missing is computed, shard by shard.

    Of several processes, which share the directory, each computes a part of the shards.

    Args:
        owner: from `identity`.
        teacher: what computes the missing outputs; None where only its outline is here.

    Raises:
        UserError: outputs are missing, and so is the teacher.
    """
    cache = opened(caches, layout, rows, owner)
    for rank in range(place.size):  # one after the other: looking drops what is not to be used
        if rank == place.rank:
            missing, dropped = cache.missing()
        place.all()
    for line in dropped:
        say(f"Teacher cache: {line}; computed again")
    if place.all(not missing):
        say(f"Teacher cache: reading {cache.directory}")
        return cache
    if teacher is None:
        raise UserError(
            f"{cache.directory}: {len(missing)} of {len(cache.shards)} shards are missing, and the teacher is not here; "
            "run minddistill cache-teacher with the same records, student and layer map, or copy the whole cache"
        )
    forward = outputs_function(teacher, layout.hidden, layout.attention, bool(layout.classes))
    seconds = _seconds(forward, rows, buckets)
    say(
        f"Teacher cache: writing {layout.bytes(rows.length) / 1e9:.2f} GB to {cache.directory}, {len(missing)} of "
        f"{len(cache.shards)} shards; the teacher takes about {seconds:.0f} s an epoch, so that {epochs} epochs are to "
        f"save {seconds * max(epochs - 1, 0):.0f} s"
    )
    began = time.perf_counter()
    # Each process has its share of all shards, as another run may write to the same directory; what that one has
    # finished meanwhile is not computed again.
    for shard in map(int, cache.shards[place.rank :: place.size]):
        if shard in missing and cache.problem(shard) is not None:
            cache.write(shard, _outputs(forward, cache, rows, shard, buckets))
    place.all()
    if place.size > 1 and (left := [shard for shard in missing if cache.problem(shard) is not None]):
        raise UserError(
            f"{cache.directory}: {len(left)} of {len(cache.shards)} shards are not here after all processes have written "
            "theirs; expected a directory that all of them share"
        )
    say(f"Teacher cache: written in {time.perf_counter() - began:.0f} s")
    return cache


def _seconds(forward: Callable, rows: Rows, buckets: list[int]) -> float:
    """About how long the teacher takes for all rows, from one batch of the length that most tokens are padded to."""
    loader = _loader(rows, buckets)
    plan = loader.plan(0)
    tokens = dict.fromkeys(loader.buckets, 0)
    for planned in plan:
        tokens[planned.length] += planned.length * len(planned.rows)
    common = max(tokens, key=lambda length: tokens[length])
    first = next(planned for planned in plan if planned.length == common)
    batch = loader.batch(first)
    forward(batch)  # compiles
    began = time.perf_counter()
    forward(batch)
    return (time.perf_counter() - began) * sum(tokens.values()) / (common * len(first.rows))


def _loader(rows: Rows, buckets: list[int]) -> Loader:
    return Loader(rows, EVAL_BATCH, buckets=buckets, shuffle=False, batch_tokens=_BATCH_TOKENS)


def _outputs(
    forward: Callable, cache: TeacherCache, rows: Rows, shard: int, buckets: list[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    mine, layout = cache.rows_of(shard), cache.layout
    part = rows.take(mine)
    loader = _loader(part, buckets)
    for planned in loader.plan(0):
        found = forward(loader.batch(planned))
        for place in range(planned.real):
            row = int(mine[planned.rows[place]])
            size = int(rows.length[row])
            hidden = [found[i][place, :size] for i in range(len(layout.hidden))]
            first = len(layout.hidden)
            scores = [found[first + i][place, :, :size, :size] for i in range(len(layout.attention))]
            logits = found[-1][place] if layout.classes else np.zeros(0, np.float32)
            logits = logits[:size] if layout.tokens else logits
            yield row, _stack(hidden), _stack(scores), logits


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    return np.stack(parts) if parts else np.zeros(0, np.float16)
