"""Text encodings: UTF-8 is read, another one is named and asked for, a given one is decoded strictly."""

from __future__ import annotations

import codecs

from curate.ingest.readers.compression import BLOCK, Produced, Readable, read
from schemas.errors import SourceError

BINARY = {
    b"%PDF": ("a PDF document", "Export its tables as CSV."),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", "Save it as CSV (UTF-8)."),
    b"SQLite format 3\0": ("an SQLite database", "Export a table as CSV."),
    b"ARROW1": ("an Arrow file", "Write it as Parquet, or give the dataset folder that it stands in."),
    b"ORC": ("an ORC file", "Write it as Parquet."),
    b"Obj\x01": ("an Avro file", "Write it as Parquet or JSONL."),
    b"BZh": ("compressed with bzip2", "Unpack it, or pack it with gzip or zstd."),
    b"\xfd7zXZ": ("compressed with xz", "Unpack it, or pack it with gzip or zstd."),
    b"7z\xbc\xaf": ("a 7-Zip archive", "Unpack it and give the files inside."),
    b"Rar!": ("a RAR archive", "Unpack it and give the files inside."),
    b"\x89PNG": ("an image", "Only text can be read."),
    b"\xff\xd8\xff": ("an image", "Only text can be read."),
    b"GGUF": ("a GGUF model", "Give data, not a model."),
}
"""First bytes of files that hold no text, what each is, and what to do with it."""

CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
"""Bytes that hardly stand in text."""

WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks; UTF-32's little-endian one starts with UTF-16's, so it stands first."""


def refuse_binary(path: str, start: bytes) -> None:
    """Raise `SourceError` where `start`, a file's first bytes, belongs to a format that holds no text."""
    kind = _archive(start) or next((BINARY[magic] for magic in BINARY if start.startswith(magic)), None)
    if kind is not None:
        raise SourceError(f"{path} is no text: it seems to be {kind[0]}.", kind[1])


def _archive(start: bytes) -> tuple[str, str] | None:
    if start.startswith(b"PK\x03\x04"):
        if b"xl/" in start or b"[Content_Types]" in start:
            return "an Excel workbook", "Save each sheet as CSV (UTF-8)."
        return "a zip archive", "Unpack it and give the files inside."
    tar = start[257:262] == b"ustar"
    return ("a tar archive", "Unpack it and give the files inside.") if tar else None


def refuse_wide_encoding(path: str, start: bytes) -> None:
    """Raise `SourceError` where `start` is UTF-16 or UTF-32, by its mark or by its NUL bytes, or no text at all."""
    wide = next((WIDE[mark] for mark in WIDE if start.startswith(mark)), None) or _wide_by_nul_bytes(start[:1000])
    if wide is not None:
        raise SourceError(f"{path} is encoded as {wide.upper()}, not UTF-8.", f"Say so: --encoding {wide}")
    if len(start[:1000]) - len(start[:1000].translate(None, CONTROL)) > 20:
        raise SourceError(f"{path} is no text: it is full of control bytes.", "Give CSV, TSV, JSON, JSONL or Parquet.")


def _wide_by_nul_bytes(start: bytes) -> str | None:
    """UTF-16 without a mark, in which mostly Latin text has a NUL in every other byte."""
    half = len(start) // 2
    if half and start[1::2].count(0) > 0.4 * half and not start[::2].count(0):
        return "utf-16-le"
    if half and start[::2].count(0) > 0.4 * half and not start[1::2].count(0):
        return "utf-16-be"
    return None


def foreign_encoding(path: str, sample: bytes, line: int) -> SourceError:
    """The error for a file that is not UTF-8: where the first wrong byte of `sample` stands, and what it looks like.

    `line` is the line of that byte. Detection by charset-normalizer.
    """
    try:
        sample.decode()
        found = "a byte"
    except UnicodeDecodeError as error:
        found = f"byte 0x{sample[error.start]:02x}"
    guess = likely_encoding(sample)
    what = f"{path}, line {line}: {found} is not UTF-8"
    if guess is None:
        return SourceError(
            f"{what}, and no known encoding fits.", "Say which it is with --encoding, or export as UTF-8."
        )
    return SourceError(f"{what}; the text looks like {guess}.", f"Say so: --encoding {guess}")


def likely_encoding(sample: bytes) -> str | None:
    """Name of the encoding that `sample` is most likely in, as Python spells it; None where none fits.

    Of those that fit equally well, which a short text cannot tell apart, the one that Windows writes in the West.
    """
    from charset_normalizer import from_bytes  # 30 ms that a UTF-8 file does not need

    found = from_bytes(sample)
    best = found.best()
    if best is None:
        return None
    equal = (one for one in found if (one.chaos, one.coherence) == (best.chaos, best.coherence))
    names = {name for one in equal for name in one.could_be_from_charset}
    return "cp1252" if "cp1252" in names else best.encoding.replace("_", "-")


def check_encoding(encoding: str) -> None:
    """Raise `SourceError` where Python knows no text encoding of that name."""
    try:
        b"\n".decode(encoding, "ignore")  # `idna` and `undefined` ignore nothing: they are for no text of many lines
    except (LookupError, ValueError) as error:
        raise SourceError(
            f"There is no encoding {encoding!r}.", "Use a name such as cp1252, latin-1 or utf-16."
        ) from error


class Recoded(Produced):
    """Text in another encoding as UTF-8, decoded strictly."""

    def __init__(self, file: Readable, path: str, encoding: str) -> None:
        super().__init__(file)
        check_encoding(encoding)
        self._path = path
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._line = 1
        self._started = self._ended = False

    def produce(self) -> bytes | None:
        """The next block's text. Raises `SourceError` at the first byte that the encoding does not have."""
        if self._ended:
            return None
        block = read(self._file, BLOCK)
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
            raise self._refusal(before, f"byte 0x{error.object[error.start]:02x} is not {self._encoding}") from error
        except ValueError as error:  # UTF-16 without a mark, and codecs that are written in Python
            raise self._refusal("", f"the text is not {self._encoding}: {error}") from error

    def _encode(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            what = f"half of a surrogate pair is no character, also in {self._encoding}"
            raise self._refusal(text[: error.start], what) from error

    def _refusal(self, before: str, what: str) -> SourceError:
        """The error for what stands in this block behind the text `before`."""
        line = self._line + before.count("\n")
        hint = "Leave --encoding out, and the encoding is looked for."
        return SourceError(f"{self._path}, line {line}: {what}.", hint)
