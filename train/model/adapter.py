"""In: an adapter as an engine saved it, and its manifest. Out: the folder that PEFT loads and a person understands.

Beside `adapter_model.safetensors` and `adapter_config.json` stand the tokenizer, the chat template that was trained,
`manifest.json`, a model card, the ledger of all conversations, the recipe and the losses step by step.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from schemas.digest import digest, file_digest
from schemas.ledger import write_ledger
from schemas.manifest import MANIFEST_FILE, Manifest
from schemas.text import plural
from train.model.adapter_files import read_settings
from train.tokens.chat_template import Template
from train.tokens.tokenizer import TOKENIZER_FILES

ADAPTER_FILE, CONFIG_FILE, CARD_FILE = "adapter_model.safetensors", "adapter_config.json", "README.md"

OF_THE_MODEL = ("config.json", "generation_config.json", "chat_template.jinja")
"""Files in the model's folder that are not copied: the first two belong to its weights, the last is written anew."""


def save_adapter(folder: Path, manifest: Manifest, model: Path, template: Template, ledger: pl.DataFrame) -> Manifest:
    """Complete the adapter in `folder` and return its manifest, now with the digest of every file.

    The manifest is written last. Two files are not among those it names: the card, since people edit cards, and
    the adapter's settings, which say where the base model lies on this machine; the adapter's digest has the rest.
    """
    if (folder / CONFIG_FILE).exists():
        _write_config(folder / CONFIG_FILE, manifest, model)
    write_tokenizer(folder, model, template)
    write_ledger(ledger, folder)
    (folder / "recipe.json").write_text(_json(manifest.recipe), encoding="utf-8")
    (folder / CARD_FILE).unlink(missing_ok=True)  # PEFT writes an empty form
    named = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != CONFIG_FILE}
    manifest = manifest.model_copy(update={"files": named, "adapter_digest": adapter_digest(folder)})
    (folder / CARD_FILE).write_text(card(manifest), encoding="utf-8")
    (folder / MANIFEST_FILE).write_text(manifest.as_json(), encoding="utf-8")
    return manifest


def adapter_digest(folder: Path) -> str:
    """SHA-256 over the tensors' files and their settings, without the base model's place on this machine.

    Raises `TrainError` when the settings are missing or damaged.
    """
    settings = settings_of(folder)
    config = read_settings(settings)
    config.pop("base_model_name_or_path", None)
    return digest({path.name: file_digest(path) for path in weights_of(folder)} | {settings.name: config})


def settings_of(folder: Path) -> Path:
    """The settings of an adapter, or of a model that was tuned whole."""
    adapter = folder / CONFIG_FILE
    return adapter if adapter.exists() else folder / "config.json"


def weights_of(folder: Path) -> list[Path]:
    """The files with an adapter's tensors, or with those of a model that was tuned whole."""
    return [folder / ADAPTER_FILE] if (folder / CONFIG_FILE).exists() else sorted(folder.glob("model*.safetensors"))


def _write_config(path: Path, manifest: Manifest, model: Path) -> None:
    """Rewrite PEFT's settings in one order; the base is named so that PEFT finds it: hub name, or folder here."""
    config = json.loads(path.read_text(encoding="utf-8"))
    is_folder = Path(manifest.model.name).expanduser().is_dir()
    config["base_model_name_or_path"] = str(model.resolve()) if is_folder else manifest.model.name
    for key in ("target_modules", "modules_to_save"):  # sets to PEFT, in a new order every time
        config[key] = sorted(config[key]) if config.get(key) else config.get(key)
    path.write_text(_json(config), encoding="utf-8")


def write_tokenizer(folder: Path, model: Path, template: Template) -> None:
    """Copy the model's tokenizer, with the template that was trained in place of its own."""
    for name in TOKENIZER_FILES:
        if name not in OF_THE_MODEL and (model / name).exists():
            shutil.copy(model / name, folder)
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        kept = json.loads(settings.read_text(encoding="utf-8"))
        kept.pop("chat_template", None)
        settings.write_text(_json(kept), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template.text, encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def card(manifest: Manifest) -> str:
    """The model card: what the adapter is, what it was trained on, how to use it, and the digests that prove it."""
    m = manifest
    base, on_hub, table = provenance(m)
    whole = m.engine["method"] == "full"
    kind = "All weights of" if whole else "A LoRA adapter for"
    loader = "AutoModelForCausalLM" if whole else "AutoPeftModelForCausalLM"
    return f"""---
library_name: {"transformers" if whole else "peft"}
pipeline_tag: text-generation
{on_hub}tags: [{"full" if whole else "lora"}, curate]
---

# {m.data.version}, run {m.run}

{kind} {base}, trained with curate {m.curate} on version `{m.data.version}` of a dataset.

| what | which |
| --- | --- |
{table}

## Measured

{_measured(m)}

## Use

    curate chat . --prompt "…"      # in this folder
    curate verify .                 # proves the table above

or in Python: `{loader}.from_pretrained(folder)` with the tokenizer and chat template in this folder.
`ledger.parquet` says of every conversation whether it was handed over to training, cut or left out, and why, and how
often the steps saw it (`seen`; 0 where they ended before its turn).
"""


def provenance(manifest: Manifest) -> tuple[str, str, str]:
    """The base model's name, the card's line that names it on the hub ("" if it is not there), and a table of facts."""
    m = manifest
    base = Path(m.model.name).name if "/" not in m.model.name or Path(m.model.name).is_dir() else m.model.name
    on_hub = f"base_model: {m.model.name}\n" if base == m.model.name and "/" in base else ""
    rows = {
        "dataset": f"`{m.data.version}`",
        "dataset digest": f"`{m.data.digest}`",
        "conversations": f"{m.tokens.conversations:,} {'trained' if m.coverage.complete else 'to train on'}, "
        f"{m.tokens.dropped:,} dropped, "
        f"{m.tokens.truncated:,} truncated, {m.data.counts.get('held_out', 0):,} held out",
        "seen in training": f"{m.coverage.phrase}, {m.coverage.epochs:.3g} "
        f"{'epoch' if m.coverage.epochs == 1 else 'epochs'}",
        "tokens": f"{m.tokens.tokens:,}, of which {m.tokens.loss_tokens:,} learned",
        "token digest": f"`{m.tokens.digest}`",
        "base model": f"{base}, `{m.model.digest}`",
        "template": f"{m.rendering.template}, `{m.rendering.template_digest}`",
        "tokenizer": f"`{m.rendering.tokenizer_digest}`",
        "masks": m.rendering.mask_policy,
        "recipe digest": f"`{m.recipe_digest}`",
        "engine": f"{m.recipe['engine']}, {m.engine['method']}, {'packed' if m.engine['packing'] else 'not packed'}",
        "machine": f"{m.machine.device_name}, {plural(m.machine.threads, 'thread')}, {m.machine.system}",
        "adapter digest": f"`{m.adapter_digest}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return base, on_hub, table


def _measured(manifest: Manifest) -> str:
    names = {
        "eval_loss_base": "loss per token on the held-out conversations, base model",
        "eval_loss": "the same, with this adapter",
        "train_loss_end": "training loss of the last tenth of the steps",
        "steps": "optimiser steps",
    }
    lines = [f"- {words}: {manifest.metrics[name]:.4g}" for name, words in names.items() if name in manifest.metrics]
    return "\n".join(lines)
