"""Text and vector queries of the search engine, compared with a computation in Python over the same records."""

import doctest
import math

import pytest
from support.search_dataset import between, meta, metadata

from curate.review.argilla.server import query_parser

# texts ---------------------------------------------------------------------------------------------------------


def has(*words):
    """Whether a field of the record has these consecutive words."""
    return lambda r, fields=("chat", "note"): any(
        contains(words, query_parser.words_of(text)) for text in texts(r, fields)
    )


def texts(record, fields):
    for name in fields:
        value = record["fields"].get(name)
        yield "\n".join(one["content"] for one in value) if isinstance(value, list) else value or ""


def contains(words, text):
    return any(tuple(text[at : at + len(words)]) == words for at in range(len(text)))


TEXTS = {
    "refund": has("refund"),
    "REFUND": has("refund"),
    "refund late": lambda r: has("refund")(r) and has("late")(r),
    "refund + late": lambda r: has("refund")(r) and has("late")(r),
    "refund | late": lambda r: has("refund")(r) or has("late")(r),
    "refund | late broken": lambda r: (has("refund")(r) or has("late")(r)) and has("broken")(r),
    "-refund": lambda r: not has("refund")(r),
    "late -refund -broken": lambda r: has("late")(r) and not has("refund")(r) and not has("broken")(r),
    "late -(refund | broken)": lambda r: has("late")(r) and not (has("refund")(r) or has("broken")(r)),
    '"refund late"': has("refund", "late"),
    "(refund | late) (broken | parcel)": lambda r: (
        (has("refund")(r) or has("late")(r)) and (has("broken")(r) or has("parcel")(r))),
    "ref*": has("refund"),
    "ref": lambda r: False,
    "refumd~1": has("refund"),
    "refumx~1": lambda r: False,
    "refumx~": has("refund"),
    '"refund broken"~1': lambda r: any(
        near(query_parser.words_of(text), "refund", "broken", 1) for text in texts(r, ("chat", "note"))),
    "strasse": has("strasse"),
    "STRAßE": has("strasse"),
    "naïve": has("naïve"),
    "naive": lambda r: False,
    "3.14": has("3", "14"),
    "don't": has("don", "t"),
    "日本": has("日", "本"),
    "本語": has("本", "語"),
    "ok_go": has("ok_go"),
    "example.org": has("example", "org"),
    '"refund': has("refund"),
    "(refund": has("refund"),
    "refund)": has("refund"),
    "\\-refund": has("refund"),
    "'; DROP TABLE records; --": lambda r: False,
    'fields : "refund" OR NEAR(': lambda r: False,
    "": lambda r: False,
    "- | +": lambda r: False,
}  # fmt: skip


def near(words, one, other, limit):
    places = [[at for at, word in enumerate(words) if word == each] for each in (one, other)]
    return any(abs(left - right) - 1 <= limit for left in places[0] for right in places[1])


@pytest.mark.parametrize("query", TEXTS)
def test_a_text_query_finds_the_expected_records(searched, query):
    found, total = searched.search(query={"text": {"q": query}})
    expected = {one["id"] for one in searched.records if TEXTS[query](one)}
    assert (set(found), total) == (expected, len(expected))


def test_the_queries_without_results_are_known(searched):
    empty = [query for query, matches in TEXTS.items() if not any(matches(one) for one in searched.records)]
    assert empty == ["ref", "refumx~1", "naive", "'; DROP TABLE records; --", 'fields : "refund" OR NEAR(', "", "- | +"]


def test_a_query_can_be_limited_to_one_field(searched):
    found, _ = searched.search(query={"text": {"q": "refund", "field": "note"}})
    expected = {one["id"] for one in searched.records if has("refund")(one, ("note",))}
    assert set(found) == expected
    assert 0 < len(expected) < len(searched.search(query={"text": {"q": "refund"}})[0])


def test_records_with_more_occurrences_come_first(searched):
    found, _ = searched.search(query={"text": {"q": "refund"}})
    records = {one["id"]: one for one in searched.records}
    counts = [" ".join(texts(records[one], ("chat", "note"))).count("refund") for one in found]
    assert counts[0] == max(counts) > counts[-1]


def test_text_filter_and_order_are_combined(searched):
    query = {"text": {"q": "late"}}
    sort = [{"scope": metadata("share"), "order": "desc"}]
    found, _ = searched.search(query=query, filters={"and": [between(metadata("share"), ge=0.1)]}, sort=sort)
    kept = [one for one in searched.records if has("late")(one) and any(v >= 0.1 for v in meta(one, "share"))]
    assert found == [one["id"] for one in sorted(kept, key=lambda one: -one["metadata"]["share"])]


def test_the_doctests_of_the_parser_pass():
    assert doctest.testmod(query_parser).failed == 0


# vectors -------------------------------------------------------------------------------------------------------


def cosine(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True)) / (math.hypot(*left) * math.hypot(*right))


@pytest.mark.parametrize("order", ["most_similar", "least_similar"])
def test_similar_records_are_sorted_by_cosine(searched, order):
    value = [0.3, -0.2, 0.9, 0.1]
    found, total = searched.search(query={"vector": {"name": "meaning", "value": value, "order": order}})
    with_vector = [one for one in searched.records if one.get("vectors")]
    ordered = sorted(
        with_vector, key=lambda one: cosine(one["vectors"]["meaning"], value), reverse=order == "most_similar"
    )
    assert found == [one["id"] for one in ordered]
    assert 0 < total == len(with_vector) < len(searched.records)


def test_records_similar_to_a_record_exclude_it_and_match_filters(searched):
    one = next(one for one in searched.records if one.get("vectors"))
    vector = {"name": "meaning", "record_id": one["id"]}
    found, _ = searched.search(query={"vector": vector}, filters={"and": [between(metadata("words"), ge=3)]}, limit=5)
    others = [
        r for r in searched.records if r.get("vectors") and r is not one and any(v >= 3 for v in meta(r, "words"))
    ]
    ordered = sorted(others, key=lambda r: -cosine(r["vectors"]["meaning"], one["vectors"]["meaning"]))
    assert found == [r["id"] for r in ordered[:5]]
