"""In: an adapter or a run. Out: every digest of its manifest taken again, and what differs.

Nothing is believed: files are hashed, the version is read from the store and its conversations' ids are made from
their words, and the tokens are rendered anew, without the cache. Package versions and the machine are notes, since
they change no digest by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from schemas.conversation import fold, unfold
from schemas.digest import digest, file_digest
from schemas.errors import CurateError, StoreError, TrainError
from schemas.ledger import LEDGER, LEDGER_FILE, read_ledger
from schemas.manifest import Manifest, read_manifest
from schemas.recipe import TrainSection
from schemas.run import Run
from schemas.store import reading
from schemas.version import find_version, read_members
from train.model.adapter import CONFIG_FILE, adapter_digest, settings_of, weights_of
from train.model.adapter_files import read_settings, read_template
from train.model.base_model import base_by_name, find_adapter, find_base, model_digest
from train.runs.fit import token_facts
from train.runs.machine import machine_facts, package_versions, set_threads
from train.tokens.chat_template import PINNED_DATE, Template, find_template
from train.tokens.ledger import build_ledger, trainable
from train.tokens.render import MASK_POLICY
from train.tokens.tokenizer import Tokenizer
from train.tokens.windows import render_members

State = Literal["same", "differs", "unchecked"]

UNKNOWN_RUN = "manifest in the store"
"""The check that cannot be made where an adapter was trained from another store."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the manifest says, and what is found now; `unchecked` has the reason in `found`."""

    what: str
    state: State
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one adapter. It is proven when every one is the same; notes do not count.

    Nor does it count against an adapter that the store does not know its run, as where it was trained elsewhere.
    """

    adapter: Path
    run: str
    checks: tuple[Check, ...]
    notes: tuple[Check, ...]

    @property
    def proven(self) -> bool:
        """Whether every digest could be taken and none differs."""
        return not self.open

    @property
    def open(self) -> tuple[str, ...]:
        """What stands against it: the names of checks that differ or could not be made."""
        return tuple(check.what for check in self.checks if check.state != "same" and check.what != UNKNOWN_RUN)

    @property
    def known(self) -> bool:
        """Whether the store has the run."""
        return all(check.what != UNKNOWN_RUN for check in self.checks)


def verify(store: Path, target: str) -> Verification:
    """Check the adapter that `target` names, a run or a folder, against its manifest, its base and the store.

    Raises `TrainError` when there is no such adapter or no manifest in it.
    """
    adapter, run = find_adapter(store, target)
    manifest = read_manifest(adapter)
    base, model_checks = _model(adapter, manifest)
    members, data_checks = _data(store, manifest)
    checks = [
        *_files(adapter, manifest),
        *_row(run, manifest),
        _compared("recipe", manifest.recipe_digest, digest(manifest.recipe)),
        *model_checks,
        *data_checks,
        *_tokens(adapter, base, members, manifest),
    ]
    return Verification(adapter, manifest.run, tuple(checks), tuple(_notes(manifest)))


def _compared(what: str, expected: str, found: str) -> Check:
    return Check(what, "same" if found == expected else "differs", expected, found)


def _unchecked(what: str, expected: str, why: CurateError | str) -> Check:
    return Check(what, "unchecked", expected, why.what if isinstance(why, CurateError) else why)


def _files(adapter: Path, manifest: Manifest) -> Iterator[Check]:
    """The adapter's digest, then each file that the manifest names."""
    for name, expected in manifest.files.items():
        path = adapter / name
        yield _compared(f"file {name}", expected, file_digest(path) if path.exists() else "missing")
    if manifest.engine["method"] != "full":
        yield _settings(adapter)
    yield _compared("adapter", manifest.adapter_digest or "none", _digest_now(adapter))


def _settings(adapter: Path) -> Check:
    """Whether PEFT's settings can be read: the manifest has no digest of the file, which says where the base lies."""
    try:
        read_settings(adapter / CONFIG_FILE)
    except TrainError as error:
        return Check(f"file {CONFIG_FILE}", "differs", "settings", error.what)
    return _compared(f"file {CONFIG_FILE}", "settings", "settings")


def _digest_now(adapter: Path) -> str:
    parts = [*weights_of(adapter), settings_of(adapter)]
    if len(parts) == 1 or not all(path.exists() for path in parts):
        return "missing"
    try:
        return adapter_digest(adapter)
    except TrainError:  # the settings have a check of their own, or are among the manifest's files
        return "damaged"


def _row(run: Run | None, manifest: Manifest) -> Iterator[Check]:
    """The manifest beside the adapter and the one in the store say the same."""
    written = digest(manifest.model_dump(mode="json"))
    if run is None:
        yield _unchecked(UNKNOWN_RUN, written, "The store has no run with this adapter.")
    else:
        yield _compared("manifest", digest(run.manifest.model_dump(mode="json")), written)


def _model(adapter: Path, manifest: Manifest) -> tuple[Path | None, list[Check]]:
    """The base model, by its name alone where the settings that say its place cannot be read."""
    noted = _settings(adapter).state == "same"
    try:
        base = find_base(adapter, manifest) if noted else base_by_name(manifest)
    except CurateError as error:
        return None, [_unchecked("base model", manifest.model.digest, error)]
    return base, [_compared("base model", manifest.model.digest, model_digest(base))]


def _data(store: Path, manifest: Manifest) -> tuple[pl.DataFrame | None, list[Check]]:
    """The version's members, if the store has them as they were; ids are made from the conversations' words again."""
    expected = manifest.data.digest
    try:
        with reading(store) as connection:
            version = find_version(connection, manifest.data.version)
            members = read_members(connection, version) if version.digest == expected else None
    except StoreError as error:
        return None, [_unchecked("version", expected, error)]
    except CurateError as error:
        return None, [Check("version", "differs", expected, error.what)]
    checks = [_compared("version", expected, version.digest)]
    if members is not None:
        checks.append(_contents(members))
    return members, checks


def _contents(members: pl.DataFrame) -> Check:
    filled = members.filter(pl.col("conversations").list.len() > 0)
    made = fold(unfold(filled).rename({"id": "row"}), filled["tools"]).select("id", conversation="row")
    same = made.filter(pl.col("id") == pl.col("conversation"))["id"]
    changed = members.filter(~pl.col("id").is_in(same.implode()))["id"]
    found = "their words" if changed.is_empty() else f"other words in {', '.join(changed.head(3))}"
    return _compared("conversations", "their words", found)


def _tokens(adapter: Path, base: Path | None, members: pl.DataFrame | None, manifest: Manifest) -> Iterator[Check]:
    """Template, tokenizer and mask policy as they are now; then the tokens and the ledger, rendered again."""
    expected = manifest.rendering
    yield _compared("mask policy", expected.mask_policy, MASK_POLICY)
    yield _compared("template's date", expected.date, f"{PINNED_DATE:%Y-%m-%d}")
    if base is None:
        for what, known in (("template", expected.template_digest), ("tokenizer", expected.tokenizer_digest)):
            yield _unchecked(what, known, "The base model is not here.")
        yield _unchecked("tokens", manifest.tokens.digest, "The base model is not here.")
        return
    tokenizer = Tokenizer.load(base)
    yield _compared("tokenizer", expected.tokenizer_digest, tokenizer.digest)
    yield _template(base, manifest)
    if members is None:
        yield _unchecked("tokens", manifest.tokens.digest, "The version is not in the store as it was.")
        return
    try:
        template = read_template(adapter, manifest)
    except TrainError as error:
        yield _unchecked("tokens", manifest.tokens.digest, error)
        return
    yield from _rendered_again(adapter, members, template, tokenizer, manifest)


def _template(base: Path, manifest: Manifest) -> Check:
    """The template that the recipe names, as it would be found today; older manifests name it without the day."""
    known = manifest.rendering.template_digest
    try:
        found = find_template(manifest.recipe["template"], base)
        return _compared("template", known, known if found.is_of(known) else found.digest)
    except CurateError as error:
        return _unchecked("template", known, error)


def _rendered_again(
    adapter: Path, members: pl.DataFrame, template: Template, tokenizer: Tokenizer, manifest: Manifest
) -> Iterator[Check]:
    recipe = TrainSection.model_validate(manifest.recipe)
    rendered = render_members(recipe, members, template, tokenizer)
    ledger = build_ledger(rendered, recipe)
    rows = trainable(rendered, ledger).filter(pl.col("split") == "train")
    yield _compared("tokens", manifest.tokens.digest, token_facts(rows, ledger).digest)
    if (adapter / LEDGER_FILE).exists():
        yield _compared("ledger", "every outcome", _check_ledger(adapter / LEDGER_FILE, ledger))


def _check_ledger(path: Path, ledger: pl.DataFrame) -> str:
    columns = [name for name in LEDGER if name != "reason"]  # earlier releases word it differently
    try:
        written = read_ledger(path).select(columns)
    except (TrainError, pl.exceptions.PolarsError):
        return "damaged"
    return "every outcome" if written.equals(ledger.select(columns)) else "other outcomes"


def _notes(manifest: Manifest) -> Iterator[Check]:
    """Packages and machine: what differs explains why a new training gives other bits."""
    for name, version in package_versions(manifest.recipe["engine"]).items():
        yield _compared(f"package {name}", manifest.packages.get(name, "not named"), version)
    now = machine_facts(set_threads(manifest.recipe["threads"])).model_dump()
    for name, known in manifest.machine.model_dump().items():
        yield _compared(f"machine {name}", str(known), str(now[name]))
