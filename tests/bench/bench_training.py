"""Compare the training speed with its peers: loss tokens per second in the steady state, and peak memory.

The arms run one after the other, each in its own process, on the same conversations with the same packs per optimiser
step. The model has the shape of Llama 3.1 8B and random weights, on which speed does not depend.

python tests/bench/bench_training.py                                   # on a GPU: some minutes
python tests/bench/bench_training.py --shape tiny --steps 8 --packs 4  # on any machine: a smoke test
python tests/bench/bench_training.py --arms curate,curate-segments,curate-12gib,notebook,trl --profile
python tests/bench/bench_training.py --arms curate,curate-ddp,curate-fsdp             # on two GPUs
python tests/bench/bench_training.py --arms curate-fixed,curate-deterministic         # the cost of determinism
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

os.environ |= {"UNSLOTH_AUTO_INSTALL": "0", "UNSLOTH_DISABLE_STATISTICS": "1", "HF_HUB_OFFLINE": "1"}

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data" / "tiny"

SHAPES = {
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
}

FIXED = {"batch": 4, "extra": {"gradient_checkpointing": False}}

# Recipe keys that an arm changes, or the name of a peer; then its environment variables.
ARMS = {
    "curate": ({"batch": "auto"}, {}),
    "curate-12gib": ({"batch": "auto", "max_memory": 12.0}, {}),
    "curate-segments": ({"batch": "auto"}, {"UNSLOTH_TORCH_VARLEN": "0"}),
    "curate-lora": ({"batch": "auto", "method": "lora"}, {}),
    "curate-fixed": (FIXED, {}),
    "curate-deterministic": (FIXED | {"deterministic": True}, {}),
    "curate-cudagraphs": (FIXED, {"UNSLOTH_BLOCK_CUDAGRAPHS": "1"}),
    "curate-uncompiled": (FIXED, {"UNSLOTH_COMPILE_DISABLE": "1"}),
    "curate-autotuned": (FIXED, {"UNSLOTH_COMPILE_MAXIMUM": "1"}),
    "curate-fused-lora": (FIXED, {"UNSLOTH_FORCE_FUSED_LORA": "1"}),
    "curate-gemm-4bit": (FIXED, {"UNSLOTH_BNB_GEMM_4BIT": "1"}),
    "curate-plain-head": (FIXED, {"UNSLOTH_FUSED_LINEAR": "0"}),
    "curate-adamw-8bit": ({"batch": 4, "extra": {"gradient_checkpointing": False, "optim": "adamw_8bit"}}, {}),
    "curate-16-bit": (FIXED | {"method": "lora"}, {}),
    "curate-ddp": ({"batch": "auto", "gpus": 2}, {}),
    "curate-transformers-ddp": ({"batch": 2, "engine": "transformers", "gpus": 2}, {}),
    "curate-fsdp": (FIXED | {"gpus": 2, "sharding": "fsdp"}, {}),
    "curate-transformers": ({"batch": "auto", "engine": "transformers"}, {}),
    "notebook": ("notebook", {}),
    "trl": ("trl", {}),
}

STEADY = 3
"""Steps that are not measured, because kernels are compiled in them."""

MEAN, SIGMA, CONTEXT = 370, 0.9, 0.25
"""Mean and sigma of the log-normal lengths in tokens, and the share of each conversation without loss."""


def main() -> None:
    """Create the model and the conversations, run the arms, print a table."""
    args = parse_arguments()
    folder = args.folder / args.shape
    if args.arm:
        print("RESULT " + json.dumps(run_arm(args.arm, folder, args)), flush=True)
        return
    make_inputs(folder, args)
    results = {arm: run_in_process(arm, args) for arm in args.arms.split(",")}
    print_table(results, args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="curate,notebook,trl", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="llama-8b", choices=[*SHAPES, "tiny"])
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--packs", type=int, default=16, help="per optimiser step")
    parser.add_argument("--batch", type=int, default=8, help="packs per pass of the peers")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--method", default="qlora", choices=["qlora", "lora"])
    parser.add_argument("--limit", type=int, default=240, help="seconds that an arm may take")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench_training"))
    parser.add_argument("--profile", action="store_true", help="print where one step of curate's arms spends its time")
    return parser.parse_args()


def run_in_process(arm: str, args: argparse.Namespace) -> dict:
    """The arm's result or error; its output is written to a file."""
    _, environment = ARMS[arm]
    log = args.folder / f"{arm}.log"
    command = [sys.executable, str(Path(__file__).resolve()), "--arm", arm, *sys.argv[1:]]
    started = time.monotonic()
    print(f"{arm} … (its output: {log})", flush=True)
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                env=os.environ | environment | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=args.limit,
                check=False,
            )
            error = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            error = f"longer than {args.limit} s"
    text = log.read_text(errors="replace")
    results = [line for line in text.splitlines() if line.startswith("RESULT ")]
    result = json.loads(results[-1].removeprefix("RESULT ")) if results else {"error": error, "tail": text[-2500:]}
    result["wall"] = round(time.monotonic() - started)
    print(json.dumps(result, indent=1) if "error" not in result else f"{result['error']}\n{result.get('tail')}")
    return result


# ----------------------------------------------------------------------------------------------------- in the arm


def run_arm(arm: str, folder: Path, args: argparse.Namespace) -> dict:
    """Train with one arm: its speed, memory and settings."""
    changes, _ = ARMS[arm]
    import polars as pl

    rows = pl.read_parquet(args.folder / "rows.parquet")
    timer = Timer(rows, profile=args.profile)
    try:
        facts = (
            run_curate(changes, folder, rows, args, timer)
            if isinstance(changes, dict)
            else run_peer(changes, folder, rows, args, timer)
        )
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {str(error)[:600]}", "tail": traceback.format_exc()[-2500:]}
    return timer.result() | {"facts": facts}


class Timer:
    """Records the time after each step, when the loss has been read and the GPU is therefore idle."""

    def __init__(self, rows, *, profile):
        self.tokens = rows["input_ids"].list.len().sum()
        self.loss_tokens = sum(sum(label != -100 for label in labels) for labels in rows["labels"].to_list())
        self.times, self.losses = {}, {}
        self.profile = profile
        self.profiler = None

    def step(self, number, epoch, loss, seconds=None, memory=None):
        import torch

        self.times[number] = (time.perf_counter() if seconds is None else seconds, epoch * self.tokens)
        self.memory = memory
        self.losses[number] = loss
        if number == STEADY and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if self.profile and number == STEADY + 2:
            from torch.profiler import ProfilerActivity, profile

            self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.profiler.start()
        if self.profile and number == STEADY + 3:
            self.profiler.stop()
            print(self.profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=25), flush=True)

    def result(self):
        import torch

        (start, before), (end, after) = self.times[STEADY], self.times[max(self.times)]
        if self.profile:  # the profiler slows its own step down
            (end, after) = self.times[STEADY + 2]
        speed = (after - before) / (end - start)
        on_gpu = torch.cuda.is_available()
        return {
            "tokens_per_second": round(speed),
            "loss_tokens_per_second": round(speed * self.loss_tokens / self.tokens),
            "seconds_per_step": round((end - start) / (len([n for n in self.times if n > STEADY]) or 1), 3),
            "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if on_gpu else None,
            "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 1) if on_gpu else None,
            "reported_gib": round(self.memory, 1) if self.memory else None,
            "losses": [round(loss, 4) for loss in self.losses.values()],
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        }


def run_curate(changes: dict, folder: Path, rows, args: argparse.Namespace, timer: Timer) -> dict:
    """The engine as `curate train` calls it, without the store."""
    import logging

    import polars as pl

    logging.basicConfig(level=logging.INFO)
    from schemas.recipe import TrainSection
    from train.engines import Job, find_engine
    from train.model.base_model import pick_method
    from train.runs.torchrun import Processes, fit_distributed

    changes = dict(changes)
    processes = Processes(changes.pop("gpus", 1), changes.pop("sharding", "ddp"))
    recipe = TrainSection(
        **{
            "model": str(folder),
            "method": args.method,
            "max_length": args.length,
            "steps": args.steps,
            "effective_batch": args.packs,
            "save_every": 10_000,
            "track": (),
            **changes,
        }
    )
    to = args.folder / "out" / str(os.getpid())
    to.mkdir(parents=True)
    epochs_per_token = 1 / timer.tokens
    job = Job(
        rows=rows,
        held_out=pl.DataFrame(schema=rows.schema),
        model=folder,
        recipe=recipe,
        method=pick_method(recipe.method),
        checkpoints=to / "checkpoints",
        adapter=to / "adapter",
        resume=None,
        report=lambda step: timer.step(step.step, step.tokens * epochs_per_token, step.loss, step.seconds, step.memory),
    )
    (to / "checkpoints").mkdir()
    if processes.world_size > 1:
        with (to / "lock").open("w") as lock:
            return fit_distributed(job, processes, to / "log", lock).facts
    return find_engine(recipe.engine).fit(job).facts


def run_peer(peer: str, folder: Path, rows, args: argparse.Namespace, timer: Timer) -> dict:
    """A peer as in its own examples: QLoRA r=16 on all linear layers, packed, two passes per step."""
    if peer == "notebook":
        from unsloth import FastLanguageModel  # first: it patches the others
    import peft
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    on_gpu = torch.cuda.is_available()
    four_bits = args.method == "qlora"
    if peer == "notebook":
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(folder), max_seq_length=args.length, load_in_4bit=four_bits, dtype=None if on_gpu else torch.float32
        )
        model = FastLanguageModel.get_peft_model(
            model, r=16, lora_alpha=16, target_modules=layers, use_gradient_checkpointing="unsloth" if on_gpu else False
        )
    else:
        dtype = torch.bfloat16 if on_gpu else torch.float32
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=four if four_bits else None, device_map={"": 0} if on_gpu else None
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=layers)
        )

    class StepTimer(TrainerCallback):
        def on_log(self, _args, state, _control, logs, **_):
            if "loss" in logs:
                timer.step(state.global_step, state.epoch, logs["loss"])

    accumulate = max(1, args.packs // args.batch)
    settings = SFTConfig(
        output_dir=str(args.folder / "out" / str(os.getpid())),
        max_length=args.length,
        packing=True,
        per_device_train_batch_size=min(args.batch, args.packs),
        gradient_accumulation_steps=accumulate,
        max_steps=args.steps,
        learning_rate=2e-4,
        optim="adamw_8bit" if on_gpu else "adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=3407,
        **({} if on_gpu else {"gradient_checkpointing": False}),
    )
    dataset = Dataset.from_polars(rows.select("input_ids", "labels"))
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=dataset, processing_class=tokenizer, callbacks=[StepTimer()]
    )
    packed = bool(trainer.args.packing) and "seq_lengths" in trainer.train_dataset.column_names
    trainer.train()
    return {
        "packing": packed,
        "batch": settings.per_device_train_batch_size,
        "accumulate": accumulate,
        "checkpointing": "unsloth" if peer == "notebook" else bool(settings.gradient_checkpointing),
    }


# ----------------------------------------------------------------------------------------- the model and the rows


def make_inputs(folder: Path, args: argparse.Namespace) -> None:
    """Draw the conversations; create the model unless it exists: random bf16 weights, about one shard per layer."""
    import numpy as np
    import polars as pl

    args.folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(3407)
    count = int(1.15 * args.steps * args.packs * args.length / min(MEAN, args.length / 4)) + 64
    mean = math.log(min(MEAN, args.length / 4)) - SIGMA**2 / 2 + 0.03
    lengths = np.clip(generator.lognormal(mean, SIGMA, count), 16, args.length).astype(int)
    vocabulary = 2000 if args.shape == "tiny" else 128_000
    ids = [generator.integers(300, vocabulary, size).astype(np.int32) for size in lengths]
    labels = [np.where(np.arange(len(row)) < CONTEXT * len(row), -100, row).astype(np.int32) for row in ids]
    rows = pl.DataFrame({"input_ids": [row.tolist() for row in ids], "labels": [row.tolist() for row in labels]})
    rows = rows.cast({"input_ids": pl.List(pl.Int32), "labels": pl.List(pl.Int32)})
    rows.write_parquet(args.folder / "rows.parquet")
    print(f"{count:,} conversations, {lengths.sum():,} tokens, mean {lengths.mean():.0f}, longest {lengths.max()}")
    if not (folder / "done").exists():
        make_model(folder, args)


def make_model(folder: Path, args: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(TINY, folder)
    if args.shape == "tiny":
        (folder / "done").touch()
        return
    started = time.monotonic()
    (folder / "model.safetensors").unlink()
    shape = SHAPES[args.shape] | ({"num_hidden_layers": args.layers} if args.layers else {})
    config = LlamaConfig(
        **shape,
        num_key_value_heads=8,
        vocab_size=128_256,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=7,
        eos_token_id=10,
        pad_token_id=0,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(config).state_dict().items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shards: list[dict] = [{}]
    for name, size in shapes.items():
        if sum(t.numel() for t in shards[-1].values()) > 1e9:
            shards.append({})
        one = torch.ones if "norm" in name else torch.randn
        shards[-1][name] = (one(size, dtype=torch.bfloat16, device=device) * (1 if "norm" in name else 0.02)).cpu()
    names = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = sum(t.numel() * 2 for shard in shards for t in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "done").touch()
    print(f"Made {total / 2**30:.1f} GiB of random weights in {time.monotonic() - started:.0f} s", flush=True)


# ---------------------------------------------------------------------------------------------------------- table


def print_table(results: dict, args: argparse.Namespace) -> None:
    from importlib.metadata import PackageNotFoundError, version

    def installed(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    devices = {result["device"] for result in results.values() if "device" in result}
    names = ("torch", "unsloth", "transformers", "trl", "peft", "bitsandbytes", "xformers", "flash-attn")
    shape = args.shape + (f" cut to {args.layers} layers" if args.layers else "")
    print(
        f"\n{', '.join(devices)}; {shape}, {args.method} r=16, {args.packs} packs of {args.length} per step, "
        f"{args.steps} steps, the first {STEADY} not measured. Python {sys.version.split()[0]}, "
        + ", ".join(f"{name} {installed(name)}" for name in names)
        + "\n"
    )
    columns = ("arm", "loss tokens/s", "tokens/s", "x notebook", "x trl", "peak GiB (reserved)", "batch")
    columns += ("checkpointing", "attention", "total s")
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for arm, result in results.items():
        if "error" in result:
            print(f"| {arm} | failed: {result['error'][:100]} | | | | | | | | {result['wall']} |")
            continue
        facts = result["facts"]
        ratios = [ratio(result, results.get(peer, {})) for peer in ("notebook", "trl")]
        cells = [
            arm,
            f"{result['loss_tokens_per_second']:,}",
            f"{result['tokens_per_second']:,}",
            *ratios,
            f"{result['peak_allocated_gib']} ({result['peak_reserved_gib']})"
            if result["peak_allocated_gib"]
            else result["reported_gib"],
            f"{facts['batch']}x{facts['accumulate']}"
            + (f" on {facts['gpus']}" if facts.get("gpus", 1) > 1 else "")
            + ("" if facts["packing"] else ", unpacked"),
            facts["checkpointing"],
            facts.get("attention", ""),
            result["wall"],
        ]
        print("| " + " | ".join(map(str, cells)) + " |")
    for arm, result in results.items():
        print(f"{arm} losses: {result.get('losses')}")
        for measurement in result.get("facts", {}).get("trial", []):
            print(f"{arm} measured: {measurement}")


def ratio(result: dict, peer: dict) -> str:
    return (
        f"{result['loss_tokens_per_second'] / peer['loss_tokens_per_second']:.2f}"
        if "loss_tokens_per_second" in peer
        else ""
    )


if __name__ == "__main__":
    main()
