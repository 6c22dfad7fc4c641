"""Freezing: the kept conversations and a recipe come in, a version `name@number` with its split and digest goes out.

The split is a function of content alone. Conversations that belong together form a group and a group sits on one
side: the same first question, the same cluster in the table `clusters`, an edit and what it was edited from. A group's
side follows from a hash, so nothing is drawn at random and nothing depends on the order of import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.scorers.runner import plan
from curate.selection import KEPT_SQL, NEAR_DUPLICATE, WHERE, latest_selection, uncompared
from schemas.cluster import Clustering, find_clustering
from schemas.conversation import FIRST_QUESTION_SQL
from schemas.digest import canonical_json
from schemas.errors import VersionError
from schemas.recipe import Recipe
from schemas.rule import Expression
from schemas.text import plural
from schemas.version import SPLITS, Version, find_version, version_digest

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
NO_PARENT = "none"

LAST_NUMBER = 2**31 - 1
"""The largest that a store can hold for the number of a version: a bundle may state it."""

SPACES = r"[\s\p{Z}]{2,}|[\t-\r\x{85}\x{A0}\x{2000}-\x{200A}\x{2028}-\x{202F}\x{3000}]"
"""What becomes one space. A single plain space is not matched: four times faster than replacing each by itself."""
NORMAL_SQL = f"trim(regexp_replace(lower(nfc_normalize({FIRST_QUESTION_SQL})), '{SPACES}', ' ', 'g'))"
PROMPTS_SQL = f"""
    SELECT id AS conversation, sha256(coalesce(nullif({NORMAL_SQL}, ''), id)) AS prompt, parent IS NOT NULL AS edited
    FROM conversations
"""
"""Every conversation and the hash of its first question; one that asks nothing is a group of its own."""

LINKS_SQL = """
    SELECT conversation, 'cluster ' || method || ' ' || cluster AS link FROM clusters
    UNION ALL SELECT unnest([id, parent]), 'edit ' || parent FROM conversations WHERE parent IS NOT NULL
    UNION ALL SELECT unnest([conversation, edited_to]), 'edit ' || conversation FROM verdicts
    WHERE edited_to IS NOT NULL
"""
"""What ties conversations with different questions together: near-duplicate clusters and edits."""

LINKED_PROMPTS_SQL = f"""
    WITH links AS ({LINKS_SQL}), prompts AS ({PROMPTS_SQL})
    SELECT DISTINCT prompt AS member, link, if(prompt IN (SELECT prompt FROM prompts WHERE NOT edited), '', '~') AS rank
    FROM links JOIN prompts USING (conversation)
"""
"""`rank` puts questions that only edits ask behind all others, so an edit never renames the group it joins."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a freeze made or found, and what its split looks like."""

    version: Version
    new: bool
    written: bool
    groups: dict[str, int]
    moved: int

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        version = self.version
        return {
            "version": version.label,
            "new": self.new,
            "digest": version.digest,
            "parent": version.parent,
            "conversations": sum(version.counts.values()),
            "counts": version.counts,
            "groups": self.groups,
            "moved_since_parent": self.moved,
        }

    def as_text(self) -> str:
        """The result for people, a few lines."""
        version, counts = self.version, self.version.counts
        state = ("frozen" if self.written else "would be frozen") if self.new else "is this already, nothing was added"
        sides = ", ".join(
            f"{count:,} {split} ({plural(self.groups[split], 'group')})" for split, count in counts.items()
        )
        lines = [
            f"{version.label} {state}: {plural(sum(counts.values()), 'conversation')} = {sides}",
            f"digest {version.digest}",
            f"parent {version.parent or 'none'}",
        ]
        if self.moved:
            lines.append(f"Of them {self.moved:,} sit on the other side than in {version.parent}.")
        if not counts["held_out"]:
            lines.append("held_out is empty: with few groups a small share may hold none; --held-out 20% holds more.")
        return "\n".join(lines)


def freeze(
    connection: DuckDBPyConnection, name: str, recipe: Recipe, *, parent: str | None = None, dry_run: bool = False
) -> Frozen:
    """The version that the kept conversations and `recipe` make: a new one, or the one of this name that is the same.

    `parent` is a label, `none`, or left out for the newest version of this name. `dry_run` writes nothing, and a
    read-only connection will do. Raises `RecipeError` for wrong scores, `VersionError` for a bad name, an unknown
    parent, an empty selection, and where the latest selection applied other rules or scores than the recipe names: a
    version states what made it. The same holds for near-duplicates, where they have been looked for.
    """
    check_name(name)
    plan(recipe.score)
    made_by = recipe.data_part() | applied_clustering(connection, recipe)
    made_by["select"]["rules"] = applied_rules(connection, recipe)
    members = split_members(connection, recipe.freeze.held_out, recipe.freeze.salt)
    _refuse_empty(connection, members)
    digest = version_digest(members, made_by)
    newest = _newest(connection, name)
    same = _find_digest(connection, name, digest)
    before = _parent_label(connection, parent, newest)
    counts = count_sides(members)
    version = same or Version(name, _next_number(newest), digest, before, made_by, counts, datetime.now(UTC))
    if same is None and not dry_run:
        write_version(connection, version, members)
    groups = _counts(members, pl.col("group").n_unique())
    return Frozen(
        version, same is None, same is None and not dry_run, groups, _moved(connection, version.parent, members)
    )


def split_members(connection: DuckDBPyConnection, held_out: float, salt: str = "") -> pl.DataFrame:
    """The kept conversations with their sides: columns `conversation`, `split`, `group`.

    A group goes to `held_out` when SHA-256(salt + group), read as a fraction, lies below `held_out`; so raising the
    share only ever moves groups over to `held_out`. Groups are formed over the whole store, not over what is kept,
    so a conversation keeps its side when others are dropped or come in, and an edit takes the side of what it was
    edited from. A group can only change sides when a newcomer with a smaller hash joins it as a near-duplicate, or
    ties two groups together; then it moves as a whole, and `Frozen.moved` counts it.

    The share is an expectation over groups, not a count: with n groups its standard deviation is sqrt(p(1-p)/n).
    5 % of 1,000 groups comes out between 4.3 % and 5.7 % in two cases of three; of 20 groups it is empty in one
    case of three; and a large group, such as many chats that open with the same greeting, goes as a block.
    """
    groups = join_groups(connection.sql(LINKED_PROMPTS_SQL).pl()).rename({"member": "prompt"})
    connection.register("joined_groups", groups)
    members: pl.DataFrame = connection.sql(
        f"""
        SELECT conversation, if(sha256(? || "group") < ?, 'held_out', 'train') AS split, "group" FROM (
            SELECT conversation, coalesce("group", prompt) AS "group"
            FROM ({KEPT_SQL}) JOIN ({PROMPTS_SQL}) USING (conversation) LEFT JOIN joined_groups USING (prompt))
        """,
        params=[salt, f"{int(held_out * 2**64):016x}"],
    ).pl()
    connection.unregister("joined_groups")
    return members


def applied_rules(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, str]:
    """The rules of the latest selection: those of the recipe, and the `--where` of the command if it had one.

    Raises `VersionError` when they are not the recipe's, or its `[score]` is another one: a version states both.
    """
    latest = latest_selection(connection)
    rules, scores = latest or ({}, recipe.score)
    of_recipe = {name: text for name, text in rules.items() if name != WHERE}
    hint = "curate select applies the rules of the recipe; give both commands the same --recipe and --set."
    if of_recipe != recipe.select.rules:
        differing = "; ".join(_differing_rules(recipe.select.rules, of_recipe)) if latest else "there was none"
        raise VersionError(f"The recipe's rules are not those of the latest selection: {differing}.", hint)
    if scores != recipe.score:
        now, then = canonical_json(recipe.score), canonical_json(scores)
        raise VersionError(f"The recipe's [score] ({now}) is not that of the latest selection ({then}).", hint)
    return rules


def applied_clustering(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, Any]:
    """The `dedup` of the recipe, where near-duplicates have been looked for; they sit on one side of the split.

    Raises `VersionError` when that was done in another way, not for all conversations, or after the selection that
    went by it.
    """
    clustering = find_clustering(connection)
    if clustering is None:
        return {}
    hint = "curate dedup looks for near-duplicates again; give both commands the same --recipe and --set."
    now = recipe.dedup.model_dump(mode="json")
    if clustering.parameters != now:
        then = canonical_json(clustering.parameters)
        raise VersionError(f"The recipe's [dedup] ({canonical_json(now)}) is not what was applied ({then}).", hint)
    if waiting := uncompared(connection, clustering):
        raise VersionError(
            f"{plural(waiting, 'conversation')} came in after near-duplicates were looked for, so the split could "
            "tear some of them apart.",
            "curate dedup",
        )
    if _selected_before(connection, clustering):
        raise VersionError(
            f"Near-duplicates were looked for after the selection that goes by {NEAR_DUPLICATE}.", "curate select"
        )
    return {"dedup": clustering.parameters}


def _selected_before(connection: DuckDBPyConnection, clustering: Clustering) -> bool:
    """Whether the latest selection reads near-duplicates, and others than there are now."""
    latest = connection.sql("SELECT rules, selected_at FROM selections ORDER BY selected_at DESC, rowid DESC LIMIT 1")
    return any(
        when < clustering.clustered_at
        and any((NEAR_DUPLICATE,) in Expression.read(rule, name).names for name, rule in json.loads(rules).items())
        for rules, when in latest.fetchall()
    )


def _differing_rules(now: Mapping[str, str], then: Mapping[str, str]) -> Iterator[str]:
    """What became of each rule that is not the same: it is new, another one, or gone."""
    for name, text in now.items():
        if name not in then:
            yield f"{name} is new ({text})"
        elif text != then[name]:
            yield f"{name} is now {text} and was {then[name]}"
    yield from (f"{name} is gone ({text})" for name, text in then.items() if name not in now)


def join_groups(links: pl.DataFrame) -> pl.DataFrame:
    """The smallest member that each member of `links` (`member`, `link`, `rank`) can reach: columns `member`, `group`.

    Every round hands the smallest one on across one link, both ways; it ends when nothing changes any more, after
    as many rounds as the longest chain of links is long, which is two or three where clusters are closed already.
    Smallest is by `rank`, then by name.
    """
    groups = links.with_columns(group=pl.concat_str("rank", "member"))
    while True:
        spread = groups.with_columns(pl.col("group").min().over("link")).with_columns(
            pl.col("group").min().over("member")
        )
        if spread["group"].equals(groups["group"]):
            return groups.select("member", "group").unique()
        groups = spread


def check_name(name: str) -> str:
    """The name, if a version can have it; raises `VersionError` if not."""
    if not NAME.fullmatch(name):
        raise VersionError(
            f"{name!r} cannot be the name of a version.",
            "Use small letters, digits, '.', '_' and '-', such as support; the number behind @ comes by itself.",
        )
    return name


def _refuse_empty(connection: DuckDBPyConnection, members: pl.DataFrame) -> None:
    if members.height:
        return
    ((stored,),) = connection.sql("SELECT count(*) FROM conversations").fetchall()
    if stored:
        raise VersionError(
            f"None of the {stored:,} conversations in the store is kept, so there is nothing to freeze.",
            "curate select --dry-run shows which rule drops how many.",
        )
    raise VersionError("The store has no conversation yet.", "curate import FILE reads some in.")


def _newest(connection: DuckDBPyConnection, name: str) -> Version | None:
    found = connection.execute("SELECT count(*) FROM versions WHERE name = ?", [name]).fetchall()
    return find_version(connection, name) if found[0][0] else None


def _next_number(newest: Version | None) -> int:
    if newest is None:
        return 1
    if newest.number == LAST_NUMBER:
        raise VersionError(f"No number comes after {newest.label}.", "Freeze under another name.")
    return newest.number + 1


def _find_digest(connection: DuckDBPyConnection, name: str, digest: str) -> Version | None:
    query = "SELECT version FROM versions WHERE name = ? AND digest = ? ORDER BY number DESC LIMIT 1"
    found = connection.execute(query, [name, digest]).fetchall()
    return find_version(connection, found[0][0]) if found else None


def _parent_label(connection: DuckDBPyConnection, parent: str | None, newest: Version | None) -> str | None:
    if parent is None:
        return newest.label if newest else None
    return None if parent == NO_PARENT else find_version(connection, parent).label


def count_sides(members: pl.DataFrame) -> dict[str, int]:
    """How many conversations (`split`) are on each side."""
    return _counts(members, pl.len())


def _counts(members: pl.DataFrame, count: pl.Expr) -> dict[str, int]:
    found = dict(members.group_by("split").agg(count.alias("count")).iter_rows())
    return {split: int(found.get(split, 0)) for split in SPLITS}


def write_version(connection: DuckDBPyConnection, version: Version, members: pl.DataFrame) -> None:
    """Insert a version and its members (`conversation`, `split`)."""
    connection.execute(
        "INSERT INTO versions (version, name, number, digest, parent, recipe, counts, frozen_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            version.label,
            version.name,
            version.number,
            version.digest,
            version.parent,
            canonical_json(version.recipe),
            json.dumps(version.counts),
            version.frozen_at,
        ],
    )
    write_members(connection, version.label, members)


def write_members(connection: DuckDBPyConnection, label: str, members: pl.DataFrame) -> None:
    """Insert the members of a version (`conversation`, `split`)."""
    connection.register("new_members", members)
    connection.execute("INSERT INTO members SELECT ?, conversation, split FROM new_members", [label])
    connection.unregister("new_members")


def _moved(connection: DuckDBPyConnection, parent: str | None, members: pl.DataFrame) -> int:
    """How many conversations sat on the other side in the parent version."""
    before = connection.sql(
        "SELECT conversation, split AS split_before FROM members WHERE version = ?", params=[parent]
    ).pl()
    return members.join(before, on="conversation").filter(pl.col("split") != pl.col("split_before")).height


def list_versions(connection: DuckDBPyConnection, name: str | None = None) -> list[dict[str, Any]]:
    """Every version (of one name), oldest first: label, conversations, sides, digest, parent, date, runs.

    Raises `VersionError` when `name` is given and there is none.
    """
    if name is not None:
        find_version(connection, name)
    labels = connection.execute(
        "SELECT version FROM versions WHERE name = ? OR ? IS NULL ORDER BY name, number", [name, name]
    ).fetchall()
    return [_listed(connection, find_version(connection, label)) for (label,) in labels]


def _listed(connection: DuckDBPyConnection, version: Version) -> dict[str, Any]:
    runs = connection.execute("SELECT run FROM runs WHERE version = ? ORDER BY started_at", [version.label]).fetchall()
    return {
        "version": version.label,
        "conversations": sum(version.counts.values()),
        **version.counts,
        "digest": version.digest,
        "parent": version.parent,
        "frozen_at": version.frozen_at.isoformat(timespec="seconds"),
        "runs": [run for (run,) in runs],
    }
