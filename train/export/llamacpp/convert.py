"""A model's folder → a GGUF with 16 or 32 bits and additional metadata, written by llama.cpp's converter.

The converter runs in a child process and is patched there: with the metadata, the end-of-turn token, and the
pre-tokenizer of a vocabulary that it does not know. It recognises vocabularies by the ids of one test text; here an
unknown one gets the llama.cpp name that stands for the regular expression in its tokenizer.json (`llama-vocab.cpp`).
The serving parity check then compares the tokens.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from schemas.errors import ExportError

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression of the `ByteLevel` pre-tokenizer in the tokenizers library."""

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: Mapping[str, str] = {
    GPT_2: "gpt-2",
    WORDS + r"\p{N}{1,3}" + SYMBOLS: "llama-bpe",
    WORDS + r"\p{N}" + SYMBOLS: "qwen2",
}
"""llama.cpp's name of a pre-tokenizer by its regular expression."""

OUT_TYPES: Mapping[str, str] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""The converter's names of types."""

DISK_FULL = re.compile(r"No space left|File too large|quota exceeded|\d+ requested and \d+ written")
"""Messages of the system and of NumPy about a full disk, in the last line of the converter's log."""

ENVIRONMENT = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def convert(
    converter: Path, model: Path, to: Path, kind: str, *, metadata: Mapping[str, str], stop: int | None
) -> None:
    """Write the model in the folder `model` to `to` as `kind` (f32, f16, bf16). Raises `ExportError` on failure."""
    job = {
        "converter": str(converter),
        "arguments": [str(model), "--outfile", str(to), "--outtype", kind],
        "metadata": dict(metadata),
        "stop": stop,
        "pre_tokenizer": find_pre_tokenizer(model),
    }
    command = [sys.executable, "-P", "-c", "from train.export.llamacpp.convert import run_job; run_job()"]
    done = subprocess.run(
        command, input=json.dumps(job), env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not to.exists():
        raise _explain(done.stderr, model, converter)


def find_pre_tokenizer(model: Path) -> str | None:
    """llama.cpp's name of the pre-tokenizer in a model's tokenizer.json, None if its regular expression is unknown.

    >>> find_pre_tokenizer(Path("data/tiny"))
    'gpt-2'
    """
    steps = json.loads((model / "tokenizer.json").read_text(encoding="utf-8")).get("pre_tokenizer") or {}
    match steps.get("pretokenizers", [steps]):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return PRE_TOKENIZERS[GPT_2]
        case [
            {"type": "Split", "pattern": {"Regex": str(expression)}},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return PRE_TOKENIZERS.get(expression)
    return None


def _explain(log: str, model: Path, converter: Path) -> ExportError:
    lines = [line for line in log.strip().splitlines() if line.strip()] or ["no output"]
    if DISK_FULL.search(lines[-1]):
        return ExportError("The disk is full: the GGUF could not be written.", "Free some space, or give another --to.")
    if "pre-tokenizer was not recognized" in lines[-1]:
        return ExportError(
            f"llama.cpp does not know the pre-tokenizer of the tokenizer in {model}.",
            "Try a newer llama.cpp with --llama-cpp DIR, or serve the merged model with vLLM or TGI.",
        )
    return ExportError(
        f"llama.cpp's converter cannot convert {model}: {lines[-1]}", f"Try a newer one than {converter}."
    )


# ----------------------------------------------------------------------------------------------- the child process


def run_job() -> None:
    """Run the converter with the job in JSON on stdin."""
    job = json.load(sys.stdin)
    converter = Path(job["converter"])
    sys.path.insert(0, str(converter.parent))
    program = importlib.import_module(converter.stem)
    # The converter's base class and its subclass for text models; which one has the method depends on the release.
    classes = [program.ModelBase, *program.ModelBase.__subclasses__()]
    text_model = next(cls for cls in classes if "get_vocab_base_pre" in vars(cls))
    _patch_pre_tokenizer(text_model, job["pre_tokenizer"])
    _patch_metadata(program.ModelBase, text_model, job["metadata"], job["stop"])
    sys.argv = [str(converter), *job["arguments"]]
    program.main()


def _patch_pre_tokenizer(text_model: Any, name: str | None) -> None:
    """Return `name` for a vocabulary that the converter does not know."""
    original: Callable[[Any, Any], str] = text_model.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return original(self, tokenizer)
        except NotImplementedError:
            if name is None:
                raise
            return name

    text_model.get_vocab_base_pre = get_vocab_base_pre


def _patch_metadata(model_base: Any, text_model: Any, metadata: Mapping[str, str], stop: int | None) -> None:
    """Add the metadata, and the end-of-turn token if the converter found none, before the header is written."""
    original = model_base.prepare_metadata

    def prepare_metadata(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        for key, value in metadata.items():
            self.gguf_writer.add_string(key, value)

    model_base.prepare_metadata = prepare_metadata
    with_vocabulary = text_model.prepare_metadata

    def prepare_text_metadata(self: Any, *arguments: Any, **options: Any) -> None:
        with_vocabulary(self, *arguments, **options)
        has_end_of_turn = any("tokenizer.ggml.eot_token_id" in part for part in self.gguf_writer.kv_data)
        if stop is not None and not has_end_of_turn:
            self.gguf_writer.add_eot_token_id(stop)

    text_model.prepare_metadata = prepare_text_metadata
