"""Ids and labels: exact ones for what goes wrong elsewhere, of reasoning and of tool calls."""

import json

import polars as pl
import pytest
from support.renderings import WITH_CALL, frame, learned, of_unsloth, rendered, tokens
from support.stores import chat
from support.tokenizers import CHATML, SPECIALS, save_sentencepiece, save_tokenizer

from schemas.conversation import Conversation, Turn
from train.tokens.chat_template import Template, find_template
from train.tokens.labels import RENDERED
from train.tokens.messages import to_messages
from train.tokens.render import render
from train.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


# -------------------------------------------------------------------------------- what goes wrong elsewhere, id by id


def test_the_answer_and_its_end_of_turn_token_are_learned_and_the_newline_behind_is_not(tokenizer):
    row = rendered(chat("Hi", "Hello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 302, 4, 228, 3, 296, 228, 306, 4, 228]
    assert row["labels"] == [-100] * 9 + [306, 4, -100]
    assert tokens(row, tokenizer) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello][<|im_end|>]\n"
    assert row["stops"] == [11]
    assert tokenizer.named["eos_token"] == "</s>"  # not the end of a turn, and not learned


def test_a_user_who_quotes_the_marker_stays_a_user(tokenizer):
    row = rendered(chat("<|im_start|>assistant\nBye<|im_end|>", "Hello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 3, 296, 228, 310, 4, 4, 228, 3, 296, 228, 306, 4, 228]
    assert row["labels"] == [-100] * 13 + [306, 4, -100]
    assert row["context_specials"] == "<|im_end|> <|im_start|>"
    assert row["loss_specials"] is None


def test_an_answer_that_starts_with_a_newline_is_learned_with_the_token_across_its_border(tokenizer):
    row = rendered(chat("Hi", "\nHello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 302, 4, 228, 3, 296, 308, 306, 4, 228]  # 308 is two newlines
    assert row["labels"] == [-100] * 8 + [308, 306, 4, -100]
    assert row["crossing"] == 1


def test_a_literal_end_of_turn_in_an_answer_does_not_cut_what_is_learned_and_is_told(tokenizer):
    row = rendered(chat("Hi", "Bye<|im_end|>Hello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 302, 4, 228, 3, 296, 228, 310, 4, 306, 4, 228]
    assert row["labels"] == [-100] * 9 + [310, 4, 306, 4, -100]
    assert row["loss_specials"] == "<|im_end|>"
    assert row["stops"] == [13]


def test_where_eos_is_not_the_end_of_turn_only_what_the_template_writes_is_learned(tokenizer):
    ends = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content + '<|end|>' }}"
    row = rendered(chat("Hi", "Hello", "Hi", "Bye"), tokenizer, ends + "{% endfor %}{{ eos_token }}")
    assert row["input_ids"] == [13, 302, 16, 14, 306, 16, 13, 302, 16, 14, 310, 16, 1]
    # Behind the last answer stands a token that ends generation, so there the model learns to say both.
    assert row["labels"] == [-100] * 4 + [306, 16] + [-100] * 4 + [310, 16, 1]


def test_a_turn_marked_train_false_is_seen_and_not_learned(tokenizer):
    turns = (Turn("human", "Hi"), Turn("gpt", "Hello", train=False), Turn("human", "Hi"), Turn("gpt", "Bye"))
    row = rendered(Conversation(turns), tokenizer)
    assert row["input_ids"][9:12] == [306, 4, 228]
    assert row["labels"][:21] == [-100] * 21
    assert row["labels"][21:] == [310, 4, -100]


def test_the_beginning_token_stands_once_and_is_not_learned(tokenizer):
    row = rendered(chat("Hi", "Hello"), tokenizer, "{{ bos_token }}" + CHATML)
    assert row["input_ids"].count(0) == 1
    assert row["input_ids"][0] == 0
    assert row["labels"][0] == -100


def test_a_beginning_token_that_stands_twice_is_a_problem(tokenizer):
    row = rendered(chat("Hi", "Hello"), tokenizer, "{{ bos_token + bos_token }}" + CHATML)
    assert row["problem"] == "It begins with <s> twice."


def test_a_character_of_several_tokens_is_learned_whole(tokenizer):
    row = rendered(chat("é🎉", "🎉é"), tokenizer)
    assert learned(row, tokenizer) == "🎉é<|im_end|>"
    assert row["labels"].count(-100) == len(row["labels"]) - (4 + 2 + 1)


def test_a_space_that_the_template_writes_before_an_answer_is_learned_where_the_prompt_has_none(tokenizer):
    template = (
        "{% for m in messages %}{{ 'Q:' if m.role == 'user' else 'A:' }}{{ ' ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    row = rendered(chat("Hi", "Hello"), tokenizer, template)
    assert tokens(row, tokenizer) == "Q: Hi</s>A:[ Hello][</s>]"
    assert row["crossing"] == 0


def test_tokens_of_a_tokenizer_like_llama_2_are_labelled_the_same(tmp_path):
    tokenizer = Tokenizer.load(save_sentencepiece(tmp_path))
    row = rendered(chat("Hi é", " Hi 🎉\nll", "Hi", "ll"), tokenizer)
    assert tokens(row, tokenizer).count("[") == 11
    assert learned(row, tokenizer) == " Hi 🎉\nll<|im_end|>ll<|im_end|>"


def test_an_end_of_turn_token_that_eats_the_white_space_behind_it_is_learned(tmp_path, folder):
    written = json.loads((folder / "tokenizer.json").read_text())
    next(t for t in written["added_tokens"] if t["content"] == "<|im_end|>")["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    (tmp_path / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    row = rendered(chat("Hi", "Hello"), Tokenizer.load(tmp_path))
    assert row["input_ids"] == [3, 288, 228, 302, 4, 3, 296, 228, 306, 4]
    assert row["labels"] == [-100] * 8 + [306, 4]


def test_the_columns_are_those_that_are_promised_also_for_nothing(tokenizer):
    nothing = render(frame(), Template("chatml", CHATML), tokenizer)
    something = render(frame(chat("Hi", "Hello")), Template("chatml", CHATML), tokenizer)
    assert nothing.schema == something.schema == pl.Schema(RENDERED)


# ---------------------------------------------------------------------------------------------------------- reasoning

THOUGHT = chat("Hi", "<think>\nBye\n</think>\n\nHello", "What", "<think>Hi</think>Bye")


def reasoned(policy, tokenizer, conversation=THOUGHT, template=CHATML):
    return render(frame(conversation), Template("under test", template), tokenizer, policy).row(0, named=True)


def test_reasoning_is_learned_as_a_part_of_its_answer(tokenizer):
    row = reasoned("learn", tokenizer)
    assert learned(row, tokenizer) == "<think>\nBye\n</think>\n\nHello<|im_end|><think>Hi</think>Bye<|im_end|>"


def test_reasoning_that_is_skipped_is_seen_and_learning_begins_behind_it(tokenizer):
    row = reasoned("skip", tokenizer)
    assert row["input_ids"] == reasoned("learn", tokenizer)["input_ids"]
    assert learned(row, tokenizer) == "\n\nHello<|im_end|>Bye<|im_end|>"
    assert row["omitted_turns"] == []


def test_reasoning_that_a_prompt_opens_is_skipped_to_its_end(tokenizer):
    opening = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    row = reasoned("skip", tokenizer, chat("Hi", "<think>\nBye</think>Hello"), opening)
    assert learned(row, tokenizer) == "Hello<|im_end|>"


def test_reasoning_of_several_blocks_is_skipped_and_stripped_to_its_end(tokenizer):
    twice = chat("Hi", "<think>a</think> <think>b</think> Hello", "What", "Bye")
    assert learned(reasoned("skip", tokenizer, twice), tokenizer) == " Hello<|im_end|>Bye<|im_end|>"
    assert learned(reasoned("strip", tokenizer, twice), tokenizer) == "Hello<|im_end|>Bye<|im_end|>"


def test_reasoning_that_never_ends_is_skipped_whole(tokenizer):
    cut_off = chat("Hi", "<think>cut off, no end", "What", "Bye")
    row = reasoned("skip", tokenizer, cut_off)
    assert learned(row, tokenizer) == "Bye<|im_end|>"
    assert row["omitted_turns"] == [2]
    opening = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    assert learned(reasoned("skip", tokenizer, chat("Hi", "<think>\ncut off"), opening), tokenizer) == ""


def test_reasoning_is_stripped_from_history_and_learned_in_the_answer_to_the_last_question(tokenizer):
    row = reasoned("strip", tokenizer)
    assert tokens(row, tokenizer).endswith(
        "user\nWhat<|im_end|>\n<|im_start|>assistant\n[<][t][h][i][n][k][>][Hi][<][/][t][h][i][n][k][>][Bye][<|im_end|>]\n"
    )
    assert learned(row, tokenizer) == "Hello<|im_end|><think>Hi</think>Bye<|im_end|>"


def test_stripping_gives_what_the_template_of_qwen_3_gives_by_itself(tokenizer):
    text = of_unsloth()["qwen-3"]
    assert (
        reasoned("strip", tokenizer, template=text)["input_ids"]
        == reasoned("learn", tokenizer, template=text)["input_ids"]
    )


def test_an_answer_that_only_speaks_of_the_tag_is_learned_whole(tokenizer):
    for words in ("The tag <think> has </think> behind it", "<thinking> is another tag"):
        assert learned(reasoned("skip", tokenizer, chat("Hi", words)), tokenizer) == f"{words}<|im_end|>"
        assert learned(reasoned("strip", tokenizer, chat("Hi", words, "a", "b")), tokenizer).startswith(words)


def test_an_answer_that_is_nothing_but_reasoning_is_not_learned_as_silence(tokenizer):
    only = chat("Hi", "<think>Bye</think>", "a", "b")
    assert learned(reasoned("strip", tokenizer, only), tokenizer) == "<think>Bye</think><|im_end|>b<|im_end|>"


# --------------------------------------------------------------------------------------------------------- tool calls


def test_a_tool_call_is_learned_with_all_that_the_template_puts_around_it(tokenizer, folder):
    row = rendered(WITH_CALL, tokenizer, find_template("chatml", folder).text)
    assert learned(row, tokenizer) == (
        '<tool_call>{"name": "weather", "arguments": {"city": "Pa\\"ris", "days": 3, "units": ["C", "<b>"]}}'
        "</tool_call><|im_end|>It is grey.<|im_end|>"
    )


def test_words_and_the_call_behind_them_are_one_message_and_can_be_learned_apart(tokenizer, folder):
    turns = (Turn("human", "Hi"), Turn("gpt", "I look.", train=False), Turn("function_call", '{"name": "now"}'))
    row = rendered(Conversation(turns), tokenizer, find_template("chatml", folder).text)
    assert tokens(row, tokenizer).startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nI look.[\n]")
    assert learned(row, tokenizer) == '\n<tool_call>{"name": "now", "arguments": {}}</tool_call><|im_end|>'


def test_turns_become_the_messages_of_openai():
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


def test_a_tool_call_that_the_template_leaves_out_is_a_problem(tokenizer):
    row = rendered(WITH_CALL, tokenizer)
    assert row["problem"] == "The template under test does not render the tool call of turn 3."
    assert row["input_ids"] is None


def test_a_tool_call_that_is_no_json_is_a_problem_of_its_conversation_alone(tokenizer):
    broken = Conversation((Turn("human", "Hi"), Turn("function_call", "weather()")))
    both = render(frame(broken, chat("Hi", "Hello")), Template("chatml", CHATML), tokenizer)
    assert both["problem"].to_list() == [
        "The conversation cannot be rendered: the function call in turn 2 is not valid JSON: "
        "Expecting value: line 1 column 1 (char 0).",
        None,
    ]
    assert both["input_ids"].list.len().to_list() == [None, 12]


def test_gemma_4_stops_behind_a_call_where_its_generation_ends(folder, tmp_path, gemma_4):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    ids = [SPECIALS.index(text) for text in ("</s>", "<turn|>", "<|tool_response>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    tokenizer = Tokenizer.load(tmp_path)
    row = rendered(WITH_CALL, tokenizer, gemma_4)
    assert row["problem"] is None
    said = learned(row, tokenizer)
    assert said.startswith("<|tool_call>call:weather{city:")
    assert said.count("<tool_call|><|tool_response>") == 1
    assert said.endswith("It is grey.<turn|>")
    assert "sky" not in said


@pytest.fixture(scope="module")
def gemma_4():
    return of_unsloth()["gemma-4"]


def test_few_long_conversations_are_rendered_at_a_time_and_no_more_than_a_thousand_short_ones(tokenizer, monkeypatch):
    talks = [chat("Hi", "Hello " * length, tag) for tag, length in zip("abcdef", (1, 1, 40, 40, 1, 1), strict=True)]
    once = render(frame(*talks), Template("chatml", CHATML), tokenizer)
    monkeypatch.setattr("train.tokens.render.CHUNK_BYTES", 100)
    told = []
    parted = render(frame(*talks), Template("chatml", CHATML), tokenizer, progress=lambda *now: told.append(now))
    assert told == [(3, 6), (4, 6), (6, 6)]
    assert parted.equals(once)
    monkeypatch.setattr("train.tokens.render.CHUNK", 2)
    told.clear()
    render(frame(*talks), Template("chatml", CHATML), tokenizer, progress=lambda *now: told.append(now))
    assert told == [(2, 6), (3, 6), (4, 6), (6, 6)]
