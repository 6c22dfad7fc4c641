"""Windows of long conversations: each exchange once, the system turn in each, a row in the ledger for each."""

import json
import shutil
import subprocess
from functools import partial

import polars as pl
import pytest
from support.make_tokenizers import CHATML
from support.renderings import frame
from support.stores import add, add_version, chat
from support.training import WORDS, command, conversations, train

from curate.versions.freeze import freeze
from schemas.conversation import Conversation, Turn
from schemas.errors import TrainError
from schemas.recipe import TrainSection, check_recipe
from schemas.store import writing
from train.plan.plan import plan
from train.plan.prepare import prepare_version
from train.plan.preview import find_windows, preview, trace_token
from train.tokens.chat_template import Template
from train.tokens.ledger import build_ledger, check_limits, trainable
from train.tokens.render import render
from train.tokens.windows import render_members, window_turns

TEMPLATE = Template("chatml", CHATML)
LONG = chat(*(f"{word} {n}" for n in range(1, 6) for word in ("Hi", "Hello")), system="Be kind.")  # 93 tokens
SHORT = chat("Hi", "Bye", system="Be kind.")
OTHER = chat("What", "Bye")
HUGE = chat("Hi", "Hello", "What", "Bye " * 60, "Hi", "Bye")


def members(*conversations):
    return frame(*conversations).with_columns(split=pl.lit("train"))


def recipe(max_length, **more):
    return TrainSection(long="split", max_length=max_length, **more)


def windows(rendered):
    return rendered["window"].drop_nulls().to_list()


def test_a_long_conversation_becomes_windows_of_complete_exchanges_with_its_id(tokenizer):
    rendered = render_members(recipe(55), members(SHORT, LONG, OTHER), TEMPLATE, tokenizer)
    assert rendered["id"].to_list() == [SHORT.id, LONG.id, LONG.id, LONG.id, OTHER.id]
    total = render(members(LONG), TEMPLATE, tokenizer)["input_ids"].list.len().item()
    assert windows(rendered) == [
        {"number": 1, "of": 3, "first": 2, "last": 5, "total_tokens": total},
        {"number": 2, "of": 3, "first": 6, "last": 9, "total_tokens": total},
        {"number": 3, "of": 3, "first": 10, "last": 11, "total_tokens": total},
    ]
    assert rendered["input_ids"].list.len().max() <= 55


def test_a_window_is_rendered_like_a_conversation(tokenizer):
    rendered = render_members(recipe(55), members(LONG), TEMPLATE, tokenizer)
    for row in rendered.iter_rows(named=True):
        numbers, _ = window_turns([turn.as_row() for turn in LONG.turns], row["window"])
        turns = tuple(LONG.turns[number] for number in numbers)
        alone = render(members(Conversation(turns)), TEMPLATE, tokenizer).row(0, named=True)
        assert (row["input_ids"], row["labels"], row["stops"]) == (alone["input_ids"], alone["labels"], alone["stops"])
        assert turns[0] == Turn("system", "Be kind.")


@pytest.mark.parametrize("max_length", [36, 40, 55, 80, 92])
def test_every_answer_is_in_the_loss_once_for_any_max_length(tokenizer, max_length):
    rendered = render_members(recipe(max_length), members(LONG), TEMPLATE, tokenizer)
    labels = pl.col("labels").explode().filter(pl.col("labels").explode() != -100)
    unsplit = render(members(LONG), TEMPLATE, tokenizer)
    assert rendered.select(labels).equals(unsplit.select(labels))
    assert (rendered["input_ids"].list.len() <= max_length).all()


def test_the_ledger_has_a_row_for_each_window(tokenizer):
    section = recipe(55)
    rendered = render_members(section, members(SHORT, LONG), TEMPLATE, tokenizer)
    ledger = build_ledger(rendered, section)
    assert ledger.select("conversation", "window", "outcome", "code", "cut").rows() == [
        (SHORT.id, None, "kept", None, 0),
        (LONG.id, 1, "split", "windowed", 0),
        (LONG.id, 2, "split", "windowed", 0),
        (LONG.id, 3, "split", "windowed", 0),
    ]
    assert ledger["reason"][1] == "Window 1 of 3, turns 2 to 5 of a conversation of 93 tokens."
    check_limits(ledger, section, partial(build_ledger, rendered))  # no token is lost, so no limit applies
    assert trainable(rendered, ledger)["input_ids"].equals(rendered["input_ids"])


def test_a_single_exchange_that_is_too_long_is_dropped_and_must_be_allowed(tokenizer):
    section = recipe(55)
    rendered = render_members(section, members(SHORT, HUGE), TEMPLATE, tokenizer)
    ledger = build_ledger(rendered, section)
    assert ledger.select("window", "outcome", "code").rows() == [
        (None, "kept", None),
        (1, "split", "windowed"),
        (2, "dropped", "too-long"),
        (3, "split", "windowed"),
    ]
    assert ledger["reason"][2] == (
        f"It has {ledger['tokens'][2]} tokens, max_length is 55, and a single exchange is not split."
    )
    with pytest.raises(TrainError, match=r"1 of 2 conversations would be dropped in part, max_dropped allows 0"):
        check_limits(ledger, section, partial(build_ledger, rendered))
    check_limits(ledger, recipe(55, max_dropped=0.5), partial(build_ledger, rendered))
    assert trainable(rendered, ledger).height == 3


def test_an_exchange_has_a_question_and_everything_up_to_its_answer(tokenizer):
    call = Turn("function_call", '{"name": "now"}')
    turns = (
        Turn("gpt", "Hello!"),
        *(Turn("human", "Hi"), Turn("human", "Hi?"), call, Turn("observation", "1"), Turn("gpt", "1")),
        *(Turn("human", "Bye"), Turn("gpt", "Bye")),
    )
    section = recipe(100)
    template = Template(
        "calls",
        CHATML.replace("message.content", "(message.tool_calls|tojson if message.tool_calls else message.content)"),
    )
    rendered = render_members(section, members(Conversation(turns)), template, tokenizer)
    assert [(window["first"], window["last"]) for window in windows(rendered)] == [(1, 6), (7, 8)]


def test_conversations_that_fit_are_not_split(tokenizer):
    both = members(LONG, SHORT)
    assert render_members(recipe(93), both, TEMPLATE, tokenizer).equals(
        render_members(TrainSection(max_length=93), both, TEMPLATE, tokenizer)
    )


# -------------------------------------------------------------------------------------------------- from the store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "curate.duckdb"
    add_version(path, [LONG, SHORT], source="chats.csv")
    return path


def test_plan_and_preview_show_the_windows(store, tokenizer_dir):
    prepared = prepare_version(store, "chats", recipe(55, model=str(tokenizer_dir)))
    planned = plan(prepared)
    assert planned.outcomes == {"kept": 1, "split": 3, "truncated": 0, "dropped": 0}
    assert str(planned.refusal).endswith("it has no config.json.")  # only a tokenizer
    assert prepare_version(store, "chats", recipe(55, model=str(tokenizer_dir))).rendered.equals(
        prepared.rendered
    )  # from the cache
    shown = [preview(prepared, *each) for each in find_windows(prepared, [LONG.id], None)]
    assert [[turn.turn for turn in each.turns] for each in shown] == [[1, 2, 3, 4, 5], [1, 6, 7, 8, 9], [1, 10, 11]]
    origin = trace_token(prepared, store, LONG.id, shown[1].turns[1].first, 2)
    assert (origin.turn, origin.role, origin.text) == (6, "human", "Hi")


def test_the_command_shows_every_window_or_one(curate, store, tokenizer_dir):
    options = (
        "--store",
        str(store),
        "--model",
        str(tokenizer_dir),
        "--set=train.max_length=55",
        "--set=train.long=split",
    )
    shown = json.loads(curate("preview", "chats", *options, "--id", LONG.id, "--json").stdout)
    assert [each["window"] for each in shown] == [1, 2, 3]
    assert "window 2" in curate("preview", "chats", *options, "--id", LONG.id, "--window", "2").stdout
    assert "has a window 9" in curate("preview", "chats", *options, "--window", "9").stderr


@pytest.mark.slow
def test_a_run_on_windows_with_skipped_reasoning_is_verified(tmp_path, sample):
    shutil.copytree(sample / "tiny", tmp_path / "tiny")
    store = tmp_path / "curate.duckdb"
    words = [f"<think>so</think>The {word} is here." for word in WORDS]
    talks = [
        chat(*(text for word in words for text in (f"What about {n}?", word)), system="Be kind.") for n in range(4)
    ]
    add(store, [*talks, *conversations()])
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0.2}}, "the test"))
    split = ("--set=train.long=split", "--set=train.reasoning=skip", "--set=train.max_length=96", "--set=train.steps=2")
    run = train(tmp_path, *split, "--engine", "transformers")
    ledger = pl.read_parquet(tmp_path / "adapters" / "r1" / "ledger.parquet")
    assert set(ledger["outcome"]) == {"kept", "split"}
    trained = ledger.filter(pl.col("split") == "train")
    assert trained.height > trained["conversation"].n_unique()
    assert run["manifest"]["tokens"]["conversations"] == trained["conversation"].n_unique()
    held_out = run["manifest"]["data"]["counts"]["held_out"]
    card = (tmp_path / "adapters" / "r1" / "README.md").read_text(encoding="utf-8")
    assert f"{trained['conversation'].n_unique()} to train on, 0 dropped, 0 truncated, {held_out} held out" in card
    verified = subprocess.run(command("verify", "r1"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout
