"""What a terminal shows: nothing is cut that one has to type, and nothing is broken where it is not a terminal."""

import io
import sys

import pytest

from curate.cli import console


class Narrow(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


SENTENCE = "Error: None of the 414 conversations in the store is kept, so there is nothing to freeze today."
COMMAND = "  → curate rejects --source support_tickets.csv --export fix-1.csv --replace --store other.duckdb"


@pytest.fixture(autouse=True)
def forty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")


def shown(columns, capsys):
    console.print_table([dict(columns)], list(dict(columns)))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]


def test_a_sentence_gives_way_to_the_names_beside_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "44")
    because = "Turn 6 (human) is the last, and not the assistant's."
    head, first, *_ = shown([("rejected for", "not-ending-with-assistant"), ("because", because)], capsys)
    assert head.split() == ["rejected", "for", "because"]
    assert first.split()[0] == "not-ending-with-assistant"


def test_what_has_no_room_at_all_is_folded_and_never_cut(capsys):
    digest = "0123456789abcdef" * 4
    lines = shown([("digest", digest), ("file", "x" * 30)], capsys)
    assert all(len(line) <= 40 for line in lines)
    cells = [line.split() for line in lines[1:]]
    assert "".join(row[0] for row in cells if "x" not in row[0]) == digest
    assert "".join(lines[1:]).count("x") == 30


def test_messages_break_between_words_in_a_terminal_and_commands_never(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Narrow())
    console.note(f"{SENTENCE}\n{COMMAND}")
    lines = sys.stderr.getvalue().splitlines()
    assert max(map(len, lines[:-1])) <= 40
    assert " ".join(lines[:-1]) == SENTENCE
    assert lines[-1] == COMMAND


def test_a_file_gets_messages_and_examples_as_they_are(capsys):
    console.note(SENTENCE)
    assert capsys.readouterr().err == f"{SENTENCE}\n"
    assert console.fitting(COMMAND, io.StringIO()) == COMMAND
    assert console.fitting("中" * 30, Narrow()) == "中" * 19 + " …"
