"""In: a run or an adapter's folder. Out: it with all that an export needs, proven to be what was trained.

An adapter on another base, or behind a tokenizer that has changed, answers fluently and wrong, so nothing leaves
before the digests of its manifest are taken again. What leaves is written beside its place, in `NAME.partial`, and
gets its name in one move.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from schemas.errors import ExportError, VersionError
from schemas.manifest import Manifest, read_manifest
from schemas.recipe import TrainSection
from schemas.store import reading
from schemas.version import find_version, read_members
from train.model.adapter import adapter_digest
from train.model.adapter_files import check_weights, read_template
from train.model.base_model import find_adapter, find_base, model_digest
from train.tokens.chat_template import Template
from train.tokens.labels import RENDERED
from train.tokens.loss_mask import ChatRenderer
from train.tokens.reasoning import Reasoning
from train.tokens.render import render
from train.tokens.tokenizer import Tokenizer

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IDENTITY = "identity"
"""File of a `.partial` folder that says what is being written there."""


@dataclass(frozen=True)
class Source:
    """What leaves: an adapter, its manifest, and the base model it stands on, all as they were in training."""

    adapter: Path
    base: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.manifest.run

    @property
    def whole(self) -> bool:
        """Whether all weights were trained: the run's folder is a model then, and stands on no base."""
        return bool(self.manifest.engine["method"] == "full")

    @cached_property
    def template(self) -> Template:
        """The template that was trained."""
        return read_template(self.adapter, self.manifest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the base model; the adapter's folder has the same, without what ends a generation."""
        return Tokenizer.load(self.base)

    @property
    def reasoning(self) -> Reasoning:
        """What became of reasoning in training."""
        return TrainSection.model_validate(self.manifest.recipe).reasoning

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Template and tokenizer at work, as in training."""
        return ChatRenderer(self.template, self.tokenizer, self.reasoning)


def find_source(store: Path, target: str, *, weights: bool = True) -> Source:
    """The adapter that `target` names, a run or a folder, with its base.

    Raises `TrainError` when there is none or a file of it is missing or damaged, `ExportError` when its base, its
    tokenizer or its weights are no longer those of its manifest. Without `weights` those are not read,
    which takes a while: for what only renders.
    """
    adapter, _ = find_adapter(store, target)
    source = Source(adapter, *_base(adapter))
    if weights:
        _check_weights(source)
    _check_rendering(source)
    return source


def members_of(store: Path, manifest: Manifest) -> pl.DataFrame:
    """The conversations of the version that was trained: `id`, `conversations`, `tools`, `split`.

    Raises `StoreError` or `VersionError` when the store does not have it as it was.
    """
    with reading(store) as connection:
        version = find_version(connection, manifest.data.version)
        if version.digest != manifest.data.digest:
            raise VersionError(
                f"{version.label} in {store} is not the one that run {manifest.run} was trained on.",
                "Give the --store that it was trained from.",
            )
        return read_members(connection, version)


def held_out_rows(store: Path, source: Source) -> pl.DataFrame:
    """The tokens of the conversations that were held out; of all, where none were: columns of `RENDERED`."""
    return _rendered(_members_in(store, source, "held_out"), source)


def train_rows(store: Path, source: Source, most: int) -> pl.DataFrame:
    """The tokens of the first `most` conversations that were there to be learned: columns of `RENDERED`.

    So many are rendered at a time until there are enough: a version may have millions.
    """
    found = pl.DataFrame(schema=RENDERED)
    for some in _members_in(store, source, "train").iter_slices(most):
        found = pl.concat([found, _rendered(some, source)]).head(most)
        if found.height == most:
            break
    return found


def _members_in(store: Path, source: Source, split: str) -> pl.DataFrame:
    """The conversations of a split; all, where it is empty."""
    members = members_of(store, source.manifest)
    wanted = members.filter(pl.col("split") == split)
    return wanted if wanted.height else members


def _rendered(members: pl.DataFrame, source: Source) -> pl.DataFrame:
    rendered = render(members, source.template, source.tokenizer, source.reasoning)
    return rendered.filter(pl.col("problem").is_null())


def _base(adapter: Path) -> tuple[Path, Manifest]:
    manifest = read_manifest(adapter)
    whole = manifest.engine["method"] == "full"
    return adapter if whole else find_base(adapter, manifest), manifest


def _check_weights(source: Source) -> None:
    check_weights(source.adapter, source.manifest)
    if not source.whole and model_digest(source.base) != source.manifest.model.digest:
        raise ExportError(
            f"The adapter in {source.adapter} was trained on another model than the one in {source.base}: their "
            "digests differ.",
            f"Put back the model {source.manifest.model.name} that it was trained on; curate verify says more.",
        )
    if adapter_digest(source.adapter) != source.manifest.adapter_digest:
        raise ExportError(
            f"The weights in {source.adapter} are not those that run {source.name} left there: the digests differ.",
            f"curate verify {source.adapter} says more.",
        )


def _check_rendering(source: Source) -> None:
    read_template(source.adapter, source.manifest)
    for folder in (source.base, source.adapter):
        if Tokenizer.load(folder).digest != source.manifest.rendering.tokenizer_digest:
            raise ExportError(
                f"The tokenizer in {folder} has changed since run {source.name} was trained: its digest differs.",
                "Put back the files that were there; a model that is served with other tokens answers nonsense.",
            )


# -------------------------------------------------------------------------------------------------------- placing


@contextmanager
def placed(folder: Path, identity: str) -> Iterator[Path]:
    """The folder `FOLDER.partial` to write into; it becomes `folder` in one move when the block ends well.

    What an earlier, interrupted export of the same identity left there is still there; of another, it is removed.
    Raises `ExportError` when `folder` is there already, or the disk is full.
    """
    check_free(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    mark = partial / IDENTITY
    if partial.exists() and not (mark.exists() and mark.read_text(encoding="utf-8") == identity):
        _remove_ours(partial, mark)
    with explained_disk(folder):
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(mark, identity):
            yield partial
            partial.rename(folder)
        (folder / IDENTITY).unlink()


@contextmanager
def _alone(mark: Path, identity: str) -> Iterator[None]:
    """Hold the mark while the block runs, so that a second export into the same folder is refused."""
    with mark.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(
                f"Another process is writing {mark.parent}.", "Wait for it to end, or give another --to."
            ) from error
        file.truncate(0)
        file.write(identity)
        file.flush()
        yield


def check_free(folder: Path) -> None:
    """Raise `ExportError` when something is in `folder` already, or it cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is already there.", "Give another --to FOLDER; nothing is written over.")


@contextmanager
def explained_disk(place: Path) -> Iterator[None]:
    """Say in a sentence that the disk is full, or that a file may not grow or be written there."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise ExportError(
                f"The disk is full: {place} could not be written ({error.strerror}).",
                "Free some space, or give another --to; the same command goes on where it was.",
            ) from error
        if isinstance(error, PermissionError):
            raise ExportError(f"{place} cannot be written: {error.strerror}.", "Give another --to.") from error
        raise


def _remove_ours(partial: Path, mark: Path) -> None:
    if not mark.exists() and any(partial.iterdir()):
        raise ExportError(
            f"{partial} is already there and not from an export.", "Move it away, or give another --to FOLDER."
        )
    shutil.rmtree(partial)


def beside(store: Path, kind: str, name: str) -> Path:
    """Where an export goes when nobody says: `merged/r1` by the store."""
    return store.resolve().parent / kind / name


def as_json(value: object) -> str:
    """JSON as the files of an export have it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
