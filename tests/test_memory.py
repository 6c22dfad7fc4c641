"""The memory estimate of a training: close to measurements, without loading a model."""

import json
from pathlib import Path

import pytest
from support.stores import add_version, chat
from support.training import TINY

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.model.base_model import find_model
from train.model.gpus import find_gpu
from train.plan.memory import estimate_memory, read_model_shape

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}

MEASURED = {
    (False, 1): (13.9, 13_443),
    (False, 2): (20.1, 15_508),
    (False, 4): (33.8, 17_073),
    (False, 8): (61.0, 17_602),
    (False, 16): (115.6, 17_173),
    ("unsloth", 1): (6.7, 9_579),
    ("unsloth", 2): (7.0, 10_843),
    ("unsloth", 4): (7.8, 11_744),
}
"""GiB and tokens per second of QLoRA on this shape on an H200, as in tests/bench/RESULTS.md."""


@pytest.fixture
def llama(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def recipe(**changes):
    return TrainSection(**{"method": "qlora", "effective_batch": 16, **changes})


def test_memory_and_speed_are_close_to_measurements(llama):
    estimate = estimate_memory(llama, recipe(), 1_000_000, "h200-141g")
    configs = {(size["checkpointing"], size["batch"]): size for size in estimate.configs}
    for config, (memory, speed) in MEASURED.items():
        assert configs[config]["gib"] == pytest.approx(memory, rel=0.06), config
        assert configs[config]["tokens_per_second"] == pytest.approx(speed, rel=0.10), config


def test_parts_follow_from_the_model_shape_and_the_recipe(llama):
    shape = read_model_shape(llama)
    assert shape.linear + shape.embeddings == 8_030_261_248 - 65 * 4096  # Llama 3.1 8B without its norms
    parts = estimate_memory(llama, recipe(), 1, "24g").parts
    trained = 41_943_040  # of rank 16 on all linear layers
    assert parts["adapter"] == parts["gradients"] == pytest.approx(trained * 4 / 2**30)
    assert parts["optimizer"] == pytest.approx(trained * 8 / 2**30)
    eight = estimate_memory(llama, recipe(extra={"optim": "adamw_8bit"}), 1, "24g").parts
    assert eight["optimizer"] == pytest.approx(parts["optimizer"] / 4)
    sixteen = estimate_memory(llama, recipe(method="lora"), 1, "24g").parts
    assert sixteen["weights"] == pytest.approx((shape.linear + shape.embeddings) * 2 / 2**30)
    assert parts["weights"] < 0.4 * sixteen["weights"]


def test_a_small_gpu_needs_checkpointing_and_a_smaller_one_fits_no_batch(llama):
    assert estimate_memory(llama, recipe(), 1, "h200-141g").best["checkpointing"] is False
    assert estimate_memory(llama, recipe(), 1, "12g").best["checkpointing"] == "unsloth"
    assert estimate_memory(llama, recipe(max_memory=12.0), 1, "h200-141g").best["checkpointing"] == "unsloth"
    assert estimate_memory(llama, recipe(), 1, "6g").best is None


def test_time_follows_from_tokens_epochs_and_steps(llama):
    def best(**changes):
        return estimate_memory(llama, recipe(**changes), 2_000_000, "h100-80g").best

    assert best(epochs=3)["seconds"] == pytest.approx(3 * 2_000_000 / best()["tokens_per_second"])
    assert best(steps=10)["seconds"] == pytest.approx(10 * 16 * 2048 / best()["tokens_per_second"])


def test_an_unknown_gpu_and_an_unsupported_model_are_errors(llama, tmp_path):
    with pytest.raises(TrainError, match="no known GPU 'h300'") as caught:
        find_gpu("h300")
    assert "h100-80g" in caught.value.hint
    assert find_gpu("24gb").memory == 24.0
    (llama / "config.json").write_text(json.dumps(LLAMA | {"num_local_experts": 8}))
    with pytest.raises(TrainError, match="mixture of experts"):
        read_model_shape(llama)
    with pytest.raises(TrainError, match=r"has no config\.json with the size"):
        read_model_shape(tmp_path / "nowhere")


def test_the_command_shows_the_estimate_above_the_plan(curate, tmp_path):
    store = tmp_path / "curate.duckdb"
    add_version(store, [chat("Hi", "Hello")])
    ran = curate("plan", "chats@1", "--model", str(TINY), "--gpu", "24g")
    assert ran.returncode == 0, ran.stderr
    assert "a GPU of 24 GiB" in ran.stdout
    next_command = f"Ready to train. Next: curate train chats@1 --model {TINY} --set train.epochs=2"
    assert next_command not in ran.stdout
    again = curate("plan", "chats@1", "--model", str(TINY), "--set", "train.epochs=2")
    assert next_command in " ".join(again.stdout.split())
    output = json.loads(curate("plan", "chats@1", "--model", str(TINY), "--gpu", "h100-80g", "--json").stdout)
    assert output["memory"]["best"]["checkpointing"] is False
    assert output["packs"] == 1


def use_gpu(monkeypatch, tmp_path, lines):
    """An nvidia-smi that prints these lines."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("gpu", "model"),
    [
        ("", "SmolLM2-135M-Instruct"),
        ("Tesla T4, 15360\\n", "Qwen3-14B"),
        ("NVIDIA GeForce RTX 3060, 12288\\n", "Qwen3-8B"),
        ("NVIDIA H100 80GB HBM3, 81559\\n", "Qwen3-32B"),
    ],
)
def test_a_plan_without_a_model_names_models_for_this_machine_and_the_tiny_one(gpu, model, monkeypatch, tmp_path):
    use_gpu(monkeypatch, tmp_path, gpu)
    with pytest.raises(TrainError, match="No base model is named") as error:
        find_model("")
    assert model in error.value.hint
    assert (Path(error.value.hint.rpartition("--model ")[2]) / "config.json").is_file()
