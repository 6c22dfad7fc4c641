"""The shingle join: the same pairs as by definition, for every partition of the texts."""

import itertools
import random

import polars as pl
import pytest
from support.similarity import near, shingles, similarity_of, word_pairs, words_of

from curate.dedup import shingle_join
from curate.dedup import shingles as shingles_module
from curate.dedup.shingle_join import greedy_cover, near_pairs, rank_by_degree


def reader(texts, batch_rows=37):
    """Reads the texts in random order and in small batches, as a database may return them."""
    frame = pl.DataFrame({"number": pl.Series(range(len(texts)), dtype=pl.UInt32), "text": texts})

    def read(numbers):
        rows = frame if numbers is None else frame[numbers]
        yield from rows.sample(fraction=1, shuffle=True, seed=1).iter_slices(batch_rows)

    return read


def group_copies(texts, threshold):
    """The number of the first text with the same shingles, of those that it is compared by; no words, no entry."""
    first, originals = {}, {}
    for number, text in enumerate(texts):
        words = len(words_of(text))
        is_long = words >= shingles_module.SHORT_WORDS
        limit = shingles_module.SHORT_WORDS * (3 - threshold) / (3 * threshold - 1)
        has_pairs = not is_long or words + 1 <= limit + 1e-9
        own = (shingles(text) if is_long else None, frozenset(word_pairs(text).items()) if has_pairs else None)
        if words:
            originals[number] = first.setdefault(own, number)
    return originals


def pairs_by_definition(texts, threshold):
    """All pairs by definition; of copies only the first is paired with others."""
    originals = group_copies(texts, threshold)
    copies = {(first, number): 1.0 for number, first in originals.items() if first < number}
    pairs = itertools.combinations(sorted(set(originals.values())), 2)
    return copies | {(a, b): similarity_of(texts[a], texts[b]) for a, b in pairs if near(texts[a], texts[b], threshold)}


def change_words(rng, text, vocabulary):
    words = text.split()
    for _ in range(rng.randint(0, 3)):
        at = rng.randint(0, len(words))
        words[at : at + rng.randint(0, 1)] = rng.choices(vocabulary, k=rng.randint(0, 1))
    return " ".join(words)


def random_texts(rng):
    vocabulary = [f"w{number}" for number in range(rng.choice([3, 20, 500]))]
    texts = []
    for _ in range(rng.choice([5, 40, 120])):
        fresh = " ".join(rng.choices(vocabulary, k=rng.choice([0, 1, 3, 4, 5, 6, 9, 20, 60])))
        texts.append(change_words(rng, rng.choice(texts), vocabulary) if texts and rng.random() < 0.6 else fresh)
    return texts


@pytest.fixture(autouse=True, params=[5, 9, 50], ids="short below {}".format)
def short_words(request, monkeypatch):
    """Most texts are long, some are, or most are short."""
    monkeypatch.setattr(shingles_module, "SHORT_WORDS", request.param)
    return request.param


@pytest.mark.parametrize("seed", range(40))
def test_the_pairs_equal_those_by_definition(monkeypatch, seed):
    rng = random.Random(seed)
    texts, threshold = random_texts(rng), rng.choice([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
    monkeypatch.setattr(shingle_join, "GROUP_LIMIT", 1_000)
    monkeypatch.setattr(shingles_module, "PART_BYTES", rng.choice([50, 1 << 20]))
    monkeypatch.setattr(shingle_join, "PAIR_KEYS", rng.choice([40, 1 << 20]))
    monkeypatch.setattr(shingle_join, "MAX_PENDING", rng.choice([3, 1 << 20]))
    pairs = near_pairs(reader(texts), len(texts), threshold)
    assert {(a, b): similarity for a, b, similarity, _ in pairs.iter_rows()} == pytest.approx(
        pairs_by_definition(texts, threshold)
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_dropped_text_is_similar_to_an_earlier_kept_one(monkeypatch, seed):
    texts = random_texts(random.Random(seed))
    monkeypatch.setattr(shingle_join, "GROUP_LIMIT", 3)
    dropped = {number: (nearest, similarity) for number, nearest, similarity in
            greedy_cover(near_pairs(reader(texts), len(texts), 0.6)).iter_rows()}  # fmt: skip
    for number, (nearest, similarity) in dropped.items():
        assert nearest < number
        assert nearest not in dropped
        assert similarity == pytest.approx(similarity_of(texts[number], texts[nearest]))
        assert similarity >= 0.6


@pytest.mark.parametrize("choose", [greedy_cover, rank_by_degree])
@pytest.mark.parametrize("seed", range(20))
def test_no_two_kept_texts_are_near_duplicates(monkeypatch, seed, choose):
    texts = [text for text in random_texts(random.Random(seed)) if text]
    monkeypatch.setattr(shingle_join, "GROUP_LIMIT", 1_000)
    dropped = set(choose(near_pairs(reader(texts), len(texts), 0.6))["number"])
    kept = [text for number, text in enumerate(texts) if number not in dropped]
    assert not [pair for pair in itertools.combinations(kept, 2) if near(*pair, 0.6)]


def crowded_texts(rng, kind, count):
    """Texts that share most of their shingles with all others, so that every group is larger than the limit."""
    pattern = [f"word{number}" for number in range(40)]
    if kind == "one slot":
        return [" ".join([*pattern[:20], *rng.choices("abcdefgh", k=rng.randint(1, 4)), *pattern[20:]])
                for _ in range(count)]  # fmt: skip
    if kind == "long prefix":
        return [" ".join([*pattern, *(f"own{rng.randrange(30)}" for _ in range(rng.randint(1, 14)))])
                for _ in range(count)]  # fmt: skip
    changed = []
    for number in range(count):
        words = list(pattern)
        for _ in range(rng.randint(1, 3)):
            words[rng.randrange(40)] = f"own{number % 17}"
        changed.append(" ".join(words))
    return changed


@pytest.mark.parametrize("choose", [greedy_cover, rank_by_degree])
@pytest.mark.parametrize("kind", ["one slot", "long prefix", "changed words"])
@pytest.mark.parametrize("limit", [2, 32])
@pytest.mark.parametrize("seed", range(3))
def test_no_two_kept_texts_of_a_crowded_group_are_near_duplicates(monkeypatch, choose, kind, limit, seed):
    texts = crowded_texts(random.Random(seed), kind, 300)
    monkeypatch.setattr(shingle_join, "GROUP_LIMIT", limit)
    dropped = choose(near_pairs(reader(texts), len(texts), 0.8, choose=choose))
    assert dropped.height < len(texts)
    gone = set(dropped["number"])
    kept = [text for number, text in enumerate(texts) if number not in gone]
    assert not [pair for pair in itertools.combinations(kept, 2) if near(*pair, 0.8)]


def pairs_frame(a, b, similarity, copy=False):
    return pl.DataFrame({"a": a, "b": b, "similarity": similarity, "copy": copy}, schema=shingle_join.PAIRS)


def test_a_copy_is_dropped_together_with_its_original():
    pairs = pairs_frame([0, 1], [1, 2], [0.9, 1.0], [False, True])
    assert greedy_cover(pairs).rows() == [(1, 0, 0.9), (2, 0, 0.9)]


def test_the_text_with_the_highest_degree_is_kept_and_in_a_tie_the_first():
    star = pairs_frame([0, 1, 2], [2, 2, 3], [0.8, 0.9, 0.8])
    assert rank_by_degree(star).rows() == [(0, 2, 0.8), (1, 2, 0.9), (3, 2, 0.8)]
    assert rank_by_degree(star.head(1)).rows() == [(2, 0, 0.8)]
    assert rank_by_degree(star.clear()).is_empty()


def test_few_of_thousands_of_variants_of_one_text_are_kept():
    """Each variant changes one of 60 words, so two differ in five to ten of 56 shingles: similarity 0.70 to 0.84."""
    rng = random.Random(1)
    pattern = [f"word{number}" for number in range(60)]
    texts = []
    for number in range(3_000):
        words = list(pattern)
        words[rng.randrange(60)] = f"own{number}"
        texts.append(" ".join(words))
    kept = 3_000 - greedy_cover(near_pairs(reader(texts, 1_000), 3_000, 0.8)).height
    assert kept <= 60


def test_a_chain_is_kept_and_dropped_alternately():
    chain = pairs_frame([0, 1, 2, 3], [1, 2, 3, 4], [0.8, 0.9, 0.8, 0.9])
    assert greedy_cover(chain).rows() == [(1, 0, 0.8), (3, 2, 0.8)]
    assert greedy_cover(chain.clear()).is_empty()


def test_the_nearest_is_the_most_similar_kept_text_and_in_a_tie_the_first():
    pairs = pairs_frame([0, 1, 2, 0, 1], [3, 3, 3, 4, 4], [0.8, 0.9, 0.9, 0.8, 0.8])
    assert greedy_cover(pairs).rows() == [(3, 1, 0.9), (4, 0, 0.8)]


def test_texts_without_words_have_no_near_duplicates():
    assert near_pairs(reader(["", "?!", "", "one two three four five six"]), 4, 0.5).is_empty()
    assert near_pairs(reader([]), 0, 0.5).is_empty()
