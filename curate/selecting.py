"""Selecting: rules over scores and metadata come in, a verdict with the rule's text for every conversation goes out."""

from __future__ import annotations

from duckdb import DuckDBPyConnection, DuckDBPyRelation

KEPT_SQL = "SELECT conversation FROM standing WHERE kept"
"""The ids that a freeze takes. The view `standing` (schemas/migrations.py) is the definition."""


def kept_ids(connection: DuckDBPyConnection) -> DuckDBPyRelation:
    """The conversations that stay, one column `conversation`, in no particular order.

    Kept is: the latest word of a person, if there is one; else the verdict of the latest selection; else, when
    nothing was ever selected, everything. Where a person edited, the edited conversation is in and its parent out.
    """
    return connection.sql(KEPT_SQL)
