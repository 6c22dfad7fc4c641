"""A text in HTML → plain text: paragraphs, list items and code keep their form; other tags are removed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BLOCKS = {"p", "div", "ul", "ol", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article"}
_LINES = {"br", "tr", "hr"}
_INLINE = {
    *("a", "abbr", "b", "big", "body", "cite", "code", "dd", "del", "dl", "dt", "em", "figure", "font", "footer"),
    *("head", "header", "html", "i", "img", "ins", "kbd", "li", "main", "mark", "nav", "pre", "q", "s", "small"),
    *("span", "strike", "strong", "sub", "sup", "tbody", "td", "tfoot", "th", "thead", "time", "tt", "u", "var"),
}
_TAGS = _BLOCKS | _LINES | _INLINE
_HIDDEN = {"script", "style"}
_MOST_ESCAPED = 3
_CODE_NEWLINE = "\ufdd2"  # a noncharacter, reserved for internal use by programs


def html_to_text(text: str) -> str:
    r"""The plain text of HTML. Tags that HTML does not have, such as `<T>` in code, stay.

    Text that was escaped twice is read twice, unless it has code.

    >>> html_to_text("<p>Use <code>a &lt; b</code>.</p>\n<ul><li>One</li><li>Two &amp; more</li></ul>")
    'Use `a < b`.\n\n- One\n- Two & more'
    """
    for _ in range(_MOST_ESCAPED):
        plain = _read(text)
        if plain == text or "`" in plain:
            return plain
        text = plain
    return text


def _read(text: str) -> str:
    parser = _TextParser()
    parser.feed(text)
    parser.close()
    joined = re.sub(r"[ \t]+\n", "\n", "".join(parser.parts))
    return re.sub(r"\n{3,}", "\n\n", joined).strip().replace(_CODE_NEWLINE, "\n")


class _TextParser(HTMLParser):
    """Collects the parts of the plain text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0
        self.in_pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Add the plain text of a tag. Attributes without values are text, as in `a <b and c> d`."""
        if tag not in _TAGS | _HIDDEN or any(value is None for _, value in attrs):
            self.parts.append(self.get_starttag_text() or "")
        elif tag in _HIDDEN:
            self.hidden += 1
        elif tag == "pre":
            self.in_pre += 1
            self.parts.append("\n\n```\n")
        elif tag == "code":
            self.parts.append("" if self.in_pre else "`")
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag in ("td", "th"):
            self.parts.append(" ")
        elif tag in _BLOCKS | _LINES:
            self.parts.append("\n\n" if tag in _BLOCKS else "\n")

    def handle_endtag(self, tag: str) -> None:
        """Add the plain text of an end tag."""
        if tag in _HIDDEN:
            self.hidden = max(0, self.hidden - 1)
        elif tag == "pre":
            self.in_pre = max(0, self.in_pre - 1)
            self.parts.append("\n```\n\n")
        elif tag == "code":
            self.parts.append("" if self.in_pre else "`")
        elif tag in _BLOCKS:
            self.parts.append("\n\n")
        elif tag not in _TAGS:
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        """Add text, except white space between tags and the content of scripts."""
        if self.hidden:
            return
        between_tags = not data.strip() and "\n" in data and not self.in_pre
        text = data.replace("\n", _CODE_NEWLINE) if self.in_pre else data
        self.parts.append("" if between_tags else text)
