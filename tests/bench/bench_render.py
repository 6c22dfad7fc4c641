"""Speed of rendering conversations to ids and labels, compared with TRL: chat template and assistant masks, row by row.

python tests/bench/bench_render.py FILE.jsonl [ROWS] [--tokenizer FOLDER]    # rows: instruction, input, output

Every arm has the same conversations, tokenizer, template and cores, and its ids and labels are compared before the
table is printed. Without --tokenizer, one with 32,000 tokens and the pre-tokenizer of Llama 3 is trained on the file.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import polars as pl
import pytest

from schemas.conversation import fold
from train.tokens import render as rendering
from train.tokens.cache import render_version
from train.tokens.chat_template import Template
from train.tokens.labels import IGNORE_INDEX
from train.tokens.messages import to_messages
from train.tokens.render import render
from train.tokens.tokenizer import Tokenizer

CORES = len(os.sched_getaffinity(0))
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML with the tags that TRL needs to find the answers; curate ignores them."""


def main() -> None:
    """Print rows per second of every arm, and the ratio to TRL's speed."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATE_CACHE", folder)
        members = conversations(arguments.file, arguments.rows)
        tokenizer = arguments.tokenizer or _train_tokenizer(members, Path(folder) / "tokenizer")
        arms = {
            "TRL, one process": lambda: with_trl(members, tokenizer, None),
            f"TRL, dataset_num_proc={CORES}": lambda: with_trl(members, tokenizer, CORES),
            "curate, one process": lambda: with_curate(members, tokenizer, processes=1),
            f"curate, on {CORES} cores": lambda: with_curate(members, tokenizer, processes=None),
            "curate, first time for a version": lambda: cached(members, tokenizer),
            "curate, from the cache": lambda: cached(members, tokenizer),
        }
        _show(members, {name: _timed(arm) for name, arm in arms.items()})


def conversations(file: Path, rows: int) -> pl.DataFrame:
    """Alpaca rows as the members of a version."""
    table = pl.read_ndjson(file).head(rows).filter(pl.col("output") != "")
    question = pl.concat_str("instruction", pl.lit("\n\n"), "input").str.strip_chars_end()
    sides = pl.concat_list(
        pl.struct(pl.lit("human").alias("from"), question.alias("value")),
        pl.struct(pl.lit("gpt").alias("from"), pl.col("output").alias("value")),
    )
    turns = table.with_row_index("row").select(pl.col("row").cast(pl.Int64), sides.alias("turn"))
    folded = fold(turns.explode("turn").unnest("turn")).unique("id", maintain_order=True)
    return folded.select("id", "conversations", "tools", pl.lit("train").alias("split"))


def with_trl(members: pl.DataFrame, folder: Path, processes: int | None) -> pl.DataFrame:
    """The map over rows of `SFTTrainer` with `assistant_only_loss` (`trl/trainer/sft_trainer.py`)."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = Dataset.from_list([{"messages": to_messages(turns)} for turns in members["conversations"].to_list()])

    def tokenize(row: dict[str, object]) -> dict[str, object]:
        output = tokenizer.apply_chat_template(
            row["messages"], chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": output["input_ids"], "assistant_masks": output["assistant_masks"]}

    start = time.perf_counter()
    mapped = rows.map(tokenize, num_proc=processes, remove_columns="messages", load_from_cache_file=False)
    took = time.perf_counter() - start
    return mapped.to_polars().with_columns(pl.lit(took).alias("took"))


def with_curate(members: pl.DataFrame, folder: Path, processes: int | None) -> pl.DataFrame:
    """Rendered without a cache; `processes` None is the choice of `curate train`."""
    tokenizer = Tokenizer.load(folder)
    with pytest.MonkeyPatch.context() as patch:
        if processes:
            patch.setattr(rendering, "_count_processes", lambda _size: processes)
        start = time.perf_counter()
        rendered = render(members, Template("chatml", CHATML), tokenizer)
        took = time.perf_counter() - start
    return rendered.with_columns(pl.lit(took).alias("took"))


def cached(members: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """Rendered or read from the cache, as by `curate plan` and `curate train`."""
    start = time.perf_counter()
    rendered = render_version(members, "bench", Template("chatml", CHATML), Tokenizer.load(folder))
    return rendered.with_columns(pl.lit(time.perf_counter() - start).alias("took"))


def _timed(arm) -> tuple[float, pl.DataFrame]:
    frame = arm()
    return frame["took"][0], frame


def _show(members: pl.DataFrame, arms: dict[str, tuple[float, pl.DataFrame]]) -> None:
    (slowest, peer), *others = arms.values()
    tokens = int(peer["input_ids"].list.len().sum())
    _compare(peer, [frame for _, frame in others])
    print(f"{members.height:,} conversations, {tokens:,} tokens, {CORES} cores, Python {sys.version.split()[0]}")
    names = ("tokenizers", "transformers", "trl", "datasets", "jinja2", "polars")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print("\n| arm | seconds | rows/s | tokens/s | x TRL |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (took, _) in arms.items():
        rate = f"{members.height / took:,.0f} | {tokens / took:,.0f}"
        print(f"| {name} | {took:.2f} | {rate} | {slowest / took:.1f} |")


def _compare(peer: pl.DataFrame, others: list[pl.DataFrame]) -> None:
    """Assert that every arm has the same ids and the same tokens in the loss."""
    in_loss = pl.col("assistant_masks").list.eval(pl.element() != 0)
    expected = peer.select("input_ids", in_loss.alias("in_loss"))
    for other in others:
        ours = "labels" in other.columns
        column = pl.col("labels").list.eval(pl.element() != IGNORE_INDEX) if ours else in_loss
        found = other.select("input_ids", column.alias("in_loss"))
        assert found["input_ids"].cast(pl.List(pl.Int64)).equals(expected["input_ids"].cast(pl.List(pl.Int64)))
        different = found.with_columns(expected=expected["in_loss"]).filter(pl.col("in_loss") != pl.col("expected"))
        assert different.is_empty(), different


def _train_tokenizer(members: pl.DataFrame, folder: Path) -> Path:
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(ignore_merges=True))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), level])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = trainers.BpeTrainer(vocab_size=32_000, initial_alphabet=alphabet, show_progress=False)
    texts = members["conversations"].explode().struct.field("value")
    backend.train_from_iterator(texts.to_list(), words)
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("rows", type=int, nargs="?", default=20_000)
    parser.add_argument("--tokenizer", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
