"""A sheet of a workbook → its formulas without a stored result, which would be read as empty cells.

Programs that only write workbooks, such as openpyxl, do not compute; Excel and LibreOffice store the results.
"""

from __future__ import annotations

import html
import io
import re
import zipfile
from pathlib import Path

from schemas.errors import SourceError
from schemas.text import plural, shorten

UNCOMPUTED = re.compile(
    rb"""<(?:\w+:)?c\b([^>]*)>\s*<(?:\w+:)?f\b[^>]*?(?:/>|>([^<]*)</(?:\w+:)?f>)\s*"""
    rb"""(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v>\s*</(?:\w+:)?v>)?\s*</(?:\w+:)?c>"""
)
"""A cell with a formula and no value: its attributes and the formula."""

PLACE = re.compile(rb"""\br=["']([A-Z]+\d+)["']""")
SHEET = re.compile(rb"""<(?:\w+:)?sheet\b[^>]*?:id=["']([^"']+)["']""")
LINK = re.compile(rb"<(?:\w+:)?Relationship\b[^>]*>")
ATTRIBUTE = re.compile(rb"""\b(Id|Target)=["']([^"']*)["']""")


def check_computed(path: str, file: Path | io.BytesIO, name: str, number: int) -> None:
    """Raise `SourceError` if the sheet `name`, the one with this number from 0, has formulas without results."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        part = _sheet_part(archive, number)
        found = UNCOMPUTED.findall(archive.read(part)) if part else []
    if not found:
        return
    attributes, formula = found[0]
    place = PLACE.search(attributes)
    cell = f" in {place[1].decode()}" if place else ""
    text = shorten(html.unescape(formula.decode("utf-8", "replace")), 60)
    formulas = plural(len(found), "formula")
    raise SourceError(
        f"{path}: the sheet {name} has {formulas} without a stored result, the first{cell}: ={text}",
        "Open the workbook in a spreadsheet program and save it, which computes them, or save the sheet as CSV UTF-8.",
    )


def _sheet_part(archive: zipfile.ZipFile, number: int) -> str | None:
    """The file of a sheet in the archive; None if the workbook is not one of Excel."""
    names = set(archive.namelist())
    if not {"xl/workbook.xml", "xl/_rels/workbook.xml.rels"} <= names:
        return None
    ids = SHEET.findall(archive.read("xl/workbook.xml"))
    links = [dict(ATTRIBUTE.findall(link)) for link in LINK.findall(archive.read("xl/_rels/workbook.xml.rels"))]
    targets = {link.get(b"Id"): link.get(b"Target", b"").decode() for link in links}
    target = targets.get(ids[number], "") if number < len(ids) else ""
    part = target.removeprefix("/") if target.startswith("/") else f"xl/{target}"
    return part if part in names else None
