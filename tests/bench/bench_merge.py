"""Speed of a merge compared with a copy on the same disk, and its peak memory, for the shape of an 8B Llama.

    python tests/bench/bench_merge.py [--layers 32] [--folder DIR]

Creates a base model with random bfloat16 weights in shards of 5 GB and an adapter of rank 16 on every linear layer,
copies the base model file by file and merges it shard by shard, each in its own process. Prints both speeds, their
ratio, and the merge's peak memory with its limit; exit code 1 if the ratio is below 0.5 or the memory above the limit.
32 layers need 33 GB of disk. With PYTHONPATH=. it needs only torch and the dependencies of this project.
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

MIN_RATIO = 0.5
MAX_SHARDS = 1.5
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
    parser.add_argument("--folder", type=Path, default=None, help="folder on the disk to measure")
    parser.add_argument("--only", choices=("copy", "merge"))
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        start = time.perf_counter()
        create(Path(folder), arguments.layers)
        print(f"created the base model in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        copied, merged = (run_in_process(Path(folder), job) for job in ("copy", "merge"))
    return print_report(copied, merged)


def print_report(copied, merged):
    ratio = copied["seconds"] / merged["seconds"]
    limit = MAX_SHARDS * merged["largest"] + merged["adapter"] + merged["before"]
    print(f"device  {merged['device']}, {os.cpu_count()} cores; {merged['bytes'] / 1e9:.1f} GB of weights")
    print(f"copy    {copied['bytes'] / copied['seconds'] / 1e9:.2f} GB/s")
    print(f"merge   {merged['bytes'] / merged['seconds'] / 1e9:.2f} GB/s")
    print(f"ratio   {ratio:.2f}  (at least {MIN_RATIO})")
    print(f"memory  {merged['peak'] / 1e9:.2f} GB, of which {merged['before'] / 1e9:.2f} before the first shard")
    print(f"on GPU  {merged['on_gpu'] / 1e9:.2f} GB")
    print(f"limit   {limit / 1e9:.2f} GB  (these, 1.5 x the largest shard, and the adapter)")
    return int(ratio < MIN_RATIO or merged["peak"] > limit)


def run_in_process(folder, job):
    command = [sys.executable, __file__, "--only", job, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(job, folder):
    return copy(folder) if job == "copy" else merge(folder)


def copy(folder):
    """Copy each file and flush it to disk. The base model is in the page cache, as it is for the merge."""
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
    """Peak memory of this process including mapped files; getrusage would include the parent's peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def create(folder, layers):
    """Write the base model in shards, and its adapter."""
    import torch
    from safetensors.torch import save_file

    (folder / "base").mkdir()
    (folder / "adapter").mkdir()
    noise = torch.randint(-999, 999, (NOISE,), dtype=torch.int16).view(torch.bfloat16)
    shard, size, number = {}, 0, 0
    for name, shape in tensors(layers):
        shard[name] = repeat(noise, shape)
        size += shard[name].nbytes
        if size >= SHARD:
            number += 1
            save_file(shard, folder / "base" / f"model-{number:05}.safetensors")
            shard, size = {}, 0
    if shard:
        save_file(shard, folder / "base" / f"model-{number + 1:05}.safetensors")
    lora = {}
    for layer in range(layers):
        for name, (out, into) in LINEAR.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            lora[f"{path}.lora_A.weight"] = torch.randn(RANK, into)
            lora[f"{path}.lora_B.weight"] = torch.randn(out, RANK)
    save_file(lora, folder / "adapter/adapter_model.safetensors")
    (folder / "adapter/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK})
    )


def repeat(noise, shape):
    """Repeat the same numbers: they take as long to copy as others and are created faster."""
    count = math.prod(shape)
    return noise.repeat(-(-count // len(noise)))[:count].clone().reshape(shape)


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
