"""One conversation, a chat template and a tokenizer → its text, with loss spans and the span of each turn's text.

The loss covers what the model has to generate: from the end of the generation prompt to the end-of-turn token,
included. Its position is not searched for in the text. Each conversation is rendered twice, as it is and with every
text of every turn between two private-use characters (marks). If the two renderings are equal without the marks, the
marks give the spans; otherwise the conversation has a `problem`. So a quoted control token in a user's turn cannot move
the loss. The second rendering is skipped if an earlier one of the same turn pattern predicts it (`CachedMask`).
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
"""Exceptions of a template, which is a program, for a conversation that it does not support."""

MAX_CACHED = 1_000
"""Number of turn patterns in a renderer's cache of masks."""


@dataclass(frozen=True, slots=True)
class TurnSpan:
    """The characters of a turn's text in the rendering, end excluded."""

    turn: int
    start: int
    end: int
    complete: bool = True  # False: the template cut off its beginning or end


@dataclass(frozen=True, slots=True)
class LossSpan:
    """Characters of the rendering that contribute to the loss, end excluded, and the turn they belong to."""

    turn: int
    start: int
    end: int
    stop: str | None  # the end-of-turn token at its end; None if the message continues


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation as text with its spans, or the problem why it cannot be trained on."""

    text: str = ""
    loss_spans: tuple[LossSpan, ...] = ()
    turn_spans: tuple[TurnSpan, ...] = ()
    problem: str | None = None
    omitted_turns: tuple[int, ...] = ()  # turns with text of which none is rendered, or none in the loss
    missing_stop: str | None = None  # the text in which no end-of-turn token was found


@dataclass
class ChatRenderer:
    """Renders conversations with a template for one tokenizer, and finds their loss spans."""

    template: Template
    tokenizer: Tokenizer
    reasoning: Reasoning = "learn"
    generation_prompt: str = field(init=False)
    """The text that the template adds to request an answer, such as `<|im_start|>assistant` and a newline, or ""."""
    _apply: Callable[..., str] = field(init=False, repr=False)
    _masks: dict[TurnPattern, CachedMask] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._apply = compile_template(self.template)
        self.generation_prompt = self._find_generation_prompt()

    def render(self, row: Mapping[str, Any]) -> Rendering:
        """The rendering of one row of a conversations frame; a failure of the template becomes its `problem`."""
        turns = row["conversations"] if self.reasoning != "strip" else strip_reasoning(row["conversations"])
        try:
            rendering = self._render(turns, to_tools(row.get("tools")))
        except UnreadableTurnError as error:
            return Rendering(problem=f"The conversation cannot be rendered: {error}.")
        except TEMPLATE_FAILURES as error:
            reason = str(error).rstrip(".") or type(error).__name__
            return Rendering(problem=f"The template {self.template.name} refuses it: {reason}.")
        return rendering if self.reasoning != "skip" else _without_reasoning(rendering)

    def apply_template(
        self, messages: Sequence[Mapping[str, Any]], tools: object = None, *, add_generation_prompt: bool = False
    ) -> str:
        """The text that transformers' `apply_chat_template` renders for these messages."""
        named = self.tokenizer.named
        return self._apply(
            messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **named
        )

    def check_stop_token(self) -> None:
        """Raise `TrainError` if an answer does not end with a special token of this tokenizer."""
        row = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "train": True}]}
        ending = self.render(row).missing_stop
        if ending is None:
            return
        raise TrainError(
            f"The template {self.template.name} ends an answer with {ending!r}, which contains no special token of the "
            f"tokenizer in {self.tokenizer.folder}: the model would never learn to stop.",
            "Use --template tokenizer, or a template whose end-of-turn token this tokenizer has.",
        )

    def _find_generation_prompt(self) -> str:
        messages = [{"role": "user", "content": "x"}]
        try:
            without, text = self.apply_template(messages), self.apply_template(messages, add_generation_prompt=True)
        except TEMPLATE_FAILURES:
            return ""  # this template needs more than a question; the prompt is found turn by turn
        return text[len(without) :] if text.startswith(without) else ""

    def _render(self, turns: Sequence[Mapping[str, Any]], tools: object) -> Rendering:
        messages = to_messages(turns)
        text = self.apply_template(messages, tools)
        pattern = _turn_pattern(turns, tools)
        mask = self._masks.get(pattern) if pattern else None
        cached = mask.fill(turns, text) if mask else None
        if cached is not None:
            return cached
        rendering = self._render_marked(turns, messages, tools, text)
        mask = CachedMask.of(turns, rendering) if pattern else None
        if pattern and mask and (pattern in self._masks or len(self._masks) < MAX_CACHED):
            self._masks[pattern] = mask
        return rendering

    def _render_marked(
        self, turns: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]], tools: object, text: str
    ) -> Rendering:
        """The rendering with spans from marks around the texts of all turns, or else of the assistant's turns."""
        for roles in (None, ASSISTANT_ROLES):
            marks = _Marks.unused_in(text, turns, roles)
            unmarked, spans = marks.remove(self.apply_template(to_messages(turns, marks.write), tools))
            if unmarked == text:
                return self._with_loss_spans(turns, messages, tools, text, spans, all_marked=roles is None)
        return Rendering(text, problem=self._difference(text, unmarked))

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

    def _with_loss_spans(
        self,
        turns: Sequence[Mapping[str, Any]],
        messages: Sequence[Mapping[str, Any]],
        tools: object,
        text: str,
        spans: list[TurnSpan],
        *,
        all_marked: bool,
    ) -> Rendering:
        numbers = message_numbers(turns)
        by_message = [(number, list(group)) for number, group in groupby(spans, lambda span: numbers[span.turn])]
        loss_spans: list[LossSpan] = []
        for place, (number, group) in enumerate(by_message):
            if turns[group[0].turn]["from"] not in ASSISTANT_ROLES or not any(
                _is_trained(turns[s.turn]) for s in group
            ):
                continue
            before = by_message[place - 1][1][-1].end if place else 0
            after = by_message[place + 1][1][0].start if place + 1 < len(by_message) else len(text)
            start = self._end_of_prompt(text, before, group[0].start) if all_marked else None
            if start is None:
                start = self._end_of_rendered_prompt(messages[:number], tools, text, before, group[0])
            if start is None:
                continue  # its beginning was cut off, so it is not in the loss
            stop = self._find_stop(text[group[-1].end : after])
            if stop is None:
                problem = f"No special token ends turn {group[-1].turn + 1}: the model would not learn to stop there."
                return Rendering(text, problem=problem, missing_stop=text[group[-1].end : after])
            loss_spans += _loss_spans(group, turns, start, (stop.group(), group[-1].end + stop.end()))
        omitted = _omitted_turns(turns, spans, loss_spans) if all_marked else ()
        return Rendering(text, tuple(loss_spans), tuple(spans), self._check_calls(turns, omitted), omitted)

    def _end_of_prompt(self, text: str, before: int, first: int) -> int | None:
        """The end of the generation prompt between the previous message's text and the answer's."""
        start = text.rfind(self.generation_prompt, before, first) if self.generation_prompt.strip() else -1
        return None if start < 0 else start + len(self.generation_prompt)

    def _end_of_rendered_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: object, text: str, before: int, first: TurnSpan
    ) -> int | None:
        """The same, by rendering the prompt that a server would receive; otherwise the start of the answer's text."""
        try:
            prompt = self.apply_template(messages, tools, add_generation_prompt=True)
        except TEMPLATE_FAILURES:
            prompt = ""  # some templates refuse a conversation without an answer
        if prompt and text.startswith(prompt) and before <= len(prompt) <= first.start:
            return len(prompt)
        return first.start if first.complete else None

    def _find_stop(self, gap: str) -> re.Match[str] | None:
        """The end-of-turn token in the template's text after an answer: the first special token.

        If generation does not stop at it but at another one immediately after it, that one is used: Gemma 4 closes a
        tool call with one token and ends its turn with the next.
        """
        first, end = None, 0
        for match in self.tokenizer.special_text.finditer(gap):
            if first is not None and match.start() != end:
                break
            if match.group() in self.tokenizer.stops:
                return match
            first, end = first or match, match.end()
        return first

    def _check_calls(self, turns: Sequence[Mapping[str, Any]], omitted: Sequence[int]) -> str | None:
        call = next((number for number in omitted if turns[number]["from"] == "function_call"), None)
        return (
            None
            if call is None
            else f"The template {self.template.name} does not render the tool call of turn {call + 1}."
        )


def _without_reasoning(rendering: Rendering) -> Rendering:
    """The rendering with loss spans that start after the reasoning; answers that are only reasoning have none."""
    moved = [replace(s, start=skip_reasoning(rendering.text, s.start, s.end)) for s in rendering.loss_spans]
    spans = tuple(span for span in moved if span.start < span.end)
    omitted = {span.turn for span in moved} - {span.turn for span in spans}
    return replace(rendering, loss_spans=spans, omitted_turns=tuple(sorted({*rendering.omitted_turns, *omitted})))


def _is_trained(turn: Mapping[str, Any]) -> bool:
    return turn.get("train") is not False


def _omitted_turns(
    turns: Sequence[Mapping[str, Any]], spans: Sequence[TurnSpan], loss_spans: Sequence[LossSpan]
) -> tuple[int, ...]:
    """Turns whose text is not rendered, and turns that should be in the loss and are not."""
    rendered, in_loss = {span.turn for span in spans}, {span.turn for span in loss_spans}
    trained = {n for n, turn in enumerate(turns) if turn["from"] in ASSISTANT_ROLES and _is_trained(turn)}
    with_text = {n for n, turn in enumerate(turns) if turn["value"].strip()}
    return tuple(sorted((with_text - rendered) | ((with_text & trained) - in_loss)))


def _loss_spans(
    spans: Sequence[TurnSpan], turns: Sequence[Mapping[str, Any]], start: int, stop: tuple[str, int]
) -> Iterator[LossSpan]:
    """The loss spans of one assistant message: each turn's, from the end of the previous one to its own end."""
    by_turn = [(turn, list(group)) for turn, group in groupby(spans, lambda span: span.turn)]
    for place, (turn, group) in enumerate(by_turn):
        is_last = place == len(by_turn) - 1
        end = stop[1] if is_last else group[-1].end
        if _is_trained(turns[turn]):
            yield LossSpan(turn, start, end, stop[0] if is_last else None)
        start = end


# -------------------------------------------------------------------------------------------------- cached masks

TurnPattern = tuple[tuple[str, bool], ...]
"""The role of each turn, and whether it is trained on."""


def _turn_pattern(turns: Sequence[Mapping[str, Any]], tools: object) -> TurnPattern | None:
    """The turn pattern of a conversation; None with tools or calls, whose text is rendered in another form."""
    if tools is not None or any(turn["from"] == "function_call" for turn in turns):
        return None
    return tuple((turn["from"], _is_trained(turn)) for turn in turns)


@dataclass(frozen=True, slots=True)
class CachedMask:
    """The text that a template renders around the turns of a turn pattern, from a marked rendering.

    It replaces the marked rendering of later conversations with this pattern, but not the check: filled with their
    texts it has to equal the template's rendering, character by character. If it does not, because the template trims
    text or removes reasoning, the conversation is rendered with marks.
    """

    literals: tuple[str, ...]  # before, between and after the texts
    spans: tuple[tuple[int, int, int, str | None], ...]  # turn, characters before and after its text, stop

    @classmethod
    def of(cls, turns: Sequence[Mapping[str, Any]], rendering: Rendering) -> CachedMask | None:
        """The mask of a marked rendering that contains the text of every turn once and in order; otherwise None."""
        spans, text = rendering.turn_spans, rendering.text
        unchanged = [text[span.start : span.end] for span in spans] == [turn["value"] for turn in turns]
        in_order = [span.turn for span in spans] == [*range(len(turns))] and all(span.complete for span in spans)
        if rendering.problem or rendering.omitted_turns or not (unchanged and in_order):
            return None
        borders = [0, *(border for span in spans for border in (span.start, span.end)), len(text)]
        literals = (text[start:end] for start, end in zip(borders[::2], borders[1::2], strict=True))
        margins = (
            (s.turn, spans[s.turn].start - s.start, s.end - spans[s.turn].end, s.stop) for s in rendering.loss_spans
        )
        return cls(tuple(literals), tuple(margins))

    def fill(self, turns: Sequence[Mapping[str, Any]], text: str) -> Rendering | None:
        """The rendering of these turns if `text` is this mask filled with their texts; otherwise None."""
        parts, spans, position = [self.literals[0]], [], len(self.literals[0])
        for number, turn in enumerate(turns):
            value, literal = turn["value"], self.literals[number + 1]
            if not value or value.strip() != value:
                return None  # a template may trim it, and marks are placed inside outer white space
            end = position + len(value)
            spans.append(TurnSpan(number, position, end))
            parts += (value, literal)
            position = end + len(literal)
        if "".join(parts) != text:
            return None
        loss_spans = (
            LossSpan(turn, spans[turn].start - before, spans[turn].end + after, stop)
            for turn, before, after, stop in self.spans
        )
        return Rendering(text, tuple(loss_spans), tuple(spans))


# ---------------------------------------------------------------------------------------------------------- marks

_PRIVATE = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_OPEN, _CLOSE = 0xF0000, 0x100000
_MAX_MARKS = 0xFFFE
"""Two planes of private-use characters: one opens text n, the other closes it, so a mark identifies its text."""


@dataclass
class _Marks:
    """Numbers the texts that are written into messages, and finds them in the rendering.

    The stripped core of a text is marked, because many templates trim; an empty text is not marked. If a template
    writes a text twice, such as the name of a tool again with its result, the first place counts.
    """

    first: int
    is_marked: Sequence[bool]  # by turn
    turns: list[int] = field(default_factory=list)

    @classmethod
    def unused_in(cls, text: str, turns: Sequence[Mapping[str, Any]], roles: Sequence[str] | None) -> _Marks:
        """Marks that do not occur in `text`, for turns with these `roles` (None: all)."""
        used = max((ord(character) & 0xFFFF for character in _PRIVATE.findall(text)), default=-1)
        return cls(used + 1, [roles is None or turn["from"] in roles for turn in turns])

    def write(self, turn: int, text: str) -> str:
        core = text.strip()
        if not core or not self.is_marked[turn]:
            return text
        number = self.first + len(self.turns)
        if number >= _MAX_MARKS:
            raise UnreadableTurnError(f"it has more than {_MAX_MARKS:,} texts")
        self.turns.append(turn)
        head, _, tail = text.partition(core)
        return f"{head}{chr(_OPEN + number)}{core}{chr(_CLOSE + number)}{tail}"

    def remove(self, marked: str) -> tuple[str, list[TurnSpan]]:
        """The text without marks, and the marked spans in its order. A span that lost one of its marks is empty."""
        opened: dict[int, int] = {}
        closed: dict[int, int] = {}
        parts, position, length = [], 0, 0
        for match in _PRIVATE.finditer(marked):
            number = (ord(match.group()) & 0xFFFF) - self.first
            if not 0 <= number < len(self.turns):
                continue  # a private-use character of the conversation
            parts.append(marked[position : match.start()])
            length += match.start() - position
            position = match.end()
            (opened if ord(match.group()) < _CLOSE else closed).setdefault(number, length)
        starts = closed | opened  # the opening mark if it is left, otherwise the closing one
        spans = [
            TurnSpan(self.turns[n], start, max(start, closed.get(n, start)), n in opened and n in closed)
            for n, start in starts.items()
        ]
        return "".join([*parts, marked[position:]]), sorted(spans, key=lambda span: (span.start, span.turn))
