"""Column mapping: the mapping of columns and cells, and the errors for ambiguous ones."""

import json

import polars as pl
import pytest
from support.advice import printed_options, section_fields

from curate.ingest.column_mapping import extend_mapping, find_mapping, merge_mappings, metadata_json
from curate.ingest.shapes.shape import ColumnMapping
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection

MESSAGES = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'
SHAREGPT = '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]'
TRANSCRIPT = "Human: Hi\nAssistant: Hello"


def table(**columns: str | list[str | None] | None) -> pl.DataFrame:
    """A table of one row, or of one row per cell of a list."""
    cells = {name: cell if isinstance(cell, list) else [cell] for name, cell in columns.items()}
    return pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String))


def mapped(frame: pl.DataFrame, **options: object) -> tuple[str, dict[str, str]]:
    mapping = find_mapping(frame, ImportSection(**options))
    return mapping.shape, mapping.fields


def error_for(frame: pl.DataFrame, **options: object) -> SourceError:
    with pytest.raises(SourceError) as error:
        find_mapping(frame, ImportSection(**options))
    return error.value


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("columns", "shape", "fields"),
    [
        (["instruction", "input", "output"], "alpaca", ["instruction", "input", "output"]),
        (["instruction", "input", "output", "text"], "alpaca", ["instruction", "input", "output"]),
        (["instruction", "output", "system", "history"], "alpaca", ["instruction", "output", "system", "history"]),
        (["instruction", "context", "response", "category"], "alpaca", ["instruction", "context", "response"]),
        (["id", "source", "url", "focus", "qtype", "question", "answer"], "pairs", ["question", "answer"]),
        (["question", "answer", "answer_html", "link", "name", "category"], "pairs", ["question", "answer"]),
        (["system_prompt", "question", "response"], "pairs", ["question", "response", "system_prompt"]),
        (["prompt", "completion"], "pairs", ["prompt", "completion"]),
        (["query", "reply"], "pairs", ["query", "reply"]),
        (["input", "output"], "pairs", ["input", "output"]),
        (["kind", "input", "target"], "pairs", ["input", "target"]),
        (["prompt", "text", "seed_data"], "pairs", ["prompt", "text"]),
        (["problem", "solution"], "pairs", ["problem", "solution"]),
        (["Question", "Answer"], "pairs", ["Question", "Answer"]),
        (
            ["System Prompt", "User Message", "Agent Response"],
            "pairs",
            ["User Message", "Agent Response", "System Prompt"],
        ),
    ],
)
def test_flat_columns_are_mapped_by_common_names(columns, shape, fields):
    frame = table(**dict.fromkeys(columns, "words"))
    assert (mapped(frame)[0], list(mapped(frame)[1].values())) == (shape, fields)


@pytest.mark.parametrize(
    ("columns", "shape", "fields"),
    [
        ({"id": "1", "conversations": SHAREGPT}, "sharegpt", ["conversations"]),
        ({"conversations": SHAREGPT, "tools": "[]", "system": ""}, "sharegpt", ["conversations", "system", "tools"]),
        ({"conversation": MESSAGES}, "messages", ["conversation"]),
        ({"prompt": "Hi", "prompt_id": "7", "messages": MESSAGES}, "messages", ["messages"]),
        ({"messages": MESSAGES, "functions": "[]"}, "messages", ["messages", "functions"]),
        ({"log": SHAREGPT, "when": "today"}, "sharegpt", ["log"]),
        ({"prompt": MESSAGES, "completion": MESSAGES}, "messages", ["prompt", "completion"]),
        ({"completion": MESSAGES}, "messages", ["completion"]),
        ({"text": TRANSCRIPT}, "transcript", ["text"]),
        ({"sample": TRANSCRIPT, "n": "1"}, "transcript", ["sample"]),
    ],
)
def test_nested_columns_are_mapped_by_names_and_cells(columns, shape, fields):
    assert (mapped(table(**columns))[0], list(mapped(table(**columns))[1].values())) == (shape, fields)


@pytest.mark.parametrize("first", ['"weight": 1, ', '"name": "from", ', '"content": "the \\"from\\": key", '])
def test_the_family_of_a_list_follows_from_its_keys_in_any_order(first):
    assert mapped(table(messages=f'[{{{first}"role": "user", "content": "Hi"}}]'))[0] == "messages"


def test_a_named_column_is_mapped_if_any_of_its_cells_fits():
    assert mapped(table(conversations=[None] * 150 + ["[{", SHAREGPT]))[0] == "sharegpt"


def test_a_list_in_one_answer_does_not_change_the_shape():
    assert mapped(table(question=["a", "b", "c"], answer=["x", MESSAGES, "y"]))[0] == "pairs"


# ------------------------------------------------------------------------------------------------------------ options


def test_the_map_option_maps_columns_with_other_names():
    frame = table(body_text="Hi", best="Hello", id="7")
    assert mapped(frame, map={"question": "body_text", "answer": "best"})[1] == {
        "question": "body_text",
        "answer": "best",
    }


def test_fields_missing_in_the_map_option_are_detected():
    frame = table(body_text="Hi", answer="Hello", question="old")
    assert mapped(frame, map={"question": "body_text"})[1] == {"question": "body_text", "answer": "answer"}


def test_an_empty_column_excludes_a_field():
    frame = table(question="Hi", answer="Hello", context="x")
    assert "context" in mapped(frame)[1]
    assert mapped(frame, map={"context": ""})[1] == {"question": "question", "answer": "answer"}


def test_the_shape_option_selects_one_of_two_shapes():
    frame = table(messages=MESSAGES, question="Hi", answer="Hello")
    assert mapped(frame, shape="messages")[1] == {"messages": "messages"}
    assert mapped(frame, shape="pairs")[1] == {"question": "question", "answer": "answer"}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"map": {"questoin": "a"}}, "questoin is not a known field, did you mean question?"),
        ({"map": {"question": "bodytext"}}, "bodytext is not a known column, did you mean body_text?"),
        ({"shape": "sharegtp"}, "sharegtp is not a known shape, did you mean sharegpt?"),
        ({"shape": "pairs", "map": {"output": "a"}}, "output is not a known field of pairs."),
        ({"role": "autor"}, "autor is not a known column, did you mean author?"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_known_one(options, what):
    error = error_for(table(body_text="Hi", author="Ada"), **options)
    assert error.what == what
    assert error.hint.startswith("Known names: ")


def test_a_missing_field_is_an_error_with_the_option_to_add():
    error = error_for(table(body_text="Hi", best="Hello"), map={"question": "body_text"})
    assert error.what == "pairs needs a column for answer; the columns are body_text, best."
    assert error.hint == "Add --map answer=COLUMN"


# ---------------------------------------------------------------------------------------------------------- ambiguity


@pytest.mark.parametrize(
    ("columns", "candidates"),
    [
        ({"question": "a", "answer": "b", "response": "c"}, 2),
        ({"messages": MESSAGES, "prompt": "a", "response": "b"}, 2),
        ({"conversations": SHAREGPT, "messages": SHAREGPT}, 2),
        ({"instruction": "a", "prompt": "b", "output": "c"}, 2),
        ({"instruction": "a", "input": "b", "context": "c", "output": "d"}, 3),
        ({"text": "a", "code": "b", "n": "1"}, 2),
        ({"content": "a", "summary": "b"}, 1),
        ({"ticket": "T1", "created_at": "1", "author": "customer", "body text": "x", "body": "y"}, 1),
    ],
)
def test_every_candidate_is_listed_with_the_options_that_select_it(columns, candidates):
    frame = table(**columns)
    error = error_for(frame)
    commands = printed_options(error)
    assert len(commands) == candidates
    mappings = [mapped(frame, **section_fields(options)) for options in commands]
    assert len({json.dumps(mapping) for mapping in mappings}) == candidates


def test_the_long_format_is_suggested_and_used_on_request():
    frame = table(ticket=["T1", "T1"], created_at=["1", "2"], author=["customer", "agent"], body=["Hi", "Hello"])
    assert error_for(frame).hint.endswith(
        "--shape long --group-by ticket --order-by created_at --role author --text body"
    )
    options = {"group_by": "ticket", "order_by": "created_at", "role": "author", "text": "body"}
    assert mapped(frame, **options) == mapped(frame, shape="long") == ("long", options)


def test_rows_of_two_shapes_are_an_error_with_their_counts():
    frame = table(messages=[MESSAGES, None, MESSAGES], question=[None, "Hi", None], answer=[None, "Hello", None])
    assert error_for(frame).what == (
        "The source mixes shapes: 2 rows are messages (messages) and 1 row is pairs (question, answer)."
    )
    assert error_for(table(conversations=[SHAREGPT, MESSAGES])).what.startswith("The source mixes shapes")


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "--shape pairs --map question=prompt --map answer=chosen"),
        ({"prompt": "a", "chosen": MESSAGES, "rejected": MESSAGES}, "--shape messages --map messages=chosen"),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "--shape transcript --map transcript=chosen"),
    ],
)
def test_preference_data_is_an_error_with_options_for_the_chosen_side(columns, hint):
    error = error_for(table(**columns))
    assert error.what.startswith("This is preference data")
    assert error.hint.endswith(hint)
    assert mapped(table(**columns), **section_fields(printed_options(error)[0]))[1]


def test_labelled_answers_are_an_error():
    frame = table(prompt=["a", "a"], completion=["b", "c"], label=["true", "false"])
    assert "column label" in error_for(frame).what


def test_columns_without_a_shape_are_listed():
    error = error_for(table(colour="red", taste="sweet"))
    assert error.what == (
        "No shape fits these columns, and no two of them seem to be questions and answers:\n"
        "    colour: words, such as red\n    taste: words, such as sweet"
    )


def test_an_error_lists_at_most_twenty_columns_and_counts_the_rest():
    frame = table(**{f"c{number}": "words" for number in range(120)})
    first = ", ".join(f"c{number}" for number in range(20)) + " and 100 more"
    assert error_for(frame).what.endswith("    c7: words, such as words\n    and 112 more")
    named = frame.rename({"c0": "Did she ask?", "c1": "ideal"}).with_columns(ideal=pl.lit("She did."))
    named = named.with_columns(pl.lit("Did she?").alias("Did she ask?"))
    assert error_for(named).what == f"No shape fits these columns: {first.replace('c0, c1', 'Did she ask?, ideal')}."
    assert error_for(frame, map={"question": "c7"}).what.endswith(f"the columns are {first}.")
    assert error_for(frame, map={"question": "c777"}).hint == f"Known names: {first}."


def test_an_error_lists_at_most_six_candidates_and_counts_the_rest():
    error = error_for(table(question="a", query="b", prompt="c", answer="d", response="e", completion="f"))
    assert error.what.startswith("The columns fit 9 mappings: ")
    *listed, last = error.hint.split("\n")[1:]
    assert (len(listed), last) == (6, "    and 3 more")


# ------------------------------------------------------------------------------------------------------ later batches


def test_a_later_batch_may_have_more_columns():
    first = find_mapping(table(instruction="a", output="b"), ImportSection())
    later = extend_mapping(first, table(instruction="a", output="b", system="c"), ImportSection())
    assert later.fields == {"instruction": "instruction", "output": "output", "system": "system"}


def test_a_later_batch_of_broken_cells_does_not_change_the_mapping():
    first = ColumnMapping("sharegpt", {"conversations": "conversations"})
    assert extend_mapping(first, table(conversations="[{"), ImportSection()) == first
    assert extend_mapping(first, table(note="x"), ImportSection(map={"conversations": "conversations"})) == first


@pytest.mark.parametrize(
    "later", [table(messages=MESSAGES), table(question="a", answer="b", response="c"), table(prompt="a", answer="b")]
)
def test_a_later_batch_that_contradicts_the_mapping_is_an_error(later):
    first = find_mapping(table(question="a", answer="b"), ImportSection())
    with pytest.raises(SourceError):
        extend_mapping(first, later, ImportSection())


def test_contradicting_mappings_of_one_source_are_an_error():
    pairs = ColumnMapping("pairs", {"question": "q", "answer": "a"})
    assert (
        merge_mappings(pairs, ColumnMapping("pairs", {"question": "q", "answer": "a", "system": "s"})).fields["system"]
        == "s"
    )
    with pytest.raises(SourceError, match="from pairs \\(q, a\\) to pairs \\(p, a\\)"):
        merge_mappings(pairs, ColumnMapping("pairs", {"question": "p", "answer": "a"}))


# ----------------------------------------------------------------------------------------------------------- metadata


def test_metadata_contains_the_unmapped_columns():
    mapping = ColumnMapping("pairs", {"question": "q", "answer": "a"})
    frame = table(q=["1", "2"], a=["1", "2"], id=["7", None], tags=['["x"]', None])
    assert metadata_json(frame, mapping).to_list() == ['{"id":"7","tags":"[\\"x\\"]"}', None]
    assert metadata_json(frame.select("q", "a"), mapping).to_list() == [None, None]


@pytest.mark.parametrize("name", ["*", "^x$", "^b.*$"])
def test_a_column_name_may_look_like_a_pattern(name):
    mapping = ColumnMapping("pairs", {"question": "question", "answer": "answer"})
    frame = table(**{"question": ["q", "q"], "answer": ["a", "a"], name: ["1", None], "x": ["2", None]})
    assert mapped(frame) == ("pairs", {"question": "question", "answer": "answer"})
    assert metadata_json(frame, mapping).to_list() == [f'{{"{name}":"1","x":"2"}}', None]
    options = {"question": name, "answer": "answer"}
    assert mapped(frame, map=options) == ("pairs", options)
