"""Tokenizers for tests, defined token by token, so that ids in tests are the same on every machine."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIALS = [
    *("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"),  # 0 to 4
    *("<|im_sep|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    *("<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|end_of_turn|>", "<|endoftext|>"),
]
"""The special tokens of common templates; their ids are their positions here."""

WORDS = ["user", "assistant", "system", "Hi", "Hello", " Hello", "\n\n", "Bye", "What", " is"]
"""Texts that are one token; all others are one token per byte."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_tokenizer(folder: Path, template: str | None = CHATML, **config: object) -> Path:
    """Write a byte-level BPE tokenizer into `folder`, in the format of transformers; eos is `</s>`, bos `<s>`."""
    vocabulary, merges = _vocabulary()
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return _save(backend, folder, template, config)


def save_sentencepiece(folder: Path, template: str | None = CHATML, **config: object) -> Path:
    """Write a tokenizer like that of Llama 2: spaces become `▁`, one is prepended, unknown characters become bytes."""
    pieces = [*SPECIALS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ▁!?.,\n<>/|_"))
    merges = [("H", "i"), ("▁", "Hi"), ("l", "l")]
    vocabulary = {text: number for number, text in enumerate([*pieces, *letters, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return _save(backend, folder, template, config)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in WORDS:
        ((spelt, _),) = split.pre_tokenize_str(word.removeprefix(" "))
        merges += [(spelt[:end], spelt[end]) for end in range(1, len(spelt))]
        merges += [("Ġ", spelt)] if word.startswith(" ") else []
    unique = list(dict.fromkeys(merges))
    texts = [*SPECIALS, *letters, *dict.fromkeys("".join(pair) for pair in unique)]
    return {text: number for number, text in enumerate(texts)}, unique


def _save(backend: Tokenizer, folder: Path, template: str | None, config: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        **({} if template is None else {"chat_template": template}),
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(written), encoding="utf-8")
    return folder
