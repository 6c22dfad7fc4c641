"""A run or an adapter's folder → the adapter with its manifest and base model, checked against the manifest's digests.

An adapter on a different base model or tokenizer generates fluent but wrong answers, so every export checks first.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class ExportSource:
    """What an export is made from: an adapter, its base model and its manifest."""

    adapter: Path
    base: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.manifest.run

    @property
    def is_full_finetune(self) -> bool:
        """Whether all weights were trained. The run's folder is then a complete model, and `base` is that folder."""
        return bool(self.manifest.engine["method"] == "full")

    @cached_property
    def template(self) -> Template:
        """The chat template of training."""
        return read_template(self.adapter, self.manifest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the base model. The copy in the adapter's folder lacks the stop tokens of its config."""
        return Tokenizer.load(self.base)

    @property
    def reasoning(self) -> Reasoning:
        """How training treated reasoning."""
        return TrainSection.model_validate(self.manifest.recipe).reasoning

    @cached_property
    def renderer(self) -> ChatRenderer:
        """The chat renderer of training."""
        return ChatRenderer(self.template, self.tokenizer, self.reasoning)


def find_source(store: Path, target: str, *, weights: bool = True) -> ExportSource:
    """Find the run or adapter folder that `target` names, and check it against its manifest.

    Raises `TrainError` if there is none or a file of it is missing or damaged, `ExportError` if the base model, the
    tokenizer or the weights differ from the manifest. With `weights=False` the weights are not read, which is enough
    for rendering and faster.
    """
    adapter, _ = find_adapter(store, target)
    manifest = read_manifest(adapter)
    base = adapter if manifest.engine["method"] == "full" else find_base(adapter, manifest)
    source = ExportSource(adapter, base, manifest)
    if weights:
        _check_weights(source)
    _check_rendering(source)
    return source


def _check_weights(source: ExportSource) -> None:
    check_weights(source.adapter, source.manifest)
    if not source.is_full_finetune and model_digest(source.base) != source.manifest.model.digest:
        raise ExportError(
            f"The adapter in {source.adapter} was trained on a different model than the one in {source.base}: the "
            "digests differ.",
            f"Restore the model {source.manifest.model.name}; curate verify shows the details.",
        )
    if adapter_digest(source.adapter) != source.manifest.adapter_digest:
        raise ExportError(
            f"The weights in {source.adapter} are not those of run {source.name}: the digests differ.",
            f"curate verify {source.adapter} shows the details.",
        )


def _check_rendering(source: ExportSource) -> None:
    read_template(source.adapter, source.manifest)
    for folder in (source.base, source.adapter):
        if Tokenizer.load(folder).digest != source.manifest.rendering.tokenizer_digest:
            raise ExportError(
                f"The tokenizer in {folder} has changed since run {source.name} was trained: its digest differs.",
                "Restore the original files; a model served with different tokens generates nonsense.",
            )


def read_conversations(store: Path, manifest: Manifest) -> pl.DataFrame:
    """The conversations of the version that was trained on: `id`, `conversations`, `tools`, `split`.

    Raises `StoreError` or `VersionError` if the store does not contain this version unchanged.
    """
    with reading(store) as connection:
        version = find_version(connection, manifest.data.version)
        if version.digest != manifest.data.digest:
            raise VersionError(
                f"{version.label} in {store} is not the version that run {manifest.run} was trained on.",
                "Give the --store of that training.",
            )
        return read_members(connection, version)


def render_held_out(store: Path, source: ExportSource) -> pl.DataFrame:
    """Render the held-out conversations, or all if none were held out: columns of `RENDERED`."""
    return _render(_read_split(store, source, "held_out"), source)


def render_train(store: Path, source: ExportSource, limit: int) -> pl.DataFrame:
    """Render the first `limit` conversations of the training split that can be rendered: columns of `RENDERED`.

    Renders `limit` at a time until there are enough, because a version may have millions.
    """
    rendered = pl.DataFrame(schema=RENDERED)
    for batch in _read_split(store, source, "train").iter_slices(limit):
        rendered = pl.concat([rendered, _render(batch, source)]).head(limit)
        if rendered.height == limit:
            break
    return rendered


def _read_split(store: Path, source: ExportSource, split: str) -> pl.DataFrame:
    """The conversations of a split, or all if it is empty."""
    conversations = read_conversations(store, source.manifest)
    members = conversations.filter(pl.col("split") == split)
    return members if members.height else conversations


def _render(conversations: pl.DataFrame, source: ExportSource) -> pl.DataFrame:
    rendered = render(conversations, source.template, source.tokenizer, source.reasoning)
    return rendered.filter(pl.col("problem").is_null())
