"""Templates by name and by file, what is refused of them, and equality with transformers for the rest."""

import pytest
from support.renderings import CONVERSATIONS, WITH_CALL, frame, learned, of_unsloth, rendered, tokens
from support.stores import chat
from support.tokenizers import CHATML, save_tokenizer

from schemas.environment import install_command
from schemas.errors import TrainError
from train.tokens.chat_template import Template, bundled_names, find_template
from train.tokens.loss_mask import ChatRenderer
from train.tokens.messages import to_messages, to_tools
from train.tokens.render import render
from train.tokens.tokenizer import Tokenizer


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


# ---------------------------------------------------------------------------------------------- problems and refusals


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
    assert "differently when it is marked" in rendered(chat("Hi", "Hello"), tokenizer, template)["problem"]


def test_an_unknown_template_is_answered_with_the_nearest_and_all_that_are_known(folder, monkeypatch):
    monkeypatch.setattr("train.tokens.chat_template.unsloth_templates", dict)
    with pytest.raises(TrainError, match=r"There is no template chatlm, did you mean chatml\?") as refused:
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
    with pytest.raises(TrainError, match="has no chat template"):
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


@pytest.mark.parametrize(
    ("asks", "text"),
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
def test_the_day_is_written_where_jinja_computes_and_nowhere_else(folder, tmp_path, asks, text):
    (tmp_path / "mine.jinja").write_bytes(asks.encode())
    assert find_template(str(tmp_path / "mine.jinja"), folder).text == (
        asks.replace("\r\n", "\n") if text is None else text
    )


@pytest.mark.parametrize(
    "asks",
    [
        "{% set form = '%d' %}{{ strftime_now(form) }}",
        "{% set now = strftime_now %}{{ now('%d') }}",
        '{{ "}}" ~ strftime_now(form) }}',
    ],
)
def test_a_template_that_makes_up_the_form_of_the_day_is_refused(folder, tmp_path, asks):
    (tmp_path / "mine.jinja").write_text(asks + CHATML)
    with pytest.raises(TrainError, match=r"prints today's date in a format that it computes"):
        find_template(str(tmp_path / "mine.jinja"), folder)


# ---------------------------------------------------------------------------- equality with transformers, by template


def _check(name, text, tokenizer, theirs):
    """Every conversation that the template takes: transformers' ids, and labels that decode to what is meant."""
    renderer = ChatRenderer(Template(name, text), tokenizer)
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
        _check_labels(renderer, conversation, row, tokenizer)
    return taken


def _check_labels(renderer, conversation, row, tokenizer):
    meant = [turn for turn in conversation.turns if turn.role in ("gpt", "function_call")]
    regions = renderer.render(frame(conversation).row(0, named=True)).loss_spans
    stops = [row["input_ids"][end - 1] for end in row["stops"]]
    omitted_turns = [number for number in row["omitted_turns"] if conversation.turns[number - 1].role == "gpt"]
    assert len(regions) == len(stops) == len(meant) - len(omitted_turns)
    assert all(tokenizer.backend.id_to_token(stop) in tokenizer.specials for stop in stops)
    said = learned(row, tokenizer)
    for turn in meant:
        words = turn.value.split("</think>")[-1].strip()
        number = conversation.turns.index(turn) + 1
        assert turn.role == "function_call" or number in row["omitted_turns"] or words in said
    for turn in conversation.turns:
        if turn.role in ("system", "human", "observation") and len(turn.value.strip()) > 3:
            assert turn.value.strip() not in said
    start = tokenizer.id_of(tokenizer.named["bos_token"])
    assert [*row["input_ids"][:2]] != [start, start]


@pytest.mark.parametrize("name", [*bundled_names(), "tokenizer"])
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
    templates = of_unsloth()
    assert len(templates) >= 47
    distinct = {find_template(name, folder).text: name for name in templates}
    taken = {name: _check(name, text, tokenizer, transformers_tokenizer) for text, name in distinct.items()}
    assert min(taken.values()) >= len(CONVERSATIONS) - 1, taken


@pytest.mark.slow
def test_every_template_of_unsloth_learns_from_where_the_servers_prompt_ends(tokenizer):
    for name, text in of_unsloth().items():
        renderer = ChatRenderer(Template(name, text), tokenizer)
        messages = to_messages([turn.as_row() for turn in CONVERSATIONS["three turns"].turns])
        row = frame(CONVERSATIONS["three turns"]).row(0, named=True)
        rendering = renderer.render(row)
        sent = renderer.apply_template(messages[:-1], add_generation_prompt=True)
        if rendering.text.startswith(sent):
            assert rendering.loss_spans[-1].start == len(sent), name
        starts = rendering.text.count("<s>")
        assert starts in ((0, 1) if name != "llama" else (3,)), name  # Llama 2 begins every question with it


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled_names())
def test_our_templates_render_what_unsloths_of_the_same_name_do(name, folder, tokenizer):
    if name not in of_unsloth():
        pytest.skip("ours alone")
    ours, theirs = (
        ChatRenderer(Template(name, text), tokenizer) for text in (find_template(name, folder).text, of_unsloth()[name])
    )
    for conversation in CONVERSATIONS.values():
        messages = to_messages([turn.as_row() for turn in conversation.turns])
        assert ours.apply_template(messages) == theirs.apply_template(messages)
        assert ours.generation_prompt == theirs.generation_prompt


def test_the_day_is_all_that_is_written_into_unsloths_templates(folder, tokenizer):
    dated = {name: text for name, text in of_unsloth().items() if find_template(name, folder).text != text}
    assert {"llama-3.1", "gpt-oss"} <= dated.keys()
    for name, text in dated.items():
        ours, theirs = (
            ChatRenderer(find_template(name, folder), tokenizer),
            ChatRenderer(Template(name, text), tokenizer),
        )
        messages = to_messages([turn.as_row() for turn in CONVERSATIONS["a system message"].turns])
        assert ours.apply_template(messages) == theirs.apply_template(messages)  # strftime_now gives the same date


def test_a_template_with_generation_tags_renders_as_in_transformers(tokenizer, transformers_tokenizer):
    template = CHATML.replace(
        "{{ '<|im_start|>'", "{% generation %}{% set x = 1 %}{% endgeneration %}{{ '<|im_start|>'"
    )
    assert _check("tags", template, tokenizer, transformers_tokenizer) == len(CONVERSATIONS)
