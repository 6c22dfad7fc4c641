"""Candidates of a selection → the near-duplicates among them, each with the kept conversation that it duplicates.

The search in `clusters` chose among all conversations. If a rule or a person drops the one that it kept, another one of
the cluster has to be kept instead.
"""

from __future__ import annotations

from functools import partial

import polars as pl
from duckdb import DuckDBPyConnection

from curate.dedup.clusters import find_pairs, number_conversations
from curate.dedup.shingle_join import greedy_cover, rank_by_degree
from schemas.cluster import Clustering
from schemas.recipe import DedupSection, Recipe

KEPT_ANYWAY, PASSES, PASSES_AS_DUPLICATE = range(3)
"""Tiers of candidates: kept whatever its near-duplicates are; kept unless it is a near-duplicate; only if it is one."""

CHANGED_CLUSTERS_SQL = """
    SELECT cluster FROM clusters LEFT JOIN candidates USING (conversation) GROUP BY cluster
    HAVING count(tier) > 0 AND NOT (
        bool_and(nearest IS NOT NULL OR tier IS NOT NULL)
        AND max(tier) FILTER (nearest IS NULL) <= min(tier) FILTER (nearest IS NOT NULL))
"""
"""The clusters in which `nearest` cannot be used: a kept member is no candidate, or another one takes precedence."""


def find_duplicates_among(
    connection: DuckDBPyConnection, candidates: pl.DataFrame, recipe: Recipe, clustering: Clustering
) -> pl.DataFrame:
    """The near-duplicates among `candidates` (`conversation`, `tier`): columns `conversation`, `nearest`, `similarity`.

    `nearest` is a candidate that is not in the result, of the same tier or a lower one. Only conversations in
    `clusters` matter. In clusters whose kept members are all candidates the choice of `curate dedup` stays; the texts
    of the others are compared again, because the stored search only compared enough pairs for its own choice.
    """
    connection.register("candidates", candidates)
    changed = connection.sql(CHANGED_CLUSTERS_SQL).pl()
    connection.register("changed", changed)
    unchanged: pl.DataFrame = connection.sql(
        """SELECT conversation, nearest, similarity FROM clusters SEMI JOIN candidates USING (conversation)
           WHERE nearest IS NOT NULL AND cluster NOT IN (FROM changed)"""
    ).pl()
    members = connection.sql(
        """SELECT conversation, tier FROM candidates JOIN clusters USING (conversation)
           SEMI JOIN changed USING (cluster)
           QUALIFY count(*) OVER (PARTITION BY cluster) > 1"""
    ).pl()
    connection.unregister("changed")
    connection.unregister("candidates")
    again = unchanged.clear() if members.is_empty() else _choose_again(connection, members, recipe, clustering)
    anyway = candidates.filter(pl.col("tier") == KEPT_ANYWAY)
    return pl.concat([unchanged, again]).join(anyway, on="conversation", how="anti")


def _choose_again(
    connection: DuckDBPyConnection, members: pl.DataFrame, recipe: Recipe, clustering: Clustering
) -> pl.DataFrame:
    section = DedupSection.model_validate(clustering.parameters)
    places = number_conversations(connection, recipe.model_copy(update={"dedup": section}))
    ordered = members.join(places, on="conversation").sort("tier", "number").drop("number").with_row_index("number")
    tiers = ordered["tier"].to_numpy()
    bounds = [int((tiers < tier).sum()) for tier in (PASSES, PASSES_AS_DUPLICATE)]
    choose = partial(_choose, bounds=bounds, by_degree=not section.prefer)
    chosen = choose(find_pairs(connection, ordered, section.similarity, choose))
    name = ordered.select("number", "conversation")
    return (
        chosen.join(name, on="number")
        .join(name.rename({"number": "nearest", "conversation": "nearest_id"}), on="nearest")
        .select("conversation", nearest="nearest_id", similarity="similarity")
    )


def _choose(pairs: pl.DataFrame, *, bounds: list[int], by_degree: bool) -> pl.DataFrame:
    """The texts to drop, as `greedy_cover`: those of a lower tier are kept first, and of the lowest all."""
    among_others = pairs.filter(pl.col("b") >= bounds[0])
    if not by_degree:
        return greedy_cover(among_others)
    return rank_by_degree(among_others, pl.sum_horizontal(pl.col("number") >= bound for bound in bounds))
