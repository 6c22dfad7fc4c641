"""Advice on columns: the printed command imports the right question and answer, or the error says that none exist."""

# ruff: noqa: E501  one layout a line
import csv
import json
import subprocess

import polars as pl
import pytest
from support.advice import printed_options, section_fields

from curate.ingest.column_mapping import find_mapping, parse_table
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection

ASKS = ["How do I open the hatch?", "Which oil does the winch need?", "Can I wash the sail?", "Who checks the anchor?"]
SAYS = [
    "Turn the lever twice and pull it towards you.",
    "Use grade 30 oil, a spoonful a month.",
    "Yes, in lukewarm water without soap.",
    "The mate does, every Friday.",
]
TELLS = [text.replace("?", ".") for text in ASKS]
LONG = [f"{text} {text} And so on." for text in SAYS]
IDS, NUMBERS, DATES = ["a1", "a2", "b7", "c9"], ["31", "4", "15", "92"], ["2026-01-0" + d for d in "1234"]
WORDS, LINKS = ["deck", "deck", "sail", "deck"], [f"https://example.com/{n}" for n in range(4)]
LISTS = [json.dumps([1, n]) for n in range(4)]
OBJECTS = [json.dumps({"author": n}) for n in range(4)]
LETTERS, INDEX = ["A", "C", "B", "A"], ["0", "1", "2", "3"]
CHINESE = (
    ["舱口怎么打开？", "绞车用什么油？", "帆可以洗吗？", "谁检查锚？"],
    ["把手柄转两圈再拉。", "用三十号油。", "可以。", "大副每周五检查。"],
)

PAIRS = {
    "id first": ({"id": IDS, "title": WORDS, "ask_text": ASKS, "agent_reply_text": SAYS}, ("ask_text", "agent_reply_text")),
    "answer first": ({"ideal_answer": SAYS, "the question": ASKS}, ("the question", "ideal_answer")),
    "no known names": ({"col1": ASKS, "col2": SAYS}, ("col1", "col2")),
    "no known names, answer first": ({"col1": SAYS, "col2": ASKS}, ("col2", "col1")),
    "question mark in the name": ({"What did they ask?": ASKS, "What was said": SAYS}, ("What did they ask?", "What was said")),
    "camel case": ({"ticketId": IDS, "customerQuestion": ASKS, "agentAnswer": SAYS}, ("customerQuestion", "agentAnswer")),
    "spaces": ({"Nr": NUMBERS, "Customer wrote": ASKS, "We replied": SAYS}, ("Customer wrote", "We replied")),
    "numbers around": ({"n": NUMBERS, "ask me": ASKS, "m": NUMBERS, "solution text": SAYS}, ("ask me", "solution text")),
    "dates": ({"asked on": DATES, "problem report": ASKS, "closed": DATES, "resolution": SAYS}, ("problem report", "resolution")),
    "links": ({"url": LINKS, "q_text": ASKS, "a_text": SAYS}, ("q_text", "a_text")),
    "lists": ({"embedding": LISTS, "user question": ASKS, "bot answer": SAYS}, ("user question", "bot answer")),
    "objects": ({"meta": OBJECTS, "user question": ASKS, "bot answer": SAYS}, ("user question", "bot answer")),
    "letters": ({"grade": LETTERS, "exam question": ASKS, "model solution": SAYS}, ("exam question", "model solution")),
    "index": ({"Unnamed: 0": INDEX, "faq question": ASKS, "faq answer": SAYS}, ("faq question", "faq answer")),
    "categories": ({"category": WORDS, "faq": ASKS, "text of the reply": SAYS}, ("faq", "text of the reply")),
    "repeated sentences": ({"team name": ["The deck team"] * 4, "ask": TELLS, "best reply": SAYS}, ("ask", "best reply")),
    "German": ({"Nr": NUMBERS, "Kundenfrage": ASKS, "Unsere Antwort": SAYS}, ("Kundenfrage", "Unsere Antwort")),
    "Spanish": ({"la pregunta": ASKS, "la respuesta": SAYS}, ("la pregunta", "la respuesta")),
    "French": ({"la question": ASKS, "la réponse": SAYS}, ("la question", "la réponse")),
    "Chinese": ({"编号": NUMBERS, "客户": CHINESE[0], "客服": CHINESE[1]}, ("客户", "客服")),
    "Russian": ({"ваш вопрос": ASKS, "наш ответ": SAYS}, ("ваш вопрос", "наш ответ")),
    "article and highlights": ({"article": LONG, "highlights": SAYS, "id": IDS}, ("article", "highlights")),
    "document and abstract": ({"document": LONG, "abstract": SAYS}, ("document", "abstract")),
    "short answers": ({"exam question": ASKS, "right answer": NUMBERS}, ("exam question", "right answer")),
    "one word answers": ({"exam question": ASKS, "right answer": ["Yes", "No", "Soap", "Mate"]}, ("exam question", "right answer")),
    "two objects": (
        {
            "example": [json.dumps({"question": text}) for text in ASKS],
            "outputs": [json.dumps({"answer": text, "n": 1}) for text in SAYS],
        },
        ("example.question", "outputs.answer"),
    ),
    "one object": (
        {"id": IDS, "record": [json.dumps({"prompt": a, "reply": b}) for a, b in zip(ASKS, SAYS, strict=True)]},
        ("record.prompt", "record.reply"),
    ),
    "context too": ({"user asks": ASKS, "context": LONG, "we answer": SAYS}, ("user asks", "we answer")),
    "objects called context": ({"user asks": ASKS, "context": OBJECTS, "we answer": SAYS}, ("user asks", "we answer")),
    "history of lists": ({"user asks": ASKS, "history": LISTS, "we answer": SAYS}, ("user asks", "we answer")),
    "longer is the answer": ({"first": TELLS, "second": LONG}, ("first", "second")),
    "quotes in names": ({"the 'ask'": ASKS, 'the "answer"': SAYS}, ("the 'ask'", 'the "answer"')),
    "line breaks in names": ({"question\n(as asked)": ASKS, "answer\n(final)": SAYS}, ("question\n(as asked)", "answer\n(final)")),
    "pattern in names": ({"^asked.*$": ASKS, "* reply given": SAYS}, ("^asked.*$", "* reply given")),
    "expansion in names": ({"$(touch question)": ASKS, "`answer`": SAYS}, ("$(touch question)", "`answer`")),
    "description and fix": ({"issue description": ASKS, "fix text": SAYS, "status": WORDS}, ("issue description", "fix text")),
    "claim and explanation": ({"claim": ASKS, "label": WORDS, "explanation": SAYS}, ("claim", "explanation")),
    "generated": ({"prompt_id": IDS, "my prompt": ASKS, "model output": SAYS, "n tokens": NUMBERS}, ("my prompt", "model output")),
    "translation": ({"en": TELLS, "de": SAYS}, ("en", "de")),
    "translation in an object": (
        {"translation": [json.dumps({"en": a, "de": b}) for a, b in zip(TELLS, SAYS, strict=True)]},
        ("translation.en", "translation.de"),
    ),
    "wide": ({**{f"x{n}": NUMBERS for n in range(60)}, "ask": ASKS, "given reply": SAYS}, ("ask", "given reply")),
    "sparse": ({"id": IDS, "my ask": [None, None, ASKS[0], ASKS[1]], "my reply": [None, "", *SAYS[:2]]}, ("my ask", "my reply")),
}  # fmt: skip

NO_PAIRS = {
    "numbers": {"a": NUMBERS, "b": INDEX},
    "words": {"colour": WORDS, "taste": ["sweet", "sour", "salt", "hot"]},
    "ids and dates": {"id": IDS, "when": DATES, "link": LINKS},
    "lists": {"id": IDS, "values": LISTS},
    "questions only": {"id": IDS, "my question": ASKS, "topic": WORDS},
    "subject and description": {"subject": TELLS, "description": ASKS, "status": WORDS},
    "question and context": {"question": ASKS, "context": LONG, "answers": OBJECTS},
    "numbered texts": {"text_1": ASKS, "text_2": SAYS, "text_3": ASKS, "text_4": SAYS},
}


def error_for(columns):
    frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
    with pytest.raises(SourceError) as error:
        find_mapping(frame, ImportSection())
    return frame, error.value


@pytest.mark.parametrize("name", PAIRS)
def test_the_printed_command_maps_every_question_and_answer(name):
    columns, (question, answer) = PAIRS[name]
    frame, error = error_for(columns)
    mapping = find_mapping(frame, ImportSection(**section_fields(printed_options(error)[0])))
    texts = [mapping.column(frame, field).to_list() for field in ("question", "answer")]
    assert (mapping.fields["question"], mapping.fields["answer"]) == (question, answer)
    turns = parse_table(frame, mapping).turns
    assert turns.filter(pl.col("from") == "gpt")["value"].to_list() == [text or "" for text in texts[1]]
    asked = turns.filter(pl.col("from") == "human")["value"].to_list()
    assert all(turn.startswith(text or "") for turn, text in zip(asked, texts[0], strict=True))
    assert set(mapping.fields) - {"question", "answer"} <= ({"context"} if name == "context too" else set())


@pytest.mark.parametrize("name", NO_PAIRS)
def test_columns_without_questions_and_answers_are_listed_with_an_example(name):
    frame, error = error_for(NO_PAIRS[name])
    assert "no two of them seem to be questions and answers" in error.what
    assert all(f"\n    {column}: " in error.what for column in frame.columns)
    assert not [options for options in printed_options(error) if options[1] != "text"]


def test_both_directions_of_a_translation_are_suggested():
    _, error = error_for({"en": TELLS, "de": SAYS})
    assert [options[2:] for options in printed_options(error)] == [
        ["--map", "question=en", "--map", "answer=de"],
        ["--map", "question=de", "--map", "answer=en"],
    ]


def test_an_instruction_next_to_an_input_is_a_system_prompt_or_belongs_to_the_question():
    columns = {"Instructions": ["Answer as a mate."] * 4, "Input": ASKS, "Ideal Output": SAYS}
    frame, error = error_for(columns)
    mappings = [find_mapping(frame, ImportSection(**section_fields(options))) for options in printed_options(error)]
    assert [mapping.fields for mapping in mappings] == [
        {"question": "Input", "answer": "Ideal Output", "system": "Instructions"},
        {"instruction": "Instructions", "input": "Input", "output": "Ideal Output"},
    ]


def test_one_turn_per_row_is_recognised_by_its_roles():
    columns = {"t": ["7", "7", "8", "8"], "who": ["customer", "agent"] * 2, "said": SAYS}
    frame, error = error_for(columns)
    mapping = find_mapping(frame, ImportSection(**section_fields(printed_options(error)[0])))
    assert (mapping.shape, mapping.fields) == ("long", {"group_by": "t", "role": "who", "text": "said"})


@pytest.mark.parametrize(
    ("flag", "values", "first"),
    [("inbound", ["true", "false"], "human"), ("is_agent", ["0", "1"], "human"), ("outbound", ["Yes", "No"], "gpt")],
)
def test_a_flag_of_the_direction_is_the_role_of_one_turn_per_row(tmp_path, curate, flag, values, first):
    path = tmp_path / "mail.csv"
    others = [ASKS[0], SAYS[0], ASKS[1], SAYS[1]]
    texts = others if first == "human" else [others[1], others[0], others[3], others[2]]
    order = [1, 2, 1, 2] if first == "human" else [2, 1, 2, 1]
    rows = zip("aabb", order, values * 2, texts, strict=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["ticket", "sent_at", flag, "body"], *rows])
    failed = curate("import", "mail.csv")
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("    curate import ")]
    done = curate(*line.split()[1:], "--dry-run", "--json")
    (result,) = json.loads(done.stdout)
    turns = [[(turn["from"], turn["value"]) for turn in one["conversations"]] for one in result["examples"]]
    assert turns == [[("human", ASKS[n]), ("gpt", SAYS[n])] for n in range(2)]


def test_values_as_python_prints_them_are_named():
    _, error = error_for({"chat": ["[{'from': 'human', 'value': 'Hi'}]"]})
    assert "chat has values as Python prints them, not JSON" in error.hint


def test_a_pasted_command_repeats_the_options_and_imports_every_row(tmp_path, curate):
    path = tmp_path / "two words.csv"
    with path.open("w", encoding="cp1252", newline="") as file:
        csv.writer(file).writerows(
            [["Kundenfrage", "Unsere Antwort"], ["Wo ist die Brücke?", "Hinter dem Hafen, links."]]
        )
    store = tmp_path / "s.duckdb"
    failed = curate("import", str(path), "--encoding", "cp1252", "--store", str(store))
    assert failed.returncode == 1
    lines = [line for line in failed.stderr.splitlines() if line.startswith("    curate import ")]
    assert len(lines) == 1
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {lines[0]}"], capture_output=True, text=True, check=True)
    done = curate(*words.stdout.split("\0")[1:-1])
    assert "1 row read = 1 conversation + 0 duplicates + 0 rejected" in done.stdout
