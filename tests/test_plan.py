"""Plan and preview: tokens, packs, steps, loss masks and origins, without loading a model."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from support.model_files import add_model_files
from support.stores import add_version, chat

from curate.cli.views.plans import show_plan
from curate.demo import STEPS, copy_sample
from curate.versions.freeze import freeze
from schemas.conversation import Conversation, Turn
from schemas.errors import TrainError, VersionError
from schemas.recipe import Recipe, TrainSection, load_recipe
from schemas.store import writing
from train.engines import token_digest
from train.plan.pack_count import count_packs
from train.plan.plan import has_gpu, plan
from train.plan.prepare import prepare_version
from train.plan.preview import find_ids, first_members, preview, trace_token
from train.tokens.ledger import trainable

TALK = chat("  Hi there", "Hello, you.\n", "What is it?", "Bye \x1b[31mred")
SHORT = [chat(f"Hi {number}", "Hello") for number in range(10)]
LONG = chat("Hi", "Hello " * 100)
SILENT = Conversation((Turn("human", "Hi"), Turn("gpt", "Hello", train=False)))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer_dir(tokenizer_dir, tmp_path):
    """A model with that tokenizer."""
    return add_model_files(Path(shutil.copytree(tokenizer_dir, tmp_path / "model")))


@pytest.fixture
def store(tmp_path):
    """A store with `chats@1`: all conversations above, nothing held out."""
    path = tmp_path / "curate.duckdb"
    add_version(path, [TALK, *SHORT, LONG, SILENT], source="chats.csv")
    return path


@pytest.fixture
def prepared(store, tokenizer_dir):
    return prepare_version(
        store, "chats@1", TrainSection(model=str(tokenizer_dir), max_length=100, batch=2, accumulate=2)
    )


def test_a_plan_counts_conversations_tokens_packs_and_steps(prepared):
    planned = plan(prepared)
    trained = [entry["tokens"] for entry in prepared.ledger.filter(pl.col("outcome") == "kept").to_dicts()]
    assert planned.conversations == {"train": 13}
    assert planned.outcomes == {"kept": 11, "truncated": 0, "dropped": 2}
    assert planned.tokens == sum(trained)
    assert planned.loss_tokens == prepared.ledger["loss_tokens"].sum() < planned.tokens
    assert planned.packs == count_packs(trained, 100) == 2
    assert planned.fill == pytest.approx(sum(trained) / 200)
    assert planned.steps == planned.steps_per_epoch == 1
    assert planned.steps_unpacked == 3  # 11 rows, batch size 2, 2 accumulation steps
    assert planned.end_of_turn == ["<|im_end|>"]
    assert planned.generation_prompt == "<|im_start|>assistant\n"
    assert sum(entry["conversations"] for entry in planned.lengths) == 13


def test_rendering_reports_progress_and_is_cached(store, tokenizer_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("train.tokens.render.CHUNK", 5)
    calls = []
    for _ in range(2):
        prepare_version(store, "chats@1", TrainSection(model=str(tokenizer_dir)), lambda *now: calls.append(now))
    assert calls == [(5, 13), (10, 13), (13, 13)]


def test_steps_depend_on_whether_the_machine_has_a_gpu(prepared, curate, store, tokenizer_dir):
    on_cpu, on_gpu = plan(prepared, on_gpu=False), plan(prepared, on_gpu=True)
    assert (on_cpu.packing, on_cpu.steps, on_cpu.steps_per_epoch) == (False, 3, 3)
    assert (on_gpu.packing, on_gpu.steps) == (True, 1)
    other = prepare_version(store, "chats", prepared.section.model_copy(update={"engine": "transformers"}))
    assert plan(other, on_gpu=False).steps == 1
    options = ("--store", str(store), "--model", str(tokenizer_dir), "--set", "train.max_length=100", "--json")
    output = json.loads(curate("plan", "chats@1", *options).stdout)
    assert output["packing"] is has_gpu()


def test_a_plan_lists_dropped_conversations_and_the_refusal(prepared, capsys):
    planned = plan(prepared)
    assert [(entry["code"], entry["example"]) for entry in planned.problems] == [
        ("too-long", LONG.id),
        ("no-loss-tokens", SILENT.id),
    ]
    assert [entry["conversation"] for entry in planned.too_long] == [LONG.id]
    show_plan(planned)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "too-long" in line)
    assert f" {LONG.id[:12]} " in line  # fits into 80 columns, and is enough for curate preview --id
    assert planned.refusal.startswith("1 of 13 conversations are longer than max_length 100 tokens")
    assert "--set train.long=truncate" in planned.hint


def test_every_setting_that_a_plan_suggests_passes(prepared, store, tokenizer_dir):
    settings = plan(prepared).hint.removeprefix("Use ").removesuffix(".").split(", or ")
    assert [setting.split("=")[0].split()[-1].removeprefix("train.") for setting in settings] == [
        "max_length",
        *["long"] * 3,
    ]
    for options in settings:
        changes = dict(one.removeprefix("train.").split("=") for one in options.split() if one != "--set")
        section = TrainSection(model=str(tokenizer_dir), batch=2, accumulate=2, **{"max_length": 100} | changes)
        assert plan(prepare_version(store, "chats", section)).refusal is None
        for limit in [key for key in changes if key.startswith("max_") and key != "max_length"]:
            assert plan(prepare_version(store, "chats", section.model_copy(update={limit: 0.0}))).refusal


def test_a_preview_of_selected_conversations_equals_that_of_the_version(prepared, store):
    few = prepare_version(store, "chats@1", prepared.section, only=partial(first_members, prefix="", limit=2))
    chosen = find_ids(prepared, "", 2)
    assert few.rendered["id"].to_list() == chosen
    assert [preview(few, one) for one in chosen] == [preview(prepared, one) for one in chosen]


def test_steps_of_the_recipe_override_epochs(store, tokenizer_dir):
    section = TrainSection(model=str(tokenizer_dir), max_length=4000, epochs=2.5, batch=1, accumulate=3, packing=False)
    assert plan(prepare_version(store, "chats", section)).steps == 10  # 12 conversations, 4 steps per epoch
    assert plan(prepare_version(store, "chats", section.model_copy(update={"steps": 7}))).steps == 7


def test_control_tokens_typed_by_a_user_are_a_warning(tmp_path, tokenizer_dir):
    path = tmp_path / "typed.duckdb"
    add_version(path, [chat("What is <|im_end|>?", "Hello"), chat("Hi", "\nHello")], name="typed")
    planned = plan(prepare_version(path, "typed", TrainSection(model=str(tokenizer_dir))))
    assert planned.warnings == {"special tokens typed by a user": 1, "tokens across the start of an answer": 1}
    assert planned.refusal is None


def test_a_missing_version_and_a_missing_model_are_errors(store, tokenizer_dir):
    with pytest.raises(VersionError, match="There is no version chats@7"):
        prepare_version(store, "chats@7", TrainSection(model=str(tokenizer_dir)))
    with pytest.raises(TrainError, match="No base model is named"):
        prepare_version(store, "chats", TrainSection())
    with pytest.raises(TrainError, match="There is no model folder at nowhere"):
        prepare_version(store, "chats", TrainSection(model="nowhere"))


def test_a_training_without_a_model_fails_before_torch_is_loaded():
    code = """if True:
        import sys
        from pathlib import Path
        from schemas.errors import TrainError
        from schemas.recipe import load_recipe, TrainSection
        from train.runs.fit import prepare_run
        try:
            prepare_run(Path("none.duckdb"), "none@1", TrainSection())
        except TrainError as error:
            print(error.what, "torch" in sys.modules)
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "No base model is named. False\n"


def test_the_pack_count_equals_trls(tmp_path):
    from datasets import Dataset
    from trl import pack_dataset

    draw = random.Random(7)
    lengths = [min(256, max(3, int(draw.lognormvariate(4, 0.9)))) for _ in range(2_500)]
    rows = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    packed = pack_dataset(rows, 256, "bfd", {"keep_in_memory": True, "load_from_cache_file": False})
    assert count_packs(lengths, 256) == len(packed)


def test_a_plan_counts_the_repeats_of_a_mix(store, tokenizer_dir):
    mix = {"hi": {"where": "prompt like 'Hi %'", "epochs": 3}}
    with writing(store) as connection:
        freeze(connection, "mixed", Recipe.model_validate({"freeze": {"held_out": 0}, "mix": mix}))
    section = TrainSection(model=str(tokenizer_dir), max_length=100, batch=2, accumulate=2)
    once, mixed = (prepare_version(store, label, section) for label in ("chats@1", "mixed@1"))
    short = once.ledger.filter(pl.col("conversation").is_in([talk.id for talk in SHORT]))
    before, after = plan(once), plan(mixed)
    assert (before.repeats, after.repeats) == (0, 20)
    assert after.tokens - before.tokens == 2 * short["tokens"].sum()
    assert after.loss_tokens - before.loss_tokens == 2 * short["loss_tokens"].sum()
    assert after.conversations == before.conversations
    rows = trainable(mixed.rendered, mixed.ledger)
    assert after.packs == count_packs(rows["input_ids"].list.len().to_list(), 100) > before.packs
    assert after.steps_unpacked == -(-rows.height // 4)


def test_the_sample_has_the_version_and_token_digests_of_the_demo(curate, tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    copy_sample(folder)
    commands = [step.command for step in STEPS]
    for command in commands[: commands.index("freeze support") + 1]:
        assert curate(*shlex.split(command), cwd=folder).returncode == 0, command
    monkeypatch.chdir(folder)  # the recipe names the model by a relative path
    prepared = prepare_version(folder / "curate.duckdb", "support@1", load_recipe(None, []).train)
    rows = trainable(prepared.rendered, prepared.ledger).filter(pl.col("split") == "train")
    assert prepared.version.digest == "7c03524677d565fb2fbf4d8304137dbbeea32f7cd76851d2f78f183ded9f8475"
    assert token_digest(rows) == "cae02871e0c2a4198759e0cda15a3412fb0110b1aba1551e4974641534bb855c"


# --------------------------------------------------------------------------------------------------------- preview


def test_a_preview_has_every_character_once_and_the_loss_mask(prepared):
    shown = preview(prepared, TALK.id)
    assert "".join(segment.text for segment in shown.segments) == (
        "<|im_start|>user\n  Hi there<|im_end|>\n<|im_start|>assistant\nHello, you.\n<|im_end|>\n"
        "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nBye \x1b[31mred<|im_end|>\n"
    )
    assert [segment.text for segment in shown.segments if segment.in_loss] == [
        "Hello, you.\n<|im_end|>",
        "Bye \x1b[31mred<|im_end|>",
    ]
    assert [view.token for view in shown.token_views] == [*range(shown.tokens)]
    assert sum(view.label >= 0 for view in shown.token_views) == shown.loss_tokens


def test_a_preview_shows_where_a_conversation_is_cut(store, tokenizer_dir):
    first_answer = 39
    section = TrainSection(model=str(tokenizer_dir), max_length=first_answer, long="truncate")
    shown = preview(prepare_version(store, "chats", section), TALK.id)
    assert shown.outcome == "truncated"
    assert [segment.trained for segment in shown.segments] == [True, True, False, False, False]
    assert shown.segments[1].text == "Hello, you.\n<|im_end|>"


def test_a_token_is_traced_to_its_turn_and_the_line_of_its_file(prepared, store):
    shown = preview(prepared, TALK.id)
    token = next(view.token for view in shown.token_views if view.text == "Hello")
    origin = trace_token(prepared, store, TALK.id, token)
    assert (origin.part, origin.turn, origin.role, origin.characters) == ("words", 2, "gpt", (0, 5))
    assert origin.label == origin.id
    assert origin.origins == [{"path": "chats.csv", "row": 1, "line": 2}]


def test_the_tokens_of_a_turn_are_traced_back_to_it(prepared, store):
    shown = preview(prepared, TALK.id)
    assert [turn.role for turn in shown.turns] == ["human", "gpt", "human", "gpt"]
    for turn in shown.turns:
        value = TALK.turns[turn.turn - 1].value
        origins = [trace_token(prepared, store, TALK.id, token) for token in range(turn.first, turn.end)]
        assert {origin.turn for origin in origins} == {turn.turn}
        assert "".join(value[slice(*origin.characters)] for origin in origins) == value


def test_the_end_of_a_turn_is_distinguished_from_the_templates_text(prepared, store):
    shown = preview(prepared, TALK.id)
    origins = [trace_token(prepared, store, TALK.id, view.token) for view in shown.token_views]
    ends = [t for t in origins if t.part == "end of turn"]
    assert [(t.text, t.turn, t.label) for t in ends] == [("<|im_end|>", 2, 4), ("<|im_end|>", 4, 4)]
    assert origins[0].part == "template"
    assert origins[0].turn is None


def test_ids_are_found_by_prefix(prepared):
    assert find_ids(prepared, TALK.id[:9], 3) == [TALK.id]
    assert len(find_ids(prepared, "", 3)) == 3
    with pytest.raises(VersionError, match=r"No conversation of chats@1 has an id that begins with xyz\."):
        find_ids(prepared, "xyz", 3)
    with pytest.raises(TrainError, match="there is no token 99999"):
        trace_token(prepared, None, TALK.id, 99_999)


# ---------------------------------------------------------------------------------------------- the command line


def test_plan_and_preview_load_neither_torch_nor_transformers(store, tokenizer_dir):
    code = (
        "import sys; from typer.testing import CliRunner; from curate.cli.app import app;"
        "done = CliRunner().invoke(app, sys.argv[1:], catch_exceptions=False);"
        "heavy = {'torch', 'transformers', 'datasets', 'unsloth', 'trl'} & set(sys.modules);"
        "assert done.exit_code == 0 and not heavy, (done.output, heavy)"
    )
    for command in (["plan", "chats@1"], ["preview", "chats@1", "--limit", "1"]):
        words = [
            *command,
            "--store",
            str(store),
            "--model",
            str(tokenizer_dir),
            "--set=train.max_dropped=0.2",
            "--json",
        ]
        subprocess.run([sys.executable, "-P", "-c", code, *words], check=True, env=os.environ)


def test_the_commands_print_text_and_json(curate, store, tokenizer_dir):
    options = ("--store", str(store), "--model", str(tokenizer_dir), "--set", "train.max_length=100")
    planned = curate("plan", "chats@1", *options)
    assert planned.returncode == 1
    assert "11 kept, 0 truncated, 2 dropped" in planned.stdout
    assert "curate train would refuse to start: 1 of 13" in planned.stdout
    refused = curate("plan", "chats@1", *options, "--json")
    assert (refused.returncode, json.loads(refused.stdout)["outcomes"]["dropped"]) == (1, 2)
    assert curate("plan", "chats@1", *options, "--set=train.long=drop", "--set=train.max_dropped=0.2").returncode == 0

    dropping = ("--set=train.long=drop", "--set=train.max_dropped=0.2", "--set=train.engine=transformers")
    listed = curate("train", "chats@1", *options, *dropping, "--dry-run", COLUMNS="200")
    assert "Not trained on, or not completely: 2 dropped" in listed.stdout
    assert re.search(r"^[0-9a-f]{12} +dropped +\d+ +\S", listed.stdout, re.MULTILINE)

    shown = curate("preview", "chats@1", *options, "--id", TALK.id[:12])
    assert shown.returncode == 0
    assert "⟦Hello, you.\n<|im_end|>⟧" in shown.stdout
    assert "⟦Bye ␛[31mred<|im_end|>⟧" in shown.stdout
    assert "\x1b" not in shown.stdout

    tokens = curate("preview", "chats@1", *options, "--id", TALK.id, "--tokens").stdout
    assert "'<|im_start|>'" in tokens
    cut = curate("preview", "chats@1", *options, "--id", LONG.id).stdout
    assert "dropped: It has" in cut
    assert "✂ not trained from here" in cut
    origin = curate("preview", "chats@1", *options, "--id", TALK.id, "--token", "3").stdout
    assert "turn 1 (human)" in origin
    assert "chats.csv:2 (row 1)" in origin


def test_an_error_is_printed_on_two_lines(curate, store, tokenizer_dir):
    done = curate("plan", "chats", "--store", str(store), "--model", str(tokenizer_dir), "--template", "no/such.jinja")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("Error: The template no/such.jinja cannot be read")
    assert len(done.stderr.splitlines()) == 2
