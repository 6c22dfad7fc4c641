"""In: a merged model, quantised files, a contract. Out: what a person sees of them in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from curate.cli.console import note, print_fields, print_json, print_line, print_table
from schemas.text import plural

if TYPE_CHECKING:
    from train.checks.serving_parity import Agreement, Contract
    from train.export.merge import Merged
    from train.export.modelfile import ForOllama
    from train.export.quant_choice import Quantised
    from train.inference.openai_client import OpenAIClient


def show_merged(merged: Merged) -> None:
    """Print where the model lies, how large it is, and how far from the adapter."""
    found = merged.difference
    facts = {
        "model": str(merged.folder),
        "size": f"{_size(merged.bytes)} in {merged.dtype}, {merged.shards} {'file' if merged.shards == 1 else 'files'}",
    }
    if merged.already:
        facts["written"] = "nothing: it was there already, its papers and the length of its weights as they should be"
    if found is None:
        facts["compared"] = "no: --no-check"
    else:
        facts |= {
            "compared": f"{plural(found.rows, 'held-out conversation')}, {found.tokens:,} tokens",
            "largest difference of a logit": f"{found.largest:.3g}",
            "same next token": f"{found.same_choice:.2%}",
            "perplexity": f"{found.perplexity:.4g}, the adapter's {found.reference_perplexity:.4g}",
        }
    print_fields(facts, f"Run {merged.run}, merged")
    note(f"Next: curate gguf {merged.run} · curate serve {merged.run} · curate ollama {merged.run}")


def show_quantised(files: Sequence[Quantised]) -> None:
    """Print each file with its size and what it costs, and which to take by what rule."""
    from train.export.quant_choice import KL_TO_TAKE, PERPLEXITY_TO_TAKE

    columns = ["file", "size", "PPL", "more", "KL", "same token", "take"]
    print_table((_file_row(file, place) for place, file in enumerate(files)), columns, title=str(files[0].path.parent))
    if files[0].difference is None:
        note("Not measured: --no-check.")
        return
    note(f"{files[0].kind} is compared with the merged model, the others with {files[0].kind}.")
    note(
        f"Take the smallest with a divergence (KL) of at most {KL_TO_TAKE} nats per token and at most "
        f"{PERPLEXITY_TO_TAKE - 1:.0%} more perplexity (PPL), named where a file is over; "
        f"measured on {files[0].difference.tokens:,} held-out tokens."
    )


def _file_row(file: Quantised, place: int) -> dict[str, Any]:
    """As narrow as it can be said: names that are to be typed stay whole in 80 columns."""
    from train.export.quant_choice import failed_limits, more_perplexity

    found, more = file.difference, more_perplexity(file.difference)
    numbers = {
        "PPL": found and f"{found.perplexity:.4g}",
        "more": found and (f"{more:+.2%}" if place else f"({more:+.2%})"),
        "KL": found and (f"{found.kl:.2g}" if place else f"({found.kl:.2g})"),
        "same token": found and f"{found.same_choice:.1%}",
    }
    over = ", ".join(failed_limits(found)) if place else ""
    return {"file": file.path.name, "size": _size(file.bytes), **numbers, "take": "←" if file.take else over}


def show_address(address: OpenAIClient, *, as_json: bool) -> None:
    """Print where a server listens and its key, as soon as it does."""
    if as_json:
        print_json({"url": f"{address.url}/v1", "key": address.key, "model": address.model})
    else:
        print_fields({"url": f"{address.url}/v1", "key": address.key, "model": address.model}, "Serving")
        note("Ctrl-C stops it.")
    sys.stdout.flush()


def show_ollama(written: ForOllama) -> None:
    """Print where the Modelfile lies, and what to type."""
    print_fields({"Modelfile": str(written.folder / "Modelfile"), "weights": str(written.gguf)}, "For Ollama")
    note(f"Next: ollama create {written.name} -f {written.folder / 'Modelfile'} && ollama run {written.name}")


def show_contract(contract: Contract) -> None:
    """Print what each engine made of the conversations, the first difference of each, and the verdict."""
    print_table((_engine_row(found) for found in contract.agreements), ["engine", "equal", "stops", "verdict"])
    for found in contract.agreements:
        for line in _difference_lines(found):
            print_line(line)
    for what, why in contract.absent.items():
        note(f"Not asked: {what} ({why}).")
    if contract.unrendered:
        note(f"{contract.unrendered} conversations or probes are none that the template renders; nobody is asked them.")
    verdict = "the same tokens" if contract.kept else "NOT the same tokens"
    engines, conversations = len(contract.agreements), plural(contract.conversations, "conversation")
    print_line(
        f"Run {contract.run}: {verdict} in {plural(engines, 'engine')}, over {conversations} of "
        f"{contract.version} and odd ones, in {contract.seconds:.1f} s."
    )


def _engine_row(found: Agreement) -> dict[str, Any]:
    return {
        "engine": found.engine,
        "equal": f"{found.equal} of {found.conversations}" + (f", refuses {found.unserved}" if found.unserved else ""),
        "stops": "✗" if found.stops else "✓",
        "verdict": "✓" if found.kept else "✗ differs",
    }


def _difference_lines(found: Agreement) -> Iterator[str]:
    first = found.first
    if first is not None:
        yield f"{found.engine}, {first.conversation}, {first.where}, token {first.token}:"
        yield f"  behind  {first.before!r}"
        yield f"  trained {first.trained!r}"
        yield f"  served  {first.served!r}"
        if first.why:
            yield f"  since   {first.why}"
    for problem in found.stops:
        yield f"{found.engine} does not stop: {problem}"


def _size(size: int) -> str:
    """Bytes as people say them.

    >>> _size(3_543_640), _size(16_060_000_000)
    ('3.5 MB', '16.1 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
