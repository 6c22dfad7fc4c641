"""The similarity of two texts by its definition, without any index."""

import re
from collections import Counter

from curate.dedup import shingles as shingles_module


def words_of(text):
    return re.findall(r"\w+", text)


def shingles(text):
    words = words_of(text)
    return frozenset(tuple(words[at : at + 5]) for at in range(len(words) - 4))


def word_pairs(text):
    words = words_of(text)
    return Counter(zip(["", *words], [*words, ""], strict=True)) if words else Counter()


def similarity_of(one, other):
    """By five-word shingles if both texts are long, else by words or half of the pairs that differ."""
    if min(len(words_of(one)), len(words_of(other))) >= shingles_module.SHORT_WORDS:
        a, b = shingles(one), shingles(other)
        return len(a & b) / len(a | b)
    pairs, words = (
        (a & b).total() / (a | b).total()
        for a, b in ((word_pairs(one), word_pairs(other)), (Counter(words_of(one)), Counter(words_of(other))))
    )
    return min(words, (1 + 3 * pairs) / (3 + pairs))


def near(one, other, threshold):
    return similarity_of(one, other) >= threshold - 1e-9
