"""`curate show`: a complete conversation with all that the store contains about it, and its loss mask."""

import json

import pytest
from support.project import ROOT
from support.stores import add, add_verdict, chat

from curate.dedup.clusters import deduplicate_store
from curate.versions.freeze import freeze
from schemas.conversation import Conversation, Turn
from schemas.recipe import Recipe
from schemas.store import writing

MODEL = str(ROOT / "data" / "tiny")
LONG = "The pump was left in the rain for a week and makes a noise like a kettle. " * 8
TOOLS = '[{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]'
CALLS = Conversation(
    (
        Turn("human", "Weather in Basel?"),
        Turn("function_call", '{"name": "weather", "arguments": {"city": "Basel"}}'),
        Turn("observation", "sunny, 21 °C"),
        Turn("gpt", "<think>It is sunny.</think>\nSunny <img onerror=alert(1)> \x1b[31m.", train=False),
    ),
    TOOLS,
)


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "curate.duckdb"
    add(path, [CALLS, chat(LONG, "Oil the valve."), chat(LONG, "Oil the valve. Now!")], metadata={"rating": 5})
    return path


@pytest.fixture
def show(store, curate):
    return lambda *arguments: curate("show", *arguments, "--store", str(store))


def test_every_turn_is_printed_completely(show):
    shown = show(CALLS.id)
    assert shown.returncode == 0
    for part in (
        f"conversation {CALLS.id}", '1 human\n  Weather in Basel?', '2 function_call\n  {\n    "name": "weather",',
        "3 observation\n  sunny, 21 °C", "4 gpt (no loss)\n  <think>It is sunny.</think>\n  Sunny <img",
        'tools\n  [\n    {\n      "name": "weather",', '"rating": 5',
        "data.csv line 2 (row 1)", "current verdict: kept",
    ):  # fmt: skip
        assert part in shown.stdout
    assert "\x1b" not in shown.stdout
    assert LONG.strip() in show("data.csv:3").stdout


def test_verdicts_near_duplicates_and_versions_are_shown(store, show):
    first, second = chat(LONG, "Oil the valve."), chat(LONG, "Oil the valve. Now!")
    add_verdict(store, first.id, "drop", by_whom="ana", reason="too short")
    deduplicate_store(store, Recipe())
    with writing(store) as connection:
        freeze(connection, "chats", Recipe.model_validate({"freeze": {"held_out": 0}}))
    shown = show(first.id[:8]).stdout
    assert "ana: drop, too short" in shown
    assert f"other members of the near-duplicate cluster\n  {second.id[:12]} kept, kept instead of this one" in shown
    assert "chats@1, train" in show(second.id).stdout
    (found,) = json.loads(show(second.id, "--json").stdout)
    (other,) = found["near_duplicates"]
    assert (other["conversation"], other["nearest"], other["kept_instead"]) == (first.id, second.id, False)
    assert found["loss_mask"] == []


def test_the_loss_mask_is_that_of_preview(store, show, curate):
    one = chat(LONG, "Oil the valve.")
    with writing(store) as connection:
        freeze(connection, "chats", Recipe.model_validate({"freeze": {"held_out": 0}}))
    options = ("--model", MODEL, "--template", "chatml")
    preview = curate("preview", "chats@1", "--id", one.id, *options, "--store", str(store)).stdout
    shown = show(one.id, *options).stdout
    assert "⟦Oil the valve." in shown
    assert shown.endswith(f"loss mask\n{preview}")
    (found,) = json.loads(show(one.id, *options, "--json").stdout)
    assert next(part["text"] for part in found["loss_mask"][0]["segments"] if part["in_loss"]).startswith("Oil")


def test_a_model_of_the_recipe_that_is_not_here_is_noted_and_one_of_an_option_is_an_error(show):
    noted = show(CALLS.id, "--set", "train.model=./nowhere")
    assert noted.returncode == 0
    assert "No loss mask: There is no model folder at ./nowhere." in noted.stderr
    failed = show(CALLS.id, "--model", "./nowhere")
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 2)


def test_an_ambiguous_prefix_is_an_error_with_the_candidates(store, show):
    with writing(store) as connection:
        query = "INSERT INTO conversations SELECT ?, conversations, tools, parent FROM conversations LIMIT 1"
        connection.execute(query, [CALLS.id[:6] + "0" * 26])
    failed = show(CALLS.id[:6])
    assert failed.returncode == 1
    assert CALLS.id in failed.stderr
    assert "Give more digits" in failed.stderr
