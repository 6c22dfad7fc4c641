"""An adapter as an engine saved it, and its manifest → a complete folder that PEFT loads.

In addition to `adapter_model.safetensors` and `adapter_config.json` it has the tokenizer, the chat template of the
training, `manifest.json`, a model card, the ledger of all conversations, the recipe and the losses of every step.
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
from schemas.text import plural, printable
from train.model.adapter_files import read_settings
from train.tokens.chat_template import Template
from train.tokens.tokenizer import TOKENIZER_FILES

ADAPTER_FILE, CONFIG_FILE, CARD_FILE = "adapter_model.safetensors", "adapter_config.json", "README.md"

NOT_COPIED = ("config.json", "generation_config.json", "chat_template.jinja")
"""Tokenizer files that are not copied: the first two belong to the model's weights, the last is the run's template."""


def save_adapter(folder: Path, manifest: Manifest, model: Path, template: Template, ledger: pl.DataFrame) -> Manifest:
    """Complete the adapter in `folder` and return its manifest, now with the digest of every file.

    The manifest is written last. It does not list two files: the card, which people edit, and the adapter's settings,
    which contain the base model's local path; the adapter's digest covers the rest of the settings.
    """
    if (folder / CONFIG_FILE).exists():
        _write_config(folder / CONFIG_FILE, manifest, model)
    write_tokenizer(folder, model, template)
    write_ledger(ledger, folder)
    (folder / "recipe.json").write_text(_json(manifest.recipe), encoding="utf-8")
    (folder / CARD_FILE).unlink(missing_ok=True)  # PEFT writes an empty template
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != CONFIG_FILE}
    manifest = manifest.model_copy(update={"files": files, "adapter_digest": adapter_digest(folder)})
    (folder / CARD_FILE).write_text(printable(card(manifest)), encoding="utf-8")
    (folder / MANIFEST_FILE).write_text(manifest.as_json(), encoding="utf-8")
    return manifest


def adapter_digest(folder: Path) -> str:
    """SHA-256 over the weight files and the settings, without the base model's local path.

    Raises `TrainError` if the settings are missing or damaged.
    """
    settings = settings_path(folder)
    config = read_settings(settings)
    config.pop("base_model_name_or_path", None)
    return digest({path.name: file_digest(path) for path in weight_paths(folder)} | {settings.name: config})


def settings_path(folder: Path) -> Path:
    """The settings of an adapter, or of a fully fine-tuned model."""
    adapter = folder / CONFIG_FILE
    return adapter if adapter.exists() else folder / "config.json"


def weight_paths(folder: Path) -> list[Path]:
    """The weight files of an adapter, or of a fully fine-tuned model."""
    return [folder / ADAPTER_FILE] if (folder / CONFIG_FILE).exists() else sorted(folder.glob("model*.safetensors"))


def _write_config(path: Path, manifest: Manifest, model: Path) -> None:
    """Sort PEFT's settings, and set the base model so that PEFT finds it: the hub name, or the local folder."""
    config = json.loads(path.read_text(encoding="utf-8"))
    is_folder = Path(manifest.model.name).expanduser().is_dir()
    config["base_model_name_or_path"] = str(model.resolve()) if is_folder else manifest.model.name
    for key in ("target_modules", "modules_to_save"):  # PEFT writes sets, in a new order every time
        config[key] = sorted(config[key]) if config.get(key) else config.get(key)
    path.write_text(_json(config), encoding="utf-8")


def write_tokenizer(folder: Path, model: Path, template: Template) -> None:
    """Copy the model's tokenizer, with the chat template used in training in place of its own."""
    for name in TOKENIZER_FILES:
        if name not in NOT_COPIED and (model / name).exists():
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
    """The model card: base model, training data, results, usage, and the digests that prove them."""
    m = manifest
    base, on_hub, table = provenance(m)
    full = m.engine["method"] == "full"
    kind = "All weights of" if full else "A LoRA adapter for"
    loader = "AutoModelForCausalLM" if full else "AutoPeftModelForCausalLM"
    return f"""---
library_name: {"transformers" if full else "peft"}
pipeline_tag: text-generation
{on_hub}tags: [{"full" if full else "lora"}, curate]
---

# {m.data.version}, run {m.run}

{kind} {base}, trained with curate {m.curate} on version `{m.data.version}` of a dataset.

| input | value |
| --- | --- |
{table}

## Results

{_results(m)}

## Use

    curate chat . --prompt "…"      # in this folder
    curate verify .                 # proves the table above

or in Python: `{loader}.from_pretrained(folder)` with the tokenizer and chat template in this folder.
`ledger.parquet` lists for every conversation whether it was kept, truncated or dropped and why, and how often it was
trained on (`epoch_count`; 0 if the run ended first).
"""


def provenance(manifest: Manifest) -> tuple[str, str, str]:
    """The base model's name, the card's `base_model` line ("" if it is not on the hub), and a table of inputs."""
    m = manifest
    base = Path(m.model.name).name if "/" not in m.model.name or Path(m.model.name).is_dir() else m.model.name
    on_hub = f"base_model: {m.model.name}\n" if base == m.model.name and "/" in base else ""
    rows = {
        "dataset": f"`{m.data.version}`",
        "dataset digest": f"`{m.data.digest}`",
        "conversations": f"{m.tokens.conversations:,} {'trained' if m.coverage.complete else 'to train on'}, "
        f"{m.tokens.dropped:,} dropped, "
        f"{m.tokens.truncated:,} truncated, {m.data.counts.get('held_out', 0):,} held out",
        "coverage": f"{m.coverage.phrase}, {m.coverage.epochs:.3g} {'epoch' if m.coverage.epochs == 1 else 'epochs'}",
        "tokens": f"{m.tokens.tokens:,}, of which {m.tokens.loss_tokens:,} loss tokens",
        "token digest": f"`{m.tokens.digest}`",
        "base model": f"{base}, `{m.model.digest}`",
        "template": f"{m.rendering.template}, `{m.rendering.template_digest}`",
        "tokenizer": f"`{m.rendering.tokenizer_digest}`",
        "mask policy": m.rendering.mask_policy,
        "recipe digest": f"`{m.recipe_digest}`",
        "engine": f"{m.recipe['engine']}, {m.engine['method']}, {'packed' if m.engine['packing'] else 'not packed'}",
        "machine": f"{m.machine.device_name}, {plural(m.machine.threads, 'thread')}, {m.machine.system}",
        "adapter digest": f"`{m.adapter_digest}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return base, on_hub, table


def _results(manifest: Manifest) -> str:
    names = {
        "eval_loss_base": "held-out loss per loss token, base model",
        "eval_loss": "held-out loss per loss token, with this adapter",
        "train_loss_end": "training loss of the last tenth of the steps",
        "steps": "optimiser steps",
    }
    lines = (f"- {label}: {manifest.metrics[name]:.4g}" for name, label in names.items() if name in manifest.metrics)
    return "\n".join(lines)
