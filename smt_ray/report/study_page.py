"""The page of a study, which many runs make: main result, figures, tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from markupsafe import Markup

from smt_ray.data.storage import Location
from smt_ray.report.page import render
from smt_ray.report.panels import Panel


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of written cells below the columns' names; columns of numbers stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    marked: int | None = None
    """Row that stands out."""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column's cells all begin like numbers; an empty one is anything."""
        return [
            all(re.match(r"[-+]?[.\d]|$", row[column]) for row in self.rows)
            for column in range(len(self.columns))
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A question, the figures and tables that answer it, and a note below them."""

    title: str
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What a page shows; every part but the title may be empty, and then leaves no trace."""

    title: str
    kind: str = "study"
    """What stands above the title, as `sweep`."""
    about: str = ""
    """What stands below it."""
    headline: tuple[str, str] | None = None
    """The main figure, and what it is."""
    lead: str = ""
    """The main result in words."""
    facts: Sequence[tuple[str, str]] = ()
    """Further figures, as (label, text)."""
    sections: Sequence[Section] = ()
    commands: tuple[str, str] | None = None
    """What can be done with the result: a title, and commands or code."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings that all runs share."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, processors, workers, by name."""


def write_study(directory: Location, study: Study) -> None:
    """Write the study's `report.html` to `directory`."""
    page = render(
        "study",
        title=study.title,
        study=study,
        config=yaml.safe_dump(dict(study.config), sort_keys=False),
        number=Markup(' class="number"'),
        marked=Markup(' class="marked"'),
    )
    (directory / "report.html").write_text(page)
