"""Runs of earlier releases: manifest, ledger and batch size are read with their original meaning."""

import errno
import sys
from types import SimpleNamespace

import polars as pl
import pytest
from support.stores import add, chat

from curate.cli.views.lineage import lineage_lines
from curate.review.questions import build_questions
from curate.review.sets import review_task
from curate.versions.freeze import freeze
from curate.versions.lineage import trace
from schemas.digest import digest
from schemas.manifest import read_manifest
from schemas.recipe import ReviewSection, TrainSection, check_recipe
from schemas.run import Run, read_runs, write_run
from schemas.store import reading, writing
from train.engines.batch_size import BatchConfig, BatchSizeLog
from train.model.adapter import card

MANIFEST = """{
  "format": 1, "curate": "0.1.0",
  "data": {"version": "support@1", "digest": "098a", "counts": {"train": 34, "held_out": 6}},
  "model": {"name": "tiny", "digest": "d267"},
  "rendering": {"template": "tokenizer", "template_digest": "c705", "tokenizer_digest": "3d93",
                "mask_policy": "assistant-turns/1", "date": "2026-01-01"},
  "tokens": {"digest": "8902", "conversations": 34, "tokens": 816, "learned": 306, "dropped": 0, "truncated": 0},
  "recipe": {"engine": "transformers", "model": "tiny", "method": "auto", "template": "tokenizer", "max_length": 256,
             "long": "refuse", "max_dropped": 0.0, "max_truncated": 0.0, "reasoning": "learn", "special_text": "drop",
             "rank": 8, "alpha": 16, "learning_rate": 0.005, "epochs": 1.0, "steps": 16, "batch": 4, "accumulate": 1,
             "effective_batch": null, "max_memory": null, "packing": true, "save_every": 3, "eval_every": null,
             "patience": null, "track": null, "seed": 3407, "threads": null, "deterministic": false,
             "trust_remote_code": false, "extra": {}},
  "recipe_digest": "d934", "overrides": ["train.model=tiny"], "seed": 3407, "packages": {"torch": "2.13.0+cpu"},
  "machine": {"device": "cpu", "device_name": "AMD EPYC", "memory_gib": 23.5, "processor": "AMD EPYC",
              "system": "Linux x86_64", "python": "3.11.7", "threads": 1, "gpus": 1, "sharding": "none"},
  "run": "r1", "started": "2026-11-21T15:25:34.902536Z", "finished": "2026-11-21T15:25:57.545450Z",
  "engine": {"method": "lora", "packing": true, "sequences": 4, "trainable_parameters": 65536,
             "adapter_dtype": "float32", "base_dtype": "float32", "optimizer": "adamw_torch_fused",
             "schedule": "linear", "target_modules": ["q_proj"], "batch": 4, "accumulate": 1, "checkpointing": false,
             "trial": [], "steps_down": [], "gpus": 1},
  "metrics": {"steps": 16.0, "train_loss": 2.8, "train_loss_end": 0.7, "eval_loss": 0.7, "eval_loss_base": 7.9,
              "seen": 4.0, "epochs": 16.0},
  "files": {"adapter_model.safetensors": "c69f"}, "adapter_digest": "f7e0", "failure": null
}"""
"""A packed run from before coverage was counted in conversations, and before `embedding_learning_rate`."""


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "manifest.json").write_text(MANIFEST)
    return read_manifest(tmp_path)


def test_coverage_of_an_older_run_is_reported_in_packs_or_windows(manifest):
    assert (manifest.coverage.phrase, manifest.coverage.epochs) == ("4 packs", 16.0)
    assert "| conversations | 34 trained, 0 dropped" in card(manifest)
    assert "| coverage | 4 packs, 16 epochs |" in card(manifest)
    short = manifest.model_copy(update={"engine": manifest.engine | {"sequences": 90}})
    assert short.coverage.phrase == "64 of 90 packs"
    split = short.model_copy(
        update={"engine": short.engine | {"packing": False}, "recipe": manifest.recipe | {"long": "split"}}
    )
    assert split.coverage.phrase == "64 of 90 windows"


def test_the_same_command_has_the_same_identity_as_an_older_run(manifest):
    today = TrainSection.model_validate(manifest.recipe).model_dump(mode="json")
    assert set(today) > set(manifest.recipe)
    same = manifest.model_copy(update={"recipe": today})
    assert same.identity == manifest.identity
    for change in ({"embedding_learning_rate": 1e-4}, {"seed": 1}, {"long": "split"}, {"learning_rate": 2e-4}):
        assert manifest.model_copy(update={"recipe": today | change}).identity != manifest.identity


def test_an_older_run_is_resumed_with_its_batch_size(tmp_path):
    (tmp_path / "size.json").write_text('{"batch": 2, "accumulate": 4, "checkpointing": "unsloth"}')
    log = BatchSizeLog(tmp_path / "size.json")
    assert (log.batch_config, log.steps_down) == (BatchConfig(2, 4, "unsloth"), [])


def test_the_ledger_of_an_older_run_is_traced_without_epoch_counts(tmp_path, manifest):
    store, talk = tmp_path / "curate.duckdb", chat("Hello?", "Hi.")
    add(store, [talk], source="desk.csv")
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
        write_run(connection, Run("r1", "done", tmp_path, manifest))
    columns = {"conversation": [talk.id], "split": ["train"], "window": [None], "fate": ["kept"], "code": [None]}
    counts = {"reason": [None], "tokens": [24], "cut": [0], "learned": [9], "learned_cut": [0]}
    pl.DataFrame(columns | counts).write_parquet(tmp_path / "ledger.parquet")
    with reading(store) as connection:
        (lineage,) = trace(connection, talk.id)
    assert lineage.runs[0]["run"] == "r1"
    outcome = "done: outcome kept, tokens 24, cut 0, loss_tokens 9, loss_tokens_cut 0"
    assert any(line.endswith(outcome) for line in lineage_lines(lineage))


@pytest.mark.parametrize("text", ["{}", "no JSON", MANIFEST.replace('"run": "r1"', '"run": "r7"')])
def test_a_folder_of_another_run_is_not_used_as_its_adapter(tmp_path, manifest, text):
    store, adjacent = tmp_path / "curate.duckdb", tmp_path / "adapters" / "mine"
    adjacent.mkdir(parents=True)
    recorded = tmp_path / "gone" / "mine"
    with writing(store) as connection:
        write_run(connection, Run("r1", "done", recorded, manifest))
    for content, expected in ((text, recorded), (MANIFEST, adjacent)):
        (adjacent / "manifest.json").write_text(content)
        with reading(store) as connection:
            assert [run.adapter for run in read_runs(connection)] == [expected]


def test_without_file_locks_a_run_counts_as_running(tmp_path, manifest, monkeypatch):
    store, adapter = tmp_path / "curate.duckdb", tmp_path / "adapters" / "r1"
    with writing(store) as connection:
        write_run(connection, Run("r1", "running", adapter, manifest))
    adapter.with_name("r1.partial").mkdir(parents=True)
    (adapter.with_name("r1.partial") / "lock").touch()

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    statuses = []
    with reading(store) as connection:
        statuses += [run.status for run in read_runs(connection)]
        monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(flock=flock, LOCK_SH=1, LOCK_NB=4))
        statuses += [run.status for run in read_runs(connection)]
    assert statuses == ["interrupted", "running"]


def test_review_tasks_without_earlier_answers_keep_the_digest_of_earlier_releases():
    row = {"conversation": "c1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
           "tools": None, "metadata": {}, "scores": {}, "rules_keep": True, "queue": "random", "blind": False,
           "earlier": (), "position": None, "assigned": None}  # fmt: skip
    shown = {
        "conversation": "c1", "messages": [("user", "Hi"), ("answer 1", "Ho")], "metadata": {"queue": "random"},
        "suggestions": [
            {"question": "decision", "value": "keep", "agent": "rules", "score": None},
            {"question": "answer", "value": "Ho", "agent": "original", "score": None},
        ],
    }  # fmt: skip
    assert review_task(row, build_questions(ReviewSection(), 2)).digest == digest(shown)
