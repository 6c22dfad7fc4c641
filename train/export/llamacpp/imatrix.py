"""Mean squares of the inputs of a model's layers → llama.cpp's importance matrix, and a GGUF rounded by it.

The file has the format of llama.cpp's own tool, which its quantiser reads. The package cyllama contains the quantiser
but does not accept a matrix. In that case the file that it wrote defines the type of each weight, and the weights in
the matrix are quantised again by `ggml_quantize_chunk`, the function that the quantiser calls, from the package
xllamacpp.
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
from train.export.activations import MeanSquares

IMATRIX_KEY = "curate.imatrix"
"""The metadata key of a GGUF that describes its importance matrix."""

SUMS, COUNTS = ".in_sum2", ".counts"
UNQUANTISED_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Imatrix:
    """Mean squares by the names of a GGUF's weights, and how many conversations and tokens they are computed from."""

    squares: Mapping[str, MeanSquares]
    conversations: int
    tokens: int

    def as_text(self) -> str:
        """The description in the metadata of a file that was rounded by the matrix."""
        counts = {"conversations": self.conversations, "tokens": self.tokens, "weights": len(self.squares)}
        return json.dumps(counts)


def rename_to_gguf(squares: Mapping[str, MeanSquares], path: Path) -> dict[str, MeanSquares]:
    """Mean squares by Hugging Face's layer names → by the names of the weights in the GGUF at `path`.

    As in llama.cpp, only layers of blocks are included, not the output head. Experts, which share one tensor, are left
    out as well. Raises `ExportError` if none remains.
    """
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

    reader = GGUFReader(path)
    widths = {tensor.name: int(tensor.shape[0]) for tensor in reader.tensors if len(tensor.shape) == 2}
    kind = reader.fields["general.architecture"].contents()
    architecture = next(number for number, name in MODEL_ARCH_NAMES.items() if name == kind)
    names = get_tensor_name_map(architecture, reader.fields[f"{kind}.block_count"].contents())
    by_name = {names.get_name(layer.replace("language_model.", "")): square for layer, square in squares.items()}
    weights = {f"{name}.weight": square for name, square in by_name.items() if name and name.startswith("blk.")}
    blocks = {name: square for name, square in weights.items() if widths.get(name) == square.size}
    if not blocks:
        raise ExportError(f"{path} has none of the layers of this {kind} under a known name.", "Omit --imatrix.")
    return blocks


def write_imatrix(path: Path, imatrix: Imatrix, metadata: Mapping[str, str]) -> None:
    """Write llama.cpp's file: for each weight the sums of squares and the number of tokens, and `metadata`."""
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
    """Read a matrix that `write_imatrix` wrote."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    data = {tensor.name: tensor.data.reshape(-1) for tensor in reader.tensors}
    names = [name.removesuffix(SUMS) for name in data if name.endswith(SUMS)]
    counts = json.loads(reader.fields[IMATRIX_KEY].contents())
    squares = {name: np.array(data[name + SUMS] / data[name + COUNTS][0], dtype=np.float32) for name in names}
    return Imatrix(squares, counts["conversations"], counts["tokens"])


# ---------------------------------------------------------------------------------------------------- quantisation


def requantise(imatrix: Imatrix, original: Path, quantised: Path, to: Path, threads: int) -> None:
    """Write `quantised` to `to` with the weights of the matrix quantised again, from the 16-bit GGUF `original`."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(quantised)
    originals = {tensor.name: tensor for tensor in GGUFReader(original).tensors}
    writer = GGUFWriter(to, reader.fields["general.architecture"].contents())
    _copy_header(reader, writer)
    writer.add_string(IMATRIX_KEY, imatrix.as_text())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        square = imatrix.squares.get(tensor.name)
        if square is None or tensor.tensor_type.name in UNQUANTISED_TYPES:
            writer.write_tensor_data(tensor.data)
        else:
            writer.write_tensor_data(_quantise_tensor(tensor, originals[tensor.name], square, threads))
    writer.close()


def _copy_header(reader: Any, writer: Any) -> None:
    """Copy all keys, except those that the writer adds itself, and the layout of all tensors."""
    from gguf import GGUFValueType

    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)


def _quantise_tensor(tensor: Any, original: Any, square: MeanSquares, threads: int) -> npt.NDArray[np.uint8]:
    """The bytes of one weight in its type, rounded by the mean squares of its inputs; each thread takes some rows."""
    from gguf import dequantize

    weights = np.ascontiguousarray(dequantize(original.data, original.tensor_type), dtype=np.float32)
    rows, columns = weights.shape
    if square.size != columns:  # native code would read past the end of a shorter one
        raise ExportError(
            f"The matrix has {square.size} numbers for {tensor.name}, whose rows have {columns}.",
            "It belongs to another model: move the .imatrix file, and a new one is computed.",
        )
    output: npt.NDArray[np.uint8] = np.empty_like(tensor.data, order="C")
    quantize_chunk = _load_quantize_chunk()

    def quantise_rows(start: int, end: int) -> int:
        pointers = (weights.ctypes.data, output.ctypes.data)
        kind = int(tensor.tensor_type)
        return int(quantize_chunk(kind, *pointers, start * columns, end - start, columns, square.ctypes.data))

    bounds = np.linspace(0, rows, min(threads, rows) + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        written = sum(pool.map(quantise_rows, bounds[:-1], bounds[1:]))
    if written != output.nbytes:
        raise ExportError(
            f"The installed packages disagree on the size of {tensor.tensor_type.name}: {written} and {output.nbytes} "
            "bytes.",
            f"{install_command('gguf')} installs matching releases; or omit --imatrix.",
        )
    return output


def _load_quantize_chunk() -> Any:
    """`ggml_quantize_chunk` of the library in xllamacpp, as declared in ggml/include/ggml.h.

    Its arguments are type, weights, output, first weight, rows, columns and squares; it returns the bytes written.
    Raises `ExportError` if xllamacpp is not installed.
    """
    spec = find_spec("xllamacpp.xllamacpp") if find_spec("xllamacpp") else None
    if spec is None or spec.origin is None:
        raise ExportError(
            "The package xllamacpp, which quantises by an importance matrix, is not installed.", install_command("gguf")
        )
    function = ctypes.CDLL(spec.origin).ggml_quantize_chunk
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    function.restype = ctypes.c_size_t
    return function
