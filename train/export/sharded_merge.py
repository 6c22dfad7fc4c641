"""A shard of a base model and an adapter's tensors → the shard with the adapter merged, written as a stream.

A weight W becomes W + scale * B A (LoRA, arXiv 2106.09685, equation 3), for DoRA with the norms of its rows set to the
magnitude vector (arXiv 2402.09353, equation 5). The sum is computed in float32, a few rows at a time: memory holds the
adapter and a few megabytes, whatever the size of the model. The safetensors library only writes tensors that are all in
memory, so the file is written here: a header with the offset of each tensor, then the bytes of the tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from schemas.atomic import atomic_file
from schemas.errors import ExportError
from schemas.text import join_names
from train.model.adapter import ADAPTER_FILE, CONFIG_FILE

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
SAFETENSORS_CODES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The codes in safetensors of the types that occur in a model with 16 or 32 bits."""

CHUNK = 16 * 2**20
"""Numbers that are merged at a time: 64 MB in float32."""

PREFIX = "base_model.model."
"""PEFT's prefix to the names of the base model's tensors."""

BASE_PRESERVING_INITS = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` that keep the base model unchanged; others train on a modified base model."""

UNSUPPORTED = (
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "lora_bias",
)
"""PEFT settings of adapters that do more than add to the weight of a layer."""

UNSUPPORTED_HINT = "Merge it with PEFT's merge_and_unload, or serve the adapter with its base model."


@dataclass(frozen=True, slots=True)
class Delta:
    """The change to one weight: adds `scale` * `b` @ `a`, then sets the norms of the rows to `magnitude` if given."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter by the names of the base model's tensors: changes to weights, and tensors that replace others."""

    deltas: Mapping[str, Delta]
    replaced: Mapping[str, torch.Tensor]

    def check(self, base: Iterable[str], folder: Path) -> None:
        """Raise `ExportError` if the adapter changes a tensor that the base model's files do not have."""
        names = set(base)
        missing = sorted(name for name in {*self.deltas, *self.replaced} - names if not self._is_tied(name, names))
        if missing:
            raise ExportError(
                f"The adapter changes {join_names(missing, 1)}, which the files in {folder} do not have "
                "under these names: they are tied to other weights, or stored in another form.",
                "Such a model cannot be merged; serve the adapter with its base model, as vLLM and TGI can.",
            )

    def _is_tied(self, name: str, base: set[str]) -> bool:
        """Whether PEFT saved a tied tensor of the base model twice, such as an output head that is the embedding."""
        tensor = self.replaced.get(name)
        return tensor is not None and any(
            torch.equal(tensor, self.replaced[other]) for other in base & set(self.replaced)
        )


def read_adapter(folder: Path, device: str = "cpu") -> Adapter:
    """Read an adapter, in float32. Raises `ExportError` if it does more than add to weights and replace tensors."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    _check_kind(config)
    with safe_open(folder / ADAPTER_FILE, "pt", device=device) as file:
        tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layers = sorted({name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")})
    deltas = {f"{layer}.weight": _pop_delta(layer, tensors, config) for layer in layers}
    unknown = sorted(name for name in tensors if ".lora_" in name)
    if unknown:
        raise ExportError(f"The adapter contains {unknown[0]}, which curate cannot merge.", UNSUPPORTED_HINT)
    return Adapter(deltas, tensors)


def _check_kind(config: Mapping[str, Any]) -> None:
    settings = [name for name in UNSUPPORTED if config.get(name)]
    if config.get("fan_in_fan_out"):
        settings.append("fan_in_fan_out")
    if config.get("init_lora_weights", True) not in BASE_PRESERVING_INITS:
        settings.append(f"init_lora_weights = {config['init_lora_weights']}")
    if config.get("peft_type") != "LORA" or settings:
        kind = ", ".join(settings) or config.get("peft_type")
        raise ExportError(f"curate cannot merge adapters of this kind: {kind}.", UNSUPPORTED_HINT)


def _pop_delta(layer: str, tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> Delta:
    """Remove the tensors of one layer from `tensors` and combine them."""
    a, b = tensors.pop(f"{layer}.lora_A.weight").float(), tensors.pop(f"{layer}.lora_B.weight").float()
    rank = _match_pattern(config.get("rank_pattern") or {}, layer, config["r"])
    alpha = _match_pattern(config.get("alpha_pattern") or {}, layer, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    magnitude = tensors.pop(f"{layer}.lora_magnitude_vector", None)
    return Delta(a, b, scale, None if magnitude is None else magnitude.float().reshape(-1))


def _match_pattern(pattern: Mapping[str, float], layer: str, default: float) -> float:
    """The value for a layer as in PEFT: of the first key that matches the end of the layer's name."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


# --------------------------------------------------------------------------------------------------------- shards


def shard_sizes(base: Path) -> dict[str, int]:
    """The safetensors files of a model by name, with their size in bytes."""
    return {path.name: path.stat().st_size for path in sorted(base.glob("*.safetensors"))}


def tensor_names(base: Path) -> list[str]:
    """The names of all tensors in a model's files."""
    names: list[str] = []
    for name in shard_sizes(base):
        with safe_open(base / name, "pt") as file:
            names += file.keys()
    return names


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the base model, the adapter to merge into it, and the type to write (None keeps the stored one)."""

    source: Path
    adapter: Adapter
    dtype: torch.dtype | None
    metadata: Mapping[str, str]
    device: str = "cpu"

    def write(self, to: Path, progress: Callable[[int], None] = lambda _: None) -> None:
        """Write the merged shard to `to`, which appears when complete; `progress` receives the bytes written so far."""
        with (
            atomic_file(to) as temporary,
            safe_open(self.source, "pt") as file,
            temporary.open("wb") as out,
            ThreadPoolExecutor(1) as pool,
        ):
            names = list(file.offset_keys())
            out.write(self._header(file, names))
            written = 0
            pending: Future[int] | None = None
            for chunk in self._chunks(file, names):  # one chunk is written while the next is computed
                _ = pending and pending.result()
                pending = pool.submit(out.write, memoryview(chunk.view(torch.uint8).numpy()))
                written += chunk.nbytes
                progress(written)
            _ = pending and pending.result()

    def _header(self, file: Any, names: Iterable[str]) -> bytes:
        """The length of the header, followed by the header with the offsets of the tensors."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **self.metadata}}
        end = 0
        for name in names:
            shape, dtype = self._layout(file, name)
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": SAFETENSORS_CODES[dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _layout(self, file: Any, name: str) -> tuple[list[int], torch.dtype]:
        """The shape of a tensor and the type in which it is written."""
        tensor = file.get_slice(name)
        shape = list(tensor.get_shape())
        dtype = next((dtype for dtype, code in SAFETENSORS_CODES.items() if code == tensor.get_dtype()), None)
        if dtype is None:
            raise ExportError(
                f"{self.source} stores {name} as {tensor.get_dtype()}: it is quantised.",
                "Merge into the 16- or 32-bit model that it was made from.",
            )
        return shape, self.dtype if self.dtype and dtype.is_floating_point else dtype

    def _chunks(self, file: Any, names: Iterable[str]) -> Iterator[torch.Tensor]:
        """The content of all tensors in order, as flat tensors of the type in which they are written."""
        for name in names:
            shape, dtype = self._layout(file, name)
            replacement = self.adapter.replaced.get(name)
            if not shape or replacement is not None:
                tensor = file.get_tensor(name) if replacement is None else replacement
                yield tensor.to("cpu", dtype).contiguous().reshape(-1)
                continue
            delta, stored = self.adapter.deltas.get(name), file.get_slice(name)
            step = max(1, CHUNK // max(1, math.prod(shape[1:])))
            for start in range(0, shape[0], step):
                rows = stored[start : start + step]
                if delta is not None:
                    rows = self._merge(rows, delta, slice(start, start + step))
                yield rows.to("cpu", dtype).contiguous().reshape(-1)

    def _merge(self, rows: torch.Tensor, delta: Delta, part: slice) -> torch.Tensor:
        merged = rows.to(self.device, torch.float32, copy=True)
        torch.addmm(merged, delta.b[part], delta.a, alpha=delta.scale, out=merged)
        if delta.magnitude is not None:
            merged *= (delta.magnitude[part] / merged.norm(dim=1))[:, None]
        return merged
