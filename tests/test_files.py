"""Files and directories are whole or absent; packages that hold a model are found by name."""

import pytest

from minddistill.files import model_path, recover_directory, replace_directory, whole_file


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


def test_model_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "some_encoder"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert model_path("some-encoder") == package / "model"
    assert str(model_path("absent-encoder")) == "absent-encoder"
    assert str(model_path("../some_encoder")) == "../some_encoder"
