"""Commands status, sql and trace: questions to the store → answers. Nothing is written."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from curate.cli.console import note, print_json, print_table
from curate.cli.options import (
    DEFAULT_STORE,
    MAX_IMPORTS,
    ImportLimitOption,
    JsonOption,
    RecipeOption,
    SetOption,
    StoreOption,
)


def status(
    limit: ImportLimitOption = None,
    recipe: RecipeOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show the contents of the store and the next command.

    \b
    curate status
    """
    from curate.cli.views.store import show_status
    from curate.status import read_status
    from schemas.recipe import load_recipe
    from schemas.store import reading

    path, model = store, load_recipe(recipe).train.model
    with reading(path) as connection:
        contents = read_status(connection, model)
    if as_json:
        return print_json({**contents, "sources": contents["sources"][-(limit or len(contents["sources"])) :]})
    return show_status(path, contents, limit or MAX_IMPORTS)


def sql(
    query: Annotated[str | None, typer.Argument(help="A SELECT, DESCRIBE, SUMMARIZE or SHOW TABLES statement.")] = None,
    tables: Annotated[bool, typer.Option("--tables", help="Explain the tables in a sentence each.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of rows to print.", show_default="40 in a table, all otherwise")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="Allow the query, and views in the store, to read other files.")
    ] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Run a read-only SQL query on the store.

    --tables explains the tables, DESCRIBE conversations lists the columns of one. The column `source` refers to the
    file of a row. The view rule_columns has the names of rules as columns: quality, prompt, near_duplicate, meta.NAME …
    with the scores of the recipe. Rows that are too wide for the terminal are printed with one column per line.
    Without --allow-files, a query reads nothing but the store.

    \b
    curate sql --tables
    curate sql "SELECT path, rows_read, rows_rejected FROM sources"
    """
    from curate.cli.views.store import print_csv, show_rows
    from curate.rule_columns import VIEW, create_view
    from curate.sql import run_query
    from schemas.recipe import load_recipe
    from schemas.store import reading
    from schemas.tables import TABLES

    if tables:
        rows = [{"table": name, "content": content} for name, content in TABLES.items()]
        return print_json(rows) if as_json else print_table(rows, ["table", "content"])
    if query is None:
        raise typer.BadParameter("Give a query, or --tables.", param_hint="QUERY")
    with reading(store, files=allow_files) as connection:
        if re.search(rf"\b({VIEW}|show)\b", query, re.IGNORECASE):  # takes a while: reads recipe and source columns
            create_view(connection, load_recipe(recipe, set_ or []))
        result = run_query(connection, query)
        if as_csv:
            return print_csv(result, limit)
        return print_json(result.as_json(limit)) if as_json else show_rows(result, limit or 40)


def trace(
    target: Annotated[str, typer.Argument(metavar="ID|FILE:LINE", help="Prefix of an id, or a line of a file.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Trace a source line to its conversation, verdicts, versions and runs, or a conversation to its source lines.

    \b
    curate trace data.csv:7
    """
    from curate.cli.views.lineage import show_lineages
    from curate.versions.lineage import find_earlier_line
    from curate.versions.lineage import trace as trace_lineage
    from schemas.store import reading

    with reading(store) as connection:
        lineages = trace_lineage(connection, target)
        earlier = find_earlier_line(connection, target)
    if earlier is not None:
        file, _, line = target.rpartition(":")
        note(f"No record of {file} starts on line {line}; the last one before it starts on line {earlier}.")
    print_json([lineage.as_json() for lineage in lineages]) if as_json else show_lineages(lineages)
