"""Filters and orders of the search engine, compared with a computation in Python over the same records."""

from datetime import datetime, timedelta

import pytest
from support.argilla_server import RefusedError
from support.search_dataset import (
    SOURCES,
    STATUS,
    answered,
    answers_to,
    between,
    meta,
    metadata,
    own,
    suggested,
    suggestion,
    terms,
)

# filters -------------------------------------------------------------------------------------------------------

FILTERS = {
    "metadata terms, one value": (
        terms(metadata("source"), "a.csv"), lambda s, r, p: "a.csv" in meta(r, "source")),
    "metadata terms, a quoted value or another": (
        terms(metadata("source"), 'c "quoted".csv', "b.csv"), lambda s, r, p: {*meta(r, "source")} & {*SOURCES[1:]}),
    "metadata terms, many values in a record": (
        terms(metadata("tags"), "x", "z"), lambda s, r, p: {"x", "z"} & {*meta(r, "tags")}),
    "metadata terms without a match": (
        terms(metadata("source"), "none"), lambda s, r, p: False),
    "metadata terms in a range": (
        between(metadata("source"), ge="b", le="c"), lambda s, r, p: any("b" <= v <= "c" for v in meta(r, "source"))),
    "integer metadata among values": (
        terms(metadata("words"), 3, 5), lambda s, r, p: {3, 5} & {*meta(r, "words")}),
    "integer metadata from": (
        between(metadata("words"), ge=4), lambda s, r, p: any(v >= 4 for v in meta(r, "words"))),
    "integer metadata to, below zero": (
        between(metadata("words"), le=-1), lambda s, r, p: any(v <= -1 for v in meta(r, "words"))),
    "float metadata between": (
        between(metadata("share"), ge=0.25, le=0.75), lambda s, r, p: any(0.25 <= v <= 0.75 for v in meta(r, "share"))),
    "a value that is not a number": (
        terms(metadata("words"), "many"), lambda s, r, p: False),
    "suggested rating": (
        terms(suggestion("quality"), "2", "4"), lambda s, r, p: {2, 4} & {*suggested(s, r, "quality")}),
    "suggested rating between": (
        between(suggestion("quality"), ge=2, le=3), lambda s, r, p: {2, 3} & {*suggested(s, r, "quality")}),
    "suggested label": (
        terms(suggestion("decision"), "drop"), lambda s, r, p: "drop" in suggested(s, r, "decision")),
    "suggested labels, any of": (
        terms(suggestion("issues"), "rude", "format"),
        lambda s, r, p: {"rude", "format"} & {*suggested(s, r, "issues")}),
    "suggestion's score": (
        between(suggestion("quality", "score"), ge=0.5),
        lambda s, r, p: any(v >= 0.5 for v in suggested(s, r, "quality", "score"))),
    "any of a suggestion's scores": (
        between(suggestion("issues", "score"), le=0.2),
        lambda s, r, p: any(v <= 0.2 for v in suggested(s, r, "issues", "score"))),
    "suggestion's agent": (
        terms(suggestion("quality", "agent"), "model"), lambda s, r, p: "model" in suggested(s, r, "quality", "agent")),
    "answered rating": (
        terms(answered("quality"), "1", "5"), lambda s, r, p: {1, 5} & {*answers_to(s, r, "quality", p)}),
    "answered rating between": (
        between(answered("quality"), ge=2, le=4), lambda s, r, p: {2, 3, 4} & {*answers_to(s, r, "quality", p)}),
    "answered label": (
        terms(answered("decision"), "keep"), lambda s, r, p: "keep" in answers_to(s, r, "decision", p)),
    "answered labels, any of": (
        terms(answered("issues"), "unsafe"), lambda s, r, p: "unsafe" in answers_to(s, r, "issues", p)),
    "an answered text is not searched": (
        terms(answered("remark"), "so so"), lambda s, r, p: False),
    **{
        f"answers {' or '.join(statuses)}": (
            terms(STATUS, *statuses),
            lambda s, r, p, statuses=statuses: (
                ("pending" in statuses and not s.answers(r, p))
                or any(one["status"] in statuses for one in s.answers(r, p))))
        for statuses in [("pending",), ("draft",), ("submitted",), ("pending", "draft"), ("submitted", "discarded")]
    },
    "record's status": (
        terms(own("status"), "completed"), lambda s, r, p: r["status"] == "completed"),
    "record's external id": (
        terms(own("external_id"), "e007", "e011"), lambda s, r, p: r["external_id"] in {"e007", "e011"}),
}  # fmt: skip


@pytest.mark.parametrize("person", [None, "sue"])
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_finds_the_expected_records(searched, name, person):
    query, matches = FILTERS[name]
    found, total = searched.search(person, filters={"and": [query]})
    expected = {one["id"] for one in searched.records if matches(searched, one, person)}
    assert set(found) == expected
    assert (len(found), total) == (len(expected), len(expected))


def test_every_filter_matches_some_records_but_not_all(searched):
    counts = {
        name: sum(bool(matches(searched, one, "sue")) for one in searched.records)
        for name, (_, matches) in FILTERS.items()
    }
    assert [name for name, count in counts.items() if count == 0] == [
        "metadata terms without a match", "a value that is not a number", "an answered text is not searched",
    ]  # fmt: skip
    assert all(count < len(searched.records) for count in counts.values())


def test_several_filters_are_combined_by_and(searched):
    names = ["float metadata between", "answers submitted", "suggested rating between"]
    found, _ = searched.search(filters={"and": [FILTERS[name][0] for name in names]})
    expected = [one["id"] for one in searched.records if all(FILTERS[name][1](searched, one, None) for name in names)]
    assert sorted(found) == sorted(expected)
    assert 0 < len(expected) < len(searched.records)


def test_a_record_is_found_by_its_id_and_by_its_insertion_time(searched):
    one = searched.records[40]
    assert searched.search(filters={"and": [terms(own("id"), one["id"])]}) == ([one["id"]], 1)
    middle = searched.records[45]["inserted_at"]
    for bounds, expected in (
        ({"ge": middle}, [r["id"] for r in searched.records if r["inserted_at"] >= middle]),
        ({"le": middle}, [r["id"] for r in searched.records if r["inserted_at"] <= middle]),
        ({"le": middle[:10]}, [r["id"] for r in searched.records]),  # a day as an upper bound means its end
        ({"ge": tomorrow(middle)}, []),
    ):
        found, _ = searched.search(filters={"and": [between(own("inserted_at"), **bounds)]})
        assert sorted(found) == sorted(expected)


def tomorrow(moment):
    return (datetime.fromisoformat(moment) + timedelta(days=1)).date().isoformat()


def test_a_filter_by_an_unknown_question_is_an_error(searched):
    with pytest.raises(RefusedError, match="422"):
        searched.search(filters={"and": [terms(answered("nothing"), "1")]})


# orders --------------------------------------------------------------------------------------------------------


def extreme(values, down):
    return (max if down else min)(values, default=None)


def mean(values, _down):
    return sum(values) / len(values) if values else None


SORTS = {
    "metadata terms": (metadata("source"), lambda s, r, p, d: extreme(meta(r, "source"), d)),
    "many metadata terms": (metadata("tags"), lambda s, r, p, d: extreme(meta(r, "tags"), d)),
    "integer metadata": (metadata("words"), lambda s, r, p, d: extreme(meta(r, "words"), d)),
    "float metadata": (metadata("share"), lambda s, r, p, d: extreme(meta(r, "share"), d)),
    "suggested rating": (suggestion("quality"), lambda s, r, p, d: extreme(suggested(s, r, "quality"), d)),
    "suggested label": (suggestion("decision"), lambda s, r, p, d: extreme(suggested(s, r, "decision"), d)),
    "suggested labels": (suggestion("issues"), lambda s, r, p, d: extreme(suggested(s, r, "issues"), d)),
    "suggestion's score": (
        suggestion("quality", "score"), lambda s, r, p, d: extreme(suggested(s, r, "quality", "score"), d)),
    "suggestion's scores": (
        suggestion("issues", "score"), lambda s, r, p, d: extreme(suggested(s, r, "issues", "score"), d)),
    "suggestion's agent": (
        suggestion("quality", "agent"), lambda s, r, p, d: extreme(suggested(s, r, "quality", "agent"), d)),
    "answered rating": (answered("quality"), lambda s, r, p, d: mean(answers_to(s, r, "quality", p), d)),
    "answered label": (answered("decision"), lambda s, r, p, d: extreme(answers_to(s, r, "decision", p), d)),
    "answer's status": (STATUS, lambda s, r, p, d: extreme([one["status"] for one in s.answers(r, p)], d)),
    "record's status": (own("status"), lambda s, r, p, d: r["status"]),
    "external id": (own("external_id"), lambda s, r, p, d: r["external_id"]),
    "id": (own("id"), lambda s, r, p, d: r["id"]),
    "inserted": (own("inserted_at"), lambda s, r, p, d: r["inserted_at"]),
    "updated": (own("updated_at"), lambda s, r, p, d: r["updated_at"]),
}  # fmt: skip


@pytest.mark.parametrize("person", [None, "tom"])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("name", SORTS)
def test_an_order_gives_the_expected_sequence(searched, name, down, person):
    scope, key = SORTS[name]
    found, total = searched.search(person, sort=[{"scope": scope, "order": "desc" if down else "asc"}])
    keyed = [(key(searched, one, person, down), one["id"]) for one in searched.records]
    present = sorted((pair for pair in keyed if pair[0] is not None), key=lambda pair: pair[0], reverse=down)
    assert found == [one for _, one in present] + [one for value, one in keyed if value is None]
    assert total == len(searched.records)


def test_several_orders_are_applied_in_sequence(searched):
    sort = [{"scope": own("status"), "order": "desc"}, {"scope": own("external_id"), "order": "desc"}]
    found, _ = searched.search(sort=sort)
    key = lambda one: (one["status"], one["external_id"])  # noqa: E731
    assert found == [one["id"] for one in sorted(searched.records, key=key, reverse=True)]


def test_pages_are_consecutive_and_a_page_after_the_last_has_the_total(searched):
    sort = [{"scope": metadata("words"), "order": "asc"}]
    everything, total = searched.search(sort=sort)
    pages = [searched.search(sort=sort, limit=40, offset=offset) for offset in (0, 40, 80, 120)]
    assert [one for page, _ in pages for one in page] == everything
    assert {count for _, count in pages} == {total}


def test_without_an_order_each_annotator_has_a_different_but_constant_one(searched):
    sue, tom = (searched.search(person)[0] for person in ("sue", "tom"))
    assert sue != tom != [one["id"] for one in searched.records]
    assert set(sue) == set(tom) == {one["id"] for one in searched.records}
    assert searched.search("sue")[0] == sue
    assert searched.search()[0] == [one["id"] for one in searched.records]
