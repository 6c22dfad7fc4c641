"""No command breaks a name over two lines: headings, ids, file names, scorers and templates at three widths."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace

import pytest
from rich.cells import cell_len
from support.project import demo_project

from curate.cli.app import app
from curate.cli.views import scores
from curate.cli.views.runs import BAR_WIDTH, format_step
from curate.scorers.plan import scorer_names
from train.engines import Step

WIDTHS = (80, 100, 120)
UNLIMITED = 100_000

LONG_PATH = "exports/2026-11/customer-support-and-workshop/taskmaster4_conversations_export_part1.jsonl"
CJK_PATH = "exports/客户支持工单数据导出-二〇二六年十一月.csv"
EMOJI_PATH = "exports/🛶-paddle-tickets-🇩🇰-übergrößenträger.csv"
SAME_NAME = "archive/support_tickets.csv"  # a second file of this name: tables show whole paths
PATHS = (LONG_PATH, CJK_PATH, EMOJI_PATH, SAME_NAME)

STATUS_HEADINGS = ("file", "rows", "conversations", "duplicates", "rejected", "open", "version", "digest", "frozen")
TEMPLATE_HEADINGS = ("template", "ids", "end of turn", "bos", "prefix", "system", "tools", "reasoning", "spaces")
COMMANDS = {
    f"import {' '.join(PATHS)} --dry-run": (*PATHS, "empty-answer", "not-ending-with-assistant"),
    "rejects": (*PATHS, "empty-answer", "not-ending-with-assistant"),
    "rejects --list": PATHS,
    "rejects --rules": ("not-ending-with-assistant", "severity", "requirement", "outer-white-space"),
    "score": ("ngram_repetition", "unbalanced_fences", "median", "p95"),
    "score --list": tuple(scorer_names()),
    "dedup --dry-run": ("near-duplicate", "similarity"),
    "select --dry-run": ("symbol_ratio", "satisfied", "unknown"),
    "freeze other --dry-run": ("other@1", "held_out"),
    "versions": ("support@1", "held_out", "frozen_at"),
    "diff support@1 support@2 --list": ("support@1", "train"),
    "status": (*PATHS, "support@1", *STATUS_HEADINGS),
    "plan support@1": ("<|im_start|>assistant\\n", "<|im_end|>", "generation prompt"),
    "plan support@1 --gpu h100-80g": ("checkpointing", "activations"),
    "preview support@1 --limit 1 --tokens": ("'<|im_start|>'", "label"),
    "templates chatml qwen-3 gemma2_chatml": ("chatml", "qwen-3", "gemma2_chatml", *TEMPLATE_HEADINGS),
    "sources": PATHS,
    "search Puffin --limit 3": ("Puffin",),
    f"show {LONG_PATH}:2": (LONG_PATH, "ngram_repetition"),
    "sql SHOW-TABLES": ("current_verdicts", "conversations"),
    "sql DESCRIBE-conversations": ("conversations", "column_name"),
    "sql SUMMARIZE-scores": ("ngram_repetition", "approx_unique"),
    "sql FROM-conversations-LIMIT-3": ("id", "conversations", "parent"),
    "sql FROM-scores-LIMIT-3": tuple(scorer_names()),
    "sql FROM-sources": (*PATHS, "rows_rejected"),
    "review status": ("conversations", "agreement", "reviewer_with_a_long_name"),
}
TRAINED = {
    "runs": ("support@1", "held-out", "adapter"),
    "verify r1": ("adapter_model.safetensors", "tokenizer_config.json"),
    "status": ("adapters/r1", "support@1"),
    "trace data.csv:2": ("support@1", "loss_tokens"),
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def project(tmp_path_factory, sample):
    """The demo before its training, with sources whose names are long, Chinese and emoji, and a filled spreadsheet."""
    folder = tmp_path_factory.mktemp("wide") / "project"
    demo_project(folder, steps=2)
    assert len(LONG_PATH) == 90
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / LONG_PATH).write_text("\n".join(map(json.dumps, _chats())), encoding="utf-8")
    rows = [f"怎么给皮划艇充气？{number},请把气压打到3.6磅，然后停下来🛶。{'很好' * number}" for number in range(6)]
    (folder / CJK_PATH).write_text("\n".join(["question,answer", *rows, "什么？,"]), encoding="utf-8")
    rows = [f"🛶 {number}?,👩‍👩‍👧 yes" for number in range(4)]
    (folder / EMOJI_PATH).write_text("\n".join(["question,answer", *rows, "🛶?,"]), encoding="utf-8")
    shutil.copy(sample / "support_tickets.csv", folder / SAME_NAME)
    with (folder / SAME_NAME).open("a", encoding="utf-8") as file:
        file.write("T-1,2026-01-05 09:25,,en,Ines,A new question?,,4\n")
    with pytest.MonkeyPatch.context() as patch:
        for command in ("import support_tickets.csv chats.jsonl", f"import {' '.join(PATHS)}", "score", "dedup"):
            run(patch, folder, UNLIMITED, *command.split())
        for command in ("select", "freeze support", "select --where words>=20", "freeze support", "select"):
            run(patch, folder, UNLIMITED, *command.split())
        _review(patch, folder)
    return folder


def _chats():
    for number in range(8):
        yield {"messages": [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": "A" * number}]}
    yield {"messages": [{"role": "user", "content": "Hello"}]}


def _review(patch, folder):
    """Answers of two reviewers to the same spreadsheet."""
    for reviewer, decision in (("reviewer_with_a_long_name", "keep"), ("安娜", "drop")):
        file = folder / "desk_review_of_november_2026.csv"
        run(patch, folder, UNLIMITED, "review", "export", str(file), "--sample", "12", "--replace", "--overlap", "2")
        with file.open(encoding="utf-8-sig", newline="") as sheet:
            rows = list(csv.DictReader(sheet))
        with file.open("w", encoding="utf-8", newline="") as sheet:
            writer = csv.DictWriter(sheet, rows[0].keys())
            writer.writeheader()
            writer.writerows({**row, "decision": decision, "quality": "4", "reviewer": reviewer} for row in rows)
        run(patch, folder, UNLIMITED, "review", "import", str(file), "--partial")


def run(patch, folder, width, *arguments):
    """The stdout and stderr of a command in a terminal of this width, without control sequences."""
    stdout, stderr = Terminal(), io.StringIO()  # a progress bar would cut its description
    with patch.context() as context:
        context.chdir(folder)
        context.setattr("sys.stdout", stdout)
        context.setattr("sys.stderr", stderr)
        context.setenv("COLUMNS", str(width))
        context.setenv("LINES", "50")
        context.setenv("TERM", "xterm")
        context.setattr(scores, "WIDE", 1)  # the same examples at every width
        app(list(arguments), standalone_mode=False)
    return tuple(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()) for stream in (stdout, stderr))


def words(text):
    return {word.rstrip(":") for word in text.split() if not set(word) <= set("─█")}


def check(patch, folder, command, names):
    kind, _, argument = command.partition(" ")
    arguments = [kind, argument.replace("-", " ")] if kind == "sql" else command.split()
    everything = "".join(run(patch, folder, UNLIMITED, *arguments))
    assert [name for name in names if name not in everything] == [], everything
    for width in WIDTHS:
        stdout, stderr = run(patch, folder, width, *arguments)
        broken = [name for name in names if (stdout + stderr).count(name) < everything.count(name)]
        assert broken == [], f"{command} at {width} columns\n{stdout}{stderr}"
        if kind != "select":  # which truncates its examples
            assert words(everything) - words(stdout + stderr) == set(), f"{command} at {width} columns\n{stdout}"
        if kind != "preview":  # which shows texts as they are
            too_long = [line for line in stdout.splitlines() if cell_len(line.rstrip()) > width and " " in line.strip()]
            assert too_long == [], f"{command} at {width} columns"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_is_broken_over_two_lines(command, project, monkeypatch):
    check(monkeypatch, project, command, COMMANDS[command])


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINED)
def test_no_name_of_a_run_is_broken_over_two_lines(command, trained, monkeypatch):
    check(monkeypatch, trained, command, TRAINED[command])


def test_help_uses_the_width_of_the_terminal(tmp_path, monkeypatch):
    lengths = []
    for width in (*WIDTHS, 200):
        stdout, _ = run(monkeypatch, tmp_path, width, "import", "--help")
        lines = [line for line in stdout.splitlines() if not line.startswith("  curate")]  # examples to paste
        lengths.append(max(map(len, lines)))
        assert lengths[-1] <= width
    assert [length > least for length, least in zip(lengths, (70, 90, 110), strict=False)] == [True] * 3
    assert lengths[3] > 140  # of the longest sentence


def test_a_line_of_training_progress_fits_80_columns():
    step = Step(12_000, 12_500, 10.301, 1e-4, 1.0, 10**9, 61_000, left=99_900, memory=138.9, eval_loss=10.796)
    for one in (step, replace(step, eval_loss=None)):
        line = format_step(one)
        assert len(line) + BAR_WIDTH + 2 <= 80
        assert {"12,000/12,500", "10.301", "1d", "3:45:00"} <= set(line.split())
