"""Counts of the search engine, searches after changes, and Argilla's own SDK with it."""

import random
import sqlite3
import time
from contextlib import closing

import pytest
from support.search_dataset import make_dataset, meta, metadata, own, terms

# counts --------------------------------------------------------------------------------------------------------


def test_progress_counts_records_and_the_annotators_own_answers(searched):
    progress = searched.ask("GET", "progress")
    completed = sum(one["status"] == "completed" for one in searched.records)
    assert (progress["total"], progress["completed"], progress["pending"]) == (90, completed, 90 - completed)
    for person in searched.people:
        path = f"me/datasets/{searched.dataset}/metrics"
        counts = searched.server.ask("GET", path, key=searched.people[person][2])["responses"]
        statuses = [one["status"] for record in searched.records for one in searched.answers(record, person)]
        expected = {status: statuses.count(status) for status in ("submitted", "discarded", "draft")}
        assert counts == {"total": 90, **expected, "pending": 90 - len(statuses)}


def test_metadata_metrics_count_terms_and_give_the_range_of_numbers(searched):
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
    """A dataset of three records that a test can change."""
    made = make_dataset(searched.server, f"small-{random.randrange(10**9)}")
    items = [{"fields": {"note": text}, "metadata": {"words": n}} for n, text in enumerate(("one", "two", "three"))]
    searched.server.ask("POST", f"datasets/{made}/records/bulk", {"items": items})

    def find(text=None, **query):
        body = query | ({"query": {"text": {"q": text}}} if text else {})
        found = searched.server.ask("POST", f"datasets/{made}/records/search", body)
        return [item["record"]["id"] for item in found["items"]]

    yield searched.server, made, find
    searched.server.ask("DELETE", f"datasets/{made}")


def test_a_changed_record_is_found_by_its_new_content(small):
    server, _, find = small
    one, two, three = find()
    server.ask("PATCH", f"records/{one}", {"fields": {"note": "uno"}, "metadata": {"words": 9}})
    assert (find("one"), find("uno"), find("two")) == ([], [one], [two])
    assert find(filters={"and": [terms(metadata("words"), 9)]}) == [one]
    server.ask("DELETE", f"records/{two}")
    assert (find("two"), find()) == ([], [one, three])


def test_a_deleted_dataset_leaves_nothing_in_the_index(small):
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


def test_a_background_job_sets_statuses_after_a_changed_dataset(small):
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


# Argilla's SDK ----------------------------------------------------------------------------------------------------


def test_argillas_sdk_creates_fills_and_searches_a_dataset(argilla_server):
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
