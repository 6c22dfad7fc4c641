"""The files of a base model without tensors: enough for everything that reads no weights."""

import json
from pathlib import Path

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file with an empty header."""


def add_model_files(folder: Path, **config: object) -> Path:
    """Add a config and weights to `folder`, which may have a tokenizer."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(NO_TENSORS)
    return folder
