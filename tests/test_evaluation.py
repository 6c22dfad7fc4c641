"""The held-out loss during training: mean over tokens, keeps the best adapter, stops when it no longer decreases."""

import json

import polars as pl
import pytest
from support.training import TINY, make_project, train

from schemas.errors import TrainError
from schemas.manifest import read_manifest
from schemas.recipe import TrainSection

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    return make_project(tmp_path / "project").parent


def steps_of(run):
    return pl.read_ndjson(f"{run['adapter']}/metrics.jsonl")


def test_every_loss_token_has_the_same_weight_in_short_and_long_rows():
    from train.engines.evaluation import held_out_loss
    from train.model.base_model import load_model

    model = load_model(TINY, "lora")
    lengths = (5, 40, 7, 300, 12)
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(20, 2000, (length,), generator=draw) for length in lengths]
    labels = [torch.where(torch.arange(len(row)) < 3, -100, row) for row in ids]
    rows = pl.DataFrame({"input_ids": [row.tolist() for row in ids], "labels": [row.tolist() for row in labels]})
    loss, loss_tokens = 0.0, 0
    with torch.no_grad():
        for row, targets in zip(ids, labels, strict=True):
            logits = model(row[None], use_cache=False).logits[0, :-1]
            loss += torch.nn.functional.cross_entropy(logits, targets[1:], reduction="sum").item()
            loss_tokens += int((targets[1:] != -100).sum())
    model.train()
    assert held_out_loss(model, rows) == pytest.approx(loss / loss_tokens, rel=1e-5)
    assert model.training


def test_held_out_losses_are_computed_every_n_steps_and_do_not_change_the_training(folder, trained):
    run = train(folder, "--set=train.eval_every=4")
    steps = steps_of(run)
    evaluated = steps.filter(pl.col("eval_loss").is_not_null())
    assert evaluated["step"].to_list() == [4, 8, 12, 16]
    assert evaluated["eval_loss"].is_sorted(descending=True)
    assert evaluated["eval_loss"][-1] == pytest.approx(run["manifest"]["metrics"]["eval_loss"], abs=1e-6)
    uninterrupted = read_manifest(trained / "adapters/r1")
    assert run["manifest"]["adapter_digest"] == uninterrupted.adapter_digest
    assert steps["loss"].to_list() == pl.read_ndjson(trained / "adapters/r1/metrics.jsonl")["loss"].to_list()
    check_tensorboard(folder / "adapters/tensorboard/r1", steps, evaluated)


def check_tensorboard(board, steps, evaluated):
    """The event file has every training loss and every held-out loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(board)).Reload()
    assert [event.value for event in shown.Scalars("train/loss")] == pytest.approx(steps["loss"].to_list(), rel=1e-5)
    held_out = shown.Scalars("eval/loss")
    assert [event.step for event in held_out] == evaluated["step"].to_list()
    assert [event.value for event in held_out] == pytest.approx(evaluated["eval_loss"].to_list(), rel=1e-5)


def test_a_loss_that_no_longer_decreases_stops_the_run_and_the_best_adapter_is_kept(folder):
    from support.training import section

    from train.engines.evaluation import held_out_loss
    from train.inference.generate import load_chat_model
    from train.runs.fit import prepare_run

    worsening = ("--set=train.learning_rate=0.3", "--set=train.steps=40", "--set=train.extra.warmup_steps=0")
    run = train(folder, *worsening, "--set=train.eval_every=1", "--set=train.patience=3")
    steps, metrics = steps_of(run), run["manifest"]["metrics"]
    best = int(metrics["best_step"])
    assert steps.height == best + 3 < 40
    assert metrics["eval_loss"] == min(steps["eval_loss"]) == steps["eval_loss"][best - 1]
    assert metrics["last_eval_loss"] > metrics["eval_loss"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        held_out = prepare_run(folder / "curate.duckdb", "support@1", section()).held_out
    model = load_chat_model(folder / "adapters/r1").model
    assert held_out_loss(model, held_out) == pytest.approx(metrics["eval_loss"], abs=1e-4)


def test_the_held_out_loss_of_no_conversations_is_zero():
    from train.engines.evaluation import held_out_loss
    from train.model.base_model import load_model

    nothing = pl.DataFrame(schema={"input_ids": pl.List(pl.Int32), "labels": pl.List(pl.Int32)})
    assert held_out_loss(load_model(TINY, "lora"), nothing) == 0.0


def test_unknown_and_missing_trackers_are_errors():
    from train.engines.arguments import find_trackers

    assert find_trackers(TrainSection(track=())) == []
    with pytest.raises(TrainError, match="no tracker called 'excel'"):
        find_trackers(TrainSection(track=("excel",)))
    with pytest.raises(TrainError, match="mlflow is not installed") as caught:
        find_trackers(TrainSection(track=("mlflow",)))
    assert caught.value.hint == "pip install mlflow"


def test_a_step_reports_memory_and_remaining_time(trained):
    lines = [json.loads(line) for line in (trained / "adapters/r1/metrics.jsonl").read_text().splitlines()]
    assert all(line["memory"] > 0.1 for line in lines)
    assert lines[-1]["left"] == 0
    assert lines[0]["left"] > lines[-2]["left"] > 0
