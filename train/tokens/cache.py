"""In: the members of a version, a template, a tokenizer. Out: their rendering, from the cache where it is there.

Most of rendering is tokenising, so plan, preview and train share one result. It lies in the user's cache folder,
one Parquet file per version, template, tokenizer and mask policy; what has not been used longest goes first.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import polars as pl

from schemas.digest import digest
from schemas.recipe import TrainSection
from train.tokens.chat_template import PINNED_DATE, Template, cache_folder
from train.tokens.labels import RENDERED
from train.tokens.reasoning import REVISIONS
from train.tokens.render import MASK_POLICY, Progress
from train.tokens.tokenizer import Tokenizer
from train.tokens.windows import PIECES, render_members

ROOM = 4 * 2**30
"""Bytes that the cache may take: about a hundred million tokens with their labels, compressed."""

log = logging.getLogger(__name__)


def render_version(
    members: pl.DataFrame,
    version_digest: str,
    template: Template,
    tokenizer: Tokenizer,
    recipe: TrainSection = TrainSection(),  # noqa: B008  it is frozen
    *,
    progress: Progress = lambda *_: None,
) -> pl.DataFrame:
    """`render_members(recipe, members, …)`, made once and then read from the cache.

    `members` is what `schemas.version.read_members` gives for the version with this digest.
    """
    path = _place(version_digest, template, tokenizer, recipe)
    rendered = _read(path, members["id"])
    if rendered is None:
        rendered = render_members(recipe, members, template, tokenizer, progress)
        _keep(rendered, path)
    return rendered


def _place(version_digest: str, template: Template, tokenizer: Tokenizer, recipe: TrainSection) -> Path:
    key = {
        "format": 2,
        "reasoning": [recipe.reasoning, REVISIONS[recipe.reasoning]],
        "windows": _windows(template, recipe) if recipe.long == "split" else None,
        "version": version_digest,
        "template": template.digest,
        "tokenizer": tokenizer.digest,
        "stops": sorted(tokenizer.stops),
        "policy": MASK_POLICY,
        "date": str(PINNED_DATE),
    }
    return cache_folder() / "rendered" / f"{digest(key)[:32]}.parquet"


def _windows(template: Template, recipe: TrainSection) -> object:
    return [recipe.max_length, PIECES] if template.raw else recipe.max_length


def _read(path: Path, ids: pl.Series) -> pl.DataFrame | None:
    """The cached rendering of exactly these conversations in this order; nothing where it is missing or damaged."""
    try:
        rendered = pl.read_parquet(path)
        path.touch()
    except FileNotFoundError:
        return None
    except (OSError, pl.exceptions.PolarsError) as error:
        log.warning("The cached rendering %s cannot be read (%s); it is made again.", path, error)
        return None
    same = rendered["id"].unique(maintain_order=True).equals(ids)
    return rendered if same and rendered.columns == [*RENDERED, "split"] else None


def _keep(rendered: pl.DataFrame, path: Path) -> None:
    """Write under another name first, so that a killed process leaves no half-written rendering."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        rendered.write_parquet(unfinished, compression="zstd", compression_level=1)
        unfinished.replace(path)
        _make_room(path.parent)
    except OSError as error:
        log.warning("The rendering is not cached: %s", error)


def _make_room(folder: Path) -> None:
    """Delete what has not been used longest until the rest fits into `ROOM`."""
    room = ROOM
    newest_first = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first:
        room -= path.stat().st_size
        if room < 0:
            path.unlink(missing_ok=True)
