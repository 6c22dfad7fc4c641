"""In: an adapter's folder. Out: its settings and its template, or a sentence on the file that is missing or damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import TrainError
from schemas.manifest import Manifest
from train.tokens.chat_template import Template


def check_weights(adapter: Path, manifest: Manifest) -> None:
    """Raise `TrainError` when a file is missing of those that hold the weights, or a whole model's settings."""
    for name in manifest.files:
        if ".safetensors" in name or name == "config.json":
            _check_there(adapter / name)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file of an adapter's folder. Raises `TrainError` when it is missing or damaged."""
    try:
        settings = json.loads(_text_of(path))
    except json.JSONDecodeError as error:
        raise _damaged(path, error) from error
    if not isinstance(settings, dict):
        raise _damaged(path, "it holds no settings")
    return settings


def read_template(adapter: Path, manifest: Manifest) -> Template:
    """The template that was trained, from the adapter's folder. Raises `TrainError` when it is missing or another."""
    path = adapter / "chat_template.jinja"
    template = Template(manifest.rendering.template, _text_of(path))
    if template.digest != manifest.rendering.template_digest:
        raise TrainError(
            f"{path.name} in {adapter} is not the template that run {manifest.run} was trained with.",
            f"Put back the file that was there; {_hint(path.parent)}",
        )
    return template


@contextmanager
def explained_weights(folder: Path) -> Iterator[None]:
    """Say in a sentence that the weights in `folder` are cut off, or none."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise TrainError(f"The weights in {folder} are damaged: {error}.", _hint(folder)) from error


def _text_of(path: Path) -> str:
    _check_there(path)
    try:
        return path.read_bytes().decode("utf-8")  # line ends as they are: the digest counts them
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise TrainError(f"{path.parent} has no {path.name}.", _hint(path.parent))


def _damaged(path: Path, why: Exception | str) -> TrainError:
    return TrainError(f"{path} is damaged: {why}.", _hint(path.parent))


def _hint(adapter: Path) -> str:
    return f"curate verify {adapter} names all that is missing or was changed."
