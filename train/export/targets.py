"""The kinds of export, in the order of a report. The serving parity check looks for and loads all of them."""

from __future__ import annotations

from train.export.gguf import GGUF
from train.export.merge import MERGED_MODEL
from train.export.modelfile import OLLAMA
from train.export.output import ExportTarget

EXPORT_TARGETS: tuple[ExportTarget, ...] = (MERGED_MODEL, GGUF, OLLAMA)
