"""Lists of texts, and lists of questions with their answers, one per row → turns that alternate, a user turn first.

    alternating   ["Hi", "Hello", "Bye", "Bye"]                  UltraChat, DailyDialog
    exchanges     [["Hi", "Hello"]], [{"input": "Hi", "output": "Hello"}]
    turn-columns  the columns turn_1, turn_2 …

An object of numbered turns, `{"turn_1": …, "turn_2": …}`, is read like the list of its values. MOSS writes an exchange
as `Human`, `Inner Thoughts`, `Commands`, `Tool Responses` and `MOSS`, each with a marker around its text.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import valid_cells
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    complete_turns,
    is_plain_text,
    number_cells,
    problem_rows,
    shorten_expr,
)
from curate.ingest.shapes.system_prompt import SYSTEM, add_system_turns
from schemas.errors import SourceError

NAMES = (
    *("conversation", "conversations", "dialog", "dialogue", "dialogs", "dialogues", "turns", "chat", "messages"),
    *("utterances", "rounds", "exchanges", "data"),
)

_QUESTIONS = ("input", "question", "user", "human", "prompt", "query", "instruction", "Human", "User", "Q", "q")
_ANSWERS = (
    *("output", "answer", "assistant", "gpt", "bot", "response", "completion", "reply", "MOSS", "Assistant", "A", "a"),
)
_THOUGHTS, _COMMANDS = ("Inner Thoughts",), ("Commands",)

_NUMBERED = r'\{\s*"(?:turn|round|utterance)?[ _-]?0*1"\s*:\s*'
_TURN_KEY = r"^(?:turn|round|utterance)?[ _-]?\d+$"
_TWO_TEXTS = r'^\s*\[\s*"(?:[^"\\]|\\.)*"\s*,\s*"'


def _any_key(names: tuple[str, ...]) -> str:
    return rf'[{{,]\s*"(?:{"|".join(names)})"\s*:\s*(?:"|null)'


def _are_texts(cells: pl.Series) -> pl.Series:
    """Whether each cell is a list of at least two texts, or an object of numbered texts."""
    return cells.str.contains(_TWO_TEXTS) | cells.str.contains(rf'^\s*{_NUMBERED}"')


def _are_exchanges(cells: pl.Series) -> pl.Series:
    """Whether each cell is a list of pairs, or of objects with a question and an answer and without a role."""
    objects = cells.str.contains(rf"^\s*(?:\[|{_NUMBERED})\s*\{{")
    has_both = cells.str.contains(_any_key(_QUESTIONS)) & cells.str.contains(_any_key(_ANSWERS))
    has_role = cells.str.contains(r'"(?:role|from|speaker|author)"\s*:\s*"')
    pairs = cells.str.contains(r'^\s*\[\s*\[\s*"(?:[^"\\]|\\.)*"\s*,\s*"(?:[^"\\]|\\.)*"\s*\]')
    return (objects & has_both & ~has_role) | pairs


FIELDS = {"texts": Field(NAMES, required=True, fits=_are_texts), "system": SYSTEM}
EXCHANGE_FIELDS = {
    "exchanges": Field(NAMES, required=True, fits=_are_exchanges),
    "system": Field((*SYSTEM.names, "meta_instruction")),
}

MOST_COLUMNS = 40
"""Turns of a row with a column per turn."""

COLUMN_FIELDS = {
    **{f"turn_{n}": Field((f"turn_{n}",), required=n <= 2, fits=is_plain_text) for n in range(1, MOST_COLUMNS + 1)},
    "system": SYSTEM,
}

_ENTRIES = f"""
    SELECT row, n, entry, key FROM (
        SELECT row, unnest(entries) AS entry, generate_subscripts(entries, 1) AS n, NULL AS key
        FROM (SELECT row, CAST(cell::JSON AS JSON[]) AS entries FROM cells WHERE cell LIKE '[%')
        UNION ALL BY NAME
        SELECT row, row_number() OVER (
            PARTITION BY row ORDER BY try_cast(regexp_extract(e.key, '\\d+$') AS BIGINT)
        ) AS n, e.value AS entry, CASE WHEN NOT regexp_matches(e.key, '{_TURN_KEY}') THEN e.key END AS key
        FROM (SELECT row, cell FROM cells WHERE cell LIKE '{{%') AS objects, json_each(objects.cell) AS e
    )
    ORDER BY row, n
"""


def _first_of(names: tuple[str, ...]) -> str:
    return "coalesce(" + ", ".join(f"entry ->> '$.\"{name}\"'" for name in names) + ")"


_EXCHANGES = f"""
    SELECT row, n, entry, is_pair OR is_object AS sound,
        CASE WHEN is_pair THEN entry ->> '$[0]' WHEN is_object THEN {_first_of(_QUESTIONS)} END AS human,
        CASE WHEN is_pair THEN entry ->> '$[1]' WHEN is_object THEN {_first_of(_ANSWERS)} END AS gpt,
        CASE WHEN is_object THEN {_first_of(_THOUGHTS)} END AS thought,
        CASE WHEN is_object THEN {_first_of(_COMMANDS)} END AS command
    FROM (
        SELECT *, coalesce(json_type(entry) = 'OBJECT', false) AS is_object,
            coalesce(json_array_length(entry) = 2 AND json_type(entry, '$[0]') = 'VARCHAR'
                AND json_type(entry, '$[1]') = 'VARCHAR', false) AS is_pair
        FROM entries
    )
    ORDER BY row, n
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a column of lists of texts. A list that ends with a question is left to validation."""
    entries, problems = _entries(mapping.column(table, "texts"))
    texts = query_frames(
        "SELECT row, n, entry, json_type(entry) AS kind, entry ->> '$' AS value FROM entries ORDER BY row, n",
        entries=entries,
    )
    other = pl.format("Turn {} is not text: {}", "n", shorten_expr(pl.col("entry")))
    odd = problem_rows(texts.filter(pl.col("kind") != "VARCHAR"), "non-text-content", other)
    return _to_table(table, mapping, texts.select("row", _alternate().alias("from"), "value"), [*problems, odd])


def parse_exchanges(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a column of lists of questions with their answers. A missing text becomes an empty turn."""
    entries, problems = _entries(mapping.column(table, "exchanges"))
    exchanges = query_frames(_EXCHANGES, entries=entries).with_columns(
        _without_marker(name) for name in ("human", "gpt", "thought", "command")
    )
    odd = exchanges.filter(~pl.col("sound") | (pl.col("human").is_null() & pl.col("gpt").is_null()))
    reason = pl.format("Entry {} is not a question with its answer: {}", "n", shorten_expr(pl.col("entry")))
    called = exchanges.filter(pl.col("command").is_not_null())
    calls = pl.format("Entry {} calls a tool in MOSS's notation: {}", "n", shorten_expr(pl.col("command")))
    thought = pl.when(pl.col("thought").is_not_null()).then(pl.format("<think>\n{}\n</think>\n\n", "thought"))
    answer = pl.concat_str(thought.otherwise(pl.lit("")), pl.col("gpt").fill_null(""))
    turns = exchanges.select("row", human=pl.col("human").fill_null(""), gpt=answer)
    roles = pl.lit(pl.Series([["human", "gpt"]])).first()
    turns = turns.select("row", roles.alias("from"), pl.concat_list("human", "gpt").alias("value"))
    turns = turns.explode("from", "value")
    problems = [*problems, problem_rows(odd, "broken-history", reason), problem_rows(called, "broken-tool-call", calls)]
    return _to_table(table, mapping, turns, problems)


def parse_columns(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table with a column per turn. Missing turns at the end of a row are no turns.

    Raises `SourceError` if the table has more columns of turns than the shape.
    """
    if (more := f"turn_{MOST_COLUMNS + 1}") in table.columns:
        raise SourceError(
            f"The columns of turns go beyond turn_{MOST_COLUMNS}: there is {more}.",
            "Write the turns of a row as a list in one column, and import it with --shape alternating.",
        )
    names = [name for name in COLUMN_FIELDS if name != "system"]
    cells = pl.concat(
        number_cells(mapping.column(table, name), "value").with_columns(n=pl.lit(n)) for n, name in enumerate(names, 1)
    )
    is_turn = pl.col("value").fill_null("").str.strip_chars() != ""
    last = cells.group_by("row").agg(pl.col("n").filter(is_turn).max().fill_null(0).alias("last"))
    cells = cells.join(last, on="row").filter(pl.col("n") <= pl.col("last")).sort("row", "n")
    blank = problem_rows(
        last.filter(pl.col("last") == 0), "missing-conversation", "The columns of the turns are empty."
    )
    return _to_table(table, mapping, cells.select("row", _alternate().alias("from"), "value"), [blank])


def _alternate() -> pl.Expr:
    return pl.when(pl.col("n") % 2 == 1).then(pl.lit("human")).otherwise(pl.lit("gpt"))


def _entries(cells: pl.Series) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """The entries of lists and objects of numbered turns (`row`, `n` from 1, `entry`), and the problems of others."""
    found, problems = valid_cells(cells)
    entries = query_frames(_ENTRIES, cells=found)
    other_keys = pl.format("The object has a key that is not a number of a turn: {}", "key")
    named = problem_rows(entries.filter(pl.col("key").is_not_null()), "not-a-list", other_keys)
    missing = number_cells(cells).join(entries, on="row", how="anti").join(problems, on="row", how="anti")
    cell = pl.col("cell").fill_null("").str.strip_chars()
    blank, is_empty = cell.is_in(["", "null"]), cell.str.contains(r"^(\[\s*\]|\{\s*\})$")
    not_a_list = pl.format("Expected a list of turns, found: {}", shorten_expr(pl.col("cell")))
    return entries, [
        problems,
        named,
        problem_rows(missing.filter(blank), "missing-conversation", "The column with the turns is empty."),
        problem_rows(missing.filter(is_empty), "empty-conversation", "The list has no turns."),
        problem_rows(missing.filter(~blank & ~is_empty), "not-a-list", not_a_list),
    ]


def _without_marker(name: str) -> pl.Expr:
    """A text of MOSS without its marker, `<|Human|>: …<eoh>`, and null for `None`; other texts unchanged."""
    plain = pl.col(name).str.extract(r"(?s)^\s*<\|[A-Za-z ]+\|>:[ \t]*(.*?)\s*<eo[a-z]>\s*$")
    plain = pl.when(plain.is_in(["None", ""])).then(None).otherwise(plain)
    is_marked = pl.col(name).str.contains(r"^\s*<\|[A-Za-z ]+\|>:").fill_null(False)
    return pl.when(is_marked).then(plain).otherwise(pl.col(name)).alias(name)


def _to_table(
    table: pl.DataFrame, mapping: ColumnMapping, turns: pl.DataFrame, problems: list[pl.DataFrame]
) -> ParsedTable:
    with_system, contradicting = add_system_turns(complete_turns(turns), mapping.column(table, "system"))
    return ParsedTable(with_system).reject(*problems, contradicting)
