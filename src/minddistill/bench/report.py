"""A report: one HTML file out of plain values, readable without network. All text in it is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ..files import write_text
from .plots import inline_svg

_TEMPLATES = Path(__file__).parent / "templates"
_MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and how its numbers are shown (a format such as `.4f`, `.1%` or `,`).

    A column without a format holds words; a wide one, sentences.
    """

    title: str
    format: str = ""
    wide: bool = False

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers, which stand to the right."""
        return bool(self.format)

    def show(self, value: Any) -> str:
        """The text of a value; None and NaN are a dash."""
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return _MISSING
        return format(value, self.format) if self.numeric else str(value)


@dataclass(frozen=True)
class Table:
    """Rows that the reader can sort by any column, and, where there are many, filter."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    searchable: bool = False


@dataclass(frozen=True)
class Confusion:
    """How often each true class (a row of `counts` (C, C)) was predicted as each class."""

    title: str
    labels: Sequence[str]
    counts: np.ndarray

    def share(self, truth: int, found: int) -> float:
        """The part of a true class that was predicted so."""
        return float(self.counts[truth, found] / max(self.counts[truth].sum(), 1))


@dataclass(frozen=True)
class Section:
    """A part of a report; what it does not have is left out.

    Attributes:
        note: a sentence under the title.
        facts: names and values.
        code: text shown as it is, folded.
    """

    title: str
    note: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    table: Table | None = None
    confusions: Sequence[Confusion] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    code: str = ""


def write_report(
    path: Path, title: str, lead: str, headline: Sequence[tuple[str, str, str]], sections: Sequence[Section]
) -> Path:
    """Write a report whole.

    Args:
        lead: a sentence on what was done.
        headline: the figures that matter most: name, value, remark.

    Returns:
        `path`.
    """
    script, style = ((_TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    drawn = [
        {
            name: Markup(inline_svg(figure, f"figure-{place}-{index}-"))
            for index, (name, figure) in enumerate(all_.items())
        }
        for place, all_ in enumerate(section.figures for section in sections)
    ]
    page = environment.get_template("report.html").render(
        title=title,
        lead=lead,
        headline=headline,
        sections=list(zip(sections, drawn, strict=True)),
        zip=zip,
        style=Markup(style),
        script=Markup(script),
        # The browser runs this script and no other, whatever the text of an example holds.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(path, page)
    return path
