"""In: a training as it goes, runs, a verification, a retraining. Out: what a person sees of it in the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from curate.cli.console import note, print_fields, print_line, print_table
from schemas.text import plural

if TYPE_CHECKING:
    from schemas.manifest import Manifest
    from schemas.run import Run
    from train.engines import Step
    from train.plan.memory import MemoryEstimate
    from train.runs.fit import PreparedRun
    from train.runs.retrain import Retraining
    from train.runs.verify import Check, Verification

LINES = 10
"""Progress lines of a run whose stderr is no terminal."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is called with each step, and with how many of the conversations are rendered."""

    step: Callable[[Step], None]
    rendering: Callable[[int, int], None]


@contextmanager
def progress() -> Iterator[Report]:
    """What to tell of a training: it moves a bar on a terminal; anywhere else it writes ten lines of steps."""
    messages = logging.getLogger("train")
    level, handler = messages.level, _Notes()
    messages.addHandler(handler)
    messages.setLevel(logging.INFO)
    try:
        with _bar() if sys.stderr.isatty() else _lines() as report:
            yield report
    finally:
        messages.removeHandler(handler)
        messages.setLevel(level)


class _Notes(logging.Handler):
    """Our own log messages, as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None, state="")

        def report(step: Step) -> None:
            bar.update(task, description="training", total=step.steps, completed=step.step, state=_state(step))

        def rendering(done: int, total: int) -> None:
            rendered = done == total
            bar.update(
                task,
                description="loading" if rendered else "rendering",
                total=total,
                completed=0 if rendered else done,
            )

        yield Report(report, rendering)


@contextmanager
def _lines() -> Iterator[Report]:
    def report(step: Step) -> None:
        if step.step == step.steps or step.step % max(1, step.steps // LINES) == 0:
            note(_state(step))

    yield Report(report, lambda *_: None)


def _state(step: Step) -> str:
    held_out = "" if step.eval_loss is None else f"  held-out {step.eval_loss:.3f}"
    pace = f"{step.speed:,.0f} tokens/s  {step.memory:.1f} GiB  {timedelta(seconds=round(step.left))} left"
    return f"step {step.step:,}/{step.steps:,}  loss {step.loss:.3f}{held_out}  {pace}"


def show_budget(budget: MemoryEstimate) -> None:
    """Print what a training would take on a chip: memory by part, then each size of a pass."""
    parts = ", ".join(f"{name} {size:.1f}" for name, size in budget.parts.items())
    title = f"{budget.gpu.name}, {budget.limit:.1f} GiB: {parts} and activations"
    columns = ["checkpointing", "a step", "activations", "GiB", "tokens/s", "time"]
    print_table((_size_row(size, budget) for size in budget.configs), columns, title=title)
    if budget.best is None:
        print_line("Nothing fits. A smaller max_length, rank or model would.")
    elif budget.gpu.tflops is None:
        print_line("How fast this GPU is, is not known here; batch = auto measures it.")


def _size_row(size: Mapping[str, Any], budget: MemoryEstimate) -> dict[str, Any]:
    seconds = size["seconds"]
    mark = " ←" if size is budget.best else "" if size["fits"] else " too much"
    return {
        "checkpointing": size["checkpointing"] or "none",
        "a step": f"{size['batch']}x{size['accumulate']}",
        "activations": f"{size['activations']:.1f}",
        "GiB": f"{size['gib']:.1f}{mark}",
        "tokens/s": f"{size['tokens_per_second']:,.0f}" if seconds else "",
        "time": str(timedelta(seconds=round(seconds))) if seconds else "",
    }


def show_work(work: PreparedRun) -> None:
    """Print what a training would be made of."""
    m = work.manifest
    facts = {
        "version": f"{m.data.version}, {m.data.digest[:12]}",
        "base model": f"{m.model.name}, {m.model.digest[:12]}",
        "template": f"{m.rendering.template}, {m.rendering.template_digest[:12]}",
        "conversations": f"{m.tokens.conversations:,} to train on, {work.held_out['id'].n_unique():,} held out",
        "tokens": f"{m.tokens.tokens:,}, of which {m.tokens.loss_tokens:,} with loss",
        "engine": f"{m.recipe['engine']} on {m.machine.device}, {plural(m.machine.threads, 'thread')}",
    }
    print_fields(facts, "Would train")
    note("Nothing was trained or written. curate plan says more about lengths and steps.")


def show_run(run: Run) -> None:
    """Print a run that is done: where it lies, what it learned, what to type next."""
    m = run.manifest
    losses = [m.metrics[name] for name in ("eval_loss_base", "eval_loss") if name in m.metrics]
    facts = {
        "adapter": str(run.adapter),
        "trained on": _trained_on(m),
        "engine": f"{m.recipe['engine']}, {m.engine['method']}, packing {'on' if m.engine['packing'] else 'off'}, "
        f"{m.machine.device}, {plural(m.machine.threads, 'thread')}",
        "training loss": f"{m.metrics['train_loss_end']:.3f} at the end of {plural(int(m.metrics['steps']), 'step')}",
        "held-out loss": " → ".join(f"{loss:.3f}" for loss in losses) or "nothing was held out",
    }
    print_fields(facts, f"Run {run.run}")
    print_line(f"digest {m.adapter_digest}")
    note(f"Next: curate verify {run.run} · curate chat {run.run} --compare --prompt '…' · curate retrain {run.run}")


def _trained_on(m: Manifest) -> str:
    """What the steps saw of the version; learned tokens are said where they saw all of it."""
    coverage = m.coverage
    if not coverage.complete:
        return f"{coverage.phrase} of {m.data.version}: its {plural(int(m.metrics['steps']), 'step')} saw no more"
    epochs = f"{coverage.epochs:.3g} {'epoch' if coverage.epochs == 1 else 'epochs'}"
    tokens = f"{plural(m.tokens.loss_tokens, 'token')}, {epochs}"
    return f"{plural(m.tokens.conversations, 'conversation')} of {m.data.version}, {tokens}"


def show_runs(runs: Sequence[Run]) -> None:
    """Print one line per run, in 80 columns, and why some failed."""
    if not runs:
        note("There is no run yet: curate train NAME@n begins one.")
        return
    print_table(map(_run_row, runs), ["run", "version", "status", "steps", "loss", "started", "adapter"])
    for run in runs:
        if run.manifest.failure is not None:
            print_line(f"{run.run} failed: {run.manifest.failure}")


def _run_row(run: Run) -> dict[str, Any]:
    m = run.manifest
    return {
        "run": run.run,
        "version": m.data.version,
        "status": run.status,
        "steps": int(m.metrics["steps"]) if "steps" in m.metrics else None,
        "loss": m.metrics.get("eval_loss"),  # held-out
        "started": f"{m.started:%Y-%m-%d %H:%M}",
        "adapter": run.adapter.name,
    }


def show_verification(verification: Verification) -> None:
    """Print every check, then notes that differ, then the verdict."""
    print_table((_check_row(check) for check in verification.checks), ["what", "state", "manifest", "now"])
    differing = [check for check in verification.notes if check.state != "same"]
    for check in differing:
        note(f"Note: {check.what} was {check.expected}, is {check.found}.")
    same = sum(check.state == "same" for check in verification.checks)
    verdict = f"proven, {same} checks" if verification.proven else f"not proven: {', '.join(verification.failed)}"
    print_line(f"Run {verification.run} is {verdict}.")
    if not verification.run_is_known:
        print_line("This store has no run with this adapter: its manifest was held against all else that is here.")


def _check_row(check: Check) -> dict[str, str]:
    marks = {"same": "✓", "differs": "✗ differs", "unchecked": "? unchecked"}
    now = "" if check.state == "same" else check.found
    return {"what": check.what, "state": marks[check.state], "manifest": _short(check.expected), "now": _short(now)}


def _short(value: str) -> str:
    """A digest by its first digits, anything else whole."""
    return value[:16] if len(value) == 64 and " " not in value else value


def show_retraining(retraining: Retraining) -> None:
    """Print whether the two adapters are the same, and if not, how far apart and why that may be."""
    before, after = retraining.before, retraining.after
    known = f"run {before.run}" + (f" of {retraining.external_adapter}" if retraining.external_adapter else "")
    if retraining.identical:
        print_line(f"Run {after.run} is {known} again, bit for bit: {before.adapter_digest}.")
        return
    from train.runs.retrain import LOSSES_APART

    far = retraining.largest_difference
    size = "they have other shapes" if far is None else f"the largest difference of a weight is {far:.3g}"
    print_line(f"Run {after.run} differs from {known}: {size}.")
    print_line(f"The tokens are {'the same' if retraining.same_tokens else 'others'}.")
    if retraining.losses_apart is not None:
        print_line(
            f"The losses of its steps are at most {retraining.losses_apart:.2g} apart: "
            f"{'the same training' if retraining.repeated else 'another training'}, by the limit of {LOSSES_APART:g}."
        )
    for change in retraining.changed or ("Nothing that the manifest names: a GPU adds up in no fixed order.",):
        print_line(f"  {change}")


def show_answers(answered: Iterable[Mapping[str, str]]) -> None:
    """Print each question with its answer below it; of two sides, which one it is."""
    names = {"prompt": "› ", "base": "before: ", "adapter": "after:  ", "saved": "saved:  "}
    for place, answer in enumerate(answered):
        if place:
            print_line("")
        alone = not {"base", "adapter"} <= answer.keys()
        for key, text in answer.items():
            print_line(text if alone and key in ("base", "adapter") else f"{names[key]}{text}")
