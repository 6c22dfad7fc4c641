"""Deduplicating: conversations come in; clusters of near-duplicates go out, found anew whenever they are asked for.

Two conversations are near-duplicates when their sets of five words in a row overlap by a Jaccard similarity of 0.8.
MinHash with 14 bands of 8 rows proposes pairs, as for FineWeb (Penedo et al. 2024); each is verified exactly, so none
is a guess. In scripts that put no spaces between words a character counts as a word.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from duckdb import DuckDBPyConnection

from curate.freezing import join_groups

WORDS = 5
"""Words in a row that make a shingle; a shorter text is one shingle by itself."""

LEAST_SIMILARITY = 0.8
BANDS, ROWS = 14, 8
"""A pair of 0.8 shares a whole band in 92 of 100 cases, one of 0.9 in nearly all, one of 0.5 in 5."""

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD_PATTERN = rf"[{SPACELESS}]|[\w--[{SPACELESS}]]+"

SHINGLES_AT_ONCE = 500_000
"""How many are signed, or compared, at once: of those signed 112 hashes each are held in memory for a moment."""

ODD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio (Knuth): odd, so that multiplying loses nothing
WORD = 2**64

TEXTS_SQL = """
    SELECT conversation, lower(array_to_string(list_transform(conversations, lambda turn: turn.value), ' ')) AS text
    FROM asked JOIN conversations ON id = conversation
"""


def near_duplicates(connection: DuckDBPyConnection, asked: pl.DataFrame) -> pl.DataFrame:
    """Which of the conversations `asked` are near-duplicates of each other: columns `conversation`, `cluster`.

    A cluster is named by the smallest id in it, and whoever has no sibling is not there.
    """
    connection.register("asked", asked.select("conversation"))
    texts = connection.sql(TEXTS_SQL).pl().filter(pl.col("text").str.contains(r"\w"))
    connection.unregister("asked")
    copies = texts.select(a=pl.col("conversation").min().over("text"), b="conversation").filter(
        pl.col("a") != pl.col("b")
    )
    shingles = _shingles(texts.join(copies, left_on="conversation", right_on="b", how="anti"))
    return _clusters(pl.concat([copies, _near(shingles)]))


def _shingles(texts: pl.DataFrame) -> pl.DataFrame:
    """The distinct shingles of each text, as hashes: `conversation`, `shingle`."""
    words = (
        texts.select("conversation", word=pl.col("text").str.extract_all(WORD_PATTERN))
        .with_row_index("number")
        .explode("word")
        .with_columns(pl.col("word").hash())
    )
    length = pl.len().over("number")
    inside = (pl.col("number") == pl.col("number").shift(1 - WORDS)) | (
        (length < WORDS) & pl.col("number").is_first_distinct()
    )
    shingle = pl.lit(0, pl.UInt64)
    for ahead in range(WORDS):  # a polynomial of the words' hashes, in 64 bits
        mine = pl.col("number") == pl.col("number").shift(-ahead)
        shingle = shingle * ODD + pl.when(mine).then(pl.col("word").shift(-ahead)).otherwise(0)
    return (
        words.select("conversation", inside.fill_null(False).alias("inside"), shingle=shingle)
        .filter("inside")
        .select("conversation", "shingle")
        .unique()
    )


def _near(shingles: pl.DataFrame) -> pl.DataFrame:
    """Pairs that are near enough to tie all clusters together, `a` and `b`: who is tied already is not compared again.

    Of 3,000 versions of one long text each would otherwise be compared with up to 14 others.
    """
    sets = shingles.group_by("conversation").agg("shingle")
    bands = pl.concat([_bands(part) for part in _parts(shingles)])
    near = pl.DataFrame(schema={"a": pl.String, "b": pl.String})
    for band in bands.partition_by("band", include_key=False):
        near = pl.concat([near, _verified(_apart(_candidates(band), _clusters(near)), sets)])
    return near


def _candidates(band: pl.DataFrame) -> pl.DataFrame:
    """Pairs that share a band of their signatures: each with the smallest id of its bucket, `a` and `b`."""
    hub = band.select(a=pl.col("conversation").min().over("key"), b="conversation")
    return hub.filter(pl.col("a") != pl.col("b"))


def _apart(pairs: pl.DataFrame, clusters: pl.DataFrame) -> pl.DataFrame:
    """The pairs whose ends are not in one cluster."""
    of_a = clusters.rename({"conversation": "a", "cluster": "of_a"})
    of_b = clusters.rename({"conversation": "b", "cluster": "of_b"})
    known = pairs.join(of_a, on="a", how="left").join(of_b, on="b", how="left")
    return known.filter((pl.col("of_a") != pl.col("of_b")).fill_null(True)).select("a", "b")


def _parts(shingles: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The shingles in parts of whole conversations."""
    if shingles.height <= SHINGLES_AT_ONCE:
        yield shingles
        return
    numbered = shingles.sort("conversation").with_columns(part=pl.int_range(pl.len()) // SHINGLES_AT_ONCE)
    part = pl.col("part").first().over("conversation")
    yield from numbered.with_columns(part).partition_by("part", include_key=False)


def _bands(shingles: pl.DataFrame) -> pl.DataFrame:
    """The bands of each conversation's signature, hashed: `conversation`, `band`, `key`."""
    # The smallest of the shingles' values under each of 112 orders; multiplying by an odd number makes an order.
    orders = [
        ((pl.col("shingle") ^ (ODD * (2 * each + 1) % WORD)) * (ODD * (2 * each + 3) % WORD | 1)).min().alias(str(each))
        for each in range(BANDS * ROWS)
    ]
    signed = shingles.group_by("conversation").agg(orders)
    keys = [pl.struct(str(each) for each in range(band * ROWS, (band + 1) * ROWS)).hash().alias(f"{band}")
            for band in range(BANDS)]  # fmt: skip
    return signed.select("conversation", *keys).unpivot(index="conversation", variable_name="band", value_name="key")


def _verified(pairs: pl.DataFrame, sets: pl.DataFrame) -> pl.DataFrame:
    """The pairs whose shingles overlap enough, compared in parts that fit into memory."""
    size = sets.select("conversation", size=pl.col("shingle").list.len().cast(pl.Int64))
    sized = pairs.join(size, left_on="a", right_on="conversation").join(
        size, left_on="b", right_on="conversation", suffix="_b"
    )
    smaller, larger = pl.min_horizontal("size", "size_b"), pl.max_horizontal("size", "size_b")
    possible = sized.filter(smaller >= LEAST_SIMILARITY * larger)  # else not even one within the other is enough
    parts = possible.with_columns(part=(smaller + larger).cum_sum() // SHINGLES_AT_ONCE).partition_by("part")
    return pl.concat([pairs.clear(), *(_overlapping(part, sets) for part in parts)])


def _overlapping(pairs: pl.DataFrame, sets: pl.DataFrame) -> pl.DataFrame:
    both = pairs.join(sets, left_on="a", right_on="conversation").join(
        sets, left_on="b", right_on="conversation", suffix="_b"
    )
    shared = pl.col("shingle").list.set_intersection("shingle_b").list.len()
    similarity = shared / (pl.col("size") + pl.col("size_b") - shared)
    return both.filter(similarity >= LEAST_SIMILARITY).select("a", "b")


def _clusters(pairs: pl.DataFrame) -> pl.DataFrame:
    """Whom the pairs tie together, over one or many of them."""
    links = pairs.with_row_index("link").unpivot(["a", "b"], index="link", value_name="member")
    joined = join_groups(links.select("member", "link", rank=pl.lit("")))
    return joined.rename({"member": "conversation", "group": "cluster"})
