"""Telling: how reviewing stands comes in; tables with titles, in the words of people who review, go out.

Each fits a terminal of 80 columns. What is left out of them, such as times of day, stands in `--json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from curate.review.agreement import PEOPLE, RULES, SPREADSHEET, Rows, Standing

NOTHING = "-"
"""In the place of a figure that cannot be computed yet."""


@dataclass(frozen=True, slots=True)
class Told:
    """A table with its title, and what explains it below; either can be empty."""

    title: str
    rows: Rows
    below: tuple[str, ...] = ()


def tell(found: Standing) -> list[Told]:
    """The tables of a standing that have anything to show."""
    tables = [
        Told("Review sets: how many conversations are done", _told(found.sets, SETS), _places(found.sets)),
        Told("People: what each has answered", _told(found.people, REVIEWERS), (PACE,) if found.people else ()),
        Told("Agreement: 1 is always the same answer, 0 as often as by chance", _told(found.agreement, AGREEMENT),
             SHARED),
        Told("Suggestions: how often people answer what is suggested", _told(found.anchoring, ANCHORING), (SWAYED,)),
        *_confusions(found.confusions),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


PACE = "pace: half of the answers took less. More than half an hour is a break."
SHARED = (
    "It is Krippendorff's alpha, over the shared ones: several people answered them.",
    "among hidden: where suggestions were hidden.",
)
SWAYED = "difference: percentage points more where seen; give or take: 95 % confidence."

Columns = Mapping[str, Callable[[Mapping[str, Any]], object]]
"""Heading -> its cell of a row."""

SETS: Columns = {
    "set": lambda row: row["set"],
    "conversations": lambda row: row["conversations"],
    "done": lambda row: row["done"],
    "begun": lambda row: row["begun"],
    "untouched": lambda row: row["untouched"],
    "hidden": lambda row: row["blind"],
    "deleted": lambda row: row["gone"],
}
REVIEWERS: Columns = {
    "name": lambda row: row["reviewer"],
    "submitted": lambda row: row["submitted"],
    "discarded": lambda row: row["discarded"],
    "drafts": lambda row: row["draft"],
    "pace": lambda row: NOTHING if row["seconds_each"] is None else f"{row['seconds_each']:,.0f} s",
    "first": lambda row: row["first"][:10],
    "latest": lambda row: row["last"][:10],
}
AGREEMENT: Columns = {
    "question": lambda row: row["question"],
    "kind": lambda row: {"ordinal": "rating", "nominal": "choice"}[row["level"]],
    "agreement": lambda row: _figure(row["alpha"]),
    "among hidden": lambda row: _figure(row["alpha_blind"]),
    "people": lambda row: row["people"],
    "shared": lambda row: row["answered_by_several"],
}
ANCHORING: Columns = {
    "question": lambda row: row["question"],
    "where seen": lambda row: f"{row['as_suggested']:.0%} of {row['seen']:,}",
    "where hidden": lambda row: f"{row['as_would_be_suggested']:.0%} of {row['blind']:,}",
    "difference": lambda row: f"{100 * row['difference']:+.0f}, give or take {100 * row['plus_minus']:.0f}",
}
CONFUSIONS = {
    RULES: "Decisions: what the rules say (down) and what people say (across)",
    PEOPLE: "Decisions: two people, the first by name (down) and the other (across)",
}


def _told(rows: Rows, columns: Columns) -> Rows:
    return [{heading: cell(row) for heading, cell in columns.items()} for row in rows]


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _places(sets: Rows) -> tuple[str, ...]:
    """Where each set is and how many answers it waits for, a line each."""
    lines = []
    for row in sets:
        place = "in a spreadsheet" if row["server"] == SPREADSHEET else f"on {row['server']}"
        answers = "one answer" if row["overlap"] == 1 else f"{row['overlap']} answers"
        lines.append(f"{row['set']} is {place} and waits for {answers} each.")
    return tuple(lines)


def _confusions(found: Mapping[str, Rows]) -> Iterator[Told]:
    for title, rows in found.items():
        yield Told(CONFUSIONS[title], rows)
