"""Messages of people, as chat programs export them → one conversation per thread or chat.

Slack: one conversation per thread of a channel's file. Discord and Telegram: a chat is one conversation.
Notices such as joins, and messages without text, are rejected if they are rows, and left out of Telegram's lists. The
authors are names: `--role NAME=human` and `--role NAME=gpt` assign them. Claude: one conversation per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from curate.ingest.shapes import turn_lists, turn_per_row
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import list_cells, valid_cells
from curate.ingest.shapes.roles import to_role
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    json_like,
    mostly_like,
    number_cells,
    problem_rows,
    shorten_expr,
)

_LONG = ("group_by", "role", "text")


_ACCOUNT = r'"from_id"\s*:\s*"(?:user|channel|chat)\d'

SLACK_FIELDS = {
    "time": Field(("ts",), required=True, fits=mostly_like(r"^\d{9,11}\.\d{4,7}$")),
    "text": Field(("text",), required=True),
    "author": Field(("user",), required=True),
    "thread": Field(("thread_ts",)),
    "bot": Field(("username", "bot_id")),
    "kind": Field(("subtype",)),
    "replies": Field(("reply_count",)),
}
TELEGRAM_FIELDS = {"messages": Field(("messages",), required=True, fits=json_like("[", _ACCOUNT))}
TELEGRAM_ACCOUNT_FIELDS = {"chats": Field(("chats",), required=True, fits=json_like("{", r'"list"\s*:', _ACCOUNT))}
DISCORD_FIELDS = {
    "author": Field(("author",), required=True, fits=json_like("{", r'"isBot"\s*:')),
    "text": Field(("content",), required=True),
    "kind": Field(("type",), required=True),
}

CLAUDE_FIELDS = {"messages": Field(("chat_messages",), required=True, fits=json_like("[", r'"sender"\s*:\s*"'))}

_SLACK_MESSAGES = ("", "thread_broadcast", "bot_message", "file_share", "me_message")
_TELEGRAM = """
    SELECT row, to_json([json_object('from', coalesce(m ->> '$.from', m ->> '$.from_id'), 'value', text_of(m))
        FOR m IN from_json(cell, '["JSON"]') IF m ->> '$.type' = 'message' AND text_of(m) <> ''])::VARCHAR AS cell
    FROM cells
""".replace(
    "text_of(m)",
    """CASE WHEN json_type(m, '$.text') = 'ARRAY' THEN array_to_string(
    [coalesce(p ->> '$.text', p ->> '$') FOR p IN from_json(m -> '$.text', '["JSON"]')], '') ELSE m ->> '$.text' END""",
)

_CHATS = """
    SELECT row AS position, chat -> 'messages' AS messages
    FROM (SELECT row, unnest(from_json(cell -> '$.list', '["JSON"]')) AS chat FROM cells)
    WHERE json_array_length(chat, '$.messages') > 0
"""
_PEOPLE = """
    SELECT row, m ->> 'from' AS name, count(*) AS count
    FROM (SELECT row, unnest(from_json(cell, '["JSON"]')) AS m, generate_subscripts(from_json(cell, '["JSON"]'), 1) AS n
          FROM lists)
    GROUP BY row, name ORDER BY row, count DESC, min(n)
"""
_CLAUDE = """
    SELECT row, to_json([json_object('from', m ->> '$.sender', 'value', m ->> '$.text')
        FOR m IN from_json(cell, '["JSON"]')])::VARCHAR AS cell,
        len([m FOR m IN from_json(cell, '["JSON"]')
            IF json_array_length(m, '$.attachments') > 0 OR json_array_length(m, '$.files') > 0]) AS files
    FROM cells
"""


_JOIN = "Import the files of the channel as one: cat FOLDER/*.json > channel.json"


def parse_slack(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The threads of a Slack channel, each with its first message.

    A thread of which messages are in other files, as Slack writes one per day, is rejected.
    """
    rows = mapping.rows(table, ("time", "text", "author", "thread", "bot", "kind", "replies"))
    rows = rows.with_columns(group=pl.coalesce("thread", "time"), author=pl.coalesce("author", "bot"))
    rows = _mark_notices(rows, _SLACK_MESSAGES)
    starts = rows.select(group="time").unique()
    messages = rows.filter(~pl.col("notice"))
    lost = messages.join(starts, on="group", how="anti")
    elsewhere = pl.format("The first message of the thread {} is not in the file. {}.", "group", pl.lit(_JOIN))
    expected = pl.col("replies").cast(pl.Int64, strict=False).max()
    threads = rows.group_by("group").agg(found=(pl.col("time") != pl.col("group")).sum(), expected=expected)
    short = messages.join(threads.filter(pl.col("found") < pl.col("expected")), on="group", maintain_order="left")
    missing = pl.format("Of {} replies of the thread, {} are in the file. {}.", "expected", "found", pl.lit(_JOIN))
    problems = [problem_rows(lost, "missing-parent", elsewhere), problem_rows(short, "missing-replies", missing)]
    return _parse(rows, mapping, pl.concat(problems))


def parse_telegram(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The messages of Telegram chats, a list per row; a text may be a list of texts and formatted pieces."""
    cells = mapping.column(table, "messages")
    return parse_people(cells, query_frames(_TELEGRAM, cells=list_cells(cells)[0]), mapping)


def parse_telegram_account(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The chats of a Telegram account, each a conversation; chats without messages are left out."""
    cells, broken = valid_cells(mapping.column(table, "chats"))
    chats = query_frames(_CHATS, cells=cells)
    named = ColumnMapping("telegram", {"messages": "messages"}, mapping.roles)
    parsed = parse_telegram(chats.select("messages"), named)
    rest = pl.DataFrame({"row": pl.int_range(table.height, eager=True)}).join(
        chats, left_on="row", right_on="position", how="anti"
    )
    no_chat = problem_rows(rest, "empty-conversation", "No chat has messages.").join(broken, on="row", how="anti")
    failed = pl.concat([broken, no_chat]).with_row_index("n", offset=chats.height)
    return replace(
        parsed,
        problems=pl.concat([parsed.problems, failed.select(pl.col("n").cast(pl.Int64).alias("row"), "code", "reason")]),
        members=pl.concat(
            [
                chats.select(pl.int_range(pl.len()).alias("row"), "position"),
                failed.select(pl.col("n").cast(pl.Int64).alias("row"), position="row"),
            ]
        ),
    )


def parse_claude(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The messages of a Claude data export; a conversation with attached files is a problem."""
    cells = mapping.column(table, "messages")
    lists = query_frames(_CLAUDE, cells=list_cells(cells)[0])
    parsed = parse_people(cells, lists, mapping)
    attached = problem_rows(lists.filter(pl.col("files") > 0), "non-text-content", "A message has attached files.")
    return parsed.reject(attached)


def parse_people(cells: pl.Series, lists: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The turns of rewritten lists (`row`, `cell`); cells that are not lists are left to the parser of turns.

    The problem of people without a role says how many messages each has.
    """
    turns = number_cells(cells).join(lists.select("row", "cell"), on="row", how="left", suffix="_turns")
    rewritten = turns.sort("row").select(conversations=pl.coalesce("cell_turns", "cell"))
    named = ColumnMapping("sharegpt", {"conversations": "conversations"}, mapping.roles)
    parsed = turn_lists.parse(rewritten, named, "conversations")
    unknown = parsed.problems.filter(pl.col("code") == "unknown-role")
    people = query_frames(_PEOPLE, lists=lists.join(unknown, on="row", how="semi").select("row", "cell"))
    known = pl.col("name").fill_null("") == ""
    unnamed = people.filter(~known & to_role(pl.col("name"), mapping.roles).is_null())
    counted = unnamed.group_by("row", maintain_order=True).agg(
        counts=pl.format("{} {}", "name", "count").str.join(", "), names=pl.col("name").head(5).str.join(", ")
    )
    reason = pl.format("Messages: {}. The role of each name is unknown: {}", "counts", "names")
    return parsed.reject(problem_rows(counted, "unknown-role", reason))


def parse_discord(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The messages of a Discord channel, as DiscordChatExporter writes them."""
    rows = mapping.rows(table, ("text", "author", "kind"))
    rows = rows.with_columns(pl.col("author").str.json_path_match("$.name"), group=pl.lit("channel"))
    return _parse(_mark_notices(rows, ("Default", "Reply")), mapping)


def _mark_notices(rows: pl.DataFrame, messages: Sequence[str]) -> pl.DataFrame:
    """The rows with `notice`: whether they have no text or a kind other than `messages`."""
    blank = pl.col("text").fill_null("").str.strip_chars() == ""
    kind = pl.when(blank).then(pl.lit("no text")).otherwise("kind").alias("kind")
    return rows.with_columns(kind).with_columns(notice=~pl.col("kind").fill_null("").is_in(list(messages)))


def _parse(rows: pl.DataFrame, mapping: ColumnMapping, problems: pl.DataFrame | None = None) -> ParsedTable:
    """The conversations of rows with `group`, `author`, `text`, and `notice`, which is not a message."""
    notices = rows.filter(pl.col("notice").fill_null(False))
    kind = shorten_expr(pl.col("kind"))
    left_out = problem_rows(notices, "no-message", pl.format("The row is a notice, not a message: {}.", kind))
    left_out = left_out if problems is None else pl.concat([left_out, problems])
    alone = pl.col("row").is_in(left_out["row"].implode())
    group = pl.when(~alone).then("group")
    table = rows.select(group.alias("group_by"), pl.col("author").alias("role"), pl.col("text").fill_null(""))
    parsed = turn_per_row.parse(table, ColumnMapping("long", {name: name for name in _LONG}, mapping.roles))
    reasons = parsed.problems.select("row").join(left_out, on="row", how="inner", maintain_order="left")
    others = parsed.problems.join(left_out, on="row", how="anti", maintain_order="left")
    return replace(parsed, problems=pl.concat([reasons, others]).sort("row"))
