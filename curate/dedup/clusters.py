"""Deduplicating: conversations come in; clusters of near-duplicates go out, and who of each cluster may stay.

What two conversations have in common is measured on all they say but the system prompt, which thousands may share. Of
those that are alike the recipe prefers one; a near-duplicate is who resembles one that stays, so that nobody leaves for
the sake of somebody who leaves too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from duckdb import DuckDBPyConnection

from curate.dedup.shingle_join import Numbers, Read, central_first, near_pairs, stand_ins
from curate.scorers.runner import check_not_empty
from curate.selection import matching
from schemas.cluster import NEAR_DUPLICATE, connected_components, write_clustering
from schemas.conversation import preview_prompts
from schemas.errors import RecipeError
from schemas.recipe import Recipe
from schemas.store import reading, writing

METHOD = "shingles"
"""What `clusters.method` says of those found here."""

LONGEST_FIRST = "length(prompt) + length(answer) desc"
"""Whom to prefer when the recipe does not say, of those whom as many others resemble."""

LEAST_SIMILARITY = 0.8
"""From where on people are shown two conversations together."""

AT_ONCE = 20_000
"""Conversations that are read at once."""

EXAMPLES = 5

TEXTS_SQL = """
    SELECT number::UINTEGER AS number, lower(array_to_string([t.value FOR t IN conversations IF t."from" <> 'system'],
        ' ')) AS text
    FROM numbered JOIN conversations ON id = conversation
"""


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """What near-duplicates there are: `near_duplicates` of `conversations` may go, and lie in `clusters`."""

    similarity: float
    conversations: int
    clusters: int
    members: int
    near_duplicates: int
    same_words: int
    """near-duplicates with the very same shingles as one that stays"""
    largest: int
    """members of the largest cluster"""
    examples: list[dict[str, str | float]]
    """those closest to the limit: conversation, prompt, nearest, nearest_prompt, similarity"""
    written: bool


def deduplicate_store(
    store: Path,
    recipe: Recipe,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Deduplicated:
    """Find the near-duplicates among all imported conversations of the store, in place of those found before.

    `progress` is told how many have been read, and of how many; `dry_run` writes nothing. Raises `RecipeError` for an
    order of preference that cannot be applied.
    """
    check_not_empty(store)
    with (reading if dry_run else writing)(store) as connection:
        numbered = _by_preference(connection, recipe)
        pairs = _near(connection, numbered, recipe.dedup.similarity, lambda done: progress(done, numbered.height))
        going = stand_ins(pairs) if recipe.dedup.prefer else central_first(pairs)
        clusters = _clusters(pairs, going, numbered)
        if not dry_run:
            write_clustering(connection, METHOD, recipe.dedup.model_dump(mode="json"), numbered.height, clusters)
        return _deduplicated(connection, recipe, numbered.height, clusters, written=not dry_run)


def near_duplicates(connection: DuckDBPyConnection, asked: pl.DataFrame) -> pl.DataFrame:
    """Which of the conversations `asked` are near-duplicates of each other: columns `conversation`, `cluster`.

    A cluster is named by the smallest id in it, and whoever has no sibling is not there.
    """
    numbered = asked.select(pl.col("conversation").sort()).with_row_index("number")
    pairs = _near(connection, numbered, LEAST_SIMILARITY)
    clusters = _clusters(pairs, stand_ins(pairs), numbered)
    return clusters.select("conversation", cluster=pl.col("conversation").min().over("cluster"))


def _by_preference(connection: DuckDBPyConnection, recipe: Recipe) -> pl.DataFrame:
    """All imported conversations, numbered: `conversation`, `number`, the one to prefer first."""
    order = recipe.dedup.prefer or LONGEST_FIRST
    if re.search(rf"\b{NEAR_DUPLICATE}\b", order):
        raise RecipeError(f"dedup.prefer reads {NEAR_DUPLICATE}, which follows from it.", 'For example: "quality desc"')
    found: pl.DataFrame = matching(connection, recipe, None, order).pl()
    return found.select("conversation", pl.col("place").cast(pl.UInt32).alias("number"))


def _near(
    connection: DuckDBPyConnection,
    numbered: pl.DataFrame,
    least: float,
    progress: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """The pairs that are alike, by their numbers."""
    connection.register("numbered", numbered)
    pairs = near_pairs(_reader(connection), numbered.height, least, progress)
    connection.unregister("numbered")
    return pairs


def _reader(connection: DuckDBPyConnection) -> Read:
    """Reads the texts of `numbered`, a part at a time."""

    def read(wanted: Numbers | None) -> Iterator[pl.DataFrame]:
        query = TEXTS_SQL
        if wanted is not None:
            connection.register("wanted", pl.DataFrame({"number": wanted}))
            query += "WHERE number IN (SELECT number FROM wanted)"
        for batch in connection.sql(query).to_arrow_reader(AT_ONCE):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame

    return read


def _clusters(pairs: pl.DataFrame, going: pl.DataFrame, numbered: pl.DataFrame) -> pl.DataFrame:
    """Who is tied to whom over one or many pairs: `conversation`, `cluster`, `nearest`, `similarity`.

    A cluster has the name of the first of its members that stay; the last two are null for who stays.
    """
    links = pairs.with_row_index("link").unpivot(["a", "b"], index="link", value_name="number")
    named = links.join(numbered, on="number").select("link", member="conversation", rank=pl.lit(""))
    members = (
        connected_components(named)
        .join(numbered, left_on="member", right_on="conversation")
        .join(going, on="number", how="left")
        .join(numbered.select(nearest="number", like="conversation"), on="nearest", how="left")
        .sort(pl.col("nearest").is_not_null(), "number")
    )
    return members.select(
        conversation="member",
        cluster=pl.col("member").first().over("group"),
        nearest="like",
        similarity="similarity",
    )


def _deduplicated(
    connection: DuckDBPyConnection, recipe: Recipe, conversations: int, clusters: pl.DataFrame, *, written: bool
) -> Deduplicated:
    going = clusters.drop_nulls("nearest")
    sizes = clusters.group_by("cluster").len()["len"]
    return Deduplicated(
        similarity=recipe.dedup.similarity,
        conversations=conversations,
        clusters=sizes.len(),
        members=clusters.height,
        near_duplicates=going.height,
        same_words=going.filter(pl.col("similarity") == 1).height,
        largest=int(sizes.max() or 0),  # type: ignore[arg-type]
        examples=_examples(connection, going),
        written=written,
    )


def _examples(connection: DuckDBPyConnection, going: pl.DataFrame) -> list[dict[str, str | float]]:
    """Those that are least alike: where the limit lies is judged by them."""
    least = going.sort("similarity", "conversation").head(EXAMPLES).to_dicts()
    words = preview_prompts(connection, [one[end] for one in least for end in ("conversation", "nearest")])
    return [
        {
            "conversation": one["conversation"],
            "prompt": words[one["conversation"]],
            "nearest": one["nearest"],
            "nearest_prompt": words[one["nearest"]],
            "similarity": round(one["similarity"], 3),
        }
        for one in least
    ]
