r"""The text of a JSON object with values that cannot be stored → the object without them, and the keys that had them.

NaN and infinities become null, half of a surrogate pair (`\ud800`) becomes U+FFFD. Whether the row can be used without
them depends on the columns that the mapping uses.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from curate.ingest.shapes.json_cells import join_object, object_items

NAN_REASON = "Invalid JSON: NaN is not a JSON value; write null for a missing value."
SURROGATE_REASON = r"A string contains half of a surrogate pair, such as \ud800."

_NAN = re.compile(r'"(?:[^"\\]|\\.)*"|[-+]?\b(?:nan|inf|infinity)\b', re.IGNORECASE | re.DOTALL)
"""Strings, and the numbers that are not finite as written by JSON libraries or by C."""


@dataclass(frozen=True, slots=True)
class RecoveredObject:
    """An object in which values were replaced, and the reason by key."""

    text: str
    reasons: dict[str, str]


def recover_object(text: str) -> RecoveredObject | None:
    """The object with replaced values; None if it is not an object, or has other defects."""
    text = _NAN.sub(lambda found: found[0] if found[0][0] == '"' else "NaN", text.strip().removesuffix(","))
    try:
        if not isinstance(json.loads(text), dict):
            return None
        items = list(object_items(text))
    except (ValueError, RecursionError):
        return None
    if len({key for key, _ in items}) < len(items):
        return None
    reasons: dict[str, str] = {}
    members = []
    for key, value in items:
        name, (cell, reason) = _replace_surrogates(key), _recover_value(value)
        if reason := SURROGATE_REASON if name != key else reason:
            reasons[name] = reason
        members.append((name, cell))
    return RecoveredObject(join_object(members), reasons) if reasons else None


def _recover_value(text: str) -> tuple[str, str | None]:
    """The text of a value that can be stored, and why it was replaced."""
    value = json.loads(text, parse_int=str)  # integers may have more digits than Python converts
    if _has_nan(value):
        return json.dumps(_replace(json.loads(text)), ensure_ascii=False), NAN_REASON
    if "\\u" in text and _replace(value) != value:
        return json.dumps(_replace(json.loads(text)), ensure_ascii=False), SURROGATE_REASON
    return text, None


def _has_nan(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_nan, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and not math.isfinite(value)


def _replace(value: Any) -> Any:
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_replace(part) for part in value]
    if isinstance(value, str):
        return _replace_surrogates(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
