"""Pickles, code of models and templates, and secrets in the recipe are refused."""

import json

import pytest
from support.make_tokenizers import CHATML, save_tokenizer
from support.model_files import NO_TENSORS
from support.stores import chat

from schemas.errors import RecipeError, TrainError
from schemas.recipe import TrainSection, check_recipe, load_recipe
from train.model.base_model import find_model
from train.tokens.chat_template import Template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.tokenizer import Tokenizer

TOKEN = "hf_" + "a1B2c3D4" * 4


def model(folder, *weights, **config):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    for name in weights:
        (folder / name).write_bytes(NO_TENSORS)
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
    (folder / names[1]).write_bytes(NO_TENSORS)
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


# ------------------------------------------------------------------------------------------------------ damaged models


def weights(**shapes):
    tensors, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[-1]
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + bytes(end)


COMPLETE = weights(**{"model.embed_tokens.weight": [8, 4], "model.layers.1.mlp.weight": [4, 4]})
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 4, "vocab_size": 8}


@pytest.mark.parametrize(
    ("config", "content", "message"),
    [
        (CONFIG, COMPLETE[:-1], "bytes; its header states"),
        (CONFIG, COMPLETE[:40], "its header cannot be read"),
        (CONFIG, b"", "its header cannot be read"),
        (CONFIG, b"\xff" * 100, "its header cannot be read"),
        (CONFIG, (4).to_bytes(8, "little") + b"null", "its header cannot be read"),
        (CONFIG | {"num_hidden_layers": -5}, COMPLETE, "num_hidden_layers is -5"),
        (CONFIG | {"num_hidden_layers": "2"}, COMPLETE, "num_hidden_layers is '2'"),
        (CONFIG | {"num_hidden_layers": 10**9}, COMPLETE, "states 1000000000 layers; the weights have 2"),
        (CONFIG | {"vocab_size": 9}, COMPLETE, "states 9 tokens of size 4; the embedding is 8 x 4"),
        ({"config": CONFIG}, COMPLETE, "has no model_type"),
        ([CONFIG], COMPLETE, "is not a JSON object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_or_foreign_model_is_refused_before_it_is_loaded(tmp_path, config, content, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(TrainError, match=message) as refused:
        find_model(str(tmp_path))
    assert refused.value.hint


def test_a_complete_model_is_accepted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(COMPLETE)
    assert find_model(str(tmp_path)) == tmp_path


TOWER = {"visual.blocks.5.mlp.weight": [4, 4], "vision_tower.encoder.layers.7.mlp.weight": [4, 4]}


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({"vision_config": {"depth": 6}}, TOWER),
        ({}, TOWER),
        ({"text_config": {"depth": 2}, "num_hidden_layers": 40}, {}),
        ({"word_embed_proj_dim": 2}, {"model.embed_tokens.weight": [8, 2]}),
        ({"quantization_config": {"bits": 4}}, {"model.embed_tokens.weight": [8, 1]}),
        ({}, {"model.layers.2.eh_proj.weight": [4, 4]}),
        ({}, {"mtp.layers.9.mlp.weight": [4, 4]}),
        ({"is_encoder_decoder": True, "num_hidden_layers": 12}, {}),
    ],
    ids=str,
)
def test_a_model_with_other_parts_or_shapes_is_accepted(tmp_path, config, tensors):
    text = {"model.embed_tokens.weight": [8, 4], "model.layers.1.mlp.weight": [4, 4]}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | config))
    (tmp_path / "model.safetensors").write_bytes(weights(**(text | tensors)))
    assert find_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff", '"text"'])
def test_a_config_that_is_not_json_is_refused(tmp_path, text):
    folder = model(tmp_path, "model.safetensors")
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(TrainError, match=r"config\.json is not "):
        find_model(str(folder))


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[]", "not JSON"])
def test_a_broken_index_of_weights_is_refused(tmp_path, index):
    folder = model(tmp_path, "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(TrainError, match=r"model\.safetensors\.index\.json"):
        find_model(str(folder))


def test_weights_outside_of_the_folder_are_refused(tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(NO_TENSORS)
    (tmp_path / "linked").mkdir()
    linked = model(tmp_path / "linked")
    (linked / "model.safetensors").symlink_to(outside)
    with pytest.raises(TrainError, match="is outside of the model's folder"):
        find_model(str(linked))
    for name in ("../outside.safetensors", str(outside)):
        (linked / "model.safetensors").unlink(missing_ok=True)
        (linked / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(TrainError, match="is outside of the model's folder"):
            find_model(str(linked))


def test_the_links_in_the_cache_of_the_hub_are_accepted(tmp_path):
    blob = tmp_path / "models--owner--name" / "blobs" / "0a1b"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "c0ffee"
    for folder in (blob.parent, snapshot):
        folder.mkdir(parents=True)
    blob.write_bytes(NO_TENSORS)
    model(snapshot)
    (snapshot / "model.safetensors").symlink_to(blob)
    assert find_model(str(snapshot)) == snapshot
