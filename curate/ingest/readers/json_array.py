"""A JSON list of objects of any size → batches; elements are located by their brackets, for a whole chunk at once.

The list may be a value in an object (`{"data": […]}`), have no brackets (consecutive objects, as `jq` writes them), or
be several lists, one after the other (joined files).
A broken element may include others after it, as far as brackets and quotes show; its text is then split at every
object that starts with the first key of the first element.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import CHUNK, Bytes, ByteStream, Chunk, Positions, find_byte, find_bytes
from curate.ingest.readers.json_objects import ObjectReader
from curate.ingest.readers.json_table import is_table, split_table
from curate.ingest.readers.table_options import TableOptions
from curate.ingest.readers.text_arrays import slice_texts
from curate.ingest.shapes.json_cells import skip_space
from schemas.errors import SourceError

QUOTE, BACKSLASH, SPACE, NEWLINE = b'"\\ \n'
SPACES = b" \t\r\n"
CLOSING = ord("]")
BETWEEN = np.frombuffer(b" \t\r\n,", np.uint8)
"""Bytes allowed between two elements."""

DEPTH = np.zeros(256, np.int8)
DEPTH[list(b"{[")], DEPTH[list(b"}]")] = 1, -1
"""Change of the nesting depth by a byte outside of strings."""

LONGEST = CHUNK // 2
"""Bytes after which an element without an end is split where other elements seem to start in it."""

LONGEST_ESCAPE = 1 << 16
"""Backslashes in a row whose number decides whether the next character is escaped."""

ROW_LISTS = ("tools", "functions")
"""Keys whose lists of objects are part of a row, not rows themselves."""


def is_wrapper(value: dict[str, Any]) -> bool:
    """Whether an object is not a row but contains a list of rows.

    >>> is_wrapper({"count": 1, "data": [{"question": "Why?"}]})
    True
    >>> is_wrapper({"messages": [{"role": "user", "content": "Why?"}]})
    False
    """
    lists = [element for element in value.values() if is_object_list(element)]
    return bool(lists) and not any(map(has_turns, lists))


def is_object_list(value: object) -> bool:
    """Whether a value is a list of objects, by its first element."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def has_turns(objects: list[dict[str, Any]]) -> bool:
    """Whether the objects of a list are turns of a conversation, by the first."""
    return "role" in objects[0] or "from" in objects[0]


class Frame(NamedTuple):
    """The text around the elements."""

    opening: int
    """Number of bytes before the first element."""
    brackets: bool
    """Whether the list has brackets."""
    wrapped: bool
    """Whether the list is a value in an object."""


def read_json(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """The elements of a JSON list, in order; the line of a record is the line on which its element starts.

    An unclosed list adds a reject at the end. Raises `SourceError` if an object contains several lists.
    """
    splitter = ElementSplitter(find_frame(stream.head()), stream.limits.record)
    objects = ObjectReader(stream)
    line, ends_open = 1, False
    chunks = stream.chunks(splitter)
    first = next(chunks, None)
    second = next(chunks, None) if first is not None and len(first.parts) == 1 else None
    if first is not None and len(first.parts) == 1 and second is None and (rows := split_table(_text(first))):
        lines = first.line_at(first.parts) + np.array([line for _, line in rows])
        yield objects.batch(pa.array([row for row, _ in rows], pa.large_string()), lines)
        return
    for chunk in itertools.chain(filter(None, [first, second]), chunks):
        starts, texts = chunk.parts, slice_texts(chunk.data, chunk.parts)
        line = chunk.first_line + len(chunk.newlines)
        if not len(starts):
            continue
        parsed = objects.parse(texts)
        broken = [problem.position for problem in parsed.problems if problem.code == "broken-json"]
        ends_open = broken[-1:] == [len(starts) - 1]
        if broken:
            starts = splitter.split_broken(chunk.data, starts, broken)
            texts = slice_texts(chunk.data, starts)
            parsed = objects.parse(texts)
        yield objects.batch(texts, chunk.line_at(starts), parsed)
    _check_rest(stream.path, splitter.rest)
    if not splitter.closed and not ends_open:
        yield objects.final_reject(line, "not-closed", "The list has no closing bracket: the file may be truncated.")


def _is_table(head: bytes) -> bool:
    try:
        return is_table(json.loads(head))
    except (ValueError, RecursionError):
        return False


def _text(chunk: Chunk[Positions]) -> str:
    return chunk.data[chunk.parts[0] :].tobytes().decode(errors="replace")


def find_frame(head: bytes) -> Frame:
    """The frame of the elements, from the first bytes of a JSON file."""
    text = head.decode("latin-1")  # one character per byte: the searched characters are ASCII
    start = skip_space(text, 0)
    if text.startswith("[", start):
        return Frame(start + 1, brackets=True, wrapped=False)
    may_wrap = text.startswith("{", start) and not _is_table(head)
    wrapped = _find_wrapped(text, start + 1) if may_wrap else None
    return Frame(wrapped, brackets=True, wrapped=True) if wrapped else Frame(0, brackets=False, wrapped=False)


def _find_wrapped(text: str, at: int) -> int | None:
    """Position after the opening bracket of the list of rows among the values of an object; None if there is none."""
    decoder = json.JSONDecoder()
    try:
        while text.startswith('"', at := skip_space(text, at)):
            key, at = scanstring(text, at + 1)
            at = skip_space(text, text.index(":", at) + 1)
            if key not in ROW_LISTS and re.compile(r"\[\s*\{").match(text, at):
                return None if _starts_with_turn(text, text.index("{", at)) else at + 1
            _, at = decoder.raw_decode(text, at)
            at = skip_space(text, at) + 1
    except ValueError:
        pass  # the value extends beyond the head, or is broken: the object is a row
    return None


def _starts_with_turn(text: str, at: int) -> bool:
    try:
        return has_turns([json.JSONDecoder().raw_decode(text, at)[0]])
    except ValueError:
        return False


class ElementSplitter:
    """Splits chunks after complete elements; the parts are the start positions of the elements.

    Text between two elements that is neither white space nor a comma counts as an element, so that it becomes a
    reject. The bytes between elements are overwritten with spaces.
    """

    def __init__(self, frame: Frame, longest: int) -> None:
        self.closed = not frame.brackets
        self.rest: bytes | None = None
        """The text after the closing bracket of a wrapped list."""
        self._frame = frame
        self._opening = frame.opening
        self._start: re.Pattern[bytes] | None = None
        self._longest = longest
        self._open: OpenElement | None = None
        """The element above the limit whose rest is dropped."""

    def __call__(self, data: Bytes, newlines: Positions, last: bool) -> tuple[int, Positions]:  # noqa: ARG002
        """The number of bytes of `data` that are complete elements, and the start positions of these."""
        data[: self._opening] = SPACE
        self._opening = 0
        dropped = 0
        if self._open is not None:
            end_of_open = self._open.find_end(data)
            if end_of_open is None:
                return len(data), np.empty(0, np.int64)
            self._open, dropped = None, end_of_open
            data[:dropped] = SPACE
        if self.rest is not None:
            if len(self.rest) <= self._longest:  # more is not JSON for `_check_rest`
                self.rest += data.tobytes()
            return len(data), np.empty(0, np.int64)
        starts, stops, surplus = find_elements(data)
        if self._frame.brackets and not self._frame.wrapped and _join_lists(data, surplus):
            starts, stops, surplus = find_elements(data)
        end = self._find_end(data, surplus, last=last)
        starts, stops = starts[starts < end], stops[stops <= end]
        self._set_start_pattern(data, starts)
        if len(starts) > len(stops):
            stops = self._stop_open(data, starts, stops, end, last=last)
            if len(starts) > len(stops) and end - starts[-1] > self._longest:
                self._open = OpenElement()
                self._open.find_end(data[starts[-1] :].copy())
                stops = np.append(stops, end)
            starts = starts[: len(stops)]
        elif not len(starts) and end > self._longest and data.tobytes().strip(SPACES):
            return len(data), np.array([0])
        size = len(data) if last or end < len(data) else int(stops[-1]) if len(stops) else 0
        return size, _clear_between(data, starts, stops, dropped, min(size, end))

    def split_broken(self, data: Bytes, starts: Positions, broken: Sequence[int]) -> Positions:
        """The starts, including those found in the broken elements; the separators in these are overwritten.

        A broken element at the end of the data may include the closing bracket of the list.
        """
        all_starts = [starts]
        bounds = np.append(starts, len(data))
        for start, stop in zip(bounds[broken].tolist(), bounds[np.add(broken, 1)].tolist(), strict=True):
            within = self._starts_within(data[:stop], start)
            all_starts.append(np.array(within, np.int64))
            for begin, end in zip([start, *within], [*within, stop], strict=True):
                piece = data[begin:end].tobytes()
                element = (_LIST_END if end == len(data) else _COMMA).sub(b"", piece)
                data[begin + len(element) : end] = SPACE
        return np.sort(np.concatenate(all_starts))

    def _find_end(self, data: Bytes, surplus: Positions, *, last: bool) -> int:
        """Position of the surplus closing bracket that closes the list; the end of the data if there is none."""
        if self._frame.wrapped and len(surplus):
            end = int(surplus[0])
            self.rest = data[end + 1 :].tobytes()
        elif self._frame.brackets and last and len(surplus) and not data[surplus[-1] + 1 :].tobytes().strip():
            end = int(surplus[-1])
        else:
            return len(data)
        self.closed = data[end] == CLOSING
        data[end:] = SPACE
        return end

    def _set_start_pattern(self, data: Bytes, starts: Positions) -> None:
        """From the first key of the first element, the pattern that finds further elements in a broken one."""
        if self._start is None and len(starts):
            key = re.compile(rb'\{\s*("[^"]*"\s*:)').match(memoryview(data.data), int(starts[0]))
            self._start = key and re.compile(rb"\{\s*" + re.escape(key[1]))

    def _stop_open(self, data: Bytes, starts: Positions, stops: Positions, end: int, *, last: bool) -> Positions:
        """The stops, with one for the last, open element: the end, or where another element seems to start in it."""
        if last or end < len(data):
            return np.append(stops, end)
        if self._start and end - starts[-1] > LONGEST:
            return np.append(stops, self._starts_within(data, int(starts[-1]))[-1:]).astype(np.int64)
        return stops

    def _starts_within(self, data: Bytes, start: int) -> list[int]:
        """Positions after `start` where elements seem to start."""
        return (
            [match.start() for match in self._start.finditer(memoryview(data.data), start + 1)] if self._start else []
        )


def _join_lists(data: Bytes, surplus: Positions) -> bool:
    """Overwrite the brackets between consecutive lists, as in joined files; whether there are some."""
    found = False
    for at in surplus:  # few: one per list
        between = _NEXT_LIST.match(memoryview(data.data), int(at))
        if between:
            data[at : between.end()] = np.where(data[at : between.end()] == NEWLINE, NEWLINE, SPACE)
            found = True
    return found


class OpenElement:
    """Finds the end of an element whose text comes in parts."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = False

    def find_end(self, data: Bytes) -> int | None:
        """Position after the element in its next part, which is changed; None if it does not end there."""
        if self._is_escaped and len(data):
            data[0] = SPACE
        quotes = _unescaped(data, find_byte(data, QUOTE))
        brackets = find_bytes(data, lambda block: DEPTH[block])
        brackets = brackets[np.searchsorted(quotes, brackets) % 2 == self._in_string]
        level = self._depth + np.cumsum(DEPTH[data[brackets]], dtype=np.int32)
        closed = np.flatnonzero(level == 0)
        if len(closed):
            return int(brackets[closed[0]]) + 1
        self._depth = int(level[-1]) if len(level) else self._depth
        self._in_string ^= len(quotes) % 2 == 1
        end = data[-LONGEST_ESCAPE:].tobytes()
        self._is_escaped = (len(end) - len(end.rstrip(b"\\"))) % 2 == 1
        return None


_NEXT_LIST = re.compile(rb"\][ \t\r\n]*\[")
_COMMA = re.compile(rb"[ \t\r\n,]+\Z")
_LIST_END = re.compile(rb"[ \t\r\n,]+\Z|(?<=\})[ \t\r\n,]*\][ \t\r\n]*\Z")


def find_elements(data: Bytes) -> tuple[Positions, Positions, Positions]:
    """Start and stop positions of the outermost lists and objects, and the unmatched closing brackets.

    The last element may have no stop.
    """
    quotes = _unescaped(data, find_byte(data, QUOTE))
    brackets = find_bytes(data, lambda block: DEPTH[block])
    brackets = brackets[np.searchsorted(quotes, brackets) % 2 == 0]
    step = DEPTH[data[brackets]]
    depth = np.cumsum(step, dtype=np.int32)
    lowest = np.minimum.accumulate(np.minimum(depth, 0))
    surplus = np.diff(lowest, prepend=0) < 0
    level = depth - lowest
    return brackets[(level == 1) & (step > 0)], brackets[(level == 0) & ~surplus] + 1, brackets[surplus]


def _unescaped(data: Bytes, quotes: Positions) -> Positions:
    """The quotes that follow an even number of backslashes."""
    escaped = np.flatnonzero((quotes > 0) & (data[np.maximum(quotes - 1, 0)] == BACKSLASH))
    if not len(escaped):
        return quotes
    slashes = find_byte(data, BACKSLASH)
    run_starts = np.flatnonzero(np.diff(slashes, prepend=-2) > 1)
    last = slashes.searchsorted(quotes[escaped] - 1)
    run = run_starts[run_starts.searchsorted(last, "right") - 1]
    return np.delete(quotes, escaped[(last - run) % 2 == 0])


def _clear_between(data: Bytes, starts: Positions, stops: Positions, begin: int, end: int) -> Positions:
    """Overwrite the bytes between the elements; return the starts, with one for any unexpected text found there."""
    gaps = np.append(begin, stops), np.append(starts, end)
    lengths = gaps[1] - gaps[0]
    between = np.repeat(gaps[0] - np.append(0, np.cumsum(lengths)[:-1]), lengths) + np.arange(lengths.sum())
    unexpected = between[~np.isin(data[between], BETWEEN)]
    if not len(unexpected):
        data[between] = SPACE
        return starts
    gap = np.searchsorted(gaps[0], unexpected, "right") - 1
    _, first = np.unique(gap, return_index=True)
    last = np.append(first[1:], len(unexpected)) - 1
    inside = np.searchsorted(unexpected[first], between, "right") - 1
    inside = (inside >= 0) & (between <= unexpected[last][np.maximum(inside, 0)])
    data[between[~inside]] = SPACE
    return np.sort(np.append(starts, unexpected[first]))


def _check_rest(path: str, rest: bytes | None) -> None:
    """Raise `SourceError` if lists of objects, or invalid JSON, follow the list that was read."""
    if rest is None or not rest.strip():
        return
    try:
        more = any(map(is_object_list, json.loads(b"{" + rest.strip(b" \t\r\n,")).values()))
    except ValueError:
        more = True
    if more:
        what = f"{path} is an object that contains a list, and more lists or objects follow."
        raise SourceError(what, "Write one object per line, or one list per file.")
