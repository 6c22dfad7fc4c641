"""Commands freeze, versions, diff, export and restore: kept conversations ↔ frozen versions ↔ files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curate.cli import completion
from curate.cli.console import note_dry_run, print_json
from curate.cli.options import DEFAULT_STORE, DryRunOption, JsonOption, RecipeOption, SetOption, StoreOption


def freeze(
    name: Annotated[
        str, typer.Argument(help="Name of the dataset, such as support.", autocompletion=completion.DATASETS)
    ],
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Expected share of groups (conversations with the same first question) to hold out, or a number of "
            "conversations.",
            show_default="freeze.held_out",
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            help="Only so many of the kept conversations, by content hash: a number or a share.",
            show_default="freeze.sample, or all",
        ),
    ] = None,
    ignore_splits: Annotated[
        bool,
        typer.Option("--ignore-splits", help="Ignore the names of files, folders and a column split, such as test."),
    ] = False,
    parent: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Parent version, or none.",
            autocompletion=completion.VERSIONS,
            show_default="the newest NAME@n",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the split and the digest; write nothing.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Freeze the kept conversations as the next version of NAME, with a leak-free split.

    Conversations with the same first question land in the same split: case, accents, punctuation, white space, markup
    and, from 8 words, one typo do not count. So do near-duplicates after curate dedup.

    \b
    curate freeze support --held-out 5%
    curate freeze support-small --sample 5000 --held-out 200
    """
    from curate.cli.views.versions import note_disputes, show_freeze
    from curate.review.verdicts import find_disputed
    from curate.scorers.runner import check_not_empty
    from curate.versions import freeze as freezing
    from schemas.recipe import load_recipe
    from schemas.section import parse_amount
    from schemas.store import reading, writing

    amounts = {"held_out": held_out, "sample": sample}
    given = {key: (text, f"--{key.replace('_', '-')}") for key, text in amounts.items() if text is not None}
    options = [f"freeze.{key}={parse_amount(text, option)}" for key, (text, option) in given.items()]
    options += ["freeze.named_splits=false"] if ignore_splits else []
    settings = load_recipe(recipe, [*(set_ or []), *options])
    check_not_empty(store)  # a store that is missing is not created
    with (reading if dry_run else writing)(store) as connection:
        frozen = freezing.freeze(connection, name, settings, parent=parent, dry_run=dry_run)
        disputed = find_disputed(connection, settings.review, only_kept=True)
    if as_json:
        return print_json(frozen.as_json())
    show_freeze(frozen)
    note_dry_run(dry_run)
    return note_disputes(len(disputed))


def versions(
    name: Annotated[
        str | None, typer.Argument(help="Only the versions of this dataset.", autocompletion=completion.DATASETS)
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List the frozen versions with their sizes, parents and runs.

    \b
    curate versions support
    """
    from curate.cli.views.versions import show_versions
    from curate.versions.freeze import list_versions
    from schemas.store import reading

    with reading(store) as connection:
        listed = list_versions(connection, name)
    print_json(listed) if as_json else show_versions(listed)


def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="The earlier version.", autocompletion=completion.VERSIONS)
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The later version.", autocompletion=completion.VERSIONS)],
    list_: Annotated[bool, typer.Option("--list", help="Show the changed conversations, and edits as text.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Number of conversations that --list shows; 0 for all.")] = 20,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show the conversations that were added, removed, edited or moved between two versions, with reasons.

    \b
    curate diff support@1 support@2 --list
    """
    from curate.cli.views.versions import show_diff
    from curate.versions.diff import diff_versions, list_changes
    from schemas.store import reading

    with reading(store) as connection:
        difference = diff_versions(connection, before, after)
        changes = list_changes(connection, difference, limit or None) if list_ or as_json else []
    print_json({**difference.as_json(), "changes": changes}) if as_json else show_diff(difference, changes)


def export(
    version: Annotated[
        str,
        typer.Argument(
            metavar="NAME@n", help="Version to write; NAME is the newest one.", autocompletion=completion.VERSIONS
        ),
    ],
    to: Annotated[Path, typer.Option(help="New folder, or a file name that ends in .jsonl or .parquet.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            autocompletion=completion.EXPORT_FORMATS,
            help="Format of the rows: sharegpt, messages or alpaca.",
        ),
    ] = "sharegpt",
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write Parquet instead of JSON Lines into the folder.")
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.one_of("train", "held_out", "all"),
            help="Only this split, train or held_out; all writes both to one file.",
        ),
    ] = None,
    skip_unfit: Annotated[
        bool, typer.Option("--skip-unfit", help="Leave out conversations that do not fit the format, and list them.")
    ] = False,
    with_scores: Annotated[bool, typer.Option("--with-scores", help="Add scores.parquet.")] = False,
    with_origins: Annotated[
        bool, typer.Option("--with-origins", help="Add origins.parquet with file, line and raw row.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing export.")] = False,
    dry_run: DryRunOption = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write a version to files with checksums and a dataset card.

    \b
    curate export support@1 --format messages --to support-1
    """
    from curate.cli.views.versions import show_export
    from curate.versions.bundle import export_version
    from schemas.store import reading

    options = {"parquet": parquet, "skip_unfit": skip_unfit, "replace": replace, "dry_run": dry_run}
    sides = {"with_scores": with_scores, "with_origins": with_origins}
    with reading(store) as connection:
        exported = export_version(connection, version, to, format=format_, split=split, **options, **sides)
    print_json(exported.as_json()) if as_json else show_export(exported, dry_run=dry_run)
    note_dry_run(dry_run)


def restore(
    bundle: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder written by curate export.")],
    name: Annotated[str | None, typer.Option(help="Restore the version under this name.")] = None,
    dry_run: DryRunOption = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Restore a version from its exported folder and check its digest.

    \b
    curate restore support-1 --store other.duckdb
    """
    from curate.cli.views.versions import show_restore
    from curate.versions import restore as restoring
    from schemas.store import writing

    stated = restoring.read_bundle(bundle)
    with writing(store, dry_run=dry_run) as connection:
        restored = restoring.restore(connection, stated, name=name)
    print_json(restored.as_json()) if as_json else show_restore(restored, dry_run=dry_run)
    note_dry_run(dry_run)
