"""Queueing: what is wanted comes in, the conversations that people should look at go out, in order, with all they show.

A set only grows: what is in it stays, and `sample` says how large it may become. So the same command again chooses
the same, a larger sample adds to it, and the name alone means the set as it is. Nothing is drawn at random: a hash of
the set's name and the id decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.dedup.clusters import find_near_duplicates
from curate.rule_columns import find_matching
from curate.scorers.plan import plan_scorers
from curate.scorers.runner import stored_columns
from curate.selection import RULE
from schemas.errors import ReviewError
from schemas.recipe import Recipe
from schemas.review import QUALITY, MetadataKind, Task
from schemas.rule import Expression

RANDOM, UNCERTAIN, DISAGREEMENT, NEAR_DUPLICATES, ORDERED = (
    "random",
    "uncertain",
    "disagreement",
    "near-duplicates",
    "order",
)
QUEUES = (RANDOM, UNCERTAIN, DISAGREEMENT, NEAR_DUPLICATES)
"""Why a conversation is looked at: drawn by lot, close to where a rule cuts, people differ, or it has near-duplicates
among those that could be looked at."""

CUT = re.compile(rf"\b{QUALITY}\s*>=?\s*(\d*\.?\d+)")
AT_ONCE = 1000
"""Conversations that are read at once to see whether they can be shown: a sample needs few of those in its queue."""

SHOWN_SQL = """
    SELECT conversation, conversations, tools FROM part JOIN conversations ON id = conversation ORDER BY place
"""
MIDDLE = 0.5
"""Where `quality` is most uncertain when no rule says where it cuts."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which conversations go into a set. `also_dropped`: those too that the rules dropped.

    `overlap` is what was said of it in so many words, to be held against a set that is there.
    """

    where: str | None = None
    order: str | None = None
    queue: str | None = None
    sample: int | None = None
    also_dropped: bool = False
    overlap: int | None = None

    @property
    def nothing(self) -> bool:
        """Whether nothing was said: then a set that is there stays as it is."""
        return replace(self, overlap=None) == Wanted()

    @property
    def why(self) -> str:
        """The queue, also where it was not named."""
        return self.queue or (ORDERED if self.order else RANDOM)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A set's members, those of before first, and whom it would have taken and cannot show.

    `members` has `conversation`, `queue`, `blind`, and `since` when it is in the set, null for newcomers; `unfit` has
    conversation and reason.
    """

    members: pl.DataFrame
    unfit: list[dict[str, str]]


Show = Callable[[Mapping[str, Any]], Task]
"""A row with `conversation`, `conversations` and `tools` as it would be put before people."""

Unfit = Callable[[Task], str | None]
"""Why a task cannot be shown, as a sentence; null when it can."""


def choose(
    connection: DuckDBPyConnection,
    recipe: Recipe,
    name: str,
    wanted: Wanted,
    disputed: Sequence[str] = (),
    *,
    show: Show,
    unfit: Unfit,
) -> Chosen:
    """The members of the set `name`, and the conversations that are left out since they cannot be shown.

    New ones come from what a freeze would take and no person has judged; `disputed` are the conversations on which
    people differ, the queue `disagreement`. Raises `RecipeError` for a rule that cannot be applied, and
    `ReviewError` for a queue that is unknown or has nothing to go by.
    """
    if wanted.why not in (*QUEUES, ORDERED):
        raise ReviewError(f"There is no queue {wanted.queue}.", f"There are {', '.join(QUEUES)}.")
    before: pl.DataFrame = connection.sql(
        """SELECT conversation, queue, blind, pushed_at AS since FROM review_records WHERE review_set = ?
           ORDER BY pushed_at, conversation""",
        params=[name],
    ).pl()
    if wanted.nothing and before.height:
        return Chosen(before, [])
    found = _ranked(connection, recipe, name, wanted, disputed).join(
        before, on="conversation", how="anti", maintain_order="left"
    )
    room = found.height if wanted.sample is None else max(0, wanted.sample - before.height)
    chosen, left_out = _fitting(_shown(connection, found, show), room, unfit)
    hidden = round(recipe.review.blind * (before.height + chosen.height)) - int(before["blind"].sum())
    blind = _fractions(connection, chosen, f"blind {name}").rank("ordinal") <= hidden
    fresh = chosen.select(
        "conversation", queue=pl.lit(wanted.why), blind=blind, since=pl.lit(None, before.schema["since"])
    )
    return Chosen(pl.concat([before, fresh]), left_out)


def _ranked(
    connection: DuckDBPyConnection, recipe: Recipe, name: str, wanted: Wanted, disputed: Sequence[str]
) -> pl.DataFrame:
    """Whom the queue takes, first ones first: one column `conversation`."""
    connection.register("matching", find_matching(connection, recipe, wanted.where, wanted.order).pl())
    connection.register("disputed", pl.DataFrame({"conversation": disputed}, schema={"conversation": pl.String}))
    columns = score_columns(connection, recipe)
    dropped_too = wanted.also_dropped or wanted.why == UNCERTAIN
    pool = f"""SELECT conversation, place FROM matching JOIN current_verdicts USING (conversation)
               WHERE (kept OR {dropped_too}) AND coalesce(by_whom, '{RULE}') = '{RULE}'"""
    queries = {
        ORDERED: f"SELECT conversation FROM ({pool}) ORDER BY place",
        RANDOM: f"SELECT conversation FROM ({pool}) ORDER BY sha256(? || conversation)",
        UNCERTAIN: _uncertain(recipe, pool, columns.get(QUALITY, "NULL")),
        DISAGREEMENT: "SELECT conversation FROM matching JOIN disputed USING (conversation) ORDER BY place",
        NEAR_DUPLICATES: f"SELECT conversation FROM ({pool}) ORDER BY place",
    }
    if wanted.why == UNCERTAIN and QUALITY not in columns:
        raise ReviewError("The queue uncertain goes by the score quality, which is not computed.", "curate score")
    parameters = [name] if wanted.why == RANDOM else []
    found: pl.DataFrame = connection.sql(queries[wanted.why], params=parameters).pl()
    if wanted.why == NEAR_DUPLICATES:
        found = _clustered(connection, found)
    connection.unregister("matching")
    connection.unregister("disputed")
    return found


def _clustered(connection: DuckDBPyConnection, found: pl.DataFrame) -> pl.DataFrame:
    """Those with near-duplicates among them, cluster by cluster, the largest first."""
    clusters = find_near_duplicates(connection, found)
    members = found.join(clusters, on="conversation", maintain_order="left")
    size = pl.len().over("cluster")
    return members.sort(size, "cluster", descending=[True, False], maintain_order=True).select("conversation")


def _fitting(tasks: Iterator[Task], room: int, unfit: Unfit) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """The first tasks that can be shown, as many as there is room for, and why those among them cannot."""
    taken: list[str] = []
    left_out: list[dict[str, str]] = []
    while len(taken) < room and (task := next(tasks, None)):  # one by one: each may be unfit in a way of its own
        reason = unfit(task)
        if reason is None:
            taken.append(task.conversation)
        else:
            left_out.append({"conversation": task.conversation, "reason": reason})
    return pl.DataFrame({"conversation": taken}, schema={"conversation": pl.String}), left_out


def _shown(connection: DuckDBPyConnection, found: pl.DataFrame, show: Show) -> Iterator[Task]:
    """The conversations as they would be put before people, in their order, a few read at a time."""
    for part in found.iter_slices(AT_ONCE):
        connection.register("part", part.with_row_index("place"))
        rows: list[dict[str, Any]] = connection.sql(SHOWN_SQL).pl().to_dicts()
        connection.unregister("part")
        yield from map(show, rows)


def _uncertain(recipe: Recipe, pool: str, quality: str) -> str:
    """Those whose quality is closest to where a rule cuts, on both sides of it."""
    cuts = [float(cut) for rule in recipe.select.rules.values() for cut in CUT.findall(rule)]
    cut = cuts[0] if cuts else MIDDLE
    return f"""SELECT conversation FROM ({pool}) JOIN scores USING (conversation)
               WHERE {quality} IS NOT NULL ORDER BY abs({quality} - {cut}), conversation"""


def score_columns(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, str]:
    """Score -> its column, quoted, with the parameters that the recipe gives it; those that are computed."""
    stored = stored_columns(connection)
    return {each.name: f'"{each.column}"' for each in plan_scorers(recipe.score) if each.column in stored}


def _fractions(connection: DuckDBPyConnection, chosen: pl.DataFrame, salt: str) -> pl.Series:
    """A number from 0 to 1 for each conversation, always the same for the same salt."""
    connection.register("chosen", chosen)
    rows: pl.DataFrame = connection.sql(
        "SELECT ('0x' || sha256(? || conversation)[:8])::UBIGINT / 4294967296.0 AS fraction FROM chosen", params=[salt]
    ).pl()
    connection.unregister("chosen")
    return rows["fraction"].cast(pl.Float64)


FACTS_SQL = """
    SELECT chosen.*, c.conversations, c.tools, o.source, o.line, k.cluster, v.version, r.ruled{scores}
    FROM chosen
    JOIN conversations c ON c.id = chosen.conversation
    LEFT JOIN (
        SELECT conversation, arg_min(parse_filename(path), row) AS source, arg_min(coalesce(line, row), row) AS line
        FROM origins JOIN sources USING (source) WHERE NOT duplicate GROUP BY conversation
    ) o ON o.conversation = chosen.conversation
    LEFT JOIN near k ON k.conversation = chosen.conversation
    LEFT JOIN (
        SELECT conversation, arg_max(version, frozen_at) AS version FROM members JOIN versions USING (version)
        GROUP BY conversation
    ) v ON v.conversation = chosen.conversation
    LEFT JOIN (
        SELECT conversation, arg_max(verdict = 'keep', (decided_at, rowid)) AS ruled FROM verdicts
        WHERE by_whom = 'rule' GROUP BY conversation
    ) r ON r.conversation = chosen.conversation
    LEFT JOIN scores s ON s.conversation = chosen.conversation
    ORDER BY place
"""

FACT_KINDS: dict[str, MetadataKind] = {
    "source": "text",
    "line": "whole",
    "queue": "text",
    "cluster": "text",
    "version": "text",
}


def metadata_kinds(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, MetadataKind]:
    """What tasks carry beside the conversation: where it came from, its cluster and version, and every score."""
    kinds: dict[str, MetadataKind] = {"BIGINT": "whole", "DOUBLE": "number"}
    stored = stored_columns(connection)
    columns = score_columns(connection, recipe)
    return FACT_KINDS | {name: kinds.get(stored[column.strip('"')], "text") for name, column in columns.items()}


def filters(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, MetadataKind]:
    """The part of it by which a server filters and sorts: the facts, `quality`, and the scores that rules read.

    Argilla checks every value of these one by one: with all scores a push takes half as long again.
    """
    rules = [Expression.read(rule, name) for name, rule in recipe.select.rules.items()]
    read = {".".join(parts) for rule in rules for parts in rule.names}
    return {
        key: kind for key, kind in metadata_kinds(connection, recipe).items() if key in {*FACT_KINDS, QUALITY, *read}
    }


def read_tasks(connection: DuckDBPyConnection, recipe: Recipe, chosen: pl.DataFrame) -> list[dict[str, Any]]:
    """What `asking.task_of` takes, a row per chosen conversation, in their order."""
    scores = score_columns(connection, recipe)
    named = "".join(f', s.{column} AS "{name}"' for name, column in scores.items())
    connection.register("near", _named_by_first(find_near_duplicates(connection, chosen), chosen))
    connection.register("chosen", chosen.with_row_index("place"))
    rows: list[dict[str, Any]] = connection.sql(FACTS_SQL.format(scores=named)).pl().to_dicts()
    connection.unregister("chosen")
    connection.unregister("near")
    kinds = metadata_kinds(connection, recipe)
    return [  # one by one: each becomes a request's JSON
        {
            **{key: row[key] for key in ("conversation", "conversations", "tools", "queue", "blind", "ruled")},
            "metadata": _metadata(row, kinds),
            "scores": {score: row[score] for score in scores},
        }
        for row in rows
    ]


def _named_by_first(clusters: pl.DataFrame, chosen: pl.DataFrame) -> pl.DataFrame:
    """The clusters, named by whoever was in the set first: a newcomer changes nothing that the others show."""
    ordered = chosen.select("conversation", "since").sort("since", "conversation", nulls_last=True)
    return ordered.join(clusters, on="conversation", maintain_order="left").with_columns(
        cluster=pl.col("conversation").first().over("cluster")
    )


def _metadata(row: Mapping[str, Any], kinds: Mapping[str, MetadataKind]) -> dict[str, Any]:
    """The values that are there; truths as yes and no, since a filter offers texts."""
    values = {key: row[key] for key in kinds if row[key] is not None}
    return {key: ("yes" if value else "no") if isinstance(value, bool) else value for key, value in values.items()}
