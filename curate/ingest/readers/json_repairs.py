"""The text of a record that is not JSON → the command that converts its file, if it converts this record.

Two kinds of text are known: values as Python prints them, and JSON with comments or trailing commas.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from schemas.text import shell_quote

_EXTRAS = r"""("(?:\\.|[^"\\])*")|//.*|#.*|/\*[\s\S]*?\*/|,(?=(?:\s|//.*|#.*|/\*[\s\S]*?\*/)*[]}])"""
"""Strings, which are kept, comments, and commas before a closing bracket."""

_CLEAN = f'import re, sys; print(re.sub(r"""{_EXTRAS}""", r"\\1", sys.stdin.read()))'
_ARRAY = r"""\barray\((\[[^()]*\])(?:,\s*dtype=[^()]*)?\)"""
_PYTHON_LINES = (
    "import ast, json, sys; [print(json.dumps(ast.literal_eval({}), ensure_ascii=False)) "
    "for text in sys.stdin if text.strip()]"
)
_PYTHON_LIST = (
    "import ast, json, sys; text = sys.stdin.read(); "
    "print(json.dumps(ast.literal_eval({}), ensure_ascii=False, indent=1))"
)
_PLAIN, _WITHOUT_ARRAYS = "text", f'__import__("re").sub(r"""{_ARRAY}""", r"\\1", text)'
"""The text in these programs, and the same with the lists of NumPy's arrays."""

_SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt")


def conversion_hint(path: str, record: str) -> str:
    """What the record seems to be, and the commands that convert its file and import the result; empty if none does."""
    if Path(path).suffix.lower() not in _SUFFIXES:
        return ""
    for text, source in ((record, _PLAIN), (re.sub(_ARRAY, r"\1", record), _WITHOUT_ARRAYS)):
        if _is_python(text):
            is_list = re.match(r"\s*\[", _start(path)) is not None
            program = (_PYTHON_LIST if is_list else _PYTHON_LINES).format(source)
            return _commands("It is written by Python's print; convert it:", path, program)
    cleaned = re.sub(_EXTRAS, r"\1", record)
    if cleaned != record and (not cleaned.strip(" \t\r\n,") or _is_json(cleaned)):
        return _commands("It has a comment or a trailing comma, which JSON does not have; convert it:", path, _CLEAN)
    return ""


def _commands(what: str, path: str, program: str) -> str:
    file = Path(path)
    to = shell_quote(str(file.with_name(f"{file.stem}.clean{'.jsonl' if file.suffix == '.txt' else file.suffix}")))
    convert = f"python3 -c {shell_quote(program)} < {shell_quote(path)} > {to}"
    return f"{what}\n    {convert}\n    curate import {to}"


def _is_python(record: str) -> bool:
    try:
        return isinstance(ast.literal_eval(record.strip(" \t\r\n,")), dict) and not _is_json(record)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _is_json(record: str) -> bool:
    try:
        json.loads(record)
    except (ValueError, RecursionError):
        return False
    return True


def _start(path: str) -> str:
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.read(100)
    except OSError:
        return ""
