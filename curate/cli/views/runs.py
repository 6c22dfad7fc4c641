"""Progress of a training run, runs, verifications and repeated runs → terminal output."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from curate.cli.console import note, print_fields, print_line, print_table, settings
from schemas.ledger import LEDGER_FILE, read_ledger
from schemas.text import local_minute, plural

if TYPE_CHECKING:
    import polars as pl

    from schemas.manifest import Manifest
    from schemas.run import Run
    from train.engines import Step
    from train.runs.fit import PreparedRun
    from train.runs.retrain import Retraining
    from train.runs.tidy import TidyReport
    from train.runs.verify import Check, Verification

ID_DIGITS, MOST_LEFT_OUT = 12, 5
"""Digits of an id, and conversations that are listed as not trained on."""

BAR_WIDTH = 4
"""A line with a bar fits 80 columns, also with five digits of steps and days to go."""

PROGRESS_LINES = 10
"""Progress lines of a run if stderr is not a terminal."""


@dataclass(frozen=True, slots=True)
class ProgressCallbacks:
    """Functions that display a training step, and the number of rendered conversations."""

    step: Callable[[Step], None]
    rendering: Callable[[int, int], None]


@contextmanager
def training_progress() -> Iterator[ProgressCallbacks]:
    """Display a training run on stderr: log messages, and a bar on a terminal or `PROGRESS_LINES` lines elsewhere."""
    with _progress_bar() if sys.stderr.isatty() and not settings.quiet else _progress_lines() as callbacks:
        if settings.verbose:  # which prints the messages itself
            yield callbacks
            return
        logger = logging.getLogger("train")
        level, handler = logger.level, _NoteHandler()
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield callbacks
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


class _NoteHandler(logging.Handler):
    """Log messages of our packages as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


@contextmanager
def _progress_bar() -> Iterator[ProgressCallbacks]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=BAR_WIDTH), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Loading", total=None, state="")

        def show_step(step: Step) -> None:
            bar.update(task, description="", total=step.steps, completed=step.step, state=format_step(step))

        def show_rendering(done: int, total: int) -> None:
            finished = done == total
            description = "Loading" if finished else "Rendering"
            bar.update(task, description=description, total=total, completed=0 if finished else done)

        yield ProgressCallbacks(show_step, show_rendering)


@contextmanager
def _progress_lines() -> Iterator[ProgressCallbacks]:
    def show_step(step: Step) -> None:
        if step.step == step.steps or step.step % max(1, step.steps // PROGRESS_LINES) == 0:
            note(f"step {format_step(step)}")

    yield ProgressCallbacks(show_step, lambda *_: None)


def format_step(step: Step) -> str:
    """The state of a training as a line that fits 80 columns next to a bar: step, losses, speed, time to go."""
    more = f"{step.memory:.1f} GiB" if step.eval_loss is None else f"held-out {step.eval_loss:.3f}"
    left = str(timedelta(seconds=round(step.left))).replace(" days, ", "d ").replace(" day, ", "d ")
    return f"{step.step:,}/{step.steps:,}  loss {step.loss:.3f}  {more}  {step.speed:,.0f} tok/s  {left} left"


def show_prepared_run(prepared: PreparedRun) -> None:
    """Print the inputs of a run that is not started."""
    m = prepared.manifest
    fields = {
        "version": f"{m.data.version}, {m.data.digest[:12]}",
        "base model": f"{m.model.name}, {m.model.digest[:12]}",
        "template": f"{m.rendering.template}, {m.rendering.template_digest[:12]}",
        "conversations": f"{m.tokens.conversations:,} to train on, {prepared.held_out['id'].n_unique():,} held out",
        "tokens": f"{m.tokens.tokens:,}, of which {m.tokens.loss_tokens:,} in the loss",
        "engine": f"{m.recipe['engine']} on {m.machine.device}, {plural(m.machine.threads, 'thread')}",
    }
    print_fields(fields, "Would train")
    _show_left_out(prepared.ledger)
    note("Nothing was trained or written. curate plan shows lengths and steps.")


def show_run(run: Run) -> None:
    """Print a finished run: its adapter, coverage and losses, and the next commands."""
    m = run.manifest
    losses = [m.metrics[name] for name in ("eval_loss_base", "eval_loss") if name in m.metrics]
    fields = {
        "adapter": str(run.adapter),
        "trained on": _coverage(m),
        "engine": f"{m.recipe['engine']}, {m.engine['method']}, packing {'on' if m.engine['packing'] else 'off'}, "
        f"{m.machine.device}, {plural(m.machine.threads, 'thread')}",
        "training loss": f"{m.metrics['train_loss_end']:.3f} at the end of {plural(int(m.metrics['steps']), 'step')}",
        "held-out loss": " → ".join(f"{loss:.3f}" for loss in losses) or "none: no conversation is held out",
    }
    print_fields(fields, f"Run {run.run}")
    if m.tokens.dropped or m.tokens.truncated:
        _show_left_out(read_ledger(run.adapter / LEDGER_FILE))
    print_line(f"digest {m.adapter_digest}")
    note(f"Next: curate verify {run.run} · curate chat {run.run} --compare --prompt '…' · curate retrain {run.run}")


def _show_left_out(ledger: pl.DataFrame) -> None:
    """Print the first conversations that are dropped or truncated, the dropped ones first; nothing if all are kept."""
    rows = ledger.filter(ledger["outcome"].is_in(["dropped", "truncated"])).sort("outcome", "conversation")
    if rows.is_empty():
        return
    columns = ["conversation", "outcome", "tokens", "reason"]
    shown = [{**row, "conversation": row["conversation"][:ID_DIGITS]} for row in rows.head(MOST_LEFT_OUT).to_dicts()]
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in rows["outcome"].value_counts(sort=True).iter_rows())
    print_table(shown, columns, title=f"Not trained on, or not completely: {counts}")
    hidden = rows.height - len(shown)
    more = f"{hidden:,} more are in ledger.parquet of the adapter. " if hidden else ""
    note(f"{more}curate trace CONVERSATION names the file and line.")


def _coverage(m: Manifest) -> str:
    """The part of the version that was trained on; with loss tokens and epochs if it is all of it."""
    coverage = m.coverage
    if not coverage.complete:
        steps = plural(int(m.metrics["steps"]), "step")
        return f"{steps} covered {coverage.phrase} of {m.data.version} ({coverage.epochs:.2g} epochs)"
    epochs = f"{coverage.epochs:.3g} {'epoch' if coverage.epochs == 1 else 'epochs'}"
    loss_tokens = plural(m.tokens.loss_tokens, "loss token")
    return f"{plural(m.tokens.conversations, 'conversation')} of {m.data.version}, {loss_tokens}, {epochs}"


def show_runs(runs: Sequence[Run]) -> None:
    """Print one row per run, and the errors of failed runs."""
    if not runs:
        note("There are no runs yet. Next: curate train NAME@n")
        return
    print_table(map(_run_row, runs), ["run", "version", "status", "steps", "held-out loss", "started", "adapter"])
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
        "held-out loss": m.metrics.get("eval_loss"),
        "started": local_minute(m.started),
        "adapter": run.adapter.name,
    }


def show_tidied(report: TidyReport) -> None:
    """Print the runs that were removed, or would be, and those that stay with the reason."""
    if not report.runs:
        note("Every run is finished or is being trained: there is nothing to remove.")
        return
    verb = "removed" if report.written else "would be removed"
    rows = [
        {
            "run": run.run,
            "version": run.version,
            "status": run.status,
            "outcome": f"kept: {run.kept_because}" if run.kept_because else verb,
            "MB": f"{run.bytes / 1e6:,.1f}",
            "failure": run.failure,
        }
        for run in report.runs
    ]
    print_table(rows, list(rows[0]))
    from train.runs.tidy import RESUMABLE

    if any(run.kept_because == RESUMABLE for run in report.runs):
        note("Run the command that began a run again to resume it; --checkpoints removes such runs too.")
    if not report.written:
        note("Nothing was removed.")


def show_verification(verification: Verification) -> None:
    """Print every check, the facts of the machine that differ, and the result."""
    print_table(map(_check_row, verification.checks), ["item", "state", "manifest", "now"])
    for check in verification.notes:
        if check.state != "same":
            note(f"Note: {check.what} was {check.expected}, is {check.found}.")
    passed = sum(check.state == "same" for check in verification.checks)
    if verification.verified:
        print_line(f"Run {verification.run} is verified: {plural(passed, 'check')} passed.")
    else:
        print_line(f"Run {verification.run} is not verified: {', '.join(verification.failed)}.")
    if not verification.run_is_known:
        print_line("This store has no run with this adapter; its manifest was compared with everything else here.")


def _check_row(check: Check) -> dict[str, str]:
    marks = {"same": "✓", "differs": "✗ differs", "unchecked": "? unchecked"}
    now = "" if check.state == "same" else check.found
    return {"item": check.what, "state": marks[check.state], "manifest": _short(check.expected), "now": _short(now)}


def _short(value: str) -> str:
    """The first digits of a digest, and any other value unchanged."""
    return value[:16] if len(value) == 64 and " " not in value else value


def show_retraining(retraining: Retraining) -> None:
    """Print whether the two adapters are identical; if not, their differences and possible causes."""
    before, after = retraining.before, retraining.after
    original = f"run {before.run}" + (f" of {retraining.external_adapter}" if retraining.external_adapter else "")
    if retraining.identical:
        print_line(f"Run {after.run} repeats {original} bit for bit: {before.adapter_digest}.")
        return
    from train.runs.retrain import LOSSES_APART

    largest = retraining.largest_difference
    difference = "their shapes differ" if largest is None else f"the largest difference of a weight is {largest:.3g}"
    print_line(f"Run {after.run} differs from {original}: {difference}.")
    print_line(f"The training tokens are {'the same' if retraining.same_tokens else 'different'}.")
    if retraining.losses_apart is not None:
        result = "within" if retraining.repeated else "above"
        print_line(f"The losses per step differ by at most {retraining.losses_apart:.2g}, {result} {LOSSES_APART:g}.")
    for change in retraining.changed or ("The manifests do not differ: a GPU adds numbers in varying order.",):
        print_line(f"  {change}")


def show_answers(answers: Iterable[Mapping[str, str]]) -> None:
    """Print each prompt and its answers; answers of two sides with a label."""
    labels = {"prompt": "› ", "base": "before: ", "adapter": "after:  ", "saved": "saved:  "}
    for number, answer in enumerate(answers):
        if number:
            print_line("")
        one_side = not {"base", "adapter"} <= answer.keys()
        for key, text in answer.items():
            print_line(text if one_side and key in ("base", "adapter") else f"{labels[key]}{text}")
