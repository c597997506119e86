"""Files and directories are whole or absent; packages that hold a model are found by name."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from minddistill.files import (
    DiskFull,
    append_line,
    model_path,
    recover_directory,
    remove_parts,
    replace_directory,
    whole_file,
    whole_files,
)


def test_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_failed_directory_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "model"
    replace_directory(path, lambda part: (part / "x").write_text("1"))
    replace_directory(path, lambda part: (part / "x").write_text("2"))

    def fail(part):
        (part / "x").write_text("3")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        replace_directory(path, fail)
    assert (path / "x").read_text() == "2" and [file.name for file in tmp_path.iterdir()] == ["model"]


def test_directory_comes_back_after_a_kill_between_renames(tmp_path):
    (tmp_path / "model.old").mkdir()
    (tmp_path / "model.old" / "x").write_text("1")
    recover_directory(tmp_path / "model")
    assert (tmp_path / "model" / "x").read_text() == "1" and not (tmp_path / "model.old").exists()


def test_files_that_belong_together_appear_with_the_named_one_last(tmp_path):
    path = tmp_path / "a.data"
    with whole_files(path) as part:
        part.write_text("data")
        part.with_name("a.data.index").write_text("index")
        assert not path.exists() and part.name == path.name
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.data", "a.data.index"]
    with pytest.raises(RuntimeError), whole_files(tmp_path / "b.data") as part:
        part.write_text("half")
        raise RuntimeError
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.data", "a.data.index"]


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    script = "import os; from minddistill.files import whole_file, replace_directory as fill\n"
    script += "def die(part): (part / 'x').write_text('1'); os.kill(os.getpid(), 9)\n"
    writes = f"with whole_file({str(tmp_path / 'a')!r}) as part: part.write_text('1'); os.kill(os.getpid(), 9)"
    for code in (writes, f"fill({str(tmp_path / 'b')!r}, die)"):
        assert subprocess.run([sys.executable, "-c", f"{script}{code}"]).returncode == -9
    living, foreign = tmp_path / f".c.{os.getppid()}.part", tmp_path / ".download.part"
    living.write_text("")
    foreign.write_text("")
    assert len(list(tmp_path.iterdir())) == 4
    remove_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == [living, foreign]


def test_what_another_host_writes_stays_until_it_is_a_day_old(tmp_path):
    new, old = (tmp_path / f".{name}.0123abcd-{os.getpid()}.part" for name in "ab")
    for part in (new, old):
        part.write_text("half")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_a_full_disk_is_told_with_path_and_bytes_and_leaves_what_was_there(small_disk):
    disk = small_disk(64)
    path, model, line = disk / "a.bin", disk / "model", disk / "log.txt"
    path.write_bytes(b"earlier")
    replace_directory(model, lambda part: (part / "x").write_text("earlier"))
    told = r"a\.bin: the disk is full: 100000 bytes needed, \d+ free"
    with pytest.raises(DiskFull, match=told), whole_file(path, 100000) as part:
        part.write_bytes(bytes(100000))
    with pytest.raises(DiskFull, match=r"model: the disk is full: more than \d+ bytes needed, \d+ free"):
        replace_directory(model, lambda part: save_file({"w": np.zeros(30000, np.float32)}, part / "w.safetensors"))
    with pytest.raises(DiskFull, match=r"log\.txt: the disk is full: 100001 bytes needed"):
        append_line(line, "x" * 100000)
    assert path.read_bytes() == b"earlier" and (model / "x").read_text() == "earlier"
    line.unlink()
    assert sorted(file.name for file in disk.iterdir()) == ["a.bin", "model"]


def test_model_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "some_encoder"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert model_path("some-encoder") == package / "model"
    assert str(model_path("absent-encoder")) == "absent-encoder"
    assert str(model_path("../some_encoder")) == "../some_encoder"
