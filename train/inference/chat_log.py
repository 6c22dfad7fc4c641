"""In: a conversation with a model, called good or bad. Out: it in the store, as a row whose origin is this chat.

A good one is a candidate like any imported row: the next scoring and selection judge it. A bad one is a candidate
too, with a person's word against it, so it is found, repaired and kept out until somebody does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from schemas.conversation import Conversation, Turn, fold
from schemas.digest import digest
from schemas.errors import TrainError
from schemas.manifest import Manifest
from schemas.store import writing

OPINIONS = ("good", "bad")
ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
NULLABLE = {"tool_call_id": pl.String}
SHAPE = "chat"
AUTHOR = "chat"
"""Whose word the verdict on a bad conversation is, in `verdicts.by_whom`: a person's, said in a chat."""


def remember(
    store: Path, manifest: Manifest, messages: Sequence[Mapping[str, str]], opinion: str, how: Mapping[str, Any]
) -> str:
    """Write the conversation to the store and return its id; `how` says which side answered, and by which sampling.

    The same conversation with the same opinion is written once. Raises `TrainError` for one without an answer.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise TrainError("There is no answer to save yet.", "Ask something first.")
    talk = Conversation(tuple(Turn(ROLES[message["role"]], message["content"]) for message in messages))
    origin = {"chat": opinion, "run": manifest.run, **how}
    source = digest({"chat": manifest.adapter_digest, "conversation": talk.id, **origin})
    with writing(store) as connection:
        known = connection.execute("SELECT 1 FROM sources WHERE source = ?", [source]).fetchall()
        if not known:
            _write(connection, source, talk, origin, manifest)
            if opinion == "bad":
                _speak_against(connection, talk.id, manifest.run)
    return talk.id


def _write(
    connection: DuckDBPyConnection, source: str, talk: Conversation, origin: Mapping[str, Any], manifest: Manifest
) -> None:
    """The source with its one row, the conversation if it is new, and where it comes from."""
    folded = fold(pl.DataFrame([{"row": 1, **turn.as_row()} for turn in talk.turns], schema_overrides=NULLABLE))
    is_new = not connection.execute("SELECT 1 FROM conversations WHERE id = ?", [talk.id]).fetchall()
    if is_new:
        connection.register("folded", folded)
        connection.execute("INSERT INTO conversations SELECT id, conversations, tools, NULL FROM folded")
        connection.unregister("folded")
    text = json.dumps([turn.as_row() for turn in talk.turns], ensure_ascii=False)
    mapping = {"run": manifest.run, "adapter_digest": manifest.adapter_digest}
    connection.execute(
        """INSERT INTO sources (source, path, sha256, bytes, shape, mapping, columns, rows_read, rows_kept,
                                rows_duplicate, rows_rejected, conversations, warnings)
           VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, 0, ?, '{}')""",
        [
            *(source, f"chat:{manifest.run}", digest(text), len(text.encode()), SHAPE, json.dumps(mapping)),
            *(list(origin), int(is_new), int(not is_new), int(is_new)),
        ],
    )
    connection.execute(
        "INSERT INTO origins VALUES (?, 1, NULL, ?, ?, ?, NULL, NULL)",
        [source, talk.id, not is_new, json.dumps(origin, ensure_ascii=False)],
    )


def _speak_against(connection: DuckDBPyConnection, conversation: str, run: str) -> None:
    connection.execute(
        "INSERT INTO verdicts (conversation, verdict, reason, by_whom) VALUES (?, 'drop', ?, ?)",
        [conversation, f"a bad answer in a chat with {run}", AUTHOR],
    )
