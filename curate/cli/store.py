"""The words of `curate status`, `sql` and `trace`: what the store holds. Each imports what it needs when it runs."""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

from typing import Annotated

import typer

from curate.cli.console import note, print_json
from curate.cli.options import JsonOption, StoreOption


def status(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Say in one look what the store holds, and what comes next.

    \b
    curate status
    """
    from curate.cli.views.ingest import show_status
    from curate.status import survey
    from schemas.store import reading, store_path

    path = store_path(store)
    with reading(path) as connection:
        found = survey(connection)
    if as_json:
        print_json(found)
    else:
        show_status(path, found)


def sql(
    query: Annotated[str, typer.Argument(help="A SELECT; DESCRIBE, SUMMARIZE and SHOW TABLES work too.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows to print.", show_default="40 as a table, else all")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the store a question in SQL. Nothing can be changed that way.

    SHOW TABLES lists the tables, DESCRIBE conversations the columns of one; all rows of a file name it as `source`.

    \b
    curate sql "SELECT path, rows_read, rows_rejected FROM sources"
    """
    from curate.cli.views import ingest
    from curate.sql import ask
    from schemas.store import reading, store_path

    with reading(store_path(store)) as connection:
        answer = ask(connection, query)
        if as_csv:
            ingest.print_csv(answer, limit)
        elif as_json:
            print_json(answer.as_json(limit))
        else:
            ingest.show_answer(answer, limit or 40)


def trace(
    what: Annotated[str, typer.Argument(metavar="ID|FILE:LINE", help="The beginning of an id, or a line of a file.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a row from its line in a file to every version and training, or back.

    \b
    curate trace data.csv:7
    """
    from curate.cli.views.lineage import show_lineages
    from curate.versions.lineage import find_earlier_line
    from curate.versions.lineage import trace as trace_lineage
    from schemas.store import reading, store_path

    with reading(store_path(store)) as connection:
        lineages = trace_lineage(connection, what)
        earlier = find_earlier_line(connection, what)
    if earlier is not None:
        file, _, line = what.rpartition(":")
        note(f"No record of {file} starts on line {line}; the last one before it starts on line {earlier}.")
    if as_json:
        print_json([lineage.as_json() for lineage in lineages])
    else:
        show_lineages(lineages)
