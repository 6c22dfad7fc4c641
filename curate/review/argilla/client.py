"""A running Argilla over its HTTP API: a `ReviewServer` that pushing and pulling talk to.

The API itself and not Argilla's SDK: that one fails on an answer that somebody discarded without filling anything
in, when it reads and when it writes. Texts are escaped on their way into the chat field, which the page inserts as
HTML; the text box of a correction shows and gives back plain text, so nothing of an answer is changed.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from curate.review.argilla.http_api import Api, InvalidError, open_api
from curate.review.argilla.process import KEY_VARIABLE, meant_server
from curate.review.questions import marked_turns, numbers_turns
from schemas.digest import canonical_json
from schemas.errors import ReviewError
from schemas.review import (
    ANSWERS,
    TURNS,
    Kind,
    MetadataKind,
    Page,
    Question,
    RemoteSet,
    Sent,
    SetPlan,
    Suggestion,
    Task,
)

NEW_WORKSPACE = "curate"
FIELD = "conversation"

MESSAGES, CHARACTERS = 500, 20_000
"""What Argilla takes of a chat by default: so many messages, so many characters in each after escaping."""

BATCH, PAGE = 100, 1000
"""Records in one request: 500 may be written and 1,000 read. A request that writes keeps people's answers waiting while
it does, and 100 a time cost the server no more than 400 do: 1.7 ms of CPU each, at 25 a time 2.2."""

MOST_REFUSED = 10
"""Records of one batch that may be refused before it is taken for a failure of the whole."""

VISIBLE_OPTIONS = 20

KINDS: dict[Kind, str] = {
    "rating": "rating",
    "choice": "label_selection",
    "labels": "multi_label_selection",
    "text": "text",
}
METADATA: dict[MetadataKind, str] = {"text": "terms", "whole": "integer", "number": "float"}


@contextmanager
def connect(url: str | None, home: Path | None, workspace: str | None = None) -> Iterator[Argilla]:
    """The server at `url` with the key in `ARGILLA_API_KEY`, or else the one that runs on `home`.

    Raises `ReviewError` when it does not answer, is no Argilla, or does not let the key in.
    """
    address, key = meant_server(url, home)
    with open_api(address, key) as api:
        me = api.ask("GET", "me")
        if me.get("role") not in ("owner", "admin"):
            raise ReviewError(
                f"{address} knows the key as {me.get('username')}, who is {me.get('role')}: too little for this.",
                f"Give the key of an owner or an admin in {KEY_VARIABLE}.",
            )
        yield Argilla(api, _workspace(api, workspace), workspace or NEW_WORKSPACE, me["role"])


def _workspace(api: Api, name: str | None) -> str | None:
    """The id of the workspace: the one named, or the only one; null where there is none yet."""
    there = {one["name"]: one["id"] for one in api.ask("GET", "me/workspaces")["items"]}
    if name is None and len(there) == 1:
        return str(next(iter(there.values())))
    if name in there:
        return str(there[name])
    if not there:
        return None
    what = f"no workspace {name}" if name else f"{len(there)} workspaces"
    raise ReviewError(f"{api.url} has {what}.", f"--workspace with one of: {', '.join(sorted(there))}")


class Argilla:
    """A `ReviewServer`: one workspace of a running Argilla, made with the first set where it has none."""

    def __init__(self, api: Api, workspace: str | None, new_workspace: str, role: str) -> None:
        self._api = api
        self._workspace = workspace
        self._new_workspace = new_workspace
        self._role = role
        self._question_ids: dict[str, dict[str, str]] = {}

    @property
    def url(self) -> str:
        """Its address."""
        return self._api.url

    @property
    def batch_size(self) -> int:
        """How many tasks go into one request."""
        return BATCH

    def find_set(self, name: str) -> RemoteSet | None:
        """The set of this name, null when there is none that was published."""
        found = self._dataset(name)
        if found is None or found["status"] != "ready":
            return None
        overlap = int(found["distribution"]["min_submitted"])
        return RemoteSet(found["id"], name, self._questions(found["id"]), overlap)

    def make_set(self, name: str, plan: SetPlan) -> RemoteSet:
        """A new dataset as it is planned; one that an earlier push left half made is taken away first.

        Raises `ReviewError` for a draft of that name that no push of these questions began.
        """
        if self._workspace is None:
            self._workspace = str(self._api.ask("POST", "workspaces", {"name": self._new_workspace})["id"])
        self._take_away_unfinished(name, plan.questions)
        made = self._api.ask("POST", "datasets", self._dataset_body(name, plan))
        path = f"datasets/{made['id']}"
        settings = {"type": "chat", "use_markdown": False}
        self._api.ask("POST", f"{path}/fields", {"name": FIELD, "title": "Conversation", "required": True,
                                                 "settings": settings})  # fmt: skip
        for question in plan.questions:
            self._api.ask("POST", f"{path}/questions", _question_body(question))
        for key, kind in plan.metadata.items():
            body = {"name": key, "title": key, "settings": {"type": METADATA[kind]}}
            self._api.ask(
                "POST", f"{path}/metadata-properties", body | {"visible_for_annotators": key not in plan.hidden}
            )
        self._api.ask("PUT", f"{path}/publish")
        remote = self.find_set(name)
        assert remote is not None, "it was published just now"
        return remote

    def _take_away_unfinished(self, name: str, questions: Sequence[Question]) -> None:
        """Delete a draft whose questions are a beginning of these: a push was cut off there, and nobody saw it."""
        draft = self._dataset(name)
        if draft is None:
            return
        there = {(each.name, each.kind) for each in self._questions(draft["id"])}
        if there != {(each.name, each.kind) for each in questions[: len(there)]}:
            names = ", ".join(sorted(name for name, _ in there))
            raise ReviewError(
                f"{self.url} has a draft {name} that asks {names}: no push of this recipe began it.",
                "Delete it in the page, or push under another name.",
            )
        self._api.ask("DELETE", f"datasets/{draft['id']}")

    def _questions(self, dataset: str) -> tuple[Question, ...]:
        """What a dataset asks; the questions' ids are remembered."""
        items = self._api.ask("GET", f"datasets/{dataset}/questions")["items"]
        self._question_ids[dataset] = {question["name"]: question["id"] for question in items}
        return tuple(map(_question, items))

    def _dataset(self, name: str) -> dict[str, Any] | None:
        if self._workspace is None:
            return None
        sets = self._api.ask("GET", "me/datasets", workspace_id=self._workspace)["items"]
        return next((one for one in sets if one["name"] == name), None)

    def _dataset_body(self, name: str, plan: SetPlan) -> dict[str, Any]:
        return {
            "name": name,
            "workspace_id": self._workspace,
            "guidelines": plan.guidelines or None,
            "allow_extra_metadata": True,
            "distribution": {"strategy": "overlap", "min_submitted": plan.overlap},
        }

    def unfit(self, task: Task) -> str | None:
        """Why the chat field cannot take this task, as a sentence; null when it can."""
        if len(task.messages) > MESSAGES:
            return f"it has {len(task.messages):,} messages; Argilla takes {MESSAGES}"
        for role, text in task.messages:
            if not text:
                return f"the message of {role} is empty; Argilla wants a character at least"
            length = len(escape(text))
            if length > CHARACTERS:
                return f"the message of {role} has {length:,} characters; Argilla takes {CHARACTERS:,}"
        return None

    def send(self, remote: RemoteSet, tasks: Sequence[Task]) -> list[Sent]:
        """Write tasks as records whose external id is the conversation's; answers that are there stay.

        One bad record makes Argilla refuse the whole request: then each half is sent by itself, until it is found.
        Raises `ReviewError` where more than `MOST_REFUSED` of them are, which is no matter of single records.
        """
        refused: list[str] = []

        def attempt(some: Sequence[Task]) -> list[Sent]:
            try:
                return self._write(remote, some)
            except InvalidError as error:
                if len(some) > 1:
                    middle = len(some) // 2
                    return attempt(some[:middle]) + attempt(some[middle:])
                refused.append(error.what)
                if len(refused) > MOST_REFUSED:
                    raise
                return [Sent(None, error.what)]

        return attempt(tasks)

    def _write(self, remote: RemoteSet, tasks: Sequence[Task]) -> list[Sent]:
        ids = self._question_ids[remote.id]
        body = {"items": [_record_body(task, ids) for task in tasks]}
        made = self._api.ask("PUT", f"datasets/{remote.id}/records/bulk", body)["items"]
        records = {record["external_id"]: record for record in made}
        return [self._sent(records[task.conversation], task, ids) for task in tasks]

    def _sent(self, record: Mapping[str, Any], task: Task, questions: Mapping[str, str]) -> Sent:
        """What became of a task. Argilla adds and changes suggestions; those no longer made have to be taken away."""
        made = {questions[suggestion.question] for suggestion in task.suggestions}
        stale = [each for each in record["suggestions"] if each["question_id"] not in made]
        if stale and not record["responses"]:
            self._api.ask("DELETE", f"records/{record['id']}/suggestions", ids=",".join(each["id"] for each in stale))
            stale = []
        names = {identifier: name for name, identifier in questions.items()}
        return Sent(record["id"], left=tuple(_suggestion(each, names) for each in stale))

    def count(self, remote: RemoteSet) -> int:
        """How many records the dataset has."""
        return int(self._api.ask("GET", f"datasets/{remote.id}/records", limit=1)["total"])

    def activity(self, remote: RemoteSet) -> str:
        """When somebody last answered, as Argilla writes it."""
        return str(self._api.ask("GET", f"datasets/{remote.id}")["last_activity_at"])

    def pages(self, remote: RemoteSet) -> Iterator[Page]:
        """All records and their answers; the next page is on its way while one is read."""
        people = self._people()

        def fetch(offset: int) -> list[dict[str, Any]]:
            path = f"datasets/{remote.id}/records"
            items = self._api.ask("GET", path, include="responses", limit=PAGE, offset=offset)["items"]
            return list(items)

        with ThreadPoolExecutor(1) as ahead:
            offset, coming = 0, ahead.submit(fetch, 0)
            while items := coming.result():
                offset += PAGE
                coming = ahead.submit(fetch, offset)
                yield _page(items, people)

    def _people(self) -> dict[str, str]:
        """User id -> name. The server sends every account's key along; nothing but the names is kept."""
        path = "users" if self._role == "owner" else f"workspaces/{self._workspace}/users"
        return {user["id"]: user["username"] for user in self._api.ask("GET", path)["items"]}


def escape(text: str) -> str:
    """`text` so that the page shows it as it is, tags and `<think>` too, and executes nothing.

    >>> escape("<think>a & b</think>")
    '&lt;think&gt;a &amp; b&lt;/think&gt;'
    """
    return html.escape(text, quote=False)


def _question_body(question: Question) -> dict[str, Any]:
    """A question as Argilla takes it."""
    settings: dict[str, Any] = {"type": KINDS[question.kind]}
    if question.kind == "text":
        settings["use_markdown"] = False
    elif question.kind == "rating":
        settings["options"] = [{"value": option} for option in question.options]
    else:
        # A bare number, as in older sets, looks like the page's own short-cut beside it.
        before = "turn " if numbers_turns([question]) else ""
        settings["options"] = [{"value": str(option), "text": f"{before}{option}"} for option in question.options]
        if len(question.options) > VISIBLE_OPTIONS:
            settings["visible_options"] = VISIBLE_OPTIONS
    body = {"name": question.name, "title": question.title, "required": question.required, "settings": settings}
    return body | ({"description": question.help} if question.help else {})


def _question(given: Mapping[str, Any]) -> Question:
    """A question as Argilla gives it back."""
    settings = given["settings"]
    kind: Kind = next((kind for kind, name in KINDS.items() if name == settings["type"]), "text")
    options = tuple(option["value"] for option in settings.get("options") or ())
    return Question(given["name"], kind, given["title"], options, given["required"], given.get("description") or "")


def _record_body(task: Task, questions: Mapping[str, str]) -> dict[str, Any]:
    """A task as Argilla takes it."""
    return {
        "external_id": task.conversation,
        "fields": {FIELD: [{"role": role, "content": escape(text)} for role, text in task.messages]},
        "metadata": dict(task.metadata),
        "suggestions": [_suggestion_body(suggestion, questions) for suggestion in task.suggestions],
    }


def _suggestion_body(suggestion: Suggestion, questions: Mapping[str, str]) -> dict[str, Any]:
    value = list(suggestion.value) if isinstance(suggestion.value, tuple) else suggestion.value
    body = {"question_id": questions[suggestion.question], "value": value, "agent": suggestion.agent, "type": "model"}
    return body if suggestion.score is None else body | {"score": suggestion.score}


def _suggestion(given: Mapping[str, Any], questions: Mapping[str, str]) -> Suggestion:
    """A suggestion as Argilla gives it back; `questions` is id -> name."""
    value = tuple(given["value"]) if isinstance(given["value"], list) else given["value"]
    return Suggestion(questions[given["question_id"]], value, given["agent"] or "", given["score"])


def _page(items: Sequence[Mapping[str, Any]], people: Mapping[str, str]) -> Page:
    """A page of records; those that this project did not push have no external id, or one of their own."""
    rows = [
        _answer(record, response, people)
        for record in items  # one by one: JSON of any depth becomes rows
        for response in record.get("responses") or ()
    ]
    records = {record["id"]: record["external_id"] or "" for record in items}
    return Page(records, pl.DataFrame(rows, schema=ANSWERS))


def _answer(record: Mapping[str, Any], response: Mapping[str, Any], people: Mapping[str, str]) -> dict[str, Any]:
    marks = marked_turns([message["role"] for message in record["fields"].get(FIELD) or ()])
    values = {name: _value(name, each["value"], marks) for name, each in (response["values"] or {}).items()}
    return {
        "record": record["id"],
        "conversation": record["external_id"] or "",
        "reviewer": people.get(response["user_id"], response["user_id"]),
        "response": response["id"],
        "status": response["status"],
        "answered_at": datetime.fromisoformat(response["updated_at"]).replace(tzinfo=UTC),
        "answers": canonical_json({name: value for name, value in values.items() if value not in ("", [], None)}),
    }


def _value(name: str, value: Any, marks: Mapping[str, int]) -> Any:
    """An answer's value as this project writes it: turns are numbers; marks of answers that are not there are none."""
    if name != TURNS:
        return value
    return [marks.get(mark) or int(mark) for mark in value if mark in marks or mark.isdecimal()]
