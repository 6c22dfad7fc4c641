r"""In: a text. Out: its token ids, word by word: three times as fast as the library, and only where that is certain.

Byte-level tokenizers (GPT-2, Llama 3, Qwen, GPT-4o …) cut a text by a regular expression and then look at each piece
alone, so a piece has the same ids wherever it stands and needs to be looked at once. The library spends its time on
alignments that nobody needs here. Three things make it certain: only texts of ASCII characters are taken, for which
the expression can be said in Python's `re` (classes such as `\p{L}` become letters); the pieces are compared with
the library's own for all neighbourhoods of characters before the first use; and each piece's ids are the library's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain, product
from typing import Any

from tokenizers import Tokenizer as Backend

OF_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression inside the library's `ByteLevel` pre-tokenizer, GPT-2's."""

PROPERTIES = {
    **dict.fromkeys(("L", "Alphabetic"), "a-zA-Z"),
    **dict.fromkeys(("N", "Nd"), "0-9"),
    "Lu": "A-Z",
    "Ll": "a-z",
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
    "S": r"$+<=>\^`|~",
    **dict.fromkeys(("M", "Mn", "Mc", "Lt", "Lm", "Lo", "Nl", "No"), ""),
}
"""Unicode properties, as the ASCII characters that have them, written for a class."""

REPRESENTATIVES = "aZ19 \n\r\t'.s/_\x1c"
"""A character of each kind that the expressions tell apart; three of them in a row are every neighbourhood."""

BYTE_LEVEL = {number: 0x100 + place for place, number in enumerate([*range(33), 127])}
"""How byte-level models write the ASCII characters that cannot be seen: the first free letters, in order."""

ROOM = 300_000
"""Words that are remembered: some 50 MB."""


class Words(dict[str, tuple[int, ...]]):
    """The ids of each word met so far; a new one is asked of the library."""

    def __init__(self, backend: Backend, words: re.Pattern[str]) -> None:
        super().__init__()
        added = backend.get_added_tokens_decoder()
        longest_first = sorted((token.content for token in added.values()), key=lambda text: (-len(text), text))
        self.backend = backend
        self.ids = {token.content: number for number, token in added.items()}
        self.cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else r"((?!))")
        self.words = words

    @classmethod
    def of(cls, backend: Backend) -> Words | None:
        """The words of a tokenizer; nothing where it does not look at each alone, or cuts otherwise than `re`."""
        written = json.loads(backend.to_str())
        expression = _expression(written) if _looks_at_words_alone(written) else None
        words = _in_ascii(expression) if expression else None
        return cls(backend, words) if words and _cuts_alike(backend, words) else None

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) >= ROOM:
            self.clear()
        spelt = word.translate(BYTE_LEVEL)
        self[word] = ids = tuple([token.id for token in self.backend.model.tokenize(spelt)])
        return ids

    def spell(self, text: str, borders: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """The ids of `text`, and how many stand before each border (places in the text, ascending).

        Nothing where a character is not ASCII, or a border lies inside a word.
        """
        if not text.isascii():
            return None
        ids: list[int] = []
        before: list[int] = []
        position, waiting = 0, [*borders, len(text) + 1]
        for number, part in enumerate(self.cut.split(text)):
            end = position + len(part)
            while waiting[len(before)] < end:
                taken = 0 if number & 1 else self._up_to(part, waiting[len(before)] - position, ids)
                if taken is None or position + taken != waiting[len(before)]:
                    return None
                before.append(len(ids))
                position, part = position + taken, part[taken:]  # noqa: PLW2901  what is left of it
            if number & 1:
                ids.append(self.ids[part])
            else:
                ids.extend(chain.from_iterable(map(self.__getitem__, self.words.findall(part))))
            position = end
        return ids, before + [len(ids)] * (len(borders) - len(before))

    def _up_to(self, part: str, border: int, ids: list[int]) -> int | None:
        """Add the ids of the words of `part` before `border`, and return where that is; nothing if inside a word."""
        taken = 0
        while taken < border:
            found = self.words.match(part, taken)
            if found is None or found.end() > border:
                return None
            ids += self[found.group()]
            taken = found.end()
        return taken


def _looks_at_words_alone(written: dict[str, Any]) -> bool:
    """Whether the ids of a text are those of its words, and added tokens are found as a plain search finds them."""
    model, added = written["model"], written["added_tokens"]
    loose = any(token[flag] for token in added for flag in ("lstrip", "rstrip", "single_word"))
    in_two_rounds = len({token["normalized"] for token in added}) > 1
    alone = model["type"] == "BPE" and not model["dropout"] and not written["normalizer"]
    return alone and not loose and not in_two_rounds


def _expression(written: dict[str, Any]) -> str | None:
    """The expression by which the pre-tokenizer cuts; nothing where it does anything else."""
    steps = written["pre_tokenizer"] or {}
    match steps.get("pretokenizers", [steps]):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return OF_BYTE_LEVEL
        case [
            {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return expression
    return None


def _in_ascii(expression: str) -> re.Pattern[str] | None:
    r"""The expression for ASCII texts; nothing where it names a property that is not known here.

    >>> _in_ascii(r"[^\s\p{L}]?\p{N}{1,3}").pattern
    '[^\\sa-zA-Z]?[0-9]{1,3}'
    """
    parts, inside, place = [], False, 0
    for found in re.finditer(r"\\p\{(\w+)\}|\\.|\[|\]", expression, re.DOTALL):
        parts.append(expression[place : found.start()])
        place = found.end()
        if found.group(1) is None:
            inside = {"[": True, "]": False}.get(found.group(), inside)
            parts.append(found.group())
        elif (characters := PROPERTIES.get(found.group(1))) is not None:
            parts.append(characters if inside else f"[{characters}]")
        else:
            return None
    try:
        return re.compile("".join([*parts, expression[place:]]), re.ASCII)
    except re.error:
        return None


def _cuts_alike(backend: Backend, words: re.Pattern[str]) -> bool:
    """Whether the library cuts as `words` does: all pairs of ASCII characters, all threes of their kinds."""
    everyone = [chr(number) for number in range(128)]
    pairs = "".join(map("".join, product(everyone, everyone)))
    threes = "".join(map("".join, product(REPRESENTATIVES, repeat=3)))
    probes = (pairs, threes, "a'S b'RE c'lL 'tis", "  x\r\n\r\n  y \n", "end   ")
    return all(
        backend.pre_tokenizer.pre_tokenize_str(text)
        == [(found.group().translate(BYTE_LEVEL), found.span()) for found in words.finditer(text)]
        for text in probes
    )
