"""A merged model, GGUF files, a server, a Modelfile or a parity report → text in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from curate.cli.console import note, print_fields, print_json, print_line, print_table
from schemas.text import plural

if TYPE_CHECKING:
    from train.checks.serving_parity import EngineParity, ParityReport
    from train.export.merge import MergedModel
    from train.export.modelfile import OllamaExport
    from train.export.quant_choice import GgufFile
    from train.inference.openai_client import OpenAIClient


def show_merged(merged: MergedModel) -> None:
    """Print the folder and size of a merged model and its difference from the adapter."""
    comparison = merged.comparison
    fields = {
        "model": str(merged.folder),
        "size": f"{_format_size(merged.bytes)} in {merged.dtype}, {plural(merged.shards, 'file')}",
    }
    if merged.already_exists:
        fields["merge"] = "skipped: an identical merged model exists (metadata and file sizes match)"
    if comparison is None:
        fields["comparison"] = "skipped: --no-check"
    else:
        fields |= {
            "comparison": f"{plural(comparison.rows, 'held-out conversation')}, {plural(comparison.tokens, 'token')}",
            "largest logit difference": f"{comparison.largest:.3g}",
            "top-1 agreement": f"{comparison.top1_agreement:.2%}",
            "perplexity": f"{comparison.perplexity:.4g}, with the adapter {comparison.reference_perplexity:.4g}",
        }
    print_fields(fields, f"Run {merged.run}, merged")
    note(f"Next: curate gguf {merged.run} · curate serve {merged.run} · curate ollama {merged.run}")


def show_gguf(files: Sequence[GgufFile]) -> None:
    """Print each file with its size and measurements, and the rule of the recommendation."""
    from train.export.quant_choice import MAX_KL, MAX_PERPLEXITY_RATIO

    columns = ["file", "size", "PPL", "increase", "KL", "top-1", "pick"]
    rows = (_gguf_row(file, is_reference=number == 0) for number, file in enumerate(files))
    print_table(rows, columns, title=str(files[0].path.parent))
    reference = files[0]
    if reference.comparison is None:
        note("Not measured: --no-check.")
        return
    note(f"{reference.kind} is compared with the merged model, the others with {reference.kind}.")
    note(
        f"← marks the recommended file: the smallest with a divergence (KL) of at most {MAX_KL} nats per token and a "
        f"perplexity (PPL) increase of at most {MAX_PERPLEXITY_RATIO - 1:.0%}; exceeded limits are listed instead. "
        f"Measured on {reference.comparison.tokens:,} held-out tokens."
    )


def _gguf_row(file: GgufFile, *, is_reference: bool) -> dict[str, Any]:
    """One table row; the numbers of the reference, which no limit applies to, are in brackets."""
    comparison, increase = file.comparison, file.perplexity_increase
    brackets = "({})" if is_reference else "{}"
    return {
        "file": file.path.name,
        "size": _format_size(file.bytes),
        "PPL": comparison and f"{comparison.perplexity:.4g}",
        "increase": comparison and brackets.format(f"{increase:+.2%}"),
        "KL": comparison and brackets.format(f"{comparison.kl:.2g}"),
        "top-1": comparison and f"{comparison.top1_agreement:.1%}",
        "pick": "←" if file.recommended else "" if is_reference else ", ".join(file.exceeded_limits),
    }


def show_server(client: OpenAIClient, *, as_json: bool) -> None:
    """Print the URL, API key and model of a server that has just started."""
    fields = {"url": f"{client.url}/v1", "key": client.key, "model": client.model}
    if as_json:
        print_json(fields)
    else:
        print_fields(fields, "Serving")
        note("Press Ctrl-C to stop.")
    sys.stdout.flush()


def show_ollama(export: OllamaExport) -> None:
    """Print the paths of a Modelfile and its GGUF, and the commands that use it."""
    modelfile = export.folder / "Modelfile"
    print_fields({"Modelfile": str(modelfile), "weights": str(export.gguf)}, "Ollama")
    note(f"Next: ollama create {export.name} -f {modelfile} && ollama run {export.name}")


def show_parity(report: ParityReport) -> None:
    """Print the result of each engine, its first mismatch, and the overall result."""
    print_table(map(_engine_row, report.engines), ["engine", "equal", "stops", "result"])
    for engine in report.engines:
        for line in _mismatch_lines(engine):
            print_line(line)
        if engine.note:
            note(f"{engine.engine}: {engine.note}.")
    for name, how in report.missing.items():
        note(f"Not checked: {name} ({how}).")
    if report.unrendered:
        note(f"Skipped {plural(report.unrendered, 'conversation')} that the template cannot render.")
    result = "token ids equal training" if report.passed else "token ids DIFFER from training"
    print_line(
        f"Run {report.run}: {result} in {plural(len(report.engines), 'engine')}, on "
        f"{plural(report.conversations, 'conversation')} of {report.version} and probes, in {report.seconds:.1f} s."
    )


def _engine_row(engine: EngineParity) -> dict[str, Any]:
    skipped = f", {engine.skipped} skipped" if engine.skipped else ""
    return {
        "engine": engine.engine,
        "equal": f"{engine.equal} of {engine.conversations}{skipped}",
        "stops": "✗" if engine.stop_problems else "✓",
        "result": "✓" if engine.passed else "✗ differs",
    }


def _mismatch_lines(engine: EngineParity) -> Iterator[str]:
    mismatch = engine.first_mismatch
    if mismatch is not None:
        yield f"{engine.engine}, {mismatch.conversation}, {mismatch.where}, token {mismatch.token}:"
        yield f"  after   {mismatch.before!r}"
        yield f"  trained {mismatch.trained!r}"
        yield f"  served  {mismatch.served!r}"
        if mismatch.reason:
            yield f"  reason  {mismatch.reason}"
    for problem in engine.stop_problems:
        yield f"{engine.engine} does not stop: {problem}"


def _format_size(size: int) -> str:
    """Bytes as megabytes or gigabytes.

    >>> _format_size(3_543_640), _format_size(16_060_000_000)
    ('3.5 MB', '16.1 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
