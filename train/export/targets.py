"""The kinds of export, in the order of a report. The serving parity check looks for and loads all of them."""

from __future__ import annotations

from train.export.gguf import GgufTarget
from train.export.merge import MergedModelTarget
from train.export.modelfile import OllamaTarget
from train.export.output import ExportTarget

EXPORT_TARGETS: tuple[ExportTarget, ...] = (MergedModelTarget(), GgufTarget(), OllamaTarget())
