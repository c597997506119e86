"""Compute a teacher's outputs ahead, so that its student can be trained where the teacher is not."""

from __future__ import annotations

from pathlib import Path

from .. import runtime
from ..config import dump, parse
from ..errors import UserError
from ..models import store
from . import teacher_cache
from .checks import check_disk
from .flags import RunFlags, StepFlags, StudentFlags
from .matching import matched_layers
from .run import open_run
from .student import starting_point
from .task_distill import GROUPS
from .task_job import Config, Learning, prepare


def run(config: Config, learning: Learning, student: StudentFlags, run_flags: RunFlags, step_flags: StepFlags) -> Path:
    """Fill the directory of `--teacher_cache` and return the teacher's outline in it.

    The flags are those of task distillation: records, student and layer map say what is kept. With
    `--td_phase1_epoch_size 0` only the logits are, which is what phase 2 needs.

    Raises:
        UserError: `--teacher_cache` names no directory, or flags, records and teacher do not go together.
    """
    if learning.teacher_cache in teacher_cache.SETTINGS:
        raise UserError(f"--teacher_cache {learning.teacher_cache}: expected the directory to write")
    caches = Path(learning.teacher_cache)
    run_flags.output_dir = run_flags.output_dir or str(caches)
    config.do_eval = bool(config.eval_data_dir)
    place = runtime.start(config.device_target, config.device_id, config.distribute, config.device_num)
    with open_run(run_flags, step_flags, place) as opened:
        if not place.rank:
            dump(opened.directory / "config.yaml", [config, learning, student, run_flags, step_flags])
        job = prepare(opened, config, learning, student)
        job.require_one_teacher("cache-teacher, given for each of them in turn,")
        teachers = job.built_teachers()
        job.check(teachers)
        pairs = None
        if config.td_phase1_epoch_size and not config.load_td1_ckpt_path:
            _, _, wanted = starting_point(job)
            pairs = matched_layers(student.layer_map, wanted, job.teacher.config, opened.log)
        check_disk({caches: job.bytes_to_cache(pairs)}, opened.directory, opened.log)
        job.taught(pairs, teachers)
        outline = caches / f"teacher_{job.teacher.fingerprint()}"
        if not place.rank:
            store.save_outline(outline, job.teacher)
        opened.log.line(
            f"Task distillation runs without the teacher: --teacher_cache {caches} (its outline is {outline})"
        )
        return outline


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill cache-teacher`."""
    run(*parse("minddistill cache-teacher", "Keep a teacher's outputs for task distillation.", GROUPS, argv))
