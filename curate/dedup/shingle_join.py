"""Numbered texts → the exact pairs of near-duplicates, each with its similarity.

Similarity is the Jaccard index of two sets of shingles, which are five consecutive words each (Broder 1997). Candidates
are found by a prefix filter instead of MinHash (Chaudhuri et al. 2006; with several shared shingles as in AdaptJoin,
Wang et al. 2012): if two sets overlap enough and are sorted by the same order, their first members share some. The
similarity of every candidate is then computed exactly. A shingle is a hash of 46 bits: two different shingles collide
with a probability of 10^-13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

Numbers = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

ReadTexts = Callable[[Numbers | None], Iterator[pl.DataFrame]]
"""Reads the texts with some numbers, or all: frames with `number` (UInt32) and `text`, each number once, in any order,
with at most `PART_TEXTS` rows."""

PAIRS = {"a": pl.UInt32, "b": pl.UInt32, "similarity": pl.Float64}
"""Two numbers, the smaller one first, and the Jaccard index of their texts."""

SHINGLE_WORDS = 5
"""Words in a shingle; a shorter text is a single shingle."""

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD_PATTERN = rf"[{SPACELESS}]|[\w--[{SPACELESS}]]+"
"""A word, or a character in scripts without spaces between words."""

MIN_SHARED = 4
"""Shingles that two prefixes must share, and by which prefixes are extended. With 1, 300,000 Alpaca-like rows gave 3.5
times as many candidates (210,698 instead of 60,103), most of them the same instruction with another answer."""

GROUP_LIMIT, GROUP_GROWTH = 32, 4
"""In a group of texts that share a shingle, this many are compared with all later ones. Larger groups need several
rounds, each with four times as many, and without the texts that are dropped already."""

MAX_GROUP, MIN_YIELD = 8_192, 0.01
"""Groups of up to this many kept texts are compared completely. In a larger group another round requires that this
share of the compared pairs were near-duplicates; below it, the texts only share a template."""

SAMPLE_TEXTS, COMMON_COUNT = 20_000, 4
"""Shingles that occur this often in a sample of this size are sorted to the end of every prefix, because they rarely
indicate near-duplicates. Otherwise 1,000 questions from one template would all be compared."""

PART_BYTES, PART_TEXTS = 32 << 20, 1 << 17
"""Text that is cut into shingles at a time, and pairs that are verified at a time: their positions need 17 bits."""

PAIR_KEYS = 8 << 20
"""Shingles of the pairs that are verified at a time."""

MAX_PENDING = 16 << 20
"""Candidate pairs that are collected before they are counted."""

KEY_BITS = 47
HASH_BITS = KEY_BITS - 1
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio (Knuth): odd, so multiplication is 1:1
POWERS = np.cumprod(np.full(SHINGLE_WORDS, MULTIPLIER))
COMMON_FLAG = np.uint64(1 << HASH_BITS)
KEY_MASK = np.uint64((1 << KEY_BITS) - 1)
SLOTS = 1 << 20


class ShingleSets(NamedTuple):
    """The shingles of some texts: set i is `keys[starts[i] : starts[i + 1]]`, sorted, with common shingles last."""

    number: Numbers
    starts: Counts
    keys: Keys


def near_pairs(
    read: ReadTexts,
    total: int,
    threshold: float,
    progress: Callable[[int], None] = lambda _: None,
    choose: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
) -> pl.DataFrame:
    """The pairs among the texts numbered from 0 to `total` with a similarity of at least `threshold`: columns `PAIRS`.

    Of texts with equal shingles, only the first is paired with others. If more than `GROUP_LIMIT` texts share a
    shingle, the pairs may be incomplete: more of them are compared in each round, among the texts that `choose` (from
    pairs to the texts to drop, by default `greedy_cover`) keeps, until no two kept texts are near-duplicates. Only in
    a group of more than `MAX_GROUP` kept texts a pair may be missed. A text without words has no near-duplicates.
    `progress` is called with the number of texts that were read.
    """
    common = _sample_common(read, total)
    size, pairs, prefixes = _prefixes(read, total, threshold, common, progress)
    compared, rest, limit = np.empty(0, np.uint64), prefixes, GROUP_LIMIT
    while True:
        candidates, is_limited = _candidates(rest, size, threshold, limit)
        candidates = np.setdiff1d(candidates, compared, assume_unique=True)
        new_pairs = _verify(candidates, read, common, threshold)
        pairs = pl.concat([pairs, new_pairs])
        is_complete = not is_limited and (new_pairs.is_empty() or rest is prefixes)
        if is_complete or (limit > MAX_GROUP and new_pairs.height <= MIN_YIELD * len(candidates)):
            return pairs
        compared = np.union1d(compared, candidates)
        dropped = (choose or greedy_cover)(pairs)
        rest, limit = prefixes.join(dropped, on="number", how="anti"), GROUP_GROWTH * limit


def greedy_cover(pairs: pl.DataFrame) -> pl.DataFrame:
    """The texts to drop, and the kept text that each is most similar to: columns `number`, `nearest`, `similarity`.

    In the order of their numbers, a text is kept if it is not a near-duplicate of a kept one. So every dropped text is
    similar to a kept one. A copy with equal shingles is dropped for its original, or for the same text as it.

    >>> pairs = pl.DataFrame({"a": [0, 1, 1], "b": [1, 2, 3], "similarity": [0.9, 0.8, 1.0]}, schema=PAIRS)
    >>> greedy_cover(pairs).rows()
    [(1, 0, 0.9), (3, 0, 0.9)]
    """
    is_copy = pl.col("similarity") == 1
    dropped = _greedy_keep(pairs.filter(~is_copy))
    copies = pairs.filter(is_copy).join(dropped, left_on="a", right_on="number", how="left").select(
        number="b", nearest=pl.coalesce("nearest", "a"), similarity=pl.coalesce("similarity_right", "similarity")
    )  # fmt: skip
    return pl.concat([dropped, copies]).sort("number")


def rank_by_degree(pairs: pl.DataFrame) -> pl.DataFrame:
    """As `greedy_cover`, but in the order of degree: the number of near-duplicates, the most first, then the number.

    >>> star = pl.DataFrame({"a": [0, 1], "b": [1, 2], "similarity": [0.8, 0.8]}, schema=PAIRS)
    >>> rank_by_degree(star).rows()
    [(0, 1, 0.8), (2, 1, 0.8)]
    """
    degrees = pl.concat([pairs["a"], pairs["b"]]).alias("number").value_counts(name="degree")
    ranks = degrees.sort(["degree", "number"], descending=[True, False]).with_row_index("rank").drop("degree")
    by_rank = (
        pairs.join(ranks.rename({"rank": "rank_a"}), left_on="a", right_on="number")
        .join(ranks.rename({"rank": "rank_b"}), left_on="b", right_on="number")
        .select(
            a=pl.min_horizontal("rank_a", "rank_b"), b=pl.max_horizontal("rank_a", "rank_b"), similarity="similarity"
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


# --- from texts to shingle sets ---


def _shingle(texts: pl.DataFrame, common: _CommonShingles) -> ShingleSets:
    """The shingle sets of at most `PART_TEXTS` texts."""
    words = texts["text"].str.extract_all(WORD_PATTERN)
    lengths = words.list.len().to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    ends = np.cumsum(lengths)
    hashes = np.append(words.explode(empty_as_null=False).hash().to_numpy(), np.zeros(SHINGLE_WORDS, np.uint64))
    rolling = hashes[: len(row)].copy()
    for ahead in range(1, SHINGLE_WORDS):
        rolling *= MULTIPLIER
        rolling += hashes[ahead : len(row) + ahead]
    is_start = np.arange(len(row)) + SHINGLE_WORDS <= ends[row]
    short = np.flatnonzero((lengths < SHINGLE_WORDS) & (lengths > 0))
    first = ends[short] - lengths[short]
    rolling[first] = sum(hashes[first + at] * POWERS[at] * (at < lengths[short]) for at in range(SHINGLE_WORDS))
    is_start[first] = True
    keys = common.flag((rolling[is_start] * MULTIPLIER) >> np.uint64(64 - HASH_BITS))
    packed = np.sort(row[is_start] << np.uint64(KEY_BITS) | keys)
    packed = packed[np.append(True, packed[1:] != packed[:-1])] if len(packed) else packed
    counts = np.bincount((packed >> np.uint64(KEY_BITS)).astype(np.int64), minlength=len(lengths))
    return ShingleSets(texts["number"].to_numpy(), np.append(0, np.cumsum(counts)), packed & KEY_MASK)


def _parts(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The texts in parts of about `PART_BYTES`."""
    for frame in frames:
        part = pl.col("text").str.len_bytes().cast(pl.Int64).cum_sum() // PART_BYTES
        yield from frame.with_columns(part=part).partition_by("part", include_key=False)


class _CommonShingles(NamedTuple):
    """The shingles of many texts, sorted, and a table of slots by their lowest bits that excludes most others."""

    keys: Keys
    slots: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, keys: Keys) -> _CommonShingles:
        slots = np.zeros(SLOTS, np.bool_)
        slots[keys % SLOTS] = True
        return cls(keys, slots)

    def flag(self, keys: Keys) -> Keys:
        """The keys, with common ones flagged so that they are sorted last."""
        if len(self.keys):
            maybe = np.flatnonzero(self.slots[keys % SLOTS])
            at = np.minimum(np.searchsorted(self.keys, keys[maybe]), len(self.keys) - 1)
            keys[maybe[self.keys[at] == keys[maybe]]] |= COMMON_FLAG
        return keys


def _sample_common(read: ReadTexts, total: int) -> _CommonShingles:
    """The common shingles of a sample of evenly spaced texts."""
    none = _CommonShingles.of(np.empty(0, np.uint64))
    sample = np.unique(np.linspace(0, max(0, total - 1), min(total, SAMPLE_TEXTS)).astype(np.uint32))
    shingles = [_shingle(part, none).keys for part in _parts(read(sample))]
    keys, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *shingles]), return_counts=True)
    return _CommonShingles.of(keys[counts >= COMMON_COUNT])


# --- from shingle sets to pairs ---


def _prefixes(
    read: ReadTexts, total: int, threshold: float, common: _CommonShingles, progress: Callable[[int], None]
) -> tuple[Counts, pl.DataFrame, pl.DataFrame]:
    """The number of shingles of each text, the pairs with equal shingles, and the prefixes (`key`, `number`).

    Of texts with equal shingles only the first has a prefix.
    """
    size, fingerprint = np.zeros(total, np.int64), np.zeros(total, np.uint64)
    prefixes = [pl.DataFrame(schema={"key": pl.UInt64, "number": pl.UInt32})]
    done = 0
    for part in _parts(read(None)):
        sets = _shingle(part, common)
        sizes = np.diff(sets.starts)
        size[sets.number] = sizes
        mixed = (sets.keys ^ (sets.keys >> np.uint64(23))) * MULTIPLIER
        starts = sets.starts[:-1][sizes > 0]
        fingerprint[sets.number[sizes > 0]] = np.add.reduceat(mixed, starts) if len(mixed) else 0
        position = np.arange(len(sets.keys)) - np.repeat(sets.starts[:-1], sizes)
        prefix_size = np.minimum(sizes, sizes - _min_overlap(sizes, threshold) + MIN_SHARED)
        in_prefix = position < np.repeat(prefix_size, sizes)
        prefixes.append(pl.DataFrame({"key": sets.keys[in_prefix], "number": np.repeat(sets.number, sizes)[in_prefix]}))
        done += part.height
        progress(done)
    texts = pl.DataFrame({"b": np.arange(total, dtype=np.uint32), "size": size, "fingerprint": fingerprint})
    first = pl.col("b").min().over("size", "fingerprint")
    copies = texts.filter(pl.col("size") > 0).with_columns(a=first).filter(pl.col("a") != pl.col("b"))
    pairs = copies.select("a", "b", similarity=1.0).cast(PAIRS)  # type: ignore[arg-type]
    return size, pairs, pl.concat(prefixes).join(pairs, left_on="number", right_on="b", how="anti")


def _min_overlap(size: Counts, threshold: float) -> Counts:
    """The smallest number of shingles that a set of this size shares with a near-duplicate."""
    overlap: Counts = np.ceil(size * threshold - 1e-9).astype(np.int64)  # 0.7 * 10 is slightly more than 7
    return overlap


def _candidates(prefixes: pl.DataFrame, size: Counts, threshold: float, limit: int) -> tuple[Keys, bool]:
    """The pairs whose prefixes share enough shingles, packed and sorted; and whether a group exceeded `limit`."""
    shared = prefixes.filter(pl.col("key").is_duplicated()).sort("key", "number")
    key, number = shared["key"].to_numpy(), shared["number"].to_numpy()
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, np.int64)
    start = np.repeat(starts, np.diff(np.append(starts, len(key))))
    pending: list[pl.DataFrame] = []
    later = np.arange(len(key))
    for position in range(limit):
        later = later[later - start[later] > position]
        pending.append(_pack(number[start[later] + position], number[later], size, threshold))
        if sum(frame.height for frame in pending) > MAX_PENDING:
            pending = [_count_shared_keys(pending)]
    counts = _count_shared_keys(pending).sort("pair")
    pairs, times = counts["pair"].to_numpy(), counts["times"].to_numpy()
    a, b = _unpack(pairs)
    required = np.minimum(MIN_SHARED, _min_overlap(np.maximum(size[a], size[b]), threshold))
    return pairs[times >= required], len(later) > 1


def _pack(a: Numbers, b: Numbers, size: Counts, threshold: float) -> pl.DataFrame:
    """The pairs whose sizes allow the similarity, as single numbers: `pair`, `times`."""
    smaller, larger = np.minimum(size[a], size[b]), np.maximum(size[a], size[b])
    is_possible = smaller >= _min_overlap(larger, threshold)
    packed = a[is_possible].astype(np.uint64) << np.uint64(32) | b[is_possible]
    return pl.DataFrame({"pair": packed}).with_columns(times=pl.lit(1))


def _unpack(pairs: Keys) -> tuple[Numbers, Numbers]:
    return (pairs >> np.uint64(32)).astype(np.uint32), pairs.astype(np.uint32)


def _count_shared_keys(pending: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(pending).group_by("pair").agg(pl.col("times").sum())


def _verify(candidates: Keys, read: ReadTexts, common: _CommonShingles, threshold: float) -> pl.DataFrame:
    """The candidates that are near-duplicates, with their exact similarity."""
    pairs = [pl.DataFrame(schema=PAIRS)]
    if len(candidates):
        a, b = _unpack(candidates)
        members, positions = np.unique(np.append(a, b), return_inverse=True)
        sets = _read_sets(members, read, common)
        in_a, in_b = positions[: len(a)], positions[len(a) :]
        size = np.diff(sets.starts)
        by_keys, by_pairs = np.cumsum(size[in_a] + size[in_b]) // PAIR_KEYS, np.arange(len(a)) // PART_TEXTS
        for part in np.split(np.arange(len(a)), np.flatnonzero(np.diff(by_keys) + np.diff(by_pairs)) + 1):
            shared = _intersection_sizes(sets, in_a[part], in_b[part])
            similarity = shared / (size[in_a[part]] + size[in_b[part]] - shared)
            frame = pl.DataFrame({"a": a[part], "b": b[part], "similarity": similarity})
            pairs.append(frame.filter(pl.col("similarity") >= threshold))
    return pl.concat(pairs)


def _read_sets(members: Numbers, read: ReadTexts, common: _CommonShingles) -> ShingleSets:
    """The shingle sets of some texts, sorted by number."""
    parts = [_shingle(part, common) for part in _parts(read(members))]
    number = np.concatenate([part.number for part in parts])
    sizes = np.concatenate([np.diff(part.starts) for part in parts])
    order = np.argsort(number)
    starts = np.append(0, np.cumsum(sizes))[:-1]
    keys = np.concatenate([part.keys for part in parts])[_ranges(starts[order], sizes[order])]
    return ShingleSets(number[order], np.append(0, np.cumsum(sizes[order])), keys)


def _intersection_sizes(sets: ShingleSets, a: Counts, b: Counts) -> Counts:
    """The number of shingles that the sets at positions `a` and `b` share: sorted together, each occurs twice."""
    both = np.append(a, b)
    sizes = np.diff(sets.starts)[both]
    pair = np.repeat(np.tile(np.arange(len(a), dtype=np.uint64), 2), sizes)
    packed = np.sort(pair << np.uint64(KEY_BITS) | sets.keys[_ranges(sets.starts[both], sizes)])
    twice = packed[1:][packed[1:] == packed[:-1]] >> np.uint64(KEY_BITS)
    return np.bincount(twice.astype(np.int64), minlength=len(a))


def _ranges(starts: Counts, sizes: Counts) -> Counts:
    """The concatenated integer ranges with these starts and sizes."""
    ends = np.cumsum(sizes)
    positions: Counts = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
    return positions
