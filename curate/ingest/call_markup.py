"""Tool calls, results and tools that are written inside texts → calls, results and tools of the conversation.

    Hermes, Qwen   <tools>[…]</tools> in the system prompt, <tool_call>{…}</tool_call> at the end of an answer,
                   <tool_response>…</tool_response> as a turn
    Glaive         functions after "access to the following functions" in the system prompt, <functioncall> {…} in an
                   answer, FUNCTION RESPONSE: … as a turn

A chat template writes tools and calls in the notation of its model, so they must not be in the texts as well. Text
before a call is a turn of its own; other mentions of the tags, such as in an explanation, stay text.
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from curate.ingest.shapes.content_blocks import filled_keys
from curate.ingest.shapes.json_cells import is_object, split_list
from curate.ingest.shapes.shape import PROBLEMS, TOOLS, TURNS, ParsedTable
from curate.ingest.shapes.tools import ToolDefinitionError, read_tools
from schemas.text import shorten

_CALL_MARKS, _TOOL_MARKS = ("<tool_call>", "<functioncall>"), ("<tools>", "access to the following functions")
_GLAIVE_ARGUMENTS = r"""(?s)("arguments"\s*:\s*)'(.*)'(\s*\})$"""
_GLAIVE_RESULT = r"^\s*FUNCTION RESPONSE:\s*"
_TOOLS = r"<tools>\s*(?=[\[{])"
_WHITE_SPACE = re.compile(r"\s*")


class BrokenCallError(ValueError):
    """A call in a text that is not valid; the text names it."""


class _Tagged(NamedTuple):
    """A part of a text between tags; `end` is after the white space that follows it."""

    start: int
    content: str
    end: int


class _Turn(NamedTuple):
    role: str
    value: str
    train: bool
    tool_call_id: str | None


def read_call_markup(parsed: ParsedTable) -> tuple[ParsedTable, pl.Series]:
    """The table with calls, results and tools that were in texts, and the rows of the conversations that changed.

    Python loops over the conversations with such marks; finding them is one search of all texts.
    """
    mark = pl.col("value").str.contains_any
    has_mark = ((pl.col("from") == "gpt") & mark(list(_CALL_MARKS))) | (
        (pl.col("from") == "system") & mark(list(_TOOL_MARKS))
    )
    rows = parsed.turns.filter(mark([*_CALL_MARKS, *_TOOL_MARKS])).filter(has_mark)["row"].unique()
    if rows.is_empty():
        return parsed, rows
    selected = pl.col("row").is_in(rows.implode())
    known = dict(parsed.tools.filter(selected).iter_rows())
    turns, tools, problems, changed = [], [], [], []
    talks = parsed.turns.filter(selected).group_by("row", maintain_order=True).agg(*list(TURNS)[1:])
    for row, *columns in talks.iter_rows():
        before = [_Turn(*values) for values in zip(*columns, strict=True)]
        try:
            after, defined = _read(before, known.get(row))
        except BrokenCallError as error:
            problems.append((row, "broken-tool-call", str(error)))
            continue
        changed += [row] if (after, defined) != (before, known.get(row)) else []
        turns += [(row, *turn) for turn in after]
        tools += [(row, defined)] if defined is not None else []
    return (
        ParsedTable(
            _replace(parsed.turns, pl.DataFrame(turns, schema=TURNS, orient="row"), rows),
            _replace(parsed.tools, pl.DataFrame(tools, schema=TOOLS, orient="row"), rows),
            pl.concat([parsed.problems, pl.DataFrame(problems, schema=PROBLEMS, orient="row")]),
            parsed.members,
        ),
        pl.Series("row", changed, pl.Int64),
    )


def _replace(frame: pl.DataFrame, new: pl.DataFrame, rows: pl.Series) -> pl.DataFrame:
    others = frame.filter(~pl.col("row").is_in(rows.implode()))
    return pl.concat([others, new]).sort("row", maintain_order=True)


def _read(turns: list[_Turn], tools: str | None) -> tuple[list[_Turn], str | None]:
    """The turns and tools of one conversation. Raises `BrokenCallError`."""
    found: list[_Turn] = []
    for number, turn in enumerate(turns, start=1):
        if turn.role == "system":
            text, tools = _read_system(turn.value, tools)
            found += [turn._replace(value=text)] if text.strip() else []
        elif turn.role == "gpt":
            found += _read_answer(turn, number)
        else:
            found += _read_results(turn)
    return found, tools


def _read_system(text: str, tools: str | None) -> tuple[str, str | None]:
    """The system prompt without its tools, and the tools; both unchanged if it defines none, or others than known."""
    definition, rest = _hermes_tools(text) or _glaive_tools(text) or ("", text)
    if not definition:
        return text, tools
    try:
        defined = read_tools(_as_list(definition))
    except (ToolDefinitionError, RecursionError):
        return text, tools
    if tools is not None and json.loads(tools) != json.loads(defined):
        return text, tools
    return rest.rstrip(), tools or defined


def _hermes_tools(text: str) -> tuple[str, str] | None:
    """The tools between tags, and the text around them."""
    opening = re.search(_TOOLS, text)
    tagged = next(_between_tags(text, "tools", opening.start()), None) if opening else None
    return (tagged.content, text[: tagged.start] + text[tagged.end :]) if tagged else None


def _glaive_tools(text: str) -> tuple[str, str] | None:
    """The tools after the sentence that announces them, and the text before them."""
    announced = text.find(_TOOL_MARKS[1])
    first = re.compile(r"[{\[]").search(text, announced) if announced >= 0 else None
    if first is None:
        return None
    before = re.sub(r"^SYSTEM:\s*", "", text[: first.start()])
    return text[first.start() :], before.rstrip(f"-{string.whitespace}")


def _between_tags(text: str, tag: str, start: int = 0) -> Iterator[_Tagged]:
    """The parts of a text between `<tag>` and `</tag>`, in time proportional to the text, also if tags are not closed.

    >>> [part.content for part in _between_tags("<a> 1 </a> and <a>2</a><a>", "a")]
    ['1', '2']
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    while (start := text.find(opening, start)) >= 0 and (close := text.find(closing, start + len(opening))) >= 0:
        found = _WHITE_SPACE.match(text, close + len(closing))
        end = found.end() if found else close + len(closing)
        yield _Tagged(start, text[start + len(opening) : close].strip(), end)
        start = end


def _as_list(objects: str) -> str:
    """Consecutive JSON objects as a list; the text itself if it is something else."""
    decoder, values, at = json.JSONDecoder(), [], 0
    text = objects.strip()
    if text.startswith("["):
        return text
    try:
        while at < len(text):
            _, end = decoder.raw_decode(text, at)
            values.append(text[at:end])
            at = end + len(text[end:]) - len(text[end:].lstrip(" \t\r\n,"))
    except (ValueError, RecursionError):
        return text
    return f"[{', '.join(values)}]"


def _read_answer(turn: _Turn, number: int) -> Iterator[_Turn]:
    """The text of an answer and the calls at its end, as two turns; the answer itself if there are none."""
    before, mark, after = turn.value.partition(_CALL_MARKS[1])
    glaive = after.strip().removesuffix("<|endoftext|>").rstrip()
    start, payloads = (len(before), [glaive]) if mark else _hermes_calls(turn.value)
    if not payloads:
        yield turn
        return
    if turn.value[:start].strip():
        yield turn._replace(value=turn.value[:start].rstrip())
    calls = [call for payload in payloads for call in _read_calls(payload, number)]
    yield turn._replace(role="function_call", value=calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]")


def _hermes_calls(text: str) -> tuple[int, list[str]]:
    """The start and the contents of the calls that end a text."""
    start = len(text)
    payloads: list[str] = []
    for found in reversed(list(_between_tags(text, "tool_call"))):
        if found.end != start:
            break
        start = found.start
        payloads.append(found.content)
    return start, payloads[::-1]


def _read_calls(payload: str, number: int) -> Iterator[str]:
    text = _as_json(payload)
    for call in split_list(text) if text.startswith("[") else [text]:
        keys = filled_keys(call) if call.startswith("{") else {}
        arguments = keys.get("arguments", keys.get("parameters", "{}"))
        if arguments.startswith('"'):
            arguments = json.loads(arguments).strip() or "{}"
        if not keys.get("name", "").startswith('"') or not is_object(arguments):
            raise BrokenCallError(f"Turn {number} has a tool call that is not valid: {shorten(payload, 60)}")
        yield f'{{"name": {keys["name"]}, "arguments": {arguments}}}'


def _as_json(payload: str) -> str:
    """A call as JSON: Glaive puts arguments in single quotes, and some calls of Hermes are printed by Python."""
    quoted = payload
    if re.search(r"'\s*\}$", payload):  # without this, the search is quadratic
        quoted = re.sub(_GLAIVE_ARGUMENTS, lambda found: f"{found[1]}{json.dumps(found[2])}{found[3]}", payload)
    for text in (payload, quoted):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            continue
        return text
    try:
        return json.dumps(ast.literal_eval(payload), ensure_ascii=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ""


def _read_results(turn: _Turn) -> Iterator[_Turn]:
    """A turn per result, if the turn consists of results; the turn itself otherwise."""
    if turn.role not in ("human", "observation"):
        yield turn
    elif results := _only_results(turn.value):
        yield from (turn._replace(role="observation", value=result) for result in results)
    elif re.match(_GLAIVE_RESULT, turn.value):
        yield turn._replace(role="observation", value=re.sub(_GLAIVE_RESULT, "", turn.value).strip())
    else:
        yield turn


def _only_results(text: str) -> list[str]:
    """The results of a text that consists of nothing else; none otherwise."""
    results = list(_between_tags(text, "tool_response"))
    ends = [len(text) - len(text.lstrip()), *(result.end for result in results)]
    is_all = [*(result.start for result in results), len(text)] == ends
    return [result.content for result in results] if is_all else []
