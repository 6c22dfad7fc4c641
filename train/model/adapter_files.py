"""An adapter's folder → its settings and chat template, or an error that names the missing or damaged file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.errors import TrainError
from schemas.manifest import Manifest
from train.tokens.chat_template import Template


def check_weights(adapter: Path, manifest: Manifest) -> None:
    """Raise `TrainError` if a weight file, or the config of a fully fine-tuned model, is missing."""
    for name in manifest.files:
        if ".safetensors" in name or name == "config.json":
            _check_exists(adapter / name)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file of an adapter's folder. Raises `TrainError` if it is missing or damaged."""
    try:
        settings = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise _damaged_error(path, error) from error
    if not isinstance(settings, dict):
        raise _damaged_error(path, "it does not contain settings")
    return settings


def read_template(adapter: Path, manifest: Manifest) -> Template:
    """The chat template used in training. Raises `TrainError` if the file is missing or has another digest."""
    path = adapter / "chat_template.jinja"
    template = Template(manifest.rendering.template, _read_text(path))
    if template.digest != manifest.rendering.template_digest:
        raise TrainError(
            f"{path.name} in {adapter} is not the template of run {manifest.run}.",
            f"Restore the original file; {verify_hint(path.parent)}",
        )
    return template


def verify_hint(adapter: Path) -> str:
    """The command that checks an adapter's files."""
    return f"curate verify {adapter} lists all missing and changed files."


def _read_text(path: Path) -> str:
    _check_exists(path)
    try:
        return path.read_bytes().decode("utf-8")  # unchanged line ends: the digest includes them
    except UnicodeDecodeError as error:
        raise _damaged_error(path, error) from error


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise TrainError(f"{path.parent} has no {path.name}.", verify_hint(path.parent))


def _damaged_error(path: Path, reason: Exception | str) -> TrainError:
    return TrainError(f"{path} is damaged: {reason}.", verify_hint(path.parent))
