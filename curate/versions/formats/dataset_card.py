"""A version and facts about it → its dataset card: a README.md for the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.digest import canonical_json
from schemas.text import plural, printable
from schemas.version import Version

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The content of the card besides the version; rows as returned by `curate.versions.card_stats`."""

    files: Mapping[str, str]
    """split -> file name"""
    format: str
    restorable: bool = True
    languages: Sequence[str] = ()
    sources: Sequence[Mapping[str, Any]] = ()
    rejects: Sequence[Mapping[str, Any]] = ()
    scores: Sequence[Mapping[str, Any]] = ()
    uses: Sequence[Mapping[str, Any]] = ()
    """how often an epoch of training uses conversations; only of versions with a mix"""
    left_out: Mapping[str, int] = field(default_factory=dict)


def write_card(version: Version, facts: CardFacts) -> str:
    """The text of the card."""
    sections = [
        _header(version, facts),
        _introduction(version, facts),
        _section("Left out of this export", _table(["conversations", "reason"], _left_out(facts))),
        _section("Uses of train conversations per epoch", _table(["per_epoch", "conversations"], facts.uses)),
        _section("Sources", _table(_SOURCE_COLUMNS, facts.sources)),
        _section("Rejected rows", _table(["code", "rows", "repaired since"], facts.rejects)),
        _section("Scores", _table(["score", "conversations", "min", "median", "mean", "max"], facts.scores)),
        _section("Recipe", f"```json\n{_pretty(version.recipe)}\n```"),
        _section("How to verify", _verify(version, facts)),
    ]
    return printable("\n".join(section for section in sections if section))  # file names can have control characters


_SOURCE_COLUMNS = ["source", "shape", "read", "kept", "duplicate", "rejected", "here", "sha256"]

_DIGEST = """The digest is the SHA-256 of one line per conversation, `id split`, sorted by id, followed by the
recipe as canonical JSON. An id is a hash of the conversation's content."""

_MIXED = """ The line of a conversation that
an epoch uses more than once is `id split per_epoch`."""

_COMPLETE = """To verify the files, run

```
curate restore . --store check.duckdb
```

which recomputes every id and prints {label} and the digest `{digest}`."""

_INCOMPLETE = """These files do not contain the complete version, so its digest cannot be recomputed from
them; an export as `sharegpt` or `messages` can be verified. `version.json` has the SHA-256 of each file."""


_LANGUAGES = "language:  # of at least 1% of the conversations"


def _header(version: Version, facts: CardFacts) -> str:
    """The YAML metadata for the hub. The owner of the data must fill in the licence."""
    count = sum(version.counts.values())
    size = next((name for limit, name in SIZES if count < limit), "n>10M")
    data_files = [f"      - split: {split}\n        path: {name}" for split, name in facts.files.items()]
    lines = [
        "---",
        f"pretty_name: {version.name}",
        "license: unknown  # fill in the licence of these conversations",
        *([_LANGUAGES, *(f"  - {language}" for language in facts.languages)] if facts.languages else []),
        "task_categories:\n  - text-generation",
        "tags:\n  - sft\n  - conversational\n  - curate",
        f"size_categories:\n  - {size}",
        "configs:\n  - config_name: default\n    data_files:",
        *data_files,
        "---\n",
    ]
    return "\n".join(lines)


def _introduction(version: Version, facts: CardFacts) -> str:
    counts = "\n".join(f"- `{split}`: {plural(count, 'conversation')}" for split, count in version.counts.items())
    parent = f", parent {version.parent}" if version.parent else ""
    dedup = version.recipe.get("dedup")
    near_duplicates = f", near-duplicates (similarity {dedup['similarity']} or more)" if dedup else ""
    total = plural(sum(version.counts.values()), "conversation")
    return (
        f"# {version.label}\n\n{total} in the format `{facts.format}`{parent}, "
        f"frozen {version.frozen_at:%Y-%m-%d}.\n\n{counts}\n\nDigest `{version.digest}`.\n\n"
        f"Conversations with the same first question{near_duplicates} and edits of each other are always in the same "
        "split.\n"
    )


def _verify(version: Version, facts: CardFacts) -> str:
    how = _COMPLETE if facts.restorable else _INCOMPLETE
    mixed = f"{_DIGEST}{_MIXED}" if facts.uses else _DIGEST
    return f"{mixed} {how.format(label=version.label, digest=version.digest)}"


def _left_out(facts: CardFacts) -> list[dict[str, Any]]:
    return [{"reason": reason, "conversations": count} for reason, count in facts.left_out.items()]


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n" if text else ""


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    lines = ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *lines])


def _cell(value: object) -> str:
    r"""A value as the text of a table cell, without pipes, line breaks and markup.

    >>> _cell("a|b\n<b>"), _cell(1234), _cell(0.12345)
    ('a\\|b &lt;b>', '1,234', '0.1235')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value if value is not None else "").split()).replace("|", "\\|").replace("<", "&lt;")


def _pretty(recipe: Mapping[str, Any]) -> str:
    """The recipe as JSON, one line per section."""
    return "{\n" + ",\n".join(f"  {canonical_json(key)}: {canonical_json(recipe[key])}" for key in recipe) + "\n}"
