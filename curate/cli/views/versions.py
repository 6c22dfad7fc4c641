"""Results of freeze, versions, diff, export and restore → terminal output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curate.cli.console import note, print_line, print_table
from schemas.digest import canonical_json
from schemas.text import join_names, local_minute, plural
from schemas.version_recipe import FreezeSection

if TYPE_CHECKING:  # the commands import only what they run
    from curate.versions.bundle import ExportResult
    from curate.versions.diff import VersionDiff
    from curate.versions.freeze import FreezeResult
    from curate.versions.placement import NamedSplits, Placement
    from curate.versions.restore import RestoreResult

SHORT_DIGEST = 12
"""Digits of an id or a digest in a table."""

MAX_STRATA = 5
"""Names of strata in a message."""


def show_freeze(result: FreezeResult) -> None:
    """Print a version, its splits and its digest."""
    version = result.version
    state = ("frozen" if result.written else "would be frozen") if result.new else "already exists, unchanged"
    splits = ", ".join(
        f"{count:,} {split} ({plural(result.groups[split], 'group')})" for split, count in version.counts.items()
    )
    print_line(f"{version.label} {state}: {plural(sum(version.counts.values()), 'conversation')} = {splits}")
    print_line(f"digest {version.digest}")
    print_line(f"parent {version.parent or 'none'}")
    if result.moved:
        print_line(f"{plural(result.moved, 'conversation')} in a different split than in {version.parent}.")
    for line in _placement_lines(result):
        print_line(line)
    if result.placement.mix:
        _show_mix(result.placement)


def _placement_lines(result: FreezeResult) -> Iterator[str]:
    """How the members were chosen and placed, as far as it differs from all kept conversations and a share of them."""
    placement, counts = result.placement, result.version.counts
    if placement.sampled < placement.kept:
        yield f"A sample of {placement.sampled:,} of {plural(placement.kept, 'kept conversation')}."
    if placement.named:
        yield from _named_lines(placement.named, result.version.recipe["freeze"]["held_out"])
    held_out = counts["held_out"] - (placement.named.held_out if placement.named else 0)
    if placement.wanted is not None and held_out != placement.wanted:
        yield f"{held_out:,} instead of {plural(placement.wanted, 'conversation')} held out: groups stay whole."
    if unrepresented := placement.unrepresented:
        names = join_names(unrepresented, MAX_STRATA)
        count = f"{len(unrepresented):,} of {len(placement.strata):,} strata"
        yield f"{count} without a held-out conversation, use a larger --held-out: {names}"
    if not counts["train"]:
        yield "train is empty: nothing is left to train on. Try a smaller --held-out, or --set freeze.salt=1."
    if not counts["held_out"] and sum(result.groups.values()) == 1:
        yield "held_out is empty: all conversations are in one group."
    elif not counts["held_out"] and placement.wanted is None and result.version.recipe["freeze"]["held_out"]:
        yield "held_out is empty: the share is too small for so few groups. Try --held-out 20%."


def _show_mix(placement: Placement) -> None:
    """Print how much of an epoch each part of the mix makes up, and which part limits its size."""
    rows = [
        {
            "part": part.part,
            "train conversations": part.conversations,
            "used per epoch": part.used,
            "share": f"{part.share:.1%}",
        }
        for part in placement.mix
    ]
    print_table(rows, list(rows[0]))
    unused = placement.sampled - placement.members.height
    print_line(
        f"An epoch uses {plural(sum(part.used for part in placement.mix), 'conversation')}, repeats counted; "
        f"{unused:,} kept ones are not used and are not members."
    )
    for part in placement.mix:
        if part.limits:
            print_line(f"{part.part} limits the epoch: all of its conversations are used, and none is repeated.")


def _named_lines(named: NamedSplits, held_out: int | float) -> Iterator[str]:
    """How many members were placed by the name of a split, and by what the others were."""
    yield (
        f"By the names of splits (meta.split): {named.train:,} train, {named.held_out:,} held_out; "
        "--ignore-splits ignores the names."
    )
    if named.moved:
        yield f"{plural(named.moved, 'train row')} moved to held_out: their groups have rows that are held out."
    if named.unnamed:
        yield f"{plural(named.unnamed, 'conversation')} without such a name, split by held_out = {held_out:g}."
    elif held_out != FreezeSection().held_out:
        yield f"held_out = {held_out:g} was not used: every conversation has such a name."


def note_disputes(count: int) -> None:
    """Report how many of the frozen conversations have disputed reviews, so that rules decide on them."""
    if count:
        note(
            f"{plural(count, 'conversation')} with disputed reviews, decided by rules: "
            "curate review push NAME --queue disagreement"
        )


def show_versions(versions: Sequence[Mapping[str, Any]]) -> None:
    """Print the versions as a table, with shortened digests and dates."""
    if not versions:
        return note("There are no versions yet. Next: curate freeze NAME")
    rows = [
        {
            **{key: cell for key, cell in version.items() if key != "conversations"},
            "digest": version["digest"][:SHORT_DIGEST],
            "frozen_at": local_minute(version["frozen_at"]),
            "runs": " ".join(version["runs"]),
        }
        for version in versions
    ]
    return print_table(rows, list(rows[0]))


def show_diff(diff: VersionDiff, changes: Sequence[Mapping[str, Any]]) -> None:
    """Print the counts, recipe changes and reasons of a diff, and the conversations in `changes`."""
    before, after = sum(diff.before.counts.values()), sum(diff.after.counts.values())
    print_line(f"{diff.before.label}: {plural(before, 'conversation')}; {diff.after.label}: {after:,}")
    counts = {change: count for change, count in diff.counts.items() if count or change != "reweighted"}
    print_line(", ".join(f"{count:,} {change}" for change, count in counts.items()))
    for key in diff.recipe:
        print_line(f"recipe {key.key}: {canonical_json(key.before)} → {canonical_json(key.after)}")
    if diff.changes.height:
        print_table(diff.reasons.to_dicts(), ["change", "conversations", "reason"])
    for change in changes:
        _show_change(change)
    if changes and len(changes) < diff.changes.height:
        note(f"{diff.changes.height - len(changes):,} more: --limit 0 shows all.")


def _show_change(change: Mapping[str, Any]) -> None:
    ids = " → ".join(change[end][:SHORT_DIGEST] for end in ("before", "after") if change[end])
    splits = " → ".join(dict.fromkeys(change[end] for end in ("split_before", "split_after") if change[end]))
    times = f", {change['per_epoch_before']} → {change['per_epoch_after']} per epoch"
    weight = times if change["change"] == "reweighted" else ""
    print_line(f"{change['change']:8} {ids} ({splits}{weight}) {change['origin'] or ''} {change['reason']}")
    for turn in change.get("turns", []):
        print_line(f"    turn {turn['position'] + 1}, {turn['role']}")
        for line in turn["lines"]:
            print_line(f"    {line}")


def show_export(result: ExportResult, *, dry_run: bool) -> None:
    """Print the files of an export, and how many conversations were left out and why."""
    verb = "would be written" if dry_run else "written"
    print_line(f"{result.version.label} {verb} to {result.to} as {result.format}, read back and compared")
    for name, file in result.files.items():
        print_line(f"  {name}: {plural(file.conversations, 'conversation')} ({file.split})")
    for reason, count in result.reasons.items():
        print_line(f"  left out: {count:,}, {reason}")


def show_restore(result: RestoreResult, *, dry_run: bool) -> None:
    """Print the restored version and its recomputed digest."""
    version = result.version
    restored = "would be restored" if dry_run else "restored"
    again = "its members would be written again" if dry_run else "its members were written again"
    state = restored if result.new else f"already exists, {again}"
    total = plural(sum(version.counts.values()), "conversation")
    print_line(f"{version.label} {state}: {total}, {result.conversations:,} of them new to the store")
    print_line(f"digest {version.digest}, recomputed from the conversations")
