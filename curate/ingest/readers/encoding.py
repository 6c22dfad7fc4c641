"""Bytes in another encoding → UTF-8, and the errors for files that are binary or not UTF-8."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Callable, Iterable

from curate.ingest.readers.compression import BLOCK, BlockReader, Readable, read_bytes
from curate.ingest.readers.table_options import import_line
from schemas.errors import SourceError
from schemas.text import plural

CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
"""Bytes that rarely occur in text."""

SAMPLE = 200
"""Invalid lines from which the encoding of a file is guessed."""

MIXED = 10
"""A file in which one in so many lines with other than ASCII characters is UTF-8 is a damaged UTF-8 file."""

COMMON = ("cp1252", "gb18030", "shift_jis", "euc_jp", "euc_kr", "cp1251", "koi8_r", "cp1250", "latin_1")
"""Encodings that are tried if none of the guessed ones decodes the file."""

WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark → encoding. UTF-32 comes first, because its little-endian mark starts with that of UTF-16."""


def check_not_utf16(path: str, start: bytes) -> None:
    """Raise `SourceError` if `start` is UTF-16 or UTF-32 (by byte order mark or NUL bytes), or not text."""
    wide = next((WIDE[mark] for mark in WIDE if start.startswith(mark)), None) or _detect_utf16(start[:1000])
    if wide is not None:
        raise SourceError(f"{path} is encoded as {wide.upper()}, not UTF-8.", f"Add --encoding {wide}")
    if len(start[:1000]) - len(start[:1000].translate(None, CONTROL)) > 20:
        raise SourceError(f"{path} is not a text file: it is full of control bytes.", "Export it as CSV or JSONL.")


def _detect_utf16(start: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: the high byte of Latin letters, spaces and line ends is NUL.

    One or two NUL bytes are damage: a header and a record of UTF-16 have at least two delimiters and a line end.
    """
    first, second = start[::2].count(0), start[1::2].count(0)
    if max(first, second) > max(2, 0.05 * len(start) / 2) and max(first, second) > 5 * min(first, second):
        return "utf-16-le" if second > first else "utf-16-be"
    return None


def encoding_error(path: str, sample: bytes, line: int, read: Callable[[], Iterable[bytes]]) -> SourceError:
    """The error for a file that is not UTF-8: an encoding that decodes all of it, or that only some lines are not.

    `sample` is invalid text, first on `line`; `read` returns the bytes of the file, none if it cannot be read again.
    """
    try:
        sample.decode()
        invalid = "a byte"
    except UnicodeDecodeError as error:
        invalid = f"byte 0x{sample[error.start]:02x}"
    what = f"{path}, line {line}: {invalid} is not UTF-8"
    valid, damaged, lines = _count_lines(read())
    as_utf8 = import_line(path, "--encoding utf-8")
    if damaged and MIXED * valid >= damaged:
        return SourceError(
            f"{what}. {plural(damaged, 'line')} of the file {'is' if damaged == 1 else 'are'} not, and {valid:,} with "
            "other than ASCII characters are.",
            f"Reject those that are not, each with its line number:{as_utf8}",
        )
    guess = guess_encoding(b"\n".join(lines) or sample, read)
    if guess is None:
        hint = f"Set the encoding with --encoding, export as UTF-8, or reject the lines that are not UTF-8:{as_utf8}"
        return SourceError(f"{what}, and no known encoding decodes the whole file.", hint)
    return SourceError(f"{what}; the text looks like {guess}.", f"Add --encoding {guess}")


def _count_lines(blocks: Iterable[bytes]) -> tuple[int, int, list[bytes]]:
    """The lines with other than ASCII characters that are UTF-8, those that are not, and the first of these.

    Line by line, but only for an error, and only those that are not ASCII.
    """
    valid = damaged = 0
    sample: list[bytes] = []
    rest = b""
    for block in itertools.chain(blocks, [b"\n"]):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.isascii():
                continue
            if _decodes([line], "utf-8"):
                valid += 1
            else:
                damaged += 1
                sample += [line] if len(sample) < SAMPLE else []
    return valid, damaged, sample


def _decodes(blocks: Iterable[bytes], encoding: str) -> bool:
    """Whether bytes are valid in an encoding, and contain no control characters in it."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        return not any(_CONTROL.search(decoder.decode(block)) for block in blocks) and not decoder.decode(b"", True)
    except (UnicodeError, LookupError):
        return False


_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


def guess_encoding(sample: bytes, read: Callable[[], Iterable[bytes]] = lambda: ()) -> str | None:
    """The most likely encoding of `sample` that decodes the whole file, as a Python codec name; None if there is none.

    Candidates are ordered by charset-normalizer. A short text may fit several encodings equally well; then cp1252 is
    preferred, the default of Western Windows.
    """
    from charset_normalizer import from_bytes  # takes 30 ms, not needed for UTF-8

    matches = list(from_bytes(sample))
    best = [(match.chaos, match.coherence) for match in matches[:1]]
    equal = {
        name for match in matches if [(match.chaos, match.coherence)] == best for name in match.could_be_from_charset
    }
    names = [*(["cp1252"] if "cp1252" in equal else []), *(match.encoding for match in matches), *COMMON]
    fitting = (name for name in dict.fromkeys(names) if _decodes([sample], name) and _decodes(read(), name))
    return next((name.replace("_", "-") for name in fitting), None)


def is_utf8(encoding: str | None) -> bool:
    """Whether an encoding was given and is UTF-8: then lines that are not valid are rejects, not an error."""
    return encoding is not None and codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def check_encoding(encoding: str) -> None:
    """Raise `SourceError` if Python has no text encoding of that name."""
    try:
        b"\n".decode(encoding, "ignore")  # `idna` and `undefined` raise: they cannot decode text of several lines
    except (LookupError, ValueError) as error:
        raise SourceError(f"Unknown encoding {encoding!r}.", "Use a name such as cp1252, latin-1 or utf-16.") from error


class TranscodingReader(BlockReader):
    """Decodes text strictly from another encoding and encodes it as UTF-8."""

    def __init__(self, file: Readable, path: str, encoding: str) -> None:
        super().__init__(file)
        check_encoding(encoding)
        self._path = path
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._line = 1
        self._started = self._ended = False

    def next_block(self) -> bytes | None:
        """The next block as UTF-8. Raises `SourceError` at the first byte that is invalid in the encoding."""
        if self._ended:
            return None
        block = read_bytes(self._file, BLOCK)
        self._ended = not block
        text = self._decode(block)
        if not self._started and text:
            text, self._started = text.removeprefix("\ufeff"), True
        encoded = self._encode(text)
        self._line += text.count("\n")
        return encoded

    def _decode(self, block: bytes) -> str:
        try:
            return self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            before = codecs.decode(error.object[: error.start], self._encoding, "ignore")
            raise self._error(before, f"byte 0x{error.object[error.start]:02x} is not {self._encoding}") from error
        except ValueError as error:  # UTF-16 without a byte order mark, and codecs written in Python
            raise self._error("", f"the text is not {self._encoding}: {error}") from error

    def _encode(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            what = f"half of a surrogate pair is not a valid character in {self._encoding}"
            raise self._error(text[: error.start], what) from error

    def _error(self, before: str, what: str) -> SourceError:
        """The error for a position in this block, after the text `before`."""
        line = self._line + before.count("\n")
        return SourceError(f"{self._path}, line {line}: {what}.", "Omit --encoding to detect the encoding.")
