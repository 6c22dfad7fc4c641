"""In: a plan, a preview, a traced token. Out: what a person sees of it in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curate.cli.console import print_fields, print_line, print_table
from schemas.text import plural, printable

if TYPE_CHECKING:
    from rich.text import Text

    from train.engines.packing_isolation import Isolation
    from train.plan.plan import Plan
    from train.plan.preview import Preview, Segment, TokenOrigin
    from train.tokens.template_parity import TemplateReport

BAR = 30
"""Width of the longest bar of the histogram."""

PREFIX = 12
"""Digits of an id that are shown where there is no room for all; of a million two begin alike in one case of 500."""

OPEN, CLOSE, CUT = "⟦", "⟧", "✂"
"""Around what is learned, and before what is cut off, so that it can be told without colour too."""


def show_plan(plan: Plan) -> None:
    """Print the plan: what is trained, how long it is, what is lost, and whether `curate train` would start."""
    print_fields(dict(_facts(plan)), title=f"{plan.version}, planned")
    parts = ", a part counted as one" if plan.split_conversations else ""
    print_table(_bars(plan), ["tokens", "conversations", ""], title=f"Lengths of the train split{parts}")
    if plan.problems:
        columns = ["outcome", "code", "count", "cut", "example", "reason"]
        print_table(map(_problem, plan.problems), columns, title="Not trained as they are")
    if plan.too_long:
        print_table(plan.too_long, ["conversation", "tokens", "outcome", "cut"], title="The longest")
    if plan.warnings:
        lint = ({"trained, but look at it": what, "conversations": count} for what, count in plan.warnings.items())
        print_table(lint, ["trained, but look at it", "conversations"])
    print_line(f"curate train would refuse: {plan.refusal}\n  → {plan.hint}" if plan.refusal else "Ready to train.")


def show_preview(preview: Preview, *, tokens: bool = False) -> None:
    """Print one conversation with what is learned coloured and in brackets; with `tokens` each token below it."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    console.print(_headline(preview), markup=False, style="bold")
    console.print(_marked(preview.segments))
    if tokens:
        rows = (
            {"token": v.token, "id": str(v.id), "text": repr(v.text), "label": str(v.label)}
            for v in preview.token_views
        )
        print_table(rows, ["token", "id", "text", "label"])


def show_trace(traced: TokenOrigin) -> None:
    """Print where one token comes from, down to the line of each file."""
    place = f"turn {traced.turn} ({traced.role})" if traced.turn else "the template's own text"
    span = f", characters {traced.characters[0]} to {traced.characters[1]}" if traced.characters else ""
    learned = "learned" if traced.label >= 0 else "seen, not learned"
    print_line(f"Token {traced.token} of {traced.conversation}: id {traced.id}, {traced.text!r}, {learned}")
    print_line(f"  {traced.part}: {place}{span}")
    for origin in traced.origins:
        line = f":{origin['line']}" if origin["line"] is not None else ""
        print_line(f"  {origin['path']}{line} (row {origin['row']})")
    if not traced.origins:
        print_line("  no row of a source: the conversation was made in the store")


def show_isolation(isolation: Isolation) -> None:
    """Print the losses of each document alone, packed, and beside changed ones; then what that means."""
    where = f"{isolation.model} with {isolation.engine}, {isolation.dtype} on {isolation.device}"
    if not isolation.packed:
        print_line(f"{where}: trained one conversation a sequence here, so none can see another.")
        return
    rows = (
        {
            "document": n,
            "tokens": d.tokens,
            "loss alone": f"{d.alone:.6f}",
            "packed": f"{d.packed:.6f}",
            "moved by others": f"{d.moved:.1e}",
        }
        for n, d in enumerate(isolation.documents, start=1)
    )
    print_table(rows, ["document", "tokens", "loss alone", "packed", "moved by others"], title=f"One pack, {where}")
    print_line(f"Joined to one document, the last moves by {isolation.moved_when_joined:.1e} if the first is changed.")
    print_line(
        "Packed conversations do not see each other."
        if isolation.isolated
        else "They see each other, or the check sees nothing: --set train.packing=false trains them one by one."
    )


def show_reports(reports: Sequence[TemplateReport]) -> None:
    """Print what is proven of each template, and why one is not."""
    print_table(map(_report_row, reports), REPORT_COLUMNS)
    for report in reports:
        if report.problem:
            print_line(f"{report.names[0]} is not proven: {report.problem}")


def templates_page(reports: Sequence[TemplateReport]) -> str:
    """The reports as a page in Markdown, with what its columns mean."""
    from importlib.metadata import version

    packages = ("unsloth", "transformers", "tokenizers", "jinja2")
    head = [f"| {' | '.join(REPORT_COLUMNS)} |", f"|{' --- |' * len(REPORT_COLUMNS)}"]
    quoted = (
        {**_report_row(report), "ends with": " ".join(f"`{token}`" for token in report.stop.split())}
        for report in reports
    )
    cells = ([str(row[column]).replace("|", "\\|") for column in REPORT_COLUMNS] for row in quoted)
    lines = [*head, *(f"| {' | '.join(row)} |" for row in cells)]
    return f"""{PAGE_HEAD}
Versions: {", ".join(f"{name} {version(name)}" for name in packages)}.

{chr(10).join(lines)}
"""


REPORT_COLUMNS = ("template", "ids", "ends with", "begins", "prefix", "system", "tools", "reasoning", "spaces")
PAGE_HEAD = """# What is proven of each chat template

Written by `curate templates --markdown`, and a test compares it. Each row is a template with all of its names, tried
on eight conversations made for that: one question, three, a system message, outer white space, quoted markers, other
scripts, reasoning, tools with a call and its result.

- **ids**: how many have the ids of transformers' `apply_chat_template`, of those that the template takes;
- **ends with**: the tokens that end its answers, each of them learned exactly once an answer;
- **begins**: how often the token that begins a text stands there;
- **prefix**: whether what a server sends for an answer is the beginning of what is trained;
- **system**, **tools**, **reasoning**, **spaces**: what becomes of a system message, of tools and calls, of
  `<think>…</think>` (of which answers it is learned; `train.reasoning` changes that), of white space around words.

A conversation that a template refuses, or whose call it leaves out, is dropped with that reason, and the recipe
allows no drop by default.
"""


def _report_row(report: TemplateReport) -> dict[str, object]:
    return {
        "template": ", ".join(report.names),
        "ids": "not proven"
        if report.problem
        else f"{'?' if report.identical is None else report.identical} of {report.rendered}",
        "ends with": report.stop,
        "begins": report.bos_count,
        "prefix": report.prefix,
        "system": report.system,
        "tools": report.tools,
        "reasoning": report.reasoning,
        "spaces": report.whitespace,
    }


def _facts(plan: Plan) -> Iterable[tuple[str, object]]:
    yield "template", f"{plan.template} ({plan.template_digest[:12]}), asks with {plan.generation_prompt!r}"
    yield "an answer ends with", " ".join(plan.end_of_turn)
    yield "conversations", ", ".join(f"{count:,} {split}" for split, count in plan.conversations.items())
    yield "outcomes", ", ".join(_outcome(outcome, count, plan) for outcome, count in plan.outcomes.items())
    yield (
        "tokens",
        f"{plan.tokens:,}, of which {plan.loss_tokens:,} learned ({_percent(plan.loss_tokens, plan.tokens)})",
    )
    yield "cut", f"{plan.tokens_cut:,} tokens"
    yield "longest", f"{plan.longest:,} of {plan.max_length:,} tokens"
    packs = f"{plan.packs:,}, {plan.fill:.1%} full"
    yield "packs", packs if plan.packing else f"none, a row a conversation; packed, as on a GPU, there were {packs}"
    yield "steps", f"{plan.steps:,} ({plan.steps_per_epoch:,} an epoch)"


def _outcome(outcome: str, count: int, plan: Plan) -> str:
    """The count of an outcome; for `split` the number of conversations and of windows."""
    if outcome == "split" and count:
        return f"{plan.split_conversations:,} split into {count:,} parts"
    return f"{count:,} {outcome}"


def _problem(found: Mapping[str, Any]) -> dict[str, object]:
    """A row that has room for its reason in 80 columns; an id's beginning is what `curate preview --id` takes."""
    return {**found, "count": found["conversations"], "cut": found["tokens_cut"], "example": found["example"][:PREFIX]}


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _bars(plan: Plan) -> Iterable[dict[str, object]]:
    most = max((entry["conversations"] for entry in plan.lengths), default=1)
    for entry in plan.lengths:
        over = "  longer than max_length" if entry["up_to"] > plan.max_length else ""
        bar = "█" * max(1, round(BAR * entry["conversations"] / most))
        yield {"tokens": f"≤ {entry['up_to']:,}", "conversations": entry["conversations"], "": bar + over}


def _headline(preview: Preview) -> str:
    share = f"{plural(preview.tokens, 'token')}, {preview.loss_tokens:,} learned"
    reason = f": {printable(preview.reason)}" if preview.reason else ""
    window = f"  window {preview.window}" if preview.window else ""
    return f"{preview.id}{window}  {preview.split}  {share}  {preview.outcome}{reason}"


def _marked(segments: Iterable[Segment]) -> Text:
    """The rendering as rich text; characters that a terminal would obey are shown instead."""
    from rich.text import Text

    text, cut = Text(), False
    for segment in segments:
        if not segment.trained and not cut:
            text.append(f"{CUT} not trained from here\n", "red")
            cut = True
        words = printable(segment.text)
        style = "dim strike" if cut else "green" if segment.in_loss else "dim"
        text.append(f"{OPEN}{words}{CLOSE}" if segment.in_loss else words, style)
    return text
