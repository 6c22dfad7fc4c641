"""Raw text: imported, rendered, split into parts, trained with an embedding learning rate, merged, repeated."""

import json
import subprocess
import sys

import polars as pl
import pytest
from safetensors.torch import load_file, save_file
from support.stores import add, chat
from support.training import SETTINGS, TINY, command, make_project, section

from curate.cli.views.plans import show_plan
from curate.ingest.column_mapping import find_mapping
from curate.versions.freeze import freeze
from schemas.conversation import Conversation, Turn
from schemas.errors import ExportError, SourceError, TrainError
from schemas.import_recipe import ImportSection
from schemas.recipe import Recipe
from schemas.store import reading, writing
from train.engines import Job, find_engine
from train.plan.memory import estimate_memory
from train.plan.plan import plan
from train.plan.prepare import prepare_version
from train.plan.preview import preview, trace_token
from train.runs.fit import prepare_run
from train.runs.torchrun import Processes, check_devices
from train.tokens.labels import IGNORE_INDEX
from train.tokens.tokenizer import Tokenizer

WORDS = ["pump", "valve", "boat", "keel", "tide", "rope", "anchor", "sail"]
TEXTS = [
    " ".join(f"Zorq the {WORDS[(n + k) % 8]} hums by day {n * k % 9}." for k in range(1, 4 + n % 20)) for n in range(30)
]
SHORT, LONG = TEXTS[0], TEXTS[19]
RAW = {"template": "raw", "long": "split", "max_length": 128}
OPTIONS = [f"--set=train.{key}={value}" for key, value in RAW.items()]


def text(words):
    return Conversation((Turn("gpt", words),))


def make_texts(folder):
    """A project whose version docs@1 has 30 texts."""
    store = make_project(folder)
    with writing(store) as connection:
        connection.execute("DELETE FROM conversations")
    add(store, [text(words) for words in TEXTS], source="texts.jsonl")
    with writing(store) as connection:
        freeze(connection, "docs", Recipe.model_validate({"freeze": {"held_out": 0.2}}))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        store = make_texts(tmp_path_factory.mktemp("project"))
        patch.chdir(store.parent)
        yield store


def ids_of(words):
    tokenizer = Tokenizer.load(TINY)
    begin, end = (tokenizer.named[f"{name}_token"] for name in ("bos", "eos"))
    return tokenizer.encode([f"{begin}{words}{end}"])[0].ids


# -------------------------------------------------------------------------------------------------------- import


def test_a_text_column_is_raw_text_if_no_other_shape_fits_or_on_request(tmp_path, curate):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("Once.", "")))
    ran = curate("import", "texts.jsonl")
    assert "texts.jsonl: text (text = text)" in ran.stdout
    assert "0 duplicates + 1 rejected" in ran.stdout
    with reading(tmp_path / "curate.duckdb") as connection:
        ((turns,),) = connection.execute("SELECT conversations FROM conversations").fetchall()
    assert [(turn["from"], turn["value"]) for turn in turns] == [("gpt", "Once.")]
    columns = pl.DataFrame({"text": ["a"], "title": ["b"], "question": ["c"], "answer": ["d"]})
    assert find_mapping(columns, ImportSection()).shape == "pairs"
    assert find_mapping(columns, ImportSection(shape="text", text="title")).fields == {"text": "title"}
    with pytest.raises(SourceError, match="not certain") as unsure:
        find_mapping(columns.select("text", "title"), ImportSection())
    assert "--shape text --text text" in unsure.value.hint


def test_a_text_column_next_to_others_is_raw_text_only_on_request(tmp_path, curate):
    (tmp_path / "labelled.csv").write_text("text,label\nhello there,greeting\nbye then,farewell\n")
    refused = curate("import", "labelled.csv")
    assert refused.returncode == 1
    assert "--shape text --text text" in refused.stderr
    requested = curate("import", "labelled.csv", "--shape", "text")
    assert "labelled.csv: text (text = text)" in requested.stdout


def test_only_raw_text_may_begin_with_an_answer(tmp_path, curate):
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "assistant", "content": "Hi"}]}\n')
    assert "not-starting-with-user" in curate("import", "chats.jsonl").stdout


# -------------------------------------------------------------------------------------------------------- rendering


def test_all_tokens_of_a_text_but_the_first_are_loss_tokens_and_long_texts_are_split(store):
    prepared = prepare_version(store, "docs@1", section(**RAW))
    rows = {row["id"]: row for row in prepared.rendered.filter(pl.col("window").is_null()).iter_rows(named=True)}
    short = rows[text(SHORT).id]
    assert short["input_ids"] == ids_of(SHORT)
    assert short["labels"] == [IGNORE_INDEX, *ids_of(SHORT)[1:]]
    parts = prepared.rendered.filter(pl.col("id") == text(LONG).id)
    assert parts["window"].struct.field("number").to_list() == [1, 2, 3]
    assert parts["input_ids"].list.len().to_list() == [128, 128, len(ids_of(LONG)) - 256]
    assert parts["input_ids"].explode().to_list() == ids_of(LONG)
    assert parts["labels"].list.first().to_list() == [IGNORE_INDEX] * 3
    assert parts["labels"].list.slice(1).explode().to_list() == parts["input_ids"].list.slice(1).explode().to_list()
    assert plan(prepared).refusal is None


def test_a_plan_counts_texts_and_the_parts_of_long_ones(store, capsys):
    prepared = prepare_version(store, "docs@1", section(**RAW))
    planned = plan(prepared)
    parts = prepared.rendered.filter(pl.col("window").is_not_null())
    longer = parts["id"].n_unique()
    assert 0 < longer < parts.height
    assert sum(planned.conversations.values()) == len(TEXTS)
    assert (planned.split_conversations, planned.outcomes["split"]) == (longer, parts.height)
    assert planned.outcomes["kept"] + longer == len(TEXTS)
    assert [problem["conversations"] for problem in planned.problems] == [longer]
    show_plan(planned)
    assert f"{longer} split into {parts.height} windows" in " ".join(capsys.readouterr().out.split())


def test_no_part_is_a_single_token_without_loss(store):
    room = len(ids_of(SHORT)) - 1
    prepared = prepare_version(store, "docs@1", section(**{**RAW, "max_length": room}))
    parts = prepared.rendered.filter(pl.col("id") == text(SHORT).id)
    assert parts["input_ids"].list.len().to_list() == [room - 1, 2]
    assert parts["input_ids"].explode().to_list() == ids_of(SHORT)
    assert parts["stops"].to_list() == [[], [2]]


SPLIT_LONG_TEXT = """
import resource, polars as pl
from pathlib import Path
from schemas.conversation import TURN
from schemas.recipe import TrainSection
from train.tokens.chat_template import find_template
from train.tokens.tokenizer import Tokenizer
from train.tokens.windows import render_members
tiny = Path({tiny!r})
turns = [[{{"from": "gpt", "value": "lorem ipsum dolor sit amet " * 40_000}}]]
members = pl.DataFrame({{"id": ["0" * 32], "conversations": turns, "tools": [None]}},
    schema_overrides={{"conversations": pl.List(TURN), "tools": pl.String}})
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
section = TrainSection(template="raw", long="split", max_length=64)
parts = render_members(section, members, find_template("raw", tiny), Tokenizer.load(tiny))
print(parts.height, parts["input_ids"].list.len().sum())
"""


def test_splitting_a_long_text_needs_the_memory_of_a_few_copies():
    """A copy of the text for each of its 9,000 parts would be some 40 GB; 4 GiB hold Python and a few copies."""
    ran = subprocess.run(
        [sys.executable, "-c", SPLIT_LONG_TEXT.format(tiny=str(TINY))], capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    parts, tokens = map(int, ran.stdout.split())
    assert tokens == len(ids_of("lorem ipsum dolor sit amet " * 40_000))
    assert parts == -(-tokens // 64)


def test_a_special_token_in_a_book_drops_only_its_part(tmp_path, monkeypatch):
    store = make_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    book = text(f"{LONG} Then <|im_end|> was read. {LONG} {LONG}")
    add(store, [book, text(f"{SHORT} <|im_end|>")], source="books.jsonl")
    with writing(store) as connection:
        freeze(connection, "books", Recipe())
    prepared = prepare_version(store, "books@1", section(**RAW))
    tokens = prepared.tokenizer.encode([book.turns[0].value])[0].tokens
    part = (1 + tokens.index("<|im_end|>")) // 128 + 1
    ledger = prepared.ledger.filter(pl.col("conversation") == book.id)
    assert ledger.filter(pl.col("outcome") == "dropped").select("window", "code", "reason").rows() == [
        (part, "special-text", f"Part {part} of {ledger.height} of a text of {ledger['tokens'].sum()} tokens contains"
         " text that is read as a special token: <|im_end|>."),
    ]  # fmt: skip
    assert set(ledger.filter(pl.col("window") != part)["outcome"]) == {"split"}
    short = prepared.ledger.filter(pl.col("conversation") == text(f"{SHORT} <|im_end|>").id)
    assert short["reason"].to_list() == ["An answer contains text that is read as a special token: <|im_end|>."]


def test_a_part_is_previewed_and_its_tokens_are_traced_to_the_text(store):
    prepared = prepare_version(store, "docs@1", section(**RAW))
    shown = [preview(prepared, text(LONG).id, number) for number in (1, 2, 3)]
    assert "".join(segment.text for each in shown for segment in each.segments) == f"<|begin_of_text|>{LONG}<|im_end|>"
    assert shown[1].reason == f"Part 2 of 3 of a text of {len(ids_of(LONG))} tokens."
    traced = trace_token(prepared, store, text(LONG).id, 5, 2)
    assert (traced.part, traced.turn, traced.id) == ("words", 1, ids_of(LONG)[133])
    assert LONG[slice(*traced.characters)] == traced.text


def test_texts_and_conversations_are_not_confused(tmp_path, monkeypatch):
    store = make_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    add(store, [chat("Hi", "Hello")], source="chats.jsonl")
    with writing(store) as connection:
        freeze(connection, "both", Recipe())
    raw, chats = (prepare_version(store, "both@1", section(**changes)).ledger for changes in (RAW, {}))
    dropped = raw.filter(pl.col("outcome") == "dropped")
    assert dropped["conversation"].to_list() == [chat("Hi", "Hello").id]
    assert dropped["reason"].item().startswith("It is a conversation: --template raw")
    assert chats.filter(pl.col("outcome") == "kept")["conversation"].to_list() == [chat("Hi", "Hello").id]
    with pytest.raises(TrainError, match=r"30 unrendered, such as .* It is a raw text: --template raw"):
        prepare_run(store, "both@1", section())


# -------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def job(store, tmp_path_factory):
    """`job(changes)` is a job for the engine transformers on the texts."""
    work = prepare_run(store, "docs@1", section(**RAW))

    def make(model=TINY, **changes):
        folder = tmp_path_factory.mktemp("run")
        recipe = section(**{**RAW, "engine": "transformers", "steps": 1, **changes})
        adapter = folder / "adapter"
        return Job(work.rows, work.held_out, model, recipe, "lora", folder / "c", adapter, None, lambda _: None)

    return make


def embeddings(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name.split(".")[-2]: value for name, value in tensors.items() if "lora" not in name}


ONE_STEP = {"lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 0.0}


@pytest.mark.slow
def test_the_first_step_uses_separate_learning_rates_for_embedding_and_adapter(job):
    """Adam's first step is the learning rate in the direction of the gradient, whatever its size (arXiv 1412.6980)."""
    embedding_job = job(embedding_learning_rate=7e-4, learning_rate=3e-3, extra=ONE_STEP)
    fit = find_engine("transformers").fit(embedding_job)
    before = load_file(TINY / "model.safetensors")["model.embed_tokens.weight"].float()
    moved = (embeddings(embedding_job.adapter)["embed_tokens"] - before).abs()
    adapter = load_file(embedding_job.adapter / "adapter_model.safetensors")
    started_at_zero = max(value.abs().max().item() for name, value in adapter.items() if "lora_B" in name)
    assert moved.max().item() == pytest.approx(7e-4, rel=1e-2)
    assert started_at_zero == pytest.approx(3e-3, rel=1e-2)
    assert fit.facts["embedding"] == {"parameters": before.numel(), "learning_rates": [7e-4]}


@pytest.mark.slow
def test_without_a_learning_rate_the_embedding_is_not_trained(job):
    embedding_job = job()
    fit = find_engine("transformers").fit(embedding_job)
    assert embeddings(embedding_job.adapter) == {}
    assert "embedding" not in fit.facts


@pytest.mark.slow
def test_the_trained_copy_of_an_embedding_is_not_confused_with_the_base():
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from train.engines.embeddings import base_embedding, cast_to_fp32, embedding_arguments

    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)
    kept = embedding_arguments(section(embedding_learning_rate=1e-4), base)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **kept))
    cast_to_fp32(model)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert base_embedding(model).weight.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "model.embed_tokens"])
def test_embedding_and_head_can_be_trained_only_by_their_own_key(job, name):
    with pytest.raises(TrainError, match=f"names {name}, which has its own recipe key") as refused:
        find_engine("transformers").fit(job(extra={"modules_to_save": [name]}))
    assert "train.embedding_learning_rate" in refused.value.hint


@pytest.mark.slow
def test_an_untied_head_is_trained_together_with_the_embedding(job, tmp_path):
    for path in TINY.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((TINY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(TINY / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, tmp_path / "model.safetensors", {"format": "pt"})
    embedding_job = job(model=tmp_path, embedding_learning_rate=7e-4, extra=ONE_STEP)
    fit = find_engine("transformers").fit(embedding_job)
    trained = embeddings(embedding_job.adapter)
    assert {name: (value - head.float()).abs().max().item() for name, value in trained.items()} == pytest.approx(
        {"embed_tokens": 7e-4, "lm_head": 7e-4}, rel=1e-2
    )
    assert fit.facts["embedding"]["parameters"] == 2 * head.numel()


@pytest.mark.slow
def test_a_run_on_texts_is_trained_proven_merged_and_repeated_bit_for_bit(tmp_path, monkeypatch):
    from train.checks.serving_parity import check_export, check_serving
    from train.export.merge import merge
    from train.runs.verify import verify

    store = make_texts(tmp_path / "project")
    folder = store.parent
    monkeypatch.chdir(folder)
    run = train_on_texts(folder)
    facts, metrics = run["manifest"]["engine"], run["manifest"]["metrics"]
    assert metrics["eval_loss"] < metrics["eval_loss_base"] - 1
    assert facts["embedding"]["learning_rates"] == [1e-3]
    assert run["manifest"]["rendering"]["template"] == "raw"
    assert metrics["parts"] > run["manifest"]["tokens"]["conversations"] > metrics["seen_conversations"]
    assert 0 < metrics["seen_parts"] <= metrics["parts"]
    assert verify(store, "r1").verified
    merged = merge(store, "r1", rows=2)
    assert merged.comparison.largest < 0.02
    saved = load_file(merged.folder / "model.safetensors")
    assert "lm_head.weight" not in saved
    own = embeddings(folder / "adapters/r1")["embed_tokens"]
    assert (saved["model.embed_tokens.weight"].float() - own).abs().max() < 1e-3
    assert check_export(store, str(merged.folder)) is None
    with pytest.raises(ExportError, match="was trained on raw text"):
        check_serving(store, "r1")
    again = subprocess.run(command("retrain", "r1", "--json"), cwd=folder, capture_output=True, check=False)
    assert json.loads(again.stdout)["identical"]


def train_on_texts(folder):
    settings = [*SETTINGS, *OPTIONS, "--set=train.steps=8", "--set=train.embedding_learning_rate=1e-3", "--json"]
    ran = subprocess.run(command("train", "docs@1", *settings), cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    first_words = [
        line.split()[0] for line in ran.stderr.splitlines()
    ]  # without a terminal, each stage prints a line when it begins
    places = [first_words.index(word) for word in ("Rendering", "Loading", "step", "Computing")]
    assert places == sorted(places)
    return json.loads(ran.stdout)


def test_the_memory_estimate_includes_a_trained_embedding(store):
    plain, trained = (
        estimate_memory(TINY, section(embedding_learning_rate=rate), 10_000, "h100-80g") for rate in (None, 1e-4)
    )
    grown = {name: trained.parts[name] - plain.parts[name] for name in plain.parts}
    copy = 2304 * 256 / 2**30
    assert {name: round(value / copy) for name, value in grown.items() if value} == {
        "adapter": 4,
        "gradients": 4,
        "optimizer": 8,
    }
    assert trained.best["tokens_per_second"] < plain.best["tokens_per_second"]


def test_a_sharded_model_cannot_have_an_embedding_learning_rate(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainError, match="sharded model cannot train its embedding"):
        check_devices(Processes(2, "fsdp"), section(embedding_learning_rate=1e-4))


def test_unsloth_never_offloads_a_trained_embedding_to_a_pickle(job):
    from train.engines.unsloth import checkpointing_modes

    assert checkpointing_modes(job(), on_gpu=True) == (False, "unsloth")
    assert checkpointing_modes(job(embedding_learning_rate=1e-4), on_gpu=True) == (False, True)
    with pytest.raises(TrainError, match="moves the embedding away"):
        checkpointing_modes(job(embedding_learning_rate=1e-4, extra={"gradient_checkpointing": "unsloth"}), on_gpu=True)
