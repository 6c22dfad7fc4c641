"""How fast a merge is beside the disk's own copy, and how much memory it takes, on the shape of an 8B Llama.

    python tests/bench/bench_merge.py [--layers 32] [--folder DIR]

Makes a base of random bfloat16 weights in shards of 5 GB and an adapter of rank 16 on every linear layer, copies the
base file by file, then merges it shard by shard, each in a process of its own. Prints both speeds, their ratio, and the
merge's peak memory beside its limit; exit code 1 when the ratio is below 0.5 or the memory above the limit. 32 layers
need 33 GB of disk. With PYTHONPATH=. it runs where nothing is installed but torch and this project's dependencies.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LEAST = 0.5
MOST_SHARDS = 1.5
HIDDEN, INNER, KEYS, VOCABULARY, RANK = 4096, 14336, 1024, 128256, 16
SHARD = 5 * 10**9
NOISE = 2**24
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    parser.add_argument("--only", choices=("copy", "merge"))
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(arguments.only, arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        start = time.perf_counter()
        make(Path(folder), arguments.layers)
        print(f"made the base in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        copied, merged = (in_a_process(Path(folder), what) for what in ("copy", "merge"))
    return report(copied, merged)


def report(copied, merged):
    ratio = copied["seconds"] / merged["seconds"]
    limit = MOST_SHARDS * merged["largest"] + merged["adapter"] + merged["before"]
    print(f"device  {merged['device']}, {os.cpu_count()} cores; {merged['bytes'] / 1e9:.1f} GB of weights")
    print(f"copy    {copied['bytes'] / copied['seconds'] / 1e9:.2f} GB/s")
    print(f"merge   {merged['bytes'] / merged['seconds'] / 1e9:.2f} GB/s")
    print(f"ratio   {ratio:.2f}  (at least {LEAST})")
    print(f"memory  {merged['peak'] / 1e9:.2f} GB, of which {merged['before'] / 1e9:.2f} before the first shard")
    print(f"on GPU  {merged['on_gpu'] / 1e9:.2f} GB")
    print(f"limit   {limit / 1e9:.2f} GB  (these, 1.5 x the largest shard, and the adapter)")
    return int(ratio < LEAST or merged["peak"] > limit)


def in_a_process(folder, what):
    command = [sys.executable, __file__, "--only", what, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measured(what, folder):
    return copy(folder) if what == "copy" else merge(folder)


def copy(folder):
    """Each file copied as the system copies it, and on the disk before the next; both find the base in the cache."""
    shards = sorted((folder / "base").glob("*.safetensors"))
    (folder / "copied").mkdir()
    start = time.perf_counter()
    for shard in shards:
        shutil.copyfile(shard, folder / "copied" / shard.name)
        with (folder / "copied" / shard.name).open("rb+") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(folder / "copied")
    return {"seconds": seconds, "bytes": sum(shard.stat().st_size for shard in shards)}


def merge(folder):
    import torch

    from train.export.sharded_merge import Shard, read_adapter

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.zeros(1, device=device)
    before = peak_memory()
    shards = sorted((folder / "base").glob("*.safetensors"))
    (folder / "merged").mkdir()
    start = time.perf_counter()
    adapter = read_adapter(folder / "adapter", device)
    for shard in shards:
        Shard(shard, adapter, None, {}, device).write(folder / "merged" / shard.name)
    seconds = time.perf_counter() - start
    sizes = [shard.stat().st_size for shard in shards]
    return {
        "seconds": seconds,
        "bytes": sum(sizes),
        "largest": max(sizes),
        "adapter": (folder / "adapter/adapter_model.safetensors").stat().st_size,
        "before": before,
        "peak": peak_memory(),
        "on_gpu": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
        "device": torch.cuda.get_device_name(0) if device == "cuda" else "CPU",
    }


def peak_memory():
    """The most that this process had in memory, pages of mapped files included; getrusage would add its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def make(folder, layers):
    """The base in shards, and its adapter."""
    import torch
    from safetensors.torch import save_file

    (folder / "base").mkdir()
    (folder / "adapter").mkdir()
    noise = torch.randint(-999, 999, (NOISE,), dtype=torch.int16).view(torch.bfloat16)
    shard, size, number = {}, 0, 0
    for name, shape in tensors(layers):
        shard[name] = repeated(noise, shape)
        size += shard[name].nbytes
        if size >= SHARD:
            number += 1
            save_file(shard, folder / "base" / f"model-{number:05}.safetensors")
            shard, size = {}, 0
    if shard:
        save_file(shard, folder / "base" / f"model-{number + 1:05}.safetensors")
    low = {}
    for layer in range(layers):
        for name, (out, into) in LINEAR.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            low[f"{path}.lora_A.weight"] = torch.randn(RANK, into)
            low[f"{path}.lora_B.weight"] = torch.randn(out, RANK)
    save_file(low, folder / "adapter/adapter_model.safetensors")
    (folder / "adapter/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK})
    )


def repeated(noise, shape):
    """The same numbers over and over: as hard to copy as others, and made at the memory's speed."""
    wanted = math.prod(shape)
    return noise.repeat(-(-wanted // len(noise)))[:wanted].clone().reshape(shape)


def tensors(layers):
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        for name, shape in LINEAR.items():
            yield f"model.layers.{layer}.{name}.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


if __name__ == "__main__":
    sys.exit(main())
