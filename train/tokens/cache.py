"""The members of a version, a chat template and a tokenizer → their rendering, from the cache if it is there.

Most of the time of rendering is tokenization, so plan, preview and train share one result: a Parquet file per version,
template, tokenizer and mask policy in the user's cache folder. The least recently used files are deleted first.
"""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from schemas.atomic import atomic_file
from schemas.digest import digest
from schemas.recipe import TrainSection
from train.tokens.chat_template import PINNED_DATE, Template, cache_folder
from train.tokens.labels import RENDERED
from train.tokens.reasoning import REVISIONS
from train.tokens.render import MASK_POLICY, Progress
from train.tokens.tokenizer import Tokenizer
from train.tokens.windows import DECIDED, TEXT_WINDOWS_REVISION, render_members

FORMAT = 2
"""A part of the key: increased when the columns of a rendering change, so that older files are never read."""

MAX_BYTES = 4 * 2**30
"""Size of the cache: about a hundred million tokens with their labels, compressed."""

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
    """`render_members(recipe, members, …)`, computed once and then read from the cache.

    `members` is the result of `schemas.version.read_members` for the version with this digest.
    """
    path = _cache_path(version_digest, template, tokenizer, recipe)
    rendered = _read(path, members)
    if rendered is None:
        rendered = render_members(recipe, members, template, tokenizer, progress)
        _write(rendered, path)
    return rendered


def _cache_path(version_digest: str, template: Template, tokenizer: Tokenizer, recipe: TrainSection) -> Path:
    windows = [recipe.max_length, TEXT_WINDOWS_REVISION] if template.raw else recipe.max_length
    key = {
        "format": FORMAT,
        "reasoning": [recipe.reasoning, REVISIONS[recipe.reasoning]],
        "windows": windows if recipe.long == "split" else None,
        "version": version_digest,
        "template": template.digest,
        "tokenizer": tokenizer.digest,
        "stops": sorted(tokenizer.stops),
        "policy": MASK_POLICY,
        "date": str(PINNED_DATE),
    }
    return cache_folder() / "rendered" / f"{digest(key)[:32]}.parquet"


def _read(path: Path, members: pl.DataFrame) -> pl.DataFrame | None:
    """The cached rendering of exactly these members in this order; None if it is missing or damaged."""
    try:
        rendered = pl.read_parquet(path)
        path.touch()
    except FileNotFoundError:
        return None
    except (OSError, pl.exceptions.PolarsError) as error:
        log.warning("The cached rendering %s cannot be read (%s). Rendering again.", path, error)
        return None
    is_same = rendered["id"].unique(maintain_order=True).equals(members["id"])
    columns = [*RENDERED, *(name for name in DECIDED if name in members.columns)]
    return rendered if is_same and rendered.columns == columns else None


def _write(rendered: pl.DataFrame, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            rendered.write_parquet(temporary, compression="zstd", compression_level=1)
        _delete_oldest(path.parent)
    except OSError as error:
        log.warning("The rendering is not cached: %s", error)


def _delete_oldest(folder: Path) -> None:
    """Delete the least recently used files until the others fit into `MAX_BYTES`."""
    left = MAX_BYTES
    files = [path for path in folder.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        left -= path.stat().st_size
        if left < 0:
            path.unlink(missing_ok=True)
