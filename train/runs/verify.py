"""An adapter or a run → every digest in its manifest computed again, and the differences.

Files are hashed, the version is read from the store, conversation ids are derived from the content, and the tokens are
rendered without the cache. Package versions and the machine are notes, since they change no digest by themselves.
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
from schemas.manifest import MANIFEST_FILE, Manifest, read_manifest
from schemas.recipe import TrainSection
from schemas.run import Run
from schemas.store import reading
from schemas.text import join_names
from schemas.timing import timed
from schemas.version import find_version, read_members
from train.model.adapter import CARD_FILE, CONFIG_FILE, adapter_digest, settings_path, weight_paths
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
"""The check that is impossible for an adapter that was trained from another store."""


@dataclass(frozen=True, slots=True)
class Check:
    """A value in the manifest compared with the current one; if `unchecked`, `found` is the reason."""

    what: str
    state: State
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of an adapter. It is verified if every check is `same`; notes do not count.

    `UNKNOWN_RUN` does not count either, since an adapter may be verified in another store than its own.
    """

    adapter: Path
    run: str
    checks: tuple[Check, ...]
    notes: tuple[Check, ...]

    @property
    def verified(self) -> bool:
        """Whether every digest was computed and none differs."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that differ or are impossible."""
        return tuple(check.what for check in self.checks if check.state != "same" and check.what != UNKNOWN_RUN)

    @property
    def run_is_known(self) -> bool:
        """Whether the store has the run."""
        return all(check.what != UNKNOWN_RUN for check in self.checks)


def verify(store: Path, target: str) -> Verification:
    """Compare the adapter `target`, a run or a folder, with its manifest, its base model and the store.

    Raises `TrainError` if there is no such adapter or it has no manifest.
    """
    adapter, run = find_adapter(store, target)
    manifest = read_manifest(adapter)
    base, model_checks = _check_model(adapter, manifest)
    members, data_checks = _check_data(store, manifest)
    checks = [
        *_check_files(adapter, manifest),
        _check_row(run, manifest),
        _compare("recipe", manifest.recipe_digest, digest(manifest.recipe)),
        *model_checks,
        *data_checks,
        *_check_rendering(adapter, base, members, manifest),
    ]
    return Verification(adapter, manifest.run, tuple(checks), tuple(_notes(manifest)))


def _compare(what: str, expected: str, found: str) -> Check:
    return Check(what, "same" if found == expected else "differs", expected, found)


def _unchecked(what: str, expected: str, reason: CurateError | str) -> Check:
    return Check(what, "unchecked", expected, reason.what if isinstance(reason, CurateError) else reason)


def _check_files(adapter: Path, manifest: Manifest) -> Iterator[Check]:
    """Each file in the manifest, then the adapter's digest."""
    for name, expected in manifest.files.items():
        path = adapter / name
        if ".." in path.parts or not path.is_relative_to(adapter):
            yield Check(f"file {name}", "differs", expected, "outside of the folder")
        else:
            yield _compare(f"file {name}", expected, file_digest(path) if path.is_file() else "missing")
    yield _compare("other files", "none", join_names(_unexpected(adapter, manifest), 5) or "none")
    if manifest.engine["method"] != "full":
        yield _check_settings(adapter)
    yield _compare("adapter", manifest.adapter_digest or "none", _current_digest(adapter))


def _unexpected(adapter: Path, manifest: Manifest) -> list[str]:
    """The files that the manifest does not list, which a loader may read; hidden files are not loaded."""
    known = {*manifest.files, MANIFEST_FILE, CARD_FILE, CONFIG_FILE}
    names = (str(path.relative_to(adapter)) for path in adapter.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name not in known and not name.startswith("."))


def _check_settings(adapter: Path) -> Check:
    """Whether PEFT's settings are readable; the manifest has no digest of them, because they contain a local path."""
    try:
        read_settings(adapter / CONFIG_FILE)
    except TrainError as error:
        return Check(f"file {CONFIG_FILE}", "differs", "settings", error.what)
    return _compare(f"file {CONFIG_FILE}", "settings", "settings")


@timed("hashing the adapter")
def _current_digest(adapter: Path) -> str:
    files = [*weight_paths(adapter), settings_path(adapter)]
    if len(files) == 1 or not all(path.exists() for path in files):
        return "missing"
    try:
        return adapter_digest(adapter)
    except TrainError:  # damaged settings have a check of their own
        return "damaged"


def _check_row(run: Run | None, manifest: Manifest) -> Check:
    """The manifest in the adapter's folder equals the one in the store."""
    found = digest(manifest.model_dump(mode="json"))
    if run is None:
        return _unchecked(UNKNOWN_RUN, found, "The store has no run with this adapter.")
    return _compare("manifest", digest(run.manifest.model_dump(mode="json")), found)


@timed("checking the base model")
def _check_model(adapter: Path, manifest: Manifest) -> tuple[Path | None, list[Check]]:
    """The base model; it is found by its name if the settings that contain its path are damaged."""
    try:
        readable = _check_settings(adapter).state == "same"
        base = find_base(adapter, manifest) if readable else base_by_name(manifest)
    except CurateError as error:
        return None, [_unchecked("base model", manifest.model.digest, error)]
    return base, [_compare("base model", manifest.model.digest, model_digest(base))]


@timed("checking the version")
def _check_data(store: Path, manifest: Manifest) -> tuple[pl.DataFrame | None, list[Check]]:
    """The version's members if the store has them unchanged; conversation ids are derived from the content again."""
    expected = manifest.data.digest
    try:
        with reading(store) as connection:
            version = find_version(connection, manifest.data.version)
            members = read_members(connection, version) if version.digest == expected else None
    except StoreError as error:
        return None, [_unchecked("version", expected, error)]
    except CurateError as error:
        return None, [Check("version", "differs", expected, error.what)]
    checks = [_compare("version", expected, version.digest)]
    if members is not None:
        checks.append(_check_contents(members))
    return members, checks


def _check_contents(members: pl.DataFrame) -> Check:
    filled = members.filter(pl.col("conversations").list.len() > 0)
    ids = fold(unfold(filled).rename({"id": "row"}), filled["tools"]).select("id", conversation="row")
    same = ids.filter(pl.col("id") == pl.col("conversation"))["id"]
    changed = members.filter(~pl.col("id").is_in(same.implode()))["id"]
    found = "unchanged" if changed.is_empty() else f"changed content in {', '.join(changed.head(3))}"
    return _compare("conversations", "unchanged", found)


def _check_rendering(
    adapter: Path, base: Path | None, members: pl.DataFrame | None, manifest: Manifest
) -> Iterator[Check]:
    """The current template, tokenizer and mask policy; then tokens and ledger, rendered again without the cache."""
    expected = manifest.rendering
    yield _compare("mask policy", expected.mask_policy, MASK_POLICY)
    yield _compare("template's date", expected.date, f"{PINNED_DATE:%Y-%m-%d}")
    if base is None:
        digests = {"template": expected.template_digest, "tokenizer": expected.tokenizer_digest}
        for what, known in (digests | {"tokens": manifest.tokens.digest}).items():
            yield _unchecked(what, known, "The base model is missing.")
        return
    tokenizer = Tokenizer.load(base)
    yield _compare("tokenizer", expected.tokenizer_digest, tokenizer.digest)
    yield _check_template(base, manifest)
    if members is None:
        yield _unchecked("tokens", manifest.tokens.digest, "The store does not have this version unchanged.")
        return
    try:
        template = read_template(adapter, manifest)
    except TrainError as error:
        yield _unchecked("tokens", manifest.tokens.digest, error)
        return
    yield from _check_tokens(adapter, members, template, tokenizer, manifest)


def _check_template(base: Path, manifest: Manifest) -> Check:
    """The recipe's template as it is found now; digests of older manifests do not include the pinned date."""
    known = manifest.rendering.template_digest
    try:
        template = find_template(manifest.recipe["template"], base)
    except CurateError as error:
        return _unchecked("template", known, error)
    return _compare("template", known, known if template.matches(known) else template.digest)


def _check_tokens(
    adapter: Path, members: pl.DataFrame, template: Template, tokenizer: Tokenizer, manifest: Manifest
) -> Iterator[Check]:
    recipe = TrainSection.model_validate(manifest.recipe)
    rendered = render_members(recipe, members, template, tokenizer)
    ledger = build_ledger(rendered, recipe)
    rows = trainable(rendered, ledger).filter(pl.col("split") == "train")
    yield _compare("tokens", manifest.tokens.digest, token_facts(rows, ledger).digest)
    if (adapter / LEDGER_FILE).exists():
        yield _compare("ledger", "every outcome", _compare_ledger(adapter / LEDGER_FILE, ledger))


def _compare_ledger(path: Path, ledger: pl.DataFrame) -> str:
    columns = [name for name in LEDGER if name != "reason"]  # earlier releases word it differently
    try:
        stored = read_ledger(path).select(columns)
    except (TrainError, pl.exceptions.PolarsError):
        return "damaged"
    return "every outcome" if stored.equals(ledger.select(columns)) else "other outcomes"


def _notes(manifest: Manifest) -> Iterator[Check]:
    """Packages and machine: differences explain why a new training gives other bits, but change no digest."""
    for name, version in package_versions(manifest.recipe["engine"]).items():
        yield _compare(f"package {name}", manifest.packages.get(name, "not listed"), version)
    now = machine_facts(set_threads(manifest.recipe["threads"])).model_dump()
    for name, known in manifest.machine.model_dump().items():
        yield _compare(f"machine {name}", str(known), str(now[name]))
