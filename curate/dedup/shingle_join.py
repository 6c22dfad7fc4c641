"""Numbered texts → the exact pairs of near-duplicates, each with its similarity.

The similarity of two long texts is the Jaccard index of their five-word shingles (Broder 1997). If at least one of the
two is short (fewer than `SHORT_WORDS` words), it is the Jaccard index of their words, counted with repetition, or that
of their pairs of words with half of the difference (`pair_threshold`), whichever is lower: the order counts too.

Candidates are found by a prefix filter instead of MinHash (Chaudhuri et al. 2006; with several shared shingles as in
AdaptJoin, Wang et al. 2012): if two sets overlap enough and are sorted by the same order, their first members share
some. The similarity of every candidate is then computed exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl

from curate.dedup.shingles import (
    HASH_BITS,
    KEY_BITS,
    MULTIPLIER,
    PART_TEXTS,
    WORD_FLAG,
    CommonShingles,
    Counts,
    Keys,
    Numbers,
    ReadTexts,
    ShingleSets,
    concatenate_ranges,
    count_pairs,
    min_overlap,
    pair_threshold,
    read_sets,
    sample_common,
    select_sets,
)

Shares = npt.NDArray[np.float64]

PAIRS = {"a": pl.UInt32, "b": pl.UInt32, "similarity": pl.Float64, "copy": pl.Boolean}
"""Two numbers, the smaller one first, the similarity of their texts, and whether all their shingles are equal."""

MIN_SHARED = np.array([2, 4])
"""Shingles of short and of long texts that two prefixes must share, and by which prefixes are extended. With 1 for long
texts, 300,000 Alpaca-like rows gave 3.5 times as many candidates (210,698 instead of 60,103), most of them the same
instruction with another answer."""

PAIR_FLAG = np.uint64(1 << 63)
"""Marks a key that combines two shingles."""

GROUP_LIMIT, GROUP_GROWTH = 32, 4
"""In a group of texts that share a shingle, this many are compared with all later ones. Larger groups need several
rounds, each with four times as many, and without the texts that are dropped already."""

MAX_GROUP, MIN_YIELD = 8_192, 0.01
"""Groups of up to this many kept texts are compared completely. In a larger group another round requires that this
share of the compared pairs were near-duplicates; below it, the texts only share a template."""

PAIR_KEYS = 8 << 20
"""Shingles of the pairs that are verified at a time."""

MAX_PENDING = 16 << 20
"""Candidate pairs that are collected before they are counted."""


def near_pairs(
    read: ReadTexts,
    total: int,
    threshold: float,
    progress: Callable[[int], None] = lambda _: None,
    choose: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
) -> pl.DataFrame:
    """The pairs among the texts numbered from 0 to `total` with a similarity of at least `threshold`: columns `PAIRS`.

    Of copies, which have equal shingles, only the first is paired with others. If more than `GROUP_LIMIT` texts share a
    shingle, the pairs may be incomplete: more of them are compared in each round, among the texts that `choose` (from
    pairs to the texts to drop, by default `greedy_cover`) keeps, until no two kept texts are near-duplicates. Only in
    a group of more than `MAX_GROUP` kept texts a pair may be missed. A text without words has no near-duplicates.
    `progress` is called with the number of texts that were read.
    """
    thresholds = np.array([pair_threshold(threshold), threshold])
    common = sample_common(read, total, threshold)
    size, pairs, prefixes = _prefixes(read, total, thresholds, common, progress)
    compared, rest, limit = np.empty(0, np.uint64), prefixes, GROUP_LIMIT
    while True:
        candidates, is_limited = _candidates(rest, size, thresholds, limit)
        candidates = np.setdiff1d(candidates, compared, assume_unique=True)
        new_pairs = _verify(candidates, read, common, threshold)
        pairs = pl.concat([pairs, new_pairs])
        is_complete = not is_limited and (new_pairs.is_empty() or rest is prefixes)
        if is_complete or (limit > MAX_GROUP and new_pairs.height <= MIN_YIELD * len(candidates)):
            return pairs
        compared = np.union1d(compared, candidates)
        dropped = (choose or greedy_cover)(pairs)
        rest = prefixes.filter(~(pl.col("number") // 2).is_in(dropped["number"].implode()))
        limit *= GROUP_GROWTH


def greedy_cover(pairs: pl.DataFrame) -> pl.DataFrame:
    """The texts to drop, and the kept text that each is most similar to: columns `number`, `nearest`, `similarity`.

    In the order of their numbers, a text is kept if it is not a near-duplicate of a kept one. So every dropped text is
    similar to a kept one. A copy is dropped for its original, or for the same text as it.

    >>> rows = [(0, 1, 0.9, False), (1, 2, 0.8, False), (1, 3, 1.0, True)]
    >>> greedy_cover(pl.DataFrame(rows, schema=PAIRS, orient="row")).rows()
    [(1, 0, 0.9), (3, 0, 0.9)]
    """
    dropped = _greedy_keep(pairs.filter(~pl.col("copy")))
    copies = pairs.filter("copy").join(dropped, left_on="a", right_on="number", how="left").select(
        number="b", nearest=pl.coalesce("nearest", "a"), similarity=pl.coalesce("similarity_right", "similarity")
    )  # fmt: skip
    return pl.concat([dropped, copies]).sort("number")


def rank_by_degree(pairs: pl.DataFrame, tier: pl.Expr | None = None) -> pl.DataFrame:
    """As `greedy_cover`, but in the order of degree: the number of near-duplicates, the most first, then the number.

    `tier`, an expression over `number`, comes before the degree.

    >>> star = [(0, 1, 0.8, False), (1, 2, 0.8, False)]
    >>> rank_by_degree(pl.DataFrame(star, schema=PAIRS, orient="row")).rows()
    [(0, 1, 0.8), (2, 1, 0.8)]
    """
    degrees = pl.concat([pairs["a"], pairs["b"]]).alias("number").value_counts(name="degree")
    order = [*([] if tier is None else [tier]), -pl.col("degree").cast(pl.Int64), pl.col("number")]
    ranks = degrees.sort(order).with_row_index("rank").drop("degree")
    by_rank = (
        pairs.join(ranks.rename({"rank": "rank_a"}), left_on="a", right_on="number")
        .join(ranks.rename({"rank": "rank_b"}), left_on="b", right_on="number")
        .select(
            pl.min_horizontal("rank_a", "rank_b").alias("a"),
            pl.max_horizontal("rank_a", "rank_b").alias("b"),
            "similarity",
            "copy",
        )
    )
    dropped = greedy_cover(by_rank).join(ranks, left_on="number", right_on="rank", suffix="_own")
    return dropped.join(ranks.rename({"number": "kept"}), left_on="nearest", right_on="rank").select(
        number="number_own", nearest="kept", similarity="similarity"
    ).sort("number")  # fmt: skip


def _greedy_keep(pairs: pl.DataFrame) -> pl.DataFrame:
    """`greedy_cover` of pairs without equal texts, in as many rounds as the longest chain of pairs has links."""
    members, positions = np.unique(pairs.select("a", "b").to_numpy(), return_inverse=True)
    a, b = positions.reshape(-1, 2).T
    kept, dropped = np.zeros(len(members), np.bool_), np.zeros(len(members), np.bool_)
    while not (decided := kept | dropped).all():
        waiting = decided.copy()
        waiting[b[~dropped[a]]] = True
        kept |= ~waiting
        dropped[b[kept[a]]] = True
    best = pairs.filter(pl.Series(kept[a])).sort(["similarity", "a"], descending=[True, False])
    return best.unique("b", keep="first", maintain_order=True).select(number="b", nearest="a", similarity="similarity")


# --- from shingle sets to pairs; `thresholds` are those of short and of long texts ---


def _prefixes(
    read: ReadTexts, total: int, thresholds: Shares, common: CommonShingles, progress: Callable[[int], None]
) -> tuple[Counts, pl.DataFrame, pl.DataFrame]:
    """The size of each set, the pairs of a copy and its original, and the prefixes (`key`, `number` of the set).

    A copy has no prefix.
    """
    size, fingerprint = np.zeros(2 * total, np.int64), np.zeros(2 * total, np.uint64)
    prefixes = [pl.DataFrame(schema={"key": pl.UInt64, "number": pl.UInt32})]
    done = 0
    for sets in read_sets(read, None, common, float(thresholds[1])):
        sizes = np.diff(sets.starts)
        size[sets.number] = count_pairs(sets, sizes)
        mixed = (sets.keys ^ (sets.keys >> np.uint64(23))) * MULTIPLIER
        starts = sets.starts[:-1][sizes > 0]
        fingerprint[sets.number[sizes > 0]] = np.add.reduceat(mixed, starts) if len(mixed) else 0
        prefixes += _part_prefixes(sets, sizes, thresholds)
        done += len(sizes) // 2
        progress(done)
    columns = {
        name: values[at::2] for at in (0, 1) for name, values in ((f"size{at}", size), (f"print{at}", fingerprint))
    }
    texts = pl.DataFrame(columns).with_columns(b=pl.int_range(pl.len(), dtype=pl.UInt32))
    texts = texts.with_columns(a=pl.col("b").min().over(list(columns)))
    copies = texts.filter((pl.col("size0") + pl.col("size1") > 0) & (pl.col("a") != pl.col("b")))
    pairs = copies.select("a", "b", similarity=1.0, copy=True).cast(PAIRS)  # type: ignore[arg-type]
    is_copy = (pl.col("number") // 2).is_in(pairs["b"].implode())
    return size, pairs, pl.concat(prefixes).filter(~is_copy)


def _part_prefixes(sets: ShingleSets, sizes: Counts, thresholds: Shares) -> list[pl.DataFrame]:
    """The first shingles of each set; of short texts the rare pairs, and each common one with each one before it.

    A single common pair is in too many texts. A set that may share only one shingle has it by itself.
    """
    number, size = np.repeat(sets.number, sizes), np.repeat(count_pairs(sets, sizes), sizes)
    is_long, is_rare = number % 2 == 1, sets.keys >> np.uint64(HASH_BITS) == 0
    overlap = min_overlap(size, thresholds[number % 2])
    position = np.arange(len(number)) - np.repeat(sets.starts[:-1], sizes)
    in_prefix = position < np.minimum(size, size - overlap + MIN_SHARED[number % 2])
    single = in_prefix & (is_long | is_rare | (overlap == 1))
    frames = [pl.DataFrame({"key": sets.keys[single], "number": number[single]})]
    common = np.flatnonzero(in_prefix & ~(is_long | is_rare))
    back = 1
    while len(common := common[position[common] >= back]):
        pair = (sets.keys[common - back] * MULTIPLIER + sets.keys[common]) | PAIR_FLAG
        frames.append(pl.DataFrame({"key": pair, "number": number[common]}))
        back += 1
    return frames


def _candidates(prefixes: pl.DataFrame, size: Counts, thresholds: Shares, limit: int) -> tuple[Keys, bool]:
    """The pairs of sets whose prefixes share enough, packed and sorted; and whether a group exceeded `limit`."""
    shared = prefixes.filter(pl.col("key").is_duplicated()).sort("key", "number")
    key, number = shared["key"].to_numpy(), shared["number"].to_numpy()
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, np.int64)
    start = np.repeat(starts, np.diff(np.append(starts, len(key))))
    pending: list[pl.DataFrame] = []
    later = np.arange(len(key))
    for position in range(limit):
        later = later[later - start[later] > position]
        pending.append(_pack(number[start[later] + position], number[later], key[later], size, thresholds))
        if sum(frame.height for frame in pending) > MAX_PENDING:
            pending = [_count_shared_keys(pending)]
    counts = _count_shared_keys(pending).sort("pair")
    pairs, times = counts["pair"].to_numpy(), counts["times"].to_numpy()
    a, b = _unpack(pairs)
    overlap = min_overlap(np.maximum(size[a], size[b]), thresholds[a % 2])
    return pairs[times >= np.minimum(MIN_SHARED[a % 2], overlap)], len(later) > 1


def _pack(a: Numbers, b: Numbers, key: Keys, size: Counts, thresholds: Shares) -> pl.DataFrame:
    """The pairs of sets that may be near-duplicates, as single numbers, and the shingles in their common key.

    Their sizes allow the similarity, and two long texts are not compared as short ones.
    """
    smaller, larger = np.minimum(size[a], size[b]), np.maximum(size[a], size[b])
    is_comparable = np.where(a % 2, b % 2 == 1, (b % 2 == 0) & ((size[a | 1] == 0) | (size[b | 1] == 0)))
    is_possible = is_comparable & (smaller >= min_overlap(larger, thresholds[a % 2]))
    packed = a[is_possible].astype(np.uint64) << np.uint64(32) | b[is_possible]
    return pl.DataFrame({"pair": packed, "times": np.where(key[is_possible] & PAIR_FLAG, 2, 1)})


def _unpack(pairs: Keys) -> tuple[Numbers, Numbers]:
    return (pairs >> np.uint64(32)).astype(np.uint32), pairs.astype(np.uint32)


def _count_shared_keys(pending: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(pending).group_by("pair").agg(pl.col("times").sum())


def _verify(candidates: Keys, read: ReadTexts, common: CommonShingles, threshold: float) -> pl.DataFrame:
    """The texts of the candidates that are near-duplicates, with their exact similarity."""
    pairs = [pl.DataFrame(schema=PAIRS)]
    if len(candidates):
        a, b = _unpack(candidates)
        members, positions = np.unique(np.append(a, b), return_inverse=True)
        sets = select_sets(read_sets(read, np.unique(members // 2), common, threshold), members)
        in_a, in_b = positions[: len(a)], positions[len(a) :]
        size = np.diff(sets.starts)
        by_keys, by_pairs = np.cumsum(size[in_a] + size[in_b]) // PAIR_KEYS, np.arange(len(a)) // PART_TEXTS
        for part in np.split(np.arange(len(a)), np.flatnonzero(np.diff(by_keys) + np.diff(by_pairs)) + 1):
            shared, words = _intersection_sizes(sets, in_a[part], in_b[part])
            similarity = _similarity(a[part] % 2 == 1, shared, words, size[in_a[part]] + size[in_b[part]])
            frame = pl.DataFrame({"a": a[part] // 2, "b": b[part] // 2, "similarity": similarity, "copy": False})
            pairs.append(frame.filter(pl.col("similarity") >= threshold))
    return pl.concat(pairs)


def _similarity(is_long: npt.NDArray[np.bool_], shared: Counts, words: Counts, total: Counts) -> Shares:
    """The similarity of two sets of `total` shingles that share `shared`, of which `words` are single words.

    For a Jaccard index j of pairs, (1 + 3j) / (3 + j) is computed with one rounding.
    """
    jaccard = shared / (total - shared)
    pairs_total, pairs = total // 2 + 1, shared - words  # n words have n + 1 pairs
    by_pairs = (pairs_total + 2 * pairs) / (3 * pairs_total - 2 * pairs)
    by_words = words / np.maximum(pairs_total - 2 - words, 1)
    similarity: Shares = np.where(is_long, jaccard, np.minimum(by_words, by_pairs))
    return similarity


def _intersection_sizes(sets: ShingleSets, a: Counts, b: Counts) -> tuple[Counts, Counts]:
    """The number of shingles that the sets at positions `a` and `b` share, and how many of them are single words.

    Sorted together, each shared shingle occurs twice.
    """
    both = np.append(a, b)
    sizes = np.diff(sets.starts)[both]
    pair = np.repeat(np.tile(np.arange(len(a), dtype=np.uint64), 2), sizes)
    packed = np.sort(pair << np.uint64(KEY_BITS) | sets.keys[concatenate_ranges(sets.starts[both], sizes)])
    twice = packed[1:][packed[1:] == packed[:-1]]
    at = (twice >> np.uint64(KEY_BITS)).astype(np.int64)
    is_word = twice & WORD_FLAG != 0
    return np.bincount(at, minlength=len(a)), np.bincount(at[is_word], minlength=len(a))
