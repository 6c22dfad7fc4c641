"""A chat template → the text that it writes around each message (its slots) → a Go template for Ollama, and back.

The slots are found by rendering chats with known texts; the Jinja source is not parsed. Whatever depends on more than
the slots, such as trimmed messages or tools, is not in the Go template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from schemas.errors import ExportError
from train.tokens.loss_mask import TEMPLATE_FAILURES, ChatRenderer

SYSTEM, FIRST, ANSWER, SECOND = "Qsystem1Q", "Quser1Q", "Qanswer1Q", "Quser2Q"
"""Texts that do not occur in any template."""

OPENINGS = (
    "%(opening)s",
    "{{ if .System }}%(before_system)s{{ .System }}%(after_system)s{{ else }}%(opening)s{{ end }}",
)
"""The start of the Go template without and with a system message."""

MESSAGES = (
    "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq .Role "user" }}{{ if $open }}{{ else }}%(before_user)s{{ end }}{{ $open = false }}'
    "{{ .Content }}%(after_user)s{{ if $last }}%(generation_prompt)s{{ end }}"
    '{{ else if eq .Role "assistant" }}%(before_assistant)s{{ .Content }}'
    "{{ if $last }}{{ else }}%(after_assistant)s{{ end }}{{ end }}{{ end }}"
)
SKELETONS = tuple("{{ $open := true }}" + opening + MESSAGES for opening in OPENINGS)

SLOT = r'(?:(?!\{\{)[\s\S]|\{\{ "\{\{" \}\})*'
"""The text of a slot in a Go template: no action, except the one that writes two braces."""


@dataclass(frozen=True, slots=True)
class TemplateSlots:
    """The text around the messages of a chat.

    `opening` precedes the first user message of a chat without a system message, `before_user` each later one. The
    generation prompt follows `after_user` of the last message. The system slots are None if a template refuses system
    messages.
    """

    opening: str
    before_system: str | None
    after_system: str | None
    before_user: str
    after_user: str
    generation_prompt: str
    before_assistant: str
    after_assistant: str

    def fill(self, system: str, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that Go renders from `to_go(self)` with Ollama's `.System` and `.Messages`."""
        has_system = system and self.before_system is not None
        parts = [f"{self.before_system}{system}{self.after_system}" if has_system else self.opening]
        is_first = True
        for number, message in enumerate(messages, start=1):
            is_last = number == len(messages)
            if message["Role"] == "user":
                parts += ["" if is_first else self.before_user, message["Content"], self.after_user]
                parts += [self.generation_prompt] if is_last else []
                is_first = False
            elif message["Role"] == "assistant":
                parts += [self.before_assistant, message["Content"], "" if is_last else self.after_assistant]
        return "".join(parts)


def find_slots(renderer: ChatRenderer, prefix: str = "") -> TemplateSlots:
    """The slots of a chat template, without `prefix`, which the server adds to every prompt.

    Raises `ExportError` if the template writes a message more than once, or messages in a different order.
    """
    user, assistant = {"role": "user", "content": FIRST}, {"role": "assistant", "content": ANSWER}
    second, system = {"role": "user", "content": SECOND}, {"role": "system", "content": SYSTEM}
    question = renderer.apply_template([user])
    opening, after_user = _split(question, FIRST)
    prompt = renderer.apply_template([user], add_generation_prompt=True).removeprefix(question)
    _, between, after_assistant = _split(renderer.apply_template([user, assistant]), FIRST, ANSWER)
    _, _, before_second, _ = _split(renderer.apply_template([user, assistant, second]), FIRST, ANSWER, SECOND)
    before_system = after_system = None
    with suppress(*TEMPLATE_FAILURES):
        before_system, after_system, _ = _split(renderer.apply_template([system, user]), SYSTEM, FIRST)
    return TemplateSlots(
        opening=opening.removeprefix(prefix),
        before_system=before_system and before_system.removeprefix(prefix),
        after_system=after_system,
        before_user=before_second.removeprefix(after_assistant),
        after_user=after_user,
        generation_prompt=prompt,
        before_assistant=between.removeprefix(after_user),
        after_assistant=after_assistant,
    )


def _split(text: str, *messages: str) -> list[str]:
    """The text before, between and after the messages, each of which occurs once and in this order."""
    parts, rest = [], text
    for message in messages:
        before, found, rest = rest.partition(message)
        if not found or message in rest:
            raise ExportError(
                "The template does not write each message once and in order, so it cannot be written for Ollama.",
                "Serve the run with curate serve, vLLM or TGI, which read the template itself.",
            )
        parts.append(before)
    return [*parts, rest]


def to_go(slots: TemplateSlots) -> str:
    """The Go template with these slots."""
    skeleton = SKELETONS[slots.before_system is not None]
    return skeleton % {name: _escape(text) for name, text in asdict(slots).items() if text is not None}


def read_slots(template: str) -> TemplateSlots:
    """The slots of a Go template. Raises `ExportError` if it is not in the form that `to_go` writes."""
    for skeleton in reversed(SKELETONS):
        pattern = re.sub(r"%\\\((\w+)\\\)s", lambda slot: f"(?P<{slot[1]}>{SLOT})", re.escape(skeleton))
        found = re.fullmatch(pattern, template)
        if found:
            slots: dict[str, Any] = {"before_system": None, "after_system": None}
            slots |= {name: text.replace('{{ "{{" }}', "{{") for name, text in found.groupdict().items()}
            return TemplateSlots(**slots)
    raise ExportError(
        "The Modelfile's template is not in the form that curate ollama writes, so it cannot be compared.",
        "curate ollama RUN --to FOLDER writes a new one.",
    )


def _escape(text: str) -> str:
    """A literal text in a Go template, where two braces are written by an action.

    >>> _escape("a {{ b")
    'a {{ "{{" }} b'
    """
    return text.replace("{{", '{{ "{{" }}')
