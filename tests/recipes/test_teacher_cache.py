"""A cached teacher against the live one."""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from minddistill.data.loader import Loader
from minddistill.data.records import Rows
from minddistill.distill.distiller import CachedTeacher, Distiller
from minddistill.distill.layer_map import layer_map
from minddistill.distill.objectives import FitDense, Intermediate, Prediction
from minddistill.files import write_json
from minddistill.models import store
from minddistill.models.presets import preset
from minddistill.params import initialise
from minddistill.recipes import teacher_cache
from minddistill.runtime import Runtime

COUNT, LONGEST, WORDS = 21, 16, 40


def some_rows() -> Rows:
    generator = np.random.default_rng(0)
    length = generator.integers(3, LONGEST + 1, COUNT).astype(np.int32)
    length[0] = LONGEST
    ids = generator.integers(5, WORDS, (COUNT, LONGEST)) * (np.arange(LONGEST) < length[:, None])
    return Rows(ids.astype(np.uint16), length, length - 1, np.zeros(COUNT, np.int32), {}, Path("rows"), str)


def test_live_and_cached_teacher_give_the_same_losses(tmp_path):
    rows = some_rows()
    shape = {"vocab_size": WORDS, "labels": ("no", "yes"), "pooler": True, "max_position_embeddings": LONGEST}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = store.new(preset("test-4l-32").with_(**shape), seed=1)
    student = store.new(preset("test-2l-32").with_(**shape, **still), seed=2)
    pairs = layer_map("uniform", 2, 4)
    fit = FitDense(32, 32, 1)
    initialise(fit, 3, 0.02)
    layout = teacher_cache.layout_of(teacher.config, pairs)
    said: list[str] = []
    cache = teacher_cache.filled(
        tmp_path, layout, rows, {"teacher": "x"}, teacher, [8, 16], 2, Runtime("CPU"), said.append
    )
    assert "2 epochs are to save" in said[-2] and "written" in said[-1]
    again = teacher_cache.filled(
        tmp_path, layout, rows, {"teacher": "x"}, None, [8, 16], 2, Runtime("CPU"), said.append
    )
    assert said[-1].startswith("Teacher cache: reading") and again.directory == cache.directory

    cached = CachedTeacher(3, 2)
    # float16 keeps 11 bits, so a hidden state or score is off by at most 2^-12 of itself; logits are float32.
    phases = [
        (Intermediate(pairs, fit), Intermediate(pairs.kept(), fit), cached, cache.batch, 2**-10),
        (Prediction(), Prediction(), CachedTeacher(), cache.logits, 1e-6),
    ]
    for objective, kept_objective, kept, columns, bound in phases:
        losses = []
        for goal, source, extra in ((objective, teacher, None), (kept_objective, kept, columns)):
            cell = Distiller(student, source, goal)
            loader = Loader(rows, 8, buckets=[8, 16], shuffle=False, columns=extra)
            step = Tensor(0, ms.int32)
            losses.append([float(cell(ms.mutable(batch), step)[0].asnumpy()) for batch in loader.epoch(0)])
        np.testing.assert_allclose(losses[1], losses[0], rtol=bound)


def test_a_cache_that_was_begun_is_not_filled_for_its_logits(tmp_path):
    rows, owner = some_rows(), {"teacher": "x"}
    shape = {"vocab_size": WORDS, "labels": ("no", "yes"), "pooler": True, "max_position_embeddings": LONGEST}
    teacher = store.new(preset("test-4l-32").with_(**shape), seed=1)
    layout = teacher_cache.layout_of(teacher.config, layer_map("uniform", 2, 4))
    assert teacher_cache.whole(tmp_path, owner, rows.length) is None
    options = rows, owner, teacher, [8, 16], 2, Runtime("CPU"), str
    cache = teacher_cache.filled(tmp_path, layout, *options)
    assert teacher_cache.whole(tmp_path, owner, rows.length) == layout
    next(cache.directory.glob("shard_*.json")).unlink()
    assert teacher_cache.whole(tmp_path, owner, rows.length) is None


def test_of_two_precisions_an_absent_teacher_has_the_one_that_is_asked_for(tmp_path):
    rows = some_rows()
    config = preset("test-4l-32").with_(vocab_size=WORDS, labels=("no", "yes"), pooler=True)
    outline = store.Weights(config, {}, tmp_path, outline="0123456789abcdef")
    kinds = [{"compute_type": name, "dtype": "float32"} for name in ("float32", "bfloat16", "float16")]
    for index, types in enumerate(kinds[:2]):
        owner = {"teacher": outline.fingerprint(), "rows": rows.fingerprint(), "types": types}
        write_json(tmp_path / str(index) / "cache.json", owner)
    for types, expected in zip(kinds, [*kinds[:2], kinds[0]], strict=True):
        assert teacher_cache.identity(outline, rows, types, tmp_path)["types"] == expected
