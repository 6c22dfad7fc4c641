"""On a CUDA device: QLoRA packs, reduces the loss, and repeats bit for bit."""

import json
import subprocess
import sys

import polars as pl
import pytest
from support.training import command, make_project, train

from schemas.manifest import read_manifest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("engine", ["unsloth", "transformers"])
def test_qlora_on_a_gpu_packs_reduces_the_loss_and_repeats_bit_for_bit(engine, tmp_path):
    folder = make_project(tmp_path / "project").parent
    options = ("--engine", engine, "--set=train.method=qlora")
    for name in ("first", "again"):
        train(folder, *options, "--fresh", "--to", str(folder / name))
    manifest = read_manifest(folder / "first")
    assert manifest.machine.device == "cuda"
    assert manifest.engine["method"] == "qlora"
    assert manifest.engine["packing"]
    assert manifest.metrics["eval_loss"] < manifest.metrics["eval_loss_base"]
    assert manifest.adapter_digest == read_manifest(folder / "again").adapter_digest


VARLEN = """
import torch
from train.engines.unsloth import import_unsloth
import_unsloth()
from unsloth.utils import attention_dispatch as dispatch
assert dispatch._TORCH_VARLEN_ATTN is not None, "no varlen attention"
torch.manual_seed(0)
lengths, heads, groups, width = [5, 300, 64, 131], 32, 8, 128
starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
q, k, v = (torch.randn(sum(lengths), n, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
           for n in (heads, groups, groups))
weight = torch.randn(sum(lengths), heads, width, device="cuda", dtype=torch.bfloat16)
packed = dispatch._varlen_attn_call(q, k, v, starts, max(lengths), scale=None, window_size=(-1, 0), enable_gqa=True)
gradients = torch.autograd.grad((packed * weight).sum(), (q, k, v))
parts = [torch.nn.functional.scaled_dot_product_attention(
    *(t[a:b].transpose(0, 1).float()[None] for t in (q, k, v)), is_causal=True, enable_gqa=True)[0].transpose(0, 1)
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist())]
alone = torch.cat(parts)
expected = torch.autograd.grad((alone * weight.float()).sum(), (q, k, v))
print("FORWARD", (packed.float() - alone).abs().max().item())
for name, one, other in zip("qkv", gradients, expected):
    far = ((one.float() - other.float()).norm() / other.float().norm()).item()
    print("GRADIENT", name, far)
    assert far < 0.01, (name, far)
assert (packed.float() - alone).abs().max() < 0.03
"""


def test_one_attention_call_per_pack_equals_one_call_per_conversation():
    ran = subprocess.run([sys.executable, "-c", VARLEN], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-500:] + ran.stderr[-2000:]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_gpus_have_the_loss_curve_of_one(sharding, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    folder = make_project(tmp_path / "project").parent
    options = ("--set=train.method=qlora", "--set=train.batch=2", "--set=train.effective_batch=4")
    for name, gpus in (("one", ()), ("two", ("--gpus", "2", "--sharding", sharding))):
        train(folder, *options, "--to", str(folder / name), *gpus)
    one, two = (pl.read_ndjson(folder / name / "metrics.jsonl")["loss"].to_list() for name in ("one", "two"))
    assert two == pytest.approx(one, abs=0.02)
    manifests = [read_manifest(folder / name) for name in ("one", "two")]
    assert manifests[1].machine.sharding == sharding
    assert manifests[1].metrics["eval_loss"] == pytest.approx(manifests[0].metrics["eval_loss"], abs=0.02)


def test_an_auto_tuned_batch_size_is_recorded_cached_and_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    folder = make_project(tmp_path / "project").parent
    options = ("--set=train.method=qlora", '--set=train.batch="auto"', "--set=train.effective_batch=4")
    first = train(folder, *options)["manifest"]["engine"]
    assert first["batch"] * first["accumulate"] == 4
    assert first["trial"][0]["tokens_per_second"] > 0
    assert train(folder, *options, "--fresh")["manifest"]["engine"]["trial"] == first["trial"]
    assert len(list((tmp_path / "cache/trials").iterdir())) == 1


def test_a_deterministic_run_repeats_bit_for_bit_with_and_without_autotune(tmp_path, monkeypatch):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    folder = make_project(tmp_path / "project").parent
    train(folder, "--set=train.method=qlora", '--set=train.batch="auto"', "--set=train.deterministic=true")
    ran = subprocess.run(command("retrain", "r1", "--json"), cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["losses_apart"] == 0.0
    assert result["identical"]
