"""In: a run. Out: a new run of the same version and recipe, and how far its adapter is from the old one.

On a CPU with the same number of threads and the same packages the two adapters have the same bits. Where they have
not, the answer says how large the largest difference is and what of the machine or the packages has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import TrainError
from schemas.manifest import Manifest, read_manifest
from schemas.recipe import TrainSection
from schemas.run import Run
from train.engines import Step
from train.model.adapter import weights_of
from train.model.base_model import find_adapter
from train.runs.fit import train_version
from train.runs.torchrun import Processes

METRICS_FILE = "metrics.jsonl"

LOSSES_APART = 0.02
"""Nats by which the loss of a step may differ on a GPU, where sums are taken in no fixed order; on a CPU it is 0."""

DECIDING = ("curate", "data", "model", "rendering", "tokens", "recipe", "packages", "machine")
"""The parts of a manifest that decide an adapter's bits."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """Two runs of the same thing.

    `largest_difference` is over all weights, `losses_apart` over the training losses step by step, in nats; None where
    shapes or steps differ. `elsewhere` is the folder of the one before, where this store does not know its run.
    """

    before: Manifest
    after: Run
    identical: bool
    same_tokens: bool
    largest_difference: float | None
    losses_apart: float | None
    changed: tuple[str, ...]
    elsewhere: Path | None = None

    @property
    def repeated(self) -> bool:
        """Whether it is the same training: the same tokens, and the loss of every step within `LOSSES_APART`."""
        return self.same_tokens and self.losses_apart is not None and self.losses_apart <= LOSSES_APART

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values."""
        return {
            "before": self.before.run,
            "after": self.after.as_json(),
            "identical": self.identical,
            "same_tokens": self.same_tokens,
            "largest_difference": self.largest_difference,
            "losses_apart": self.losses_apart,
            "repeated": self.repeated,
            "changed": list(self.changed),
        }


def retrain(
    store: Path, target: str, *, to: Path | None = None, report: Callable[[Step], None] = lambda _: None
) -> Retraining:
    """Train what `target` (a run or an adapter's folder) was trained on once more, as a new run, and compare.

    One that was cut off goes on. Raises `TrainError` when the version, the base model or the template are not the ones
    of the manifest.
    """
    adapter, known = find_adapter(store, target)
    if known is not None and known.status != "done":  # it would go on with itself
        raise TrainError(f"Run {known.run} is {known.status}.", "The same curate train command ends it.")
    before = read_manifest(adapter)
    recipe = TrainSection.model_validate(before.recipe)
    run = train_version(
        store,
        before.data.version,
        recipe,
        overrides=before.overrides,
        to=to,
        threads=before.machine.threads,
        processes=Processes(before.machine.gpus, "fsdp" if before.machine.sharding == "fsdp" else "ddp"),
        expected=before,
        report=report,
    )
    return replace(_compared(adapter, before, run), elsewhere=adapter if known is None else None)


def _compared(adapter: Path, before: Manifest, run: Run) -> Retraining:
    return Retraining(
        before=before,
        after=run,
        identical=before.adapter_digest == run.manifest.adapter_digest,
        same_tokens=before.tokens.digest == run.manifest.tokens.digest,
        largest_difference=largest_difference(adapter, run.adapter),
        losses_apart=losses_apart(adapter, run.adapter),
        changed=tuple(differences(before, run.manifest)),
    )


def differences(before: Manifest, after: Manifest) -> list[str]:
    """What decides the bits and is not the same, as `packages.torch: 2.13.0 → 2.14.0`."""
    was, now = (_flat(manifest.model_dump(mode="json", include=set(DECIDING))) for manifest in (before, after))
    return [f"{key}: {was.get(key)} → {now.get(key)}" for key in sorted(was | now) if was.get(key) != now.get(key)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def largest_difference(one: Path, other: Path) -> float | None:
    """The largest absolute difference between two adapters' weights; None when they have other names or shapes."""
    from safetensors.torch import load_file

    ours, theirs = (
        {name: tensor for path in weights_of(folder) for name, tensor in load_file(path).items()}
        for folder in (one, other)
    )
    if {name: t.shape for name, t in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        return None
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def losses_apart(one: Path, other: Path) -> float | None:
    """The largest difference between the training losses of two runs at the same step; None for other steps."""
    ours, theirs = (pl.read_ndjson(folder / METRICS_FILE).select("step", "loss") for folder in (one, other))
    if not ours["step"].equals(theirs["step"]):
        return None
    return float((ours["loss"] - theirs["loss"]).abs().max() or 0.0)  # type: ignore[arg-type]
