"""Resembling: exactly the pairs that a plain statement of the rule finds, however the texts are cut into parts."""

import itertools
import random
import re

import polars as pl
import pytest

from curate.dedup import shingle_join
from curate.dedup.shingle_join import central_first, near_pairs, stand_ins


def reader(texts, at_once=37):
    """The texts in a shuffled order and a few at a time, as a database may give them."""
    frame = pl.DataFrame({"number": pl.Series(range(len(texts)), dtype=pl.UInt32), "text": texts})

    def read(wanted):
        asked = frame if wanted is None else frame[wanted]
        yield from asked.sample(fraction=1, shuffle=True, seed=1).iter_slices(at_once)

    return read


def shingles(text):
    words = re.findall(r"\w+", text)
    return frozenset(tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))) if words else frozenset()


def jaccard(one, other):
    return len(one & other) / len(one | other)


def plain_pairs(texts, least):
    """All pairs by the definition; of texts with the same shingles the first alone is paired with others."""
    sets = [shingles(text) for text in texts]
    first = {shingles: number for number, shingles in reversed(list(enumerate(sets)))}
    found = {(first[own], number): 1.0 for number, own in enumerate(sets) if own and first[own] < number}
    firsts = sorted(first[own] for own in first if own)
    near = ((a, b, jaccard(sets[a], sets[b])) for a, b in itertools.combinations(firsts, 2))
    return found | {(a, b): similarity for a, b, similarity in near if similarity >= least}


def changed(draw, text, vocabulary):
    words = text.split()
    for _ in range(draw.randint(0, 3)):
        at = draw.randint(0, len(words))
        words[at : at + draw.randint(0, 1)] = draw.choices(vocabulary, k=draw.randint(0, 1))
    return " ".join(words)


def random_texts(draw):
    vocabulary = [f"w{number}" for number in range(draw.choice([3, 20, 500]))]
    texts = []
    for _ in range(draw.choice([5, 40, 120])):
        fresh = " ".join(draw.choices(vocabulary, k=draw.choice([0, 1, 3, 4, 5, 6, 9, 20, 60])))
        texts.append(changed(draw, draw.choice(texts), vocabulary) if texts and draw.random() < 0.6 else fresh)
    return texts


@pytest.mark.parametrize("seed", range(40))
def test_the_pairs_are_those_of_the_definition(monkeypatch, seed):
    draw = random.Random(seed)
    texts, least = random_texts(draw), draw.choice([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
    monkeypatch.setattr(shingle_join, "FIRST", 1_000)
    monkeypatch.setattr(shingle_join, "PART_BYTES", draw.choice([50, 1 << 20]))
    monkeypatch.setattr(shingle_join, "PAIR_KEYS", draw.choice([40, 1 << 20]))
    monkeypatch.setattr(shingle_join, "UNTALLIED", draw.choice([3, 1 << 20]))
    found = near_pairs(reader(texts), len(texts), least)
    assert {(a, b): similarity for a, b, similarity in found.iter_rows()} == pytest.approx(plain_pairs(texts, least))


@pytest.mark.parametrize("seed", range(20))
def test_who_goes_resembles_somebody_who_stays_and_comes_before(monkeypatch, seed):
    texts = random_texts(random.Random(seed))
    monkeypatch.setattr(shingle_join, "FIRST", 3)
    gone = {number: (nearest, alike) for number, nearest, alike in
            stand_ins(near_pairs(reader(texts), len(texts), 0.6)).iter_rows()}  # fmt: skip
    for number, (nearest, alike) in gone.items():
        assert nearest < number
        assert nearest not in gone
        assert alike == jaccard(shingles(texts[number]), shingles(texts[nearest])) >= 0.6


@pytest.mark.parametrize("choose", [stand_ins, central_first])
@pytest.mark.parametrize("seed", range(20))
def test_no_two_that_stay_resemble_each_other(monkeypatch, seed, choose):
    texts = [text for text in random_texts(random.Random(seed)) if text]
    monkeypatch.setattr(shingle_join, "FIRST", 1_000)
    gone = set(choose(near_pairs(reader(texts), len(texts), 0.6))["number"])
    staying = [shingles(text) for number, text in enumerate(texts) if number not in gone]
    assert not [pair for pair in itertools.combinations(staying, 2) if jaccard(*pair) >= 0.6]


def test_a_copy_goes_with_the_one_that_it_is_a_copy_of():
    pairs = pl.DataFrame({"a": [0, 1], "b": [1, 2], "similarity": [0.9, 1.0]}, schema=shingle_join.PAIRS)
    assert stand_ins(pairs).rows() == [(1, 0, 0.9), (2, 0, 0.9)]


def test_whom_most_others_resemble_is_preferred_and_of_equals_the_first():
    star = pl.DataFrame({"a": [0, 1, 2], "b": [2, 2, 3], "similarity": [0.8, 0.9, 0.8]}, schema=shingle_join.PAIRS)
    assert central_first(star).rows() == [(0, 2, 0.8), (1, 2, 0.9), (3, 2, 0.8)]
    assert central_first(star.head(1)).rows() == [(2, 0, 0.8)]
    assert central_first(star.clear()).is_empty()


def test_thousands_of_versions_of_one_text_leave_few():
    """Each differs from the pattern in one word of 60: from another in five to ten of 56 shingles, so 0.70 to 0.84."""
    draw = random.Random(1)
    pattern = [f"word{number}" for number in range(60)]
    texts = []
    for number in range(3_000):
        words = list(pattern)
        words[draw.randrange(60)] = f"own{number}"
        texts.append(" ".join(words))
    stay = 3_000 - stand_ins(near_pairs(reader(texts, 1_000), 3_000, 0.8)).height
    assert stay <= 60


def test_one_after_the_other_is_kept_that_is_like_nobody_who_was_kept():
    chain = pl.DataFrame(
        {"a": [0, 1, 2, 3], "b": [1, 2, 3, 4], "similarity": [0.8, 0.9, 0.8, 0.9]}, schema=shingle_join.PAIRS
    )
    assert stand_ins(chain).rows() == [(1, 0, 0.8), (3, 2, 0.8)]
    assert stand_ins(chain.clear()).is_empty()


def test_the_nearest_is_the_most_alike_of_those_that_stay_and_of_equals_the_first():
    pairs = pl.DataFrame(
        {"a": [0, 1, 2, 0, 1], "b": [3, 3, 3, 4, 4], "similarity": [0.8, 0.9, 0.9, 0.8, 0.8]}, schema=shingle_join.PAIRS
    )
    assert stand_ins(pairs).rows() == [(3, 1, 0.9), (4, 0, 0.8)]


def test_texts_without_words_and_no_texts_resemble_nothing():
    assert near_pairs(reader(["", "?!", "", "one two three four five six"]), 4, 0.5).is_empty()
    assert near_pairs(reader([]), 0, 0.5).is_empty()
