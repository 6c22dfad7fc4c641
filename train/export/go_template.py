"""In: a chat template at work. Out: the same as a Go template for Ollama.

Nothing of the Jinja is read: the template is asked. Conversations whose words are known go through it, and what it
writes around the words is what the Go template says. So there is one source of truth, whatever it is written in. What
Go cannot say (trimming, tools in Python's spacing of JSON) is left to the contract to find, or to Ollama to refuse.
"""

from __future__ import annotations

from schemas.errors import ExportError
from train.tokens.loss_mask import TEMPLATE_FAILURES, ChatRenderer

SYSTEM, FIRST, ANSWER, SECOND = "Qsystem1Q", "Quser1Q", "Qanswer1Q", "Quser2Q"
"""Words that no template writes."""


def to_go(renderer: ChatRenderer, beginning: str = "") -> str:
    """The Go template of a renderer; `beginning` is left away, since the server adds it.

    Raises `ExportError` when the template writes a conversation's words more than once, or in another order.
    """
    user, answer = {"role": "user", "content": FIRST}, {"role": "assistant", "content": ANSWER}
    again, system = {"role": "user", "content": SECOND}, {"role": "system", "content": SYSTEM}
    opening, behind_question = _around(renderer.apply_template([user]), FIRST)
    prompt = renderer.apply_template([user], add_generation_prompt=True).removeprefix(renderer.apply_template([user]))
    _, between, behind_answer = _around(renderer.apply_template([user, answer]), FIRST, ANSWER)
    _, _, before_question, _ = _around(renderer.apply_template([user, answer, again]), FIRST, ANSWER, SECOND)
    parts = {
        "opening": opening.removeprefix(beginning),
        "behind_question": behind_question,
        "prompt": prompt,
        "before_answer": between.removeprefix(behind_question),
        "behind_answer": behind_answer,
        "before_question": before_question.removeprefix(behind_answer),
    }
    return _written({name: _literal(text) for name, text in parts.items()}, _system(renderer, system, user, beginning))


def _system(
    renderer: ChatRenderer, system: dict[str, str], user: dict[str, str], beginning: str
) -> tuple[str, str] | None:
    """What stands before and behind a system message, up to the first question; nothing where it is refused."""
    try:
        before, behind, _ = _around(renderer.apply_template([system, user]), SYSTEM, FIRST)
    except TEMPLATE_FAILURES:
        return None
    return _literal(before.removeprefix(beginning)), _literal(behind)


def _around(text: str, *words: str) -> list[str]:
    """What stands around the words in a text that has each once, in this order."""
    parts, rest = [], text
    for word in words:
        before, found, rest = rest.partition(word)
        if not found or word in rest:
            raise ExportError(
                "The template does not write each message once and in order, so it cannot be written for Ollama.",
                "Serve it with curate serve, vLLM or TGI, which read the template itself.",
            )
        parts.append(before)
    return [*parts, rest]


def _written(parts: dict[str, str], system: tuple[str, str] | None) -> str:
    opening = parts["opening"]
    if system is not None:
        before, behind = system
        opening = "{{ if .System }}" + before + "{{ .System }}" + behind + "{{ else }}" + opening + "{{ end }}"
    question = (
        "{{ if $open }}{{ else }}%(before_question)s{{ end }}{{ $open = false }}{{ .Content }}%(behind_question)s"
    )
    answer = "%(before_answer)s{{ .Content }}{{ if $last }}{{ else }}%(behind_answer)s{{ end }}"
    return (
        "{{ $open := true }}" + opening + "{{ range $i, $m := .Messages }}"
        "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "user" }}' + question % parts + "{{ if $last }}" + parts["prompt"] + "{{ end }}"
        '{{ else if eq .Role "assistant" }}' + answer % parts + "{{ end }}{{ end }}"
    )


def _literal(text: str) -> str:
    """Text as it stands in a Go template: braces that would open an action are written by one.

    >>> _literal("a {{ b")
    'a {{ "{{" }} b'
    """
    return text.replace("{{", '{{ "{{" }}')
