"""The batch size: from the recipe or auto-tuned, and smaller after the GPU ran out of memory."""

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
def prepared(tmp_path_factory):
    """The prepared run of a small version."""
    with pytest.MonkeyPatch.context() as patch:
        store = make_project(tmp_path_factory.mktemp("project"))
        patch.chdir(store.parent)
        yield prepare_run(store, "support@1", recipe())


def recipe(**changes):
    return section(**{"engine": "transformers", "max_length": 64, "steps": 6, **changes})


@pytest.fixture
def job(prepared, tmp_path):
    """`job(changes)` is a job for the engine transformers and the list of its reported steps."""

    def make(**changes):
        steps = []
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        made = Job(
            prepared.rows,
            prepared.held_out,
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


# ----------------------------------------------------------------------------------------------------- recipe


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
def test_packs_per_step_do_not_depend_on_the_number_of_gpus(changes, gpus, expected):
    size = configured_batch(TrainSection(**changes), gpus, checkpointing=False)
    assert (size.batch, size.accumulate) == expected
    assert size.batch * size.accumulate * gpus == TrainSection(**changes).packs_per_step


def test_packs_that_cannot_be_divided_are_an_error_with_the_option_to_set():
    with pytest.raises(TrainError, match="10 packs per step cannot be divided among 4 GPUs") as caught:
        configured_batch(TrainSection(effective_batch=10), 4, checkpointing=False)
    assert caught.value.hint == "--set train.effective_batch=12"
    with pytest.raises(TrainError, match="cannot be divided into batches of 4"):
        configured_batch(TrainSection(batch=4, effective_batch=6), 1, checkpointing=False)


# ---------------------------------------------------------------------------------------------------- autotune


def try_batches(speeds):
    """The batch sizes that `measure_batches` tries, and its result. Sizes without a speed run out of memory."""
    tried = []

    def measure(config):
        tried.append((config.batch, config.checkpointing))
        return Measurement(config, speeds.get(tried[-1]), 1.0)

    measurements = measure_batches(TrainSection(effective_batch=16), 1, (False, "unsloth"), measure)
    return tried, measurements


def test_larger_batches_are_tried_while_faster_and_checkpointing_only_when_out_of_memory():
    tried, _ = try_batches({(1, False): 80.0, (2, False): 90.0, (4, False): 90.5, (8, False): 99.0})
    assert tried == [(1, False), (2, False), (4, False)]
    tried, measurements = try_batches({(1, False): 80.0, (1, "unsloth"): 60.0, (2, "unsloth"): 85.0})
    assert tried == [(1, False), (2, False), (1, "unsloth"), (2, "unsloth"), (4, "unsloth")]
    assert pick_fastest(measurements) == BatchConfig(2, 8, "unsloth")


def test_of_two_equally_fast_batches_the_smaller_is_used():
    assert pick_fastest(sizes(100.0, 101.0, None)).batch == 1
    assert pick_fastest(sizes(100.0, 110.0, 111.0)).batch == 2


def test_a_model_that_does_not_fit_with_any_batch_is_an_error():
    with pytest.raises(TrainError, match="A batch of 1 with gradient checkpointing does not fit"):
        pick_fastest(sizes(None))


def test_measurements_are_cached_for_the_same_model_gpu_and_recipe_only(prepared):
    key = autotune_key(prepared.manifest, prepared.recipe, prepared.rows)
    cache_measurements(key, sizes(100.0, None))
    assert read_measurements(key) == sizes(100.0, None)
    for other in (recipe(max_length=128), recipe(rank=4), recipe(effective_batch=32), recipe(method="qlora")):
        assert read_measurements(autotune_key(prepared.manifest, other, prepared.rows)) is None
    machine = prepared.manifest.machine.model_copy(update={"device_name": "another"})
    elsewhere = prepared.manifest.model_copy(update={"machine": machine})
    assert read_measurements(autotune_key(elsewhere, prepared.recipe, prepared.rows)) is None
    assert (
        read_measurements(autotune_key(prepared.manifest, recipe(learning_rate=1e-5, seed=1), prepared.rows))
        is not None
    )


def test_without_packing_measurements_are_cached_by_the_longest_rows(prepared):
    shorter = prepared.rows.filter(pl.col("input_ids").list.len() < pl.col("input_ids").list.len().max())
    packed, unpacked = recipe(), recipe(packing=False)
    key = partial(autotune_key, prepared.manifest)
    assert key(packed, shorter) == key(packed, prepared.rows)
    assert key(unpacked, shorter) != key(unpacked, prepared.rows)
    assert key(unpacked, prepared.rows.reverse()) == key(unpacked, prepared.rows)


def test_the_batch_size_log_outlives_the_process(tmp_path):
    log = BatchSizeLog(tmp_path / "size.json")
    assert (log.batch_config, log.steps_down) == (None, [])
    log.write(BatchConfig(4, 4, False), measurements=[{"batch": 4}])
    log.write(BatchConfig(2, 8, "unsloth"), {"step": 3, "batch": 2})
    log.write(BatchConfig(2, 8, "unsloth"))
    assert BatchSizeLog(tmp_path / "size.json").batch_config == BatchConfig(2, 8, "unsloth")
    assert BatchSizeLog(tmp_path / "size.json").steps_down == [{"step": 3, "batch": 2}]
    assert BatchSizeLog(tmp_path / "size.json").measurements == [{"batch": 4}]


def test_autotune_does_not_change_the_run_after_it(job, monkeypatch):
    from train.engines import batch_probe, trainer

    plain, steps = job(batch=2, accumulate=2)
    find_engine("transformers").fit(plain)
    measured = []

    def measure_first(job, loaded, make_trainer):
        small = make_trainer(BatchConfig(1, 4, False), batch_probe.autotune_rows(job.rows, job.recipe))
        measured.extend(
            measure_batches(
                job.recipe,
                1,
                loaded.checkpointing_modes,
                lambda config: batch_probe.measure(small, config, loaded.set_checkpointing),
            )
        )
        return [Measurement(BatchConfig(2, 2, False), 1.0, 1.0)]

    monkeypatch.setattr(trainer, "autotune", measure_first)
    after, again = job(batch="auto", accumulate=2)
    fit = find_engine("transformers").fit(after)
    assert [measurement.batch_config.batch for measurement in measured][:2] == [1, 2]
    assert all(measurement.speed > 0 and measurement.memory > 0 for measurement in measured)
    assert fit.facts["batch"] == 2
    assert [step.loss for step in again] == [step.loss for step in steps]
    assert (plain.adapter / "adapter_model.safetensors").read_bytes() == (
        after.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_optimiser_schedule_noise_and_adapter_follow_the_recipe(job):
    extra = {"use_dora": True, "use_rslora": True, "optim": "adamw_8bit", "neftune_noise_alpha": 5.0}
    plain, steps = job(batch=4, accumulate=1)
    find_engine("transformers").fit(plain)
    training, other_steps = job(
        batch=4, accumulate=1, extra={**extra, "lr_scheduler_type": "cosine", "warmup_steps": 2}
    )
    fit = find_engine("transformers").fit(training)
    assert (fit.facts["optimizer"], fit.facts["schedule"]) == ("adamw_8bit", "cosine")
    adapter = json.loads((training.adapter / "adapter_config.json").read_text())
    assert adapter["use_dora"]
    assert adapter["use_rslora"]
    assert other_steps[0].loss != steps[0].loss  # the noise on the embeddings
    assert [round(step.learning_rate / 5e-3, 3) for step in other_steps] == [0.0, 0.5, 1.0, 0.854, 0.5, 0.146]
    assert fit.metrics["eval_loss"] < fit.metrics["eval_loss_base"]


@pytest.mark.parametrize("init_method", ["loftq", "pissa", "pissa_niter_4", "olora"])
def test_an_initialisation_that_changes_the_base_model_is_an_error(init_method, job):
    refused, _ = job(extra={"init_lora_weights": init_method})
    with pytest.raises(TrainError, match="changes the weights of the base model"):
        find_engine("transformers").fit(refused)


def test_deterministic_sets_torchs_switch(job):
    training, steps = job(batch=4, accumulate=1, deterministic=True, steps=2)
    try:
        find_engine("transformers").fit(training)
        assert torch.are_deterministic_algorithms_enabled()
        assert len(steps) == 2
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------------------ out of memory


def run_out_of_memory(monkeypatch, when):
    """Raise torch's out-of-memory error in each step for which `when(trainer)` is true."""
    from transformers import Trainer

    step = Trainer.training_step

    def training_step(self, *args, **kwargs):
        if when(self):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)


def test_running_out_of_memory_resumes_from_the_last_step_with_a_smaller_batch(job, monkeypatch, caplog):
    uninterrupted, expected = job(batch=4, accumulate=1)
    find_engine("transformers").fit(uninterrupted)
    choices = []
    training, steps = job(batch=4, accumulate=1)
    run_out_of_memory(monkeypatch, lambda it: it.state.global_step == 3 and it.args.per_device_train_batch_size == 4)
    with caplog.at_level("INFO", "train"):
        fit = find_engine("transformers").fit(replace(training, on_size_chosen=lambda *choice: choices.append(choice)))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in expected], abs=1e-4)
    assert (fit.facts["batch"], fit.facts["accumulate"]) == (2, 2)
    step_down = {"step": 3, "batch": 2, "accumulate": 2}
    assert choices == [(BatchConfig(4, 1, False), None, []), (BatchConfig(2, 2, False), step_down, ())]
    assert "Resuming from the last checkpoint with batch 2, accumulate 2." in caplog.text


def test_the_best_adapter_survives_a_step_down(job, monkeypatch):
    from train.engines import callbacks

    losses = iter([1.0, 0.5, 0.9, 0.8, 0.7, 0.6])  # one per step, three before memory runs out
    monkeypatch.setattr(callbacks, "held_out_loss", lambda *_: next(losses))
    training, steps = job(batch=4, accumulate=1, eval_every=1, patience=5)
    run_out_of_memory(monkeypatch, lambda it: it.state.global_step == 3 and it.args.per_device_train_batch_size == 4)
    fit = find_engine("transformers").fit(training)
    assert [step.eval_loss for step in steps] == [1.0, 0.5, 0.9, 0.8, 0.7, 0.6]
    assert (fit.metrics["best_step"], fit.metrics["eval_loss"]) == (2, 0.5)


def test_patience_continues_to_count_after_a_step_down(job, monkeypatch):
    from train.engines import callbacks

    losses = iter([1.0, 0.5, 0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr(callbacks, "held_out_loss", lambda *_: next(losses))
    training, steps = job(batch=4, accumulate=1, eval_every=1, patience=2)
    run_out_of_memory(monkeypatch, lambda it: it.state.global_step == 3 and it.args.per_device_train_batch_size == 4)
    find_engine("transformers").fit(training)
    assert len(steps) == 4


def test_running_out_of_memory_with_the_smallest_batch_is_an_error(job, monkeypatch):
    run_out_of_memory(monkeypatch, lambda _: True)
    training, steps = job(batch=2, accumulate=1)
    with pytest.raises(TrainError, match="out of memory with batch 1 and max_length 64"):
        find_engine("transformers").fit(training)
    assert steps == []
