"""Rules of the recipe → a keep or drop verdict with its reason for every imported conversation, and counts per rule.

A rule is an SQL condition: `[select.rules] name = "quality >= 0.6"`. A conversation is dropped by the first rule that
it fails. A rule that evaluates to NULL, for example on an empty cell or a division by zero, counts as failed and as
unknown. `near_duplicate` is evaluated last, among the conversations that all other conditions and people keep: each one
that it drops is similar to a kept one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from duckdb import DuckDBPyConnection

from curate.dedup.representatives import KEPT_ANYWAY, PASSES, PASSES_AS_DUPLICATE, find_duplicates_among
from curate.rule_columns import (
    CAST_HINT,
    EDITS_SQL,
    NULL_ON_DIVISION_BY_ZERO,
    VALUE_HINT,
    WHERE,
    Column,
    bind_condition,
    facts_query,
    metadata_keys,
    resolve_columns,
)
from curate.scorers.plan import plan_scorers
from curate.scorers.runner import check_not_empty
from schemas.cluster import NEAR_DUPLICATE, find_clustering
from schemas.conversation import preview_prompts
from schemas.digest import canonical_json, digest
from schemas.errors import RecipeError
from schemas.recipe import Recipe
from schemas.rule import Expression
from schemas.store import is_store_error, reading, writing
from schemas.text import shorten
from schemas.timing import timed

KEPT_SQL = "SELECT conversation FROM current_verdicts WHERE kept"
"""The conversations that a freeze includes, as defined by the view `current_verdicts` (schemas/views.py)."""

RULE = "rule"
"""The author of rule verdicts in `verdicts.by_whom`; all other authors are people."""

HUMAN_SQL = f"""
    {EDITS_SQL}
    SELECT conversation, kept OR conversation IN (
        SELECT imported FROM edits JOIN current_verdicts v USING (conversation)
        WHERE v.kept AND imported <> conversation) AS kept
    FROM current_verdicts WHERE by_whom <> '{RULE}'
"""
"""What people decided: whether a conversation is kept. A kept edit stands for the conversation it was made from."""

OUTDATED_SQL = f"""
    {EDITS_SQL}, states AS (
        SELECT imported, arg_max(verdict, seq) FILTER (by_whom = $rule) AS by_rule,
            arg_max(verdict, seq) FILTER (by_whom <> $rule) AS now,
            arg_max(verdict, seq) FILTER (by_whom <> $rule AND seq < (SELECT max(seq) FROM selections)) AS before
        FROM verdicts JOIN edits USING (conversation)
        WHERE imported IN (SELECT conversation FROM clusters) GROUP BY imported)
    SELECT count(*) FROM states
    WHERE (coalesce(nullif(now, 'undecided'), by_rule) = 'drop')
        <> (coalesce(nullif(before, 'undecided'), by_rule) = 'drop')
"""
"""How many conversations of clusters people keep or drop now, themselves or their edits, but not at the selection."""

EXAMPLES = 5
"""Dropped conversations that are listed per rule."""

NO_RULES, ALL_PASSED, UNKNOWN = "no rules", "every rule holds", " (unknown: NULL)"
"""Stored reasons: of a verdict without rules, of a kept conversation, and the suffix if the rule gave NULL."""


@dataclass(frozen=True, slots=True)
class RuleCount:
    """The conversations before and after a rule, and those it drops; it gave NULL for `unknown` of the dropped ones."""

    name: str
    rule: str
    before: int
    dropped: int
    unknown: int
    after: int
    examples: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """The counts per rule, and how human verdicts change the result."""

    selection: str
    rules: list[RuleCount]
    conversations: int
    kept_by_rules: int
    kept_by_humans: int
    """human verdicts that keep a conversation which rules drop, and edited conversations"""
    dropped_by_humans: int
    kept: int
    """conversations that a freeze includes"""
    verdicts: int
    """conversations whose verdict by rules is new or another one; 0 for a dry run"""
    reasons: int
    """conversations whose verdict is the same, with another reason, which was written too"""
    shadowed: list[str]
    """names in the rules that are facts or scores here, and also columns of a source"""


def select_store(store: Path, recipe: Recipe, where: str | None = None, *, dry_run: bool = False) -> SelectionReport:
    """Apply the recipe's rules, and `where` as one more, to all imported conversations, and write the verdicts.

    A verdict is written if it or its reason differs from the latest one. `dry_run` counts only. Raises `RecipeError`
    for a rule that is not a condition over known names, for invalid scorer parameters, and for scores that are not
    computed, before anything is written.
    """
    check_not_empty(store)
    plan_scorers(recipe.score)  # checks all, because a selection states also the parameters that no rule reads
    texts = recipe.select.rules | ({} if where is None else {WHERE: where})
    rules = [Expression.read(text, name if name == WHERE else f"select.rules.{name}") for name, text in texts.items()]
    with (reading if dry_run else writing)(store) as connection:
        columns = resolve_columns(connection, recipe, rules)
        selection = digest({"rules": list(texts.items()), "scores": _score_digests(connection, columns)})[:32]
        _apply_rules(connection, recipe, rules, columns)
        verdicts = reasons = 0
        if not dry_run:
            connection.execute(
                "INSERT INTO selections (selection, rules, scores) VALUES (?, ?, ?)",
                [selection, json.dumps(texts, ensure_ascii=False), canonical_json(recipe.score)],
            )
            verdicts, reasons = _write_verdicts(connection, texts, selection)
            connection.execute("DELETE FROM near_duplicates")
            if NEAR_DUPLICATE in columns:
                connection.execute("INSERT INTO near_duplicates BY NAME FROM found_duplicates")
        return _report(connection, selection, texts, (verdicts, reasons), _shadowed_names(connection, columns))


def latest_selection(connection: DuckDBPyConnection) -> tuple[dict[str, str], dict[str, Any]] | None:
    """The rules of the latest selection, including `--where`, and the `[score]` sections of its recipe."""
    query = "SELECT rules, scores FROM selections ORDER BY seq DESC LIMIT 1"
    rows = connection.sql(query).fetchall()
    return (json.loads(rows[0][0]), json.loads(rows[0][1])) if rows else None


def count_outdated_duplicates(connection: DuckDBPyConnection) -> int:
    """The conversations with near-duplicates that people keep or drop now, but not when the latest selection was made.

    Always 0 if that selection does not read `near_duplicate`.
    """
    rules, _ = latest_selection(connection) or ({}, {})
    if not any((NEAR_DUPLICATE,) in Expression.read(rule, name).names for name, rule in rules.items()):
        return 0
    ((count,),) = connection.execute(OUTDATED_SQL, {"rule": RULE}).fetchall()
    return int(count)


def _score_digests(connection: DuckDBPyConnection, columns: Mapping[str, Column]) -> dict[str, str]:
    """The digests of the scorers, and of the near-duplicate search, that the rules read."""
    scores = {column.score for column in columns.values()}
    rows = connection.sql('SELECT "column", digest FROM scorers ORDER BY 1').fetchall()
    digests = {column: scorer_digest for column, scorer_digest in rows if column in scores}
    clustering = find_clustering(connection) if NEAR_DUPLICATE in columns else None
    return digests if clustering is None else {**digests, NEAR_DUPLICATE: digest(clustering.parameters)}


def _shadowed_names(connection: DuckDBPyConnection, columns: Mapping[str, Column]) -> list[str]:
    ours = {name for name, column in columns.items() if not column.is_metadata}
    return sorted(ours.intersection(metadata_keys(connection))) if ours else []


@timed("applying rules")
def _apply_rules(
    connection: DuckDBPyConnection, recipe: Recipe, rules: Sequence[Expression], columns: Mapping[str, Column]
) -> None:
    """Create the temporary table `rule_results`: the first failed rule (null: none), and whether it gave NULL.

    The temporary table `found_duplicates` contains the near-duplicates if a rule reads `near_duplicate`.
    """
    connection.execute(NULL_ON_DIVISION_BY_ZERO)
    conditions = [bind_condition(connection, rule, columns) for rule in rules]
    try:
        found = {}
        if NEAR_DUPLICATE in columns:
            found = {NEAR_DUPLICATE: _find_duplicates(connection, recipe, conditions, columns)}
        connection.execute(_results_query(conditions, facts_query({**columns, **found})))
    except duckdb.Error as error:
        if is_store_error(error):
            raise
        rule = _find_failing_rule(connection, rules, conditions, facts_query(columns))
        of_metadata = rule is not None and any(columns[".".join(parts)].is_metadata for parts in rule.names)
        hint = CAST_HINT if isinstance(error, duckdb.ConversionException) and of_metadata else VALUE_HINT
        name = "The rules" if rule is None else f"{rule.where}: {shorten(rule.text)!r}"
        raise RecipeError(f"{name} cannot be applied: {str(error).splitlines()[0][:300]}", hint) from error


def _results_query(conditions: Sequence[str], facts: str) -> str:
    outcomes = "".join(f", {condition} AS outcome_{number}" for number, condition in enumerate(conditions))
    first = " ".join(f"WHEN outcome_{number} IS NOT TRUE THEN {number}" for number in range(len(conditions)))
    unknown = " ".join(f"WHEN {number} THEN outcome_{number} IS NULL" for number in range(len(conditions)))
    return f"""
        CREATE OR REPLACE TEMP TABLE rule_results AS
        SELECT conversation,
            {f"CASE {first} END" if conditions else "NULL::INTEGER"} AS rule,
            {f"CASE rule {unknown} ELSE false END" if conditions else "false"} AS unknown
        FROM (SELECT conversation{outcomes} FROM ({facts}))"""


def _find_duplicates(
    connection: DuckDBPyConnection, recipe: Recipe, conditions: Sequence[str], columns: Mapping[str, Column]
) -> Column:
    """Write the near-duplicates among the conversations that can be kept to `found_duplicates`; returns their column.

    Evaluates the rules twice for the conversations in clusters: as if none was a near-duplicate, and as if all were.
    """
    clustering = find_clustering(connection)
    assert clustering is not None  # checked with the names
    condition = " AND ".join(f"({condition})" for condition in conditions)
    passes, passes_as_duplicate = (
        f"""SELECT conversation FROM ({facts_query({**columns, NEAR_DUPLICATE: Column(value)})})
            WHERE conversation IN (SELECT conversation FROM clusters) AND {condition}"""
        for value in ("false", "true")
    )
    candidates: pl.DataFrame = connection.sql(
        f"""WITH human AS ({HUMAN_SQL}), passing AS ({passes}), duplicates AS ({passes_as_duplicate})
            SELECT conversation, CASE
                WHEN kept OR passes AND passes_as_duplicate THEN $anyway
                WHEN passes THEN $passes ELSE $as_duplicate END::TINYINT AS tier
            FROM (SELECT DISTINCT conversation, kept, conversation IN (FROM passing) AS passes,
                      conversation IN (FROM duplicates) AS passes_as_duplicate
                  FROM clusters LEFT JOIN human USING (conversation))
            WHERE kept IS NOT false AND (kept OR passes OR passes_as_duplicate)""",
        params={"anyway": KEPT_ANYWAY, "passes": PASSES, "as_duplicate": PASSES_AS_DUPLICATE},
    ).pl()
    found = find_duplicates_among(connection, candidates, recipe, clustering)
    connection.register("found", found)
    connection.execute("CREATE OR REPLACE TEMP TABLE found_duplicates AS FROM found")
    connection.unregister("found")
    return Column("c.id IN (SELECT conversation FROM found_duplicates)")


def _find_failing_rule(
    connection: DuckDBPyConnection, rules: Sequence[Expression], conditions: Sequence[str], facts: str
) -> Expression | None:
    """The first rule that fails alone, because DuckDB does not report which part of a query failed.

    Uses its own cursor: the failure ended the transaction, in which nothing was written yet.
    """
    cursor = connection.cursor()
    cursor.execute(NULL_ON_DIVISION_BY_ZERO)
    for rule, condition in zip(rules, conditions, strict=True):
        try:
            cursor.execute(f"SELECT count(*) FROM ({facts}) WHERE {condition}")
        except duckdb.Error:
            return rule
    return None


@timed("writing verdicts")
def _write_verdicts(connection: DuckDBPyConnection, texts: Mapping[str, str], selection: str) -> tuple[int, int]:
    """Append the verdicts that differ from the latest ones; how many are other verdicts, and how many other reasons."""
    reasons = [f"{name}: {text}" for name, text in texts.items()]
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE changed_verdicts AS
        WITH new AS (
            SELECT conversation, if(rule IS NULL, 'keep', 'drop') AS verdict,
                if(rule IS NULL, $passed, $reasons[rule + 1] || if(unknown, $unknown, '')) AS reason
            FROM rule_results
        ), latest AS (
            SELECT * FROM verdicts WHERE by_whom = $rule
            QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY seq DESC) = 1
        )
        SELECT new.*, latest.verdict IS NOT DISTINCT FROM new.verdict AS is_same FROM new
        LEFT JOIN latest USING (conversation) WHERE NOT is_same OR latest.reason <> new.reason""",
        {"passed": ALL_PASSED if reasons else NO_RULES, "reasons": reasons, "rule": RULE, "unknown": UNKNOWN},
    )
    connection.execute(
        """INSERT INTO verdicts (conversation, verdict, reason, by_whom, selection)
           SELECT conversation, verdict, reason, ?, ? FROM changed_verdicts""",
        [RULE, selection],
    )
    ((verdicts, same),) = connection.sql(
        "SELECT count(*) FILTER (NOT is_same), count(*) FILTER (is_same) FROM changed_verdicts"
    ).fetchall()
    return int(verdicts), int(same)


@timed("counting dropped conversations")
def _report(
    connection: DuckDBPyConnection,
    selection: str,
    texts: Mapping[str, str],
    changed: tuple[int, int],
    shadowed: list[str],
) -> SelectionReport:
    """The counts of `rule_results`, combined with the human verdicts."""
    ((conversations, by_rules),) = connection.sql(
        "SELECT count(*), count(*) FILTER (rule IS NULL) FROM rule_results"
    ).fetchall()
    ((restored, dropped),) = connection.execute(
        """SELECT count(*) FILTER (v.kept AND r.rule IS NOT NULL), count(*) FILTER (NOT v.kept AND r.rule IS NULL)
           FROM current_verdicts v JOIN rule_results r USING (conversation) WHERE v.by_whom <> ?""",
        [RULE],
    ).fetchall()
    ((edits,),) = connection.sql(
        f"SELECT count(*) FROM ({KEPT_SQL}) WHERE conversation NOT IN (SELECT conversation FROM rule_results)"
    ).fetchall()
    return SelectionReport(
        selection,
        _count_by_rule(connection, texts, conversations),
        conversations,
        by_rules,
        kept_by_humans=restored + edits,
        dropped_by_humans=dropped,
        kept=by_rules + restored - dropped + edits,
        verdicts=changed[0],
        reasons=changed[1],
        shadowed=shadowed,
    )


def _count_by_rule(connection: DuckDBPyConnection, texts: Mapping[str, str], before: int) -> list[RuleCount]:
    """The waterfall: for each rule, in the order of the recipe, the conversations before, dropped and after."""
    rows = connection.sql(f"""
        SELECT rule, count(*), count(*) FILTER (unknown), arg_min(conversation, conversation, {EXAMPLES})
        FROM rule_results WHERE rule IS NOT NULL GROUP BY rule""").fetchall()
    drops = {rule: (dropped, unknown, ids) for rule, dropped, unknown, ids in rows}
    prompts = preview_prompts(connection, [id_ for _, _, ids in drops.values() for id_ in ids])
    counts = []
    for number, (name, text) in enumerate(texts.items()):
        dropped, unknown, ids = drops.get(number, (0, 0, []))
        examples = [{"id": id_, "prompt": prompts[id_]} for id_ in ids]
        counts.append(RuleCount(name, text, before, dropped, unknown, before - dropped, examples))
        before -= dropped
    return counts
