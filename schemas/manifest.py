"""The manifest of an adapter: every input that decides its bits, each with a digest, and the results.

It is written next to the adapter and into the store. It holds no secrets: neither environment variables nor tokens of
any service, and only the paths that the recipe names.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from schemas.digest import digest
from schemas.errors import TrainError
from schemas.recipe import TrainSection

MANIFEST_FILE = "manifest.json"

CONVERSATIONS_SEEN = "seen_conversations"
"""Metric: conversations that the steps trained on completely. Older runs have `seen` instead, in packs or windows."""

WINDOWS_SEEN, WINDOWS = "seen_parts", "parts"
"""Metrics of runs that split long conversations: windows that the steps trained on, and all windows."""


class Facts(BaseModel):
    """A part of the manifest: frozen, unknown keys rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataFacts(Facts):
    """The version, its digest, and the number of conversations in each split."""

    version: str
    digest: str
    counts: dict[str, int]


class ModelFacts(Facts):
    """The base model: its name in the recipe, and SHA-256 over its safetensors and config."""

    name: str
    digest: str


class RenderingFacts(Facts):
    """How conversations became tokens: chat template, tokenizer and mask policy, each with its digest or name."""

    template: str
    template_digest: str
    tokenizer_digest: str
    mask_policy: str
    date: str  # inserted where the template asks for today's date


class TokenFacts(Facts):
    """The tokens trained on: SHA-256 over ids and labels in the order given to the engine, and the counts.

    Manifests of older runs call `loss_tokens` `learned`.
    """

    model_config = ConfigDict(populate_by_name=True)

    digest: str
    conversations: int
    tokens: int
    loss_tokens: int = Field(validation_alias=AliasChoices("loss_tokens", "learned"))
    dropped: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the conversations the steps of an adapter trained on; `seen == total` after one epoch."""

    seen: int
    total: int
    epochs: float
    unit: str = "conversations"  # packs or windows in older runs, which did not count conversations

    @property
    def complete(self) -> bool:
        """Whether every conversation was trained on."""
        return self.seen >= self.total

    @property
    def phrase(self) -> str:
        """The counts as a phrase: `16 of 4,773 conversations` or `4,773 conversations`."""
        return f"{'' if self.complete else f'{self.seen:,} of '}{self.total:,} {self.unit}"


class MachineFacts(Facts):
    """The machine. On a CPU the number of threads changes the bits of the result."""

    device: str
    device_name: str
    memory_gib: float
    processor: str
    system: str
    python: str
    threads: int
    gpus: int = 1  # processes that trained together, also on a CPU
    sharding: str = "none"


class Manifest(Facts):
    """All inputs of an adapter, decided before training, followed by the results."""

    format: Literal[1] = 1
    curate: str
    data: DataFacts
    model: ModelFacts
    rendering: RenderingFacts
    tokens: TokenFacts
    recipe: dict[str, Any]
    recipe_digest: str
    overrides: tuple[str, ...]
    seed: int
    packages: dict[str, str]
    machine: MachineFacts
    run: str
    started: datetime
    finished: datetime | None = None
    engine: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    files: dict[str, str] = {}
    adapter_digest: str | None = None
    failure: str | None = None

    @property
    def identity(self) -> str:
        """SHA-256 over everything that decides the result: runs with equal identity do the same work.

        Recipe keys at their default are left out, so that an interrupted run can be resumed after a release adds a key.
        """
        decided = {"data", "model", "rendering", "tokens", "packages", "machine", "curate"}
        defaults = TrainSection().model_dump(mode="json")
        changed = {key: value for key, value in self.recipe.items() if key not in defaults or defaults[key] != value}
        return digest(self.model_dump(mode="json", include=decided) | {"recipe": changed})

    @property
    def coverage(self) -> Coverage:
        """What the steps trained on that made the adapter: up to the best one if held-out losses selected it."""
        conversations_seen = self.metrics.get(CONVERSATIONS_SEEN)
        if conversations_seen is None:
            return self._count_sequences()
        conversations, windows = self.tokens.conversations, self.metrics.get(WINDOWS)
        if windows is not None:
            unit = f"windows of {conversations:,} conversations"
            return Coverage(int(self.metrics[WINDOWS_SEEN]), int(windows), self.metrics["epochs"], unit)
        return Coverage(int(conversations_seen), conversations, self.metrics["epochs"])

    def _count_sequences(self) -> Coverage:
        """The coverage of a run that did not count conversations: in packs or windows, from its steps."""
        facts, steps = self.engine, int(self.metrics.get("best_step", self.metrics["steps"]))
        per_step = facts["batch"] * facts["accumulate"] * facts.get("gpus", 1)
        total = facts.get("sequences", self.tokens.conversations)
        unit = "packs" if facts["packing"] else "windows" if self.recipe.get("long") == "split" else "conversations"
        return Coverage(min(steps * per_step, total), total, steps / -(-total // per_step), unit)

    def as_json(self) -> str:
        """The text of `manifest.json`."""
        return self.model_dump_json(indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an adapter's folder. Raises `TrainError` if it is missing or cannot be read."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TrainError(f"{folder} has no {MANIFEST_FILE}.", "Give the folder that curate train wrote.") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise TrainError(
            f"{path} is not a manifest of this release: {str(error).splitlines()[0]}.",
            "Restore it from a backup, or use the release that wrote it.",
        ) from error
