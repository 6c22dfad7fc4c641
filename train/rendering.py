"""In: conversations, a template, a tokenizer. Out: token ids, and beside each the id again where it is learned.

Learned is what the model has to say itself: from where the prompt for an answer ends to the token that ends the
turn, that token included. Where this lies is not looked for in the text. Each conversation is rendered twice, once
as it is and once with every text of every turn between two private-use marks; the marks are taken out again, and
only when the two texts are equal do the places where the marks stood count. So a user who quotes a marker stays a
user, and the labels are right by construction or the conversation has a `problem`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from jinja2 import TemplateError
from tokenizers import Encoding

from schemas.conversation import ASSISTANT_ROLES
from schemas.errors import TrainError
from train.messaging import UnreadableTurnError, message_numbers, to_messages, to_tools
from train.templating import PINNED_DATE, Template, compiled, find_template
from train.tokenizing import Tokenizer

__all__ = [
    "MASK_POLICY",
    "PINNED_DATE",
    "RENDERED",
    "Piece",
    "Region",
    "Rendering",
    "Script",
    "Template",
    "Tokenizer",
    "find_template",
    "render",
]

IGNORED = -100
"""The label of a token that is seen and not learned; torch's cross entropy leaves it out."""

MASK_POLICY = "assistant-turns/1"
"""Name and revision of the rule that makes the labels; it goes into the manifest and the cache key."""

RENDERED: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "input_ids": pl.List(pl.Int32),
    "labels": pl.List(pl.Int32),
    "problem": pl.String,  # why there are no ids, or why they must not be trained
    "stops": pl.List(pl.Int32),  # how many tokens there are up to the end of each learned answer
    "seen_specials": pl.String,  # texts of special tokens that somebody typed, outside of what is learned
    "learned_specials": pl.String,  # the same inside of what is learned
    "left_out": pl.List(pl.Int32),  # turns (from 1) with words of which the template renders or lets learn none
    "straddling": pl.Int32,  # tokens that lie across the start of what is learned
}
"""Columns of a rendered frame."""

TEMPLATE_FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a template raises about a conversation it cannot take: it is a program that others wrote."""

CHUNK = 2_000
"""Conversations that are tokenised at a time: enough for all cores, a few MB of encodings."""


def render(conversations: pl.DataFrame, template: Template, tokenizer: Tokenizer) -> pl.DataFrame:
    """Ids and labels of each conversation, in the order given: the columns of `RENDERED`.

    A conversation that cannot be rendered has a `problem` and no ids. Raises `TrainError` when the template does
    not end an answer with a special token of this tokenizer: the model would never learn to stop.
    """
    script = Script(template, tokenizer)
    script.check_stop()
    chunks = [_rendered(chunk, script) for chunk in conversations.iter_slices(CHUNK)]
    return pl.concat(chunks) if chunks else pl.DataFrame(schema=RENDERED)


@dataclass(frozen=True, slots=True)
class Piece:
    """A text of a turn, and where it stands in the rendering (characters, end excluded)."""

    turn: int
    start: int
    end: int
    whole: bool = True  # False: the template cut its beginning or its end away


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of the rendering that is learned, and the turn that it belongs to."""

    turn: int
    start: int
    end: int
    stop: str | None  # the end-of-turn token that closes it, where it closes the message


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation as text, with what is learned and where each turn's words are; or why there is none."""

    text: str = ""
    regions: tuple[Region, ...] = ()
    pieces: tuple[Piece, ...] = ()
    problem: str | None = None
    left_out: tuple[int, ...] = ()  # turns that have words, of which the template renders (or lets learn) none
    unended: str | None = None  # what stands where an end-of-turn token should


@dataclass
class Script:
    """A template at work for one tokenizer: renders single conversations and finds what is learned in them."""

    template: Template
    tokenizer: Tokenizer
    _render: Callable[..., str] = field(init=False, repr=False)
    prompt: str = field(init=False)
    """What the template adds to ask for an answer, such as `<|im_start|>assistant` and a newline; "" if nothing."""

    def __post_init__(self) -> None:
        self._render = compiled(self.template)
        self.prompt = self._generation_prompt()

    def rendering(self, row: Mapping[str, Any]) -> Rendering:
        """The rendering of one row of a conversations frame; a failure of the template is its `problem`."""
        try:
            return self._rendering(row["conversations"], to_tools(row.get("tools")))
        except UnreadableTurnError as error:
            return Rendering(problem=f"The conversation cannot be rendered: {error}.")
        except TEMPLATE_FAILURES as error:
            reason = str(error).rstrip(".") or type(error).__name__
            return Rendering(problem=f"The template {self.template.name} refuses it: {reason}.")

    def text(self, messages: Sequence[Mapping[str, Any]], tools: object = None, *, prompt: bool = False) -> str:
        """The messages as transformers' `apply_chat_template` renders them."""
        named = self.tokenizer.named
        return self._render(messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, **named)

    def check_stop(self) -> None:
        """Raise `TrainError` when an answer does not end with a special token of this tokenizer."""
        row = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "train": True}]}
        ending = self.rendering(row).unended
        if ending is None:
            return
        raise TrainError(
            f"The template {self.template.name} ends an answer with {ending!r}, which holds no special token of the "
            f"tokenizer in {self.tokenizer.folder}: the model would never learn to stop.",
            "Give --template tokenizer, or one whose end-of-turn token this tokenizer has.",
        )

    def _generation_prompt(self) -> str:
        question = [{"role": "user", "content": "x"}]
        try:
            without, asking = self.text(question), self.text(question, prompt=True)
        except TEMPLATE_FAILURES:
            return ""  # this template wants more than a question; the prompt is then found turn by turn
        return asking[len(without) :] if asking.startswith(without) else ""

    def _rendering(self, turns: Sequence[Mapping[str, Any]], tools: object) -> Rendering:
        messages = to_messages(turns)
        text = self.text(messages, tools)
        for roles in (None, ASSISTANT_ROLES):
            pieces = self._pieces(turns, tools, text, roles)
            if pieces is not None:
                return self._with_regions(turns, messages, tools, text, pieces, all_marked=roles is None)
        return Rendering(
            text, problem=f"The template {self.template.name} writes an answer otherwise when it is marked."
        )

    def _pieces(
        self, turns: Sequence[Mapping[str, Any]], tools: object, text: str, roles: Sequence[str] | None
    ) -> list[Piece] | None:
        """Where the texts of the turns stand, in the order of the rendering; nothing if marking changes it."""
        marks = _Marks.beside(text, turns, roles)
        marked = self.text(to_messages(turns, marks.write), tools)
        plain, pieces = marks.taken_out(marked)
        return pieces if plain == text else None

    def _with_regions(
        self,
        turns: Sequence[Mapping[str, Any]],
        messages: Sequence[Mapping[str, Any]],
        tools: object,
        text: str,
        pieces: list[Piece],
        *,
        all_marked: bool,
    ) -> Rendering:
        numbers = message_numbers(turns)
        runs = [(number, list(run)) for number, run in groupby(pieces, lambda piece: numbers[piece.turn])]
        regions: list[Region] = []
        for place, (number, run) in enumerate(runs):
            if turns[run[0].turn]["from"] not in ASSISTANT_ROLES or not any(_learned(turns[p.turn]) for p in run):
                continue
            before = runs[place - 1][1][-1].end if place else 0
            after = runs[place + 1][1][0].start if place + 1 < len(runs) else len(text)
            start = self._answer_start(text, before, run[0].start) if all_marked else None
            if start is None:
                start = self._after_prompt(messages[:number], tools, text, before, run[0])
            if start is None:
                continue  # its beginning was cut, nobody knows where: not learned
            stop = self._stop(text[run[-1].end : after])
            if stop is None:
                problem = f"No special token ends turn {run[-1].turn + 1}: the model would not learn to stop there."
                return Rendering(text, problem=problem, unended=text[run[-1].end : after])
            regions += _regions_of(run, turns, start, (stop.group(), run[-1].end + stop.end()))
        left_out = _left_out(turns, pieces, regions) if all_marked else ()
        return Rendering(text, tuple(regions), tuple(pieces), _lost_call(turns, left_out, self.template), left_out)

    def _answer_start(self, text: str, before: int, first: int) -> int | None:
        """Where the generation prompt ends between the words before and the answer's own first word."""
        found = text.rfind(self.prompt, before, first) if self.prompt.strip() else -1
        return None if found < 0 else found + len(self.prompt)

    def _after_prompt(
        self, before: Sequence[Mapping[str, Any]], tools: object, text: str, low: int, first: Piece
    ) -> int | None:
        """The same by rendering what a server would be sent for this answer; else the answer's first word."""
        try:
            sent = self.text(before, tools, prompt=True)
        except TEMPLATE_FAILURES:
            sent = ""  # some templates refuse a conversation that has no answer yet
        if sent and text.startswith(sent) and low <= len(sent) <= first.start:
            return len(sent)
        return first.start if first.whole else None

    def _stop(self, gap: str) -> re.Match[str] | None:
        """The end-of-turn token in the template's text behind an answer: the first special token.

        Where generation does not end there, but does at one of the special tokens right behind it, that one: so
        Gemma 4 closes a tool call with one token and hands over with the next.
        """
        first, behind = None, 0
        for match in self.tokenizer.special_text.finditer(gap):
            if first is not None and match.start() != behind:
                break
            if match.group() in self.tokenizer.stops:
                return match
            first, behind = first or match, match.end()
        return first


def _learned(turn: Mapping[str, Any]) -> bool:
    return turn.get("train") is not False


def _left_out(
    turns: Sequence[Mapping[str, Any]], pieces: Sequence[Piece], regions: Sequence[Region]
) -> tuple[int, ...]:
    """The turns whose words are not in the rendering, and those that should be learned and are not."""
    shown, learned = {piece.turn for piece in pieces}, {region.turn for region in regions}
    meant = {n for n, turn in enumerate(turns) if turn["from"] in ASSISTANT_ROLES and _learned(turn)}
    words = {n for n, turn in enumerate(turns) if turn["value"].strip()}
    return tuple(sorted((words - shown) | ((words & meant) - learned)))


def _lost_call(turns: Sequence[Mapping[str, Any]], left_out: Sequence[int], template: Template) -> str | None:
    lost = next((number for number in left_out if turns[number]["from"] == "function_call"), None)
    return None if lost is None else f"The template {template.name} does not render the tool call of turn {lost + 1}."


def _regions_of(
    run: Sequence[Piece], turns: Sequence[Mapping[str, Any]], start: int, stop: tuple[str, int]
) -> Iterator[Region]:
    """The learned stretches of one assistant message: each turn's from the end of the one before to its own end."""
    groups = [(turn, list(pieces)) for turn, pieces in groupby(run, lambda piece: piece.turn)]
    for place, (turn, pieces) in enumerate(groups):
        is_last = place == len(groups) - 1
        end = stop[1] if is_last else pieces[-1].end
        if _learned(turns[turn]):
            yield Region(turn, start, end, stop[0] if is_last else None)
        start = end


# ---------------------------------------------------------------------------------------------------------- marks

_PRIVATE = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_OPEN, _CLOSE = 0xF0000, 0x100000
_ROOM = 0xFFFE
"""Two planes of private-use characters: one opens piece n, one closes it, so a mark says whose it is."""


@dataclass
class _Marks:
    """Numbers the texts that are written into messages, and finds them again in the rendering.

    The stripped core of a text is wrapped, because many templates trim; an empty text gets no marks. A text that a
    template writes twice (the name of a tool, again with its result) counts where it stands first.
    """

    first: int
    roles: Sequence[str]
    turns: list[int] = field(default_factory=list)

    @classmethod
    def beside(cls, text: str, turns: Sequence[Mapping[str, Any]], roles: Sequence[str] | None) -> _Marks:
        """Marks that do not occur in `text`, for the turns of `roles` (None: of all)."""
        used = max((ord(character) & 0xFFFF for character in _PRIVATE.findall(text)), default=-1)
        speakers = [turn["from"] for turn in turns]
        return cls(used + 1, [role if roles is None or role in roles else "" for role in speakers])

    def write(self, turn: int, text: str) -> str:
        core = text.strip()
        if not core or not self.roles[turn]:
            return text
        number = self.first + len(self.turns)
        if number >= _ROOM:
            raise UnreadableTurnError(f"it has more than {_ROOM:,} texts")
        self.turns.append(turn)
        head, _, tail = text.partition(core)
        return f"{head}{chr(_OPEN + number)}{core}{chr(_CLOSE + number)}{tail}"

    def taken_out(self, marked: str) -> tuple[str, list[Piece]]:
        """The text without the marks, and the pieces in its order. A piece that lost one mark is empty."""
        opened: dict[int, int] = {}
        closed: dict[int, int] = {}
        parts, position, length = [], 0, 0
        for match in _PRIVATE.finditer(marked):
            number = (ord(match.group()) & 0xFFFF) - self.first
            if not 0 <= number < len(self.turns):
                continue  # a private-use character of the conversation itself
            parts.append(marked[position : match.start()])
            length += match.start() - position
            position = match.end()
            (opened if ord(match.group()) < _CLOSE else closed).setdefault(number, length)
        starts = closed | opened  # the opening mark where it is left, else the closing one
        pieces = [
            Piece(self.turns[n], start, max(start, closed.get(n, start)), n in opened and n in closed)
            for n, start in starts.items()
        ]
        return "".join([*parts, marked[position:]]), sorted(pieces, key=lambda piece: (piece.start, piece.turn))


# --------------------------------------------------------------------------------------------------------- tokens


def _rendered(conversations: pl.DataFrame, script: Script) -> pl.DataFrame:
    """One chunk: Jinja conversation by conversation (a template is a program), tokens all at once."""
    renderings = [script.rendering(row) for row in conversations.iter_rows(named=True)]
    encodings = iter(script.tokenizer.encode([r.text for r in renderings if r.problem is None]))
    rows = [_row(r, next(encodings) if r.problem is None else None, script.tokenizer) for r in renderings]
    return _frame(conversations["id"], rows)


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int] | None = None
    labels: list[int] | None = None
    problem: str | None = None
    stops: list[int] = field(default_factory=list)
    seen_specials: str | None = None
    learned_specials: str | None = None
    left_out: list[int] = field(default_factory=list)
    straddling: int = 0


def _row(rendering: Rendering, encoding: Encoding | None, tokenizer: Tokenizer) -> _Row:
    if encoding is None:
        return _Row(problem=rendering.problem)
    ids = encoding.ids
    labels, stops, straddling = [IGNORED] * len(ids), [], 0
    for region in rendering.regions:
        start, end, across = token_range(encoding, region.start, region.end)
        labels[start:end] = ids[start:end]
        straddling += across
        if region.stop is not None:
            stops.append(end)
            if ids[end - 1] != tokenizer.id_of(region.stop):
                return _Row(problem=f"The tokenizer does not read {region.stop} behind turn {region.turn + 1} as one.")
    seen, learned = _typed_specials(rendering, tokenizer)
    left_out = [turn + 1 for turn in rendering.left_out]
    return _Row(ids, labels, _doubled_start(ids, tokenizer), stops, seen, learned, left_out, straddling)


def token_range(encoding: Encoding, start: int, end: int) -> tuple[int, int, bool]:
    """The tokens that hold characters `start` to `end`: the first, the last + 1, and whether the first begins before.

    A token that lies across the start counts as in: without it a part of the answer would never be learned.
    """
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    last = next((t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None or last is None:
        return 0, 0, False
    while last + 1 < len(encoding) and _characters(encoding, last + 1)[0] < end:
        last += 1  # one character can be several tokens
    return first, last + 1, _characters(encoding, first)[0] < start


def _characters(encoding: Encoding, token: int) -> tuple[int, int]:
    """Where the characters of a token stand; `encoding.offsets` would build the whole list each time."""
    found = encoding.token_to_chars(token)
    assert found is not None, "a token of the encoding has characters, for nothing was added to the text"
    return found[0], found[1]


def _typed_specials(rendering: Rendering, tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """The special tokens whose text stands in what turns say: outside of what is learned, and inside.

    A chat tokenizer, and the server later, reads such text as the token itself.
    """
    learned_turns = {region.turn for region in rendering.regions}
    typed: tuple[set[str], set[str]] = (set(), set())
    for piece in rendering.pieces:
        found = tokenizer.special_text.findall(rendering.text, piece.start, piece.end)
        typed[piece.turn in learned_turns].update(found)
    seen, learned = (" ".join(sorted(texts)) or None for texts in typed)
    return seen, learned


def _doubled_start(ids: Sequence[int], tokenizer: Tokenizer) -> str | None:
    start = tokenizer.named.get("bos_token")
    if start is None or list(ids[:2]) != [tokenizer.id_of(start)] * 2:
        return None
    return f"It begins with {start} twice."


def _frame(ids: pl.Series, rows: Sequence[_Row]) -> pl.DataFrame:
    columns = pl.DataFrame(
        [
            ids.alias("id"),
            _lists("input_ids", [row.ids for row in rows]),
            _lists("labels", [row.labels for row in rows]),
            pl.Series("problem", [row.problem for row in rows], pl.String),
            _lists("stops", [row.stops if row.ids is not None else None for row in rows]),
            pl.Series("seen_specials", [row.seen_specials for row in rows], pl.String),
            pl.Series("learned_specials", [row.learned_specials for row in rows], pl.String),
            _lists("left_out", [row.left_out for row in rows]),
            pl.Series("straddling", [row.straddling for row in rows], pl.Int32),
        ]
    )
    return columns.match_to_schema(RENDERED)


def _lists(name: str, values: Sequence[list[int] | None]) -> pl.Series:
    """A column of lists, laid over one flat array: twice as fast as handing the lists to Polars."""
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    flat = np.fromiter(chain.from_iterable(value or () for value in values), np.int32, int(offsets[-1]))
    missing = np.fromiter((value is None for value in values), np.bool_, len(values))
    column = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, flat, mask=pa.array(missing)))
    assert isinstance(column, pl.Series)
    return column.alias(name)
