"""Output fits the terminal: lines break at spaces only, and a table that does not fit becomes records."""

import io
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
