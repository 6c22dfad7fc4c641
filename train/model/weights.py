"""The folder of a model → its config and the headers of its safetensors, checked before anything loads them.

The header of a safetensors file lists every tensor with its place, so that a truncated file, a missing shard and a
config of another model are found in milliseconds, without reading the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.errors import TrainError

INDEX = "model.safetensors.index.json"
"""File → tensors of a model in several files (`weight_map`)."""

LONGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, as its library limits them."""

HUB_BLOBS = ("blobs",)
"""Name of the folder to which the links in the cache of the Hugging Face hub refer."""

_STACK = r"(?:(?:model|transformer|decoder|language_model)\.)*"
_LAYER = re.compile(_STACK + r"(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(_STACK + r"embed_tokens\.weight")
"""Names of tensors of the text model, not those of a vision or audio encoder."""

OTHER_STACKS = ("vision_config", "audio_config", "text_config", "is_encoder_decoder")
"""Keys of configs whose other numbers may describe another part of the model than its text layers."""

OTHER_EMBEDDINGS = ("word_embed_proj_dim", "quantization_config")
"""Keys of configs whose embedding may have another shape than tokens x hidden size."""

_DAMAGED = "The model is damaged or incomplete: download or save it again."


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises `TrainError` if it is not valid."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else f"is not valid JSON: {error}"
        raise TrainError(f"{path} {reason}.", _DAMAGED) from error
    if not isinstance(value, dict):
        raise TrainError(f"{path} is not a JSON object.", _DAMAGED)
    return value


def check_model_files(folder: Path) -> None:
    """Raise `TrainError` if a weight file is missing, damaged or elsewhere, or does not fit `config.json`."""
    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        shapes |= read_shapes(path)
    config = read_json_object(folder / "config.json")
    if shapes and not config.get("auto_map"):
        _check_config(folder, config, shapes)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model that a loader reads. Raises `TrainError` if one is outside of the folder."""
    index = folder / INDEX
    if (folder / "model.safetensors").exists() or not index.exists():
        return [check_inside(folder, "model.safetensors")] if (folder / "model.safetensors").exists() else []
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise TrainError(f"{index} has no weight_map of tensors to files.", _DAMAGED)
    return [check_inside(folder, name) for name in sorted(set(names.values()))]


def check_inside(folder: Path, name: str) -> Path:
    """The file `name` of a model. Raises `TrainError` if it, or the file that it links to, is outside of the folder.

    The cache of the Hugging Face hub links to its own `blobs`.
    """
    path = folder / name
    real, home = path.resolve(), folder.resolve()
    in_hub_cache = real.parent.name in HUB_BLOBS and real.parent.parent in home.parents
    if ".." in Path(name).parts or not (real.is_relative_to(home) or in_hub_cache):
        raise TrainError(f"{path} is outside of the model's folder: {real}.", "Copy the file into the folder.")
    return path


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Tensor → shape, from the header of a safetensors file. Raises `TrainError` if the file is damaged."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if size > 8 and length <= min(LONGEST_HEADER, size - 8) else b""
        entries = json.loads(header)
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: [int(side) for side in entry["shape"]] for name, entry in tensors.items()}
    except FileNotFoundError as error:
        raise TrainError(f"{path.parent} has no {path.name}, which its index lists.", _DAMAGED) from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise TrainError(f"{path} is not a complete safetensors file: its header cannot be read.", _DAMAGED) from error
    if end != size:
        raise TrainError(f"{path} has {size:,} bytes; its header states {end:,}.", _DAMAGED)
    return shapes


def _check_config(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
    """Raise `TrainError` if the config cannot be that of the weights."""
    path = folder / "config.json"
    if not isinstance(config.get("model_type"), str):
        raise TrainError(f"{path} has no model_type.", _DAMAGED)
    for key in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise TrainError(f"{path}: {key} is {value!r}, not a positive number.", _DAMAGED)
    if not any(config.get(key) for key in OTHER_STACKS):
        _check_layers(path, config, shapes)
        if not any(config.get(key) for key in OTHER_EMBEDDINGS):
            _check_embedding(path, config, shapes)


def _check_layers(path: Path, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
    """Raise `TrainError` if the weights have fewer layers than stated; some have more, which predict later tokens."""
    stated = config.get("num_hidden_layers")
    found = 1 + max((int(match[1]) for name in shapes if (match := _LAYER.match(name))), default=-1)
    if stated is not None and 0 < found < stated:
        raise TrainError(f"{path} states {stated} layers; the weights have {found}.", _DAMAGED)


def _check_embedding(path: Path, config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
    embedding = next((shape for name, shape in shapes.items() if _EMBEDDING.fullmatch(name)), None)
    expected = [config.get("vocab_size"), config.get("hidden_size")]
    if embedding and None not in expected and embedding != expected:
        raise TrainError(
            f"{path} states {expected[0]} tokens of size {expected[1]}; the embedding is {embedding[0]} x "
            f"{embedding[-1]}.",
            _DAMAGED,
        )
