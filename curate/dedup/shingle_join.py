"""Resembling: numbered texts come in, pairs that are near-duplicates go out, each with its similarity.

Similarity is the Jaccard index of two sets of shingles, five words in a row each (Broder 1997). Pairs are not guessed
by MinHash but found by a prefix filter (Chaudhuri et al. 2006, with several shared shingles as in AdaptJoin, Wang et
al. 2012): of two sets that overlap by `least`, ordered alike, the first few members of both share some. Every candidate
is then counted out. A shingle is a number of 46 bits, so two different ones are taken for one once in 10^13.
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

Read = Callable[[Numbers | None], Iterator[pl.DataFrame]]
"""The texts of some numbers, or all: frames of `number` (UInt32) and `text`, each number once, in any order; at most
`PART_TEXTS` in a frame."""

PAIRS = {"a": pl.UInt32, "b": pl.UInt32, "similarity": pl.Float64}
"""Two numbers, the smaller one first, and the Jaccard index of their texts."""

WORDS = 5
"""Words in a row that make a shingle; a shorter text is one shingle by itself."""

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD_PATTERN = rf"[{SPACELESS}]|[\w--[{SPACELESS}]]+"
"""A word; in scripts that put no spaces between words, a character."""

SHARED = 4
"""Shingles that two prefixes must share, and by which they are longer. With 1, 300,000 Alpaca-like rows gave 3.5
times as many candidates (210,698 and 60,103), most of them the same instruction with another answer."""

FIRST = 32
"""Of texts that share a shingle the first so many are compared with each other and all behind them. Larger groups take
several rounds, without those that have found their like, and with twice as many each."""

FRUITFUL = 0.01
"""Share of the compared pairs that must be alike for another round: else a pattern is shared, and little more."""

SAMPLE, COMMON = 20_000, 4
"""Shingles that come so often in a sample of so many texts stand last in every prefix: few texts are alike by them, and
without that 1,000 questions after one pattern would all be compared."""

PART_BYTES, PART_TEXTS = 32 << 20, 1 << 17
"""Texts that are cut into shingles at once, and pairs that are counted out at once: their places take 17 bits."""

PAIR_KEYS = 8 << 20
"""Shingles of pairs that are counted out at once."""

UNTALLIED = 16 << 20
"""Pairs that may wait to be tallied."""

KEY_BITS = 47
HASH_BITS = KEY_BITS - 1
ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio (Knuth): odd, so that multiplying loses nothing
POWERS = np.cumprod(np.full(WORDS, ODD))
COMMON_FLAG = np.uint64(1 << HASH_BITS)
KEY_MASK = np.uint64((1 << KEY_BITS) - 1)
SLOTS = 1 << 20


class Sets(NamedTuple):
    """The shingles of some texts: set i is `keys[starts[i] : starts[i + 1]]`, sorted, common ones last."""

    number: Numbers
    starts: Counts
    keys: Keys


def near_pairs(read: Read, total: int, least: float, progress: Callable[[int], None] = lambda _: None) -> pl.DataFrame:
    """The pairs among the texts numbered from 0 to `total` whose similarity is `least` or more: columns `PAIRS`.

    Of texts with the same shingles each is paired with the first alone. Where more than `FIRST` share a shingle
    not all pairs are looked at, but round by round more of those among the texts that stay, as long as that finds some.
    A text without words resembles none. `progress` is told how many texts have been read.
    """
    common = _common(read, total)
    size, same, prefixes = _prefixes(read, total, least, common, progress)
    near, compared, left, first = same, np.empty(0, np.uint64), prefixes, FIRST
    while True:
        candidates, crowded = _candidates(left, size, least, first)
        candidates = np.setdiff1d(candidates, compared, assume_unique=True)
        found = _counted(candidates, read, common, least)
        near = pl.concat([near, found])
        if found.height <= FRUITFUL * len(candidates) or not (crowded or len(compared)):
            return near
        compared = np.union1d(compared, candidates)
        left, first = prefixes.join(stand_ins(near), on="number", how="anti"), 2 * first


def stand_ins(pairs: pl.DataFrame) -> pl.DataFrame:
    """Who may go, and for whom: columns `number`, `nearest`, `similarity`, the numbers in the order of preference.

    One after the other is kept that is like nobody who was kept before; so each that goes is like one that stays. Who
    has the very shingles of another goes with it, or for it.

    >>> pairs = pl.DataFrame({"a": [0, 1, 1], "b": [1, 2, 3], "similarity": [0.9, 0.8, 1.0]}, schema=PAIRS)
    >>> stand_ins(pairs).rows()
    [(1, 0, 0.9), (3, 0, 0.9)]
    """
    same = pl.col("similarity") == 1
    going = _one_by_one(pairs.filter(~same))
    copies = pairs.filter(same).join(going, left_on="a", right_on="number", how="left").select(
        number="b", nearest=pl.coalesce("nearest", "a"), similarity=pl.coalesce("similarity_right", "similarity")
    )  # fmt: skip
    return pl.concat([going, copies]).sort("number")


def central_first(pairs: pl.DataFrame) -> pl.DataFrame:
    """As `stand_ins`, but whom most others resemble is preferred, and only then who has the smaller number.

    >>> star = pl.DataFrame({"a": [0, 1], "b": [1, 2], "similarity": [0.8, 0.8]}, schema=PAIRS)
    >>> central_first(star).rows()
    [(0, 1, 0.8), (2, 1, 0.8)]
    """
    ends = pl.concat([pairs["a"], pairs["b"]]).alias("number").value_counts(name="likes")
    ranked = ends.sort(["likes", "number"], descending=[True, False]).with_row_index("rank").drop("likes")
    by_rank = (
        pairs.join(ranked.rename({"rank": "rank_a"}), left_on="a", right_on="number")
        .join(ranked.rename({"rank": "rank_b"}), left_on="b", right_on="number")
        .select(
            a=pl.min_horizontal("rank_a", "rank_b"), b=pl.max_horizontal("rank_a", "rank_b"), similarity="similarity"
        )
    )
    named = stand_ins(by_rank).join(ranked, left_on="number", right_on="rank", suffix="_own")
    return named.join(ranked.rename({"number": "kept"}), left_on="nearest", right_on="rank").select(
        number="number_own", nearest="kept", similarity="similarity"
    ).sort("number")  # fmt: skip


def _one_by_one(pairs: pl.DataFrame) -> pl.DataFrame:
    members, places = np.unique(pairs.select("a", "b").to_numpy(), return_inverse=True)
    a, b = places.reshape(-1, 2).T
    stays, goes = np.zeros(len(members), np.bool_), np.zeros(len(members), np.bool_)
    while not (decided := stays | goes).all():  # as many rounds as the longest chain of likes is long
        waits = decided.copy()
        waits[b[~goes[a]]] = True
        stays |= ~waits
        goes[b[stays[a]]] = True
    best = pairs.filter(pl.Series(stays[a])).sort(["similarity", "a"], descending=[True, False])
    return best.unique("b", keep="first", maintain_order=True).select(number="b", nearest="a", similarity="similarity")


# --------------------------------------------------------------------------------------------------- from text to sets


def _sets(texts: pl.DataFrame, common: _Common) -> Sets:
    """The shingles of at most `PART_TEXTS` texts."""
    words = texts["text"].str.extract_all(WORD_PATTERN)
    lengths = words.list.len().to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    ends = np.cumsum(lengths)
    hashes = np.append(words.explode(empty_as_null=False).hash().to_numpy(), np.zeros(WORDS, np.uint64))
    rolled = hashes[: len(row)].copy()
    for ahead in range(1, WORDS):
        rolled *= ODD
        rolled += hashes[ahead : len(row) + ahead]
    whole = np.arange(len(row)) + WORDS <= ends[row]
    short = np.flatnonzero((lengths < WORDS) & (lengths > 0))
    first = ends[short] - lengths[short]
    rolled[first] = sum(hashes[first + at] * POWERS[at] * (at < lengths[short]) for at in range(WORDS))
    whole[first] = True
    keys = common.flag((rolled[whole] * ODD) >> np.uint64(64 - HASH_BITS))
    packed = np.sort(row[whole] << np.uint64(KEY_BITS) | keys)
    packed = packed[np.append(True, packed[1:] != packed[:-1])] if len(packed) else packed
    counts = np.bincount((packed >> np.uint64(KEY_BITS)).astype(np.int64), minlength=len(lengths))
    return Sets(texts["number"].to_numpy(), np.append(0, np.cumsum(counts)), packed & KEY_MASK)


def _parts(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same texts in parts that fit into memory."""
    for frame in frames:
        part = pl.col("text").str.len_bytes().cast(pl.Int64).cum_sum() // PART_BYTES
        yield from frame.with_columns(part=part).partition_by("part", include_key=False)


class _Common(NamedTuple):
    """The shingles that many texts have, sorted, and a table in which each has a slot by its last bits."""

    keys: Keys
    slots: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, keys: Keys) -> _Common:
        slots = np.zeros(SLOTS, np.bool_)
        slots[keys % SLOTS] = True
        return cls(keys, slots)

    def flag(self, keys: Keys) -> Keys:
        """The keys, common ones behind all others."""
        if len(self.keys):
            maybe = np.flatnonzero(self.slots[keys % SLOTS])
            at = np.minimum(np.searchsorted(self.keys, keys[maybe]), len(self.keys) - 1)
            keys[maybe[self.keys[at] == keys[maybe]]] |= COMMON_FLAG
        return keys


def _common(read: Read, total: int) -> _Common:
    """The common shingles, by a sample of evenly spaced numbers."""
    nothing = _Common.of(np.empty(0, np.uint64))
    sampled = np.unique(np.linspace(0, max(0, total - 1), min(total, SAMPLE)).astype(np.uint32))
    found = [_sets(part, nothing).keys for part in _parts(read(sampled))]
    keys, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *found]), return_counts=True)
    return _Common.of(keys[counts >= COMMON])


# ------------------------------------------------------------------------------------------------- from sets to pairs


def _prefixes(
    read: Read, total: int, least: float, common: _Common, progress: Callable[[int], None]
) -> tuple[Counts, pl.DataFrame, pl.DataFrame]:
    """How many shingles each text has, the pairs with all of them in common, and the prefixes (`key`, `number`).

    Of texts with the same shingles only the first has a prefix.
    """
    size, mark = np.zeros(total, np.int64), np.zeros(total, np.uint64)
    prefixes = [pl.DataFrame(schema={"key": pl.UInt64, "number": pl.UInt32})]
    done = 0
    for part in _parts(read(None)):
        sets = _sets(part, common)
        sizes = np.diff(sets.starts)
        size[sets.number] = sizes
        mixed = (sets.keys ^ (sets.keys >> np.uint64(23))) * ODD
        mark[sets.number[sizes > 0]] = np.add.reduceat(mixed, sets.starts[:-1][sizes > 0]) if len(mixed) else 0
        place = np.arange(len(sets.keys)) - np.repeat(sets.starts[:-1], sizes)
        taken = place < np.repeat(np.minimum(sizes, sizes - _least_shared(sizes, least) + SHARED), sizes)
        prefixes.append(pl.DataFrame({"key": sets.keys[taken], "number": np.repeat(sets.number, sizes)[taken]}))
        done += part.height
        progress(done)
    texts = pl.DataFrame({"b": np.arange(total, dtype=np.uint32), "size": size, "mark": mark}).filter(
        pl.col("size") > 0
    )
    copies = texts.with_columns(a=pl.col("b").min().over("size", "mark")).filter(pl.col("a") != pl.col("b"))
    same = copies.select("a", "b", similarity=1.0).cast(PAIRS)  # type: ignore[arg-type]
    return size, same, pl.concat(prefixes).join(same, left_on="number", right_on="b", how="anti")


def _least_shared(size: Counts, least: float) -> Counts:
    """How many shingles a set of this size must share with another one, at the least, to resemble it."""
    shared: Counts = np.ceil(size * least - 1e-9).astype(np.int64)  # 0.7 * 10 is a little more than 7
    return shared


def _candidates(postings: pl.DataFrame, size: Counts, least: float, first: int) -> tuple[Keys, bool]:
    """Pairs whose prefixes share enough, packed and sorted; and whether some shingle had too many texts for all."""
    shared = postings.filter(pl.col("key").is_duplicated()).sort("key", "number")
    key, number = shared["key"].to_numpy(), shared["number"].to_numpy()
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, np.int64)
    start = np.repeat(starts, np.diff(np.append(starts, len(key))))
    found: list[pl.DataFrame] = []
    behind = np.arange(len(key))
    for place in range(first):
        behind = behind[behind - start[behind] > place]
        found = _tallied([*found, _packed(number[start[behind] + place], number[behind], size, least)])
    tally = _tally(found).sort("pair")
    pairs, times = tally["pair"].to_numpy(), tally["times"].to_numpy()
    a, b = _unpacked(pairs)
    enough = np.minimum(SHARED, _least_shared(np.maximum(size[a], size[b]), least))
    return pairs[times >= enough], len(behind) > 1


def _packed(a: Numbers, b: Numbers, size: Counts, least: float) -> pl.DataFrame:
    """Pairs as single numbers, those alone whose sizes let them be alike: `pair`, `times`."""
    smaller, larger = np.minimum(size[a], size[b]), np.maximum(size[a], size[b])
    may = smaller >= _least_shared(larger, least)
    return pl.DataFrame({"pair": a[may].astype(np.uint64) << np.uint64(32) | b[may]}).with_columns(times=pl.lit(1))


def _tallied(found: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """The same, in one frame where there would be too many rows."""
    return [_tally(found)] if sum(frame.height for frame in found) > UNTALLIED else found


def _tally(found: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(found).group_by("pair").agg(pl.col("times").sum())


def _unpacked(pairs: Keys) -> tuple[Numbers, Numbers]:
    return (pairs >> np.uint64(32)).astype(np.uint32), pairs.astype(np.uint32)


def _counted(pairs: Keys, read: Read, common: _Common, least: float) -> pl.DataFrame:
    """Those of the pairs that are alike, by all of their shingles."""
    found = [pl.DataFrame(schema=PAIRS)]
    if len(pairs):
        a, b = _unpacked(pairs)
        members, places = np.unique(np.append(a, b), return_inverse=True)
        sets = _together(members, read, common)
        in_a, in_b = places[: len(a)], places[len(a) :]
        size = np.diff(sets.starts)
        by_keys, by_pairs = np.cumsum(size[in_a] + size[in_b]) // PAIR_KEYS, np.arange(len(a)) // PART_TEXTS
        for chosen in np.split(np.arange(len(a)), np.flatnonzero(np.diff(by_keys) + np.diff(by_pairs)) + 1):
            shared = _shared(sets, in_a[chosen], in_b[chosen])
            similarity = shared / (size[in_a[chosen]] + size[in_b[chosen]] - shared)
            found.append(
                pl.DataFrame({"a": a[chosen], "b": b[chosen], "similarity": similarity}).filter(
                    pl.col("similarity") >= least
                )
            )
    return pl.concat(found)


def _together(members: Numbers, read: Read, common: _Common) -> Sets:
    """The sets of some texts, in the order of their numbers."""
    parts = [_sets(part, common) for part in _parts(read(members))]
    number = np.concatenate([part.number for part in parts])
    sizes = np.concatenate([np.diff(part.starts) for part in parts])
    order = np.argsort(number)
    starts = np.append(0, np.cumsum(sizes))[:-1]
    keys = np.concatenate([part.keys for part in parts])[_ranges(starts[order], sizes[order])]
    return Sets(number[order], np.append(0, np.cumsum(sizes[order])), keys)


def _shared(sets: Sets, a: Counts, b: Counts) -> Counts:
    """How many shingles the sets at the places `a` and `b` have in common: sorted together, each such comes twice."""
    both = np.append(a, b)
    sizes = np.diff(sets.starts)[both]
    pair = np.repeat(np.tile(np.arange(len(a), dtype=np.uint64), 2), sizes)
    packed = np.sort(pair << np.uint64(KEY_BITS) | sets.keys[_ranges(sets.starts[both], sizes)])
    twice = packed[1:][packed[1:] == packed[:-1]] >> np.uint64(KEY_BITS)
    return np.bincount(twice.astype(np.int64), minlength=len(a))


def _ranges(starts: Counts, sizes: Counts) -> Counts:
    """The whole numbers from each start on, as many as its size says, all behind each other."""
    ends = np.cumsum(sizes)
    places: Counts = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
    return places
