"""In: a shard of a base model, an adapter's tensors. Out: the shard with the adapter in it, written as a stream.

A weight W becomes W + scale * B A (LoRA, arXiv 2106.09685, equation 3), or that with the length of its rows set
anew (DoRA, arXiv 2402.09353, equation 5). It is added in float32, some rows at a time: memory holds the adapter and
a few megabytes, whatever the size of the model. The safetensors library writes a file from tensors that are all in
memory, so the file is written here: a header that says where each tensor will be, then their bytes one by one.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from schemas.errors import ExportError
from schemas.text import join_names
from train.model.adapter import ADAPTER_FILE, CONFIG_FILE

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
CODES: Mapping[torch.dtype, str] = {
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
"""How safetensors calls the types that a model with 16 or 32 bits can have."""

PIECE = 16 * 2**20
"""Numbers that are worked on at a time: 64 MB in float32."""

PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model's parts."""

FAITHFUL_STARTS = (True, False, "gaussian", "orthogonal")
"""Kinds of `init_lora_weights` that leave the base model as it is; the others train beside a base of their own."""

PLAIN = {"use_dora", "use_rslora", "fan_in_fan_out"}
UNMERGED = ("target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens", "lora_bias")
"""Settings of PEFT whose adapters are more than a sum with the weight of a layer."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What the adapter adds to one weight: `scale` * `b` @ `a`; with `magnitude` the rows get these lengths."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter by the names of the base model's tensors: deltas, and tensors that it replaces as a whole."""

    deltas: Mapping[str, Delta]
    replaced: Mapping[str, torch.Tensor]

    def check(self, base: Iterable[str], folder: Path) -> None:
        """Raise `ExportError` when a part of the adapter has no tensor in the base model's files."""
        there = set(base)
        lost = sorted(name for name in {*self.deltas, *self.replaced} - there if not self._is_tied(name, there))
        if lost:
            raise ExportError(
                f"The adapter changes {join_names(lost, 1)}, which the files in {folder} do not have "
                "under these names: they are tied to other weights, or stored in another form.",
                "Such a model cannot be merged; serve the adapter beside its base, as vLLM and TGI do.",
            )

    def _is_tied(self, name: str, base: set[str]) -> bool:
        """Whether PEFT saved a matrix of the base a second time under this name: the head that is the embedding."""
        own = self.replaced.get(name)
        return own is not None and any(torch.equal(own, self.replaced[other]) for other in base & set(self.replaced))


def read_adapter(folder: Path, device: str = "cpu") -> Adapter:
    """The adapter in `folder`, in float32. Raises `ExportError` for a kind that is more than a sum with the weights."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    _check_kind(config)
    with safe_open(folder / ADAPTER_FILE, "pt", device=device) as file:
        tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layers = sorted({name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")})
    deltas = {f"{layer}.weight": _delta(layer, tensors, config) for layer in layers}
    unknown = sorted(name for name in tensors if ".lora_" in name)
    if unknown:
        raise ExportError(f"The adapter holds {unknown[0]}, which curate cannot merge.", _UNMERGED_HINT)
    return Adapter(deltas, tensors)


_UNMERGED_HINT = "Merge it with PEFT's merge_and_unload, or serve the adapter beside its base."


def _check_kind(config: Mapping[str, Any]) -> None:
    odd = [name for name in UNMERGED if config.get(name)]
    if config.get("fan_in_fan_out"):
        odd.append("fan_in_fan_out")
    if config.get("init_lora_weights", True) not in FAITHFUL_STARTS:
        odd.append(f"init_lora_weights = {config['init_lora_weights']}")
    if config.get("peft_type") != "LORA" or odd:
        kind = ", ".join(odd) or config.get("peft_type")
        raise ExportError(f"Adapters of this kind cannot be merged by curate: {kind}.", _UNMERGED_HINT)


def _delta(layer: str, tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> Delta:
    """Take the parts of one layer out of `tensors`."""
    a, b = tensors.pop(f"{layer}.lora_A.weight").float(), tensors.pop(f"{layer}.lora_B.weight").float()
    rank = _of_pattern(config.get("rank_pattern") or {}, layer, config["r"])
    alpha = _of_pattern(config.get("alpha_pattern") or {}, layer, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    magnitude = tensors.pop(f"{layer}.lora_magnitude_vector", None)
    return Delta(a, b, scale, None if magnitude is None else magnitude.float().reshape(-1))


def _of_pattern(pattern: Mapping[str, float], layer: str, otherwise: float) -> float:
    """The value for a layer, found as PEFT finds it: the first key that matches the end of the layer's name."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), otherwise)


# --------------------------------------------------------------------------------------------------------- shards


def shard_sizes(base: Path) -> dict[str, int]:
    """The safetensors files of a model by name, with their bytes."""
    return {path.name: path.stat().st_size for path in sorted(base.glob("*.safetensors"))}


def tensor_names(base: Path) -> list[str]:
    """The names of all tensors in a model's files."""
    names: list[str] = []
    for name in shard_sizes(base):
        with safe_open(base / name, "pt") as file:
            names += file.keys()
    return names


@dataclass
class Shard:
    """One file of the base model on its way: where it comes from, what is added, and in which type it leaves."""

    source: Path
    adapter: Adapter
    dtype: torch.dtype | None
    metadata: Mapping[str, str]
    device: str = "cpu"
    _header: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def write(self, to: Path, report: Callable[[int], None] = lambda _: None) -> None:
        """Write the merged shard to `to`, under another name until it is whole; `report` is told of bytes written."""
        unfinished = to.with_name(f"{to.name}.writing")
        with safe_open(self.source, "pt") as file, unfinished.open("wb") as out, ThreadPoolExecutor(1) as pool:
            names = list(file.offset_keys())
            out.write(self._begin(file, names))
            waiting: Future[int] | None = None
            for piece in self._pieces(file, names):  # one piece is written while the next is computed
                _ = waiting and waiting.result()
                waiting = pool.submit(out.write, memoryview(piece.view(torch.uint8).numpy()))
                report(piece.nbytes)
            _ = waiting and waiting.result()
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(to)

    def _begin(self, file: Any, names: Iterable[str]) -> bytes:
        """The head of the file: the length of the header, and the header, which says where each tensor lies."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **self.metadata}}
        end = 0
        for name in names:
            shape, dtype = self._form(file, name)
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _form(self, file: Any, name: str) -> tuple[list[int], torch.dtype]:
        part = file.get_slice(name)
        shape = list(part.get_shape())
        dtype = next((dtype for dtype, code in CODES.items() if code == part.get_dtype()), None)
        if dtype is None:
            raise ExportError(
                f"{self.source} keeps {name} in {part.get_dtype()}: it is quantised.",
                "Merge into the 16- or 32-bit model that it was made from.",
            )
        return shape, self.dtype if self.dtype and dtype.is_floating_point else dtype

    def _pieces(self, file: Any, names: Iterable[str]) -> Iterator[torch.Tensor]:
        """The bytes of all tensors in order, as flat tensors of the type in which they leave."""
        for name in names:
            shape, dtype = self._form(file, name)
            replaced = self.adapter.replaced.get(name)
            if not shape or replaced is not None:
                whole = file.get_tensor(name) if replaced is None else replaced
                yield whole.to("cpu", dtype).contiguous().reshape(-1)
                continue
            delta, part = self.adapter.deltas.get(name), file.get_slice(name)
            step = max(1, PIECE // max(1, math.prod(shape[1:])))
            for start in range(0, shape[0], step):
                rows = part[start : start + step]
                if delta is not None:
                    rows = self._added(rows, delta, slice(start, start + step))
                yield rows.to("cpu", dtype).contiguous().reshape(-1)

    def _added(self, rows: torch.Tensor, delta: Delta, which: slice) -> torch.Tensor:
        merged = rows.to(self.device, torch.float32, copy=True)
        torch.addmm(merged, delta.b[which], delta.a, alpha=delta.scale, out=merged)
        if delta.magnitude is not None:
            merged *= (delta.magnitude[which] / merged.norm(dim=1))[:, None]
        return merged
