"""Time every command on a GPU, from a JSONL file to an adapter that is verified and retrained.

    python tests/bench/bench_journey.py alpaca_52k.jsonl --to journey

The base model is made by the benchmark: a small Llama trained only on the answers of the train split, without their
questions, so that fine-tuning has a visible effect: the held-out loss decreases, and questions are answered.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data"))
import make_tiny

PROMPTS = (
    "Give three tips for staying healthy.",
    "What is the capital of France?",
    "Write a short poem about the sea.",
)

RECIPE = """\
[select.rules]
good = "quality >= 0.8"

[freeze]
held_out = 0.02

[train]
model = "base"
max_length = 2048
batch = "auto"
effective_batch = 16
learning_rate = 1e-3
rank = 64
alpha = 64
epochs = 2
save_every = 200
"""

LLAMA = {
    **{"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
    **{"num_key_value_heads": 4, "max_position_embeddings": 2048, "tie_word_embeddings": True},
}
VOCABULARY, BLOCK, BATCH, STEPS, PEAK_RATE = 16_000, 512, 64, 500, 1.5e-3


def main() -> None:
    """Run the commands and print their output and duration."""
    options = _options()
    options.to.mkdir(parents=True)
    (options.to / "curate.toml").write_text(RECIPE)
    source = options.file.resolve()
    seconds: dict[str, float] = {}
    for words in (["import", str(source)], ["score"], ["select"], ["freeze", "journey"]):
        curate(options.to, seconds, *words)
    started = time.perf_counter()
    make_base(options.to, options.steps)
    seconds["(base model)"] = time.perf_counter() - started
    for name in ("plan journey", "plan journey", "train journey", "verify r1", "retrain r1", "check-packing base"):
        curate(options.to, seconds, *name.split())
    curate(
        options.to, seconds, "chat", "r1", "--compare", "--max-tokens", "60", *[f"--prompt={text}" for text in PROMPTS]
    )
    print("\n| command | seconds |\n| --- | --- |")
    print("\n".join(f"| {name} | {value:.1f} |" for name, value in seconds.items()))
    manifest = json.loads((options.to / "adapters" / "r1" / "manifest.json").read_text())
    print(json.dumps({key: manifest[key] for key in ("data", "tokens", "metrics", "machine", "engine")}, indent=1))


def curate(folder: Path, seconds: dict[str, float], *words: str) -> None:
    """Run a command and show its output."""
    name = words[0] if words[0] not in seconds else f"{words[0]}, again"
    print(f"\n$ curate {' '.join(words)}", flush=True)
    started = time.perf_counter()
    command = [sys.executable, "-P", "-c", "from curate.cli.app import main; main()", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"COLUMNS": "110"}, check=False)
    seconds[name] = time.perf_counter() - started
    if done.returncode:
        print(f"exit code {done.returncode}", flush=True)


def make_base(folder: Path, steps: int) -> None:
    """A Llama trained from scratch on the answers of the train split; it knows the questions only as text."""
    import duckdb
    import torch

    with duckdb.connect(str(folder / "curate.duckdb"), read_only=True) as connection:
        pairs = connection.sql(
            """SELECT conversations[1]."value", conversations[-1]."value" FROM conversations
               JOIN members ON id = conversation WHERE split = 'train' ORDER BY id"""
        ).fetchall()
    generator = random.Random(make_tiny.SEED)
    answers = [answer for _, answer in pairs]
    questions = [question for question, _ in pairs]
    generator.shuffle(questions)  # questions precede answers of others: the model learns the markers, not to answer
    mixed = [
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for question, answer in zip(questions, answers, strict=True)
    ]
    make_tiny.VOCABULARY = VOCABULARY
    tokenizer = make_tiny.train_tokenizer([*answers, *questions])
    torch.manual_seed(make_tiny.SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = pretrain(tokenizer, [*answers, *mixed], steps, device)
    make_tiny.save(model.cpu(), tokenizer, folder / "base")


def pretrain(tokenizer, documents, steps: int, device: str):
    """Train on blocks of text in bf16 with AdamW and one cycle of the learning rate."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    ends = {name: tokenizer.token_to_id(token) for name, token in make_tiny._ends().items()}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **LLAMA, **ends)).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, trained from scratch", flush=True)
    end = tokenizer.token_to_id("<|endoftext|>")
    random.Random(make_tiny.SEED).shuffle(documents)
    stream = [token for encoded in tokenizer.encode_batch(documents) for token in (*encoded.ids, end)]
    blocks = torch.tensor(stream[: len(stream) // BLOCK * BLOCK]).view(-1, BLOCK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        batch = blocks[torch.randint(len(blocks), (BATCH,))].to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 250 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f}", flush=True)
    return model


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a JSONL file with instruction, input, output")
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the base model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
