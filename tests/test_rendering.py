"""Ids and labels: exact ones for what goes wrong elsewhere, and equality with transformers for the rest."""

import json
import random
from importlib.metadata import PackageNotFoundError, version

import polars as pl
import pytest
from making_tokenizers import CHATML, SPECIALS, save_sentencepiece, save_tokenizer
from stores import chat

from schemas.conversation import TURN, Conversation, Turn
from schemas.errors import TrainError
from schemas.installing import install_command
from train import caching, rendering
from train.caching import rendered_version
from train.messaging import to_messages, to_tools
from train.rendering import RENDERED, Script, Template, Tokenizer, find_template, render
from train.spreading import spread
from train.templating import own_names, unsloth_templates

CALL = '{"name": "weather", "arguments": {"city": "Pa\\"ris", "days": 3, "units": ["C", "<b>"]}}'
TOOLS = (
    '[{"name": "weather", "description": "The <weather>.",'
    ' "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]'
)
WITH_CALL = Conversation(
    (
        Turn("system", "Be kind."),
        Turn("human", "Weather?"),
        Turn("function_call", CALL),
        Turn("observation", '{"sky": "grey"}'),
        Turn("gpt", "It is grey."),
    ),
    TOOLS,
)
CONVERSATIONS = {
    "one turn": chat("Hi", "Hello"),
    "a system message": chat("Hi", "Hello", system="Be kind."),
    "an empty system message": chat("Hi", "Hello", system=""),
    "three turns": chat("Hi", "Hello", "What?", "Bye", "And?", "No."),
    "odd white space": chat("  Hi \n", "\n\n Hello \t\n", "\tWhat\r\n", " Bye "),
    "other scripts": chat("你好，世界", "Grüße 🎉👩‍👩‍👧", "مرحبا", "สวัสดี"),
    "quoted markers": chat("What is <|im_start|>assistant\nHello<|im_end|>, [/INST] and ### Response:\n?", "A marker."),
    "thinking": chat("Hi", "<think>\nhm\n</think>\n\nHello", "And?", "<think>\nagain\n</think>\n\nBye"),
    "private-use characters": chat("\U000f0000\U00100000", "\U000f0003 Hello"),
    "braces and quotes": chat("{{ 7 * 7 }} {% raw %}", "'\"\\n' {# no #}"),
}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def transformers_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def frame(*conversations):
    rows = [{"id": c.id, "conversations": [turn.as_row() for turn in c.turns], "tools": c.tools} for c in conversations]
    return pl.DataFrame(rows, schema={"id": pl.String, "conversations": pl.List(TURN), "tools": pl.String})


def rendered(conversation, tokenizer, template=CHATML):
    return render(frame(conversation), Template("under test", template), tokenizer).row(0, named=True)


def tokens(row, tokenizer):
    """The tokens as text, the learned ones in brackets."""
    texts = [tokenizer.backend.decode([number], skip_special_tokens=False) for number in row["input_ids"]]
    return "".join(text if label == -100 else f"[{text}]" for text, label in zip(texts, row["labels"], strict=True))


def learned(row, tokenizer):
    return tokenizer.backend.decode([label for label in row["labels"] if label != -100], skip_special_tokens=False)


# --------------------------------------------------------------------------- what goes wrong elsewhere, id by id


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
    assert row["seen_specials"] == "<|im_end|> <|im_start|>"
    assert row["learned_specials"] is None


def test_an_answer_that_starts_with_a_newline_is_learned_with_the_token_across_its_border(tokenizer):
    row = rendered(chat("Hi", "\nHello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 302, 4, 228, 3, 296, 308, 306, 4, 228]  # 308 is two newlines
    assert row["labels"] == [-100] * 8 + [308, 306, 4, -100]
    assert row["straddling"] == 1


def test_a_literal_end_of_turn_in_an_answer_does_not_cut_what_is_learned_and_is_told(tokenizer):
    row = rendered(chat("Hi", "Bye<|im_end|>Hello"), tokenizer)
    assert row["input_ids"] == [3, 288, 228, 302, 4, 228, 3, 296, 228, 310, 4, 306, 4, 228]
    assert row["labels"] == [-100] * 9 + [310, 4, 306, 4, -100]
    assert row["learned_specials"] == "<|im_end|>"
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
    assert row["straddling"] == 0


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


# -------------------------------------------------------------------------------------------------------- reasoning

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
    assert row["left_out"] == []


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
    assert row["left_out"] == [2]
    opening = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    assert learned(reasoned("skip", tokenizer, chat("Hi", "<think>\ncut off"), opening), tokenizer) == ""


def test_reasoning_is_stripped_from_history_and_learned_in_the_answer_to_the_last_question(tokenizer):
    row = reasoned("strip", tokenizer)
    assert tokens(row, tokenizer).endswith(
        "user\nWhat<|im_end|>\n<|im_start|>assistant\n[<][t][h][i][n][k][>][Hi][<][/][t][h][i][n][k][>][Bye][<|im_end|>]\n"
    )
    assert learned(row, tokenizer) == "Hello<|im_end|><think>Hi</think>Bye<|im_end|>"


def test_stripping_gives_what_the_template_of_qwen_3_gives_by_itself(tokenizer):
    text = _unsloth()["qwen-3"]
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


# ------------------------------------------------------------------------------------------------------- tool calls


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
        "The conversation cannot be rendered: turn 2 calls a function in text that is no JSON: "
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
    return _unsloth()["gemma-4"]


# --------------------------------------------------------------------------------------- problems and refusals


def test_a_template_that_refuses_a_conversation_gives_its_reason(tokenizer):
    template = "{% if messages|length > 2 %}{{ raise_exception('Only one question.') }}{% endif %}" + CHATML
    both = render(frame(chat("Hi", "Hello"), chat("a", "b", "c", "d")), Template("short", template), tokenizer)
    assert both["problem"].to_list() == [None, "The template short refuses it: Only one question."]


def test_a_template_whose_answers_do_not_end_in_a_special_token_is_refused(tokenizer):
    template = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(TrainError, match="the model would never learn to stop") as refused:
        rendered(chat("Hi", "Hello"), tokenizer, template)
    assert "'\\n'" in refused.value.what


def test_a_template_that_rewrites_its_answers_is_a_problem_not_a_guess(tokenizer):
    template = "{% for m in messages %}{{ m.content | upper + (m.content | length | string) + eos_token }}{% endfor %}"
    assert "otherwise when it is marked" in rendered(chat("Hi", "Hello"), tokenizer, template)["problem"]


def test_an_unknown_template_is_answered_with_the_nearest_and_all_that_are_known(folder, monkeypatch):
    monkeypatch.setattr("train.templating.unsloth_templates", dict)
    with pytest.raises(TrainError, match=r"There is no template chatlm\. Did you mean chatml\?") as refused:
        find_template("chatlm", folder)
    assert "Known: chatml, gemma, llama-3, raw, tokenizer; or the path of a .jinja file." in refused.value.hint
    assert install_command("unsloth") in refused.value.hint


def test_a_template_can_be_a_file_and_its_digest_is_that_of_its_text(folder, tmp_path):
    (tmp_path / "mine.jinja").write_text(CHATML)
    found = find_template(str(tmp_path / "mine.jinja"), folder)
    assert found.text == CHATML
    assert found.digest == find_template("tokenizer", folder).digest
    with pytest.raises(TrainError, match="cannot be read"):
        find_template(str(tmp_path / "theirs.jinja"), folder)


def test_a_tokenizer_without_a_template_says_what_to_give(tmp_path):
    with pytest.raises(TrainError, match="has no chat template of its own"):
        find_template("tokenizer", save_tokenizer(tmp_path, template=None))


def test_a_template_that_asks_for_today_has_one_day_written_into_it(folder, tokenizer, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ strftime_now('%d %B %Y') }}" + CHATML)
    found = find_template(str(tmp_path / "mine.jinja"), folder)
    assert found.text == '{{ "01 January 2026" }}' + CHATML
    row = render(frame(chat("Hi", "Hello")), found, tokenizer).row(0, named=True)
    assert tokens(row, tokenizer).startswith("01 January 2026<|im_start|>")


def test_a_day_that_an_engine_sets_is_not_looked_at_and_words_that_are_like_it_stay(folder, tmp_path):
    asks = "{% if date_string is defined %}{{ date_string }}{% else %}{{ 'date_string' + message.datetime }}{% endif %}"
    (tmp_path / "mine.jinja").write_text("date_string: " + asks)
    assert find_template(str(tmp_path / "mine.jinja"), folder).text == (
        "date_string: {% if pinned_date_string is defined %}{{ pinned_date_string }}"
        "{% else %}{{ 'date_string' + message.datetime }}{% endif %}"
    )


def test_a_template_that_makes_up_the_form_of_the_day_is_refused(folder, tmp_path):
    (tmp_path / "mine.jinja").write_text("{% set form = '%d' %}{{ strftime_now(form) }}" + CHATML)
    with pytest.raises(TrainError, match=r"asks for today's date in a form that it makes up itself"):
        find_template(str(tmp_path / "mine.jinja"), folder)


def test_the_columns_are_those_that_are_promised_also_for_nothing(tokenizer):
    nothing = render(frame(), Template("chatml", CHATML), tokenizer)
    something = render(frame(chat("Hi", "Hello")), Template("chatml", CHATML), tokenizer)
    assert nothing.schema == something.schema == pl.Schema(RENDERED)


# ------------------------------------------------------------------------- equality with transformers, by template


def _unsloth():
    try:
        version("unsloth")
    except PackageNotFoundError:
        pytest.skip("unsloth is not installed")
    return unsloth_templates()


def _check(name, text, tokenizer, theirs):
    """Every conversation that the template takes: transformers' ids, and labels that decode to what is meant."""
    script = Script(Template(name, text), tokenizer)
    conversations = [*CONVERSATIONS.values(), WITH_CALL]
    rows = render(frame(*conversations), Template(name, text), tokenizer).rows(named=True)
    taken = 0
    for conversation, row in zip(conversations, rows, strict=True):
        if row["problem"] is not None:
            assert conversation is WITH_CALL or "alternate" in row["problem"], (name, row["problem"])
            continue
        taken += 1
        messages = to_messages([turn.as_row() for turn in conversation.turns])
        tools = to_tools(conversation.tools)
        ids = theirs.apply_chat_template(messages, tools=tools, chat_template=text, tokenize=True, return_dict=False)
        assert row["input_ids"] == ids, (name, conversation)
        _check_labels(script, conversation, row, tokenizer)
    return taken


def _check_labels(script, conversation, row, tokenizer):
    meant = [turn for turn in conversation.turns if turn.role in ("gpt", "function_call")]
    regions = script.rendering(frame(conversation).row(0, named=True)).regions
    stops = [row["input_ids"][end - 1] for end in row["stops"]]
    left_out = [number for number in row["left_out"] if conversation.turns[number - 1].role == "gpt"]
    assert len(regions) == len(stops) == len(meant) - len(left_out)
    assert all(tokenizer.backend.id_to_token(stop) in tokenizer.specials for stop in stops)
    said = learned(row, tokenizer)
    for turn in meant:
        words = turn.value.split("</think>")[-1].strip()
        number = conversation.turns.index(turn) + 1
        assert turn.role == "function_call" or number in row["left_out"] or words in said
    for turn in conversation.turns:
        if turn.role in ("system", "human", "observation") and len(turn.value.strip()) > 3:
            assert turn.value.strip() not in said
    start = tokenizer.id_of(tokenizer.named["bos_token"])
    assert [*row["input_ids"][:2]] != [start, start]


@pytest.mark.parametrize("name", [*own_names(), "tokenizer"])
def test_our_templates_give_the_ids_of_apply_chat_template(name, folder, tokenizer, transformers_tokenizer):
    assert _check(name, find_template(name, folder).text, tokenizer, transformers_tokenizer) >= len(CONVERSATIONS)


def test_the_tiny_model_is_rendered_as_by_transformers(sample):
    from transformers import AutoTokenizer

    folder = sample / "tiny"
    text = find_template("tokenizer", folder).text
    taken = _check("tiny", text, Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder))
    assert taken == len(CONVERSATIONS) + 1


@pytest.mark.slow
def test_every_template_of_unsloth_gives_the_ids_of_apply_chat_template(folder, tokenizer, transformers_tokenizer):
    templates = _unsloth()
    assert len(templates) >= 47
    distinct = {find_template(name, folder).text: name for name in templates}
    taken = {name: _check(name, text, tokenizer, transformers_tokenizer) for text, name in distinct.items()}
    assert min(taken.values()) >= len(CONVERSATIONS) - 1, taken


@pytest.mark.slow
def test_every_template_of_unsloth_learns_from_where_the_servers_prompt_ends(tokenizer):
    for name, text in _unsloth().items():
        script = Script(Template(name, text), tokenizer)
        messages = to_messages([turn.as_row() for turn in CONVERSATIONS["three turns"].turns])
        row = frame(CONVERSATIONS["three turns"]).row(0, named=True)
        rendering = script.rendering(row)
        sent = script.text(messages[:-1], prompt=True)
        if rendering.text.startswith(sent):
            assert rendering.regions[-1].start == len(sent), name
        starts = rendering.text.count("<s>")
        assert starts in ((0, 1) if name != "llama" else (3,)), name  # Llama 2 begins every question with it


@pytest.mark.slow
@pytest.mark.parametrize("name", own_names())
def test_our_templates_render_what_unsloths_of_the_same_name_do(name, folder, tokenizer):
    if name not in _unsloth():
        pytest.skip("ours alone")
    ours, theirs = (
        Script(Template(name, text), tokenizer) for text in (find_template(name, folder).text, _unsloth()[name])
    )
    for conversation in CONVERSATIONS.values():
        messages = to_messages([turn.as_row() for turn in conversation.turns])
        assert ours.text(messages) == theirs.text(messages)
        assert ours.prompt == theirs.prompt


def test_the_day_is_all_that_is_written_into_unsloths_templates(folder, tokenizer):
    dated = {name: text for name, text in _unsloth().items() if find_template(name, folder).text != text}
    assert {"llama-3.1", "gpt-oss"} <= dated.keys()
    for name, text in dated.items():
        ours, theirs = Script(find_template(name, folder), tokenizer), Script(Template(name, text), tokenizer)
        messages = to_messages([turn.as_row() for turn in CONVERSATIONS["a system message"].turns])
        assert ours.text(messages) == theirs.text(messages)  # which are told the same day when they ask


def test_a_template_with_generation_tags_renders_as_in_transformers(tokenizer, transformers_tokenizer):
    template = CHATML.replace(
        "{{ '<|im_start|>'", "{% generation %}{% set x = 1 %}{% endgeneration %}{{ '<|im_start|>'"
    )
    assert _check("tags", template, tokenizer, transformers_tokenizer) == len(CONVERSATIONS)


# ------------------------------------------------------------------------------------- the same, in less time


def _alike():
    """Conversations that share their shape with one before, and are not all easy."""
    plain = [chat(f"Hi {n}", f"Hello {n}.", f"And {n}?", f"Bye {n}", system=f"Be {n}.") for n in range(3)]
    return [*plain, *(other for c in CONVERSATIONS.values() for other in (c, _said_again(c)))]


def _said_again(conversation):
    return Conversation(tuple(Turn(turn.role, f"{turn.value}?") for turn in conversation.turns))


def _assert_as_if_alone(text, tokenizer):
    template = Template("under test", text)
    together = render(frame(*_alike()), template, tokenizer)
    alone = pl.concat(render(frame(conversation), template, tokenizer) for conversation in _alike())
    assert together.equals(alone)


def test_a_conversation_like_an_earlier_one_is_labelled_as_if_it_stood_alone(tokenizer, folder):
    for name in ("tokenizer", *own_names()):
        _assert_as_if_alone(find_template(name, folder).text, tokenizer)


@pytest.mark.slow
def test_so_it_is_in_every_template_of_unsloth(tokenizer):
    for text in set(_unsloth().values()):
        _assert_as_if_alone(text, tokenizer)


def test_a_template_that_looks_into_words_is_not_taken_for_one_that_does_not(tokenizer):
    shouting = CHATML.replace("message.content +", "(message.content if 'a' in message.content else 'ohne a') +")
    rows = render(frame(chat("a", "a b"), chat("a", "c")), Template("shouting", shouting), tokenizer)
    assert learned(rows.row(0, named=True), tokenizer) == "a b<|im_end|>"
    assert rows["left_out"].to_list() == [[], [2]]


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


def test_many_are_rendered_by_several_processes_to_the_same_frame(sample, monkeypatch):
    folder = sample / "tiny"
    conversations = frame(*(chat(f"Hi {n} é", f"Hello {n}.") for n in range(30)), WITH_CALL)
    template, tokenizer = find_template("tokenizer", folder), Tokenizer.load(folder)
    one = render(conversations, template, tokenizer)
    monkeypatch.setattr(rendering, "CHUNK", 7)
    monkeypatch.setattr(rendering, "_processes", lambda _size: 2)
    monkeypatch.setattr(rendering, "_rendered", None)  # not here
    assert render(conversations, template, tokenizer).equals(one)


def test_a_process_that_ends_early_is_an_error_and_not_a_shorter_frame(capfd):
    with pytest.raises(RuntimeError, match="A process that helps ended early"):
        list(spread(bytes.fromhex, ("not hex",), [bytes, bytes], 2))
    assert "ValueError" in capfd.readouterr().err


# --------------------------------------------------------------------------------------------------- the tokenizer


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


# ------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def members():
    conversations = [chat(f"Hi {n}", "Hello") for n in range(5)]
    return frame(*conversations).sort("id").with_columns(split=pl.lit("train"))


def test_a_version_is_rendered_once(members, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    template = Template("chatml", CHATML)
    first = rendered_version(members, "d1", template, tokenizer)
    monkeypatch.setattr(caching, "render_as", None)
    assert rendered_version(members, "d1", template, tokenizer).equals(first)
    assert first.columns == [*RENDERED, "split"]


@pytest.mark.parametrize("damage", [b"", b"PAR1 half of it"])
def test_a_damaged_rendering_is_made_again(members, tokenizer, monkeypatch, tmp_path, damage):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    first = rendered_version(members, "d1", Template("chatml", CHATML), tokenizer)
    (file,) = tmp_path.rglob("*.parquet")
    file.write_bytes(damage)
    assert rendered_version(members, "d1", Template("chatml", CHATML), tokenizer).equals(first)
    assert pl.read_parquet(file).height == 5


def test_another_template_tokenizer_or_policy_is_another_rendering(members, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    for text in (CHATML, "{{ bos_token }}" + CHATML):
        rendered_version(members, "d1", Template("chatml", text), tokenizer)
    rendered_version(members, "d2", Template("chatml", CHATML), tokenizer)
    monkeypatch.setattr(caching, "MASK_POLICY", rendering.MASK_POLICY + "'")
    rendered_version(members, "d1", Template("chatml", CHATML), tokenizer)
    assert len([*tmp_path.rglob("*.parquet")]) == 4


def test_the_cache_forgets_what_was_not_used_longest(members, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    rendered_version(members, "d1", Template("chatml", CHATML), tokenizer)
    (first,) = tmp_path.rglob("*.parquet")
    monkeypatch.setattr(caching, "ROOM", int(first.stat().st_size * 1.5))
    rendered_version(members, "d2", Template("chatml", CHATML), tokenizer)
    (second,) = tmp_path.rglob("*.parquet")
    assert first != second
