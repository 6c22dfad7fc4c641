"""Score reports and quality explanations → terminal output."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from curate.cli.console import note, print_line, print_table
from curate.scorers.runner import ScoreReport
from schemas.text import plural

WIDE = 120
"""Width of a terminal from which a row has three examples instead of one."""

SHORT_ID = 8
"""Digits of an id in a cell."""

LEAST_SHARE = 0.0001
"""The smallest share that a percentage with two decimals distinguishes from zero."""


def show_scores(report: ScoreReport, *, dry_run: bool = False) -> None:
    """Print a summary of each column of scores, and how many values were computed, or of a dry run are missing."""
    if dry_run:
        rows = [{"score": name, "missing values": count} for name, count in report.computed.items() if count]
        print_table(rows, ["score", "missing values"])
        missing = plural(sum(report.computed.values()), "missing value")
        return print_line(f"{missing} of {plural(report.conversations, 'conversation')} would be computed.")
    examples = 3 if shutil.get_terminal_size().columns >= WIDE else 1
    print_table(number_rows(report, examples), ["score", "min", "median", "p95", "max", "lowest", "highest"])
    print_table(value_rows(report, examples), ["score", "value", "conversations", "share", "examples"])
    note(f"Computed {plural(sum(report.computed.values()), 'missing value')}.")
    return note("Next: curate score --why ID explains a quality score; curate select applies the rules of the recipe.")


def show_explanation(explanation: Mapping[str, Any]) -> None:
    """Print one conversation's scores, and the penalties that were subtracted from its quality."""
    scores = [{"score": name, "value": value} for name, value in explanation["scores"].items()]
    print_table(scores, ["score", "value"])
    columns = ["score", "value", "fine", "worst", "weight", "penalty"]
    print_table(explanation["penalties"], columns, "quality = 1 - sum of penalties")


def number_rows(report: ScoreReport, examples: int) -> list[dict[str, Any]]:
    """One row per numeric score, with the ids of `examples` conversations at either end."""
    return [
        {
            **summary,
            "score": summary["column"],
            "lowest": _short_ids(summary["lowest"][:examples]),
            "highest": _short_ids(summary["highest"][:examples]),
        }
        for summary in report.summaries
        if "values" not in summary
    ]


def value_rows(report: ScoreReport, examples: int) -> list[dict[str, Any]]:
    """One row per value of the other scores, with the ids of `examples` conversations."""
    return [
        {
            **value,
            "score": summary["column"],
            "share": format_share(value["conversations"], report.conversations),
            "examples": _short_ids(value["examples"][:examples]),
        }
        for summary in report.summaries
        for value in summary.get("values", ())
    ]


def format_share(part: int, total: int) -> str:
    """A share in percent; 0 % and 100 % are printed only if exact.

    >>> format_share(1, 4), format_share(1, 74519), format_share(74518, 74519), format_share(0, 0)
    ('25.00%', '< 0.01%', '> 99.99%', '0.00%')
    """
    share = part / max(total, 1)
    if 0 < share < LEAST_SHARE:
        return f"< {LEAST_SHARE:.2%}"
    return f"> {1 - LEAST_SHARE:.2%}" if 1 - LEAST_SHARE < share < 1 else f"{share:.2%}"


def _short_ids(ids: Sequence[str]) -> str:
    return " ".join(id_[:SHORT_ID] for id_ in ids)
