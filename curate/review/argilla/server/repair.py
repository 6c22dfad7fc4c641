"""Argilla's database → migrated to this release, indexed for search, and repaired after a crash, before the start."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from .index import build_index, connect

EMPTY = Path(sys.prefix) / "empty.db"
"""A database with Argilla's tables and no rows, created with the environment. Its forty migrations write to the disk
one after the other, which added half a second to two seconds to a first start."""

STATUSES = """
UPDATE records SET status = due.status
FROM (SELECT r.id, CASE WHEN count(p.id) >= json_extract(d.distribution, '$.min_submitted')
                        THEN 'completed' ELSE 'pending' END AS status
      FROM records r JOIN datasets d ON d.id = r.dataset_id
      LEFT JOIN responses p ON p.record_id = r.id AND p.status = 'submitted'
      GROUP BY r.id) AS due
WHERE due.id = records.id AND due.status <> records.status
"""


class UnusableDatabaseError(Exception):
    """The database cannot be used; the message has the reason."""


def repair_database(database: Path, migrations: Path, *, killed: bool) -> str:
    """Make the database usable by this release; a description of the repairs, or an empty text.

    Argilla sets the status of a record in a transaction after that of its answer, and after a changed dataset in a job.
    A status that was not set because the process was killed is set here.
    """
    migrate(database, migrations)
    if killed:
        check(database)
    indexed = build_index(database)
    with closing(connect(database)) as connection:
        statuses = connection.execute(STATUSES).rowcount
    repairs = [f"{indexed:,} records indexed"] * bool(indexed) + [f"{statuses:,} statuses corrected"] * bool(statuses)
    return ", ".join(repairs)


def check(database: Path) -> None:
    """Read the complete file. Raises `UnusableDatabaseError` if a page is damaged."""
    with closing(connect(database)) as connection:
        (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise UnusableDatabaseError(f"{database} is damaged: {result}.")


def migrate(database: Path, migrations: Path) -> None:
    """Create Argilla's tables, or migrate them to this release. Raises `UnusableDatabaseError`."""
    if not database.exists() and EMPTY.exists():
        new = database.with_name(f"{database.name}.new")
        shutil.copyfile(EMPTY, new)
        new.replace(database)
    revision = _read_revision(database)
    config = Config()  # without Argilla's file, which would configure logging
    config.set_main_option("script_location", str(migrations))
    known = ScriptDirectory.from_config(config)
    if revision == known.get_current_head():
        return
    if revision is not None and revision not in {script.revision for script in known.walk_revisions()}:
        raise UnusableDatabaseError(f"{database} is from another release of Argilla (revision {revision}).")
    command.upgrade(config, "head")


def _read_revision(database: Path) -> str | None:
    if not database.exists():
        return None
    with closing(connect(database)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None  # an empty database: the process was killed before it created tables
        except sqlite3.DatabaseError as error:
            raise UnusableDatabaseError(f"{database} is not a database: {error}.") from error
    return str(row[0]) if row else None


def create_empty() -> None:
    """Create the empty database of this environment: `python -m server.repair`."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / EMPTY.name
        os.environ["ARGILLA_HOME_PATH"] = folder
        os.environ["ARGILLA_DATABASE_URL"] = f"sqlite+aiosqlite:///{database}"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        import argilla_server

        migrate(database, Path(argilla_server.__file__).parent / "alembic")
        shutil.copyfile(database, EMPTY)


if __name__ == "__main__":
    create_empty()
