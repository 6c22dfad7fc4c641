"""The tokenizer of a folder: its digest and its special tokens."""

import json

import pytest
from support.make_tokenizers import save_tokenizer

from schemas.errors import TrainError
from train.tokens.tokenizer import Tokenizer


def test_the_digest_depends_on_the_content_of_the_files_only(tokenizer_dir, tmp_path, tokenizer):
    written = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(written, indent=4, sort_keys=True))
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).digest == tokenizer.digest
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|im_end|>"}))
    assert Tokenizer.load(tmp_path).digest != tokenizer.digest


def test_special_tokens_declared_only_in_the_config_have_the_ids_of_transformers(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path, pad_token="<|mine|>", sep_token="<|sep|>")
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for token in ("<|mine|>", "<|sep|>"):
        assert ours.id_of(token) == theirs.convert_tokens_to_ids(token)
        assert token in ours.specials


def test_the_error_for_a_folder_without_a_fast_tokenizer_says_how_to_save_one(tmp_path):
    with pytest.raises(TrainError, match=r"has no tokenizer\.json") as refused:
        Tokenizer.load(tmp_path)
    assert "save_pretrained" in refused.value.hint
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TrainError, match="is not a valid tokenizer"):
        Tokenizer.load(tmp_path)
