"""A chat with a model and its rating, good or bad → a conversation in the store, whose source is the chat.

Both kinds are candidates for scoring and selection, like imported rows. A bad one also gets a human drop verdict, so
it is excluded until someone edits it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from schemas.conversation import PRESENT_SQL, Conversation, Turn, fold
from schemas.digest import digest
from schemas.errors import TrainError
from schemas.manifest import Manifest
from schemas.store import writing

RATINGS = ("good", "bad")
ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
NULLABLE = {"tool_call_id": pl.String}
SHAPE = "chat"
AUTHOR = "chat"
"""The author of the verdict on a bad conversation, in `verdicts.by_whom`."""


def save_chat(
    store: Path, manifest: Manifest, messages: Sequence[Mapping[str, str]], rating: str, metadata: Mapping[str, Any]
) -> str:
    """Write a chat to the store and return the conversation's id; `metadata` has the side and the sampling parameters.

    Saving the same chat with the same rating again changes nothing. Raises `TrainError` if the chat has no answer.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise TrainError("There is no answer to save yet.", "Ask something first.")
    conversation = Conversation(tuple(Turn(ROLES[message["role"]], message["content"]) for message in messages))
    origin = {"chat": rating, "run": manifest.run, **metadata}
    source = digest({"chat": manifest.adapter_digest, "conversation": conversation.id, **origin})
    with writing(store) as connection:
        known = connection.execute("SELECT 1 FROM sources WHERE source = ?", [source]).fetchall()
        if not known:
            _write(connection, source, conversation, origin, manifest)
            if rating == "bad":
                connection.execute(
                    "INSERT INTO verdicts (conversation, verdict, reason, by_whom) VALUES (?, 'drop', ?, ?)",
                    [conversation.id, f"a bad answer in a chat with {manifest.run}", AUTHOR],
                )
    return conversation.id


def _write(
    connection: DuckDBPyConnection,
    source: str,
    conversation: Conversation,
    origin: Mapping[str, Any],
    manifest: Manifest,
) -> None:
    """Insert the source with its single row, the conversation if it is new, and its origin."""
    rows = [turn.as_row() for turn in conversation.turns]
    is_stored = connection.execute("SELECT 1 FROM conversations WHERE id = ?", [conversation.id]).fetchall()
    is_new = not connection.execute(
        f"SELECT 1 FROM conversations c WHERE id = ? AND {PRESENT_SQL}", [conversation.id]
    ).fetchall()
    if not is_stored:
        frame = pl.DataFrame([{"row": 1, **row} for row in rows], schema_overrides=NULLABLE)
        connection.register("folded", fold(frame))
        connection.execute("INSERT INTO conversations SELECT id, conversations, tools, NULL FROM folded")
        connection.unregister("folded")
    text = json.dumps(rows, ensure_ascii=False)
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
        [source, conversation.id, not is_new, json.dumps(origin, ensure_ascii=False)],
    )
