"""A teacher's outputs, computed once: whether it pays, and filling the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..data.loader import Loader
from ..data.records import Rows
from ..data.teacher_cache import NOTE, Layout, TeacherCache
from ..distill.layer_map import LayerMap
from ..files import read_json
from ..models import store
from ..models.config import ModelConfig
from ..models.heads import TextModel, outputs_function
from .common import EVAL_BATCH

_MOST_OF_FREE_DISK = 0.5


def layout_of(config: ModelConfig, pairs: LayerMap | None) -> Layout:
    """What phase 1 needs of a teacher (`pairs`), or phase 2 (None); the logits are kept in both."""
    hidden, attention = (pairs.hidden, pairs.attention) if pairs else ((), ())
    return Layout(tuple(hidden), tuple(attention), config.hidden_size, config.num_attention_heads, config.num_labels)


def pays(layout: Layout, rows: Rows, epochs: int, output_dir: Path, say: Callable[[str], None]) -> bool:
    """Whether a cache is worth writing: the teacher would run in more than one epoch, and half of the disk is enough."""
    size, free = layout.bytes(rows.length), shutil.disk_usage(output_dir).free
    if epochs < 2 or size <= _MOST_OF_FREE_DISK * free:
        return epochs > 1
    say(f"Teacher cache: would take {size / 1e9:.2f} GB of {free / 1e9:.2f} GB free; the teacher runs live")
    return False


def identity(teacher: store.Weights, rows: Rows, types: dict[str, Any]) -> dict[str, Any]:
    """What a cache belongs to: the teacher's weights and shape, the rows, and the types it was computed in."""
    digest = hashlib.sha256(json.dumps(asdict(teacher.config), sort_keys=True, default=str).encode())
    for path in sorted(teacher.values):
        digest.update(np.ascontiguousarray(teacher.values[path]))
    return {
        "teacher": digest.hexdigest()[:16],
        "rows": rows.fingerprint(),
        "types": {k: str(v) for k, v in types.items()},
    }


def begun(caches: Path, owner: dict[str, Any]) -> Layout | None:
    """The layout of a cache that holds this teacher's logits for these rows, or None."""
    for note in sorted(caches.glob(f"{_key(owner)}_*/{NOTE}")):
        known = read_json(note, "the note of a teacher cache")["layout"]
        layout = Layout(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
        if layout.classes:
            return layout
    return None


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
    teacher: TextModel,
    buckets: list[int],
    epochs: int,
    say: Callable[[str], None],
) -> TeacherCache:
    """The cache of `layout` under `caches`, whole: what is missing is computed, shard by shard.

    Args:
        owner: from `identity`.
        teacher: what computes the missing outputs.
    """
    cache = TeacherCache(path_of(caches, owner, layout), layout, rows.length, owner)
    missing, dropped = cache.missing()
    for line in dropped:
        say(f"Teacher cache: {line}; computed again")
    if not missing:
        say(f"Teacher cache: reading {cache.directory}")
        return cache
    size = layout.bytes(rows.length) / 1e9
    say(f"Teacher cache: writing {size:.2f} GB to {cache.directory}, {len(missing)} of {len(cache.shards)} shards")
    forward = outputs_function(teacher, layout.hidden, layout.attention, bool(layout.classes))
    began = time.perf_counter()
    for shard in missing:
        cache.write(shard, _outputs(forward, cache, rows, shard, buckets))
    seconds = time.perf_counter() - began
    say(
        f"Teacher cache: written in {seconds:.0f} s; about {seconds * max(epochs - 1, 0):.0f} s saved over {epochs} epochs"
    )
    return cache


def _outputs(
    forward: Callable, cache: TeacherCache, rows: Rows, shard: int, buckets: list[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    mine, layout = cache.rows_of(shard), cache.layout
    part = rows.take(mine)
    useful = [length for length in buckets if length <= rows.seq_length]
    loader = Loader(part, EVAL_BATCH, buckets=useful, shuffle=False)
    for planned in loader.plan(0):
        found = forward(loader.batch(planned))
        for place in range(planned.real):
            row = int(mine[planned.rows[place]])
            size = int(rows.length[row])
            hidden = [found[i][place, :size] for i in range(len(layout.hidden))]
            first = len(layout.hidden)
            scores = [found[first + i][place, :, :size, :size] for i in range(len(layout.attention))]
            logits = found[-1][place] if layout.classes else np.zeros(0, np.float32)
            yield row, _stack(hidden), _stack(scores), logits


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    return np.stack(parts) if parts else np.zeros(0, np.float16)
