"""What goes on where it stopped, what starts over, and what is refused."""

import json
import os
import shutil
import signal
from dataclasses import dataclass, fields

import numpy as np
import pytest
import small
from safetensors.numpy import load_file, save_file
from small import command

from minddistill.data import records
from minddistill.errors import UserError
from minddistill.models import store
from minddistill.recipes import finetune, general_distill, prepare_corpus, prepare_task, resume, task_distill
from minddistill.recipes.flags import OptimFlags, RunFlags, StepFlags
from minddistill.recipes.run import open_run
from minddistill.runtime import Runtime
from minddistill.train.checkpoint import Checkpoints
from minddistill.train.log import read_metrics


@pytest.fixture
def finished(tmp_path, teacher):
    """A copy of the directory in which the teacher was trained, with a checkpoint."""
    return shutil.copytree(teacher.parent, tmp_path / "finished")


def train(data, encoder, out, *more) -> int:
    return command(*small.training(out, data, encoder), *more)


def never(*values, **options):
    raise AssertionError("a model was built")


def test_a_finished_stage_is_told_and_nothing_is_built(finished, data, tiny_encoder, monkeypatch, capsys):
    monkeypatch.setattr("minddistill.models.store.build", never)
    assert train(data, tiny_encoder, finished, "--log_interval", 50, "--max_ckpt_num", 3) == 0
    said = capsys.readouterr().out
    assert f"finetune: finished before; its result is {finished / 'best'}" in said
    best = json.loads((finished / "done.json").read_text())["metrics"]["accuracy"]
    assert f"The best acc is {best:.6f}" in said


@pytest.mark.parametrize("done", [True, False])
def test_other_flags_are_refused_each_with_both_values(finished, data, tiny_encoder, capsys, done):
    if not done:
        (finished / "done.json").unlink()
    kept = (finished / "config.yaml").read_bytes()
    assert train(data, tiny_encoder, finished, "--seed", 7, "--weight_decay", 0.5, "--batch_size", 8) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and ("done.json" if done else "step_00000090.safetensors") in said[0]
    assert "--batch_size x processes was 16, is 8; --seed was 42, is 7; --weight_decay was 0.01, is 0.5;" in said[0]
    assert (finished / "config.yaml").read_bytes() == kept


def test_other_rows_and_another_model_are_refused_by_name(
    finished, data, tiny_text, vocabulary, tiny_encoder, tmp_path, capsys
):
    other = shutil.copytree(tiny_text, tmp_path / "text")
    lines = (other / "train.tsv").read_text().splitlines()
    lines[7] = lines[7].replace("yes", "no") if "yes" in lines[7] else lines[7].replace("no", "yes")
    (other / "train.tsv").write_text("\n".join(lines) + "\n")
    small.records(tmp_path / "data", other, vocabulary)
    model = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    tensors = load_file(model / "model.safetensors")
    next(iter(tensors.values())).reshape(-1)[0] += 1
    save_file(tensors, model / "model.safetensors")
    (model / "minddistill.json").unlink()  # which has the checksum of the weights that it was saved with
    assert train(tmp_path / "data", model, finished) == 2
    said = capsys.readouterr().err
    assert "--model: weights changed; --train_data_dir: train-00000-of-00001.tfrecord changed; give" in said
    moved = shutil.copytree(data, tmp_path / "moved")
    assert train(moved, tiny_encoder, finished) == 0


def test_flags_that_may_change_are_flags():
    groups = [RunFlags, StepFlags, OptimFlags, finetune.Config, general_distill.Config, task_distill.Config]
    groups += [general_distill.Learning, task_distill.Learning]
    assert set(resume.FREE) <= {field.name for group in groups for field in fields(group)}


def test_resume_true_wants_an_earlier_run_and_false_forgets_it(finished, tmp_path):
    place = Runtime("CPU")
    with (
        pytest.raises(UserError, match="holds no earlier run"),
        open_run(RunFlags(str(tmp_path / "new"), resume=True), StepFlags(), place),
    ):
        pass
    with open_run(RunFlags(str(finished), resume=True), StepFlags(), place):
        pass
    left = finished / "checkpoints" / ".step_00000095.safetensors.999999999.part"
    left.write_text("half")
    with open_run(RunFlags(str(finished)), StepFlags(), place):
        pass
    assert (finished / "done.json").is_file() and not left.exists()
    with open_run(RunFlags(str(finished), resume=False), StepFlags(), place):
        pass
    assert not (finished / "done.json").exists() and not list((finished / "checkpoints").iterdir())
    assert (finished / "best").is_dir() and not (finished / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_with_room_the_run_goes_on(
    teacher, data, tiny_encoder, small_disk, monkeypatch, capsys
):
    disk = small_disk(700)
    monkeypatch.setattr("minddistill.recipes.run.check_load", lambda *values: None)  # as if it had filled up since
    assert train(data, tiny_encoder, disk / "run") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"{disk}/run/" in said[0] and "the disk is full" in said[0] and "needed" in said[0]
    small_disk(20000)
    assert train(data, tiny_encoder, disk / "run") == 0
    assert "Resumed from" in capsys.readouterr().out
    for name in ("best", "last"):
        mine, theirs = (path / name / "model.safetensors" for path in (disk / "run", teacher.parent))
        assert mine.read_bytes() == theirs.read_bytes()


def test_an_evaluation_is_not_done_twice_and_another_model_is_measured(teacher, data, tmp_path, monkeypatch, capsys):
    sets = f"{data / 'dev'},{data / 'test'}"
    flags = ["--model", teacher, "--output_dir", tmp_path]
    assert command("evaluate", *flags, "--data_dir", data / "dev") == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert command("evaluate", *flags, "--data_dir", sets) == 0
    assert f"{data / 'dev'}: measured before" in capsys.readouterr().out
    monkeypatch.setattr("minddistill.models.store.build", never)
    assert command("evaluate", *flags, "--data_dir", sets) == 0
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again.keys() == {"dev", "test"} and again["dev"] == found["dev"]
    with pytest.raises(AssertionError, match="built"):
        command("evaluate", "--model", teacher.parent / "last", "--output_dir", tmp_path, "--data_dir", data / "test")


def dies_after(function, calls):
    """The function, which raises as if the process ended once it was called so often."""
    left = iter(range(calls))

    def call(*values, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*values, **options)

    return call


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", ["tfrecord", "mindrecord"])
def test_records_of_a_task_go_on_by_shard(tmp_path, tiny_text, vocabulary, monkeypatch, capsys, kind):
    monkeypatch.setattr(prepare_task, "_ROWS_A_SHARD", 50)

    def prepare(out, *more):
        flags = ["--task_name", "custom", "--train_file", tiny_text / "train.tsv", "--tokenizer", vocabulary]
        shape = ["--max_seq_length", 12, "--workers", 1, "--dataset_type", kind]
        return command("prepare-task", *flags, *shape, "--output_dir", out, *more)

    whole, cut = tmp_path / "whole" / "train", tmp_path / "cut" / "train"
    assert prepare(whole.parent) == 0
    write = f"write_{kind}"
    with monkeypatch.context() as patch:
        patch.setattr(prepare_task, write, dies_after(getattr(prepare_task, write), 3))
        assert prepare(cut.parent) == 130
    with pytest.raises(UserError, match="its writing was not finished"):
        records.read_rows(cut, kind=kind)
    before = {path.name: path.stat().st_mtime_ns for path in cut.glob("*record")}
    assert len(before) == 3
    assert prepare(cut.parent, "--max_seq_length", 10) == 2
    assert "--max_seq_length was 12, is 10; give what it had" in capsys.readouterr().err
    assert prepare(cut.parent) == 0
    assert all((cut / name).stat().st_mtime_ns == value for name, value in before.items())
    assert {name for name in files(cut)} == {name for name in files(whole)} and not (cut / ".work").exists()
    for field in ("ids", "length", "label"):
        rows = [getattr(records.read_rows(path, kind=kind), field) for path in (cut, whole)]
        np.testing.assert_array_equal(*rows)
    assert prepare(cut.parent) == 0
    assert f"train: finished before, 240 rows in {cut}" in capsys.readouterr().out
    shard = next(cut.glob("*record"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert prepare(cut.parent) == 2
    assert (
        f"{shard}: damaged or changed (checksum); remove {cut}, and give the command again" in capsys.readouterr().err
    )


def test_records_of_a_corpus_go_on_by_chunk_and_shard_with_another_number_of_workers(
    tmp_path, vocabulary, monkeypatch, capsys
):
    (tmp_path / "wiki.txt").write_text("\n\n".join("the film was good and the plot is bad ." for _ in range(200)))
    monkeypatch.setattr(prepare_corpus, "_ROWS_A_SHARD", 20)

    def prepare(out, workers, *more):
        flags = ["--input", tmp_path / "wiki.txt", "--tokenizer", vocabulary, "--max_seq_length", 16]
        return command("prepare-corpus", *flags, "--workers", workers, "--output_dir", tmp_path / out, *more)

    assert prepare("whole", 1) == 0
    shards = sorted((tmp_path / "whole").glob("*.tfrecord"))
    assert len(shards) > 3
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    # What a kill before the last two shards leaves.
    plan = json.loads((tmp_path / "cut" / "meta.json").read_text())["plan"]
    for name in ("meta.json", "schema.json", shards[-1].name, shards[-2].name):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "cut" / ".work").mkdir()
    (tmp_path / "cut" / ".work" / "plan.json").write_text(json.dumps({"plan": plan, "workers": 1}))
    assert prepare("cut", 2, "--seed", 1) == 2
    assert "--seed was 42, is 1" in capsys.readouterr().err
    assert prepare("cut", 2) == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    (tmp_path / "wiki.txt").write_text("another text")
    assert prepare("cut", 2) == 2
    assert f"--input: {tmp_path / 'wiki.txt'} changed" in capsys.readouterr().err


def test_masks_of_a_long_segment_are_as_many_as_asked_for(tmp_path, vocabulary, tiny_encoder, capsys):
    (tmp_path / "wiki.txt").write_text("\n\n".join("the film was good and the plot is bad ." for _ in range(200)))
    flags = ["--input", tmp_path / "wiki.txt", "--tokenizer", vocabulary, "--max_seq_length", 32, "--workers", 1]
    assert command("prepare-corpus", *flags, "--masked_lm_prob", 0.8, "--output_dir", tmp_path / "out") == 0
    columns = json.loads((tmp_path / "out" / "schema.json").read_text())["columns"]
    assert columns["masked_lm_ids"]["shape"] == columns["masked_lm_weights"]["shape"] == [26]
    ids = records.read_rows(tmp_path / "out", labelled=False).ids
    share = (ids == small.VOCABULARY.index("[MASK]")).sum(1) / 29
    assert (share > 0.3).all() and 0.6 < share.mean() < 0.67  # 80 % of 23 of the 29 tokens
    learn = ["--model", tiny_encoder, "--data_dir", tmp_path / "out", "--output_dir", tmp_path / "mlm"]
    assert command("pretrain-mlm", *learn) == 2
    assert "has masks of its own; expected a corpus prepared without --masked_lm_prob" in capsys.readouterr().err


def test_a_run_without_evaluation_leaves_no_best_of_an_earlier_one(teacher, data, tiny_encoder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(teacher.parent, run)
    assert (run / "best").is_dir() and (run / "predictions_best.tsv").is_file()
    flags = ["--model", tiny_encoder, "--train_data_dir", data / "train", "--output_dir", run, "--resume", "false"]
    assert command("finetune", *flags, "--epoch_size", 1, *small.QUICK) == 0
    assert (run / "last").is_dir() and not (run / "best").exists() and not (run / "predictions_best.tsv").exists()
    page = (run / "report.html").read_text()
    assert "Confusion" not in page and "No report" not in (run / "log.txt").read_text()


def test_a_stopped_run_leaves_its_model_and_its_last_step_is_logged(data, tiny_encoder, tmp_path, monkeypatch):
    out, flags = tmp_path / "run", ("--log_interval", 40)
    save = Checkpoints.save

    def told_again(checkpoints, state):
        if state.position:  # within an epoch: a batch system tells it again after a while
            os.kill(os.getpid(), signal.SIGTERM)
        save(checkpoints, state)

    with monkeypatch.context() as patch:
        small.stop_in_step(patch, 20)
        patch.setattr(Checkpoints, "save", told_again)
        assert train(data, tiny_encoder, out, *flags) == 130
    stopped = store.read_weights(out / "last")
    assert json.loads((out / "last" / "minddistill.json").read_text())["metrics"] == {}
    assert train(data, tiny_encoder, out, *flags) == 0
    assert [row["step"] for row in read_metrics(out) if "loss" in row] == [40, 80, 90]
    assert store.read_weights(out / "last").fingerprint() != stopped.fingerprint()


@dataclass
class Cached:
    teacher_cache: str
    batch_size: int = 8


def test_a_directory_where_a_run_is_at_work_takes_no_other(tmp_path):
    place = Runtime("CPU")
    with open_run(RunFlags(str(tmp_path / "run")), StepFlags(), place) as opened:
        with (
            pytest.raises(UserError, match=r"run: another run is at work there; wait for it, or give another"),
            open_run(RunFlags(str(tmp_path / "run")), StepFlags(), place),
        ):
            pass
        opened.log.line("it goes on")
    with open_run(RunFlags(str(tmp_path / "run")), StepFlags(), place):
        assert "it goes on" in (tmp_path / "run" / "log.txt").read_text()


def test_a_kept_cache_may_be_moved():
    """What it holds is known by teacher and rows; whether there is one changes the numbers."""
    now = resume.identity([Cached("/ssd2/cache")], {})
    resume.refuse_another(
        "run", {"teacher_cache": "/ssd1/cache", "batch_size x processes": 8}, now
    )  # as it was once written
    resume.refuse_another("run", resume.identity([Cached("/ssd1/cache")], {}), now)
    for other in ("auto", "off"):
        with pytest.raises(UserError, match=f"--teacher_cache was '{other}', is 'a directory'"):
            resume.refuse_another("run", resume.identity([Cached(other)], {}), now)
