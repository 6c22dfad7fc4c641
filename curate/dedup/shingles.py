"""Texts → sets of shingles: five consecutive words of a long text, words and pairs of words of a short one.

A long text of few words also has the shingles of a short one, because a short and a long text are compared by those.
Set 2n holds the words and pairs of text n, set 2n + 1 its five-word shingles. A shingle is a hash of 41 bits: two
different shingles collide with a probability of 10^-13.
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

SHORT_WORDS = 50
"""A text with fewer words is short: one changed word takes 5 of at most 45 five-word shingles, which leaves a
similarity below 0.8."""

SHINGLE_WORDS = 5
"""Words in a shingle of a long text."""

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD_PATTERN = rf"[{SPACELESS}]|[\w--[{SPACELESS}]]+"
"""A word, or a character in scripts without spaces between words."""

SAMPLE_TEXTS, COMMON_COUNT = 20_000, 4
"""Shingles that occur this often in a sample of this size are sorted to the end of every prefix, because they rarely
indicate near-duplicates. Otherwise 1,000 questions from one template would all be compared."""

PART_BYTES, PART_TEXTS = 32 << 20, 1 << 17
"""Text that is cut into shingles at a time, and pairs that are verified at a time: their positions need 18 bits."""

KEY_BITS, RANK_BITS = 46, 4
HASH_BITS = KEY_BITS - RANK_BITS - 1
WORD_FLAG = np.uint64(1 << (KEY_BITS - 1))
"""Marks a single word, so that the words of a short text are sorted after its pairs."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio (Knuth): odd, so multiplication is 1:1
KEY_MASK = np.uint64((1 << KEY_BITS) - 1)
START, END = np.uint64(0xD6E8FEB86659FD93), np.uint64(0xA3B195354A39B70D)
"""What precedes the first word and follows the last one, so that every word of a short text is in two pairs."""

SLOTS = 1 << 20


class ShingleSets(NamedTuple):
    """Some sets: set `number[i]` is `keys[starts[i] : starts[i + 1]]`, sorted, with common shingles last."""

    number: Numbers
    starts: Counts
    keys: Keys


def pair_threshold(similarity: float) -> float:
    """The Jaccard index of pairs of words from which the order of two short texts is similar.

    One changed word of n takes two of n + 1 pairs. For a similarity in which it counts as one, half of the pairs that
    differ are counted: with a Jaccard index j, the similarity is (1 + 3j) / (3 + j).

    >>> round(pair_threshold(0.8), 3), pair_threshold(1.0)
    (0.636, 1.0)
    """
    return (3 * similarity - 1) / (3 - similarity)


def min_overlap(size: Counts, threshold: float | npt.NDArray[np.float64]) -> Counts:
    """The smallest number of shingles that a set of this size shares with a near-duplicate."""
    overlap: Counts = np.ceil(size * threshold - 1e-9).astype(np.int64)  # 0.7 * 10 is slightly more than 7
    return overlap


def count_pairs(sets: ShingleSets, sizes: Counts) -> Counts:
    """The shingles of each set by which it is found: those of five words, or the n + 1 pairs of n words."""
    is_short = (sets.number % 2 == 0) & (sizes > 0)
    counts: Counts = np.where(is_short, sizes // 2 + 1, sizes)
    return counts


class CommonShingles(NamedTuple):
    """The shingles of many texts, sorted, with their ranks, and slots by their lowest bits that exclude most others."""

    keys: Keys
    ranks: Keys
    slots: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, keys: Keys, ranks: Keys) -> CommonShingles:
        """The shingles `keys`, which are sorted, with their `ranks` from 1."""
        slots = np.zeros(SLOTS, np.bool_)
        slots[keys % SLOTS] = True
        return cls(keys, ranks, slots)

    def rank(self, keys: Keys) -> Keys:
        """The keys, with the ranks of common ones in front so that the most common ones are sorted last."""
        if len(self.keys):
            maybe = np.flatnonzero(self.slots[keys % SLOTS])
            at = np.minimum(np.searchsorted(self.keys, keys[maybe]), len(self.keys) - 1)
            found = self.keys[at] == keys[maybe]
            keys[maybe[found]] |= self.ranks[at[found]] << np.uint64(HASH_BITS)
        return keys


NO_COMMON = CommonShingles.of(np.empty(0, np.uint64), np.empty(0, np.uint64))


def sample_common(read: ReadTexts, total: int, threshold: float) -> CommonShingles:
    """The common shingles of a sample of evenly spaced texts: rank 1 for five words, 1 to 15 by count for others."""
    sample = np.unique(np.linspace(0, max(0, total - 1), min(total, SAMPLE_TEXTS)).astype(np.uint32))
    counts = pl.concat(
        [
            pl.DataFrame(schema={"key": pl.UInt64, "long": pl.UInt32}),
            *(
                pl.DataFrame({"key": sets.keys, "long": np.repeat(sets.number % 2, np.diff(sets.starts))})
                for sets in read_sets(read, sample, NO_COMMON, threshold)
            ),
        ]
    )
    by_key = counts.group_by("key").agg(pl.len().alias("count"), pl.col("long").max())
    common = by_key.filter((pl.col("count") >= COMMON_COUNT) & (pl.col("key") < int(WORD_FLAG))).sort("key")
    levels = np.log2(common["count"].to_numpy() / COMMON_COUNT).astype(np.uint64) + np.uint64(1)
    highest = np.where(common["long"].to_numpy() == 1, 1, (1 << RANK_BITS) - 1).astype(np.uint64)
    return CommonShingles.of(common["key"].to_numpy().copy(), np.minimum(levels, highest))


def read_sets(
    read: ReadTexts, numbers: Numbers | None, common: CommonShingles, threshold: float
) -> Iterator[ShingleSets]:
    """The sets of some texts, or of all."""
    for frame in read(numbers):
        part = pl.col("text").str.len_bytes().cast(pl.Int64).cum_sum() // PART_BYTES
        for texts in frame.with_columns(part=part).partition_by("part", include_key=False):
            yield _shingle(texts, common, threshold)


def _shingle(texts: pl.DataFrame, common: CommonShingles, threshold: float) -> ShingleSets:
    """The sets of at most `PART_TEXTS` texts; two for each text, of which one or both may be empty."""
    words = texts["text"].str.extract_all(WORD_PATTERN)
    lengths = words.list.len().to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    hashes = words.explode(empty_as_null=False).hash().to_numpy()
    is_compared = min_overlap(lengths + 1, pair_threshold(threshold)) <= SHORT_WORDS  # with a short text
    short_rows, short_words = row[is_compared[row]], hashes[is_compared[row]]
    pair_rows, pairs = _number_repeats(*_pairs(short_rows, short_words))
    word_rows, single = _number_repeats(short_rows, short_words)
    is_long = lengths >= SHORT_WORDS
    long_rows, shingles = _five_words(row[is_long[row]], hashes[is_long[row]])
    at = np.concatenate([2 * pair_rows, 2 * long_rows + 1, 2 * word_rows]).astype(np.uint64)
    keys = common.rank((np.append(pairs, shingles) * MULTIPLIER) >> np.uint64(64 - HASH_BITS))
    keys = np.append(keys, (single * MULTIPLIER) >> np.uint64(64 - HASH_BITS) | WORD_FLAG)
    packed = np.sort(at << np.uint64(KEY_BITS) | keys)
    packed = packed[np.append(True, packed[1:] != packed[:-1])] if len(packed) else packed
    counts = np.bincount((packed >> np.uint64(KEY_BITS)).astype(np.int64), minlength=2 * len(lengths))
    number = np.repeat(texts["number"].to_numpy() * np.uint32(2), 2)
    number[1::2] += np.uint32(1)
    return ShingleSets(number, np.append(0, np.cumsum(counts)), packed & KEY_MASK)


def _five_words(row: Counts, words: Keys) -> tuple[Counts, Keys]:
    """Rows and hashes of all sequences of `SHINGLE_WORDS` words within a row."""
    if len(row) < SHINGLE_WORDS:
        return row[:0], words[:0]
    last = len(row) - SHINGLE_WORDS + 1
    rolling = words[:last].copy()
    for ahead in range(1, SHINGLE_WORDS):
        rolling *= MULTIPLIER
        rolling += words[ahead : last + ahead]
    is_within = row[:last] == row[SHINGLE_WORDS - 1 :]
    return row[:last][is_within], rolling[is_within]


def _pairs(row: Counts, words: Keys) -> tuple[Counts, Keys]:
    """Rows and hashes of all sequences of two words within a row, its start and its end."""
    is_first = np.append(True, row[1:] != row[:-1])[: len(row)]
    following = np.append(words[1:], END)[: len(row)]
    following[np.append(is_first[1:], True)[: len(row)]] = END
    return np.append(row, row[is_first]), np.append(words * MULTIPLIER + following, words[is_first] + START)


def _number_repeats(rows: Counts, hashes: Keys) -> tuple[Counts, Keys]:
    """Rows and hashes, in which the second occurrence within a row has another hash than the first."""
    packed = np.sort(rows.astype(np.uint64) << np.uint64(KEY_BITS) | (hashes * MULTIPLIER) >> np.uint64(64 - KEY_BITS))
    place = np.arange(len(rows))
    is_new = np.append(True, packed[1:] != packed[:-1])[: len(rows)]
    occurrence = place - np.maximum.accumulate(np.where(is_new, place, 0))
    hashes = (packed & KEY_MASK) * END + occurrence.astype(np.uint64) * START
    return (packed >> np.uint64(KEY_BITS)).astype(np.int64), hashes


def select_sets(parts: Iterator[ShingleSets], wanted: Numbers) -> ShingleSets:
    """Some of the sets, in the order of `wanted`, which is sorted."""
    sets = list(parts)
    number = np.concatenate([part.number for part in sets])
    sizes = np.concatenate([np.diff(part.starts) for part in sets])
    starts = np.append(0, np.cumsum(sizes))[:-1]
    order = np.argsort(number)
    chosen = order[np.searchsorted(number[order], wanted)]
    keys = np.concatenate([part.keys for part in sets])[concatenate_ranges(starts[chosen], sizes[chosen])]
    return ShingleSets(wanted, np.append(0, np.cumsum(sizes[chosen])), keys)


def concatenate_ranges(starts: Counts, sizes: Counts) -> Counts:
    """The concatenated integer ranges with these starts and sizes.

    >>> concatenate_ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(sizes)
    positions: Counts = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
    return positions
