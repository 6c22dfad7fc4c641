"""A clustering: which conversations are near-duplicates of each other, by which parameters, and over how many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from schemas.digest import canonical_json


@dataclass(frozen=True, slots=True)
class Clustering:
    """What the table `clusters` was made by. `conversations` were there to be compared."""

    method: str
    parameters: dict[str, Any]
    conversations: int
    clustered_at: datetime


def find_clustering(connection: DuckDBPyConnection) -> Clustering | None:
    """The latest clustering of the store, if there is one."""
    query = "SELECT method, parameters, conversations, clustered_at FROM clusterings ORDER BY clustered_at DESC LIMIT 1"
    found = connection.sql(query).fetchall()
    return Clustering(found[0][0], json.loads(found[0][1]), *found[0][2:]) if found else None


def write_clustering(
    connection: DuckDBPyConnection,
    method: str,
    parameters: Mapping[str, Any],
    conversations: int,
    clusters: pl.DataFrame,
) -> None:
    """Put a clustering in the place of the one that the method made before.

    `clusters` has `conversation`, `cluster`, `nearest`, `similarity`.
    """
    connection.execute("DELETE FROM clusters WHERE method = ?", [method])
    connection.execute("DELETE FROM clusterings WHERE method = ?", [method])
    connection.execute(
        "INSERT INTO clusterings (method, parameters, conversations) VALUES (?, ?, ?)",
        [method, canonical_json(parameters), conversations],
    )
    connection.register("found_clusters", clusters)
    connection.execute("INSERT INTO clusters BY NAME SELECT *, ? AS method FROM found_clusters", [method])
    connection.unregister("found_clusters")
