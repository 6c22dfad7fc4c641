"""Review sets → datasets of a running Argilla, through its HTTP API; their records and responses → answers frames.

Argilla's SDK is not used: it fails to read and to write a response that was discarded without values. The page inserts
the text of the chat field as HTML and guidelines as Markdown with HTML, so both are escaped. The text box of a
correction holds plain text, which is unchanged.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from curate.review.argilla.http_api import Api, InvalidError, open_api
from curate.review.argilla.process import KEY_VARIABLE, resolve_server
from curate.review.labels import compare_options, has_labels, option_texts
from curate.review.question_kinds import KINDS
from curate.review.questions import map_marks
from schemas.digest import canonical_json
from schemas.errors import ReviewError
from schemas.review import (
    ANSWER_SCHEMA,
    TURNS,
    KindName,
    Page,
    Question,
    RemoteSet,
    SendResult,
    SetPlan,
    Suggestion,
    Task,
)
from schemas.store import reading

NEW_WORKSPACE = "curate"
FIELD, EARLIER = "conversation", "earlier_answers"
ANSWERED_BY = "answered_by"
"""Metadata that annotators do not see: who answered in other sets. `curate review serve` hides the record from them."""

MAX_MESSAGES, MAX_CHARACTERS = 500, 20_000
"""Argilla's default limits of a chat field: messages, and characters per message after escaping."""

BATCH, PAGE = 100, 1000
"""Records per request; Argilla accepts 500 for writing and 1,000 for reading. Annotators' responses wait while records
are written. The server's CPU time per record is 1.7 ms with 100 records, as with 400; with 25 it is 2.2 ms."""

MAX_REQUEST = 4_000_000
"""Characters of conversations per request: at most 20 MB after escaping, where the server permits 64 MiB."""

MAX_REJECTED = 10
"""Records of one batch that may be rejected before the whole batch counts as failed."""


@contextmanager
def connect(url: str | None, home: Path | None, workspace: str | None = None) -> Iterator[Argilla]:
    """The server at `url` with the key in `ARGILLA_API_KEY`, or without `url` the one running in `home`.

    Raises `ReviewError` if it does not answer, is not Argilla, or does not accept the key.
    """
    address, key = resolve_server(url, home)
    with open_api(address, key) as api:
        me = api.request("GET", "me")
        if me.get("role") not in ("owner", "admin"):
            raise ReviewError(
                f"The key belongs to {me.get('username')} with the role {me.get('role')}, which is not sufficient.",
                f"Set {KEY_VARIABLE} to the key of an owner or admin of {address}.",
            )
        yield Argilla(api, _find_workspace(api, workspace), workspace or NEW_WORKSPACE, me["role"])


@contextmanager
def connect_if_used(
    store: Path, url: str | None, home: Path | None, workspace: str | None = None
) -> Iterator[Argilla | None]:
    """As `connect`; None if no server is named and no set of the store is on one."""
    with reading(store) as connection:
        used = connection.execute("SELECT 1 FROM review_sets WHERE server IS NOT NULL LIMIT 1").fetchone()
    if used or url or home:
        with connect(url, home, workspace) as server:
            yield server
    else:
        yield None


def _find_workspace(api: Api, name: str | None) -> str | None:
    """The id of the workspace `name`, or without a name of the only one; None if there is none."""
    ids = {each["name"]: str(each["id"]) for each in api.request("GET", "me/workspaces")["items"]}
    if name is None and len(ids) == 1:
        return next(iter(ids.values()))
    if name in ids:
        return ids[name]
    if not ids:
        return None
    problem = f"no workspace {name}" if name else f"{len(ids)} workspaces"
    raise ReviewError(f"{api.url} has {problem}.", f"Use --workspace with one of: {', '.join(sorted(ids))}")


class Argilla:
    """A `ReviewServer`: one workspace of a running Argilla, created with the first set if there is none."""

    def __init__(self, api: Api, workspace: str | None, new_workspace: str, role: str) -> None:
        self._api = api
        self._workspace = workspace
        self._new_workspace = new_workspace
        self._role = role
        self._question_ids: dict[str, dict[str, str]] = {}
        self._with_earlier: set[str] = set()
        self._options: dict[str, dict[str, dict[str, str]]] = {}

    @property
    def url(self) -> str:
        """The server's address."""
        return self._api.url

    @property
    def batch_size(self) -> int:
        """The number of tasks per request."""
        return BATCH

    def find_set(self, name: str) -> RemoteSet | None:
        """The published dataset with this name, or None."""
        dataset = self._find_dataset(name)
        if dataset is None or dataset["status"] != "ready":
            return None
        overlap = int(dataset["distribution"]["min_submitted"])
        return RemoteSet(dataset["id"], name, self._read_questions(dataset["id"]), overlap)

    def create_set(self, name: str, plan: SetPlan) -> RemoteSet:
        """Create and publish a dataset; a draft left by an interrupted push is deleted first.

        Raises `ReviewError` if there is a draft of that name with other questions.
        """
        if self._workspace is None:
            self._workspace = str(self._api.request("POST", "workspaces", {"name": self._new_workspace})["id"])
        self._delete_draft(name, plan.questions)
        body = {
            "name": name,
            "workspace_id": self._workspace,
            "guidelines": plan.guidelines.replace("<", "&lt;") or None,
            "allow_extra_metadata": True,
            "distribution": {"strategy": "overlap", "min_submitted": plan.overlap},
        }
        path = f"datasets/{self._api.request('POST', 'datasets', body)['id']}"
        settings = {"type": "chat", "use_markdown": False}
        field = {"name": FIELD, "title": "Conversation", "required": True, "settings": settings}
        self._api.request("POST", f"{path}/fields", field)
        settings = {"type": "text", "use_markdown": False}
        field = {"name": EARLIER, "title": "Earlier answers", "required": False, "settings": settings}
        self._api.request("POST", f"{path}/fields", field)
        for question in plan.questions:
            self._api.request("POST", f"{path}/questions", _question_body(question))
        for key, kind in plan.metadata.items():
            settings = {"type": "terms" if kind == "text" else kind}
            visible = {"visible_for_annotators": key not in plan.hidden}
            metadata = {"name": key, "title": key, "settings": settings} | visible
            self._api.request("POST", f"{path}/metadata-properties", metadata)
        self._api.request("PUT", f"{path}/publish")
        remote = self.find_set(name)
        assert remote is not None, "it was just published"
        return remote

    def _delete_draft(self, name: str, questions: Sequence[Question]) -> None:
        """Delete the draft of an interrupted push: its questions are the first of these."""
        draft = self._find_dataset(name)
        if draft is None:
            return
        existing = {(each.name, each.kind) for each in self._read_questions(draft["id"])}
        if existing != {(each.name, each.kind) for each in questions[: len(existing)]}:
            names = ", ".join(sorted(name for name, _ in existing))
            raise ReviewError(
                f"{self.url} has a draft {name} with the questions {names}, which no push of this recipe created.",
                "Delete it on the page, or push under another name.",
            )
        self._api.request("DELETE", f"datasets/{draft['id']}")

    def _read_questions(self, dataset: str) -> tuple[Question, ...]:
        """The questions of a dataset; their ids are kept for sending."""
        items = self._api.request("GET", f"datasets/{dataset}/questions")["items"]
        self._question_ids[dataset] = {question["name"]: question["id"] for question in items}
        self._options[dataset] = {
            each["name"]: {option["value"]: option["text"] for option in each["settings"]["options"]}
            for each in items
            if each["settings"]["type"] in ("label_selection", "multi_label_selection")
        }
        fields = self._api.request("GET", f"datasets/{dataset}/fields")["items"]
        if any(field["name"] == EARLIER for field in fields):  # sets of earlier releases do not have it
            self._with_earlier.add(dataset)
        return tuple(map(_parse_question, items))

    def _find_dataset(self, name: str) -> dict[str, Any] | None:
        if self._workspace is None:
            return None
        datasets = self._api.request("GET", "me/datasets", workspace_id=self._workspace)["items"]
        return next((dataset for dataset in datasets if dataset["name"] == name), None)

    def rejection_reason(self, task: Task) -> str | None:
        """The reason why the chat field cannot hold this task, or None."""
        if len(task.messages) > MAX_MESSAGES:
            return f"it has {len(task.messages):,} messages, but Argilla accepts {MAX_MESSAGES}"
        for role, text in task.messages:
            if not text:
                return f"the message of {role} is empty, but Argilla requires text"
            length = len(escape(text))
            if length > MAX_CHARACTERS:
                return f"the message of {role} has {length:,} characters, but Argilla accepts {MAX_CHARACTERS:,}"
        return None

    def send(self, remote: RemoteSet, tasks: Sequence[Task]) -> list[SendResult]:
        """Write tasks as records with the conversation as external id; existing responses stay.

        Argilla rejects a whole request for one invalid record, so it is sent again in halves until the record is found.
        Raises `ReviewError` if more than `MAX_REJECTED` are invalid, since the cause is then not in single records.
        """
        rejected: list[str] = []

        def halve(some: Sequence[Task]) -> list[SendResult]:
            middle = len(some) // 2
            return attempt(some[:middle]) + attempt(some[middle:])

        def attempt(some: Sequence[Task]) -> list[SendResult]:
            if len(some) > 1 and sum(len(text) for task in some for _, text in task.messages) > MAX_REQUEST:
                return halve(some)
            try:
                return self._write(remote, some)
            except InvalidError as error:
                if len(some) > 1:
                    return halve(some)
                rejected.append(error.what)
                if len(rejected) > MAX_REJECTED:
                    raise
                return [SendResult(None, error.what)]

        return attempt(tasks)

    def _write(self, remote: RemoteSet, tasks: Sequence[Task]) -> list[SendResult]:
        ids = self._question_ids[remote.id]
        with_earlier = remote.id in self._with_earlier
        body = {"items": [_record_body(task, ids, with_earlier=with_earlier) for task in tasks]}
        items = self._api.request("PUT", f"datasets/{remote.id}/records/bulk", body)["items"]
        records = {record["external_id"]: record for record in items}
        return [self._remove_stale(records[task.conversation], task, ids) for task in tasks]

    def _remove_stale(self, record: Mapping[str, Any], task: Task, questions: Mapping[str, str]) -> SendResult:
        """Delete a record's suggestions that are no longer made, which Argilla keeps, unless it has responses."""
        current = {questions[suggestion.question] for suggestion in task.suggestions}
        stale = [each for each in record["suggestions"] if each["question_id"] not in current]
        if stale and not record["responses"]:
            ids = ",".join(each["id"] for each in stale)
            self._api.request("DELETE", f"records/{record['id']}/suggestions", ids=ids)
            stale = []
        names = {identifier: name for name, identifier in questions.items()}
        return SendResult(record["id"], stale_suggestions=tuple(_parse_suggestion(each, names) for each in stale))

    def count(self, remote: RemoteSet) -> int:
        """The number of records in the dataset."""
        return int(self._api.request("GET", f"datasets/{remote.id}/records", limit=1)["total"])

    def activity(self, remote: RemoteSet) -> str:
        """The time of the latest response, as Argilla writes it."""
        return str(self._api.request("GET", f"datasets/{remote.id}")["last_activity_at"])

    def pages(self, remote: RemoteSet) -> Iterator[Page]:
        """All records and their responses; the next page is requested while one is processed."""
        users = self._read_users()

        def fetch(offset: int) -> list[dict[str, Any]]:
            path = f"datasets/{remote.id}/records"
            items = self._api.request("GET", path, include="responses", limit=PAGE, offset=offset)["items"]
            return list(items)

        with ThreadPoolExecutor(1) as executor:
            offset, future = 0, executor.submit(fetch, 0)
            while items := future.result():
                offset += PAGE
                future = executor.submit(fetch, offset)
                yield _parse_page(items, users)

    def accounts(self) -> frozenset[str]:
        """The names of the accounts that can answer: all of them, for an admin those of the workspace."""
        return frozenset(self._read_users().values())

    def change_options(
        self, remote: RemoteSet, questions: Sequence[Question], renamed: Mapping[str, str], *, dry_run: bool
    ) -> list[dict[str, Any]]:
        """Offer these options, with their texts; the changes. Argilla itself only permits other texts."""
        changes = []
        for question in filter(has_labels, questions):
            texts = option_texts(question, renamed)
            change = compare_options(question.name, self._options[remote.id].get(question.name, {}), texts)
            if change is None:
                continue
            changes.append(asdict(change))
            if (change.added or change.retired) and not self._api.is_curate:
                raise ReviewError(
                    f"{self.url} cannot add or retire the labels {', '.join(change.added + change.retired)} of"
                    f" {remote.name}: Argilla only renames labels of a running set.",
                    "Use curate review serve, push under another name, or revert [review].",
                )
            if not dry_run:
                settings = {"type": KINDS[question.kind].argilla_type} | KINDS[question.kind].argilla_settings(question)
                settings["options"] = [{"value": value, "text": text} for value, text in texts.items()]
                path = f"questions/{self._question_ids[remote.id][question.name]}"
                self._api.request("PATCH", path, {"settings": settings})
        return changes

    @property
    def can_assign(self) -> bool:
        """Whether this is a server of `curate review serve`; Argilla offers every record to everybody."""
        return self._api.is_curate

    def answers_elsewhere(self, name: str, remotes: Sequence[str]) -> dict[str, int]:
        """The number of an account's answers in each dataset whose id is not in `remotes`."""
        counts = {}
        for dataset in self._api.request("GET", "me/datasets")["items"]:
            if dataset["id"] not in remotes:
                rows = self._api.request("GET", f"datasets/{dataset['id']}/users/progress")["users"]
                [own] = [row for row in rows if row["username"] == name] or [{}]
                counts[dataset["name"]] = sum(sum(own.get(status, {}).values()) for status in ("completed", "pending"))
        return {name: count for name, count in counts.items() if count}

    def delete_account(self, name: str) -> None:
        """Delete an account; Argilla deletes its answers, too."""
        if name == self._api.request("GET", "me")["username"]:
            raise ReviewError(
                f"{name} is the account of the key in use.", f"Set {KEY_VARIABLE} to the key of another owner."
            )
        ids = {each["username"]: each["id"] for each in self._api.request("GET", "users")["items"]}
        if name in ids:
            self._api.request("DELETE", f"users/{ids[name]}")

    def delete_records(self, remote: RemoteSet, records: Sequence[str]) -> None:
        """Delete records with their answers; those that do not exist are ignored."""
        for start in range(0, len(records), BATCH):
            ids = ",".join(records[start : start + BATCH])
            self._api.request("DELETE", f"datasets/{remote.id}/records", ids=ids)

    def _read_users(self) -> dict[str, str]:
        """User id -> name. The response contains the API key of every account; only names are kept."""
        path = "users" if self._role == "owner" else f"workspaces/{self._workspace}/users"
        return {user["id"]: user["username"] for user in self._api.request("GET", path)["items"]}


def escape(text: str) -> str:
    """`text` with HTML escaped, so that the page shows tags such as `<think>` and executes nothing.

    >>> escape("<think>a & b</think>")
    '&lt;think&gt;a &amp; b&lt;/think&gt;'
    """
    return html.escape(text, quote=False)


def _question_body(question: Question) -> dict[str, Any]:
    kind = KINDS[question.kind]
    settings = {"type": kind.argilla_type} | kind.argilla_settings(question)
    body = {"name": question.name, "title": question.title, "required": question.required, "settings": settings}
    return body | ({"description": question.help} if question.help else {})


def _parse_question(item: Mapping[str, Any]) -> Question:
    settings = item["settings"]
    kind: KindName = next((name for name, each in KINDS.items() if each.argilla_type == settings["type"]), "text")
    options = tuple(option["value"] for option in settings.get("options") or ())
    return Question(item["name"], kind, item["title"], options, item["required"], item.get("description") or "")


def _record_body(task: Task, questions: Mapping[str, str], *, with_earlier: bool) -> dict[str, Any]:
    earlier = {EARLIER: escape(task.earlier)} if task.earlier and with_earlier else {}
    answered_by = {ANSWERED_BY: list(task.answered_by)} if task.answered_by else {}
    return {
        "external_id": task.conversation,
        "fields": {FIELD: [{"role": role, "content": escape(text)} for role, text in task.messages]} | earlier,
        "metadata": {**task.metadata, **answered_by},
        "suggestions": [_suggestion_body(suggestion, questions) for suggestion in task.suggestions],
    }


def _suggestion_body(suggestion: Suggestion, questions: Mapping[str, str]) -> dict[str, Any]:
    value = list(suggestion.value) if isinstance(suggestion.value, tuple) else suggestion.value
    body = {"question_id": questions[suggestion.question], "value": value, "agent": suggestion.agent, "type": "model"}
    return body if suggestion.score is None else body | {"score": suggestion.score}


def _parse_suggestion(item: Mapping[str, Any], questions: Mapping[str, str]) -> Suggestion:
    """A suggestion; `questions` maps ids to names."""
    value = tuple(item["value"]) if isinstance(item["value"], list) else item["value"]
    return Suggestion(questions[item["question_id"]], value, item["agent"] or "", item["score"])


def _parse_page(items: Sequence[Mapping[str, Any]], users: Mapping[str, str]) -> Page:
    """A page of records. Records that were not pushed by a store may have no external id.

    Marks become numbers of turns, except those of answers that the conversation does not have, which are counted.
    """
    rows, surplus = [], 0
    for record in items:  # one by one: nested JSON becomes rows
        marks = map_marks([message["role"] for message in record["fields"].get(FIELD) or ()])
        for response in record.get("responses") or ():
            values = {name: each["value"] for name, each in (response["values"] or {}).items()}
            if TURNS in values:
                marked = [marks.get(mark) or int(mark) for mark in values[TURNS] if mark in marks or mark.isdecimal()]
                surplus += len(values[TURNS]) - len(marked)
                values[TURNS] = marked
            rows.append(_parse_response(record, response, values, users))
    records = {record["id"]: record["external_id"] or "" for record in items}
    return Page(records, pl.DataFrame(rows, schema=ANSWER_SCHEMA), surplus)


def _parse_response(
    record: Mapping[str, Any], response: Mapping[str, Any], values: Mapping[str, Any], users: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "record": record["id"],
        "conversation": record["external_id"] or "",
        "reviewer": users.get(response["user_id"], response["user_id"]),
        "response": response["id"],
        "status": response["status"],
        "answered_at": datetime.fromisoformat(response["updated_at"]).replace(tzinfo=UTC),
        "answers": canonical_json({name: value for name, value in values.items() if value not in ("", [], None)}),
    }
