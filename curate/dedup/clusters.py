"""Conversations in the store → near-duplicate clusters in `clusters`, and the conversation to keep of each.

Conversations are compared by all turns except the system prompt, which thousands may share. Every dropped conversation
is a near-duplicate of a kept one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from duckdb import DuckDBPyConnection

from curate.dedup.normal_text import strip_markup
from curate.dedup.shingle_join import greedy_cover, near_pairs, rank_by_degree
from curate.dedup.shingles import Numbers, ReadTexts
from curate.rule_columns import find_matching
from curate.scorers.runner import check_not_empty
from schemas.cluster import METHOD, NEAR_DUPLICATE, connected_components, write_clustering
from schemas.conversation import preview_prompts
from schemas.errors import RecipeError
from schemas.recipe import Recipe
from schemas.store import reading, writing
from schemas.timing import timed

LONGEST_FIRST = "length(prompt) + length(answer) desc"
"""The default order among conversations with equally many near-duplicates."""

REVIEW_SIMILARITY = 0.8
"""The similarity from which a review queue groups conversations."""

BATCH_ROWS = 20_000
"""Conversations that are read at a time."""

EXAMPLES = 5

TEXTS_SQL = """
    SELECT number::UINTEGER AS number, array_to_string([t.value FOR t IN conversations IF t."from" <> 'system'],
        ' ') AS text
    FROM numbered JOIN conversations ON id = conversation
"""


@dataclass(frozen=True, slots=True)
class DedupReport:
    """The near-duplicates of the store: `near_duplicates` of `conversations` may be dropped."""

    similarity: float
    conversations: int
    clusters: int
    members: int
    near_duplicates: int
    exact: int
    """near-duplicates with the same shingles as a kept conversation"""
    largest: int
    """members of the largest cluster"""
    examples: list[dict[str, str | float]]
    """the least similar near-duplicates: conversation, prompt, nearest, nearest_prompt, similarity"""
    written: bool


def deduplicate_store(
    store: Path,
    recipe: Recipe,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> DedupReport:
    """Find the near-duplicates among all imported conversations, replacing the previous clusters.

    `progress` is called with the number of conversations that were read, and of all. `dry_run` writes nothing. Raises
    `RecipeError` for an invalid `dedup.prefer`.
    """
    check_not_empty(store)
    with (reading if dry_run else writing)(store) as connection:
        numbered = number_conversations(connection, recipe)
        choose = greedy_cover if recipe.dedup.prefer else rank_by_degree
        pairs = find_pairs(
            connection, numbered, recipe.dedup.similarity, choose, lambda done: progress(done, numbered.height)
        )
        dropped = choose(pairs)
        clusters = _form_clusters(pairs, dropped, numbered)
        if not dry_run:
            write_clustering(connection, METHOD, recipe.dedup.model_dump(mode="json"), numbered.height, clusters)
        return _report(connection, recipe, numbered.height, clusters, written=not dry_run)


def find_near_duplicates(connection: DuckDBPyConnection, conversations: pl.DataFrame) -> pl.DataFrame:
    """The near-duplicates among `conversations` (`conversation`): columns `conversation`, `cluster`.

    A cluster is named after its smallest id. Conversations without near-duplicates are not included.
    """
    numbered = conversations.select(pl.col("conversation").sort()).with_row_index("number")
    pairs = find_pairs(connection, numbered, REVIEW_SIMILARITY, greedy_cover)
    clusters = _form_clusters(pairs, greedy_cover(pairs), numbered)
    return clusters.select("conversation", cluster=pl.col("conversation").min().over("cluster"))


@timed("ordering conversations")
def number_conversations(connection: DuckDBPyConnection, recipe: Recipe) -> pl.DataFrame:
    """All imported conversations in the order of preference: `conversation`, `number`."""
    order = recipe.dedup.prefer or LONGEST_FIRST
    if re.search(rf"\b{NEAR_DUPLICATE}\b", order):
        raise RecipeError(f"dedup.prefer reads {NEAR_DUPLICATE}, which depends on it.", 'For example: "quality desc"')
    ranked: pl.DataFrame = find_matching(connection, recipe, None, order).pl()
    return ranked.select("conversation", pl.col("place").cast(pl.UInt32).alias("number"))


@timed("finding pairs of near-duplicates")
def find_pairs(
    connection: DuckDBPyConnection,
    numbered: pl.DataFrame,
    similarity: float,
    choose: Callable[[pl.DataFrame], pl.DataFrame],
    progress: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """`near_pairs` of the conversations in `numbered`: columns `conversation`, `number`, from 0 on."""
    connection.register("numbered", numbered)
    pairs = near_pairs(_text_reader(connection), numbered.height, similarity, progress, choose)
    connection.unregister("numbered")
    return pairs


def _text_reader(connection: DuckDBPyConnection) -> ReadTexts:
    """A function that reads the texts of `numbered` in batches."""

    def read(numbers: Numbers | None) -> Iterator[pl.DataFrame]:
        query = TEXTS_SQL
        if numbers is not None:
            connection.register("selected_numbers", pl.DataFrame({"number": numbers}))
            query += "WHERE number IN (SELECT number FROM selected_numbers)"
        for batch in connection.sql(query).to_arrow_reader(BATCH_ROWS):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame.with_columns(strip_markup(frame["text"]).str.to_lowercase())

    return read


@timed("forming clusters")
def _form_clusters(pairs: pl.DataFrame, dropped: pl.DataFrame, numbered: pl.DataFrame) -> pl.DataFrame:
    """The connected components of `pairs`: `conversation`, `cluster`, `nearest`, `similarity`.

    A cluster is named after the first of its kept members, whose `nearest` and `similarity` are null.
    """
    links = pairs.with_row_index("link").unpivot(["a", "b"], index="link", value_name="number")
    named = links.join(numbered, on="number").select("link", member="conversation", rank=pl.lit(""))
    members = (
        connected_components(named)
        .join(numbered, left_on="member", right_on="conversation")
        .join(dropped, on="number", how="left")
        .join(numbered.select(nearest="number", nearest_id="conversation"), on="nearest", how="left")
        .sort(pl.col("nearest").is_not_null(), "number")
    )
    return members.select(
        conversation="member",
        cluster=pl.col("member").first().over("group"),
        nearest="nearest_id",
        similarity="similarity",
    )


def _report(
    connection: DuckDBPyConnection, recipe: Recipe, conversations: int, clusters: pl.DataFrame, *, written: bool
) -> DedupReport:
    dropped = clusters.drop_nulls("nearest")
    sizes = clusters.group_by("cluster").len()["len"]
    return DedupReport(
        similarity=recipe.dedup.similarity,
        conversations=conversations,
        clusters=sizes.len(),
        members=clusters.height,
        near_duplicates=dropped.height,
        exact=dropped.filter(pl.col("similarity") == 1).height,
        largest=int(sizes.max() or 0),  # type: ignore[arg-type]
        examples=_examples(connection, dropped),
        written=written,
    )


def _examples(connection: DuckDBPyConnection, dropped: pl.DataFrame) -> list[dict[str, str | float]]:
    """The least similar near-duplicates, which show whether the limit is right."""
    rows = dropped.sort("similarity", "conversation").head(EXAMPLES).to_dicts()
    prompts = preview_prompts(connection, [row[end] for row in rows for end in ("conversation", "nearest")])
    return [
        {
            "conversation": row["conversation"],
            "prompt": prompts[row["conversation"]],
            "nearest": row["nearest"],
            "nearest_prompt": prompts[row["nearest"]],
            "similarity": round(row["similarity"], 3),
        }
        for row in rows
    ]
