"""In: a run. Out: a model of its own, the base with the adapter in it, that any engine loads.

The base is read in the type that it is stored in, never in the 4 bits of a training, and goes through shard by
shard. The model lies in `FOLDER.partial` until it was compared with the adapter on its base, and then moves.
"""

from __future__ import annotations

import filecmp
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.digest import digest
from schemas.errors import ExportError
from schemas.manifest import MANIFEST_FILE, Manifest
from train.export.logit_diff import Difference, difference, loaded, model_logits, take_sample, vocabulary_of
from train.export.source import Source, as_json, beside, check_free, find_source, held_out_rows, placed
from train.inference.generate import find_stop_ids
from train.model.adapter import CARD_FILE, provenance, write_tokenizer

if TYPE_CHECKING:
    import polars as pl

DTYPE_NAMES = ("base", "float32", "float16", "bfloat16")
"""The types that a merged model can have; base is the one in which the base model is stored."""

FARTHEST: Mapping[str, float] = {"float32": 1e-3, "float16": 0.25, "bfloat16": 1.0}
"""How far a logit may be from the adapter's before the merge is refused: rounding to the type, and room beside it."""

WEIGHTS_INDEX = "model.safetensors.index.json"
OF_THE_WEIGHTS = ("config.json", "generation_config.json", WEIGHTS_INDEX)
"""Files of the base that are written anew."""

Report = Callable[[int, int], None]
"""(bytes written, bytes in all)"""


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model: where it is, in which type, of which run, how large, how far from the adapter (None: unasked).

    With `already` it was there before, as it would be written now, and nothing was written.
    """

    folder: Path
    run: str
    dtype: str
    bytes: int
    shards: int
    difference: Difference | None
    already: bool = False

    def as_json(self) -> dict[str, Any]:
        """Its facts by name."""
        return {
            "folder": str(self.folder),
            "run": self.run,
            "dtype": self.dtype,
            "bytes": self.bytes,
            "shards": self.shards,
            "difference": self.difference.as_json() if self.difference else None,
            "already": self.already,
        }


def merge(
    store: Path,
    target: str,
    *,
    to: Path | None = None,
    dtype: str = "base",
    rows: int = 8,
    check: bool = True,
    report: Report = lambda _done, _total: None,
) -> Merged:
    """Merge the adapter that `target` names into its base, in `to` (default: `merged/RUN` by the store).

    `rows` held-out conversations are compared, unless `check` is off. What is there already is left as it is, and
    compared as well. Raises `ExportError` when the base is quantised or another one, the tokenizer has changed, the
    disk is full, or the merged model answers otherwise.
    """
    source = find_source(store, target)
    if source.whole:
        raise ExportError(
            f"Run {source.name} trained all weights: {source.adapter} is a model already, there is nothing to merge.",
            f"curate gguf {source.name} takes it as it is, and so do vLLM and TGI.",
        )
    stored = stored_dtype(source.base)
    folder, kind = (to or beside(store, "merged", source.name)).resolve(), stored if dtype == "base" else dtype
    already = _is_merged(folder, source, kind)
    if not already:
        check_free(folder)
    held_out = held_out_rows(store, source) if check else None
    if already:
        return _measured(folder, source, kind, _compared(folder, source, held_out, rows, kind), already=True)
    with placed(folder, _identity(source, dtype)) as partial:
        _write_papers(partial, source, dtype)
        _write_shards(partial, source, dtype, report)
        found = _compared(partial, source, held_out, rows, kind)
        _write_card(partial, source, found)
    return _measured(folder, source, kind, found)


def stored_dtype(base: Path) -> str:
    """The type of a base model's weights by its config. Raises `ExportError` for one that is quantised."""
    config = _config(base)
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "some way") if isinstance(quantised, dict) else "some way"
        raise ExportError(
            f"The base model in {base} is quantised ({method}); merged into it, the adapter's answers would move.",
            "Train on the 16- or 32-bit model that it was made from: train.method = qlora quantises it in memory only.",
        )
    text = config.get("text_config") or {}
    return str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32")


def _measured(folder: Path, source: Source, dtype: str, found: Difference | None, *, already: bool = False) -> Merged:
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return Merged(folder, source.name, dtype, sum(sizes), len(sizes), found, already)


def _is_merged(folder: Path, source: Source, dtype: str) -> bool:
    """Whether `folder` holds this very merge: its papers as they would be written now, its weights as long."""
    from safetensors import SafetensorError

    if not (folder / CARD_FILE).exists():
        return False
    try:
        return stored_dtype(folder) == dtype and _has_papers(folder, source) and _has_shards(folder, source)
    except (OSError, ValueError, SafetensorError, ExportError):  # a file is missing, cut off, or another model's
        return False


def _has_papers(folder: Path, source: Source) -> bool:
    """All but the config, in which `base` and its name are written differently: the type is compared instead."""
    with tempfile.TemporaryDirectory() as name:
        _write_papers(Path(name), source, "base")
        papers = [path.name for path in Path(name).iterdir() if path.name != "config.json"]
        return filecmp.cmpfiles(name, folder, papers, shallow=False) == (papers, [], [])


def _has_shards(folder: Path, source: Source) -> bool:
    """Opening one compares its length with what its head says."""
    from safetensors import safe_open

    from train.export.sharded_merge import shard_sizes

    for name in shard_sizes(source.base):
        with safe_open(folder / name, "pt") as file:
            if (file.metadata() or {}).get("curate") != _metadata_text(source.manifest):
                return False
    return True


def _identity(source: Source, dtype: str) -> str:
    """What decides the merged files: an interrupted merge is gone on with when it is the same."""
    return digest({"merge": 1, "adapter": source.manifest.adapter_digest, "dtype": dtype, "run": source.name})


def _config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return config


# --------------------------------------------------------------------------------------------------------- papers


def _write_papers(partial: Path, source: Source, dtype: str) -> None:
    """All but the weights and the card: config, stop tokens, tokenizer, template, manifest, the base's licence."""
    config = _config(source.base)
    if dtype != "base":
        config["dtype"] = dtype
        config.pop("torch_dtype", None)
    (partial / "config.json").write_text(as_json(config), encoding="utf-8")
    (partial / "generation_config.json").write_text(as_json(generation_config(source)), encoding="utf-8")
    write_tokenizer(partial, source.base, source.template)
    (partial / MANIFEST_FILE).write_text(source.manifest.as_json(), encoding="utf-8")
    for licence in [*source.base.glob("LICENSE*"), *source.base.glob("NOTICE*"), *source.base.glob("*.py")]:
        shutil.copy(licence, partial)


def generation_config(source: Source) -> dict[str, Any]:
    """The base's generation config, ending at every token that ends an answer: the template's own stands first."""
    path = source.base / "generation_config.json"
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    written.pop("_from_model_config", None)  # transformers would make it from the model's config again
    return {**written, "eos_token_id": find_stop_ids(source.renderer)}


def _write_card(partial: Path, source: Source, found: Difference | None) -> None:
    (partial / CARD_FILE).write_text(merged_card(source.manifest, found), encoding="utf-8")


def merged_card(manifest: Manifest, found: Difference | None) -> str:
    """The model card of a merged model: what it is, what it was trained on, how far it is from the adapter."""
    base, on_hub, table = provenance(manifest)
    apart = "not measured" if found is None else f"at most {found.largest:.3g} in a logit, {found.tokens:,} tokens"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{on_hub}tags: [curate]
---

# {manifest.data.version}, run {manifest.run}, merged

{base} with the LoRA adapter of run {manifest.run} in its weights, trained with curate {manifest.curate} on version
`{manifest.data.version}` of a dataset. `{MANIFEST_FILE}` and the metadata of the safetensors files say the same.

| what | which |
| --- | --- |
{table}
| merged and adapter differ | {apart} |

## Use

    curate check-serving .          # in this folder: its template and its tokens are those of the training

or in Python: `AutoModelForCausalLM.from_pretrained(folder)`; vLLM and TGI load the folder as it is.
"""


# --------------------------------------------------------------------------------------------------------- shards


def _write_shards(partial: Path, source: Source, dtype: str, report: Report) -> None:
    """The weights; shards that an interrupted merge has finished are left as they are."""
    from train.export.sharded_merge import DTYPES, Shard, read_adapter, shard_sizes, tensor_names

    device = _device()
    adapter = read_adapter(source.adapter, device)
    adapter.check(tensor_names(source.base), source.base)
    sizes = shard_sizes(source.base)
    metadata = {"curate": _metadata_text(source.manifest)}
    done, total = 0, sum(sizes.values())
    for name, size in sizes.items():
        if not (partial / name).exists():
            shard = Shard(source.base / name, adapter, DTYPES.get(dtype), metadata, device)
            shard.write(partial / name, _counting(report, done, total))
        done += size
    _write_index(partial, source.base)


def _metadata_text(manifest: Manifest) -> str:
    """What the safetensors metadata says: the manifest, without the list of files beside the adapter."""
    return json.dumps(manifest.model_dump(mode="json", exclude={"files"}), ensure_ascii=False, sort_keys=True)


def _counting(report: Report, before: int, total: int) -> Callable[[int], None]:
    written = before

    def count(size: int) -> None:
        nonlocal written
        written += size
        report(written, total)

    return count


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _write_index(partial: Path, base: Path) -> None:
    """The index of a sharded model: the same tensors in the same files, with their new size."""
    if (base / WEIGHTS_INDEX).exists():
        index = json.loads((base / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        index.setdefault("metadata", {})["total_size"] = sum(
            path.stat().st_size for path in partial.glob("*.safetensors")
        )
        (partial / WEIGHTS_INDEX).write_text(as_json(index), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ comparing


def _compared(folder: Path, source: Source, held_out: pl.DataFrame | None, rows: int, dtype: str) -> Difference | None:
    """How far the merged model is from the adapter on its base; None where no rows are given to compare with.

    Raises `ExportError` when that is not rounding.
    """
    if held_out is None:
        return None
    sample = take_sample(held_out, vocabulary_of(source.base), rows)
    trusted = bool(source.manifest.recipe["trust_remote_code"])
    with loaded(source.base, source.adapter, trust_remote_code=trusted) as model:
        reference = model_logits(model, sample)
    with loaded(folder, trust_remote_code=trusted) as model:
        found = difference(sample, reference, model_logits(model, sample))
    if not found.largest <= FARTHEST.get(dtype, FARTHEST["bfloat16"]):
        raise ExportError(
            f"The merged model differs from the adapter by {found.largest:.3g} in a logit: {dtype} cannot hold it, or "
            "the adapter is of a kind that curate does not understand.",
            f"Try --dtype float32, in another --to; the merged model lies in {folder}.",
        )
    return found
