"""Training runs: both engines train on exactly the given tokens; wrong input is an error with an explanation."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import polars as pl
import pytest
from support.model_files import NO_TENSORS
from support.stores import add, chat
from support.training import RECIPE, SECRET, SETTINGS, TINY, command, copy_project, make_project, section, train

from curate.cli.views.runs import show_run, show_runs
from curate.versions.freeze import freeze
from schemas.errors import TrainError
from schemas.ledger import read_ledger
from schemas.manifest import read_manifest
from schemas.recipe import Recipe
from schemas.run import Run, read_runs
from schemas.store import reading, writing
from train import engines
from train.engines.batch_size import BatchConfig
from train.inference.generate import Sampling, load_chat_model
from train.model.adapter import card
from train.model.base_model import find_model
from train.plan.plan import plan
from train.plan.prepare import prepare_version
from train.runs import fit
from train.runs.fit import prepare_run, token_digest, train_version
from train.runs.machine import set_threads
from train.runs.torchrun import Processes, check_devices

pytestmark = pytest.mark.slow

TRAIN_AND_RECORD = """
import os, sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
import polars as pl
from schemas.recipe import TrainSection
from train.model.checkpoints import newest_complete
from train.engines import ENGINES, Job

engine, rows_file, model, out = sys.argv[1:5]
rows = pl.read_parquet(rows_file)
if engine == "unsloth":
    from train.engines.unsloth import import_unsloth
    import_unsloth()
from transformers import Trainer

sequences, step = [], Trainer.training_step

def training_step(self, model, inputs, *rest, **named):
    sequences.extend(zip(inputs["input_ids"].tolist(), inputs["labels"].tolist()))
    return step(self, model, inputs, *rest, **named)

Trainer.training_step = training_step
recipe = TrainSection(model=model, engine=engine, epochs=2.5, batch=2, accumulate=2, learning_rate=5e-3, max_length=90)
losses = []
job = Job(rows, rows.head(4), Path(model), recipe, "lora", Path(out, "ck"), Path(out, "adapter"), None,
          lambda step: losses.append(step.loss))
try:
    ENGINES[engine].fit(replace(job, should_stop=lambda: len(losses) == 6))
    raise SystemExit("it was not interrupted")
except KeyboardInterrupt:
    checkpoint = newest_complete(job.checkpoints)
fit = ENGINES[engine].fit(replace(job, resume=checkpoint))
given = [tuple(zip(i, l)) for i, l in rows.select("input_ids", "labels").iter_rows()]
trained = Counter()
for ids, labels in sequences:
    pairs = list(zip(ids, labels))
    while pairs and pairs[0] != (0, -100):  # padding
        for document in given:
            if tuple(pairs[: len(document)]) == document:
                trained[document] += 1
                pairs = pairs[len(document) :]
                break
        else:
            raise SystemExit(f"not in the rows: {pairs[:9]}")
counted = Counter()
for document, times in zip(given, fit.epoch_counts, strict=True):
    counted[document] += times
assert trained == counted, (trained.values(), fit.epoch_counts)
assert set(fit.epoch_counts) == {2, 3}
assert losses[-1] < losses[0] - 0.5, losses
assert fit.metrics["eval_loss"] < fit.metrics["eval_loss_base"]
print("PACKING", fit.facts["packing"], fit.facts["sequences"])
print(*(f"{name}={value}" for name, value in os.environ.items() if name.startswith("UNSLOTH_")))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The store of a project without runs, which is the current folder."""
    store = make_project(tmp_path / "project")
    monkeypatch.chdir(store.parent)
    return store


@pytest.fixture
def manifest(trained):
    return read_manifest(trained / "adapters" / "r1")


@pytest.mark.parametrize(("engine", "packing"), [("unsloth", "PACKING False 30"), ("transformers", "PACKING True")])
def test_engines_train_on_exactly_the_given_rows_and_report_the_epoch_counts(engine, packing, project, tmp_path):
    distinct = prepare_run(project, "support@1", section()).rows.head(24)
    rows = pl.concat([distinct, distinct.head(6)])  # as a mix repeats them
    rows.write_parquet(tmp_path / "rows.parquet")
    arguments = [
        sys.executable,
        "-P",
        "-c",
        TRAIN_AND_RECORD,
        engine,
        str(tmp_path / "rows.parquet"),
        str(TINY),
        str(tmp_path),
    ]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("UNSLOTH")}
    ran = subprocess.run(arguments, env=plain, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert packing in ran.stdout
    if engine == "unsloth":  # its installer and statistics are disabled by default
        assert {"UNSLOTH_AUTO_INSTALL=0", "UNSLOTH_DISABLE_STATISTICS=1"} <= set(ran.stdout.split())


def run_in(folder, *arguments):
    """The JSON output of a command in its own process."""
    ran = subprocess.run(command(*arguments, "--json"), cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_mix_repeats_conversations_and_every_token_is_accounted_for(project):
    mix = {
        "red": {"where": "prompt like '%red%'", "epochs": 3},
        "green": {"where": "prompt like '%green%'", "epochs": 1.5},
    }
    recipe = Recipe.model_validate({"freeze": {"held_out": 0.2}, "mix": mix})
    with writing(project) as connection:
        version = freeze(connection, "mixed", recipe).version
    prepared = prepare_run(project, "mixed", section())
    uses = prepared.ledger.filter(pl.col("split") == "train")["per_epoch"].sum()
    assert version.counts["train"] < uses == prepared.rows.height
    steps = -(-uses // RECIPE["batch"])  # exactly one epoch, because a CPU does not pack here
    settings = [*SETTINGS, f"--set=train.steps={steps}"]
    planned = json.loads(run_in(project.parent, "plan", "mixed", *settings))
    assert (planned["repeats"], planned["tokens"]) == (uses - version.counts["train"], prepared.manifest.tokens.tokens)
    assert (planned["steps_per_epoch"], planned["packing"]) == (steps, False)
    run_in(project.parent, "train", "mixed", *settings)
    adapter = project.parent / "adapters" / "r1"
    ledger = read_ledger(adapter / "ledger.parquet").filter(pl.col("split") == "train")
    assert ledger["epoch_count"].to_list() == ledger["per_epoch"].to_list()
    assert set(ledger["per_epoch"]) == {1, 2, 3}
    tokens = read_manifest(adapter).tokens
    assert tokens.tokens == ((ledger["tokens"] - ledger["cut"]) * ledger["per_epoch"]).sum() == planned["tokens"]
    assert tokens.loss_tokens == (ledger["loss_tokens"] * ledger["per_epoch"]).sum() == planned["loss_tokens"]
    assert (tokens.conversations, read_manifest(adapter).metrics["epochs"]) == (version.counts["train"], 1.0)
    assert json.loads(run_in(project.parent, "verify", "r1"))["verified"]
    again = json.loads(run_in(project.parent, "retrain", "r1"))
    assert (again["same_tokens"], again["identical"]) == (True, True)


def test_packed_conversations_do_not_attend_to_each_other():
    import torch

    from train.model.base_model import load_model

    model = load_model(TINY, "lora").eval()
    one, other, changed = (torch.randint(30, 2000, (12,), generator=torch.Generator().manual_seed(n)) for n in range(3))
    places = torch.arange(12).repeat(2)[None]
    with torch.no_grad():
        packed, neighbour_changed = (
            model(torch.cat([first, other])[None], position_ids=places, use_cache=False).logits[0, 12:]
            for first in (one, changed)
        )
        alone = model(other[None], use_cache=False).logits[0]
    assert torch.equal(packed, neighbour_changed)
    assert (packed - alone).abs().max() < 1e-4


def test_training_loss_and_held_out_loss_decrease(trained, manifest):
    steps = pl.read_ndjson(trained / "adapters" / "r1" / "metrics.jsonl")
    assert steps["step"].to_list() == list(range(1, 17))
    assert steps["loss"].tail(3).mean() < steps["loss"].head(3).mean() - 1
    assert manifest.metrics["eval_loss"] < manifest.metrics["eval_loss_base"] - 1


def test_the_manifest_lists_every_input_of_the_adapter(trained, manifest):
    assert manifest.data.version == "support@1"
    assert manifest.data.counts["train"] == manifest.tokens.conversations
    assert manifest.model.name == "tiny"
    assert manifest.rendering.mask_policy == "assistant-turns/1"
    assert manifest.packages["unsloth"] == "2026.10.9"
    assert (manifest.machine.device, manifest.machine.threads, manifest.seed) == ("cpu", 1, 3407)
    assert manifest.engine["method"] == "lora"
    assert manifest.engine["packing"] is False  # Unsloth's CPU backend trains one conversation per row
    assert manifest.engine["base_dtype"] == manifest.engine["adapter_dtype"] == "float32"
    assert "train.steps=16" in manifest.overrides
    for name in (manifest.data.digest, manifest.model.digest, manifest.tokens.digest, manifest.adapter_digest):
        assert len(name) == 64


def test_the_manifest_contains_no_secrets_and_no_local_paths(trained):
    text = (trained / "adapters" / "r1" / "manifest.json").read_text(encoding="utf-8")
    assert SECRET not in text
    assert str(trained) not in text
    assert str(Path.home()) not in text


def test_the_token_digest_depends_on_ids_labels_and_their_order():
    rows = pl.DataFrame({"input_ids": [[1, 2], [3]], "labels": [[-100, 2], [3]]})
    shifted = pl.DataFrame({"input_ids": [[1], [2, 3]], "labels": [[-100], [2, 3]]})
    unlearned = pl.DataFrame({"input_ids": [[1, 2], [3]], "labels": [[-100, 2], [-100]]})
    assert len({token_digest(frame) for frame in (rows, rows.reverse(), shifted, unlearned)}) == 4


def test_the_model_card_names_the_data_and_contains_no_local_paths(trained, manifest):
    card = (trained / "adapters" / "r1" / "README.md").read_text(encoding="utf-8")
    assert manifest.data.digest in card
    assert manifest.tokens.digest in card
    assert "curate verify" in card
    assert str(trained) not in card


def test_conversations_after_the_last_step_are_not_reported_as_trained(trained, manifest, capsys):
    total = manifest.tokens.conversations
    assert (manifest.metrics["seen_conversations"], manifest.metrics["epochs"]) == (total, 16 / -(-total // 4))
    assert f"| {total} trained, 0 dropped" in card(manifest)
    short = manifest.model_copy(update={"metrics": manifest.metrics | {"steps": 3.0, "seen_conversations": 12.0}})
    assert f"| {total} to train on, 0 dropped" in card(short)
    assert f"| coverage | 12 of {total} conversations, " in card(short)
    show_run(Run("r1", "done", trained / "adapters/r1", short))
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"3 steps covered 12 of {total} conversations of support@1 \([\d.e+-]+ epochs\)", shown)
    parts = {"steps": 1.0, "seen_conversations": 0.0, "seen_parts": 4.0, "parts": 90.0}
    split = manifest.model_copy(update={"metrics": manifest.metrics | parts})
    assert f"| coverage | 4 of 90 windows of {total} conversations, " in card(split)
    show_run(Run("r1", "done", trained / "adapters/r1", split))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"1 step covered 4 of 90 windows of {total} conversations of support@1 (" in shown


def test_peft_loads_the_unmodified_adapter_folder(trained):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    folder = trained / "adapters" / "r1"
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert model.peft_config["default"].r == 8


def test_base_and_adapter_answer_differently_and_greedy_answers_repeat(trained):
    model = load_chat_model(trained / "adapters" / "r1")
    question = [{"role": "user", "content": "What about the blue tent?"}]
    short = Sampling(max_tokens=30)
    after = model.answer(question, sampling=short)
    before = model.answer(question, base=True, sampling=short)
    assert after.startswith("Hello! The")
    assert not before.startswith("Hello!")
    assert model.answer(question, sampling=short) == after


def test_an_adapter_is_not_loaded_on_another_base_model(trained, tmp_path):
    store = copy_project(trained, tmp_path / "copy")
    config = store.parent / "tiny" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("10000.0", "20000.0"), encoding="utf-8")
    with pytest.raises(TrainError, match="trained on a different model"):
        load_chat_model(store.parent / "adapters" / "r1")


def test_a_run_is_a_row_that_sql_can_read(trained):
    with reading(trained / "curate.duckdb") as connection:
        (run,) = read_runs(connection)
        (row,) = connection.sql("SELECT status, adapter_digest, version_digest FROM runs").fetchall()
    assert row == ("done", run.manifest.adapter_digest, run.manifest.data.digest)
    assert run.manifest == read_manifest(run.adapter)


def test_a_dry_run_writes_nothing(curate, project):
    before = project.read_bytes()
    ran = curate("train", "support@1", "--set", "train.model=tiny", "--dry-run", cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    assert "Would train" in ran.stdout
    assert project.read_bytes() == before
    assert not (project.parent / "adapters").exists()


def test_a_conversation_over_max_length_is_an_error_before_the_run_begins(project):
    with pytest.raises(TrainError, match="longer than max_length 16"):
        train_version(project, "support@1", section(max_length=16))
    with reading(project) as connection:
        assert read_runs(connection) == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"output_dir": "elsewhere"}, "set by curate itself"),
        ({"dataloader_drop_last": True}, "set by curate itself"),  # the last packs of an epoch would not be trained
        ({"save_only_model": True}, "set by curate itself"),  # a resumed run would begin with new optimiser moments
        ({"ignore_data_skip": True}, "set by curate itself"),  # … or repeat packs
        ({"auto_find_batch_size": True}, "set by curate itself"),
        ({"average_tokens_across_devices": False}, "set by curate itself"),
        ({"train_sampling_strategy": "group_by_length"}, "set by curate itself"),
        ({"resume_from_checkpoint": "elsewhere"}, "set by curate itself"),
        ({"data_collator": "mine"}, "is not an argument of the trainer"),
        ({"weight_decy": 0.1}, "is not an argument of the trainer"),
    ],
)
def test_unknown_and_reserved_keys_of_train_extra_are_errors(extra, message, tmp_path):
    from train.engines.arguments import sft_arguments

    job = engines.Job(
        pl.DataFrame(), pl.DataFrame(), TINY, section(extra=extra), "lora", tmp_path, tmp_path, None, print
    )
    with pytest.raises(TrainError, match=message):
        sft_arguments(job, BatchConfig(4, 1, False))


def test_known_keys_of_train_extra_reach_the_trainer(tmp_path):
    from train.engines.arguments import lora_arguments, sft_arguments

    recipe = section(extra={"weight_decay": 0.1, "lora_dropout": 0.05})
    job = engines.Job(pl.DataFrame(), pl.DataFrame(), TINY, recipe, "lora", tmp_path, tmp_path, None, print)
    assert sft_arguments(job, BatchConfig(4, 1, False)).weight_decay == 0.1
    assert lora_arguments(recipe)["lora_dropout"] == 0.05


def test_tokens_that_the_trainer_drops_or_joins_are_an_error():
    from datasets import Dataset

    from train.engines.token_check import check_tokens, to_dataset

    rows = pl.DataFrame({"input_ids": [[5, 6, 7], [8]], "labels": [[-100, 6, 7], [8]]})
    packed = {"input_ids": [[5, 6, 7, 8]], "labels": [[-100, 6, 7, 8]]}
    check_tokens(rows, to_dataset(rows))
    check_tokens(rows, Dataset.from_dict(packed | {"seq_lengths": [[3, 1]]}))
    for spoiled in (
        {"input_ids": [[5, 6], [8]], "labels": [[-100, 6], [8]]},
        {"input_ids": [[5, 6, 7], [8]], "labels": [[-100, 6, 8], [8]]},
        packed | {"seq_lengths": [[4]]},
        packed | {"seq_lengths": [[2, 2]]},
        packed,
    ):
        with pytest.raises(TrainError, match="The trainer changed its input"):
            check_tokens(rows, Dataset.from_dict(spoiled))


def test_an_unknown_engine_is_an_error_that_lists_the_known_ones(project):
    with pytest.raises(TrainError, match="no engine called 'axolotl'") as caught:
        train_version(project, "support@1", section(engine="axolotl"))
    assert "unsloth, transformers" in caught.value.hint


def test_a_third_engine_is_one_function_and_one_line_in_the_registry(project, monkeypatch):
    import torch
    from safetensors.torch import save_file

    def load(job):
        return engines.Loaded(torch.nn.Linear(2, 2), None, (False,), lambda mode: None)

    def train_nothing(job, loaded):
        job.adapter.mkdir()
        save_file(dict(loaded.model.state_dict()), job.adapter / "adapter_model.safetensors")
        (job.adapter / "adapter_config.json").write_text("{}")
        job.report(engines.Step(1, 1, 2.5, 1e-3, 1.0, 100, 0.5))
        return engines.Fit({"epochs": 1.0}, {"method": "lora", "packing": False}, [1] * job.rows.height)

    third = engines.Engine(load, train_nothing, ("rich",), packs_on_cpu=False, distributed_on_cpu=False)
    monkeypatch.setitem(engines.ENGINES, "third", third)
    recipe = section(engine="third")
    run = train_version(project, "support@1", recipe)
    assert (run.status, run.manifest.metrics["train_loss"]) == ("done", 2.5)
    assert run.manifest.packages["rich"] == version("rich")
    assert "unsloth" not in run.manifest.packages
    assert not plan(prepare_version(project, "support@1", recipe), on_gpu=False).packing
    with pytest.raises(TrainError, match="engine third trains with one process on a CPU") as caught:
        check_devices(Processes(2), recipe)
    assert caught.value.hint == "--engine transformers, or --gpus 1"


def test_a_model_with_only_pickles_is_refused_without_loading_it(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(TrainError, match=r"only pickles \(pytorch_model.bin\)"):
        find_model(str(tmp_path))


def test_a_model_with_its_own_code_is_refused_unless_trusted(tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "evil.Model"}}')
    (tmp_path / "model.safetensors").write_bytes(NO_TENSORS)
    with pytest.raises(TrainError, match="contains its own Python code"):
        find_model(str(tmp_path))
    assert find_model(str(tmp_path), trust_remote_code=True) == tmp_path


def test_an_adapter_is_not_accepted_as_a_base_model(trained):
    with pytest.raises(TrainError, match="is an adapter, not a base model"):
        find_model(str(trained / "adapters" / "r1"))


def test_existing_files_are_not_overwritten(project):
    folder = project.parent / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    with pytest.raises(TrainError, match="already exists"):
        train_version(project, "support@1", section(), to=folder)
    assert (folder / "notes.txt").read_text() == "keep me"


def test_turns_excluded_from_the_loss_have_ignored_labels(tmp_path, monkeypatch):
    from curate.versions.freeze import freeze
    from schemas.recipe import Recipe
    from schemas.store import writing

    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.parent)
    conversation = chat("Say nothing.", "No loss here.", "And now?", "Loss here.")
    first, answer, *rest = conversation.turns
    conversation = replace(conversation, turns=(first, replace(answer, train=False), *rest))
    (name,) = add(project, [conversation], source="more.csv")
    with writing(project) as connection:
        freeze(connection, "support", Recipe.model_validate({"freeze": {"held_out": 0.0}}))
    rows = prepare_run(project, "support@2", section()).rows.filter(pl.col("id") == name)
    labels = [label for label in rows["labels"].item() if label != -100]
    from train.tokens.tokenizer import Tokenizer

    assert Tokenizer.load(TINY).backend.decode(labels, skip_special_tokens=False) == "Loss here.<|im_end|>"


def test_a_qlora_run_records_its_method(project):
    run = train(project.parent, "--set", "train.method=qlora", "--set", "train.steps=4")
    assert run["manifest"]["engine"]["method"] == "qlora"
    assert json.loads((project.parent / "adapters/r1/adapter_config.json").read_text())["r"] == 8
    assert fit.pick_method("auto") == "lora"


def test_a_full_fine_tune_is_verified_repeated_and_answers(tuned, tmp_path, monkeypatch):
    from train.export.source import find_source
    from train.inference.generate import load_chat_model
    from train.runs.verify import verify

    project = copy_project(tuned, tmp_path / "copy")
    monkeypatch.chdir(project.parent)
    folder = project.parent / "adapters/r1"
    run = read_manifest(folder)
    assert run.metrics["eval_loss"] < run.metrics["eval_loss_base"] - 1
    assert run.metrics["eval_loss_base"] == pytest.approx(7.858, abs=0.01)
    assert run.engine["trainable_parameters"] > 1_500_000
    assert not (folder / "adapter_config.json").exists()
    assert verify(project, "r1").verified
    model = load_chat_model(folder)
    question = [{"role": "user", "content": "What about the blue tent?"}]
    assert model.answer(question).startswith("Hello!")
    with pytest.raises(TrainError, match="its base model is not available"):
        model.answer(question, base=True)
    assert find_source(project, "r1").adapter == folder
    again = subprocess.run(command("retrain", "r1", "--json"), cwd=project.parent, capture_output=True, check=False)
    assert json.loads(again.stdout)["identical"]
    (folder / "model.safetensors").unlink()
    assert not verify(project, "r1").verified


def test_runs_are_listed_within_80_columns_with_failures_below(trained, manifest, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    failed = manifest.model_copy(update={"failure": "RuntimeError: the disk is full"})
    place = trained / "adapters"
    show_runs([Run("r1", "interrupted", place / "r1", manifest), Run("r12", "failed", place / "r12", failed)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:4] == ["r1", "support@1", "interrupted", "16"] for line in lines)
    assert lines[-1] == "r12 failed: RuntimeError: the disk is full"


def test_without_runs_the_command_suggests_how_to_begin_one(curate, project):
    ran = curate("runs", cwd=project.parent)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "Next: curate train NAME@n" in ran.stderr


@pytest.mark.parametrize(("variable", "expected"), [(None, "1000"), ("300000", "300000")])
def test_idle_threads_spin_briefly_unless_gomp_spincount_is_set(monkeypatch, variable, expected):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "1")  # so that monkeypatch restores them
    monkeypatch.delenv("GOMP_SPINCOUNT") if variable is None else monkeypatch.setenv("GOMP_SPINCOUNT", variable)
    assert set_threads(1) == 1
    assert os.environ["GOMP_SPINCOUNT"] == expected
