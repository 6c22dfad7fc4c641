"""The tokenizer of a folder: its digest, its special tokens, and words alone beside the whole text."""

import json
import random

import pytest
from support.tokenizers import save_sentencepiece, save_tokenizer

from schemas.errors import TrainError
from train.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def test_a_tokenizers_digest_does_not_depend_on_how_its_file_is_written(folder, tmp_path, tokenizer):
    written = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(written, indent=4, sort_keys=True))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).digest == tokenizer.digest
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|im_end|>"}))
    assert Tokenizer.load(tmp_path).digest != tokenizer.digest


def test_special_tokens_that_only_the_config_declares_get_the_ids_of_transformers(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path, pad_token="<|mine|>", sep_token="<|sep|>")
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for token in ("<|mine|>", "<|sep|>"):
        assert ours.id_of(token) == theirs.convert_tokens_to_ids(token)
        assert token in ours.specials


def test_a_folder_without_a_fast_tokenizer_says_how_to_make_one(tmp_path):
    with pytest.raises(TrainError, match=r"has no tokenizer\.json") as refused:
        Tokenizer.load(tmp_path)
    assert "save_pretrained" in refused.value.hint
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TrainError, match="is no tokenizer"):
        Tokenizer.load(tmp_path)


# ------------------------------------------------------------------------------------------------------- word by word


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cutting(folder, tmp_path, pre_tokenizer):
    written = json.loads((folder / "tokenizer.json").read_text()) | {"pre_tokenizer": pre_tokenizer}
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    return Tokenizer.load(tmp_path)


def _split(expression):
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


@pytest.mark.parametrize(
    "expression", [LLAMA_3, LLAMA_3.replace("{1,3}", ""), r" ?\p{Lu}*\p{Ll}+|\p{Lu}+|\p{P}+|[^\p{L}\p{P}]+"]
)
def test_words_alone_have_the_ids_and_borders_of_the_whole_text(sample, tmp_path, expression):
    draw, tokenizer = random.Random(expression), _cutting(sample / "tiny", tmp_path, _split(expression))
    pieces = ["<|im_start|>", "<|im_end|>", "<|im", "'s", "'RE", "  ", "\n", "\r\n", "The", " lamp", "1234"]
    for _ in range(300):
        text = "".join(draw.choices([*pieces, *map(chr, range(128))], k=draw.randrange(40)))
        encoding = tokenizer.encode([text])[0]
        for border in range(len(text) + 1):
            found = tokenizer.words.spell(text, [border])
            before = sum(end <= border for _, end in encoding.offsets)
            assert found in (None, (encoding.ids, [before]))
        assert tokenizer.words.spell(text, [0, len(text)]) == (encoding.ids, [0, len(encoding.ids)])


def test_words_are_not_looked_at_alone_where_that_gives_other_ids(folder, sample, tmp_path):
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    assert Tokenizer.load(folder).words is None  # cuts nowhere
    assert Tokenizer.load(save_sentencepiece(tmp_path / "sentencepiece")).words is None
    assert _cutting(sample / "tiny", tmp_path, level).words is None
    assert _cutting(sample / "tiny", tmp_path, _split(r"\p{Han}+|.")).words is None  # an unknown property
    assert _cutting(sample / "tiny", tmp_path, _split(r"\p{L}+")).words is None  # cuts what it does not name, too
    assert Tokenizer.load(sample / "tiny").words.spell("naïve", []) is None
