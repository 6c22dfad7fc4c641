"""In: mean squares of the inputs of a model's layers. Out: llama.cpp's importance matrix, and a GGUF rounded by it.

The file is what llama.cpp's own tool writes, and its quantiser reads. The package cyllama has the quantiser but lets
nobody hand it a matrix; there the file that it made says which type each weight has, and those of the matrix are
rounded again by `ggml_quantize_chunk`, the function that the quantiser itself calls, out of the package xllamacpp.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.environment import install_command
from schemas.errors import ExportError

Floats = npt.NDArray[np.float32]

IMATRIX_KEY = "curate.imatrix"
"""The key of a GGUF's metadata that says what it was rounded by."""

SUMS, COUNTS = ".in_sum2", ".counts"
PLAIN_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Imatrix:
    """The mean squares by the names of a GGUF's weights; over so many conversations and tokens."""

    squares: Mapping[str, Floats]
    conversations: int
    tokens: int

    def as_text(self) -> str:
        """What a file says that was rounded by it."""
        counts = {"conversations": self.conversations, "tokens": self.tokens, "weights": len(self.squares)}
        return json.dumps(counts)


def by_gguf_names(squares: Mapping[str, Floats], path: Path) -> dict[str, Floats]:
    """The mean squares of Hugging Face's layers by the names that the GGUF at `path` has for their weights.

    As in llama.cpp only those of blocks: what turns the last state into words is left as it is. So are experts, which
    are many weights in one. Raises `ExportError` where none is left.
    """
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

    reader = GGUFReader(path)
    inputs = {tensor.name: int(tensor.shape[0]) for tensor in reader.tensors if len(tensor.shape) == 2}
    fields = reader.fields
    kind = fields["general.architecture"].contents()
    architecture = next(number for number, name in MODEL_ARCH_NAMES.items() if name == kind)
    names = get_tensor_name_map(architecture, fields[f"{kind}.block_count"].contents())
    found = {names.get_name(layer.replace("language_model.", "")): square for layer, square in squares.items()}
    named = {f"{name}.weight": square for name, square in found.items() if name and name.startswith("blk.")}
    blocks = {name: square for name, square in named.items() if inputs.get(name) == square.size}
    if not blocks:
        raise ExportError(f"None of the layers of this {kind} has a name in {path}.", "Leave --imatrix away.")
    return blocks


def write_imatrix(path: Path, imatrix: Imatrix, metadata: Mapping[str, str]) -> None:
    """Write llama.cpp's file: for each weight the sums of the squares and how many they are, and `metadata`."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [metadata["curate.version"]])
    writer.add_uint32("imatrix.chunk_count", imatrix.conversations)
    writer.add_uint32("imatrix.chunk_size", max(1, imatrix.tokens // imatrix.conversations))
    for key, value in {**metadata, IMATRIX_KEY: imatrix.as_text()}.items():
        writer.add_string(key, value)
    for name, square in sorted(imatrix.squares.items()):
        writer.add_tensor(name + SUMS, (square * np.float32(imatrix.tokens)).reshape(1, -1))
        writer.add_tensor(name + COUNTS, np.array([[imatrix.tokens]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """The matrix that `write_imatrix` left at `path`."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    data = {tensor.name: tensor.data.reshape(-1) for tensor in reader.tensors}
    names = [name.removesuffix(SUMS) for name in data if name.endswith(SUMS)]
    said = json.loads(reader.fields[IMATRIX_KEY].contents())
    squares = {name: np.array(data[name + SUMS] / data[name + COUNTS][0], dtype=np.float32) for name in names}
    return Imatrix(squares, said["conversations"], said["tokens"])


# ------------------------------------------------------------------------------------------------------- rounding


def round_by(imatrix: Imatrix, original: Path, quantised: Path, to: Path, threads: int) -> None:
    """Write `quantised` to `to` with the weights of the matrix rounded anew, out of the GGUF in 16 bits, `original`."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(quantised)
    exact = {tensor.name: tensor for tensor in GGUFReader(original).tensors}
    writer = GGUFWriter(to, reader.fields["general.architecture"].contents())
    _copy_header(reader, writer)
    writer.add_string(IMATRIX_KEY, imatrix.as_text())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        square = imatrix.squares.get(tensor.name)
        if square is None or tensor.tensor_type.name in PLAIN_TYPES:
            writer.write_tensor_data(tensor.data)
        else:
            writer.write_tensor_data(_rounded(tensor, exact[tensor.name], square, threads))
    writer.close()


def _copy_header(reader: Any, writer: Any) -> None:
    """All keys and the forms of all tensors; what the writer writes by itself is left to it."""
    from gguf import GGUFValueType

    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)


def _rounded(tensor: Any, exact: Any, square: Floats, threads: int) -> npt.NDArray[np.uint8]:
    """The bytes of one weight in its type, rounded by the mean squares of its inputs, some rows by each thread."""
    from gguf import dequantize

    weights = np.ascontiguousarray(dequantize(exact.data, exact.tensor_type), dtype=np.float32)
    rows, columns = weights.shape
    _check_width(square, columns, tensor.name)
    made: npt.NDArray[np.uint8] = np.empty_like(tensor.data, order="C")
    quantise = _ggml()

    def part(start: int, end: int) -> int:
        pointers = (weights.ctypes.data, made.ctypes.data)
        number = int(tensor.tensor_type)
        return int(quantise(number, *pointers, start * columns, end - start, columns, square.ctypes.data))

    bounds = np.linspace(0, rows, min(threads, rows) + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        written = sum(pool.map(part, bounds[:-1], bounds[1:]))
    _check_length(written, made, tensor.tensor_type.name)
    return made


def _check_width(square: Floats, columns: int, name: str) -> None:
    """Raise `ExportError` for a matrix beyond whose end native code would read."""
    if square.size != columns:
        raise ExportError(
            f"The matrix has {square.size} numbers for {name}, whose rows have {columns}.",
            "It is of another model: move the .imatrix file away, and it is made anew.",
        )


def _check_length(written: int, made: npt.NDArray[np.uint8], kind: str) -> None:
    if written != made.nbytes:
        raise ExportError(
            f"The installed packages do not agree on {kind}: {written} and {made.nbytes} bytes.",
            f"{install_command('gguf')} brings releases that do; or leave --imatrix away.",
        )


def _ggml() -> Any:
    """`ggml_quantize_chunk` of the library in xllamacpp, as ggml/include/ggml.h declares it.

    From (type, weights, to, first weight, rows, columns, squares) it gives the bytes that it has written. Raises
    `ExportError` where it is not installed.
    """
    spec = find_spec("xllamacpp.xllamacpp") if find_spec("xllamacpp") else None
    if spec is None or spec.origin is None:
        raise ExportError(
            "The package xllamacpp is not installed; its library rounds by a matrix.", install_command("gguf")
        )
    function = ctypes.CDLL(spec.origin).ggml_quantize_chunk
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    function.restype = ctypes.c_size_t
    return function
