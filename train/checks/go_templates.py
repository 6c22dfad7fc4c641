"""In: a Go template, as Ollama has them, and its values. Out: the text that Go's `text/template` makes of it.

The part of the language that Ollama's templates are written in: `if`, `else if`, `else`, `range $i, $m :=`, variables,
fields, and the functions in `FUNCTIONS`. Anything else is refused, never guessed. Checked beside Go 1.27 itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import ExportError

ACTION = re.compile(r"\{\{(- )?\s*(.*?)\s*( -)?\}\}", re.DOTALL)
WORD = re.compile(r'\s*(:=|=|,|\(|\)|"(?:[^"\\]|\\.)*"|-?\d+|\$?\w*(?:\.\w+)+|\$\w*|\.|\w+)')

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": lambda one, *others: one in others,
    "ne": lambda one, other: one != other,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "len": lambda value: len(value.encode() if isinstance(value, str) else value),
    "slice": lambda values, start, end=None: values[start:end],
    "index": lambda values, place: values[place],
}


@dataclass
class _Block:
    """A list of parts: texts, expressions, and blocks with what decides about them."""

    kind: str
    head: list[str] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)
    otherwise: _Block | None = None


def parse(text: str) -> _Block:
    """The template as nested blocks. Raises `ExportError` for one that is not closed or uses what is not known."""
    root = _Block("root")
    stack = [root]
    for piece in _pieces(text):
        if isinstance(piece, str):
            stack[-1].parts.append(piece)
            continue
        match piece:
            case ["if" | "range" as kind, *head]:
                block = _Block(kind, head)
                stack[-1].parts.append(block)
                stack.append(block)
            case ["else", *head]:
                block = _Block("else if" if head else "else", head[1:])
                stack[-1].otherwise = block
                stack[-1] = block
            case ["end"] if len(stack) > 1:
                stack.pop()
            case _:
                stack[-1].parts.append(piece)
    if len(stack) != 1:
        raise ExportError("The Go template does not end what it begins.", "Write it anew: curate ollama RUN.")
    return root


def render(template: _Block, values: Mapping[str, Any]) -> str:
    """The text of a parsed template."""
    return "".join(_rendered(template, dict(values), {"$": values}))


def _pieces(text: str) -> Iterator[str | list[str]]:
    """Literal texts and the words of actions; a `-` inside the braces takes the white space beside it away."""
    position, trim = 0, False
    for found in ACTION.finditer(text):
        literal = text[position : found.start()]
        literal = literal.lstrip() if trim else literal
        yield literal.rstrip() if found[1] else literal
        yield _words(found[2])
        position, trim = found.end(), bool(found[3])
    yield text[position:].lstrip() if trim else text[position:]


def _words(action: str) -> list[str]:
    words, position = [], 0
    while position < len(action):
        found = WORD.match(action, position)
        if found is None:
            raise ExportError(f"The Go template has {action!r}, which is not understood here.", "Simplify it.")
        words.append(found[1])
        position = found.end()
    return words


def _rendered(block: _Block, dot: Any, names: dict[str, Any]) -> Iterator[str]:
    for part in block.parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, _Block):
            yield from _decided(part, dot, names)
        elif len(part) > 1 and part[1] in (":=", "="):
            names[part[0]] = _value(part[2:], dot, names)
        else:
            yield _shown(_value(part, dot, names))


def _decided(block: _Block, dot: Any, names: dict[str, Any]) -> Iterator[str]:
    if block.kind == "range":
        number, _, element, _, *values = block.head
        for place, value in enumerate(_value(values, dot, names)):
            names |= {number: place, element: value}
            yield from _rendered(block, value, names)
    elif block.kind == "else" or _value(block.head, dot, names):
        yield from _rendered(block, dot, names)
    elif block.otherwise is not None:
        yield from _decided(block.otherwise, dot, names)


def _value(words: list[str], dot: Any, names: Mapping[str, Any]) -> Any:
    """The value of an expression: one operand, or a function with its operands."""
    rest = list(words)
    if rest[0] not in FUNCTIONS:
        return _operand(rest, dot, names)
    function = FUNCTIONS[rest.pop(0)]
    operands = []
    while rest:
        operands.append(_operand(rest, dot, names))
    return function(*operands)


def _operand(rest: list[str], dot: Any, names: Mapping[str, Any]) -> Any:
    word = rest.pop(0)
    if word == "(":
        return _value(_inside(rest), dot, names)
    if word[0] == '"':
        return word[1:-1].encode().decode("unicode_escape").encode("latin-1").decode()
    if word.lstrip("-").isdigit():
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    name, *fields = word.split(".")
    if name and name not in names:
        raise ExportError(f"The Go template uses {word}, which is not known here.", "Simplify it.")
    value = names[name] if name else dot
    for key in filter(None, fields):
        value = value.get(key, "") if isinstance(value, Mapping) else ""
    return value


def _inside(rest: list[str]) -> list[str]:
    """The words up to the bracket that closes, which is taken away too."""
    depth, taken = 1, []
    while rest:
        word = rest.pop(0)
        depth += (word == "(") - (word == ")")
        if depth == 0:
            break
        taken.append(word)
    return taken


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
