"""In: one conversation, a template, a tokenizer. Out: it as text, with what is learned and where each turn's words are.

Learned is what the model has to say itself: from where the prompt for an answer ends to the token that ends the
turn, that token included. Where this lies is not looked for in the text. Each conversation is rendered twice, once
as it is and once with every text of every turn between two private-use marks; the marks are taken out again, and
only when the two texts are equal do the places where the marks stood count. So a user who quotes a marker stays a
user, and the labels are right by construction or the conversation has a `problem`. The second rendering is spared
where an earlier one of the same shape tells what it would say (`train.moulding`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from jinja2 import TemplateError

from schemas.conversation import ASSISTANT_ROLES
from schemas.errors import TrainError
from train.tokens.chat_template import Template, compile_template
from train.tokens.messages import UnreadableTurnError, message_numbers, to_messages, to_tools
from train.tokens.reasoning import Reasoning, skip_reasoning, strip_reasoning
from train.tokens.tokenizer import Tokenizer, first_difference

TEMPLATE_FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a template raises about a conversation it cannot take: it is a program that others wrote."""


@dataclass(frozen=True, slots=True)
class TurnSpan:
    """A text of a turn, and where it stands in the rendering (characters, end excluded)."""

    turn: int
    start: int
    end: int
    complete: bool = True  # False: the template cut its beginning or its end away


@dataclass(frozen=True, slots=True)
class LossSpan:
    """A stretch of the rendering that is learned, and the turn that it belongs to."""

    turn: int
    start: int
    end: int
    stop: str | None  # the end-of-turn token that closes it, where it closes the message


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation as text, with what is learned and where each turn's words are; or why there is none."""

    text: str = ""
    loss_spans: tuple[LossSpan, ...] = ()
    turn_spans: tuple[TurnSpan, ...] = ()
    problem: str | None = None
    omitted_turns: tuple[int, ...] = ()  # turns that have words, of which the template renders (or lets learn) none
    missing_stop: str | None = None  # what stands where an end-of-turn token should


@dataclass
class ChatRenderer:
    """A template at work for one tokenizer: renders single conversations and finds what is learned in them."""

    template: Template
    tokenizer: Tokenizer
    reasoning: Reasoning = "learn"
    _render: Callable[..., str] = field(init=False, repr=False)
    _moulds: dict[Shape, CachedMask] = field(init=False, repr=False, default_factory=dict)
    generation_prompt: str = field(init=False)
    """What the template adds to ask for an answer, such as `<|im_start|>assistant` and a newline; "" if nothing."""

    def __post_init__(self) -> None:
        self._render = compile_template(self.template)
        self.generation_prompt = self._generation_prompt()

    def render(self, row: Mapping[str, Any]) -> Rendering:
        """The rendering of one row of a conversations frame; a failure of the template is its `problem`."""
        turns = row["conversations"] if self.reasoning != "strip" else strip_reasoning(row["conversations"])
        try:
            rendering = self._rendering(turns, to_tools(row.get("tools")))
        except UnreadableTurnError as error:
            return Rendering(problem=f"The conversation cannot be rendered: {error}.")
        except TEMPLATE_FAILURES as error:
            reason = str(error).rstrip(".") or type(error).__name__
            return Rendering(problem=f"The template {self.template.name} refuses it: {reason}.")
        return rendering if self.reasoning != "skip" else _without_reasoning(rendering)

    def apply_template(
        self, messages: Sequence[Mapping[str, Any]], tools: object = None, *, add_generation_prompt: bool = False
    ) -> str:
        """The messages as transformers' `apply_chat_template` renders them."""
        named = self.tokenizer.named
        return self._render(
            messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **named
        )

    def check_stop_token(self) -> None:
        """Raise `TrainError` when an answer does not end with a special token of this tokenizer."""
        row = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "train": True}]}
        ending = self.render(row).missing_stop
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
            without, asking = self.apply_template(question), self.apply_template(question, add_generation_prompt=True)
        except TEMPLATE_FAILURES:
            return ""  # this template wants more than a question; the prompt is then found turn by turn
        return asking[len(without) :] if asking.startswith(without) else ""

    def _rendering(self, turns: Sequence[Mapping[str, Any]], tools: object) -> Rendering:
        messages = to_messages(turns)
        text = self.apply_template(messages, tools)
        shape = _shape(turns, tools)
        mould = self._moulds.get(shape) if shape else None
        moulded = mould.fill(turns, text) if mould else None
        if moulded is not None:
            return moulded
        rendering = self._marked(turns, messages, tools, text)
        mould = CachedMask.of(turns, rendering) if shape else None
        if shape and mould and (shape in self._moulds or len(self._moulds) < MAX_CACHED):
            self._moulds[shape] = mould
        return rendering

    def _marked(
        self, turns: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]], tools: object, text: str
    ) -> Rendering:
        """The rendering whose parts are found by marks around the texts of all turns, else around the answers'."""
        for roles in (None, ASSISTANT_ROLES):
            marks = _Marks.beside(text, turns, roles)
            plain, pieces = marks.taken_out(self.apply_template(to_messages(turns, marks.write), tools))
            if plain == text:
                return self._with_regions(turns, messages, tools, text, pieces, all_marked=roles is None)
        return Rendering(text, problem=self._difference(text, plain))

    def _difference(self, text: str, marked: str) -> str:
        """The problem that marking changes the rendering, with the first token that differs."""
        ids, others = (encoding.ids for encoding in self.tokenizer.encode([text, marked]))
        place = first_difference(ids, others)
        ours, other = (
            self.tokenizer.backend.decode(row[place : place + 1], skip_special_tokens=False) for row in (ids, others)
        )
        return (
            f"The template {self.template.name} renders an answer differently when it is marked, so the loss mask "
            f"cannot be verified: token {place} is {ours!r}, but {other!r} with marks."
        )

    def _with_regions(
        self,
        turns: Sequence[Mapping[str, Any]],
        messages: Sequence[Mapping[str, Any]],
        tools: object,
        text: str,
        pieces: list[TurnSpan],
        *,
        all_marked: bool,
    ) -> Rendering:
        numbers = message_numbers(turns)
        runs = [(number, list(run)) for number, run in groupby(pieces, lambda piece: numbers[piece.turn])]
        regions: list[LossSpan] = []
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
                return Rendering(text, problem=problem, missing_stop=text[run[-1].end : after])
            regions += _regions_of(run, turns, start, (stop.group(), run[-1].end + stop.end()))
        omitted_turns = _left_out(turns, pieces, regions) if all_marked else ()
        return Rendering(
            text, tuple(regions), tuple(pieces), _lost_call(turns, omitted_turns, self.template), omitted_turns
        )

    def _answer_start(self, text: str, before: int, first: int) -> int | None:
        """Where the generation prompt ends between the words before and the answer's own first word."""
        found = text.rfind(self.generation_prompt, before, first) if self.generation_prompt.strip() else -1
        return None if found < 0 else found + len(self.generation_prompt)

    def _after_prompt(
        self, before: Sequence[Mapping[str, Any]], tools: object, text: str, low: int, first: TurnSpan
    ) -> int | None:
        """The same by rendering what a server would be sent for this answer; else the answer's first word."""
        try:
            sent = self.apply_template(before, tools, add_generation_prompt=True)
        except TEMPLATE_FAILURES:
            sent = ""  # some templates refuse a conversation that has no answer yet
        if sent and text.startswith(sent) and low <= len(sent) <= first.start:
            return len(sent)
        return first.start if first.complete else None

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


def _without_reasoning(rendering: Rendering) -> Rendering:
    """The rendering with what is learned beginning behind the reasoning; what is all reasoning is left out."""
    moved = [replace(r, start=skip_reasoning(rendering.text, r.start, r.end)) for r in rendering.loss_spans]
    regions = tuple(region for region in moved if region.start < region.end)
    unlearned = {region.turn for region in moved} - {region.turn for region in regions}
    return replace(rendering, loss_spans=regions, omitted_turns=tuple(sorted({*rendering.omitted_turns, *unlearned})))


def _learned(turn: Mapping[str, Any]) -> bool:
    return turn.get("train") is not False


def _left_out(
    turns: Sequence[Mapping[str, Any]], pieces: Sequence[TurnSpan], regions: Sequence[LossSpan]
) -> tuple[int, ...]:
    """The turns whose words are not in the rendering, and those that should be learned and are not."""
    shown, learned = {piece.turn for piece in pieces}, {region.turn for region in regions}
    meant = {n for n, turn in enumerate(turns) if turn["from"] in ASSISTANT_ROLES and _learned(turn)}
    words = {n for n, turn in enumerate(turns) if turn["value"].strip()}
    return tuple(sorted((words - shown) | ((words & meant) - learned)))


def _lost_call(turns: Sequence[Mapping[str, Any]], omitted_turns: Sequence[int], template: Template) -> str | None:
    lost = next((number for number in omitted_turns if turns[number]["from"] == "function_call"), None)
    return None if lost is None else f"The template {template.name} does not render the tool call of turn {lost + 1}."


def _regions_of(
    run: Sequence[TurnSpan], turns: Sequence[Mapping[str, Any]], start: int, stop: tuple[str, int]
) -> Iterator[LossSpan]:
    """The learned stretches of one assistant message: each turn's from the end of the one before to its own end."""
    groups = [(turn, list(pieces)) for turn, pieces in groupby(run, lambda piece: piece.turn)]
    for place, (turn, pieces) in enumerate(groups):
        is_last = place == len(groups) - 1
        end = stop[1] if is_last else pieces[-1].end
        if _learned(turns[turn]):
            yield LossSpan(turn, start, end, stop[0] if is_last else None)
        start = end


# --------------------------------------------------------------------------------------------------------- moulds

MAX_CACHED = 1_000
"""Shapes that are remembered; conversations of more turns than others' are rarely of a shape that comes again."""

Shape = tuple[tuple[str, bool], ...]
"""Who speaks in each turn, and whether it is learned."""


def _shape(turns: Sequence[Mapping[str, Any]], tools: object) -> Shape | None:
    """The shape of a conversation; nothing where calls or tools make the words come out in a form of their own."""
    if tools is not None or any(turn["from"] == "function_call" for turn in turns):
        return None
    return tuple((turn["from"], _learned(turn)) for turn in turns)


@dataclass(frozen=True, slots=True)
class CachedMask:
    """What a template writes around the words of conversations of one shape, taken from one that was marked.

    It saves the marked rendering, not the proof: with the words of another conversation filled in it has to give the
    template's own rendering of that conversation, character for character; then every word stands where the mould
    has it. Where it does not (a template that trims, or cuts reasoning away) the conversation is marked after all.
    """

    literals: tuple[str, ...]  # before, between and behind the words
    regions: tuple[tuple[int, int, int, str | None], ...]  # turn, characters before and behind its words, stop

    @classmethod
    def of(cls, turns: Sequence[Mapping[str, Any]], rendering: Rendering) -> CachedMask | None:
        """The mask of a marked rendering that contains the text of every turn once and in order; otherwise None."""
        pieces, text = rendering.turn_spans, rendering.text
        as_they_are = [text[piece.start : piece.end] for piece in pieces] == [turn["value"] for turn in turns]
        in_order = [piece.turn for piece in pieces] == [*range(len(turns))] and all(piece.complete for piece in pieces)
        if rendering.problem or rendering.omitted_turns or not (as_they_are and in_order):
            return None
        borders = [0, *(border for piece in pieces for border in (piece.start, piece.end)), len(text)]
        literals = (text[start:end] for start, end in zip(borders[::2], borders[1::2], strict=True))
        around = (
            (r.turn, pieces[r.turn].start - r.start, r.end - pieces[r.turn].end, r.stop) for r in rendering.loss_spans
        )
        return cls(tuple(literals), tuple(around))

    def fill(self, turns: Sequence[Mapping[str, Any]], text: str) -> Rendering | None:
        """The rendering of these turns, if `text` is this mould filled with their words; else nothing."""
        parts, pieces, position = [self.literals[0]], [], len(self.literals[0])
        for number, turn in enumerate(turns):
            words, behind = turn["value"], self.literals[number + 1]
            if not words or words.strip() != words:
                return None  # a template may trim it, and marks stand inside of outer white space
            end = position + len(words)
            pieces.append(TurnSpan(number, position, end))
            parts += (words, behind)
            position = end + len(behind)
        if "".join(parts) != text:
            return None
        regions = tuple(
            LossSpan(turn, pieces[turn].start - before, pieces[turn].end + behind, stop)
            for turn, before, behind, stop in self.regions
        )
        return Rendering(text, regions, tuple(pieces))


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

    def taken_out(self, marked: str) -> tuple[str, list[TurnSpan]]:
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
            TurnSpan(self.turns[n], start, max(start, closed.get(n, start)), n in opened and n in closed)
            for n, start in starts.items()
        ]
        return "".join([*parts, marked[position:]]), sorted(pieces, key=lambda piece: (piece.start, piece.turn))
