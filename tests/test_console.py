"""Output fits the terminal: lines break at spaces only, and a table that does not fit becomes records."""

import io
import re
import sys

import pytest
from rich.cells import cell_len

from curate.cli import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


SENTENCE = "Error: None of the 414 conversations in the store is kept, so there is nothing to freeze today."
COMMAND = "  → curate rejects --source support_tickets.csv --export fix-1.csv --replace --store other.duckdb"
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def forty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")


def table_lines(capsys, *rows):
    console.print_table(rows, list(rows[0]))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]


def test_a_column_of_sentences_is_narrowed_before_a_column_of_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "48")
    reason = "Turn 6 (human) is the last, and not the assistant's."
    head, first, *_ = table_lines(capsys, {"rejected for": "not-ending-with-assistant", "reason": reason})
    assert head.split() == ["rejected", "for", "reason"]
    assert first.split()[0] == "not-ending-with-assistant"


def test_a_table_that_does_not_fit_is_printed_as_records(capsys):
    rows = [{"id": DIGEST[:20], "reason": SENTENCE, "file": "chats.csv"}, {"id": "b", "reason": "", "file": "中文.csv"}]
    assert table_lines(capsys, *rows) == [
        "id:      0123456789abcdef0123",
        "reason:  Error: None of the 414",
        "         conversations in the store is",
        "         kept, so there is nothing to",
        "         freeze today.",
        "file:    chats.csv",
        "id:      b",
        "reason:",
        "file:    中文.csv",
    ]


def test_a_word_longer_than_the_terminal_has_a_line_of_its_own(capsys):
    assert table_lines(capsys, {"digest": DIGEST, "file": f"{'x' * 36} y"}) == [
        "digest:",
        DIGEST,
        "file:",
        f"  {'x' * 36} y",
    ]


def test_a_date_and_a_time_stay_on_one_line(capsys):
    row = {"version": "support@1", "frozen at": "2026-11-21 12:25", "comment": "the first of many versions"}
    assert any("2026-11-21 12:25" in line for line in table_lines(capsys, row))


@pytest.mark.parametrize("name", ["客户支持工单数据导出.csv", "tickets-🛶🛶🛶.csv", "a" * 30])
def test_wide_characters_are_measured_in_terminal_cells(name, capsys):
    lines = table_lines(capsys, {"file": name, "rows": 12})
    assert name in lines[1].split()
    assert all(cell_len(line) <= 40 for line in lines)


def test_messages_break_between_words_in_a_terminal_and_commands_never(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    console.note(f"{SENTENCE}\n{COMMAND}")
    lines = sys.stderr.getvalue().splitlines()
    assert max(map(len, lines[:-1])) <= 40
    assert " ".join(lines[:-1]) == SENTENCE
    assert lines[-1] == COMMAND


def test_messages_and_examples_in_a_file_are_not_wrapped_or_cut(capsys):
    console.note(SENTENCE)
    assert capsys.readouterr().err == f"{SENTENCE}\n"
    assert console.truncate(COMMAND, io.StringIO()) == COMMAND
    assert console.truncate("中" * 30, Terminal()) == "中" * 19 + " …"


def streams(curate, folder, *arguments):
    ran = curate(*arguments, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, ran.stderr


@pytest.fixture
def imported(curate, tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nWhere?,Here.\nWhen?,\n")
    assert curate("import", "a.csv").returncode == 0
    return tmp_path


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_leaves_results_and_errors_and_verbose_adds_steps_with_seconds(curate, imported, place):
    def run(*arguments, option):
        return streams(curate, imported, *([option, *arguments] if place == "before" else [*arguments, option]))

    loud, notes = streams(curate, imported, "rejects")
    assert "Next: " in notes
    assert run("rejects", option="-q") == (loud, "")
    result, log = run("rejects", option="--verbose")
    assert result == loud
    assert re.search(r"^ +\d+\.\d\d s  opening the store: \d\.\d{3} s$", log, re.MULTILINE)
    assert log.endswith(notes)


def test_quiet_and_verbose_do_not_change_json(curate, imported):
    results = [streams(curate, imported, "status", "--json", *more)[0] for more in ([], ["-q"], ["-v"])]
    assert len(set(results)) == 1


def test_quiet_keeps_errors_and_excludes_verbose(curate, imported):
    ran = curate("-q", "trace", "a.csv:9")
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (1, "", 2)
    ran = curate("-v", "status", "-q")
    assert (ran.returncode, "exclude each other" in ran.stderr) == (2, True)
