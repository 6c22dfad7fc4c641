"""Searches, similarity searches, progress and metrics of a dataset → results, over one SQLite connection."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .filters import FALSE, Sql
from .index import FIELD_BITS, field_positions
from .query_parser import Binary, Not, Tree, Words, parse

_MAX_EXPANSIONS = 10
"""Words that a word with typos can match, as Argilla configures Elasticsearch."""

_MAX_TERMS = 2**14
_SHUFFLE = 2_147_483_647
"""A prime: numbers of documents times a constant, modulo it, are in an order without a visible pattern."""


@dataclass(frozen=True)
class SearchPage:
    """A page of record ids, as stored in SQLite, with their scores, and the number of all matches."""

    records: list[tuple[str, float | None]]
    total: int


def search(
    connection: sqlite3.Connection,
    dataset: str,
    text: Sql | None,
    where: Sql,
    order: Sql | None,
    *,
    ranks: Sql | None = None,
    shuffle: int | None = None,
    taken: Mapping[str, int] | None = None,
    offset: int = 0,
    limit: int = 100,
) -> SearchPage:
    """A page of the records that match `text` and `where`.

    Without `order` they are sorted by relevance to the text, or without a text by their metadata `position`. Records
    without one are shuffled by the user's number, so that annotators see different records, or else by insertion.
    `taken` maps records to the number of others who read them: those that get enough answers from them come last.
    """
    condition = Sql(
        f"d.dataset = ? AND ({where.text}) AND ({text.text if text else 1})",
        [dataset, *where.parameters, *(text.parameters if text else [])],
    )
    score = "k.score" if ranks else "1.0"
    if order is None:
        order, shown_score = _default_order(ranks, shuffle, taken or {}), score
    else:
        shown_score = "NULL"
    joined = f"LEFT JOIN ({ranks.text}) k ON k.doc = d.doc" if ranks else ""
    rows = connection.execute(
        f"""SELECT d.record, {shown_score}, count(*) OVER () FROM curate_documents d {joined}
            WHERE {condition.text} ORDER BY {order.text} LIMIT ? OFFSET ?""",
        [*(ranks.parameters if ranks else []), *condition.parameters, *order.parameters, limit, offset],
    ).fetchall()
    if rows or offset == 0:
        return SearchPage([(record, value) for record, value, _ in rows], rows[0][2] if rows else 0)
    return SearchPage([], _count(connection, condition))


def without_answered(where: Sql, user: str) -> Sql:
    """The condition, and not answered by the user in another set, which `curate review push` lists in `answered_by`."""
    return Sql(
        f"""({where.text}) AND (
            json_extract(d.metadata, '$.answered_by') IS NULL
            OR (SELECT u.username FROM users u WHERE u.id = ?) NOT IN (
                SELECT v.value FROM json_each(d.metadata, '$.answered_by') v)
            OR EXISTS (SELECT 1 FROM responses p WHERE p.record_id = d.record AND p.user_id = ?))""",
        [*where.parameters, user, user],
    )


_TAKEN = """
    SELECT t.key FROM json_each(?) t JOIN records r ON r.id = t.key JOIN datasets s ON s.id = r.dataset_id
    WHERE t.value + (SELECT count(*) FROM responses p WHERE p.record_id = r.id AND p.status = 'submitted')
        >= json_extract(s.distribution, '$.min_submitted')
"""


def _default_order(ranks: Sql | None, shuffle: int | None, taken: Mapping[str, int]) -> Sql:
    if ranks is not None:
        return Sql("k.score DESC NULLS LAST, d.doc")
    if shuffle is not None:
        shuffled = f"(d.doc * ?) % {_SHUFFLE}, d.doc"
        position = "json_extract(d.metadata, '$.position')"
        return Sql(
            f"{position} IS NOT NULL AND d.record IN ({_TAKEN}), {position} NULLS LAST, {shuffled}",
            [json.dumps(taken), shuffle % _SHUFFLE or 1],
        )
    return Sql("d.doc")


def _count(connection: sqlite3.Connection, condition: Sql) -> int:
    row = connection.execute(
        f"SELECT count(*) FROM curate_documents d WHERE {condition.text}", condition.parameters
    ).fetchone()
    return int(row[0])


# --- texts ---


def text_condition(
    connection: sqlite3.Connection, dataset: str, query: str, name: str | None
) -> tuple[Sql, Sql | None]:
    """The condition for documents that match a text query, in the field `name` if one is given; and their relevance."""
    tree = parse(query)
    if tree is None:
        return Sql(FALSE), None
    position = None if name is None else field_positions(connection, dataset).get(name)
    if name is not None and position is None:
        return Sql(FALSE), None  # a field that cannot be searched, such as an image
    matches = [match for words in _positive_words(tree) if (match := _fts_query(connection, words))]
    ranks = _relevance(" OR ".join(matches), position) if matches else None
    return _tree_condition(connection, tree, position), ranks


def _tree_condition(connection: sqlite3.Connection, tree: Tree, position: int | None) -> Sql:
    if isinstance(tree, Binary):
        left, right = (_tree_condition(connection, part, position) for part in (tree.left, tree.right))
        return Sql(f"({left.text}) {tree.operator} ({right.text})", [*left.parameters, *right.parameters])
    if isinstance(tree, Not):
        operand = _tree_condition(connection, tree.operand, position)
        return Sql(f"NOT ({operand.text})", operand.parameters)
    match = _fts_query(connection, tree)
    if not match:
        return Sql(FALSE)
    words = f"curate_words MATCH ? AND {_field_condition(position)}"
    return Sql(f"d.doc IN (SELECT rowid >> {FIELD_BITS} FROM curate_words WHERE {words})", [match])


def _field_condition(position: int | None) -> str:
    return "1" if position is None else f"(rowid & {(1 << FIELD_BITS) - 1}) = {position}"


def _relevance(match: str, position: int | None) -> Sql:
    """Each document's relevance: the sum of BM25 over its fields."""
    return Sql(
        f"""SELECT doc, sum(score) AS score FROM (
                SELECT rowid >> {FIELD_BITS} AS doc, -rank AS score FROM curate_words
                WHERE curate_words MATCH ? AND {_field_condition(position)} LIMIT -1)
            GROUP BY doc""",  # LIMIT prevents SQLite from merging the two SELECTs, which would lose the rank
        [match],
    )


def _positive_words(tree: Tree) -> list[Words]:
    if isinstance(tree, Words):
        return [tree]
    return [] if isinstance(tree, Not) else [*_positive_words(tree.left), *_positive_words(tree.right)]


def _fts_query(connection: sqlite3.Connection, words: Words) -> str:
    """The words in the syntax of FTS5; empty if a word with typos matches no indexed word."""
    quoted = [f'"{word}"' for word in words.words]
    if words.typos and len(quoted) == 1:
        return " OR ".join(f'"{word}"' for word in _similar_words(connection, words.words[0], words.typos))
    if words.near and len(quoted) > 1:
        return f"NEAR({' '.join(quoted)}, {words.near})"
    return " + ".join(quoted) + ("*" if words.prefix else "")


def _similar_words(connection: sqlite3.Connection, word: str, typos: int) -> list[str]:
    """The indexed words within `typos` edits of `word`, the nearest first."""
    terms = connection.execute(
        "SELECT term FROM curate_terms WHERE length(term) BETWEEN ? AND ?", [len(word) - typos, len(word) + typos]
    )
    # Edit distances are computed in Python only for words of about this length that contain one of typos + 1 pieces
    # of the word: at least one piece has no typo.
    cuts = [len(word) * number // (typos + 1) for number in range(typos + 2)]
    pieces = [word[start:end] for start, end in itertools.pairwise(cuts)]
    candidates = [term for (term,) in terms if any(piece in term for piece in pieces)]
    near = sorted((distance, term) for term in candidates if (distance := _distance(word, term, typos)) <= typos)
    indexed = (term for _, term in near if _is_indexed(connection, term))
    return list(itertools.islice(indexed, _MAX_EXPANSIONS))


def _is_indexed(connection: sqlite3.Connection, term: str) -> bool:
    rows = connection.execute("SELECT 1 FROM curate_words WHERE curate_words MATCH ? LIMIT 1", [f'"{term}"'])
    return rows.fetchone() is not None


def _distance(left: str, right: str, limit: int) -> int:
    """The edit distance (Levenshtein 1966) of two words; `limit + 1` or more if it exceeds `limit`."""
    row = list(range(len(right) + 1))
    for line, character in enumerate(left, 1):
        previous, row = row, [line]
        for column, other in enumerate(right, 1):
            row.append(min(previous[column] + 1, row[-1] + 1, previous[column - 1] + (character != other)))
        if min(row) > limit:
            return limit + 1
    return row[-1]


# --- vectors ---


def find_similar(
    connection: sqlite3.Connection,
    dataset: str,
    settings: str,
    value: list[float],
    where: Sql,
    *,
    exclude: str | None,
    limit: int,
    threshold: float | None,
) -> SearchPage:
    """The `limit` records whose vectors are most similar to `value`; score = (1 + cosine) / 2."""
    rows = connection.execute(
        f"""SELECT d.record, c.value FROM curate_vectors c JOIN curate_documents d ON d.record = c.record
            WHERE c.settings = ? AND c.value IS NOT NULL AND d.dataset = ? AND d.record IS NOT ? AND ({where.text})
            ORDER BY d.doc""",
        [settings, dataset, exclude, *where.parameters],
    ).fetchall()
    if not rows:
        return SearchPage([], 0)
    scores = _similarities(np.frombuffer(b"".join(blob for _, blob in rows), np.float32).reshape(len(rows), -1), value)
    best = np.argsort(-scores, kind="stable")[:limit]
    scored = [(rows[place][0], float(scores[place])) for place in best]
    records: list[tuple[str, float | None]] = [
        (record, score) for record, score in scored if threshold is None or score >= threshold
    ]
    return SearchPage(records, len(records))


def _similarities(vectors: Any, value: list[float]) -> Any:
    target = np.asarray(value, np.float32)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(target)
    cosines = np.divide(vectors @ target, lengths, out=np.zeros(len(vectors), np.float32), where=lengths > 0)
    return (1 + cosines) / 2


# --- counts ---


def count_records(connection: sqlite3.Connection, dataset: str) -> dict[str, int]:
    """The number of records of a dataset, in total and by status."""
    counts = dict(
        connection.execute("SELECT status, count(*) FROM curate_documents WHERE dataset = ? GROUP BY 1", [dataset])
    )
    return {"total": sum(counts.values()), **counts}


def count_matching(connection: sqlite3.Connection, dataset: str, where: Sql) -> int:
    """The number of a dataset's records that meet a condition."""
    (count,) = connection.execute(
        f"SELECT count(*) FROM curate_documents d WHERE d.dataset = ? AND ({where.text})", [dataset, *where.parameters]
    ).fetchone()
    return int(count)


def count_answers(connection: sqlite3.Connection, dataset: str, user: str) -> dict[str, int]:
    """The number of a user's answers in a dataset, in total and by status."""
    counts = dict(
        connection.execute(
            """SELECT p.status, count(*) FROM responses p JOIN curate_documents d ON d.record = p.record_id
               WHERE p.user_id = ? AND d.dataset = ? GROUP BY 1""",
            [user, dataset],
        )
    )
    return {"total": sum(counts.values()), **counts}


def count_terms(connection: sqlite3.Connection, dataset: str, path: str) -> list[tuple[str, int]]:
    """The values of a metadata property with their counts, the most frequent first."""
    return connection.execute(
        """SELECT v.value, count(*) FROM curate_documents d, json_each(d.metadata, ?) v
           WHERE d.dataset = ? AND v.value IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?""",
        [path, dataset, _MAX_TERMS],
    ).fetchall()


def value_range(connection: sqlite3.Connection, dataset: str, path: str) -> tuple[Any, Any]:
    """The minimum and maximum of a metadata property."""
    minimum, maximum = connection.execute(
        """SELECT min(v.value), max(v.value) FROM curate_documents d, json_each(d.metadata, ?) v
           WHERE d.dataset = ?""",
        [path, dataset],
    ).fetchone()
    return minimum, maximum
