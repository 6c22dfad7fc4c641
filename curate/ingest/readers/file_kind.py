"""The first bytes of a file that cannot be imported → its kind, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from schemas.errors import SourceError
from schemas.text import join_names, plural, shell_quote

ZIP, OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

_EXTRACT = "Extract it and import the folder:\n    {}\n    curate import {{stem}}"

BINARY = {
    b"%PDF": ("a PDF document", "Extract its text:\n    pdftotext {path} - | curate import - --format text"),
    b"ORC": ("an ORC file", "Write it as Parquet."),
    b"Obj\x01": ("an Avro file", "Write it as Parquet or JSON lines."),
    b"PK\x05\x06": ("an empty zip archive", "Create the archive again, with the files to import."),
    b"7z\xbc\xaf": (
        "a 7-Zip archive",
        _EXTRACT.format("7z x {path} -o{stem}"),
    ),
    b"Rar!": (
        "a RAR archive",
        _EXTRACT.format("unrar x {path} {stem}/"),
    ),
    b"\x89PNG": ("an image", "Import text files only."),
    b"\xff\xd8\xff": ("an image", "Import text files only."),
    b"GGUF": ("a GGUF model", "Import data, not a model."),
    b"\x89HDF": ("an HDF5 file", "Write its tables as Parquet or CSV."),
    b"\x93NUMPY": ("a NumPy array", "Write it as Parquet or CSV."),
    b"\x80\x02": ("a Python pickle", "Write its content as JSON lines or Parquet."),
    b"\x80\x03": ("a Python pickle", "Write its content as JSON lines or Parquet."),
    b"\x80\x04": ("a Python pickle", "Write its content as JSON lines or Parquet."),
    b"\x80\x05": ("a Python pickle", "Write its content as JSON lines or Parquet."),
}
"""First bytes of binary files → kind of file, hint."""

OFFICE = {
    b"word/": "a Word document",
    b"ppt/": "a PowerPoint presentation",
    b"mimetypeapplication/vnd.oasis.opendocument.text": "an OpenDocument text",
    b"mimetypeapplication/epub": "an EPUB book",
}
"""Marks in the first bytes of zip files that are documents → kind of file."""

DOCUMENT_HINT = "Convert it to text:\n    pandoc {path} -t plain -o {stem}.txt\n    curate import {stem}.txt"

TEXT: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (
        re.compile(rb"version https://git-lfs"),
        "a pointer of Git LFS, not the data",
        "Download the data:\n    git -C {folder} lfs pull",
    ),
    (
        re.compile(rb"(?is)(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body|script|table)\b"),
        "an HTML page, not data",
        "If it is a download, open it: it may be an error or a login page. To import its text:\n"
        "    pandoc -f html -t plain {path} -o {stem}.txt\n    curate import {stem}.txt",
    ),
    (re.compile(rb"<\?xml|<[A-Za-z][\w:.-]*[ />]"), "an XML document", "Export CSV or JSON lines instead."),
    (re.compile(rb"\{\\rtf"), "an RTF document", DOCUMENT_HINT),
    (
        re.compile(
            rb"(?i)(--[^\n]*\n|/\*.*?\*/;?\s*|\s+|set [^\n;]*;|pragma [^\n;]*;|begin( transaction)?;|start transaction;"
            rb"|use [^\n;]*;|drop [^;]*;|create database[^;]*;)*(create (temporary )?table|insert into"
            rb"|copy [^\n]* from stdin)",
            re.DOTALL,
        ),
        "an SQL dump",
        "Export the table as CSV, or load the dump into SQLite and import that:\n"
        "    sqlite3 {stem}.sqlite < {path}\n    curate import {stem}.sqlite",
    ),
)
"""Start of text files that are not tables → kind of file, hint."""


def is_workbook(start: bytes) -> bool:
    """Whether a file is a workbook of Excel or LibreOffice."""
    if start.startswith(ZIP):
        return _has_member(b"xl/", start) or _has_member(b"mimetypeapplication/vnd.oasis.opendocument.spread", start)
    return start.startswith(OLE) and b"W\0o\0r\0d\0D\0o\0c\0u\0m\0e\0n\0t" not in start


def _has_member(name: bytes, start: bytes) -> bool:
    """Whether a member of a zip file, of which `start` are the first bytes, has a name that starts so."""
    return re.search(re.escape(ZIP) + b".{26}" + re.escape(name), start, re.DOTALL) is not None


def check_not_binary(path: str, start: bytes) -> None:
    """Raise `SourceError` if `start`, the first bytes of a file, belongs to a known binary format."""
    if kind := _detect_binary(start):
        raise SourceError(f"{path} is not a text file: it seems to be {kind[0]}.", _fill(kind[1], path))


def check_member(path: str, name: str, start: bytes) -> None:
    """The same for the only file of an archive, of which `start` are the first bytes."""
    kind = ("a workbook", "") if is_workbook(start) else _detect_binary(start)
    if kind:
        hint = _EXTRACT.format("python3 -m zipfile -e {path} {stem}")
        raise SourceError(
            f"{path} is a zip archive of one file, {name}, which seems to be {kind[0]}.", _fill(hint, path)
        )


def _detect_binary(start: bytes) -> tuple[str, str] | None:
    """Kind and hint of a known binary format; None for a workbook, which can be read."""
    if is_workbook(start):
        return None
    return next((BINARY[magic] for magic in BINARY if start.startswith(magic)), None) or _detect_more(start)


def choose_member(path: str, names: Sequence[str]) -> str:
    """The only file of an archive, except notes. Raises `SourceError` if there are several or none."""
    files = [name for name in names if not name.endswith("/") and not _NOT_DATA.search(name)]
    if len(files) == 1:
        return files[0]
    listed = f": {join_names(files, 5)}" if files else ""
    hint = _EXTRACT.format("python3 -m zipfile -e {path} {stem}")
    raise SourceError(f"{path} is a zip archive of {plural(len(files), 'file')}{listed}.", _fill(hint, path))


_NOT_DATA = re.compile(r"(^|/)(\.|__MACOSX/|readme|licen[cs]e)", re.IGNORECASE)


def check_is_table(path: str, head: bytes) -> None:
    """Raise `SourceError` if `head`, the first decoded bytes of a file, belongs to a text that is not a table."""
    text = head.lstrip()
    kind = next(((name, hint) for pattern, name, hint in TEXT if pattern.match(text)), None)
    if kind is not None:
        raise SourceError(f"{path} seems to be {kind[0]}.", _fill(kind[1], path))


def _detect_more(start: bytes) -> tuple[str, str] | None:
    """Kinds whose marks are not the first bytes."""
    if start.startswith(ZIP):
        return next(((OFFICE[mark], DOCUMENT_HINT) for mark in OFFICE if _has_member(mark, start)), None)
    if start.startswith(OLE):
        return "an old Word document", DOCUMENT_HINT
    if start[8:12] == b"DUCK":
        hint = "Write a table as Parquet; a store of curate is named by --store:\n"
        hint += "    duckdb {path} -c \"COPY table_name TO '{stem}.parquet'\"\n    curate import {stem}.parquet"
        return "a DuckDB database", hint
    if start[257:262] == b"ustar":
        return (
            "a tar archive",
            _EXTRACT.format("mkdir {stem}\n    tar -xf {path} -C {stem}"),
        )
    return None


def _fill(hint: str, path: str) -> str:
    """The hint with the path of the file, and that path without its suffix."""
    quote: Callable[[object], str] = lambda name: shell_quote(str(name))  # noqa: E731
    return hint.format(path=quote(path), stem=quote(Path(path).with_suffix("")), folder=quote(Path(path).parent))
