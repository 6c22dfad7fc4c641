"""In: the folder of a model. Out: it as a GGUF in 16 or 32 bits, by llama.cpp's converter, with metadata of ours.

The converter is a program that is started in a process of its own and told three things more there: the metadata,
the token that ends a turn, and the pre-tokenizer of a vocabulary that it does not know. It knows vocabularies by the
ids of one probe text; those that are new are named here by the expression that their tokenizer.json cuts with, which
is what llama.cpp's names stand for (`llama-vocab.cpp`). What comes of it is compared token by token afterwards.
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
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: Mapping[str, str] = {
    GPT_2: "gpt-2",
    WORDS + r"\p{N}{1,3}" + SIGNS: "llama-bpe",
    WORDS + r"\p{N}" + SIGNS: "qwen2",
}
"""llama.cpp's name of a pre-tokenizer by the expression that it cuts with."""

OUT_TYPES: Mapping[str, str] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""The converter's names of types by ours."""

FULL = re.compile(r"No space left|File too large|quota exceeded|\d+ requested and \d+ written")
"""How a full disk is told of by the system, and by NumPy, in the last line of the converter's log."""

QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def convert(
    converter: Path, model: Path, to: Path, kind: str, *, metadata: Mapping[str, str], stop: int | None
) -> None:
    """Write the model in `model` to `to` as `kind` (f32, f16, bf16). Raises `ExportError` when it cannot be done."""
    order = {
        "converter": str(converter),
        "arguments": [str(model), "--outfile", str(to), "--outtype", kind],
        "metadata": dict(metadata),
        "stop": stop,
        "pre_tokenizer": pre_tokenizer(model),
    }
    command = [sys.executable, "-P", "-c", "from train.export.llamacpp.convert import work; work()"]
    done = subprocess.run(
        command, input=json.dumps(order), env=os.environ | QUIET, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not to.exists():
        to.unlink(missing_ok=True)
        raise _explained(done.stderr, model, converter)


def pre_tokenizer(model: Path) -> str | None:
    """llama.cpp's name of the pre-tokenizer in a model's tokenizer.json; nothing where no expression of ours is its.

    >>> pre_tokenizer(Path("data/tiny"))
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


def _explained(log: str, model: Path, converter: Path) -> ExportError:
    lines = [line for line in log.strip().splitlines() if line.strip()] or ["it said nothing"]
    if FULL.search(lines[-1]):
        return ExportError("The disk is full: the GGUF could not be written.", "Free some space, or give another --to.")
    if "pre-tokenizer was not recognized" in lines[-1]:
        return ExportError(
            f"llama.cpp does not know the way in which the tokenizer in {model} cuts a text into words.",
            "A newer llama.cpp may: --llama-cpp DIR; until then serve the merged model with vLLM or TGI.",
        )
    return ExportError(
        f"llama.cpp's converter cannot convert {model}: {lines[-1]}", f"The converter is {converter}; a newer one may."
    )


# --------------------------------------------------------------------------------------------- in its own process


def work() -> None:
    """Run the converter as the JSON on stdin says."""
    order = json.load(sys.stdin)
    converter = Path(order["converter"])
    sys.path.insert(0, str(converter.parent))
    program = importlib.import_module(converter.stem)
    _name_unknown(program, order["pre_tokenizer"])
    _add_metadata(program, order["metadata"], order["stop"])
    sys.argv = [str(converter), *order["arguments"]]
    program.main()


def _classes(program: Any) -> list[Any]:
    """The converter's base class and those that it derives for texts; their place has moved between releases."""
    return [program.ModelBase, *program.ModelBase.__subclasses__()]


def _name_unknown(program: Any, name: str | None) -> None:
    """Answer for a vocabulary that the converter does not know; one that it knows is left to it."""
    owner = next(made for made in _classes(program) if "get_vocab_base_pre" in vars(made))
    known: Callable[[Any, Any], str] = owner.get_vocab_base_pre

    def answer(self: Any, tokenizer: Any) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            if name is None:
                raise
            return name

    owner.get_vocab_base_pre = answer


def _add_metadata(program: Any, metadata: Mapping[str, str], stop: int | None) -> None:
    """Add our keys, and the token that ends a turn where the converter found none, before the header is written."""
    prepared = program.ModelBase.prepare_metadata

    def prepare(self: Any, *given: Any, **named: Any) -> None:
        prepared(self, *given, **named)
        for key, value in metadata.items():
            self.gguf_writer.add_string(key, value)

    program.ModelBase.prepare_metadata = prepare
    text = next(made for made in _classes(program) if "get_vocab_base_pre" in vars(made))
    with_vocabulary = text.prepare_metadata

    def end_turns(self: Any, *given: Any, **named: Any) -> None:
        with_vocabulary(self, *given, **named)
        named_already = any("tokenizer.ggml.eot_token_id" in part for part in self.gguf_writer.kv_data)
        if stop is not None and not named_already:
            self.gguf_writer.add_eot_token_id(stop)

    text.prepare_metadata = end_turns
