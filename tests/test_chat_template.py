"""Chat templates by name and file, errors, the pinned date, and equality with transformers."""

import pytest
from support.make_tokenizers import CHATML, save_tokenizer
from support.renderings import (
    CONVERSATIONS,
    WITH_CALL,
    frame,
    loss_text,
    marked_text,
    render_one,
    unsloth_texts,
)
from support.stores import chat

from schemas.environment import install_command
from schemas.errors import TrainError
from train.tokens.chat_template import Template, bundled_names, find_template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.messages import to_messages, to_tools
from train.tokens.render import render
from train.tokens.tokenizer import Tokenizer

# ---------------------------------------------------------------------------------------------- problems and errors


def test_the_reason_of_a_template_that_refuses_a_conversation_is_reported(tokenizer):
    template = "{% if messages|length > 2 %}{{ raise_exception('Only one question.') }}{% endif %}" + CHATML
    both = render(frame(chat("Hi", "Hello"), chat("a", "b", "c", "d")), Template("short", template), tokenizer)
    assert both["problem"].to_list() == [None, "The template short refuses it: Only one question."]


def test_a_template_without_an_end_of_turn_token_is_an_error(tokenizer):
    template = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(TrainError, match="the model would never learn to stop") as refused:
        render_one(chat("Hi", "Hello"), tokenizer, template)
    assert "'\\n'" in refused.value.what


def test_a_template_that_changes_answers_is_a_problem(tokenizer):
    template = "{% for m in messages %}{{ m.content | upper + (m.content | length | string) + eos_token }}{% endfor %}"
    assert "differently when it is marked" in render_one(chat("Hi", "Hello"), tokenizer, template)["problem"]


def test_the_error_for_an_unknown_template_names_the_nearest_and_all_known_ones(tokenizer_dir, monkeypatch):
    monkeypatch.setattr("train.tokens.chat_template.unsloth_templates", dict)
    with pytest.raises(TrainError, match=r"There is no template chatlm, did you mean chatml\?") as refused:
        find_template("chatlm", tokenizer_dir)
    assert "Known: chatml, gemma, llama-3, raw, tokenizer; or the path of a .jinja file." in refused.value.hint
    assert install_command("unsloth") in refused.value.hint


def test_a_template_can_be_a_file_and_its_digest_is_that_of_its_text(tokenizer_dir, tmp_path):
    (tmp_path / "mine.jinja").write_text(CHATML)
    template = find_template(str(tmp_path / "mine.jinja"), tokenizer_dir)
    assert template.text == CHATML
    assert template.digest == find_template("tokenizer", tokenizer_dir).digest
    with pytest.raises(TrainError, match="cannot be read"):
        find_template(str(tmp_path / "theirs.jinja"), tokenizer_dir)


def test_a_tokenizer_without_a_template_is_an_error(tmp_path):
    with pytest.raises(TrainError, match="has no chat template"):
        find_template("tokenizer", save_tokenizer(tmp_path, template=None))


def test_a_fixed_date_replaces_todays_in_a_template(tokenizer_dir, tokenizer, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ strftime_now('%d %B %Y') }}" + CHATML)
    template = find_template(str(tmp_path / "mine.jinja"), tokenizer_dir)
    assert template.text == '{{ "01 January 2026" }}' + CHATML
    row = render(frame(chat("Hi", "Hello")), template, tokenizer).row(0, named=True)
    assert marked_text(row, tokenizer).startswith("01 January 2026<|im_start|>")


def test_date_variables_of_engines_are_renamed_and_similar_text_is_not(tokenizer_dir, tmp_path):
    asks = "{% if date_string is defined %}{{ date_string }}{% else %}{{ 'date_string' + message.datetime }}{% endif %}"
    (tmp_path / "mine.jinja").write_text("date_string: " + asks)
    assert find_template(str(tmp_path / "mine.jinja"), tokenizer_dir).text == (
        "date_string: {% if pinned_date_string is defined %}{{ pinned_date_string }}"
        "{% else %}{{ 'date_string' + message.datetime }}{% endif %}"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("""{{ "}}" + strftime_now("%Y") }}""", """{{ "}}" + "2026" }}"""),
        ("""{{ {"a": {"b": 1}}["a"]["b"] ~ strftime_now('%d') }}""", """{{ {"a": {"b": 1}}["a"]["b"] ~ "01" }}"""),
        (
            """{%- if 1 -%}\n {{ strftime_now ( "%m" ) }} \n{%- endif %}\n""",
            """{%- if 1 -%}\n {{ "01" }} \n{%- endif %}\n""",
        ),
        ("{% raw %}{{ strftime_now('%d') }}{% endraw %}\r\n{# strftime_now('%d') #}", None),
        ("{% if strftime_now is not defined %}{{ 'strftime_now' }}{% endif %}", None),
    ],
)
def test_the_date_is_pinned_only_where_jinja_evaluates(tokenizer_dir, tmp_path, source, text):
    (tmp_path / "mine.jinja").write_bytes(source.encode())
    assert find_template(str(tmp_path / "mine.jinja"), tokenizer_dir).text == (
        source.replace("\r\n", "\n") if text is None else text
    )


@pytest.mark.parametrize(
    "asks",
    [
        "{% set form = '%d' %}{{ strftime_now(form) }}",
        "{% set now = strftime_now %}{{ now('%d') }}",
        '{{ "}}" ~ strftime_now(form) }}',
    ],
)
def test_a_template_that_computes_the_format_of_the_date_is_an_error(tokenizer_dir, tmp_path, asks):
    (tmp_path / "mine.jinja").write_text(asks + CHATML)
    with pytest.raises(TrainError, match=r"prints today's date in a format that it computes"):
        find_template(str(tmp_path / "mine.jinja"), tokenizer_dir)


# ---------------------------------------------------------------------------- equality with transformers, by template


def _check(name, text, tokenizer, reference):
    """The number of conversations that the template renders: with transformers' ids and the expected labels."""
    renderer = ChatRenderer(Template(name, text), tokenizer)
    conversations = [*CONVERSATIONS.values(), WITH_CALL]
    rows = render(frame(*conversations), Template(name, text), tokenizer).rows(named=True)
    count = 0
    for conversation, row in zip(conversations, rows, strict=True):
        if row["problem"] is not None:
            assert conversation is WITH_CALL or "alternate" in row["problem"], (name, row["problem"])
            continue
        count += 1
        messages = to_messages([turn.as_row() for turn in conversation.turns])
        tools = to_tools(conversation.tools)
        ids = reference.apply_chat_template(messages, tools=tools, chat_template=text, tokenize=True, return_dict=False)
        assert row["input_ids"] == ids, (name, conversation)
        _check_labels(renderer, conversation, row, tokenizer)
    return count


def _check_labels(renderer, conversation, row, tokenizer):
    expected = [turn for turn in conversation.turns if turn.role in ("gpt", "function_call")]
    spans = renderer.render(frame(conversation).row(0, named=True)).loss_spans
    stops = [row["input_ids"][end - 1] for end in row["stops"]]
    omitted_turns = [number for number in row["omitted_turns"] if conversation.turns[number - 1].role == "gpt"]
    assert len(spans) == len(stops) == len(expected) - len(omitted_turns)
    assert all(tokenizer.backend.id_to_token(stop) in tokenizer.specials for stop in stops)
    text = loss_text(row, tokenizer)
    for turn in expected:
        words = turn.value.split("</think>")[-1].strip()
        number = conversation.turns.index(turn) + 1
        assert turn.role == "function_call" or number in row["omitted_turns"] or words in text
    for turn in conversation.turns:
        if turn.role in ("system", "human", "observation") and len(turn.value.strip()) > 3:
            assert turn.value.strip() not in text
    start = tokenizer.id_of(tokenizer.named["bos_token"])
    assert [*row["input_ids"][:2]] != [start, start]


@pytest.mark.parametrize("name", [*bundled_names(), "tokenizer"])
def test_our_templates_give_the_ids_of_apply_chat_template(name, tokenizer_dir, tokenizer, transformers_tokenizer):
    assert _check(name, find_template(name, tokenizer_dir).text, tokenizer, transformers_tokenizer) >= len(
        CONVERSATIONS
    )


def test_the_tiny_model_has_the_ids_of_transformers(sample):
    from transformers import AutoTokenizer

    folder = sample / "tiny"
    text = find_template("tokenizer", folder).text
    count = _check("tiny", text, Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder))
    assert count == len(CONVERSATIONS) + 1


@pytest.mark.slow
def test_every_template_of_unsloth_gives_the_ids_of_apply_chat_template(
    tokenizer_dir, tokenizer, transformers_tokenizer
):
    templates = unsloth_texts()
    assert len(templates) >= 47
    distinct = {find_template(name, tokenizer_dir).text: name for name in templates}
    counts = {name: _check(name, text, tokenizer, transformers_tokenizer) for text, name in distinct.items()}
    assert min(counts.values()) >= len(CONVERSATIONS) - 1, counts


@pytest.mark.slow
def test_the_loss_starts_at_the_end_of_the_generation_prompt_in_every_template_of_unsloth(tokenizer):
    for name, text in unsloth_texts().items():
        renderer = ChatRenderer(Template(name, text), tokenizer)
        messages = to_messages([turn.as_row() for turn in CONVERSATIONS["three turns"].turns])
        row = frame(CONVERSATIONS["three turns"]).row(0, named=True)
        rendering = renderer.render(row)
        prompt = renderer.apply_template(messages[:-1], add_generation_prompt=True)
        if rendering.text.startswith(prompt):
            assert rendering.loss_spans[-1].start == len(prompt), name
        bos_count = rendering.text.count("<s>")
        assert bos_count in ((0, 1) if name != "llama" else (3,)), name  # Llama 2 starts every question with it


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled_names())
def test_our_templates_equal_unsloths_of_the_same_name(name, tokenizer_dir, tokenizer):
    if name not in unsloth_texts():
        pytest.skip("not one of Unsloth's")
    ours, theirs = (
        ChatRenderer(Template(name, text), tokenizer)
        for text in (find_template(name, tokenizer_dir).text, unsloth_texts()[name])
    )
    for conversation in CONVERSATIONS.values():
        messages = to_messages([turn.as_row() for turn in conversation.turns])
        assert ours.apply_template(messages) == theirs.apply_template(messages)
        assert ours.generation_prompt == theirs.generation_prompt


def test_only_the_date_is_changed_in_unsloths_templates(tokenizer_dir, tokenizer):
    changed = {name: text for name, text in unsloth_texts().items() if find_template(name, tokenizer_dir).text != text}
    assert {"llama-3.1", "gpt-oss"} <= changed.keys()
    for name, text in changed.items():
        ours, theirs = (
            ChatRenderer(find_template(name, tokenizer_dir), tokenizer),
            ChatRenderer(Template(name, text), tokenizer),
        )
        messages = to_messages([turn.as_row() for turn in CONVERSATIONS["a system message"].turns])
        assert ours.apply_template(messages) == theirs.apply_template(messages)  # strftime_now gives the same date


def test_a_template_with_generation_tags_has_the_ids_of_transformers(tokenizer, transformers_tokenizer):
    template = CHATML.replace(
        "{{ '<|im_start|>'", "{% generation %}{% set x = 1 %}{% endgeneration %}{{ '<|im_start|>'"
    )
    assert _check("tags", template, tokenizer, transformers_tokenizer) == len(CONVERSATIONS)
