"""The guidelines of datasets → the same without HTML, which Argilla's page would insert as it is.

Markdown stays. A form in guidelines would look like a part of the page, for example one that asks for a password.
"""

from __future__ import annotations

import sqlite3

from argilla_server.models import Dataset
from sqlalchemy import event


def escape_guidelines(connection: sqlite3.Connection) -> None:
    """Escape the guidelines that are stored, and from now on those that anybody writes."""
    connection.execute("UPDATE datasets SET guidelines = replace(guidelines, '<', '&lt;') WHERE instr(guidelines, '<')")
    event.listen(Dataset.guidelines, "set", lambda _target, value, _old, _event: escape(value), retval=True)


def escape(text: str | None) -> str | None:
    """`text` without the start of any tag; escaping it again changes nothing."""
    return None if text is None else text.replace("<", "&lt;")
