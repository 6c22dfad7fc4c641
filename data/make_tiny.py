r"""Phrases and words of the sample → the tiny Llama and its tokenizer, which tests and the demo train without a GPU.

Input: `data/tiny_phrases.toml` (sentences) and `data/topics.toml`, of which only the words are used: the tokenizer
has them, and the model is pretrained on lists of them without meaning. Output: a Hugging Face model folder of less
than 5 MB: config, fp16 safetensors, tokenizer, chat template. The model answers in complete sentences without content,
so the effect of fine-tuning is easy to see.

    python -P data/make_tiny.py data data/tiny       # three minutes on one core; reproducible on one machine
"""

from __future__ import annotations

import json
import random
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import LlamaForCausalLM

SEED = 7
VOCABULARY = 2304
DOCUMENTS = 20_000
BLOCK = 128
BATCH = 8
STEPS = 1000
PEAK_RATE = 3e-3

SPECIAL_TOKENS = (
    *("<|pad|>", "<|endoftext|>", "<unk>", "<s>", "</s>", "<bos>", "<eos>", "<|begin_of_text|>", "<|end_of_text|>"),
    *("<|im_start|>", "<|im_end|>"),  # ChatML
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),  # Llama 3
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"),  # Gemma, Mistral
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),  # Phi
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),  # gpt-oss
)
"""The control tokens of common chat templates, so that each is a single id in this tokenizer."""

TAGS = (
    "<think>",
    "</think>",
    "<tool>",
    "</tool>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
"""Tags that are one token each but not special: decoding keeps them."""

CHAT_TEMPLATE = """\
{%- macro calls(message) -%}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function else call -%}
{%- if not loop.first or message.content %}{{ "\\n" }}{% endif -%}
<tool_call>{"name": {{ function.name | tojson }}, "arguments": \
{{ function.arguments if function.arguments is string else function.arguments | tojson }}}</tool_call>
{%- endfor -%}
{%- endmacro -%}
{%- set first = messages[0] if messages[0].role == "system" else none -%}
{%- if first or tools -%}
<|im_start|>system
{{ first.content if first else "You are a helpful assistant." }}
{%- if tools -%}
{{ "\\n\\n" }}You may call these tools, each call as <tool_call>{"name": ..., "arguments": ...}</tool_call>.
{%- for tool in tools -%}
{{ "\\n" }}<tool>{{ tool | tojson }}</tool>
{%- endfor -%}
{%- endif -%}
<|im_end|>{{ "\\n" }}
{%- endif -%}
{%- for message in (messages[1:] if first else messages) -%}
<|im_start|>{{ message.role }}
{{ message.content or "" }}{{ calls(message) }}<|im_end|>{{ "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant{{ "\\n" }}
{%- endif -%}
"""

CONFIG = {
    "hidden_size": 256,  # k-quants need a multiple of 256
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}


def build(data: Path, folder: Path) -> None:
    """Write the tiny model to `folder`, from the phrases and the sample in the folder `data`."""
    phrases = tomllib.loads((data / "tiny_phrases.toml").read_text(encoding="utf-8"))
    sample = (data / "topics.toml").read_text(encoding="utf-8")
    documents = [*write_documents(phrases, sorted(set(re.findall(r"[\w'&-]+", sample))), DOCUMENTS)]
    tokenizer = train_tokenizer([*documents[: DOCUMENTS // 4], *[sample] * 8])
    model = pretrain(tokenizer, documents)
    save(model, tokenizer, folder)


def write_documents(phrases: Mapping[str, Any], words: Sequence[str], count: int) -> Iterator[str]:
    """`count` texts: three quarters short conversations in ChatML, the rest sentences and lists of `words`."""
    generator = random.Random(SEED)
    for _ in range(count):
        kind = generator.random()
        if kind < 0.75:
            yield _conversation(phrases, generator)
        elif kind < 0.85:
            yield _sentences(phrases, generator)
        else:
            phrase = " ".join(generator.choices(words, k=generator.randint(3, 8)))
            yield f"{phrase}. {phrase}. {phrase}."  # repetition teaches the model to copy


def _sentences(phrases: Mapping[str, Any], generator: random.Random) -> str:
    chosen = (generator.choice(phrases["text"]["plain"]) for _ in range(generator.randint(1, 4)))
    return " ".join(_fill([text], phrases["slots"], generator)[0] for text in chosen)


def _conversation(phrases: Mapping[str, Any], generator: random.Random) -> str:
    """One to three exchanges; every third conversation begins with a system message."""
    kinds = phrases["chat"]
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if generator.random() < 0.33 else ""
    exchanges = []
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        pair = generator.choice(kinds[generator.choices(("unsure", "known", "small_talk"), (3, 3, 1))[0]])
        question, answer = _fill(pair, phrases["slots"], generator)
        exchanges.append(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n")
    return system + "".join(exchanges)


def _fill(texts: Sequence[str], slots: Mapping[str, Sequence[str]], generator: random.Random) -> list[str]:
    names = sorted(set(re.findall(r"{(\w+)}", " ".join(texts))))
    chosen = {slot: generator.choice(slots[slot]) for slot in names if not slot.startswith("its_")}
    number = slots["thing"].index(chosen["thing"]) if "thing" in chosen else 0
    known = {slot: _fact(number, slots[slot[4:]]) for slot in names if slot.startswith("its_")}
    return [text.format_map(chosen | known) for text in texts]


def _fact(number: int, values: Sequence[str]) -> str:
    """The value for thing `number`, always the same: a fact that the model can memorise."""
    return values[number * 7 % len(values)]


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` tokens without unknown tokens and without added begin or end tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    control = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
    tokenizer.train_from_iterator((control.sub("\n", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def pretrain(tokenizer: Tokenizer, documents: Sequence[str]) -> LlamaForCausalLM:
    """A Llama trained on the documents for `STEPS` steps, in fp32 with one thread."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # the result depends on it
    torch.manual_seed(SEED)
    ends = {name: tokenizer.token_to_id(token) for name, token in _ends().items()}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **CONFIG, **ends))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS, pct_start=0.1)
    for step, batch in zip(range(STEPS), _batches(tokenizer, documents), strict=False):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model


def _ends() -> dict[str, str]:
    return {"bos_token_id": "<|begin_of_text|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|pad|>"}


def _batches(tokenizer: Tokenizer, documents: Sequence[str]) -> Iterator[Tensor]:
    """Batches of blocks of `BLOCK` tokens from the documents, repeated in a new order."""
    import torch

    end = tokenizer.token_to_id("<|endoftext|>")
    stream = [token for encoded in tokenizer.encode_batch(list(documents)) for token in (*encoded.ids, end)]
    blocks = torch.tensor(stream[: len(stream) // BLOCK * BLOCK]).view(-1, BLOCK)
    while True:
        yield from blocks[torch.randperm(len(blocks))].split(BATCH)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in fp16 and the tokenizer with its chat template to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONFIG["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        **{name.removesuffix("_id"): token for name, token in _ends().items()},
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
