"""A run → a new run of the same version and recipe, and the difference between the two adapters.

On a CPU with the same number of threads and the same packages the adapters are identical. Otherwise the result has the
largest difference of a weight and the changes of machine and packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from schemas.digest import flatten_keys
from schemas.errors import TrainError
from schemas.manifest import Manifest, read_manifest
from schemas.recipe import TrainSection
from schemas.run import Run
from train.engines import Step
from train.model.adapter import weight_paths
from train.model.base_model import find_adapter
from train.runs.fit import METRICS_FILE, train_version
from train.runs.torchrun import Processes

LOSSES_APART = 0.02
"""Allowed difference of a step's loss in nats on a GPU, where the order of sums is not fixed; on a CPU it is 0."""

DETERMINING_PARTS = ("curate", "data", "model", "rendering", "tokens", "recipe", "packages", "machine")
"""The parts of a manifest that determine an adapter's bits."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """A run compared with the run that it repeats.

    `largest_difference` is over all weights, `losses_apart` over the training losses of equal steps, in nats; None if
    shapes or steps differ. `external_adapter` is the earlier adapter's folder if this store does not have its run.
    """

    before: Manifest
    after: Run
    identical: bool
    same_tokens: bool
    largest_difference: float | None
    losses_apart: float | None
    changed: tuple[str, ...]
    external_adapter: Path | None = None

    @property
    def repeated(self) -> bool:
        """Whether the tokens are the same and the losses of every step differ by at most `LOSSES_APART`."""
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
    """Repeat the training run of `target`, a run or an adapter's folder, as a new run, and compare the adapters.

    An interrupted repetition is resumed. Raises `TrainError` if the version, the base model or the template are not
    those of the manifest.
    """
    adapter, known = find_adapter(store, target)
    if known is not None and known.status != "done":  # otherwise the run itself would be resumed
        raise TrainError(f"Run {known.run} is {known.status}.", "Run the same curate train command to finish it.")
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
    return Retraining(
        before=before,
        after=run,
        identical=before.adapter_digest == run.manifest.adapter_digest,
        same_tokens=before.tokens.digest == run.manifest.tokens.digest,
        largest_difference=largest_difference(adapter, run.adapter),
        losses_apart=losses_apart(adapter, run.adapter),
        changed=tuple(differences(before, run.manifest)),
        external_adapter=adapter if known is None else None,
    )


def differences(before: Manifest, after: Manifest) -> list[str]:
    """Differences between the determining parts, such as `packages.torch: 2.13.0 → 2.14.0`."""
    parts = set(DETERMINING_PARTS)
    old, new = (dict(flatten_keys(manifest.model_dump(mode="json", include=parts))) for manifest in (before, after))
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)]


def largest_difference(one: Path, other: Path) -> float | None:
    """The largest absolute difference between two adapters' weights; None if their names or shapes differ."""
    from safetensors.torch import load_file

    ours, theirs = (
        {name: tensor for path in weight_paths(folder) for name, tensor in load_file(path).items()}
        for folder in (one, other)
    )
    if {name: t.shape for name, t in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        return None
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def losses_apart(one: Path, other: Path) -> float | None:
    """The largest difference between the training losses of two runs at the same step; None if their steps differ."""
    ours, theirs = (pl.read_ndjson(folder / METRICS_FILE).select("step", "loss") for folder in (one, other))
    if not ours["step"].equals(theirs["step"]):
        return None
    return float((ours["loss"] - theirs["loss"]).abs().max() or 0.0)  # type: ignore[arg-type]
