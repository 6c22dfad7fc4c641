"""In: a merged model, quantised files, a contract. Out: what a person sees of them in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from schemas.terminal import note, print_table

if TYPE_CHECKING:
    from train.merging import Merged


def show_merged(merged: Merged) -> None:
    """Print where the model lies, how large it is, and how far from the adapter."""
    found = merged.difference
    facts = {
        "model": str(merged.folder),
        "size": f"{_size(merged.bytes)} in {merged.dtype}, {merged.shards} {'file' if merged.shards == 1 else 'files'}",
    }
    if found is None:
        facts["compared"] = "no: --no-check"
    else:
        facts |= {
            "compared": f"{found.rows} held-out conversations, {found.tokens:,} tokens",
            "largest difference of a logit": f"{found.largest:.3g}",
            "same next token": f"{found.same_choice:.2%}",
            "perplexity": f"{found.perplexity:.4g}, the adapter's {found.reference_perplexity:.4g}",
        }
    _facts(facts, f"Run {merged.run}, merged")
    note(f"Next: curate gguf {merged.run} · curate serve {merged.run} · curate ollama {merged.run}")


def _size(size: int) -> str:
    """Bytes as people say them.

    >>> _size(3_543_640), _size(16_060_000_000)
    ('3.5 MB', '16.1 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _facts(facts: dict[str, Any], title: str) -> None:
    print_table(({"": name, " ": value} for name, value in facts.items()), ["", " "], title=title)
