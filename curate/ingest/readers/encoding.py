"""Bytes in another encoding → UTF-8, and the errors for files that are binary or not UTF-8."""

from __future__ import annotations

import codecs

from curate.ingest.readers.compression import BLOCK, BlockReader, Readable, read_bytes
from schemas.errors import SourceError

CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
"""Bytes that rarely occur in text."""

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
    """The byte order of UTF-16 without a mark: in mostly Latin text every other byte is NUL."""
    half = len(start) // 2
    if half and start[1::2].count(0) > 0.4 * half and not start[::2].count(0):
        return "utf-16-le"
    if half and start[::2].count(0) > 0.4 * half and not start[1::2].count(0):
        return "utf-16-be"
    return None


def encoding_error(path: str, sample: bytes, line: int) -> SourceError:
    """The error for a file that is not UTF-8, with its likely encoding. `line` is that of the first invalid byte."""
    try:
        sample.decode()
        invalid = "a byte"
    except UnicodeDecodeError as error:
        invalid = f"byte 0x{sample[error.start]:02x}"
    guess = guess_encoding(sample)
    what = f"{path}, line {line}: {invalid} is not UTF-8"
    if guess is None:
        return SourceError(f"{what}, and no known encoding fits.", "Set it with --encoding, or export as UTF-8.")
    return SourceError(f"{what}; the text looks like {guess}.", f"Add --encoding {guess}")


def guess_encoding(sample: bytes) -> str | None:
    """The most likely encoding of `sample` as a Python codec name, by charset-normalizer; None if none fits.

    A short text may fit several encodings equally well; then cp1252 is preferred, the default of Western Windows.
    """
    from charset_normalizer import from_bytes  # takes 30 ms, not needed for UTF-8

    matches = from_bytes(sample)
    best = matches.best()
    if best is None:
        return None
    equal = (match for match in matches if (match.chaos, match.coherence) == (best.chaos, best.coherence))
    names = {name for match in equal for name in match.could_be_from_charset}
    return "cp1252" if "cp1252" in names else best.encoding.replace("_", "-")


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
