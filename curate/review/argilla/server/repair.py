"""Before the server answers: its database is brought to this release, made searchable, and repaired after a kill."""

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

from .index import connect, prepare

EMPTY = Path(sys.prefix) / "empty.db"
"""A database with Argilla's tables and nothing in them, made with the environment: its forty migrations write to the
disk one after the other, which took a first start half a second to two."""

_STATUSES = """
UPDATE records SET status = due.status
FROM (SELECT r.id, CASE WHEN count(p.id) >= json_extract(d.distribution, '$.min_submitted')
                        THEN 'completed' ELSE 'pending' END AS status
      FROM records r JOIN datasets d ON d.id = r.dataset_id
      LEFT JOIN responses p ON p.record_id = r.id AND p.status = 'submitted'
      GROUP BY r.id) AS due
WHERE due.id = records.id AND due.status <> records.status
"""


class Unusable(Exception):  # noqa: N818  a state of the database, told to a person
    """The database cannot be used; the message says why."""


def heal(database: Path, scripts: Path, *, killed: bool) -> str:
    """Make the database ready for this release; what had to be repaired, in words, or nothing.

    A record's status follows from its answers in a second transaction, and after a changed dataset in a job: where
    a kill came between, it is set here.
    """
    migrate(database, scripts)
    if killed:
        check(database)
    indexed = prepare(database)
    with closing(connect(database)) as connection:
        statuses = connection.execute(_STATUSES).rowcount
    told = [f"{indexed:,} records indexed"] * bool(indexed) + [f"{statuses:,} statuses set right"] * bool(statuses)
    return ", ".join(told)


def check(database: Path) -> None:
    """Read the whole file. Raises `Unusable` when a page of it is damaged."""
    with closing(connect(database)) as connection:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise Unusable(f"{database} is damaged: {found}.")


def migrate(database: Path, scripts: Path) -> None:
    """Bring Argilla's tables to those of this release; a database that has them already is only looked at."""
    if not database.exists() and EMPTY.exists():
        new = database.with_name(f"{database.name}.new")
        shutil.copyfile(EMPTY, new)
        new.replace(database)
    revision = _revision(database)
    config = Config()  # without Argilla's file, which would set up logging anew
    config.set_main_option("script_location", str(scripts))
    known = ScriptDirectory.from_config(config)
    if revision == known.get_current_head():
        return
    if revision is not None and revision not in {script.revision for script in known.walk_revisions()}:
        raise Unusable(f"{database} is from another release of Argilla (revision {revision}).")
    command.upgrade(config, "head")


def _revision(database: Path) -> str | None:
    if not database.exists():
        return None
    with closing(connect(database)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None  # an empty database: killed before its first table
        except sqlite3.DatabaseError as error:
            raise Unusable(f"{database} is no database: {error}.") from error
    return str(found[0]) if found else None


def make_empty() -> None:
    """Make the empty database of this environment: `python -m server.repair`."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / EMPTY.name
        os.environ["ARGILLA_HOME_PATH"] = folder
        os.environ["ARGILLA_DATABASE_URL"] = f"sqlite+aiosqlite:///{database}"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        import argilla_server

        migrate(database, Path(argilla_server.__file__).parent / "alembic")
        shutil.copyfile(database, EMPTY)


if __name__ == "__main__":
    make_empty()
