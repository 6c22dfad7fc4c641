"""The search engine against a plain computation over the same records: every filter, every order, every text query."""

import doctest
import itertools
import math
import random
import sqlite3
import time
from contextlib import closing
from datetime import datetime, timedelta

import pytest
from labelling_server import RefusedError

from curate.argilla.server import text_query

WORDS = ("refund", "late", "parcel", "broken", "Straße", "naïve", "3.14", "don't", "日本語", "ok_go", "www.example.org")
SIDES = ("keep", "fix", "drop")
ISSUES = ("wrong", "rude", "unsafe", "format")
SOURCES = ("a.csv", "b.csv", 'c "quoted".csv')


@pytest.fixture(scope="module")
def searched(argilla_server):
    """A published dataset of 90 records with everything that can be searched, and two annotators' answers."""
    return Searched(argilla_server)


class Searched:
    def __init__(self, server):
        self.server = server
        self.people = {name: server.annotator(name) for name in ("sue", "tom")}
        self.ids = {name: server.ask("GET", "me", key=self.people[name][2])["id"] for name in self.people}
        self.dataset = make_dataset(server, "searched")
        self.questions = {one["name"]: one["id"] for one in self.ask("GET", "questions")["items"]}
        self.add_records()
        self.records = self.all_records()

    def add_records(self):
        draw = random.Random(7)
        items = [record(draw, number, self.questions, self.ids) for number in range(90)]
        for start in range(0, 90, 30):
            self.ask("POST", "records/bulk", {"items": items[start : start + 30]})

    def ask(self, method, path, body=None, key=None):
        return self.server.ask(method, f"datasets/{self.dataset}/{path}", body, key)

    def all_records(self):
        """Every record as the plain listing gives it, in the order in which they came in."""
        found = self.ask("GET", "records?include=responses,suggestions,vectors&limit=1000")
        return found["items"]

    def search(self, person=None, limit=1000, offset=0, **query):
        """The ids found, and the total; by the owner over everybody's answers, or by a person over their own."""
        path = f"datasets/{self.dataset}/records/search?limit={limit}&offset={offset}"
        key = self.people[person][2] if person else None
        found = self.server.ask("POST", f"{'me/' if person else ''}{path}", query, key)
        return [item["record"]["id"] for item in found["items"]], found["total"]

    def answers(self, record, person):
        return [one for one in record["responses"] if person is None or one["user_id"] == self.ids[person]]


def make_dataset(server, name):
    """The id of a published dataset with a chat, a text, four kinds of questions, three of metadata and vectors."""
    made = server.ask("POST", "datasets", {"name": name, "workspace_id": server.workspace})["id"]
    path = f"datasets/{made}"
    for field, kind in (("chat", "chat"), ("note", "text")):
        settings = {"type": kind, "use_markdown": False}
        server.ask("POST", f"{path}/fields", {"name": field, "title": field, "required": False, "settings": settings})
    for question, settings in {
        "quality": {"type": "rating", "options": [{"value": n} for n in range(1, 6)]},
        "decision": {"type": "label_selection", "options": [{"value": v, "text": v} for v in SIDES]},
        "issues": {"type": "multi_label_selection", "options": [{"value": v, "text": v} for v in ISSUES]},
        "remark": {"type": "text", "use_markdown": False},
    }.items():
        required = question == "quality"
        body = {"name": question, "title": question, "required": required, "settings": settings}
        server.ask("POST", f"{path}/questions", body)
    for field, kind in (("source", "terms"), ("tags", "terms"), ("words", "integer"), ("share", "float")):
        body = {"name": field, "title": field, "settings": {"type": kind}, "visible_for_annotators": True}
        server.ask("POST", f"{path}/metadata-properties", body)
    server.ask("POST", f"{path}/vectors-settings", {"name": "meaning", "title": "meaning", "dimensions": 4})
    server.ask("PUT", f"{path}/publish")
    return made


def record(draw, number, questions, people):
    """A record with some of everything: each part is missing from some of them."""
    some = lambda value: value if draw.random() < 0.7 else None  # noqa: E731
    metadata = {
        "source": some(draw.choice(SOURCES)),
        "tags": some(draw.sample(["x", "y", "z"], draw.randint(1, 3))),
        "words": some(draw.randint(-3, 12)),
        "share": some(round(draw.random(), 3)),
    }
    suggestions = {
        "quality": (some(draw.randint(1, 5)), draw.choice([0.25, 0.5, 0.75, None]), draw.choice(["scorer", "model"])),
        "decision": (some(draw.choice(SIDES)), draw.random(), "scorer"),
        "issues": (some(draw.sample(ISSUES, 2)), [draw.random(), draw.random()], None),
    }
    text = " ".join(draw.choices(WORDS, k=4))
    made = {
        "external_id": f"e{number:03}",
        "fields": {
            "chat": [{"role": "user", "content": text}, {"role": "assistant", "content": draw.choice(WORDS)}],
            "note": draw.choice([None, draw.choice(WORDS)]),
        },
        "metadata": {name: value for name, value in metadata.items() if value is not None},
        "suggestions": [
            {"question_id": questions[name], "value": value, "score": score, "agent": agent}
            for name, (value, score, agent) in suggestions.items()
            if value is not None
        ],
        "responses": [answer for name in people for answer in [given(draw, people[name])] if draw.random() < 0.6],
    }
    if draw.random() < 0.8:
        made["vectors"] = {"meaning": [draw.uniform(-1, 1) for _ in range(4)]}
    return made


def given(draw, user):
    values = {
        "quality": {"value": draw.randint(1, 5)},
        "decision": {"value": draw.choice(SIDES)},
        "issues": {"value": draw.sample(ISSUES, 2)},
        "remark": {"value": "so so"},
    }
    status = draw.choice(["submitted", "draft", "discarded"])
    kept = values if status == "submitted" else dict(itertools.islice(values.items(), draw.randint(0, 4)))
    return {"user_id": user, "status": status, "values": kept if kept or status == "draft" else None}


# filters -------------------------------------------------------------------------------------------------------


def terms(scope, *values):
    return {"type": "terms", "scope": scope, "values": list(values)}


def between(scope, **bounds):
    return {"type": "range", "scope": scope, **bounds}


def metadata(name):
    return {"entity": "metadata", "metadata_property": name}


def suggestion(question, name="value"):
    return {"entity": "suggestion", "question": question, "property": name}


def answered(question):
    return {"entity": "response", "question": question}


STATUS = {"entity": "response", "property": "status"}


def own(name):
    return {"entity": "record", "property": name}


def meta(record, name):
    value = (record["metadata"] or {}).get(name)
    return value if isinstance(value, list) else [] if value is None else [value]


def suggested(searched, record, question, name="value"):
    values = [one[name] for one in record["suggestions"] if one["question_id"] == searched.questions[question]]
    return [part for value in values if value is not None for part in (value if isinstance(value, list) else [value])]


def said(searched, record, question, person):
    values = [(one["values"] or {}).get(question, {}).get("value") for one in searched.answers(record, person)]
    return [part for value in values if value is not None for part in (value if isinstance(value, list) else [value])]


FILTERS = {
    "metadata terms, one value": (
        terms(metadata("source"), "a.csv"), lambda s, r, p: "a.csv" in meta(r, "source")),
    "metadata terms, a quoted value or another": (
        terms(metadata("source"), 'c "quoted".csv', "b.csv"), lambda s, r, p: {*meta(r, "source")} & {*SOURCES[1:]}),
    "metadata terms, many values in a record": (
        terms(metadata("tags"), "x", "z"), lambda s, r, p: {"x", "z"} & {*meta(r, "tags")}),
    "metadata terms that nobody has": (
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
    "a number that is none": (
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
        terms(answered("quality"), "1", "5"), lambda s, r, p: {1, 5} & {*said(s, r, "quality", p)}),
    "answered rating between": (
        between(answered("quality"), ge=2, le=4), lambda s, r, p: {2, 3, 4} & {*said(s, r, "quality", p)}),
    "answered label": (
        terms(answered("decision"), "keep"), lambda s, r, p: "keep" in said(s, r, "decision", p)),
    "answered labels, any of": (
        terms(answered("issues"), "unsafe"), lambda s, r, p: "unsafe" in said(s, r, "issues", p)),
    "an answered text is not searched": (
        terms(answered("remark"), "so so"), lambda s, r, p: False),
    **{
        f"answers {' or '.join(wanted)}": (
            terms(STATUS, *wanted),
            lambda s, r, p, wanted=wanted: (
                ("pending" in wanted and not s.answers(r, p))
                or any(one["status"] in wanted for one in s.answers(r, p))))
        for wanted in [("pending",), ("draft",), ("submitted",), ("pending", "draft"), ("submitted", "discarded")]
    },
    "record's status": (
        terms(own("status"), "completed"), lambda s, r, p: r["status"] == "completed"),
    "record's external id": (
        terms(own("external_id"), "e007", "e011"), lambda s, r, p: r["external_id"] in {"e007", "e011"}),
}  # fmt: skip


@pytest.mark.parametrize("person", [None, "sue"])
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_finds_what_a_plain_computation_finds(searched, name, person):
    wanted, takes = FILTERS[name]
    found, total = searched.search(person, filters={"and": [wanted]})
    expected = {one["id"] for one in searched.records if takes(searched, one, person)}
    assert set(found) == expected
    assert (len(found), total) == (len(expected), len(expected))


def test_the_filters_on_this_list_take_some_and_leave_some_unless_they_cannot(searched):
    counts = {
        name: sum(bool(takes(searched, one, "sue")) for one in searched.records) for name, (_, takes) in FILTERS.items()
    }
    assert [name for name, count in counts.items() if count == 0] == [
        "metadata terms that nobody has", "a number that is none", "an answered text is not searched",
    ]  # fmt: skip
    assert all(count < len(searched.records) for count in counts.values())


def test_filters_are_joined_by_and(searched):
    names = ["float metadata between", "answers submitted", "suggested rating between"]
    found, _ = searched.search(filters={"and": [FILTERS[name][0] for name in names]})
    expected = [one["id"] for one in searched.records if all(FILTERS[name][1](searched, one, None) for name in names)]
    assert sorted(found) == sorted(expected)
    assert 0 < len(expected) < len(searched.records)


def test_a_record_is_found_by_its_id_and_by_when_it_came_in(searched):
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


def test_a_filter_over_a_question_that_is_not_there_is_refused(searched):
    with pytest.raises(RefusedError, match="422"):
        searched.search(filters={"and": [terms(answered("nothing"), "1")]})


# orders --------------------------------------------------------------------------------------------------------


def least(values, down):
    return (max if down else min)(values, default=None)


def mean(values, _down):
    return sum(values) / len(values) if values else None


SORTS = {
    "metadata terms": (metadata("source"), lambda s, r, p, d: least(meta(r, "source"), d)),
    "many metadata terms": (metadata("tags"), lambda s, r, p, d: least(meta(r, "tags"), d)),
    "integer metadata": (metadata("words"), lambda s, r, p, d: least(meta(r, "words"), d)),
    "float metadata": (metadata("share"), lambda s, r, p, d: least(meta(r, "share"), d)),
    "suggested rating": (suggestion("quality"), lambda s, r, p, d: least(suggested(s, r, "quality"), d)),
    "suggested label": (suggestion("decision"), lambda s, r, p, d: least(suggested(s, r, "decision"), d)),
    "suggested labels": (suggestion("issues"), lambda s, r, p, d: least(suggested(s, r, "issues"), d)),
    "suggestion's score": (
        suggestion("quality", "score"), lambda s, r, p, d: least(suggested(s, r, "quality", "score"), d)),
    "suggestion's scores": (
        suggestion("issues", "score"), lambda s, r, p, d: least(suggested(s, r, "issues", "score"), d)),
    "suggestion's agent": (
        suggestion("quality", "agent"), lambda s, r, p, d: least(suggested(s, r, "quality", "agent"), d)),
    "answered rating": (answered("quality"), lambda s, r, p, d: mean(said(s, r, "quality", p), d)),
    "answered label": (answered("decision"), lambda s, r, p, d: least(said(s, r, "decision", p), d)),
    "answer's status": (STATUS, lambda s, r, p, d: least([one["status"] for one in s.answers(r, p)], d)),
    "record's status": (own("status"), lambda s, r, p, d: r["status"]),
    "external id": (own("external_id"), lambda s, r, p, d: r["external_id"]),
    "id": (own("id"), lambda s, r, p, d: r["id"]),
    "inserted": (own("inserted_at"), lambda s, r, p, d: r["inserted_at"]),
    "updated": (own("updated_at"), lambda s, r, p, d: r["updated_at"]),
}  # fmt: skip


@pytest.mark.parametrize("person", [None, "tom"])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("name", SORTS)
def test_an_order_is_that_of_a_plain_computation(searched, name, down, person):
    scope, key = SORTS[name]
    found, total = searched.search(person, sort=[{"scope": scope, "order": "desc" if down else "asc"}])
    keyed = [(key(searched, one, person, down), one["id"]) for one in searched.records]
    having = sorted((pair for pair in keyed if pair[0] is not None), key=lambda pair: pair[0], reverse=down)
    assert found == [one for _, one in having] + [one for value, one in keyed if value is None]
    assert total == len(searched.records)


def test_several_orders_count_one_after_the_other(searched):
    sort = [{"scope": own("status"), "order": "desc"}, {"scope": own("external_id"), "order": "desc"}]
    found, _ = searched.search(sort=sort)
    key = lambda one: (one["status"], one["external_id"])  # noqa: E731
    assert found == [one["id"] for one in sorted(searched.records, key=key, reverse=True)]


def test_pages_follow_each_other_and_a_page_behind_the_last_knows_the_total(searched):
    sort = [{"scope": metadata("words"), "order": "asc"}]
    whole, total = searched.search(sort=sort)
    pages = [searched.search(sort=sort, limit=40, offset=offset) for offset in (0, 40, 80, 120)]
    assert [one for page, _ in pages for one in page] == whole
    assert {count for _, count in pages} == {total}


def test_people_who_ask_for_no_order_get_their_own_and_the_same_each_time(searched):
    sue, tom = (searched.search(person)[0] for person in ("sue", "tom"))
    assert sue != tom != [one["id"] for one in searched.records]
    assert set(sue) == set(tom) == {one["id"] for one in searched.records}
    assert searched.search("sue")[0] == sue
    assert searched.search()[0] == [one["id"] for one in searched.records]


# texts ---------------------------------------------------------------------------------------------------------


def has(*words):
    """Whether a field of the record has the words next to each other."""
    return lambda r, fields=("chat", "note"): any(beside(words, text_query.words_of(text)) for text in texts(r, fields))


def texts(record, fields):
    for name in fields:
        value = record["fields"].get(name)
        yield "\n".join(one["content"] for one in value) if isinstance(value, list) else value or ""


def beside(words, text):
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
        near(text_query.words_of(text), "refund", "broken", 1) for text in texts(r, ("chat", "note"))),
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


def near(words, one, other, most):
    places = [[at for at, word in enumerate(words) if word == wanted] for wanted in (one, other)]
    return any(abs(left - right) - 1 <= most for left in places[0] for right in places[1])


@pytest.mark.parametrize("query", TEXTS)
def test_a_text_query_finds_what_a_plain_computation_finds(searched, query):
    found, total = searched.search(query={"text": {"q": query}})
    expected = {one["id"] for one in searched.records if TEXTS[query](one)}
    assert (set(found), total) == (expected, len(expected))


def test_texts_on_this_list_find_something_unless_they_cannot(searched):
    empty = [query for query, takes in TEXTS.items() if not any(takes(one) for one in searched.records)]
    assert empty == ["ref", "refumx~1", "naive", "'; DROP TABLE records; --", 'fields : "refund" OR NEAR(', "", "- | +"]


def test_a_text_is_searched_in_one_field_only_when_that_is_asked(searched):
    found, _ = searched.search(query={"text": {"q": "refund", "field": "note"}})
    expected = {one["id"] for one in searched.records if has("refund")(one, ("note",))}
    assert set(found) == expected
    assert 0 < len(expected) < len(searched.search(query={"text": {"q": "refund"}})[0])


def test_the_more_of_a_word_the_earlier(searched):
    found, _ = searched.search(query={"text": {"q": "refund"}})
    records = {one["id"]: one for one in searched.records}
    counts = [" ".join(texts(records[one], ("chat", "note"))).count("refund") for one in found]
    assert counts[0] == max(counts) > counts[-1]


def test_texts_filters_and_orders_go_together(searched):
    query = {"text": {"q": "late"}}
    sort = [{"scope": metadata("share"), "order": "desc"}]
    found, _ = searched.search(query=query, filters={"and": [between(metadata("share"), ge=0.1)]}, sort=sort)
    kept = [one for one in searched.records if has("late")(one) and any(v >= 0.1 for v in meta(one, "share"))]
    assert found == [one["id"] for one in sorted(kept, key=lambda one: -one["metadata"]["share"])]


def test_the_examples_in_the_parser_are_true():
    assert doctest.testmod(text_query).failed == 0


# vectors -------------------------------------------------------------------------------------------------------


def cosine(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True)) / (math.hypot(*left) * math.hypot(*right))


@pytest.mark.parametrize("order", ["most_similar", "least_similar"])
def test_similar_records_come_by_cosine(searched, order):
    value = [0.3, -0.2, 0.9, 0.1]
    found, total = searched.search(query={"vector": {"name": "meaning", "value": value, "order": order}})
    having = [one for one in searched.records if one.get("vectors")]
    ordered = sorted(having, key=lambda one: cosine(one["vectors"]["meaning"], value), reverse=order == "most_similar")
    assert found == [one["id"] for one in ordered]
    assert 0 < total == len(having) < len(searched.records)


def test_what_is_similar_to_a_record_leaves_it_out_and_obeys_filters(searched):
    one = next(one for one in searched.records if one.get("vectors"))
    vector = {"name": "meaning", "record_id": one["id"]}
    found, _ = searched.search(query={"vector": vector}, filters={"and": [between(metadata("words"), ge=3)]}, limit=5)
    others = [
        r for r in searched.records if r.get("vectors") and r is not one and any(v >= 3 for v in meta(r, "words"))
    ]
    ordered = sorted(others, key=lambda r: -cosine(r["vectors"]["meaning"], one["vectors"]["meaning"]))
    assert found == [r["id"] for r in ordered[:5]]


# counts --------------------------------------------------------------------------------------------------------


def test_progress_counts_records_and_a_persons_own_answers(searched):
    progress = searched.ask("GET", "progress")
    completed = sum(one["status"] == "completed" for one in searched.records)
    assert (progress["total"], progress["completed"], progress["pending"]) == (90, completed, 90 - completed)
    for person in searched.people:
        path = f"me/datasets/{searched.dataset}/metrics"
        counted = searched.server.ask("GET", path, key=searched.people[person][2])["responses"]
        statuses = [one["status"] for record in searched.records for one in searched.answers(record, person)]
        expected = {status: statuses.count(status) for status in ("submitted", "discarded", "draft")}
        assert counted == {"total": 90, **expected, "pending": 90 - len(statuses)}


def test_metadata_metrics_count_terms_and_bound_numbers(searched):
    properties = {one["name"]: one["id"] for one in searched.server.ask(
        "GET", f"me/datasets/{searched.dataset}/metadata-properties")["items"]}  # fmt: skip
    metrics = {
        name: searched.server.ask("GET", f"metadata-properties/{one}/metrics") for name, one in properties.items()
    }
    tags = [tag for one in searched.records for tag in meta(one, "tags")]
    assert metrics["tags"]["total"] == len(tags)
    assert {one["term"]: one["count"] for one in metrics["tags"]["values"]} == {tag: tags.count(tag) for tag in tags}
    words = [value for one in searched.records for value in meta(one, "words")]
    assert (metrics["words"]["min"], metrics["words"]["max"]) == (min(words), max(words))
    shares = [value for one in searched.records for value in meta(one, "share")]
    assert (metrics["share"]["min"], metrics["share"]["max"]) == (min(shares), max(shares))


# changes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(searched):
    """A dataset of three records that a test may change."""
    made = make_dataset(searched.server, f"small-{random.randrange(10**9)}")
    items = [{"fields": {"note": text}, "metadata": {"words": n}} for n, text in enumerate(("one", "two", "three"))]
    searched.server.ask("POST", f"datasets/{made}/records/bulk", {"items": items})

    def find(text=None, **query):
        body = query | ({"query": {"text": {"q": text}}} if text else {})
        found = searched.server.ask("POST", f"datasets/{made}/records/search", body)
        return [item["record"]["id"] for item in found["items"]]

    yield searched.server, made, find
    searched.server.ask("DELETE", f"datasets/{made}")


def test_what_changes_is_found_as_it_is_now(small):
    server, _, find = small
    one, two, three = find()
    server.ask("PATCH", f"records/{one}", {"fields": {"note": "uno"}, "metadata": {"words": 9}})
    assert (find("one"), find("uno"), find("two")) == ([], [one], [two])
    assert find(filters={"and": [terms(metadata("words"), 9)]}) == [one]
    server.ask("DELETE", f"records/{two}")
    assert (find("two"), find()) == ([], [one, three])


def test_a_removed_dataset_leaves_nothing_to_be_found(small):
    server, _, find = small
    assert len(find("three")) == 1
    again = make_dataset(server, f"gone-{random.randrange(10**9)}")
    server.ask("POST", f"datasets/{again}/records/bulk", {"items": [{"fields": {"note": "vanishing"}}]})
    server.ask("DELETE", f"datasets/{again}")
    with closing(sqlite3.connect(server.home / "argilla.db")) as connection:
        documents = "SELECT count(*) FROM curate_documents WHERE dataset = ?"
        left = connection.execute(documents, [again.replace("-", "")]).fetchone()
        words = connection.execute("SELECT count(*) FROM curate_words WHERE curate_words MATCH 'vanishing'").fetchone()
    assert (left, words) == ((0,), (0,))


def test_a_changed_dataset_has_its_records_statuses_set_by_a_job_in_the_background(small):
    server, made, find = small
    [one, *_] = find()
    done = {"and": [terms(own("status"), "completed")]}
    server.ask("POST", f"records/{one}/responses", {"values": {"quality": {"value": 4}}, "status": "submitted"})
    assert find(filters=done) == [one]
    with closing(sqlite3.connect(server.home / "argilla.db", isolation_level=None)) as connection:
        connection.execute("UPDATE records SET status = 'pending' WHERE id = ?", [one.replace("-", "")])
    assert find(filters=done) == []
    server.ask("PATCH", f"datasets/{made}", {"guidelines": "Be kind."})
    end = time.monotonic() + 20
    while find(filters=done) != [one]:
        assert time.monotonic() < end, "the job did not run"
        time.sleep(0.1)


# Argilla's own Python package ------------------------------------------------------------------------------------


def test_argillas_own_package_makes_fills_and_searches_a_dataset(argilla_server):
    import argilla as rg

    client = rg.Argilla(api_url=argilla_server.url, api_key=argilla_server.api_key)
    settings = rg.Settings(
        fields=[rg.ChatField(name="chat", use_markdown=False)],
        questions=[rg.RatingQuestion(name="quality", values=[1, 2, 3, 4, 5])],
        metadata=[rg.FloatMetadataProperty(name="score")],
        vectors=[rg.VectorField(name="meaning", dimensions=2)],
    )
    dataset = rg.Dataset(name="by-package", workspace="curate", settings=settings, client=client).create()
    dataset.records.log(
        [
            rg.Record(
                id=f"id-{n}",
                fields={"chat": [{"role": "user", "content": f"number {n} of {word}"}]},
                metadata={"score": n / 10},
                vectors={"meaning": [1.0, n / 10]},
                suggestions=[rg.Suggestion("quality", n % 5 + 1, score=n / 10, agent="scorer")],
            )
            for n, word in enumerate(["refunds", "parcels"] * 5)
        ]
    )
    ids = lambda query, **more: [record.id for record in dataset.records(query, **more)]  # noqa: E731
    assert sorted(ids(rg.Query(query="parcels -9"))) == ["id-1", "id-3", "id-5", "id-7"]
    above = rg.Filter([("metadata.score", ">=", 0.6), ("quality.suggestion", "in", [2, 3])])
    assert sorted(ids(rg.Query(filter=above))) == ["id-6", "id-7"]
    assert ids(rg.Query(filter=rg.Filter(("quality.score", "<=", 0.1)))) == ["id-0", "id-1"]
    near = dataset.records(rg.Query(similar=rg.Similar(name="meaning", value=[1.0, 0.0])), limit=3)
    assert [record.id for record, _ in near] == ["id-0", "id-1", "id-2"]
    assert dataset.progress()["total"] == 10
    dataset.delete()
