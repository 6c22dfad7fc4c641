"""Lists of texts, lists of exchanges and a column per turn: the turns of small rows in published layouts."""

import json

import polars as pl
import pytest

from curate.ingest.column_mapping import find_mapping, parse_table
from curate.ingest.shapes.shape import ParsedTable
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection

TALK = [("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"), ("gpt", "Bye, Ada")]
TEXTS = [text for _, text in TALK]


def rows(shape: str, *objects: dict[str, object]) -> ParsedTable:
    """The rows of a JSON lines file, whose shape must be detected."""
    names = list(dict.fromkeys(name for row in objects for name in row))
    cells = [{name: cell_text(row.get(name)) for name in names} for row in objects]
    table = pl.DataFrame(cells, schema=dict.fromkeys(names, pl.String))
    mapping = find_mapping(table, ImportSection())
    assert mapping.shape == shape
    return parse_table(table, mapping)


def cell_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def talk(parsed: ParsedTable, row: int = 0) -> list[tuple[str, str]]:
    assert parsed.problems.is_empty(), parsed.problems["reason"].to_list()
    return parsed.turns.filter(pl.col("row") == row).select("from", "value").rows()


def reasons(parsed: ParsedTable) -> list[tuple[int, str, str]]:
    return parsed.problems.select("row", "code", "reason").rows()


@pytest.mark.parametrize(
    "row",
    [
        {"id": "0", "data": TEXTS},
        {"dialog": TEXTS, "act": [2, 1, 1, 1], "emotion": [0, 0, 0, 0]},
        {"conversation": {f"turn_{n}": text for n, text in enumerate(TEXTS, 1)}},
        {"turns": {str(n): text for n, text in enumerate(TEXTS, 1)}},
    ],
)
def test_a_list_of_texts_alternates(row):
    parsed = rows("alternating", row, row)
    assert talk(parsed) == talk(parsed, 1) == TALK


def test_numbered_turns_are_in_the_order_of_their_numbers():
    texts = {f"turn_{n}": str(n) for n in (1, 10, 11, *range(2, 10))}
    assert [text for _, text in talk(rows("alternating", {"chat": texts}))] == [str(n) for n in range(1, 12)]


def test_a_list_of_texts_keeps_white_space_and_has_a_system_prompt():
    parsed = rows("alternating", {"chat": [" Hi\n", "Hello"], "system": "Be brief."})
    assert talk(parsed) == [("system", "Be brief."), ("human", " Hi\n"), ("gpt", "Hello")]


def test_a_list_that_is_not_of_texts_is_a_problem_of_its_row():
    cells = [TEXTS, ["Hi", 5], [], None, "Hi", {"turn_1": "Hi", "topic": "x"}, "[", TEXTS]
    parsed = rows("alternating", *({"dialog": cell} for cell in cells))
    assert reasons(parsed) == [
        (1, "non-text-content", "Turn 2 is not text: 5"),
        (2, "empty-conversation", "The list has no turns."),
        (3, "missing-conversation", "The column with the turns is empty."),
        (4, "broken-json", "Invalid JSON: Hi"),
        (5, "not-a-list", "The object has a key that is not a number of a turn: topic"),
        (6, "broken-json", "Invalid JSON: ["),
    ]
    assert parsed.turns["row"].unique().to_list() == [0, 7]


@pytest.mark.parametrize(
    ("question", "answer"),
    [("input", "output"), ("question", "answer"), ("user", "assistant"), ("human", "gpt"), ("prompt", "response")],
)
@pytest.mark.parametrize("name", ["conversation", "rounds"])
def test_a_list_of_questions_with_answers_alternates(name, question, answer):
    exchanges = [{"id": 1, question: "Hi", answer: "Hello"}, {answer: "Bye, Ada", question: "Bye"}]
    assert talk(rows("exchanges", {name: exchanges})) == TALK


def test_a_list_of_pairs_alternates():
    parsed = rows("exchanges", {"conversation": [["Hi", "Hello"], ["Bye", "Bye, Ada"]]}, {"conversation": [["a", "b"]]})
    assert (talk(parsed), talk(parsed, 1)) == (TALK, [("human", "a"), ("gpt", "b")])


def test_an_exchange_without_answer_is_an_empty_turn_and_other_entries_are_problems():
    cells = [
        [{"input": "Hi", "output": None}],
        [["a", "b"], ["c"]],
        [["a", "b"], "c"],
        [{"input": "Hi", "output": "b"}, {}],
    ]
    parsed = rows("exchanges", *({"turns": cell} for cell in cells))
    assert parsed.turns.select("row", "value").rows() == [(0, "Hi"), (0, "")]
    assert reasons(parsed) == [
        (1, "broken-history", 'Entry 2 is not a question with its answer: ["c"]'),
        (2, "broken-history", 'Entry 2 is not a question with its answer: "c"'),
        (3, "broken-history", "Entry 2 is not a question with its answer: {}"),
    ]


def moss(thought: str = "None", command: str = "None") -> dict[str, str]:
    return {
        "Human": "<|Human|>: Hi<eoh>\n",
        "Inner Thoughts": f"<|Inner Thoughts|>: {thought}<eot>\n",
        "Commands": f"<|Commands|>: {command}<eoc>\n",
        "Tool Responses": "<|Results|>: None<eor>\n",
        "MOSS": "<|MOSS|>: Hello,\nAda<eom>\n",
    }


def test_the_markers_of_moss_are_removed_and_its_thoughts_are_reasoning():
    row = {"conversation_id": 1, "meta_instruction": "Be brief.", "chat": {"turn_1": moss(), "turn_2": moss("Greet.")}}
    assert talk(rows("exchanges", row)) == [
        ("system", "Be brief."),
        *(("human", "Hi"), ("gpt", "Hello,\nAda")),
        *(("human", "Hi"), ("gpt", "<think>\nGreet.\n</think>\n\nHello,\nAda")),
    ]


def test_a_tool_call_of_moss_is_a_problem():
    parsed = rows("exchanges", {"chat": {"turn_1": moss(command='Search("tides")')}})
    assert reasons(parsed) == [(0, "broken-tool-call", 'Entry 1 calls a tool in MOSS\'s notation: Search("tides")')]


def test_a_column_per_turn_alternates_up_to_the_last_text():
    row = {f"turn_{n}": text for n, text in enumerate(TEXTS, 1)}
    parsed = rows(
        "turn-columns", row, {**row, "turn_3": None, "turn_4": " "}, {**row, "turn_3": None}, dict.fromkeys(row)
    )
    assert (talk_of(parsed, 0), talk_of(parsed, 1)) == (TALK, TALK[:2])
    assert talk_of(parsed, 2) == [*TALK[:2], ("human", ""), TALK[3]]
    assert reasons(parsed) == [(3, "missing-conversation", "The columns of the turns are empty.")]


def talk_of(parsed: ParsedTable, row: int) -> list[tuple[str, str]]:
    return parsed.turns.filter(pl.col("row") == row).select("from", "value").rows()


def test_more_columns_of_turns_than_the_shape_has_are_an_error():
    table = pl.DataFrame({f"turn_{n}": ["a"] for n in range(1, 42)})
    mapping = find_mapping(table.select(pl.all().exclude("turn_41")), ImportSection())
    with pytest.raises(SourceError, match="turn_41"):
        parse_table(table, mapping)


@pytest.mark.parametrize("cell", [["tide", "harbour"], [["a", "b"]], [{"question": "Hi", "answer": "Hello"}]])
def test_lists_in_columns_with_other_names_are_not_taken_for_turns(cell):
    table = pl.DataFrame({"id": ["1"], "tags": [json.dumps(cell)]})
    with pytest.raises(SourceError, match=r"No shape fits|not certain"):
        find_mapping(table, ImportSection())
    section = ImportSection(shape="alternating" if cell[0] == "tide" else "exchanges", map={})
    with pytest.raises(SourceError, match="needs a column"):
        find_mapping(table, section)


def test_a_list_of_texts_next_to_a_question_and_an_answer_is_metadata():
    parsed = rows("pairs", {"question": "Hi", "answer": "Hello", "data": ["tide", "harbour"]})
    assert talk(parsed) == TALK[:2]


def test_segments_of_axolotl_are_an_error_with_advice():
    cell = json.dumps([{"label": False, "text": "<s>Hi "}, {"label": True, "text": "Hello</s>"}])
    with pytest.raises(SourceError, match="has segments as in Axolotl") as error:
        rows("segments", {"segments": cell})
    assert "as a list of texts in a column named turns" in error.value.hint
