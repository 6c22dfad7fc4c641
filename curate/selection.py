"""Selecting: rules over scores and facts come in, a verdict with the rule's text goes out for every conversation.

A rule is an SQL condition of the recipe, `[select.rules] name = "quality >= 0.6"`; all must hold, and a
conversation leaves at the first that does not. A rule that is neither true nor false (NULL), as a comparison with an
empty cell or a division by zero, does not hold: such conversations leave, and are counted as unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from curate.scorers import SCORERS
from curate.scorers.runner import check_not_empty, plan, scorer_names, stored_columns
from schemas.cluster import NEAR_DUPLICATE, count_unclustered, find_clustering
from schemas.conversation import IMPORTED_SQL, preview_prompts
from schemas.digest import canonical_json, digest
from schemas.errors import RecipeError, nearest
from schemas.recipe import Recipe
from schemas.rule import Expression
from schemas.store import reading, writing
from schemas.text import shorten

KEPT_SQL = "SELECT conversation FROM current_verdicts WHERE kept"
"""The ids that a freeze takes. The view `current_verdicts` (schemas/views.py) is the definition."""

RULE = "rule"
"""The author of a rule's verdicts, in `verdicts.by_whom`; every other author is a person."""

EXAMPLES = 5


META = "meta"
"""The prefix of a source's own columns: `meta.rating`. An empty cell is null there, as everybody expects of a CSV."""

WHERE, ORDER = "--where", "--order"
"""The name of the rule that the command line adds, and of what it sorts by."""

NO_RULES, ALL_HOLD, UNKNOWN = "no rules", "every rule holds", " (unknown: NULL)"
"""The reason of a verdict without rules, that of one who stays, and the end of the reason where a rule gave NULL."""

NULL_BY_ZERO = "SET ieee_floating_point_ops = false; SET error_on_division_by_zero = false"
"""Else DuckDB divides to infinity, which is larger than any threshold: `1 / 0 > 1` would keep everything."""

_TEXTS = "array_to_string([t.value FOR t IN c.conversations IF t.\"from\" = '{}'], chr(10))"


FACTS = {
    "id": "c.id",
    "source": "o.path",
    "file": "parse_filename(o.path)",
    "turns": "len(c.conversations)",
    "has_tools": "c.tools IS NOT NULL",
    "prompt": _TEXTS.format("human"),
    "answer": _TEXTS.format("gpt"),
}
"""What a rule can read besides scores and `meta.<column>`: the conversation's id, the path and the file name it
came from first, its number of turns, whether it has tools, and the texts of the user and of the assistant."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a name in a rule stands for: SQL text over `c`, `s` and `o` of `_facts`.

    For metadata it is text over an origin; of a conversation's origins the first that has a value counts.
    """

    sql: str
    metadata: bool = False
    score: str | None = None


@dataclass(frozen=True, slots=True)
class RuleCount:
    """One step of the waterfall. `unknown` counts those of `leaving` where the rule gave NULL."""

    name: str
    rule: str
    before: int
    leaving: int
    unknown: int
    after: int
    examples: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Selection:
    """What the rules say, what people say against it, and what a freeze takes in the end."""

    selection: str
    rules: list[RuleCount]
    conversations: int
    kept_by_rules: int
    kept_by_people: int
    dropped_by_people: int
    kept: int
    verdicts: int
    shadowed: list[str]
    """names in the rules that mean something here, though a source has a column of that name too"""


def select_store(store: Path, recipe: Recipe, where: str | None = None, *, dry_run: bool = False) -> Selection:
    """Judge all conversations of the store by the recipe's rules, and by `where` as one more; write the verdicts.

    `dry_run` counts the same and writes nothing. A verdict is added where it or its reason, the rule at which the
    conversation leaves, is another one than before. Raises `RecipeError` for a rule that is not a condition over
    known names and for wrong scores, before anything runs, and where scores that it needs are not computed.
    """
    check_not_empty(store)
    plan(recipe.score)  # what no rule reads is stated by the selection too
    written = recipe.select.rules | ({} if where is None else {WHERE: where})
    rules = [Expression.read(text, name if name == WHERE else f"select.rules.{name}") for name, text in written.items()]
    with (reading if dry_run else writing)(store) as connection:
        columns = _columns(connection, recipe, rules)
        selection = digest({"rules": list(written.items()), "scores": _score_digests(connection, columns)})[:32]
        _judge(connection, rules, columns)
        verdicts = 0 if dry_run else _write(connection, selection, written, recipe)
        return _selection(connection, selection, written, verdicts, _shadowed(connection, columns))


def latest_selection(connection: DuckDBPyConnection) -> tuple[dict[str, str], dict[str, Any]] | None:
    """The rules of the latest selection, that of `--where` under this name, and the `[score]` of its recipe."""
    query = "SELECT rules, scores FROM selections ORDER BY selected_at DESC, rowid DESC LIMIT 1"
    found = connection.sql(query).fetchall()
    return (json.loads(found[0][0]), json.loads(found[0][1])) if found else None


def matching(connection: DuckDBPyConnection, recipe: Recipe, where: str | None, order: str | None) -> DuckDBPyRelation:
    """The conversations that meet `where`: columns `conversation` and `place`, from 0, in the order that `order` gives.

    `order` is an expression, smallest first, or largest first with `desc` behind it; ties, and all where it is not
    given, stand by id. Raises `RecipeError` as rules do.
    """
    text, falling = _direction(order or "id")
    asked, by = Expression.read(where or "true", WHERE), Expression.read(text, ORDER)
    columns = _columns(connection, recipe, [asked, by])
    facts = _facts(columns)
    connection.execute(NULL_BY_ZERO)
    condition = _condition(connection, asked, columns, facts)
    key = _in_facts(connection, by, columns, facts)[0]
    return connection.sql(f"""
        SELECT conversation,
            row_number() OVER (ORDER BY {key} {"DESC" if falling else "ASC"} NULLS LAST, conversation) - 1 AS place
        FROM ({facts}) WHERE {condition}""")


def _direction(order: str) -> tuple[str, bool]:
    """An order without its last word, and whether that was `desc`."""
    head, _, last = order.strip().rpartition(" ")
    return (head, last.lower() == "desc") if head and last.lower() in ("asc", "desc") else (order, False)


# --- what the names in a rule stand for ---


def _columns(connection: DuckDBPyConnection, recipe: Recipe, rules: Sequence[Expression]) -> dict[str, Column]:
    """What every name in the rules stands for: a fact, a score, or a source's own column, in this order.

    Raises `RecipeError` for a name that is none of them.
    """
    names = {parts: rule for rule in rules for parts in rule.names}
    return {".".join(parts): _column(connection, recipe, parts, rule) for parts, rule in names.items()}


def _column(connection: DuckDBPyConnection, recipe: Recipe, parts: tuple[str, ...], rule: Expression) -> Column:
    name = ".".join(parts)
    if name in FACTS:
        return Column(FACTS[name])
    if name == NEAR_DUPLICATE:
        return _near_duplicate_column(connection, rule)
    if parts[0] == META and len(parts) == 2:
        return _named_metadata_column(connection, parts[1], rule)
    if name in scorer_names():
        return _score_column(connection, plan(recipe.score, [name])[-1].column, rule)
    if name in stored_columns(connection):
        return _score_column(connection, name, rule)
    keys = _metadata_keys(connection)
    if name in keys:
        return _metadata_column(name)
    known = [*FACTS, NEAR_DUPLICATE, *scorer_names(), *stored_columns(connection), *keys]
    raise RecipeError(
        f"{rule.where}: {shorten(rule.text)!r} reads {name}, which is not known{nearest(name, known)}",
        f"A rule can read {', '.join(dict.fromkeys([*FACTS, NEAR_DUPLICATE, *scorer_names()]))} and {META}.COLUMN.",
    )


def _score_column(connection: DuckDBPyConnection, column: str, rule: Expression) -> Column:
    """The column of `scores`. Raises `RecipeError` while conversations wait for it.

    A scorer of this project never gives null, so a null waits too; where another one does, the rule gives NULL.
    """
    there = "true" if column in stored_columns(connection) else "false"
    if column in stored_columns(connection) and column.partition("__")[0] in SCORERS:
        there = f'"{column}" IS NOT NULL'
    count = connection.sql(f"""
        SELECT count(*) FROM conversations c
        WHERE {IMPORTED_SQL} AND id NOT IN (SELECT conversation FROM scores WHERE {there})""").fetchall()[0][0]
    if count:
        what = (
            f"{rule.where}: {shorten(rule.text)!r} reads {column}, which is not computed for {count:,} conversations."
        )
        raise RecipeError(what, "curate score")
    return Column(f's."{column}"', score=column)


def _near_duplicate_column(connection: DuckDBPyConnection, rule: Expression) -> Column:
    """Whether a conversation goes for another one. Raises `RecipeError` while conversations wait to be compared."""
    clustering = find_clustering(connection)
    if clustering is None or (count := count_unclustered(connection, clustering)):
        which = "for any conversation" if clustering is None else f"for {count:,} conversations that came in later"
        what = f"{rule.where}: {shorten(rule.text)!r} reads {NEAR_DUPLICATE}, which is not known {which}."
        raise RecipeError(what, "curate dedup")
    return Column("c.id IN (SELECT conversation FROM clusters WHERE nearest IS NOT NULL)")


def _score_digests(connection: DuckDBPyConnection, columns: Mapping[str, Column]) -> dict[str, str]:
    """By which formula the scores in the rules were computed: part of what a selection is."""
    used = {column.score for column in columns.values()}
    known = connection.sql('SELECT "column", digest FROM scorers ORDER BY 1').fetchall()
    marks = {column: mark for column, mark in known if column in used}
    clustering = find_clustering(connection) if NEAR_DUPLICATE in columns else None
    return marks if clustering is None else {**marks, NEAR_DUPLICATE: digest(clustering.parameters)}


def _named_metadata_column(connection: DuckDBPyConnection, key: str, rule: Expression) -> Column:
    """The column behind `meta.key`. Raises `RecipeError` when no source has it."""
    keys = _metadata_keys(connection)
    if key not in keys:
        listed = f"There are {', '.join(sorted(keys))}." if keys else "No source has columns beside the conversation."
        what = f"{rule.where}: {shorten(rule.text)!r} reads {META}.{key}, which no source has{nearest(key, keys)}"
        raise RecipeError(what, listed)
    return _metadata_column(key)


def _metadata_keys(connection: DuckDBPyConnection) -> list[str]:
    return [key for (key,) in connection.sql("SELECT DISTINCT unnest(json_keys(metadata)) FROM origins").fetchall()]


def _metadata_column(key: str) -> Column:
    path = '$."' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    quoted = path.replace("'", "''")
    return Column(f"nullif(trim(metadata ->> '{quoted}'), '')", metadata=True)


def _shadowed(connection: DuckDBPyConnection, columns: Mapping[str, Column]) -> list[str]:
    """The names that stand for a fact or a score and are a source's column as well."""
    ours = [name for name, column in columns.items() if not column.metadata]
    return sorted(set(ours) & set(_metadata_keys(connection))) if ours else []


AS_NUMBER = " as number"


def _aliases(columns: Mapping[str, Column]) -> dict[str, str]:
    """What the columns of `_facts` are called: numbered, since to DuckDB `Rating` and `rating` are one name.

    None is called `conversation` either, as the id is.
    """
    return {name: f"{name} {number}" for number, name in enumerate(columns)}


def _facts(columns: Mapping[str, Column]) -> str:
    """A query with one row per conversation that rules judge and one column per name in the rules.

    A metadata column is there twice, as text and as a number, null where it is none.
    """
    aliases = _aliases(columns)
    beside = {aliases[name]: column.sql for name, column in columns.items() if column.metadata}
    values = {aliases[name]: column.sql for name, column in columns.items() if not column.metadata}
    values |= {alias: f'o."{_inside(alias)}"' for alias in beside}
    values |= {f"{alias}{AS_NUMBER}": f'TRY_CAST(o."{_inside(alias)}" AS DOUBLE)' for alias in beside}
    named = [f'{sql} AS "{_inside(alias)}"' for alias, sql in values.items()]
    firsts = [f'arg_min({sql}, origins.rowid) AS "{_inside(alias)}"' for alias, sql in beside.items()]
    return f"""
        SELECT {", ".join(["c.id AS conversation", *named])} FROM conversations c
        LEFT JOIN scores s ON s.conversation = c.id
        LEFT JOIN (
            SELECT {", ".join(["conversation", "arg_min(path, origins.rowid) AS path", *firsts])}
            FROM origins LEFT JOIN sources USING (source) GROUP BY conversation
        ) o ON o.conversation = c.id
        WHERE {IMPORTED_SQL}"""


def _inside(name: str) -> str:
    return name.replace('"', '""')


# --- judging and writing ---


def _judge(connection: DuckDBPyConnection, rules: Sequence[Expression], columns: Mapping[str, Column]) -> None:
    """Make the temporary table `judged`: the first rule that does not hold (null: all hold), and if it gave NULL."""
    facts = _facts(columns)
    connection.execute(NULL_BY_ZERO)
    conditions = [_condition(connection, rule, columns, facts) for rule in rules]
    outcomes = "".join(f", {condition} AS outcome_{number}" for number, condition in enumerate(conditions))
    first = " ".join(f"WHEN outcome_{number} IS NOT TRUE THEN {number}" for number in range(len(rules)))
    unknown = " ".join(f"WHEN {number} THEN outcome_{number} IS NULL" for number in range(len(rules)))
    query = f"""
        CREATE OR REPLACE TEMP TABLE judged AS
        SELECT conversation,
            {f"CASE {first} END" if rules else "NULL::INTEGER"} AS rule,
            {f"CASE rule {unknown} ELSE false END" if rules else "false"} AS unknown
        FROM (SELECT conversation{outcomes} FROM ({facts}))"""
    try:
        connection.execute(query)
    except duckdb.Error as error:
        rule = _failing(connection, rules, conditions, facts)
        of_metadata = rule is not None and any(columns[".".join(parts)].metadata for parts in rule.names)
        hint = _CAST_HINT if isinstance(error, duckdb.ConversionException) and of_metadata else _VALUES_HINT
        named = "The rules" if rule is None else f"{rule.where}: {shorten(rule.text)!r}"
        raise RecipeError(f"{named} cannot be applied: {str(error).splitlines()[0][:300]}", hint) from error


def _failing(
    connection: DuckDBPyConnection, rules: Sequence[Expression], conditions: Sequence[str], facts: str
) -> Expression | None:
    """The first rule that fails by itself: DuckDB does not say which part of a query it was.

    Asked over a connection of its own, since the failure has ended the transaction; nothing was written before.
    """
    apart = connection.cursor()
    apart.execute(NULL_BY_ZERO)
    for rule, condition in zip(rules, conditions, strict=True):
        try:
            apart.execute(f"SELECT count(*) FROM ({facts}) WHERE {condition}")
        except duckdb.Error:
            return rule
    return None


_VALUES_HINT = (
    "A rule meets a value that it cannot reckon with, as ln(0): case when turns > 2 then ln(turns - 2) < 1 end gives "
    "NULL there. curate select --where tries one rule alone."
)
_CAST_HINT = f"Metadata is text: write try_cast({META}.price AS DOUBLE), which gives NULL where it is no number."


def _condition(connection: DuckDBPyConnection, rule: Expression, columns: Mapping[str, Column], facts: str) -> str:
    """The rule as SQL over `facts`. Raises `RecipeError` where its types do not fit or it is no condition."""
    sql, kind = _in_facts(connection, rule, columns, facts)
    if kind != "BOOLEAN":
        raise RecipeError(
            f"{rule.where}: {shorten(rule.text)!r} is no condition, it gives {kind}.", "Compare it with something."
        )
    return sql


def _in_facts(
    connection: DuckDBPyConnection, rule: Expression, columns: Mapping[str, Column], facts: str
) -> tuple[str, str]:
    """An expression as SQL over `facts`, and the type that it gives."""
    aliases = _aliases(columns)

    def name_in_facts(parts: tuple[str, ...], as_number: bool) -> str:
        name = ".".join(parts)
        return f"{aliases[name]}{AS_NUMBER}" if as_number and columns[name].metadata else aliases[name]

    sql = rule.sql(name_in_facts)
    try:
        return sql, str(connection.sql(f"SELECT {sql} AS outcome FROM ({facts}) LIMIT 0").types[0])
    except duckdb.Error as error:
        raise RecipeError(f"{rule.where}: {shorten(rule.text)!r}: {str(error).splitlines()[0]}", _CAST_HINT) from error


def _write(connection: DuckDBPyConnection, selection: str, written: Mapping[str, str], recipe: Recipe) -> int:
    """Write what was selected by, and the verdicts; returns how many of these are new."""
    connection.execute(
        "INSERT INTO selections (selection, rules, scores) VALUES (?, ?, ?)",
        [selection, json.dumps(written, ensure_ascii=False), canonical_json(recipe.score)],
    )
    return _write_verdicts(connection, written, selection)


def _write_verdicts(connection: DuckDBPyConnection, written: Mapping[str, str], selection: str) -> int:
    """Append the verdicts that say something else than the latest ones; returns how many."""
    reasons = [f"{name}: {text}" for name, text in written.items()]
    inserted = connection.execute(
        """
        INSERT INTO verdicts (conversation, verdict, reason, by_whom, selection)
        WITH said AS (
            SELECT conversation, if(rule IS NULL, 'keep', 'drop') AS verdict,
                if(rule IS NULL, $all, $reasons[rule + 1] || if(unknown, $unknown, '')) AS reason
            FROM judged
        ), latest AS (
            SELECT * FROM verdicts WHERE by_whom = $rule
            QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY decided_at DESC, rowid DESC) = 1
        )
        SELECT said.conversation, said.verdict, said.reason, $rule, $selection FROM said
        LEFT JOIN latest ON latest.conversation = said.conversation AND latest.verdict = said.verdict
            AND latest.reason = said.reason
        WHERE latest.conversation IS NULL""",
        {
            "all": ALL_HOLD if reasons else NO_RULES,
            "reasons": reasons,
            "rule": RULE,
            "selection": selection,
            "unknown": UNKNOWN,
        },
    ).fetchall()
    return int(inserted[0][0])


# --- counting ---


def _selection(
    connection: DuckDBPyConnection, selection: str, written: Mapping[str, str], verdicts: int, shadowed: list[str]
) -> Selection:
    """What stands in `judged`, together with what people say."""
    conversations, by_rules = connection.sql("SELECT count(*), count(*) FILTER (rule IS NULL) FROM judged").fetchall()[
        0
    ]
    saved, dropped = connection.execute(
        """SELECT count(*) FILTER (st.kept AND j.rule IS NOT NULL), count(*) FILTER (NOT st.kept AND j.rule IS NULL)
           FROM current_verdicts st JOIN judged j USING (conversation) WHERE st.by_whom <> ?""",
        [RULE],
    ).fetchall()[0]
    editions = connection.sql(
        f"SELECT count(*) FROM ({KEPT_SQL}) WHERE conversation NOT IN (SELECT conversation FROM judged)"
    ).fetchall()[0][0]
    return Selection(
        selection,
        _waterfall(connection, written, conversations),
        conversations,
        by_rules,
        kept_by_people=saved + editions,
        dropped_by_people=dropped,
        kept=by_rules + saved - dropped + editions,
        verdicts=verdicts,
        shadowed=shadowed,
    )


def _waterfall(connection: DuckDBPyConnection, written: Mapping[str, str], before: int) -> list[RuleCount]:
    """Rule by rule, in the recipe's order: rows before, rows that leave, rows after, and some that leave."""
    rows = connection.sql(f"""
        SELECT rule, count(*), count(*) FILTER (unknown), arg_min(conversation, conversation, {EXAMPLES})
        FROM judged WHERE rule IS NOT NULL GROUP BY rule""").fetchall()
    left = {rule: (leaving, unknown, ids) for rule, leaving, unknown, ids in rows}
    words = preview_prompts(connection, [id_ for _, _, ids in left.values() for id_ in ids])
    steps = []
    for number, (name, text) in enumerate(written.items()):
        leaving, unknown, ids = left.get(number, (0, 0, []))
        examples = [{"id": id_, "prompt": words[id_]} for id_ in ids]
        steps.append(RuleCount(name, text, before, leaving, unknown, before - leaving, examples))
        before -= leaving
    return steps
