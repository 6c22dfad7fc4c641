"""Training plans, memory estimates, previews, and checks of packing and templates → terminal output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from curate.cli.console import print_fields, print_line, print_table
from schemas.text import plural, printable

if TYPE_CHECKING:
    from rich.text import Text

    from train.engines.packing_isolation import Isolation
    from train.plan.memory import MemoryEstimate
    from train.plan.plan import Plan
    from train.plan.preview import Preview, Segment, TokenOrigin
    from train.tokens.template_parity import TemplateReport

BAR_WIDTH = 30
"""Width of the longest bar of the histogram."""

ID_PREFIX = 12
"""Digits of an id in a narrow table; among a million ids two have the same prefix in one case of 500."""

LOSS_START, LOSS_END, CUT = "⟦", "⟧", "✂"
"""Marks around tokens in the loss and before the cut, so that they are visible without colour."""


def show_plan(plan: Plan, options: str = "") -> None:
    """Print the size of a training run, its dropped and truncated conversations, and whether it would start.

    `options` are those of the command that trains as planned, each after a space.
    """
    print_fields(dict(_plan_fields(plan)), title=f"Training plan for {plan.version}")
    unit = ", each window counted" if plan.split_conversations else ""
    print_table(_histogram(plan), ["tokens", "conversations", ""], title=f"Lengths of the train split{unit}")
    if plan.problems:
        columns = ["outcome", "code", "count", "cut", "example", "reason"]
        print_table(map(_problem_row, plan.problems), columns, title="Truncated, split or dropped conversations")
    if plan.too_long:
        print_table(plan.too_long, ["conversation", "tokens", "outcome", "cut"], title="Longest conversations")
    if plan.warnings:
        warnings = [{"warning": name, "conversations": count} for name, count in plan.warnings.items()]
        print_table(warnings, ["warning", "conversations"], title="Warnings (these conversations are trained on)")
    if plan.refusal:
        print_line(f"curate train would refuse to start: {plan.refusal}\n  → {plan.hint}")
    else:
        print_line(f"Ready to train. Next: curate train {plan.version}{options}")


def _plan_fields(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "template", f"{plan.template} ({plan.template_digest[:12]})"
    yield "generation prompt", repr(plan.generation_prompt)
    yield "end of turn", " ".join(plan.end_of_turn)
    yield "conversations", ", ".join(f"{count:,} {split}" for split, count in plan.conversations.items())
    if plan.repeats:
        yield "repeated", f"{plan.repeats:,} further uses in an epoch (mix), counted in tokens, packs and steps"
    yield "outcomes", ", ".join(_outcome(outcome, count, plan) for outcome, count in plan.outcomes.items())
    share = f" ({plan.loss_tokens / plan.tokens:.0%})" if plan.tokens else ""
    yield "tokens", f"{plan.tokens:,}, of which {plan.loss_tokens:,} in the loss{share}"
    yield "cut", plural(plan.tokens_cut, "token")
    yield "longest", f"{plan.longest:,} tokens (max_length {plan.max_length:,})"
    packs = f"{plan.packs:,}, {plan.fill:.1%} full"
    yield "packs", packs if plan.packing else f"off: one conversation per row; with packing, as on a GPU: {packs}"
    yield "steps", f"{plan.steps:,} ({plan.steps_per_epoch:,} per epoch)"


def _outcome(outcome: str, count: int, plan: Plan) -> str:
    """The count of an outcome; for `split` the number of conversations and of windows."""
    if outcome == "split" and count:
        return f"{plan.split_conversations:,} split into {plural(count, 'window')}"
    return f"{count:,} {outcome}"


def _histogram(plan: Plan) -> Iterator[dict[str, object]]:
    most = max((entry["conversations"] for entry in plan.lengths), default=1)
    for entry in plan.lengths:
        over = "  longer than max_length" if entry["up_to"] > plan.max_length else ""
        bar = "█" * max(1, round(BAR_WIDTH * entry["conversations"] / most))
        yield {"tokens": f"≤ {entry['up_to']:,}", "conversations": entry["conversations"], "": bar + over}


def _problem_row(row: Mapping[str, Any]) -> dict[str, object]:
    """The row with short headings and an id prefix, which `curate preview --id` accepts, to fit into 80 columns."""
    return {**row, "count": row["conversations"], "cut": row["tokens_cut"], "example": row["example"][:ID_PREFIX]}


def show_memory(estimate: MemoryEstimate) -> None:
    """Print the memory of a training run on a GPU: parts that are always needed, then each batch configuration."""
    parts = ", ".join(f"{name} {size:.1f}" for name, size in estimate.parts.items())
    title = f"{estimate.gpu.name}, {estimate.limit:.1f} GiB: {parts} and activations"
    columns = ["checkpointing", "batch", "activations", "GiB", "tokens/s", "time"]
    print_table((_batch_row(row, estimate) for row in estimate.configs), columns, title=title)
    if estimate.best is None:
        print_line("No batch size fits. Use a smaller max_length, rank or model.")
    elif estimate.gpu.tflops is None:
        print_line("The speed of this GPU is unknown; batch = auto measures it.")


def _batch_row(config: Mapping[str, Any], estimate: MemoryEstimate) -> dict[str, str]:
    seconds = config["seconds"]
    mark = " ←" if config is estimate.best else "" if config["fits"] else " too much"
    return {
        "checkpointing": config["checkpointing"] or "none",
        "batch": f"{config['batch']}x{config['accumulate']}",
        "activations": f"{config['activations']:.1f}",
        "GiB": f"{config['gib']:.1f}{mark}",
        "tokens/s": f"{config['tokens_per_second']:,.0f}" if seconds else "",
        "time": str(timedelta(seconds=round(seconds))) if seconds else "",
    }


def show_previews(previews: Iterable[Preview], *, tokens: bool = False) -> None:
    """Print conversations with the tokens in the loss coloured and in brackets; `tokens` lists all of them."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for preview in previews:
        console.print(_headline(preview), markup=False, style="bold")
        console.print(_marked_text(preview.segments))
        if tokens:
            rows = (
                {"token": view.token, "id": str(view.id), "text": repr(view.text), "label": str(view.label)}
                for view in preview.token_views
            )
            print_table(rows, ["token", "id", "text", "label"])


def _headline(preview: Preview) -> str:
    counts = f"{plural(preview.tokens, 'token')}, {preview.loss_tokens:,} in the loss"
    reason = f": {printable(preview.reason)}" if preview.reason else ""
    window = f"  window {preview.window}" if preview.window else ""
    return f"{preview.id}{window}  {preview.split}  {counts}  {preview.outcome}{reason}"


def _marked_text(segments: Iterable[Segment]) -> Text:
    from rich.text import Text

    text, cut = Text(), False
    for segment in segments:
        if not segment.trained and not cut:
            text.append(f"{CUT} not trained from here\n", "red")
            cut = True
        part = printable(segment.text)
        style = "dim strike" if cut else "green" if segment.in_loss else "dim"
        text.append(f"{LOSS_START}{part}{LOSS_END}" if segment.in_loss else part, style)
    return text


def show_token_origin(origin: TokenOrigin) -> None:
    """Print the turn, the file and the line that a token comes from."""
    turn = f"turn {origin.turn} ({origin.role})" if origin.turn else "text of the template"
    span = f", characters {origin.characters[0]} to {origin.characters[1]}" if origin.characters else ""
    loss = "in the loss" if origin.label >= 0 else "not in the loss"
    print_line(f"Token {origin.token} of {origin.conversation}: id {origin.id}, {origin.text!r}, {loss}")
    print_line(f"  {origin.part}: {turn}{span}")
    for source in origin.origins:
        line = f":{source['line']}" if source["line"] is not None else ""
        print_line(f"  {source['path']}{line} (row {source['row']})")
    if not origin.origins:
        print_line("  no source row: the conversation was created in the store")


def show_isolation(isolation: Isolation) -> None:
    """Print the loss of each document alone, packed and next to changed documents, and the result of the check."""
    setting = f"{isolation.model} with {isolation.engine}, {isolation.dtype} on {isolation.device}"
    if not isolation.packed:
        print_line(f"{setting}: packing is off; conversations are trained in separate rows.")
        return
    rows = (
        {
            "document": number,
            "tokens": document.tokens,
            "loss alone": f"{document.alone:.6f}",
            "loss packed": f"{document.packed:.6f}",
            "largest change": f"{document.moved:.1e}",
        }
        for number, document in enumerate(isolation.documents, start=1)
    )
    columns = ["document", "tokens", "loss alone", "loss packed", "largest change"]
    print_table(rows, columns, title=f"One pack, others changed: {setting}")
    print_line(f"Control, all joined to one document: the last loss changes by {isolation.moved_when_joined:.1e}.")
    print_line(
        "Packed conversations do not attend to each other."
        if isolation.isolated
        else "Packed conversations attend to each other, or this check cannot tell. "
        "Turn packing off: --set train.packing=false"
    )


def show_templates(reports: Sequence[TemplateReport]) -> None:
    """Print the checks of each template, and the problem of those that do not pass."""
    print_table(map(_template_row, reports), TEMPLATE_COLUMNS)
    for report in reports:
        if report.problem:
            print_line(f"{report.names[0]} does not pass: {report.problem}")


def templates_page(reports: Sequence[TemplateReport]) -> str:
    """The reports as a page in Markdown, with the meaning of its columns."""
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("unsloth", "transformers", "tokenizers", "jinja2"))
    rows = [_template_row(report) for report in reports]
    lines = [
        f"| {' | '.join(TEMPLATE_COLUMNS)} |",
        f"|{' --- |' * len(TEMPLATE_COLUMNS)}",
        *(f"| {' | '.join(_markdown_cells(row))} |" for row in rows),
    ]
    return f"{PAGE_HEAD}\nVersions: {packages}.\n\n{chr(10).join(lines)}\n"


def _markdown_cells(row: Mapping[str, str]) -> Iterator[str]:
    for column, cell in row.items():
        code = " ".join(f"`{token}`" for token in cell.split()) if column == "end of turn" else cell
        yield code.replace("|", "\\|")


TEMPLATE_COLUMNS = ("template", "ids", "end of turn", "bos", "prefix", "system", "tools", "reasoning", "spaces")
PAGE_HEAD = """# Checks of each chat template

Written by `curate templates --markdown`; a test compares it. Each row is a template with all of its names, checked with
eight conversations: one question, three questions, a system message, outer white space, quoted markers, other scripts,
reasoning, and tools with a call and its result.

- **ids**: conversations with the same token ids as from transformers' `apply_chat_template`, of those that the template
  accepts;
- **end of turn**: the tokens that end an answer; each is in the loss exactly once per answer;
- **bos**: how often the beginning-of-sequence token occurs;
- **prefix**: whether the prompt that a server sends for an answer is a prefix of the training text;
- **system**, **tools**, **reasoning**, **spaces**: the handling of a system message, of tools and calls, of
  `<think>…</think>` (the answers with reasoning in the loss; `train.reasoning` changes that), and of outer white space.

A conversation that a template refuses, or whose tool call it leaves out, is dropped with that reason, and the recipe
allows no drop by default.
"""


def _template_row(report: TemplateReport) -> dict[str, str]:
    identical = "?" if report.identical is None else report.identical
    return {
        "template": ", ".join(report.names),
        "ids": "failed" if report.problem else f"{identical} of {report.rendered}",
        "end of turn": report.stop,
        "bos": str(report.bos_count),
        "prefix": report.prefix,
        "system": report.system,
        "tools": report.tools,
        "reasoning": report.reasoning,
        "spaces": report.whitespace,
    }
