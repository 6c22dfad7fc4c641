"""Pickles, code of models and templates, and secrets in the recipe are refused."""

import json

import pytest
from support.make_tokenizers import CHATML, save_tokenizer
from support.stores import chat

from schemas.errors import RecipeError, TrainError
from schemas.recipe import TrainSection, check_recipe, load_recipe
from train.model.base_model import find_model
from train.tokens.chat_template import Template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.tokenizer import Tokenizer

TOKEN = "hf_" + "a1B2c3D4" * 4


def model(folder, *weights, **config):
    (folder / "config.json").write_text(json.dumps(config))
    for name in weights:
        (folder / name).write_bytes(b"")
    return folder


# ----------------------------------------------------------------------------------------------------------- weights


def test_a_pickle_is_refused_even_next_to_safetensors_that_are_not_weights(tmp_path):
    folder = model(tmp_path, "pytorch_model.bin", "optimizer.safetensors")
    with pytest.raises(TrainError, match=r"only pickles \(pytorch_model.bin\)"):
        find_model(str(folder))


def test_a_model_with_missing_shards_is_refused(tmp_path):
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    folder = model(tmp_path, names[0], "pytorch_model.bin")
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TrainError, match="only pickles"):
        find_model(str(folder))
    (folder / names[1]).write_bytes(b"")
    assert find_model(str(folder)) == folder


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_or_its_tokenizer_requires_trust(tmp_path, file):
    folder = model(tmp_path, "model.safetensors")
    (folder / file).write_text('{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}')
    with pytest.raises(TrainError, match="contains its own Python code") as refused:
        find_model(str(folder))
    assert "train.trust_remote_code=true (recorded in the manifest)" in refused.value.hint
    assert find_model(str(folder), trust_remote_code=True) == folder
    assert TrainSection().trust_remote_code is False
    assert TrainSection(trust_remote_code=True).model_dump()["trust_remote_code"] is True


# --------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    "evil",
    [
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
        "{% for i in range(999999999) %}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    renderer = ChatRenderer(Template("evil", CHATML + evil), Tokenizer.load(save_tokenizer(tmp_path)))
    row = {"conversations": [turn.as_row() for turn in chat("Hi", "Hello").turns], "tools": None}
    problem = renderer.render(row).problem
    assert problem is not None
    assert problem.startswith("The template evil refuses it")
    assert not (tmp_path / "owned").exists()


# ----------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hub_token", "anything"),
        ("push_to_hub_token", TOKEN),
        ("run_name", f"mine {TOKEN}"),
        ("api_key", "5f4dcc3b5aa7"),
        ("hub_model_id", "https://me:hunter2@example.org/model"),
    ],
)
def test_a_secret_in_the_recipe_is_an_error_that_does_not_repeat_it(key, value):
    with pytest.raises(RecipeError, match=f"train.extra: .*{key} looks like a secret") as refused:
        check_recipe({"train": {"extra": {key: value}}}, "curate.toml")
    assert value not in refused.value.what
    with pytest.raises(RecipeError) as refused:
        load_recipe(None, [f"train.extra.{key}={json.dumps(value)}"])
    assert value not in refused.value.what


def test_names_of_tokens_are_not_secrets():
    extra = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "max_steps_per_token": 3, "run_name": "hf_small"}
    assert TrainSection(extra=extra).extra == extra
