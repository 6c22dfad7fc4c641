"""Questions about a dataset's records, asked over one SQLite connection: searches, similar ones, progress, metrics."""

from __future__ import annotations

import itertools
import sqlite3
from dataclasses import dataclass
from typing import Any

import numpy as np

from .filters import NOTHING, Sql
from .index import FIELD_BITS, field_places
from .query_parser import Both, Not, Tree, Words, parse

_MOST_EXPANSIONS = 10
"""Words that a word with typos may stand for, as Argilla asks of Elasticsearch."""

_MOST_TERMS = 2**14
_SHUFFLE = 2_147_483_647
"""A prime: a document's number times anything, modulo it, is an order that shows no pattern to a person."""


@dataclass(frozen=True)
class Found:
    """Records (as SQLite holds their ids) with their scores, and how many there are in all."""

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
    offset: int = 0,
    limit: int = 100,
) -> Found:
    """A page of the records that meet `text` and `where`.

    Without an order they come by relevance where there is a text, else shuffled by the number of the person who
    asks, so that annotators meet different records, else in the order in which they came in.
    """
    condition = Sql(
        f"d.dataset = ? AND ({where.text}) AND ({text.text if text else 1})",
        [dataset, *where.parameters, *(text.parameters if text else [])],
    )
    score = "k.score" if ranks else "1.0"
    if order is None:
        order, shown = _own_order(ranks, shuffle), score
    else:
        shown = "NULL"
    joined = f"LEFT JOIN ({ranks.text}) k ON k.doc = d.doc" if ranks else ""
    rows = connection.execute(
        f"""SELECT d.record, {shown}, count(*) OVER () FROM curate_documents d {joined}
            WHERE {condition.text} ORDER BY {order.text} LIMIT ? OFFSET ?""",
        [*(ranks.parameters if ranks else []), *condition.parameters, *order.parameters, limit, offset],
    ).fetchall()
    if rows or offset == 0:
        return Found([(record, value) for record, value, _ in rows], rows[0][2] if rows else 0)
    return Found([], _count(connection, condition))


def _own_order(ranks: Sql | None, shuffle: int | None) -> Sql:
    if ranks is not None:
        return Sql("k.score DESC NULLS LAST, d.doc")
    if shuffle is not None:
        return Sql(f"(d.doc * ?) % {_SHUFFLE}, d.doc", [shuffle % _SHUFFLE or 1])
    return Sql("d.doc")


def _count(connection: sqlite3.Connection, condition: Sql) -> int:
    counted = connection.execute(
        f"SELECT count(*) FROM curate_documents d WHERE {condition.text}", condition.parameters
    ).fetchone()
    return int(counted[0])


# texts


def text_condition(
    connection: sqlite3.Connection, dataset: str, query: str, name: str | None
) -> tuple[Sql, Sql | None]:
    """The condition that a document meets when it has the words, in the field `name` if one is given; and its ranks."""
    tree = parse(query)
    if tree is None:
        return Sql(NOTHING), None
    place = None if name is None else field_places(connection, dataset).get(name)
    if name is not None and place is None:
        return Sql(NOTHING), None  # a field that is not searched, such as an image
    wanted = [match for words in _positive(tree) if (match := _match(connection, words))]
    ranks = _ranks(" OR ".join(wanted), place) if wanted else None
    return _tree_condition(connection, tree, place), ranks


def _tree_condition(connection: sqlite3.Connection, tree: Tree, place: int | None) -> Sql:
    if isinstance(tree, Both):
        left, right = (_tree_condition(connection, part, place) for part in (tree.left, tree.right))
        return Sql(f"({left.text}) {tree.how} ({right.text})", [*left.parameters, *right.parameters])
    if isinstance(tree, Not):
        inner = _tree_condition(connection, tree.what, place)
        return Sql(f"NOT ({inner.text})", inner.parameters)
    match = _match(connection, tree)
    if not match:
        return Sql(NOTHING)
    return Sql(
        f"d.doc IN (SELECT rowid >> {FIELD_BITS} FROM curate_words WHERE curate_words MATCH ? AND {_in_field(place)})",
        [match],
    )


def _in_field(place: int | None) -> str:
    return "1" if place is None else f"(rowid & {(1 << FIELD_BITS) - 1}) = {place}"


def _ranks(match: str, place: int | None) -> Sql:
    """Each document's relevance: that of its words, over all its fields, by BM25."""
    return Sql(
        f"""SELECT doc, sum(score) AS score FROM (
                SELECT rowid >> {FIELD_BITS} AS doc, -rank AS score FROM curate_words
                WHERE curate_words MATCH ? AND {_in_field(place)} LIMIT -1)
            GROUP BY doc""",  # LIMIT keeps SQLite from folding the two SELECTs into one, where there is no rank
        [match],
    )


def _positive(tree: Tree) -> list[Words]:
    if isinstance(tree, Words):
        return [tree]
    return [] if isinstance(tree, Not) else [*_positive(tree.left), *_positive(tree.right)]


def _match(connection: sqlite3.Connection, words: Words) -> str:
    """The words as FTS5 reads them; empty when a word with typos stands for no word at all."""
    quoted = [f'"{word}"' for word in words.words]
    if words.typos and len(quoted) == 1:
        return " OR ".join(f'"{word}"' for word in _expand(connection, words.words[0], words.typos))
    if words.near and len(quoted) > 1:
        return f"NEAR({' '.join(quoted)}, {words.near})"
    return " + ".join(quoted) + ("*" if words.prefix else "")


def _expand(connection: sqlite3.Connection, word: str, typos: int) -> list[str]:
    """The indexed words at most so many letters away from `word`, the nearest first."""
    terms = connection.execute(
        "SELECT term FROM curate_terms WHERE length(term) BETWEEN ? AND ?", [len(word) - typos, len(word) + typos]
    )
    # Letter by letter in Python: only words of about this length with a whole piece of it come here. One of its
    # pieces is whole, since they are one more than the typos.
    pieces = _pieces(word, typos + 1)
    like = [term for (term,) in terms if any(piece in term for piece in pieces)]
    close = sorted((distance, term) for term in like if (distance := _distance(word, term, typos)) <= typos)
    there = (term for _, term in close if _is_indexed(connection, term))
    return [term for term, _ in zip(there, range(_MOST_EXPANSIONS), strict=False)]


def _is_indexed(connection: sqlite3.Connection, term: str) -> bool:
    found = connection.execute("SELECT 1 FROM curate_words WHERE curate_words MATCH ? LIMIT 1", [f'"{term}"'])
    return found.fetchone() is not None


def _pieces(word: str, count: int) -> list[str]:
    """The word cut into so many pieces of about one length."""
    cuts = [len(word) * number // count for number in range(count + 1)]
    return [word[start:end] for start, end in itertools.pairwise(cuts)]


def _distance(left: str, right: str, limit: int) -> int:
    """The edit distance (Levenshtein 1966) of two words; anything above `limit` when it is more than that."""
    row = list(range(len(right) + 1))
    for line, letter in enumerate(left, 1):
        before, row = row, [line]
        for column, other in enumerate(right, 1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (letter != other)))
        if min(row) > limit:
            return limit + 1
    return row[-1]


# vectors


def similar(
    connection: sqlite3.Connection,
    dataset: str,
    settings: str,
    value: list[float],
    where: Sql,
    *,
    without: str | None,
    most: int,
    threshold: float | None,
) -> Found:
    """The `most` records whose vectors point most nearly where `value` does; score = (1 + cosine) / 2."""
    rows = connection.execute(
        f"""SELECT d.record, c.value FROM curate_vectors c JOIN curate_documents d ON d.record = c.record
            WHERE c.settings = ? AND c.value IS NOT NULL AND d.dataset = ? AND d.record IS NOT ? AND ({where.text})
            ORDER BY d.doc""",
        [settings, dataset, without, *where.parameters],
    ).fetchall()
    if not rows:
        return Found([], 0)
    scores = _cosines(np.frombuffer(b"".join(blob for _, blob in rows), np.float32).reshape(len(rows), -1), value)
    best = np.argsort(-scores, kind="stable")[:most]
    found: list[tuple[str, float | None]] = [(rows[place][0], float(scores[place])) for place in best]
    kept = [(record, score) for record, score in found if threshold is None or (score or 0.0) >= threshold]
    return Found(kept, len(kept))


def _cosines(vectors: Any, value: list[float]) -> Any:
    wanted = np.asarray(value, np.float32)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted)
    cosines = np.divide(vectors @ wanted, lengths, out=np.zeros(len(vectors), np.float32), where=lengths > 0)
    return (1 + cosines) / 2


# counts


def progress(connection: sqlite3.Connection, dataset: str) -> dict[str, int]:
    """How many records a dataset has, and how many of each status."""
    counted = dict(
        connection.execute("SELECT status, count(*) FROM curate_documents WHERE dataset = ? GROUP BY 1", [dataset])
    )
    return {"total": sum(counted.values()), **counted}


def progress_of(connection: sqlite3.Connection, dataset: str, user: str) -> dict[str, int]:
    """How many answers a person gave in a dataset, and how many of each status."""
    counted = dict(
        connection.execute(
            """SELECT p.status, count(*) FROM responses p JOIN curate_documents d ON d.record = p.record_id
               WHERE p.user_id = ? AND d.dataset = ? GROUP BY 1""",
            [user, dataset],
        )
    )
    return {"total": sum(counted.values()), **counted}


def term_counts(connection: sqlite3.Connection, dataset: str, path: str) -> list[tuple[str, int]]:
    """How often each value of a metadata property occurs, the most frequent first."""
    return connection.execute(
        """SELECT v.value, count(*) FROM curate_documents d, json_each(d.metadata, ?) v
           WHERE d.dataset = ? AND v.value IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?""",
        [path, dataset, _MOST_TERMS],
    ).fetchall()


def bounds(connection: sqlite3.Connection, dataset: str, path: str) -> tuple[Any, Any]:
    """The least and the greatest value of a metadata property."""
    least, greatest = connection.execute(
        """SELECT min(v.value), max(v.value) FROM curate_documents d, json_each(d.metadata, ?) v
           WHERE d.dataset = ?""",
        [path, dataset],
    ).fetchone()
    return least, greatest
