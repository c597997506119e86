"""Flags and files of flags."""

from dataclasses import dataclass

import pytest

from minddistill.config import flag, parse, read_yaml


@dataclass
class Group:
    """Numbers."""

    seed: int = flag(1, "a seed")
    name: str = flag("a", "a name")


@pytest.mark.parametrize("form", [["--config", "FILE"], ["--config=FILE"]])
@pytest.mark.parametrize("first", [True, False])
def test_flags_win_over_the_file_wherever_they_stand(tmp_path, form, first):
    file = tmp_path / "flags.yaml"
    file.write_text("seed: 5\nname: b\n")
    words = [word.replace("FILE", str(file)) for word in form]
    (found,) = parse("x", "", [Group], ["--seed", "7", *words] if first else [*words, "--seed", "7"])
    assert (found.seed, found.name) == (7, "b")


def test_dates_are_text_as_the_commands_read_them(tmp_path):
    (tmp_path / "flags.yaml").write_text("name: 2020-01-01\nseed: 3\n")
    assert read_yaml(tmp_path / "flags.yaml") == {"name": "2020-01-01", "seed": 3}
    assert parse("x", "", [Group], ["--config", str(tmp_path / "flags.yaml")])[0].name == "2020-01-01"
