"""The name of a base model or adapter → its local folder, checked before any of its code runs; digest and weights.

Weights must be safetensors: loading a pickle executes code.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from schemas.digest import digest, file_digest
from schemas.errors import TrainError
from schemas.manifest import MANIFEST_FILE, Manifest, read_manifest
from schemas.run import Run, find_run, read_runs
from schemas.store import reading
from schemas.text import join_names, shell_quote
from train.model.adapter_files import read_settings
from train.model.gpus import suggest_model
from train.model.load_errors import wrap_load_errors
from train.model.weights import check_model_files, read_json_object, weight_files

Method = Literal["qlora", "lora", "full"]

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Files downloaded from the hub: no pickles, no code."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def find_model(name: str, *, trust_remote_code: bool = False) -> Path:
    """The folder of the base model `name`, a folder or a name on the Hugging Face hub, downloaded if necessary.

    Raises `TrainError` if it is missing, not a base model, has no safetensors, or has code and is not trusted.
    """
    if not name:
        raise TrainError(
            "No base model is named.",
            f"Give --model FOLDER or a name on the Hugging Face hub, or set model under [train] in the recipe.\n"
            f"    {suggest_model()}\n    Only to try the steps: --model {shell_quote(str(_tiny_model()))}",
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name, trust_remote_code=trust_remote_code)
    _check_folder(folder, name, trust_remote_code=trust_remote_code)
    return folder


def _tiny_model() -> Path:
    """The tiny model of this project: inside an installed `curate`, or next to it in a checkout."""
    root = Path(__file__).resolve().parents[2]
    installed = root / "curate" / "data" / "tiny"
    return installed if installed.is_dir() else root / "data" / "tiny"


def model_digest(folder: Path) -> str:
    """SHA-256 over the names and digests of a model's safetensors and its config."""
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return digest({path.name: file_digest(path) for path in files})


def find_adapter(store: Path, target: str) -> tuple[Path, Run | None]:
    """The adapter of `target`, a run of the store such as r3 or a folder, and its run if the store has it.

    Raises `TrainError` if the run has no adapter, `VersionError` if there is no such run.
    """
    folder = Path(target).expanduser()
    if folder.is_dir():
        check_adapter(folder)
        return folder, _find_run(store, folder)
    with reading(store) as connection:
        run = find_run(connection, target)
    if run.status != "done":
        reason = f": {run.manifest.failure}" if run.manifest.failure else ""
        raise TrainError(
            f"Run {run.run} has no adapter, it is {run.status}{reason}.",
            "The same curate train command resumes it.",
        )
    if not run.adapter.is_dir():
        raise TrainError(f"The adapter of run {run.run} is not in {run.adapter}.", "Give its current folder.")
    return run.adapter, run


def check_adapter(folder: Path) -> None:
    """Raise `TrainError` for a folder of `curate merge`: it has the manifest of an adapter but merged weights."""
    if not (folder / MANIFEST_FILE).exists() or (folder / "adapter_config.json").exists():
        return
    manifest = read_manifest(folder)
    if manifest.engine["method"] != "full" and (folder / "config.json").exists():
        raise TrainError(
            f"{folder} is the merged model of run {manifest.run}; this command needs the run's adapter.",
            f"Give the run, {manifest.run}; for the merged model use curate check-serving {folder}.",
        )


def _find_run(store: Path, folder: Path) -> Run | None:
    """The run whose adapter is `folder`: by path, otherwise by name and digest, since folders are moved."""
    with reading(store) if store.exists() else nullcontext() as connection:
        runs = read_runs(connection) if connection else []
    by_path = next((run for run in runs if run.adapter == folder.resolve()), None)
    if by_path is not None or not runs or not (folder / MANIFEST_FILE).exists():
        return by_path
    manifest = read_manifest(folder)
    name = (manifest.run, manifest.adapter_digest)
    return next((run for run in runs if (run.run, run.manifest.adapter_digest) == name), None)


def find_base(adapter: Path, manifest: Manifest) -> Path:
    """The folder of an adapter's base model: the path in its settings, otherwise by name.

    Raises `TrainError` if it is missing, or the adapter's settings are missing or damaged.
    """
    if manifest.engine["method"] == "full":
        return base_by_name(manifest)
    path = read_settings(adapter / "adapter_config.json").get("base_model_name_or_path")
    if path is None or not Path(path).is_dir():
        return base_by_name(manifest)
    return find_model(path, trust_remote_code=bool(manifest.recipe.get("trust_remote_code")))


def base_by_name(manifest: Manifest) -> Path:
    """The folder of the base model in a manifest."""
    return find_model(manifest.model.name, trust_remote_code=bool(manifest.recipe.get("trust_remote_code")))


def pick_method(method: str) -> Method:
    """The method for the recipe's `method`; `auto` is qlora on a GPU and lora on a CPU, where 4 bits cost speed."""
    if method == "auto":
        import torch

        return "qlora" if torch.cuda.is_available() else "lora"
    return "full" if method == "full" else "qlora" if method == "qlora" else "lora"


def load_model(folder: Path, method: Method, *, trust_remote_code: bool = False) -> Any:
    """The base model loaded: on a GPU in 16 bits (qlora: 4, full: 32), on a CPU in fp32 (qlora: 4 bits)."""
    import torch
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    half = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float16
    # On a CPU 16 bits are slow and differ between machines; with method full they would lose small updates.
    dtype = half if on_gpu and method != "full" else torch.float32
    with wrap_load_errors(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=_four_bits(dtype) if method == "qlora" else None,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            device_map={"": int(os.environ.get("LOCAL_RANK", "0"))} if on_gpu else None,
        )
    keep_trainable(model)
    return model


def keep_trainable(model: Any) -> None:
    """Keep a 4-bit model trainable on a CPU after a forward pass without gradients.

    bitsandbytes 0.50 repacks a layer at its first forward pass without gradients, and the layer then gets no gradients
    anymore; this switch of its Linear4bit keeps the trainable layout.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def _download(name: str, *, trust_remote_code: bool) -> Path:
    if len(Path(name).parts) != 2 or name.startswith((".", "~", "/")):
        raise TrainError(f"There is no model folder at {name}.", "Give a folder, or a name such as owner/model.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, *(["*.py"] if trust_remote_code else [])]))
    except Exception as error:  # the hub client raises errors of many libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"{name} is not a local folder and could not be downloaded: {reason}"
        raise TrainError(what, "Give --model FOLDER.") from error


def _check_folder(folder: Path, name: str, *, trust_remote_code: bool) -> None:
    if (folder / "adapter_config.json").exists():
        raise TrainError(f"{name} is an adapter, not a base model.", "Give the base model of the adapter.")
    config = folder / "config.json"
    if not config.exists():
        raise TrainError(f"{name} is not a model: it has no config.json.", "Give the folder of a Hugging Face model.")
    if not _has_safetensors(folder):
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        weights = f"only pickles ({join_names(pickles, 3)}), which run code when loaded" if pickles else "no weights"
        raise TrainError(f"{name} has {weights}.", "Save it as safetensors: model.save_pretrained(FOLDER).")
    if any(map(_has_code, (config, folder / "tokenizer_config.json"))) and not trust_remote_code:
        raise TrainError(
            f"{name} contains its own Python code, which would run here.",
            "Read it; if you trust it, --set train.trust_remote_code=true (recorded in the manifest).",
        )
    check_model_files(folder)


def _has_safetensors(folder: Path) -> bool:
    """Whether all safetensors that a loader expects exist: otherwise it would load a pickle."""
    files = weight_files(folder)
    return bool(files) and all(path.exists() for path in files)


def _has_code(config: Path) -> bool:
    return config.exists() and "auto_map" in read_json_object(config)


def _four_bits(dtype: Any) -> Any:
    """NF4 with double quantisation, as QLoRA (arXiv 2305.14314) uses it."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
