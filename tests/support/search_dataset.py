"""A dataset on the labelling server with everything that can be searched, and helpers to compute expected results."""

import itertools
import random

WORDS = ("refund", "late", "parcel", "broken", "Straße", "naïve", "3.14", "don't", "日本語", "ok_go", "www.example.org")
SIDES = ("keep", "fix", "drop")
ISSUES = ("wrong", "rude", "unsafe", "format")
SOURCES = ("a.csv", "b.csv", 'c "quoted".csv')


class Searched:
    """The dataset, its records and two annotators."""

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
        """All records in the order of their insertion."""
        found = self.ask("GET", "records?include=responses,suggestions,vectors&limit=1000")
        return found["items"]

    def search(self, person=None, limit=1000, offset=0, **query):
        """The ids found and the total: by the owner over all answers, or by an annotator over their own."""
        path = f"datasets/{self.dataset}/records/search?limit={limit}&offset={offset}"
        key = self.people[person][2] if person else None
        found = self.server.ask("POST", f"{'me/' if person else ''}{path}", query, key)
        return [item["record"]["id"] for item in found["items"]], found["total"]

    def answers(self, record, person):
        return [one for one in record["responses"] if person is None or one["user_id"] == self.ids[person]]


def make_dataset(server, name):
    """The id of a new dataset with a chat, a text, four kinds of questions, three of metadata, and vectors."""
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
    """A random record; each part is missing from some records."""
    maybe = lambda value: value if draw.random() < 0.7 else None  # noqa: E731
    metadata = {
        "source": maybe(draw.choice(SOURCES)),
        "tags": maybe(draw.sample(["x", "y", "z"], draw.randint(1, 3))),
        "words": maybe(draw.randint(-3, 12)),
        "share": maybe(round(draw.random(), 3)),
    }
    suggestions = {
        "quality": (maybe(draw.randint(1, 5)), draw.choice([0.25, 0.5, 0.75, None]), draw.choice(["scorer", "model"])),
        "decision": (maybe(draw.choice(SIDES)), draw.random(), "scorer"),
        "issues": (maybe(draw.sample(ISSUES, 2)), [draw.random(), draw.random()], None),
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
        "responses": [
            answer for name in people for answer in [random_answer(draw, people[name])] if draw.random() < 0.6
        ],
    }
    if draw.random() < 0.8:
        made["vectors"] = {"meaning": [draw.uniform(-1, 1) for _ in range(4)]}
    return made


def random_answer(draw, user):
    values = {
        "quality": {"value": draw.randint(1, 5)},
        "decision": {"value": draw.choice(SIDES)},
        "issues": {"value": draw.sample(ISSUES, 2)},
        "remark": {"value": "so so"},
    }
    status = draw.choice(["submitted", "draft", "discarded"])
    kept = values if status == "submitted" else dict(itertools.islice(values.items(), draw.randint(0, 4)))
    return {"user_id": user, "status": status, "values": kept if kept or status == "draft" else None}


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


def answers_to(searched, record, question, person):
    values = [(one["values"] or {}).get(question, {}).get("value") for one in searched.answers(record, person)]
    return [part for value in values if value is not None for part in (value if isinstance(value, list) else [value])]
