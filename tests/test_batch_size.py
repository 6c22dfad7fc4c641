"""How large a pass is: as written, or measured; and what happens when the memory is full all the same."""

import json
from dataclasses import replace
from functools import partial

import polars as pl
import pytest
from support.training import TINY, make_project, section

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines import Job, find_engine
from train.engines.batch_size import (
    BatchConfig,
    BatchSizeLog,
    Measurement,
    cache_measurements,
    configured_batch,
    measure_batches,
    pick_fastest,
    read_measurements,
)
from train.runs.fit import autotune_key, prepare_run

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The tokens of a small version, and what a run of it would be."""
    with pytest.MonkeyPatch.context() as patch:
        store = make_project(tmp_path_factory.mktemp("project"))
        patch.chdir(store.parent)
        yield prepare_run(store, "support@1", recipe())


def recipe(**changes):
    return section(**{"engine": "transformers", "max_length": 64, "steps": 6, **changes})


@pytest.fixture
def job(work, tmp_path):
    """`job(changes)` is what the reference engine is asked to do, and `.steps` what it reported."""

    def make(**changes):
        steps = []
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        made = Job(
            work.rows,
            work.held_out,
            TINY,
            recipe(**changes),
            "lora",
            folder / "checkpoints",
            folder / "adapter",
            None,
            steps.append,
        )
        return made, steps

    return make


def sizes(*speeds, kind=False):
    return [Measurement(BatchConfig(2**n, 16 // 2**n, kind), speed, 10.0 + n) for n, speed in enumerate(speeds)]


# ---------------------------------------------------------------------------------------------------- as written


@pytest.mark.parametrize(
    ("changes", "gpus", "expected"),
    [
        ({"batch": 4, "accumulate": 2}, 1, (4, 2)),
        ({"batch": 4, "accumulate": 2}, 2, (4, 1)),
        ({"batch": 4, "accumulate": 2}, 4, (2, 1)),
        ({"batch": 4, "effective_batch": 16}, 2, (4, 2)),
        ({"batch": "auto", "accumulate": 4}, 1, (2, 4)),
        ({"batch": "auto", "effective_batch": 6}, 2, (1, 3)),
    ],
)
def test_the_packs_of_a_step_stay_the_same_however_they_are_shared_out(changes, gpus, expected):
    size = configured_batch(TrainSection(**changes), gpus, checkpointing=False)
    assert (size.batch, size.accumulate) == expected
    assert size.batch * size.accumulate * gpus == TrainSection(**changes).packs_per_step


def test_packs_that_cannot_be_shared_out_are_refused_with_what_to_type():
    with pytest.raises(TrainError, match="10 packs per step cannot be divided among 4 GPUs") as caught:
        configured_batch(TrainSection(effective_batch=10), 4, checkpointing=False)
    assert caught.value.hint == "--set train.effective_batch=12"
    with pytest.raises(TrainError, match="cannot be divided into batches of 4"):
        configured_batch(TrainSection(batch=4, effective_batch=6), 1, checkpointing=False)


# ------------------------------------------------------------------------------------------------------- a trial


def tried(answers):
    """What `measure_batches` asks for, when `answers` maps (batch, kind) to speed; missing is out of memory."""
    asked = []

    def measure(size):
        asked.append((size.batch, size.checkpointing))
        return Measurement(size, answers.get(asked[-1]), 1.0)

    found = measure_batches(TrainSection(effective_batch=16), 1, (False, "unsloth"), measure)
    return asked, found


def test_larger_passes_are_tried_while_they_are_faster_and_checkpointing_only_when_memory_is_full():
    asked, _ = tried({(1, False): 80.0, (2, False): 90.0, (4, False): 90.5, (8, False): 99.0})
    assert asked == [(1, False), (2, False), (4, False)]
    asked, found = tried({(1, False): 80.0, (1, "unsloth"): 60.0, (2, "unsloth"): 85.0})
    assert asked == [(1, False), (2, False), (1, "unsloth"), (2, "unsloth"), (4, "unsloth")]
    assert pick_fastest(found) == BatchConfig(2, 8, "unsloth")


def test_of_two_that_are_as_fast_the_smaller_is_taken():
    assert pick_fastest(sizes(100.0, 101.0, None)).batch == 1
    assert pick_fastest(sizes(100.0, 110.0, 111.0)).batch == 2


def test_a_model_that_fits_in_no_size_is_explained():
    with pytest.raises(TrainError, match="A batch of 1 with gradient checkpointing does not fit"):
        pick_fastest(sizes(None))


def test_a_trial_is_remembered_for_the_same_model_chip_and_recipe_only(work):
    key = autotune_key(work.manifest, work.recipe, work.rows)
    cache_measurements(key, sizes(100.0, None))
    assert read_measurements(key) == sizes(100.0, None)
    for other in (recipe(max_length=128), recipe(rank=4), recipe(effective_batch=32), recipe(method="qlora")):
        assert read_measurements(autotune_key(work.manifest, other, work.rows)) is None
    machine = work.manifest.machine.model_copy(update={"device_name": "another"})
    elsewhere = work.manifest.model_copy(update={"machine": machine})
    assert read_measurements(autotune_key(elsewhere, work.recipe, work.rows)) is None
    assert read_measurements(autotune_key(work.manifest, recipe(learning_rate=1e-5, seed=1), work.rows)) is not None


def test_unpacked_a_trial_is_remembered_for_the_lengths_that_it_padded_to(work):
    shorter = work.rows.filter(pl.col("input_ids").list.len() < pl.col("input_ids").list.len().max())
    packed, unpacked = recipe(), recipe(packing=False)
    key = partial(autotune_key, work.manifest)
    assert key(packed, shorter) == key(packed, work.rows)
    assert key(unpacked, shorter) != key(unpacked, work.rows)
    assert key(unpacked, work.rows.reverse()) == key(unpacked, work.rows)


def test_a_size_and_how_it_came_about_outlive_the_process_that_found_it(tmp_path):
    settled = BatchSizeLog(tmp_path / "size.json")
    assert (settled.batch_config, settled.steps_down) == (None, [])
    settled.write(BatchConfig(4, 4, False), measurements=[{"batch": 4}])
    settled.write(BatchConfig(2, 8, "unsloth"), {"step": 3, "batch": 2})
    settled.write(BatchConfig(2, 8, "unsloth"))
    assert BatchSizeLog(tmp_path / "size.json").batch_config == BatchConfig(2, 8, "unsloth")
    assert BatchSizeLog(tmp_path / "size.json").steps_down == [{"step": 3, "batch": 2}]
    assert BatchSizeLog(tmp_path / "size.json").measurements == [{"batch": 4}]


def test_a_trial_measures_and_changes_nothing_of_the_run_after_it(job, monkeypatch):
    from train.engines import batch_probe, trainer

    plain, steps = job(batch=2, accumulate=2)
    find_engine("transformers").fit(plain)
    measured = []

    def measure_first(asked, loaded, make_trainer):
        small = make_trainer(BatchConfig(1, 4, False), batch_probe.autotune_rows(asked.rows, asked.recipe))
        measured.extend(
            measure_batches(
                asked.recipe,
                1,
                loaded.checkpointing_modes,
                lambda config: batch_probe.measure(small, config, loaded.set_checkpointing),
            )
        )
        return [Measurement(BatchConfig(2, 2, False), 1.0, 1.0)]

    monkeypatch.setattr(trainer, "autotune", measure_first)
    after, again = job(batch="auto", accumulate=2)
    fit = find_engine("transformers").fit(after)
    assert [found.batch_config.batch for found in measured][:2] == [1, 2]
    assert all(found.speed > 0 and found.memory > 0 for found in measured)
    assert fit.facts["batch"] == 2
    assert [step.loss for step in again] == [step.loss for step in steps]
    assert (plain.adapter / "adapter_model.safetensors").read_bytes() == (
        after.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_the_trainer_is_given_what_the_recipe_says_of_optimiser_schedule_noise_and_adapter(job):
    extra = {"use_dora": True, "use_rslora": True, "optim": "adamw_8bit", "neftune_noise_alpha": 5.0}
    plain, steps = job(batch=4, accumulate=1)
    find_engine("transformers").fit(plain)
    asked, otherwise = job(batch=4, accumulate=1, extra={**extra, "lr_scheduler_type": "cosine", "warmup_steps": 2})
    fit = find_engine("transformers").fit(asked)
    assert (fit.facts["optimizer"], fit.facts["schedule"]) == ("adamw_8bit", "cosine")
    adapter = json.loads((asked.adapter / "adapter_config.json").read_text())
    assert adapter["use_dora"]
    assert adapter["use_rslora"]
    assert otherwise[0].loss != steps[0].loss  # the noise on the embeddings
    assert [round(step.learning_rate / 5e-3, 3) for step in otherwise] == [0.0, 0.5, 1.0, 0.854, 0.5, 0.146]
    assert fit.metrics["eval_loss"] < fit.metrics["eval_loss_base"]


@pytest.mark.parametrize("beginning", ["loftq", "pissa", "pissa_niter_4", "olora"])
def test_a_beginning_that_changes_the_base_model_is_refused(beginning, job):
    asked, _ = job(extra={"init_lora_weights": beginning})
    with pytest.raises(TrainError, match="changes the weights of the base model"):
        find_engine("transformers").fit(asked)


def test_deterministic_is_torchs_own_switch(job):
    asked, steps = job(batch=4, accumulate=1, deterministic=True, steps=2)
    try:
        find_engine("transformers").fit(asked)
        assert torch.are_deterministic_algorithms_enabled()
        assert len(steps) == 2
    finally:
        torch.use_deterministic_algorithms(False)


# --------------------------------------------------------------------------------------------- the memory is full


def fill_memory(monkeypatch, when):
    """Let the GPU's memory be full wherever `when(trainer)` says so."""
    from transformers import Trainer

    step = Trainer.training_step

    def training_step(self, *given, **named):
        if when(self):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *given, **named)

    monkeypatch.setattr(Trainer, "training_step", training_step)


def test_a_full_memory_makes_passes_smaller_and_goes_on_from_the_last_step(job, monkeypatch, caplog):
    undisturbed, expected = job(batch=4, accumulate=1)
    find_engine("transformers").fit(undisturbed)
    settled = []
    asked, steps = job(batch=4, accumulate=1)
    fill_memory(monkeypatch, lambda it: it.state.global_step == 3 and it.args.per_device_train_batch_size == 4)
    with caplog.at_level("INFO", "train"):
        fit = find_engine("transformers").fit(replace(asked, on_size_chosen=lambda *told: settled.append(told)))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in expected], abs=1e-4)
    assert (fit.facts["batch"], fit.facts["accumulate"]) == (2, 2)
    step_down = {"step": 3, "batch": 2, "accumulate": 2}
    assert settled == [(BatchConfig(4, 1, False), None, []), (BatchConfig(2, 2, False), step_down, ())]
    assert "Resuming from the last checkpoint with batch 2, accumulate 2." in caplog.text


def test_the_best_adapter_of_before_stays_when_passes_become_smaller(job, monkeypatch):
    from train.engines import callbacks

    losses = iter([1.0, 0.5, 0.9, 0.8, 0.7, 0.6])  # one a step, three before the memory is full
    monkeypatch.setattr(callbacks, "held_out_loss", lambda *_: next(losses))
    asked, steps = job(batch=4, accumulate=1, eval_every=1, patience=5)
    fill_memory(monkeypatch, lambda it: it.state.global_step == 3 and it.args.per_device_train_batch_size == 4)
    fit = find_engine("transformers").fit(asked)
    assert [step.eval_loss for step in steps] == [1.0, 0.5, 0.9, 0.8, 0.7, 0.6]
    assert (fit.metrics["best_step"], fit.metrics["eval_loss"]) == (2, 0.5)


def test_patience_counts_on_when_passes_become_smaller(job, monkeypatch):
    from train.engines import callbacks

    losses = iter([1.0, 0.5, 0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr(callbacks, "held_out_loss", lambda *_: next(losses))
    asked, steps = job(batch=4, accumulate=1, eval_every=1, patience=2)
    fill_memory(monkeypatch, lambda it: it.state.global_step == 3 and it.args.per_device_train_batch_size == 4)
    find_engine("transformers").fit(asked)
    assert len(steps) == 4


def test_a_memory_that_is_full_at_the_smallest_pass_is_explained(job, monkeypatch):
    fill_memory(monkeypatch, lambda _: True)
    asked, steps = job(batch=2, accumulate=1)
    with pytest.raises(TrainError, match="out of memory with batch 1 and max_length 64"):
        find_engine("transformers").fit(asked)
    assert steps == []
