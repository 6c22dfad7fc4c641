"""A version and the training section of a recipe → its conversations, their token ids and labels, and the ledger.

Plan, preview and train share the result. The tokenizer's files are enough: neither torch nor a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from schemas.conversation import TURN, Conversation
from schemas.recipe import TrainSection
from schemas.store import reading
from schemas.timing import timed
from schemas.version import SPLITS, Version, find_version, read_members
from train.tokens.cache import render_version
from train.tokens.chat_template import Template, find_template
from train.tokens.ledger import build_ledger
from train.tokens.render import Progress
from train.tokens.tokenizer import Tokenizer, find_tokenizer
from train.tokens.windows import render_members


@dataclass(frozen=True)
class PreparedConversations:
    """Conversations, rendered with one chat template and one tokenizer."""

    section: TrainSection
    template: Template
    tokenizer: Tokenizer
    members: pl.DataFrame  # of `read_members`
    rendered: pl.DataFrame  # columns of `train.tokens.labels.RENDERED`, and split
    ledger: pl.DataFrame  # columns of `schemas.ledger.LEDGER`


@dataclass(frozen=True)
class PreparedVersion(PreparedConversations):
    """A version, rendered with one chat template and one tokenizer."""

    version: Version

    def build_ledger(self, section: TrainSection) -> pl.DataFrame:
        """The ledger of the same version under another recipe."""
        rendered = render_version(self.members, self.version.digest, self.template, self.tokenizer, section)
        return build_ledger(rendered, section)


@timed("reading and rendering the version")
def prepare_version(
    store: Path,
    label: str,
    section: TrainSection,
    progress: Progress = lambda *_: None,
    *,
    only: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
) -> PreparedVersion:
    """The version called `label`, rendered with the template and tokenizer of `section`, and its ledger.

    `progress` is called only if the rendering is not cached. `only` selects members to render; the result is then not
    cached. Raises `VersionError` and `TrainError`, but not for conversations that the ledger drops (`check_limits`).
    """
    tokenizer = Tokenizer.load(find_tokenizer(section.model))
    template = find_template(section.template, tokenizer.folder)
    with reading(store) as connection:
        version = find_version(connection, label)
        members = read_members(connection, version)
    if only is None:
        rendered = render_version(members, version.digest, template, tokenizer, section, progress=progress)
    else:
        members = only(members)
        rendered = render_members(section, members, template, tokenizer, progress)
    ledger = build_ledger(rendered, section)
    return PreparedVersion(section, template, tokenizer, members, rendered, ledger, version)


def prepare_conversation(conversation: Conversation, section: TrainSection) -> PreparedConversations:
    """One conversation, rendered as a member of the train split of a version would be, whether it is one or not."""
    tokenizer = Tokenizer.load(find_tokenizer(section.model))
    template = find_template(section.template, tokenizer.folder)
    turns = [turn.as_row() for turn in conversation.turns]
    row = {"id": conversation.id, "conversations": turns, "tools": conversation.tools, "split": SPLITS[0]}
    members = pl.DataFrame([row], schema_overrides={"conversations": pl.List(TURN), "tools": pl.String})
    rendered = render_members(section, members, template, tokenizer)
    return PreparedConversations(section, template, tokenizer, members, rendered, build_ledger(rendered, section))
