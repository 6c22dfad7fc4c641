"""Findings of `curate doctor` → terminal output."""

from __future__ import annotations

from collections.abc import Iterable

from curate.cli.console import print_line
from curate.doctor import Finding, State

SYMBOLS: dict[State, str] = {"ok": "✓", "note": "·", "conflict": "✗"}


def show_findings(findings: Iterable[Finding]) -> None:
    """Print each finding, and its advice on a second line."""
    for finding in findings:
        print_line(format_finding(finding))


def format_finding(finding: Finding) -> str:
    """The finding as one or two lines.

    >>> print(format_finding(Finding("trl", "conflict", "1.15.0", "pip install 'trl<1.15'")))
    ✗ trl            1.15.0
                     → pip install 'trl<1.15'
    """
    advice = f"\n{'':17}→ {finding.advice}" if finding.advice else ""
    return f"{SYMBOLS[finding.state]} {finding.topic:14} {finding.value}{advice}"
