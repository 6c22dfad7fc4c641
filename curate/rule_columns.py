"""Names in rules and orders → SQL columns: facts about a conversation, scores, near-duplicates, and source columns.

A rule is an SQL condition (`schemas.rule`). It is bound to a query with one row per imported conversation and one
column per name that the rule reads. Used by selection, by `dedup.prefer` and by review queues. The view
`rule_columns` has one column for every name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import polars as pl
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from curate.ingest.column_names import make_unique
from curate.scorers import SCORERS
from curate.scorers.plan import plan_scorers, scorer_names
from curate.scorers.runner import stored_columns
from schemas.cluster import METHOD, NEAR_DUPLICATE, count_unclustered, find_clustering
from schemas.conversation import IMPORTED_SQL
from schemas.errors import RecipeError, nearest
from schemas.recipe import Recipe
from schemas.rule import Expression
from schemas.store import is_store_error
from schemas.text import plural, quote_name, shorten
from schemas.timing import timed

META = "meta"
"""Prefix of source columns: `meta.rating`. An empty cell is null."""

VIEW = "rule_columns"
"""The temporary view of all names, for `curate sql`."""

WHERE, ORDER = "--where", "--order"
"""Names of the rule and of the order that the command line adds."""

_TEXTS = "array_to_string([t.value FOR t IN c.conversations IF t.\"from\" = '{}'], chr(10))"

FACTS = {
    "id": "c.id",
    "source": "o.path",
    "import_id": "o.source",
    "file": "parse_filename(o.path)",
    "turns": "len(c.conversations)",
    "has_tools": "c.tools IS NOT NULL",
    "prompt": _TEXTS.format("human"),
    "answer": _TEXTS.format("gpt"),
}
"""Names that a rule can read besides scores and `meta.<column>`: the conversation id; the path, id and file name of its
first import; the number of turns, whether it has tools, and the texts of the user and of the assistant."""

EDITS_SQL = f"""
    WITH RECURSIVE edits AS (
        SELECT id AS conversation, id AS imported FROM conversations c WHERE {IMPORTED_SQL}
        UNION ALL
        SELECT c.id, edits.imported FROM conversations c JOIN edits ON c.parent = edits.conversation
        WHERE NOT ({IMPORTED_SQL})
    )
"""
"""Each imported conversation and each edit, with the imported one that it goes back to."""

NULL_ON_DIVISION_BY_ZERO = "SET ieee_floating_point_ops = false; SET error_on_division_by_zero = false"
"""By default DuckDB returns infinity, which exceeds every threshold: `1 / 0 > 1` would keep every conversation."""

AS_NUMBER = " as number"

BY_IMPORT, BY_PATH = "origins.rowid", '(path, origins.source, origins."row")'
"""Orders of a conversation's imports. The second one does not depend on the order of the import commands."""

VALUE_HINT = (
    "A rule has a value outside the domain of a function, such as ln(0). A condition such as "
    "case when turns > 2 then ln(turns - 2) < 1 end gives NULL there. Use curate select --where to try a single rule."
)

CAST_HINT = f"Metadata is text: write try_cast({META}.price AS DOUBLE), which gives NULL for text that is not a number."


@dataclass(frozen=True, slots=True)
class Column:
    """The SQL expression for a name, over `c`, `s` and `o` of `facts_query`.

    For metadata it is an expression over `origins`; if a conversation has several origins, the first value is used.
    """

    sql: str
    is_metadata: bool = False
    score: str | None = None


def find_matching(
    connection: DuckDBPyConnection, recipe: Recipe, where: str | None, order: str | None
) -> DuckDBPyRelation:
    """The conversations that meet `where`: columns `conversation` and `place`, the rank from 0 in the order of `order`.

    `order` is an expression, optionally followed by `asc` or `desc`; the default is `id`. Ties are sorted by id. Raises
    `RecipeError` for invalid expressions, as for rules.
    """
    text, descending = _split_direction(order or "id")
    condition, key = Expression.read(where or "true", WHERE), Expression.read(text, ORDER)
    columns = resolve_columns(connection, recipe, [condition, key])
    connection.execute(NULL_ON_DIVISION_BY_ZERO)
    condition_sql = bind_condition(connection, condition, columns)
    key_sql, _ = _bind(connection, key, columns)
    direction = "DESC" if descending else "ASC"
    return connection.sql(f"""
        SELECT conversation,
            row_number() OVER (ORDER BY {key_sql} {direction} NULLS LAST, conversation) - 1 AS place
        FROM ({facts_query(columns)}) WHERE {condition_sql}""")


def matching_query(connection: DuckDBPyConnection, recipe: Recipe, where: str) -> str:
    """A query for the ids of the imported conversations that meet `where`, one column. Raises as `find_matching`."""
    condition = Expression.read(where, WHERE)
    columns = resolve_columns(connection, recipe, [condition])
    connection.execute(NULL_ON_DIVISION_BY_ZERO)
    return f"SELECT conversation FROM ({facts_query(columns)}) WHERE {bind_condition(connection, condition, columns)}"


def find_values(
    connection: DuckDBPyConnection,
    recipe: Recipe,
    expressions: Sequence[Expression],
    *,
    per_import: bool = False,
    conditions: bool = False,
) -> pl.DataFrame:
    """The values of expressions as text: columns `conversation`, and `0`, `1`, … for the expressions in their order.

    An edited conversation has the values of the imported one. If a conversation was imported several times, the first
    import by path counts, whatever the order of the commands; with `per_import` there is one row for each import.
    Raises `RecipeError` as for rules, with `conditions` also for an expression that is neither true nor false.
    """
    columns = resolve_columns(connection, recipe, expressions)
    connection.execute(NULL_ON_DIVISION_BY_ZERO)
    bound = [
        bind_condition(connection, expression, columns) if conditions else _bind(connection, expression, columns)[0]
        for expression in expressions
    ]
    values = [f'CAST({sql} AS VARCHAR) AS "{number}"' for number, sql in enumerate(bound)]
    facts = facts_query(columns, None if per_import else BY_PATH)
    query = f"""
        {EDITS_SQL} SELECT edits.conversation, found.* EXCLUDE imported
        FROM edits JOIN (SELECT conversation AS imported, {", ".join(values)} FROM ({facts})) found USING (imported)"""
    try:
        found: pl.DataFrame = connection.sql(query).pl()
    except duckdb.Error as error:
        if is_store_error(error):
            raise
        texts = ", ".join(dict.fromkeys(f"{expression.where}: {expression.text}" for expression in expressions))
        raise RecipeError(f"{shorten(texts)}: {str(error).splitlines()[0]}", VALUE_HINT) from error
    return found


@timed("creating the view of rule columns")
def create_view(connection: DuckDBPyConnection, recipe: Recipe) -> None:
    """Create `VIEW`: one row per imported conversation, one column for each name that a rule of the recipe can read.

    Source columns are fields of `meta`, and columns of their own unless a fact or score has the name. DuckDB ignores
    the case of names: of `Rating` and `rating`, the second is called `rating_2`. Scores that are not computed are null,
    or missing if none is; so is `near_duplicate`, for all conversations, before `curate dedup`.
    """
    keys = sorted(metadata_keys(connection))
    metadata = {
        key if unique == key.lower() else unique: f"{META}.{key}"
        for key, unique in zip(keys, make_unique(key.lower() for key in keys), strict=True)
    }
    ours = {name: Column(f's."{column}"') for name, column in _stored_scores(connection, recipe).items()}
    ours |= {name: Column(sql) for name, sql in FACTS.items()}
    ours[NEAR_DUPLICATE] = Column("NULL::BOOLEAN" if _find_unclustered(connection) else _NEAR_DUPLICATE_SQL)
    columns = ours | {f"{META}.{key}": _metadata_column(key) for key in keys}
    aliases = {name: quote_name(alias) for name, alias in _aliases(columns).items()}
    order = dict.fromkeys((*FACTS, NEAR_DUPLICATE, *ours))
    named = [f"{aliases[name]} AS {quote_name(name)}" for name in order]
    if metadata:
        fields = [f"{quote_name(field)} := {aliases[name]}" for field, name in metadata.items()]
        named.append(f"struct_pack({', '.join(fields)}) AS {META}")
    taken = {name.lower() for name in (*order, *scorer_names(), META)}
    named += [f"{aliases[name]} AS {quote_name(key)}" for key, name in metadata.items() if key.lower() not in taken]
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {VIEW} AS SELECT {', '.join(named)} FROM ({facts_query(columns)})")


def _stored_scores(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, str]:
    """Name in a rule -> column of `scores`: of each scorer with the recipe's parameters, and the columns themselves."""
    stored = stored_columns(connection)
    scorers = [name for name in scorer_names() if any(column.partition("__")[0] == name for column in stored)]
    planned = {scorer.name: scorer.column for scorer in plan_scorers(recipe.score, scorers)} if scorers else {}
    others = {column: column for column in stored if column not in scorer_names()}
    return {name: column for name, column in {**planned, **others}.items() if column in stored}


def _split_direction(order: str) -> tuple[str, bool]:
    """An order without a final `asc` or `desc`, and whether that was `desc`."""
    head, _, last = order.strip().rpartition(" ")
    return (head, last.lower() == "desc") if head and last.lower() in ("asc", "desc") else (order, False)


# --- from names to columns ---


def resolve_columns(connection: DuckDBPyConnection, recipe: Recipe, rules: Sequence[Expression]) -> dict[str, Column]:
    """The column of each name in the rules: a fact, a score or a source column, the first that exists.

    Raises `RecipeError` for an unknown name, and for scores and `near_duplicate` that are not computed for all
    conversations, with the commands that compute them.
    """
    columns: dict[str, Column] = {}
    missing: dict[str, str] = {}
    names = {parts: rule for rule in rules for parts in rule.names}
    for parts, rule in names.items():
        try:
            columns[".".join(parts)] = _resolve(connection, recipe, parts, rule)
        except _NotComputedError as error:
            missing.setdefault(error.hint, error.what)
    if missing:
        raise RecipeError("\n".join(missing.values()), " && ".join(sorted(missing, reverse=True)))  # score, then dedup
    return columns


class _NotComputedError(RecipeError):
    """A score or near-duplicates that a rule reads are missing; the hint is the command that computes them."""


def _resolve(connection: DuckDBPyConnection, recipe: Recipe, parts: tuple[str, ...], rule: Expression) -> Column:
    name = ".".join(parts)
    if name in FACTS:
        return Column(FACTS[name])
    if name == NEAR_DUPLICATE:
        return _near_duplicate_column(connection, rule)
    if parts[0] == META and len(parts) == 2:
        return _named_metadata_column(connection, parts[1], rule)
    if name in scorer_names():
        return _score_column(connection, plan_scorers(recipe.score, [name])[-1].column, rule)
    if name in stored_columns(connection):
        return _score_column(connection, name, rule)
    metadata = metadata_keys(connection)
    if name in metadata:
        return _metadata_column(name)
    ours = dict.fromkeys([*FACTS, NEAR_DUPLICATE, *scorer_names()])
    raise RecipeError(
        f"{_reads(rule, name)}, which is unknown{nearest(name, [*ours, *stored_columns(connection), *metadata])}",
        f"A rule can read {', '.join(ours)} and {META}.COLUMN.",
    )


def _reads(rule: Expression, name: str) -> str:
    return f"{rule.where}: {shorten(rule.text)!r} reads {name}"


def _score_column(connection: DuckDBPyConnection, column: str, rule: Expression) -> Column:
    """A column of `scores`. Raises `RecipeError` if it is missing for some conversations.

    Scorers of this project never return null, so a null is a missing score. For other scorers the rule gives NULL.
    """
    is_computed = "true" if column in stored_columns(connection) else "false"
    if column in stored_columns(connection) and column.partition("__")[0] in SCORERS:
        is_computed = f'"{column}" IS NOT NULL'
    ((count,),) = connection.sql(f"""
        SELECT count(*) FROM conversations c
        WHERE {IMPORTED_SQL} AND id NOT IN (SELECT conversation FROM scores WHERE {is_computed})""").fetchall()
    if count:
        what = f"{_reads(rule, column)}, which is not computed for {plural(count, 'conversation')}."
        raise _NotComputedError(what, "curate score")
    return Column(f's."{column}"', score=column)


def _near_duplicate_column(connection: DuckDBPyConnection, rule: Expression) -> Column:
    """Whether another conversation of the cluster is kept instead. Raises `RecipeError` if it is not computed."""
    if which := _find_unclustered(connection):
        what = f"{_reads(rule, NEAR_DUPLICATE)}, which is not computed for {which}."
        raise _NotComputedError(what, "curate dedup")
    return Column(_NEAR_DUPLICATE_SQL)


_NEAR_DUPLICATE_SQL = "c.id IN (SELECT conversation FROM clusters WHERE nearest IS NOT NULL)"


def _find_unclustered(connection: DuckDBPyConnection) -> str:
    """The conversations for which near-duplicates are not computed, in words; empty if there are none."""
    clustering = find_clustering(connection)
    if clustering is None or not clustering.conversations:
        return "any conversation"
    if clustering.is_outdated:
        return f"any conversation by the present search ({METHOD}; the store has {clustering.method})"
    count = count_unclustered(connection, clustering)
    return f"{plural(count, 'conversation')} imported since" if count else ""


def _named_metadata_column(connection: DuckDBPyConnection, key: str, rule: Expression) -> Column:
    """The source column `key`, written as `meta.key`. Raises `RecipeError` if no source has it."""
    keys = metadata_keys(connection)
    if key not in keys:
        hint = f"Source columns: {', '.join(sorted(keys))}." if keys else "No source has columns for metadata."
        raise RecipeError(f"{_reads(rule, f'{META}.{key}')}, which no source has{nearest(key, keys)}", hint)
    return _metadata_column(key)


def _metadata_column(key: str) -> Column:
    path = '$."' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    quoted = path.replace("'", "''")
    return Column(f"nullif(trim(metadata ->> '{quoted}'), '')", is_metadata=True)


def metadata_keys(connection: DuckDBPyConnection) -> list[str]:
    """The names of all source columns that are not part of a conversation."""
    return [key for (key,) in connection.sql("SELECT DISTINCT unnest(json_keys(metadata)) FROM origins").fetchall()]


# --- from rules to SQL ---


def facts_query(columns: Mapping[str, Column], order: str | None = BY_IMPORT) -> str:
    """A query with one row per imported conversation and one column per name.

    A metadata column occurs twice: as text, and as a number, which is null if the text is not a number. Of several
    imports the first in `order` that has a value counts; without an order, there is one row for each of them.
    """
    first_of = "{}" if order is None else f"arg_min({{}}, {order})"
    aliases = _aliases(columns)
    metadata = {aliases[name]: column.sql for name, column in columns.items() if column.is_metadata}
    values = {aliases[name]: column.sql for name, column in columns.items() if not column.is_metadata}
    values |= {alias: f"o.{quote_name(alias)}" for alias in metadata}
    values |= {f"{alias}{AS_NUMBER}": f"TRY_CAST(o.{quote_name(alias)} AS DOUBLE)" for alias in metadata}
    named = [f"{sql} AS {quote_name(alias)}" for alias, sql in values.items()]
    first_values = [f"{first_of.format(sql)} AS {quote_name(alias)}" for alias, sql in metadata.items()]
    first = [f"{first_of.format(name)} AS {name}" for name in ("path", "source")]
    return f"""
        SELECT {", ".join(["c.id AS conversation", *named])} FROM conversations c
        LEFT JOIN scores s ON s.conversation = c.id
        LEFT JOIN (
            SELECT {", ".join(["conversation", *first, *first_values])}
            FROM origins LEFT JOIN sources USING (source) {"GROUP BY conversation" if order else ""}
        ) o ON o.conversation = c.id
        WHERE {IMPORTED_SQL}"""


def _aliases(columns: Mapping[str, Column]) -> dict[str, str]:
    """The column names of `facts_query`: numbered, because DuckDB does not distinguish `Rating` from `rating`.

    A number also prevents a clash with the column `conversation`.
    """
    return {name: f"{name} {number}" for number, name in enumerate(columns)}


def bind_condition(connection: DuckDBPyConnection, rule: Expression, columns: Mapping[str, Column]) -> str:
    """The rule as SQL over `facts_query`. Raises `RecipeError` if its types do not match or it is not a condition."""
    sql, kind = _bind(connection, rule, columns)
    if kind != "BOOLEAN":
        raise RecipeError(
            f"{rule.where}: {shorten(rule.text)!r} is not a condition, its type is {kind}.", "Write a comparison."
        )
    return sql


def _bind(connection: DuckDBPyConnection, rule: Expression, columns: Mapping[str, Column]) -> tuple[str, str]:
    """An expression as SQL over `facts_query`, and its DuckDB type."""
    aliases = _aliases(columns)
    for parts, number in rule.quoted_numbers:
        if columns[".".join(parts)].is_metadata:
            raise RecipeError(
                f"{_reads(rule, '.'.join(parts))}, which is text, and compares it with the text '{number}': "
                "as texts, '10' is less than '4' and 'n/a' is greater.",
                f"Write the number without quotes: {number}. Cells that are not numbers then give NULL.",
            )

    def alias(parts: tuple[str, ...], as_number: bool) -> str:
        name = ".".join(parts)
        return f"{aliases[name]}{AS_NUMBER}" if as_number and columns[name].is_metadata else aliases[name]

    sql = rule.sql(alias)
    try:
        return sql, str(connection.sql(f"SELECT {sql} AS outcome FROM ({facts_query(columns)}) LIMIT 0").types[0])
    except duckdb.Error as error:
        if is_store_error(error):
            raise
        raise RecipeError(f"{rule.where}: {shorten(rule.text)!r}: {str(error).splitlines()[0]}", CAST_HINT) from error
