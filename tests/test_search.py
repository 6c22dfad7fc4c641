"""`curate search`: words and expressions in any turn, with the match in its context."""

import json

import pytest
from support.stores import add, chat, questions

from curate import search as search_module
from curate.search import Match, search
from schemas.errors import RecipeError
from schemas.recipe import Recipe
from schemas.store import reading


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "curate.duckdb"
    add(
        path,
        [
            chat("My REFUND is\nlate.", "Sorry, the parcel was lost.", system="Answer briefly."),
            chat("Where is it?", "The refund was sent; the parcel is late.", "Thanks", "With pleasure."),
            chat("Größe ÄNDERN?", "Ja: 100% (a+b) [x] \\d"),
            chat("<img onerror=alert(1)>'; DROP TABLE conversations --", "No \x1b[31m."),
            *questions(30),
        ],
        metadata={"desk": "north"},
    )
    return path


def find(store, text, **options):
    with reading(store) as connection:
        return search(connection, text, Recipe(), **options)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("refund", 2), ("refund LATE", 2), ("late parcel sent", 1), ("refund harbour", 0), ("größe ändern", 1),
        ("GRÖSSE", 0), ("100% (A+B) [x] \\d", 1), ("question", 30), ("answer", 31), (".", 33), ("'; drop table", 1),
        ("<IMG", 1),
    ],
)  # fmt: skip
def test_every_word_must_occur_in_any_turn_and_any_case(store, text, count):
    assert find(store, text).conversations == count


def test_a_match_has_its_turn_and_its_context(store):
    first, second = find(store, "refund").matches
    assert first == Match(chat("My REFUND is\nlate.", "Sorry, the parcel was lost.", system="Answer briefly.").id,
                          2, "human", "My ", "REFUND", " is\nlate.")  # fmt: skip
    assert (second.turn, second.role, second.before, second.match) == (2, "gpt", "The ", "refund")


def test_long_texts_are_cut_around_the_match(store):
    add(store, [chat("x" * 500 + " needle " + "y" * 500, "Yes.")], source="long.csv")
    (match,) = find(store, "needle").matches
    assert match.before == "…" + "x" * 59 + " "
    assert match.after == " " + "y" * 59 + "…"
    (match,) = find(store, "(?s)x.*y", regex=True).matches
    assert len(match.match) == 201


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        (r"question 1\d\?", ["question 10?"]), ("Refund", []), ("(?i)REFUND", ["REFUND", "refund"]),
        (r"lost|sent;", ["lost", "sent;"]), (r"is.late", ["is late"]), (r"(?s)is.late", ["is\nlate", "is late"]),
        (r"(re)(fund)", ["refund"]), (r"\bIMG\b|onerror", ["onerror"]), ("'", ["'"]),
        (r"^The.*\.$", ["The refund was"]),
    ],
)  # fmt: skip
def test_an_expression_is_matched_within_a_turn(store, expression, matches):
    found = find(store, expression, regex=True).matches
    assert [match.match.startswith(start) for match, start in zip(found, matches, strict=False)] == [True] * len(
        matches
    )
    assert bool(found) == bool(matches)


def test_role_and_rule_limit_the_search(store):
    assert find(store, "refund", role="human").conversations == 1
    assert find(store, "refund", role="gpt").conversations == 1
    assert find(store, "parcel refund", role="human").conversations == 0
    assert find(store, "briefly", role="system").conversations == 1
    assert find(store, "question", where="prompt like '%1%'").conversations == 12
    assert find(store, "question", where="meta.desk = 'south'").conversations == 0


def test_the_first_matches_in_the_order_of_import_are_listed(store):
    result = find(store, "question", limit=3)
    assert result.conversations == 30
    assert [match.id for match in result.matches] == [talk.id for talk in questions(3)]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("  ", {}, "is empty"), ("", {"regex": True}, "is empty"), ("(", {"regex": True}, "not a valid regular"),
        ("(?=a)", {"regex": True}, "not a valid regular"), (r"(a)\1", {"regex": True}, "not a valid regular"),
        ("((a{100}){100}){100}", {"regex": True}, "not a valid regular"), ("a)|(b", {"regex": True}, "not a valid"),
        ("x", {"role": "humn"}, "did you mean human"), ("x", {"where": "nonsense > 3"}, "reads nonsense"),
    ],
)  # fmt: skip
def test_an_invalid_search_is_an_error(store, text, options, message):
    with pytest.raises(RecipeError, match=message) as error:
        find(store, text, **options)
    assert error.value.hint


def test_an_expression_that_takes_too_long_is_stopped(store, monkeypatch):
    texts = ["x" * 50_000 + str(number) for number in range(8)]  # 1 s each; DuckDB stops after a block of rows
    add(store, [chat(text, "Yes.") for text in texts], source="long.csv")
    monkeypatch.setattr(search_module, "TIME_LIMIT", 0.2)
    with pytest.raises(RecipeError, match="was stopped after"):
        find(store, "((.{1,30}){1,30}z)", regex=True)
    monkeypatch.undo()
    assert find(store, "refund").conversations == 2


def test_the_command_prints_a_line_for_each_conversation_and_json(store, curate):
    shown = curate("search", "refund late", "--store", str(store))
    assert len(shown.stdout.splitlines()) == 2
    assert "My ⟦REFUND⟧ is late." in shown.stdout
    assert "\x1b" not in curate("search", "No", "--store", str(store)).stdout
    found = json.loads(curate("search", "refund", "--limit", "1", "--json", "--store", str(store)).stdout)
    assert found["conversations"] == 2
    assert found["matches"][0]["match"] == "REFUND"
    failed = curate("search", "--regex", "(", "--store", str(store))
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 2)
