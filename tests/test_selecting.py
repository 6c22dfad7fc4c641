import pytest

from curate.selecting import kept_ids
from schemas.store import writing


@pytest.fixture
def connection(tmp_path):
    with writing(tmp_path / "x.duckdb") as connection:
        for name in "abc":
            connection.execute("INSERT INTO conversations (id, conversations) VALUES (?, [])", [name])
            connection.execute(
                "INSERT INTO origins (source, row, conversation, duplicate) VALUES ('s', 1, ?, false)", [name]
            )
        yield connection


def edition(connection, name, parent):
    connection.execute("INSERT INTO conversations (id, conversations, parent) VALUES (?, [], ?)", [name, parent])


def say(connection, conversation, verdict, by_whom="rule", edited_to=None):
    connection.execute(
        """INSERT INTO verdicts (conversation, verdict, reason, by_whom, edited_to, selection)
           VALUES (?, ?, 'because', ?, ?, ?)""",
        [conversation, verdict, by_whom, edited_to, "s" if by_whom == "rule" else None],
    )


def kept(connection):
    return "".join(sorted(name for (name,) in kept_ids(connection).fetchall()))


def test_without_any_selection_everything_is_kept(connection):
    assert kept(connection) == "abc"


def test_what_came_after_the_latest_selection_waits_for_the_next(connection):
    say(connection, "a", "keep")
    say(connection, "b", "drop")
    assert kept(connection) == "a"


def test_a_later_rule_verdict_replaces_an_earlier_one(connection):
    for name in "abc":
        say(connection, name, "drop")
    say(connection, "b", "keep")
    assert kept(connection) == "b"


def test_a_person_outranks_a_later_rule(connection):
    say(connection, "a", "keep", "ann")
    say(connection, "b", "drop", "ann")
    for name in "abc":
        say(connection, name, "drop" if name == "a" else "keep")
    assert kept(connection) == "ac"


def test_an_edited_conversation_takes_the_place_of_its_parent(connection):
    edition(connection, "A", "a")
    say(connection, "a", "edit", "ann", edited_to="A")
    for name in "abcA":
        say(connection, name, "drop")
    assert kept(connection) == "A"


def test_an_edit_that_is_taken_back_leaves_again(connection):
    edition(connection, "A", "a")
    say(connection, "a", "edit", "ann", edited_to="A")
    say(connection, "a", "keep", "ann")
    assert kept(connection) == "abc"


def test_an_edit_back_to_the_first_text_keeps_the_first_text(connection):
    edition(connection, "A", "a")
    say(connection, "a", "edit", "ann", edited_to="A")
    say(connection, "A", "edit", "ann", edited_to="a")
    assert kept(connection) == "abc"
