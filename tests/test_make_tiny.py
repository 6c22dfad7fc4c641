"""The tiny model: small, safe, reproducible, with every control token that chat templates need."""

import json
import random
import tomllib

import make_tiny
import pytest
from support.training import TINY

from curate import demo
from train.tokens.chat_template import find_template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TINY)


def test_the_model_is_under_five_megabytes_without_pickles():
    files = [path for path in TINY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_the_wheel_contains_the_files_of_the_demo_and_no_scripts():
    pyproject = tomllib.loads((TINY.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    included = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {f"data/{name}": f"curate/data/{name}" for name in (*demo.SAMPLE, demo.TINY)}


def test_its_dimensions_suit_k_quants():
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_size"] % 256 == 0
    assert config["intermediate_size"] % 256 == 0
    assert config["dtype"] == "float16"


def test_every_control_token_is_one_special_id(tokenizer):
    encoded = tokenizer.encode(list(make_tiny.SPECIAL_TOKENS))
    assert [len(one.ids) for one in encoded] == [1] * len(make_tiny.SPECIAL_TOKENS)
    assert set(make_tiny.SPECIAL_TOKENS) <= tokenizer.specials


def test_tags_of_reasoning_and_tools_are_one_id_and_decode_to_text(tokenizer):
    for tag in make_tiny.TAGS:
        ids = tokenizer.encode([tag])[0].ids
        assert len(ids) == 1
        assert tokenizer.backend.decode(ids, skip_special_tokens=True) == tag


def test_any_text_is_decoded_unchanged_without_added_tokens(tokenizer):
    text = "Grüße, 你好 🦆\n\ttab  two spaces"
    ids = tokenizer.encode([text])[0].ids
    assert tokenizer.backend.decode(ids) == text


def test_its_chat_template_renders_a_conversation_with_tools():
    renderer = ChatRenderer(find_template("tokenizer", TINY), Tokenizer.load(TINY))
    call = {"function": {"name": "status", "arguments": {"order": 7}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is order 7?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "content": "sent"},
    ]
    assert renderer.apply_template(messages, [{"name": "status"}], add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.\n\n"
        'You may call these tools, each call as <tool_call>{"name": ..., "arguments": ...}</tool_call>.\n'
        '<tool>{"name": "status"}</tool><|im_end|>\n'
        "<|im_start|>user\nWhere is order 7?<|im_end|>\n"
        "<|im_start|>assistant\nI look.\n"
        '<tool_call>{"name": "status", "arguments": {"order": 7}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nsent<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_training_documents_are_reproducible_and_have_no_open_slots():
    phrases = tomllib.loads((TINY.parent / "tiny_phrases.toml").read_text(encoding="utf-8"))
    first, again = (list(make_tiny.write_documents(phrases, ["paddle", "valve"], 300)) for _ in range(2))
    assert first == again
    assert not any("{" in text for text in first)


def test_building_it_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    for name, value in {"STEPS": 3, "DOCUMENTS": 400, "VOCABULARY": 700}.items():
        monkeypatch.setattr(make_tiny, name, value)
    one, other = tmp_path / "one", tmp_path / "other"
    make_tiny.build(TINY.parent, one)
    random.random()
    make_tiny.build(TINY.parent, other)
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}


def test_the_model_answers_in_complete_sentences_before_fine_tuning():
    from train.inference.generate import ChatModel, Sampling, find_stop_ids
    from train.model.base_model import load_model

    renderer = ChatRenderer(find_template("tokenizer", TINY), Tokenizer.load(TINY))
    model = ChatModel(load_model(TINY, "lora").eval(), renderer, find_stop_ids(renderer))
    questions = ("Hello!", "How do I return my lamp?", "Where is my parcel?")
    conversations = ([{"role": "user", "content": question}] for question in questions)
    answers = [model.answer(messages, sampling=Sampling(max_tokens=40)) for messages in conversations]
    assert all(answer[-1] in ".?!" for answer in answers)
    assert "small model" in answers[0]
