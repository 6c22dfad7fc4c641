"""Near-duplicate clusters in the store: how they were found, which conversations they cover, connected components."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from schemas.conversation import IMPORTED_SQL
from schemas.digest import canonical_json

NEAR_DUPLICATE = "near_duplicate"
"""The name in rules for "another conversation of the cluster is kept instead of this one"."""

METHOD = "shingles-3"
"""The value of `clusters.method`: the search and its revision. `shingles` missed pairs in crowded groups, `shingles-2`
compared short texts by five-word shingles, and texts with their markup."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """How the table `clusters` was computed, and how many conversations were compared."""

    method: str
    parameters: dict[str, Any]
    conversations: int
    seq: int
    """orders it among selections, by the number that the store assigned"""

    @property
    def is_outdated(self) -> bool:
        """Whether it was computed by an earlier revision of the search, which may have found other clusters."""
        return self.method != METHOD


def find_clustering(connection: DuckDBPyConnection) -> Clustering | None:
    """The latest clustering of the store, or None."""
    query = "SELECT method, parameters, conversations, seq FROM clusterings ORDER BY seq DESC LIMIT 1"
    found = connection.sql(query).fetchall()
    return Clustering(found[0][0], json.loads(found[0][1]), *found[0][2:]) if found else None


def write_clustering(
    connection: DuckDBPyConnection,
    method: str,
    parameters: Mapping[str, Any],
    conversations: int,
    clusters: pl.DataFrame,
) -> None:
    """Write a clustering, replacing the previous one, whatever its method, so that two searches are never mixed.

    `clusters` has the columns `conversation`, `cluster`, `nearest`, `similarity`.
    """
    connection.execute("DELETE FROM clusters")
    connection.execute("DELETE FROM clusterings")
    connection.execute(
        "INSERT INTO clusterings (method, parameters, conversations) VALUES (?, ?, ?)",
        [method, canonical_json(parameters), conversations],
    )
    connection.register("new_clusters", clusters)
    connection.execute("INSERT INTO clusters BY NAME SELECT *, ? AS method FROM new_clusters", [method])
    connection.unregister("new_clusters")


def count_unclustered(connection: DuckDBPyConnection, clustering: Clustering) -> int:
    """How many imported conversations the clustering does not cover; `curate.ingest.removal` subtracts removed ones."""
    ((imported,),) = connection.sql(f"SELECT count(*) FROM conversations c WHERE {IMPORTED_SQL}").fetchall()
    return max(0, int(imported) - clustering.conversations)


def connected_components(links: pl.DataFrame) -> pl.DataFrame:
    """The smallest member reachable from each member of `links` (`member`, `link`, `rank`): columns `member`, `group`.

    Members with the same `link` are connected. Smallest is by `rank`, then by name. Each round passes the smallest
    member across one link in both directions, until nothing changes: as many rounds as the longest chain of links,
    which is two or three if the links are already closed clusters.
    """
    groups = links.with_columns(group=pl.concat_str("rank", "member"))
    while True:
        passed = groups.with_columns(pl.col("group").min().over("link")).with_columns(
            pl.col("group").min().over("member")
        )
        if passed["group"].equals(groups["group"]):
            return groups.select("member", "group").unique()
        groups = passed
