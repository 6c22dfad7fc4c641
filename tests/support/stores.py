"""Small stores for tests: conversations as an import writes them."""

import json

import polars as pl

from curate.versions.freeze import freeze
from schemas.conversation import Conversation, Turn, fold
from schemas.recipe import Recipe
from schemas.store import writing


def chat(*texts, system=None, tools=None, **fields):
    """A conversation of alternating human and gpt turns; `fields` are set on the last turn."""
    turns = [Turn("system", system)] if system is not None else []
    turns += [Turn("human" if n % 2 == 0 else "gpt", text) for n, text in enumerate(texts)]
    if fields:
        turns[-1] = Turn(turns[-1].role, turns[-1].value, **fields)
    return Conversation(tuple(turns), tools)


def questions(count, start=0):
    return [chat(f"What is question {n}?", f"Answer {n}.") for n in range(start, start + count)]


def add(store, conversations, source="data.csv", parent=None, metadata=None):
    """Write conversations and their origins, from row 1; line = row + 1, as in a CSV file with a header."""
    turns = pl.DataFrame(
        [{"row": row, **turn.as_row()} for row, talk in enumerate(conversations, 1) for turn in talk.turns],
        schema_overrides={"tool_call_id": pl.String},
    )
    folded = fold(turns, [talk.tools for talk in conversations])
    with writing(store) as connection:
        connection.register("folded", folded)
        connection.execute(
            "INSERT INTO conversations SELECT id, conversations, tools, ? FROM folded"
            " WHERE id NOT IN (SELECT id FROM conversations)",
            [parent],
        )
        if parent is None:
            connection.execute(
                """INSERT INTO sources (source, path, sha256, bytes, shape, mapping, columns, rows_read, rows_kept,
                       rows_duplicate, rows_rejected, conversations, warnings, imported_at)
                   VALUES (?, ?, 'f00d', 1, 'pairs', '{}', ['q', 'a'], ?, ?, 0, 0, ?, '{}',
                       TIMESTAMPTZ '2026-01-01 00:00:00+00')""",
                [f"id of {source}", source, *[len(conversations)] * 3],
            )
            connection.execute(
                "INSERT INTO origins SELECT ?, row, row + 1, id, false, ?, NULL, NULL FROM folded",
                [f"id of {source}", json.dumps(metadata) if metadata else None],
            )
    return folded["id"].to_list()


def add_version(store, conversations, name="chats", source="data.csv"):
    """Add conversations and freeze all of them as the next version of `name`, nothing held out."""
    add(store, conversations, source)
    with writing(store) as connection:
        freeze(connection, name, Recipe.model_validate({"freeze": {"held_out": 0}}))


def add_verdict(store, conversation, verdict, *, by_whom="rule", reason="because", edited_to=None):
    with writing(store) as connection:
        connection.execute(
            """INSERT INTO verdicts (conversation, verdict, reason, by_whom, edited_to, selection)
               VALUES (?, ?, ?, ?, ?, ?)""",
            [conversation, verdict, reason, by_whom, edited_to, "s1" if by_whom == "rule" else None],
        )


def add_run(connection, run, version, status, adapter):
    """Write a run that started now and has an empty manifest."""
    connection.execute(
        """INSERT INTO runs (run, version, version_digest, adapter, status, manifest, metrics, started_at)
           VALUES (?, ?, 'd', ?, ?, '{}', '{}', now())""",
        [run, version, str(adapter), status],
    )
