"""A queue query and the store → the members of a review set, in order, with everything that their tasks show.

A set only grows: members stay, and `sample` is the size to grow to. Repeating a command therefore selects the same
members, a larger sample adds some, and the name alone means the set as it is. Random order is a hash of the set's name
and the conversation id, so it is reproducible.
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
from schemas.digest import text_digest
from schemas.errors import ReviewError
from schemas.recipe import Recipe
from schemas.review import QUALITY, MetadataType, Task
from schemas.rule import Expression

RANDOM, UNCERTAIN, DISAGREEMENT, NEAR_DUPLICATES, ORDERED = (
    "random",
    "uncertain",
    "disagreement",
    "near-duplicates",
    "order",
)
QUEUES = (RANDOM, UNCERTAIN, DISAGREEMENT, NEAR_DUPLICATES)
"""Reasons to review a conversation: at random, quality close to a rule's threshold, annotators disagree, has
near-duplicates among the candidates."""

QUALITY_THRESHOLD = re.compile(rf"\b{QUALITY}\s*>=?\s*(\d*\.?\d+)")
DEFAULT_THRESHOLD = 0.5
"""The quality from which `uncertain` measures if no rule has a threshold."""

READ_BATCH = 1000
"""Conversations read at once to check whether they can be shown. A sample needs only the first of its queue."""

CONVERSATIONS_SQL = """
    SELECT conversation, conversations, tools FROM batch JOIN conversations ON id = conversation ORDER BY place
"""


@dataclass(frozen=True, slots=True)
class QueueQuery:
    """Which conversations become members. `also_dropped` includes those that rules dropped.

    `overlap` is the value of the option, None without it; it must equal that of an existing set. `assign` names the
    annotators that new members are offered to, () all of them; without other options it applies to the unanswered
    members of an existing set.
    """

    where: str | None = None
    order: str | None = None
    queue: str | None = None
    sample: int | None = None
    also_dropped: bool = False
    overlap: int | None = None
    assign: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no option was given: an existing set then stays as it is."""
        return replace(self, overlap=None, assign=None) == QueueQuery()

    @property
    def queue_name(self) -> str:
        """The queue, also if none was named."""
        return self.queue or (ORDERED if self.order else RANDOM)


@dataclass(frozen=True, slots=True)
class QueueSelection:
    """The members of a set, existing ones first, and the candidates that cannot be shown.

    `members` has `conversation`, `queue`, `blind`, `position` in the set, `since`: the time it was added, null for new
    members, and `assigned`: the annotators that it is offered to, null for all. `rejected` has conversation and reason.
    """

    members: pl.DataFrame
    rejected: list[dict[str, str]]


EXISTING_SQL = """
    SELECT conversation, queue, blind, position, pushed_at AS since, assigned, removed, conversation IN (
        SELECT l.conversation FROM latest_reviews l WHERE l.dataset = $name AND l.status = 'submitted') AS answered
    FROM review_records WHERE review_set = $name ORDER BY position NULLS FIRST, pushed_at, conversation
"""

RenderTask = Callable[[Mapping[str, Any]], Task]
"""A row with `conversation`, `conversations` and `tools` → the task as annotators would see it."""

RejectionReason = Callable[[Task], str | None]
"""A task → the reason why it cannot be shown, or None."""


def select_members(
    connection: DuckDBPyConnection,
    recipe: Recipe,
    name: str,
    query: QueueQuery,
    disputed: Sequence[str] = (),
    *,
    render: RenderTask,
    rejection_reason: RejectionReason,
) -> QueueSelection:
    """The members of the set `name`, and the candidates that were left out because they cannot be shown.

    Candidates are conversations that a freeze would include and that have no human verdict; for the queue
    `disagreement` they are those in `disputed`. Raises `RecipeError` for a rule that cannot be applied, and
    `ReviewError` for an unknown queue or one whose score is missing.
    """
    if query.queue_name not in (*QUEUES, ORDERED):
        raise ReviewError(f"Unknown queue {query.queue}.", f"Use one of {', '.join(QUEUES)}.")
    stored: pl.DataFrame = connection.sql(EXISTING_SQL, params={"name": name}).pl()
    existing = stored.filter(~pl.col("removed")).drop("removed")
    if query.is_empty and existing.height:
        return QueueSelection(_assign_unanswered(existing, query.assign).drop("answered"), [])
    existing = existing.drop("answered")
    candidates = _rank_candidates(connection, recipe, name, query, disputed).join(
        stored, on="conversation", how="anti", maintain_order="left"
    )
    room = candidates.height if query.sample is None else max(0, query.sample - existing.height)
    added, rejected = _take_showable(_render_tasks(connection, candidates, render), room, rejection_reason)
    blind_needed = round(recipe.review.blind * (existing.height + added.height)) - int(existing["blind"].sum())
    hashes = [text_digest(f"blind {name}{one}")[:8] for one in added["conversation"]]  # Polars has no SHA-256
    blind = pl.Series(hashes, dtype=pl.String).rank("ordinal") <= blind_needed
    new = added.select(
        "conversation",
        queue=pl.lit(query.queue_name),
        blind=blind,
        position=pl.int_range(1, pl.len() + 1, dtype=pl.Int32) + (stored["position"].max() or stored.height),
        since=pl.lit(None, existing.schema["since"]),
        assigned=pl.lit(list(query.assign or ()) or None, pl.List(pl.String)),
    )
    return QueueSelection(pl.concat([existing, new]), rejected)


def _assign_unanswered(members: pl.DataFrame, names: tuple[str, ...] | None) -> pl.DataFrame:
    """The members; those without an answer are assigned to `names`, or with () to everybody."""
    if names is None:
        return members
    new = pl.lit(list(names) or None, pl.List(pl.String))
    return members.with_columns(assigned=pl.when("answered").then("assigned").otherwise(new))


def _rank_candidates(
    connection: DuckDBPyConnection, recipe: Recipe, name: str, query: QueueQuery, disputed: Sequence[str]
) -> pl.DataFrame:
    """The candidates of the queue in its order: one column `conversation`."""
    connection.register("matching", find_matching(connection, recipe, query.where, query.order).pl())
    connection.register("disputed", pl.DataFrame({"conversation": disputed}, schema={"conversation": pl.String}))
    columns = score_columns(connection, recipe)
    include_dropped = query.also_dropped or query.queue_name == UNCERTAIN
    pool = f"""SELECT conversation, place FROM matching JOIN current_verdicts USING (conversation)
               WHERE (kept OR {include_dropped}) AND coalesce(by_whom, '{RULE}') = '{RULE}'"""
    queries = {
        ORDERED: f"SELECT conversation FROM ({pool}) ORDER BY place",
        RANDOM: f"SELECT conversation FROM ({pool}) ORDER BY sha256(? || conversation)",
        UNCERTAIN: _uncertain_query(recipe, pool, columns.get(QUALITY, "NULL")),
        DISAGREEMENT: "SELECT conversation FROM matching JOIN disputed USING (conversation) ORDER BY place",
        NEAR_DUPLICATES: f"SELECT conversation FROM ({pool}) ORDER BY place",
    }
    if query.queue_name == UNCERTAIN and QUALITY not in columns:
        raise ReviewError("The queue uncertain requires the score quality, which is not computed.", "curate score")
    parameters = [name] if query.queue_name == RANDOM else []
    candidates: pl.DataFrame = connection.sql(queries[query.queue_name], params=parameters).pl()
    if query.queue_name == NEAR_DUPLICATES:
        candidates = _sort_by_cluster(connection, candidates)
    connection.unregister("matching")
    connection.unregister("disputed")
    return candidates


def _uncertain_query(recipe: Recipe, pool: str, quality: str) -> str:
    """The conversations on both sides of the first rule's threshold, the closest first."""
    thresholds = [float(each) for rule in recipe.select.rules.values() for each in QUALITY_THRESHOLD.findall(rule)]
    threshold = thresholds[0] if thresholds else DEFAULT_THRESHOLD
    return f"""SELECT conversation FROM ({pool}) JOIN scores USING (conversation)
               WHERE {quality} IS NOT NULL ORDER BY abs({quality} - {threshold}), conversation"""


def _sort_by_cluster(connection: DuckDBPyConnection, candidates: pl.DataFrame) -> pl.DataFrame:
    """The candidates with near-duplicates among the candidates, cluster by cluster, the largest first."""
    clusters = find_near_duplicates(connection, candidates)
    members = candidates.join(clusters, on="conversation", maintain_order="left")
    size = pl.len().over("cluster")
    return members.sort(size, "cluster", descending=[True, False], maintain_order=True).select("conversation")


def _render_tasks(connection: DuckDBPyConnection, candidates: pl.DataFrame, render: RenderTask) -> Iterator[Task]:
    """The candidates' tasks in order, read in batches."""
    for batch in candidates.iter_slices(READ_BATCH):
        connection.register("batch", batch.with_row_index("place"))
        rows: list[dict[str, Any]] = connection.sql(CONVERSATIONS_SQL).pl().to_dicts()
        connection.unregister("batch")
        yield from map(render, rows)


def _take_showable(
    tasks: Iterator[Task], room: int, rejection_reason: RejectionReason
) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """The first `room` tasks that can be shown, and the tasks rejected before them with their reasons."""
    accepted: list[str] = []
    rejected: list[dict[str, str]] = []
    while len(accepted) < room and (task := next(tasks, None)):  # one by one: the server's limits are per message
        reason = rejection_reason(task)
        if reason is None:
            accepted.append(task.conversation)
        else:
            rejected.append({"conversation": task.conversation, "reason": reason})
    return pl.DataFrame({"conversation": accepted}, schema={"conversation": pl.String}), rejected


def score_columns(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, str]:
    """Score -> its quoted column for the recipe's parameters; computed scores only."""
    stored = stored_columns(connection)
    return {each.name: f'"{each.column}"' for each in plan_scorers(recipe.score) if each.column in stored}


MEMBERS_SQL = """
    SELECT members_of_set.* EXCLUDE position, if(queue = '{random}', NULL, position) AS position,
        c.conversations, c.tools, o.source, o.line, k.cluster, v.version, r.rules_keep, e.earlier{scores}
    FROM members_of_set
    JOIN conversations c ON c.id = members_of_set.conversation
    LEFT JOIN (
        SELECT conversation, arg_min(parse_filename(path), row) AS source, arg_min(coalesce(line, row), row) AS line
        FROM origins JOIN sources USING (source) WHERE NOT duplicate GROUP BY conversation
    ) o ON o.conversation = members_of_set.conversation
    LEFT JOIN near k ON k.conversation = members_of_set.conversation
    LEFT JOIN (
        SELECT conversation, arg_max(version, versions.seq) AS version FROM members JOIN versions USING (version)
        GROUP BY conversation
    ) v ON v.conversation = members_of_set.conversation
    LEFT JOIN (
        SELECT conversation, arg_max(verdict = 'keep', seq) AS rules_keep FROM verdicts
        WHERE by_whom = 'rule' GROUP BY conversation
    ) r ON r.conversation = members_of_set.conversation
    LEFT JOIN scores s ON s.conversation = members_of_set.conversation
    LEFT JOIN earlier e ON e.conversation = members_of_set.conversation AND queue = '{disagreement}'
    ORDER BY place
"""
"""Members in random order have no position: annotators then see them in different orders."""

EARLIER_SQL = """
    SELECT conversation, list({'reviewer': reviewer, 'answers': answers::VARCHAR} ORDER BY seq) AS earlier FROM (
        SELECT * FROM latest_reviews WHERE status = 'submitted' AND dataset <> ?
        QUALIFY row_number() OVER (PARTITION BY conversation, reviewer ORDER BY seq DESC) = 1
    ) GROUP BY conversation
"""
"""The latest answers of each annotator in other sets."""

FACT_TYPES: dict[str, MetadataType] = {
    "source": "text",
    "line": "integer",
    "queue": "text",
    "position": "integer",
    "cluster": "text",
    "version": "text",
}


def metadata_types(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, MetadataType]:
    """Name -> type of the metadata in a task: origin, queue, position, cluster, version and every score."""
    types: dict[str, MetadataType] = {"BIGINT": "integer", "DOUBLE": "float"}
    stored = stored_columns(connection)
    columns = score_columns(connection, recipe)
    return FACT_TYPES | {name: types.get(stored[column.strip('"')], "text") for name, column in columns.items()}


def filterable_metadata(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, MetadataType]:
    """The metadata that the server can filter and sort by: the facts, `quality`, and scores used by rules.

    Argilla validates each of these values separately: with all scores a push takes half as long again.
    """
    rules = [Expression.read(rule, name) for name, rule in recipe.select.rules.items()]
    used = {".".join(parts) for rule in rules for parts in rule.names}
    keys = {*FACT_TYPES, QUALITY, *used}
    return {key: kind for key, kind in metadata_types(connection, recipe).items() if key in keys}


TASK_COLUMNS = ("conversation", "conversations", "tools", "queue", "blind", "rules_keep", "assigned")


def read_task_rows(
    connection: DuckDBPyConnection, recipe: Recipe, name: str, members: pl.DataFrame
) -> list[dict[str, Any]]:
    """One row per member of the set `name`, in order, as `questions.build_task` requires it."""
    scores = score_columns(connection, recipe)
    columns = "".join(f', s.{column} AS "{name}"' for name, column in scores.items())
    connection.register("near", _name_clusters(find_near_duplicates(connection, members), members))
    connection.register("members_of_set", members.with_row_index("place"))
    connection.register("earlier", connection.sql(EARLIER_SQL, params=[name]).pl())
    query = MEMBERS_SQL.format(scores=columns, random=RANDOM, disagreement=DISAGREEMENT)
    rows: list[dict[str, Any]] = connection.sql(query).pl().to_dicts()
    for view in ("members_of_set", "near", "earlier"):
        connection.unregister(view)
    places = dict(members.select("conversation", "position").iter_rows())
    types = metadata_types(connection, recipe)
    return [  # one by one: each becomes the JSON of a request
        {
            **{key: row[key] for key in TASK_COLUMNS},
            "earlier": row["earlier"] or (),
            "position": places[row["conversation"]],
            "metadata": _metadata(row, types),
            "scores": {score: row[score] for score in scores},
        }
        for row in rows
    ]


def _name_clusters(clusters: pl.DataFrame, members: pl.DataFrame) -> pl.DataFrame:
    """Clusters named by their oldest member in the set, so that new members do not change existing tasks."""
    ordered = members.select("conversation", "since").sort("since", "conversation", nulls_last=True)
    return ordered.join(clusters, on="conversation", maintain_order="left").with_columns(
        cluster=pl.col("conversation").first().over("cluster")
    )


def _metadata(row: Mapping[str, Any], types: Mapping[str, MetadataType]) -> dict[str, Any]:
    """The values that are not null; booleans as "yes" and "no", because a server filters by texts."""
    values = {key: row[key] for key in types if row[key] is not None}
    return {key: ("yes" if value else "no") if isinstance(value, bool) else value for key, value in values.items()}
