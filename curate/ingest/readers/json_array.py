"""A JSON list of objects to batches, however large: its elements are found by their brackets, all at once.

A list may be wrapped in an object, `{"data": […]}`, or have no brackets at all, one object behind the other as
`jq` writes them. An element that is broken may take others along, as far as brackets and quotes can tell; its text
is then cut wherever an object starts with the first key of the first element.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import NamedTuple

import numpy as np

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import BLOCK, CHUNK, Bytes, ByteStream, Positions, find
from curate.ingest.readers.detect import holds_objects, holds_turns
from curate.ingest.readers.json_objects import ObjectReader
from curate.ingest.readers.text_arrays import texts_of
from schemas.errors import SourceError

QUOTE, BACKSLASH, SPACE = b'"\\ '
CLOSING = ord("]")
BETWEEN = np.frombuffer(b" \t\r\n,", np.uint8)
"""What may stand between two elements."""

DEPTH = np.zeros(256, np.int8)
DEPTH[list(b"{[")], DEPTH[list(b"}]")] = 1, -1
"""What a byte outside of strings adds to the depth."""

LONGEST = CHUNK // 2
"""Bytes after which an element that has not ended is cut where others seem to start in it."""

NO_ROWS = ("tools", "functions")
"""Keys whose lists of objects belong to one row."""


class Frame(NamedTuple):
    """What stands around the elements."""

    opening: int
    """Bytes before the place of the first element."""
    brackets: bool
    """The list has brackets."""
    wrapped: bool
    """The list is a value in an object."""


def read_json(stream: ByteStream) -> Iterator[Batch]:
    """The elements of a JSON list, in order; a record's line is the one that its element starts in.

    A list that is not closed gives a last reject. Raises `SourceError` where an object wraps several lists.
    """
    splitter = ElementSplitter(find_frame(stream.head()))
    objects = ObjectReader(stream.path)
    line, open_end = 1, False
    for chunk in stream.chunks(splitter):
        starts, texts = chunk.parts, texts_of(chunk.data, chunk.parts)
        found = objects.read(texts)
        broken = [problem.position for problem in found.problems if problem.code == "broken-json"]
        open_end = broken[-1:] == [len(starts) - 1]
        if broken:
            starts = splitter.cut(chunk.data, starts, broken)
            texts = texts_of(chunk.data, starts)
            found = objects.read(texts)
        yield objects.batch(texts, chunk.line_at(starts), found)
        line = chunk.first_line + len(chunk.newlines)
    _check_rest(stream.path, splitter.rest)
    if not splitter.closed and not open_end:
        yield objects.refusal(line, "not-closed", "The list has no closing bracket: the file may be cut off here.")


def find_frame(head: bytes) -> Frame:
    """Where the elements start, and what closes them, by the first bytes of a JSON file."""
    text = head.decode("latin-1")  # a character a byte: what is sought is ASCII
    start = _skip(text, 0)
    if text.startswith("[", start):
        return Frame(start + 1, brackets=True, wrapped=False)
    wrapped = _find_wrapped(text, start + 1) if text.startswith("{", start) else None
    return Frame(wrapped, brackets=True, wrapped=True) if wrapped else Frame(0, brackets=False, wrapped=False)


def _find_wrapped(text: str, at: int) -> int | None:
    """Position behind the bracket that opens the list of rows among the values of an object; None: it has none."""
    decoder = json.JSONDecoder()
    try:
        while text.startswith('"', at := _skip(text, at)):
            key, at = scanstring(text, at + 1)
            at = _skip(text, text.index(":", at) + 1)
            if key not in NO_ROWS and re.compile(r"\[\s*\{").match(text, at):
                return None if _are_turns(text, text.index("{", at)) else at + 1
            _, at = decoder.raw_decode(text, at)
            at = _skip(text, at) + 1
    except ValueError:
        pass  # the value goes on behind the bytes that were looked at, or is broken: a row itself
    return None


def _are_turns(text: str, at: int) -> bool:
    try:
        return holds_turns([json.JSONDecoder().raw_decode(text, at)[0]])
    except ValueError:
        return False


def _skip(text: str, at: int) -> int:
    white = re.compile(r"[ \t\r\n]*").match(text, at)
    return white.end() if white else at


class ElementSplitter:
    """Cuts chunks behind whole elements; the parts are the positions where elements start.

    What stands between two elements and is neither white space nor a comma counts as an element as well, so that
    it ends among the rejects. The bytes between elements are overwritten with spaces.
    """

    def __init__(self, frame: Frame) -> None:
        self.closed = not frame.brackets
        self.rest: bytes | None = None
        """What follows the closing bracket of a wrapped list."""
        self._frame = frame
        self._opening = frame.opening
        self._start: re.Pattern[bytes] | None = None

    def __call__(self, data: Bytes, newlines: Positions, last: bool) -> tuple[int, Positions]:  # noqa: ARG002
        """How many bytes of `data` are whole elements, and where these start."""
        data[: self._opening] = SPACE
        self._opening = 0
        if self.rest is not None:
            self.rest += data.tobytes()
            return len(data), np.empty(0, np.int64)
        starts, stops, surplus = elements(data)
        end = self._find_end(data, surplus, last=last)
        starts, stops = starts[starts < end], stops[stops <= end]
        self._learn_start(data, starts)
        if len(starts) > len(stops):
            stops = self._stop_open(data, starts, stops, end, last=last)
            starts = starts[: len(stops)]
        whole = len(data) if last or end < len(data) else int(stops[-1]) if len(stops) else 0
        return whole, _clear_between(data, starts, stops, min(whole, end))

    def cut(self, data: Bytes, starts: Positions, broken: Sequence[int]) -> Positions:
        """The starts, with those that are found within the broken elements; what separates them is overwritten.

        A broken element at the end of the data may have taken the list's closing bracket along.
        """
        found = [starts]
        bounds = np.append(starts, len(data))
        for start, stop in zip(bounds[broken].tolist(), bounds[np.add(broken, 1)].tolist(), strict=True):
            within = self._starts_within(data[:stop], start)
            found.append(np.array(within, np.int64))
            for begin, end in zip([start, *within], [*within, stop], strict=True):
                piece = data[begin:end].tobytes()
                kept = (_LIST_END if end == len(data) else _COMMA).sub(b"", piece)
                data[begin + len(kept) : end] = SPACE
        return np.sort(np.concatenate(found))

    def _find_end(self, data: Bytes, surplus: Positions, *, last: bool) -> int:
        """Where the list is closed, by one of the surplus closing brackets; behind the data where it is not."""
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

    def _learn_start(self, data: Bytes, starts: Positions) -> None:
        if self._start is None and len(starts):
            key = re.compile(rb'\{\s*("[^"]*"\s*:)').match(memoryview(data.data), int(starts[0]))
            self._start = key and re.compile(rb"\{\s*" + re.escape(key[1]))

    def _stop_open(self, data: Bytes, starts: Positions, stops: Positions, end: int, *, last: bool) -> Positions:
        """The stops, with one for the last element, which has none: at the end, or where the next seems to start."""
        if last or end < len(data):
            return np.append(stops, end)
        if self._start and end - starts[-1] > LONGEST:
            return np.append(stops, self._starts_within(data, int(starts[-1]))[-1:]).astype(np.int64)
        return stops

    def _starts_within(self, data: Bytes, start: int) -> list[int]:
        """Where elements seem to start behind the one at `start`."""
        return (
            [match.start() for match in self._start.finditer(memoryview(data.data), start + 1)] if self._start else []
        )


_COMMA = re.compile(rb"[ \t\r\n,]+\Z")
_LIST_END = re.compile(rb"[ \t\r\n,]+\Z|(?<=\})[ \t\r\n,]*\][ \t\r\n]*\Z")


def elements(data: Bytes) -> tuple[Positions, Positions, Positions]:
    """Where the outermost lists and objects start and stop, and the closing brackets that close nothing.

    The last of them may have no stop.
    """
    quotes = _unescaped(data, find(data, QUOTE))
    brackets = _find_brackets(data)
    brackets = brackets[np.searchsorted(quotes, brackets) % 2 == 0]
    step = DEPTH[data[brackets]].astype(np.int64)
    depth = np.cumsum(step)
    lowest = np.minimum.accumulate(np.minimum(depth, 0))
    surplus = np.diff(lowest, prepend=0) < 0
    level = depth - lowest
    return brackets[(level == 1) & (step > 0)], brackets[(level == 0) & ~surplus] + 1, brackets[surplus]


def _unescaped(data: Bytes, quotes: Positions) -> Positions:
    """The quotes that stand behind an even number of backslashes."""
    behind = np.flatnonzero((quotes > 0) & (data[np.maximum(quotes - 1, 0)] == BACKSLASH))
    if not len(behind):
        return quotes
    slashes = find(data, BACKSLASH)
    begins = np.flatnonzero(np.diff(slashes, prepend=-2) > 1)  # of runs
    last = slashes.searchsorted(quotes[behind] - 1)
    run = begins[begins.searchsorted(last, "right") - 1]
    return np.delete(quotes, behind[(last - run) % 2 == 0])


def _find_brackets(data: Bytes) -> Positions:
    blocks = [np.flatnonzero(DEPTH[data[at : at + BLOCK]]) + at for at in range(0, len(data), BLOCK)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)


def _clear_between(data: Bytes, starts: Positions, stops: Positions, end: int) -> Positions:
    """Overwrite what stands between the elements; the starts, with one for anything that should not stand there."""
    gaps = np.append(0, stops), np.append(starts, end)
    lengths = gaps[1] - gaps[0]
    between = np.repeat(gaps[0] - np.append(0, np.cumsum(lengths)[:-1]), lengths) + np.arange(lengths.sum())
    strange = between[~np.isin(data[between], BETWEEN)]
    if not len(strange):
        data[between] = SPACE
        return starts
    gap = np.searchsorted(gaps[0], strange, "right") - 1
    _, first = np.unique(gap, return_index=True)
    last = np.append(first[1:], len(strange)) - 1
    inside = np.searchsorted(strange[first], between, "right") - 1
    inside = (inside >= 0) & (between <= strange[last][np.maximum(inside, 0)])
    data[between[~inside]] = SPACE
    return np.sort(np.append(starts, strange[first]))


def _check_rest(path: str, rest: bytes | None) -> None:
    """Raise `SourceError` where something else than single values follows the list that was read."""
    if rest is None or not rest.strip():
        return
    try:
        more = any(map(holds_objects, json.loads(b"{" + rest.strip(b" \t\r\n,")).values()))
    except ValueError:
        more = True
    if more:
        what = f"{path} is an object around a list, and more lists or objects follow behind it."
        raise SourceError(what, "Write one object a line, or one list a file.")
