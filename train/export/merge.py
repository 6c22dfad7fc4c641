"""A run → its base model with the adapter merged into the weights: a model that any engine loads.

The base model is read in the type that it is stored in, never in the 4 bits of training, and is merged shard by shard.
The result is compared with the adapter on its base model before it appears under its name.
"""

from __future__ import annotations

import filecmp
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.atomic import write_text
from schemas.digest import digest
from schemas.errors import CurateError, ExportError
from schemas.manifest import MANIFEST_FILE, Manifest, read_manifest
from schemas.text import printable
from schemas.timing import timed
from train.export.logit_diff import (
    LogitComparison,
    compare_logits,
    compute_logits,
    open_model,
    read_vocabulary_size,
    take_sample,
)
from train.export.output import ExportTarget, check_free, export_dir, resumable_dir, to_json
from train.export.source import ExportSource, find_source, render_held_out
from train.inference.backends import TransformersBackend
from train.inference.generate import find_stop_ids
from train.model.adapter import CARD_FILE, provenance, write_tokenizer

if TYPE_CHECKING:
    import polars as pl

DTYPE_NAMES = ("base", "float32", "float16", "bfloat16")
"""The types of a merged model; base is the type in which the base model is stored."""

MAX_LOGIT_DIFFERENCE: Mapping[str, float] = {"float32": 1e-3, "float16": 0.25, "bfloat16": 1.0}
"""The largest accepted difference of a logit from the adapter's, by type: the rounding error with a margin."""

WEIGHTS_INDEX = "model.safetensors.index.json"

Progress = Callable[[int, int], None]
"""(bytes written, bytes in total)"""


@dataclass(frozen=True, slots=True)
class MergedModel:
    """A merged model. `comparison` with the adapter is None if it was not requested.

    With `already_exists` an identical merged model was found and nothing was written.
    """

    folder: Path
    run: str
    dtype: str
    bytes: int
    shards: int
    comparison: LogitComparison | None
    already_exists: bool = False


def merge(
    store: Path,
    target: str,
    *,
    to: Path | None = None,
    dtype: str = "base",
    rows: int = 8,
    check: bool = True,
    progress: Progress = lambda _done, _total: None,
) -> MergedModel:
    """Merge the adapter that `target` names into its base model, in `to` (default: `merged/RUN` next to the store).

    With `check`, `rows` held-out conversations are compared. An identical merged model is left unchanged and compared
    too. Raises `ExportError` if the base model is quantised or has changed, the tokenizer has changed, the disk is
    full, or the merged model's logits differ by more than `MAX_LOGIT_DIFFERENCE`.
    """
    source = find_source(store, target)
    if source.is_full_finetune:
        raise ExportError(
            f"Run {source.name} trained all weights: {source.adapter} is a complete model, there is nothing to merge.",
            f"curate gguf {source.name}, vLLM and TGI use it directly.",
        )
    stored = read_dtype(source.base)
    folder, kind = (to or export_dir(store, "merged", source.name)).resolve(), stored if dtype == "base" else dtype
    already_exists = _is_identical(folder, source, kind)
    if not already_exists:
        check_free(folder)
    held_out = render_held_out(store, source) if check else None
    if already_exists:
        comparison = _compare(folder, source, held_out, rows, kind)
    else:
        inputs = {"merge": 1, "adapter": source.manifest.adapter_digest, "dtype": dtype, "run": source.name}
        with resumable_dir(folder, digest(inputs)) as partial:
            _write_metadata_files(partial, source, dtype)
            _write_shards(partial, source, dtype, progress)
            comparison = _compare(partial, source, held_out, rows, kind)
            write_text(partial / CARD_FILE, printable(format_card(source.manifest, comparison)))
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return MergedModel(folder, source.name, kind, sum(sizes), len(sizes), comparison, already_exists)


def read_dtype(base: Path) -> str:
    """The type of a model's weights according to its config. Raises `ExportError` if the model is quantised."""
    config = _read_config(base)
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown method") if isinstance(quantised, dict) else "unknown method"
        raise ExportError(
            f"The base model in {base} is quantised ({method}); merging into it would change the adapter's answers.",
            "Train on the 16- or 32-bit model that it was made from: train.method = qlora quantises it in memory only.",
        )
    text = config.get("text_config") or {}
    return str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32")


def _is_identical(folder: Path, source: ExportSource, dtype: str) -> bool:
    """Whether `folder` has this merge already: the same metadata files, and weights of the expected length."""
    from safetensors import SafetensorError

    if not (folder / CARD_FILE).exists():
        return False
    try:
        return read_dtype(folder) == dtype and _has_metadata_files(folder, source) and _has_shards(folder, source)
    except (OSError, ValueError, SafetensorError, CurateError):  # a file is missing, truncated or of another model
        return False


def _has_metadata_files(folder: Path, source: ExportSource) -> bool:
    """Compare all files but the config, where `base` and its type are written differently, and the manifest's text."""
    with tempfile.TemporaryDirectory() as name:
        _write_metadata_files(Path(name), source, "base")
        files = [path.name for path in Path(name).iterdir() if path.name not in ("config.json", MANIFEST_FILE)]
        same = filecmp.cmpfiles(name, folder, files, shallow=False) == (files, [], [])
    return same and read_manifest(folder) == source.manifest


def _has_shards(folder: Path, source: ExportSource) -> bool:
    """Opening a shard compares its length with its header. Earlier releases used other names for manifest keys."""
    from safetensors import safe_open

    from train.export.sharded_merge import shard_sizes

    for name in shard_sizes(source.base):
        with safe_open(folder / name, "pt") as file:
            text = (file.metadata() or {}).get("curate", "")
        if Manifest.model_validate_json(text) != source.manifest.model_copy(update={"files": {}}):
            return False
    return True


def _read_config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return config


# -------------------------------------------------------------------------------------------------- metadata files


def _write_metadata_files(partial: Path, source: ExportSource, dtype: str) -> None:
    """Everything except weights and model card: configs, tokenizer, template, manifest, the base model's licence."""
    config = _read_config(source.base)
    if dtype != "base":
        config["dtype"] = dtype
        config.pop("torch_dtype", None)
    (partial / "config.json").write_text(to_json(config), encoding="utf-8")
    (partial / "generation_config.json").write_text(to_json(_generation_config(source)), encoding="utf-8")
    write_tokenizer(partial, source.base, source.template)
    (partial / MANIFEST_FILE).write_text(source.manifest.as_json(), encoding="utf-8")
    for path in [*source.base.glob("LICENSE*"), *source.base.glob("NOTICE*"), *source.base.glob("*.py")]:
        shutil.copy(path, partial)


def _generation_config(source: ExportSource) -> dict[str, Any]:
    """The base model's generation config with all stop tokens, the template's own first."""
    path = source.base / "generation_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    config.pop("_from_model_config", None)  # transformers would replace the config with one from the model's config
    return {**config, "eos_token_id": find_stop_ids(source.renderer)}


def format_card(manifest: Manifest, comparison: LogitComparison | None) -> str:
    """The model card of a merged model: its training data and its difference from the adapter."""
    base, on_hub, table = provenance(manifest)
    measured = "not measured"
    if comparison is not None:
        measured = f"at most {comparison.largest:.3g} in a logit, {comparison.tokens:,} tokens"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{on_hub}tags: [curate]
---

# {manifest.data.version}, run {manifest.run}, merged

{base} with the LoRA adapter of run {manifest.run} merged into its weights, trained with curate {manifest.curate} on
version `{manifest.data.version}` of a dataset. `{MANIFEST_FILE}` and the metadata of the safetensors files have the
same facts.

| fact | value |
| --- | --- |
{table}
| difference from the adapter | {measured} |

## Use

    curate check-serving .          # in this folder: compares its tokens with those of training

or in Python: `AutoModelForCausalLM.from_pretrained(folder)`; vLLM and TGI load the folder directly.
"""


# --------------------------------------------------------------------------------------------------------- weights


@timed("merging weights")
def _write_shards(partial: Path, source: ExportSource, dtype: str, progress: Progress) -> None:
    """Write the weights, except shards that an interrupted merge has finished."""
    import torch

    from train.export.sharded_merge import DTYPES, Shard, read_adapter, shard_sizes, tensor_names

    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter = read_adapter(source.adapter, device)
    adapter.check(tensor_names(source.base), source.base)
    sizes = shard_sizes(source.base)
    manifest = source.manifest.model_dump(mode="json", exclude={"files"})
    metadata = {"curate": json.dumps(manifest, ensure_ascii=False, sort_keys=True)}
    done, total = 0, sum(sizes.values())
    for name, size in sizes.items():
        if not (partial / name).exists():
            shard = Shard(source.base / name, adapter, DTYPES.get(dtype), metadata, device)
            shard.write(partial / name, lambda size: progress(done + size, total))  # noqa: B023 (called in this turn)
        done += size
    _write_index(partial, source.base)


def _write_index(partial: Path, base: Path) -> None:
    """The index of a sharded model: the same tensors in the same files, with the new total size."""
    if (base / WEIGHTS_INDEX).exists():
        index = json.loads((base / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        index.setdefault("metadata", {})["total_size"] = sum(
            path.stat().st_size for path in partial.glob("*.safetensors")
        )
        (partial / WEIGHTS_INDEX).write_text(to_json(index), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ comparison


@timed("comparing logits")
def _compare(
    folder: Path, source: ExportSource, held_out: pl.DataFrame | None, rows: int, dtype: str
) -> LogitComparison | None:
    """Compare the merged model with the adapter on its base model; None without held-out conversations.

    Raises `ExportError` if a logit differs by more than `MAX_LOGIT_DIFFERENCE`.
    """
    if held_out is None:
        return None
    sample = take_sample(held_out, read_vocabulary_size(source.base), rows)
    trusted = bool(source.manifest.recipe["trust_remote_code"])
    with open_model(source.base, source.adapter, trust_remote_code=trusted) as model:
        reference = compute_logits(model, sample)
    with open_model(folder, trust_remote_code=trusted) as model:
        comparison = compare_logits(sample, reference, compute_logits(model, sample))
    if not comparison.largest <= MAX_LOGIT_DIFFERENCE.get(dtype, MAX_LOGIT_DIFFERENCE["bfloat16"]):
        raise ExportError(
            f"The merged model differs from the adapter by {comparison.largest:.3g} in a logit: the precision of "
            f"{dtype} is too low, or curate does not support this kind of adapter.",
            f"Try --dtype float32 with another --to; the merged model is in {folder}.",
        )
    return comparison


MERGED_MODEL = ExportTarget(
    folder="merged",
    engine="merged model",
    command="curate merge",
    matches=lambda path: (path / "config.json").exists(),
    open_backend=lambda path: nullcontext(TransformersBackend("transformers, merged", path)),
    # A GGUF is made from a merged model, and a full fine-tune is a complete model.
    is_expected=lambda source, existing: not source.is_full_finetune and "gguf" not in existing,
)
