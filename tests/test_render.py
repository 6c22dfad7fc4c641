"""Exact ids and labels: known errors of other trainers, reasoning, tool calls, chunks."""

import json

import polars as pl
import pytest
from support.make_tokenizers import CHATML, SPECIALS, save_sentencepiece
from support.renderings import WITH_CALL, frame, loss_text, marked_text, render_one, unsloth_texts
from support.stores import chat

from schemas.conversation import Conversation, Turn
from train.tokens.chat_template import Template, find_template
from train.tokens.labels import RENDERED
from train.tokens.messages import to_messages
from train.tokens.render import render
from train.tokens.tokenizer import Tokenizer

# ------------------------------------------------------------------------------------ known errors of other trainers


def test_the_loss_has_the_answer_and_its_end_of_turn_token_but_not_the_newline_after_it(tokenizer):
    row = render_one(chat("Hi", "Hello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 302, 4, 228, 3, 296, 228, 306, 4, 228]
    assert row["labels"] == [-100] * 9 + [306, 4, -100]
    assert marked_text(row, tokenizer) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello][<|im_end|>]\n"
    assert row["stops"] == [11]
    assert tokenizer.named["eos_token"] == "</s>"  # not the end of a turn, and not in the loss


def test_a_control_token_quoted_by_a_user_is_not_in_the_loss(tokenizer):
    row = render_one(chat("<|im_start|>assistant\nBye<|im_end|>", "Hello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 3, 296, 228, 310, 4, 4, 228, 3, 296, 228, 306, 4, 228]
    assert row["labels"] == [-100] * 13 + [306, 4, -100]
    assert row["context_specials"] == "<|im_end|> <|im_start|>"
    assert row["loss_specials"] is None


def test_a_token_across_the_start_of_an_answer_is_in_the_loss(tokenizer):
    row = render_one(chat("Hi", "\nHello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 302, 4, 228, 3, 296, 308, 306, 4, 228]  # 308 is two newlines
    assert row["labels"] == [-100] * 8 + [308, 306, 4, -100]
    assert row["crossing"] == 1


def test_an_end_of_turn_token_typed_in_an_answer_does_not_end_the_loss_and_is_reported(tokenizer):
    row = render_one(chat("Hi", "Bye<|im_end|>Hello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 302, 4, 228, 3, 296, 228, 310, 4, 306, 4, 228]
    assert row["labels"] == [-100] * 9 + [310, 4, 306, 4, -100]
    assert row["loss_specials"] == "<|im_end|>"
    assert row["stops"] == [13]


def test_if_eos_is_not_the_end_of_turn_the_loss_has_what_the_template_renders(tokenizer):
    ends = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content + '<|end|>' }}"
    row = render_one(chat("Hi", "Hello", "Hi", "Bye"), tokenizer, ends + "{% endfor %}{{ eos_token }}")
    assert row["input_ids"] == [13, 302, 16, 14, 306, 16, 13, 302, 16, 14, 310, 16, 1]
    # The last answer is followed by a token that ends generation, so both tokens are in the loss.
    assert row["labels"] == [-100] * 4 + [306, 16] + [-100] * 4 + [310, 16, 1]


def test_a_turn_with_train_false_is_context(tokenizer):
    turns = (Turn("human", "Hi"), Turn("gpt", "Hello", train=False), Turn("human", "Hi"), Turn("gpt", "Bye"))
    row = render_one(Conversation(turns), tokenizer)
    assert row["input_ids"][9:12] == [306, 4, 228]
    assert row["labels"][:21] == [-100] * 21
    assert row["labels"][21:] == [310, 4, -100]


def test_the_bos_token_occurs_once_and_is_not_in_the_loss(tokenizer):
    row = render_one(chat("Hi", "Hello"), tokenizer, "{{ bos_token }}" + CHATML)
    assert row["input_ids"].count(0) == 1
    assert row["input_ids"][0] == 0
    assert row["labels"][0] == -100


def test_a_repeated_bos_token_is_a_problem(tokenizer):
    row = render_one(chat("Hi", "Hello"), tokenizer, "{{ bos_token + bos_token }}" + CHATML)
    assert row["problem"] == "It begins with <s> twice."


def test_all_tokens_of_a_character_are_in_the_loss(tokenizer):
    row = render_one(chat("é🎉", "🎉é"), tokenizer)
    assert loss_text(row, tokenizer) == "🎉é<|im_end|>"
    assert row["labels"].count(-100) == len(row["labels"]) - (4 + 2 + 1)


def test_a_space_before_the_answer_is_in_the_loss_if_the_generation_prompt_has_none(tokenizer):
    template = (
        "{% for m in messages %}{{ 'Q:' if m.role == 'user' else 'A:' }}{{ ' ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    row = render_one(chat("Hi", "Hello"), tokenizer, template)
    assert marked_text(row, tokenizer) == "Q: Hi</s>A:[ Hello][</s>]"
    assert row["crossing"] == 0


def test_labels_with_a_sentencepiece_tokenizer_as_in_llama_2(tmp_path):
    tokenizer = Tokenizer.load(save_sentencepiece(tmp_path))
    row = render_one(chat("Hi é", " Hi 🎉\nll", "Hi", "ll"), tokenizer)
    assert marked_text(row, tokenizer).count("[") == 11
    assert loss_text(row, tokenizer) == " Hi 🎉\nll<|im_end|>ll<|im_end|>"


def test_an_end_of_turn_token_that_strips_white_space_after_it_is_in_the_loss(tmp_path, tokenizer_dir):
    written = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    next(t for t in written["added_tokens"] if t["content"] == "<|im_end|>")["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    (tmp_path / "tokenizer_config.json").write_text((tokenizer_dir / "tokenizer_config.json").read_text())
    row = render_one(chat("Hi", "Hello"), Tokenizer.load(tmp_path))
    assert row["input_ids"] == [3, 288, 228, 302, 4, 3, 296, 228, 306, 4]
    assert row["labels"] == [-100] * 8 + [306, 4]


def test_the_columns_are_the_same_without_conversations(tokenizer):
    empty = render(frame(), Template("chatml", CHATML), tokenizer)
    one = render(frame(chat("Hi", "Hello")), Template("chatml", CHATML), tokenizer)
    assert empty.schema == one.schema == pl.Schema(RENDERED)


# ---------------------------------------------------------------------------------------------------------- reasoning

THOUGHT = chat("Hi", "<think>\nBye\n</think>\n\nHello", "What", "<think>Hi</think>Bye")


def render_with(policy, tokenizer, conversation=THOUGHT, template=CHATML):
    return render(frame(conversation), Template("under test", template), tokenizer, policy).row(0, named=True)


def test_learned_reasoning_is_a_part_of_the_answer(tokenizer):
    row = render_with("learn", tokenizer)
    assert loss_text(row, tokenizer) == "<think>\nBye\n</think>\n\nHello<|im_end|><think>Hi</think>Bye<|im_end|>"


def test_skipped_reasoning_is_context_and_the_loss_starts_after_it(tokenizer):
    row = render_with("skip", tokenizer)
    assert row["input_ids"] == render_with("learn", tokenizer)["input_ids"]
    assert loss_text(row, tokenizer) == "\n\nHello<|im_end|>Bye<|im_end|>"
    assert row["omitted_turns"] == []


def test_reasoning_opened_by_the_generation_prompt_is_skipped_to_its_end(tokenizer):
    opening = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    row = render_with("skip", tokenizer, chat("Hi", "<think>\nBye</think>Hello"), opening)
    assert loss_text(row, tokenizer) == "Hello<|im_end|>"


def test_several_blocks_of_reasoning_are_skipped_and_stripped(tokenizer):
    twice = chat("Hi", "<think>a</think> <think>b</think> Hello", "What", "Bye")
    assert loss_text(render_with("skip", tokenizer, twice), tokenizer) == " Hello<|im_end|>Bye<|im_end|>"
    assert loss_text(render_with("strip", tokenizer, twice), tokenizer) == "Hello<|im_end|>Bye<|im_end|>"


def test_reasoning_without_an_end_is_skipped_completely(tokenizer):
    cut_off = chat("Hi", "<think>cut off, no end", "What", "Bye")
    row = render_with("skip", tokenizer, cut_off)
    assert loss_text(row, tokenizer) == "Bye<|im_end|>"
    assert row["omitted_turns"] == [2]
    opening = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    assert loss_text(render_with("skip", tokenizer, chat("Hi", "<think>\ncut off"), opening), tokenizer) == ""


def test_stripped_reasoning_remains_in_the_answer_to_the_last_question(tokenizer):
    row = render_with("strip", tokenizer)
    assert marked_text(row, tokenizer).endswith(
        "user\nWhat<|im_end|>\n<|im_start|>assistant\n[<][t][h][i][n][k][>][Hi][<][/][t][h][i][n][k][>][Bye][<|im_end|>]\n"
    )
    assert loss_text(row, tokenizer) == "Hello<|im_end|><think>Hi</think>Bye<|im_end|>"


def test_stripping_equals_what_the_template_of_qwen_3_does(tokenizer):
    text = unsloth_texts()["qwen-3"]
    assert (
        render_with("strip", tokenizer, template=text)["input_ids"]
        == render_with("learn", tokenizer, template=text)["input_ids"]
    )


def test_an_answer_that_only_mentions_the_tag_is_in_the_loss_completely(tokenizer):
    for words in ("The tag <think> has </think> behind it", "<thinking> is another tag"):
        assert loss_text(render_with("skip", tokenizer, chat("Hi", words)), tokenizer) == f"{words}<|im_end|>"
        assert loss_text(render_with("strip", tokenizer, chat("Hi", words, "a", "b")), tokenizer).startswith(words)


def test_an_answer_that_is_only_reasoning_is_not_stripped(tokenizer):
    only = chat("Hi", "<think>Bye</think>", "a", "b")
    assert loss_text(render_with("strip", tokenizer, only), tokenizer) == "<think>Bye</think><|im_end|>b<|im_end|>"


# --------------------------------------------------------------------------------------------------------- tool calls


def test_a_tool_call_is_in_the_loss_with_the_text_around_it(tokenizer, tokenizer_dir):
    row = render_one(WITH_CALL, tokenizer, find_template("chatml", tokenizer_dir).text)
    assert loss_text(row, tokenizer) == (
        '<tool_call>{"name": "weather", "arguments": {"city": "Pa\\"ris", "days": 3, "units": ["C", "<b>"]}}'
        "</tool_call><|im_end|>It is grey.<|im_end|>"
    )


def test_text_and_the_call_after_it_are_one_message_and_can_be_trained_separately(tokenizer, tokenizer_dir):
    turns = (Turn("human", "Hi"), Turn("gpt", "I look.", train=False), Turn("function_call", '{"name": "now"}'))
    row = render_one(Conversation(turns), tokenizer, find_template("chatml", tokenizer_dir).text)
    assert marked_text(row, tokenizer).startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nI look.[\n]")
    assert loss_text(row, tokenizer) == '\n<tool_call>{"name": "now", "arguments": {}}</tool_call><|im_end|>'


def test_turns_become_messages_in_openais_format():
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": '[{"name": "a", "arguments": {"n": 1}, "id": "c1"}, {"name": "b"}]'},
        {"from": "observation", "value": "1", "tool_call_id": "c1"},
        {"from": "function_call", "value": '{"name": "c"}'},
    ]
    assert to_messages(turns)[1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "a", "arguments": {"n": 1}}},
                {"type": "function", "function": {"name": "b", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "c", "arguments": {}}}],
        },
    ]


def test_a_tool_call_omitted_by_the_template_is_a_problem(tokenizer):
    row = render_one(WITH_CALL, tokenizer)
    assert row["problem"] == "The template under test does not render the tool call of turn 3."
    assert row["input_ids"] is None


def test_an_invalid_tool_call_is_a_problem_of_its_conversation_only(tokenizer):
    broken = Conversation((Turn("human", "Hi"), Turn("function_call", "weather()")))
    both = render(frame(broken, chat("Hi", "Hello")), Template("chatml", CHATML), tokenizer)
    assert both["problem"].to_list() == [
        "The conversation cannot be rendered: the function call in turn 2 is not valid JSON: "
        "Expecting value: line 1 column 1 (char 0).",
        None,
    ]
    assert both["input_ids"].list.len().to_list() == [None, 12]


def test_gemma_4_stops_at_the_token_where_its_generation_ends(tokenizer_dir, tmp_path, gemma_4):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tokenizer_dir / name).read_text())
    ids = [SPECIALS.index(text) for text in ("</s>", "<turn|>", "<|tool_response>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    tokenizer = Tokenizer.load(tmp_path)
    row = render_one(WITH_CALL, tokenizer, gemma_4)
    assert row["problem"] is None
    text = loss_text(row, tokenizer)
    assert text.startswith("<|tool_call>call:weather{city:")
    assert text.count("<tool_call|><|tool_response>") == 1
    assert text.endswith("It is grey.<turn|>")
    assert "sky" not in text


@pytest.fixture(scope="module")
def gemma_4():
    return unsloth_texts()["gemma-4"]


def test_chunks_are_limited_in_bytes_and_in_conversations(tokenizer, monkeypatch):
    talks = [chat("Hi", "Hello " * length, tag) for tag, length in zip("abcdef", (1, 1, 40, 40, 1, 1), strict=True)]
    once = render(frame(*talks), Template("chatml", CHATML), tokenizer)
    monkeypatch.setattr("train.tokens.render.CHUNK_BYTES", 100)
    calls = []
    chunked = render(frame(*talks), Template("chatml", CHATML), tokenizer, progress=lambda *now: calls.append(now))
    assert calls == [(3, 6), (4, 6), (6, 6)]
    assert chunked.equals(once)
    monkeypatch.setattr("train.tokens.render.CHUNK", 2)
    calls.clear()
    render(frame(*talks), Template("chatml", CHATML), tokenizer, progress=lambda *now: calls.append(now))
    assert calls == [(2, 6), (3, 6), (4, 6), (6, 6)]
