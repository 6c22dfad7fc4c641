"""Validation rules and repairs: findings with reasons, and a comparison with a plain Python implementation."""

import itertools
import json
import random
import re

import polars as pl
import pytest

from curate.ingest.media import MEDIA_MARKS
from curate.ingest.repairs import REPAIRS, repair
from curate.ingest.text_checks import MARKS, MARKUP
from curate.ingest.validation import RULES, Limits, validate
from schemas.control_tokens import CONTROL_TOKENS

CALL = '{"name": "add", "arguments": {"a": 1.0}}'


def turns(*conversations: list[tuple]) -> pl.DataFrame:
    """A turns frame; a turn is (role, text) or (role, text, tool_call_id)."""
    rows = [
        {"row": n, "from": turn[0], "value": turn[1], "tool_call_id": turn[2] if len(turn) > 2 else None}
        for n, talk in enumerate(conversations)
        for turn in talk
    ]
    schema = {"row": pl.Int64, "from": pl.String, "value": pl.String, "tool_call_id": pl.String}
    return pl.DataFrame(rows, schema=schema).with_columns(train=pl.lit(True))


def codes(*conversations: list[tuple], **options) -> list[tuple[int, str]]:
    return validate(turns(*conversations), **options).select("row", "code").rows()


VALID = [
    [("human", "Hi"), ("gpt", "Hello")],
    [("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"), ("gpt", "Bye")],
    [("human", "1+1?"), ("function_call", CALL), ("observation", "2"), ("gpt", "2")],
    [("human", "1+1?"), ("gpt", "Let me see."), ("function_call", CALL), ("observation", "2"), ("gpt", "2")],
    [("human", "?"), ("function_call", f"[{CALL}, {CALL}]"), ("observation", "2"), ("observation", "2"), ("gpt", "2")],
    [("human", "?"), ("function_call", CALL), ("observation", "0"), ("function_call", CALL), ("observation", "2"),
     ("gpt", "2")],
]  # fmt: skip


def test_valid_conversations_have_no_findings():
    assert codes(*VALID) == []


REJECTED = {
    "unknown-role": [("wizard", "Hi"), ("gpt", "Hello")],
    "empty-question": [("human", " \n"), ("gpt", "Hello")],
    "empty-answer": [("human", "Hi"), ("gpt", "")],
    "empty-turn": [("system", ""), ("human", "Hi"), ("gpt", "Hello")],
    "not-ending-with-assistant": [("human", "Hi"), ("gpt", "Hello"), ("human", "Bye")],
    "misplaced-system": [("human", "Hi"), ("system", "Be brief."), ("gpt", "Hello")],
    "not-starting-with-user": [("system", "Be brief."), ("gpt", "Welcome"), ("human", "Hi"), ("gpt", "Hello")],
    "same-role-twice": [("human", "Hi"), ("gpt", "Hello"), ("gpt", "Still there?")],
    "unanswered-tool-call": [("human", "1+1?"), ("function_call", CALL), ("gpt", "2")],
    "result-without-call": [("human", "1+1?"), ("observation", "2"), ("gpt", "2")],
    "only-reasoning": [("human", "Hi"), ("gpt", "<think>\nA greeting.\n</think>\n\n")],
    "wrong-order": [("human", "?"), ("function_call", CALL), ("observation", "2"), ("human", "So?"), ("gpt", "2")],
    "broken-tool-call": [("human", "1+1?"), ("function_call", '{"name": "add", "arguments": "a=1"}')],
    "mismatched-results": [
        ("human", "?"),
        ("function_call", '{"name": "add", "arguments": {}, "id": "c1"}'),
        ("observation", "2", "c2"),
        ("gpt", "2"),
    ],
}


@pytest.mark.parametrize("code", REJECTED)
def test_a_broken_rule_is_found_by_its_code(code):
    findings = validate(turns(VALID[0], REJECTED[code], VALID[1])).filter(pl.col("severity") == "reject")
    assert findings.select("row", "code").rows() == [(1, code)]


def test_every_rejecting_rule_has_a_case():
    rejecting = {code for code, rule in RULES.items() if rule.severity == "reject"}
    assert rejecting - REJECTED.keys() == {"too-many-turns", "too-long", "broken-tools"}


def test_a_finding_contains_the_turn_and_the_value():
    findings = validate(turns(VALID[0], REJECTED["not-ending-with-assistant"], REJECTED["broken-tool-call"]))
    assert findings.filter(pl.col("severity") == "reject")["reason"].to_list() == [
        "Turn 3 (human) is the last turn, but not an assistant turn.",
        'Turn 2 (function_call) is not a valid tool call: {"name": "add", "arguments": "a=1"}',
    ]


def test_limits_apply_to_turns_and_characters():
    long, chinese = [("human", "x" * 50), ("gpt", "y" * 51)], [("human", "中" * 50), ("gpt", "文" * 50)]
    many = [("human", "x"), ("gpt", "y")] * 3
    assert codes(many, limits=Limits(turns=5)) == [(0, "too-many-turns")]
    assert codes(VALID[0], long, chinese, limits=Limits(characters=100)) == [(1, "too-long")]
    assert codes(chinese, limits=Limits(characters=99)) == [(0, "too-long")]


def test_tools_that_are_not_a_list_of_objects_are_rejected():
    tools = pl.DataFrame({"row": [0, 1, 2], "tools": ['[{"name": "f"}]', '{"name": "f"}', "[1]"]})
    assert codes(VALID[0], VALID[0], VALID[0], tools=tools) == [(1, "broken-tools"), (2, "broken-tools")]


def test_all_warnings_are_reported_and_none_rejects():
    talk = [("human", " What is <|im_end|>?"), ("gpt", "A caf\ufffd.")]
    findings = validate(turns(talk))
    assert findings["code"].to_list() == ["control-token-text", "unreadable-character", "outer-white-space"]
    assert set(findings["severity"]) == {"warning"}
    assert findings["reason"][0] == "Turn 1 (human) contains <|im_end|>."


@pytest.mark.parametrize("value", ["5", "-1.5e3", '["a"]', '{"a": 1}', "[]", " true\n", "[[1],\n[2]]"])
def test_raw_text_that_is_json_is_a_warning(value):
    assert (0, "no-words") in codes([("gpt", value)], has_questions=False)
    assert (0, "no-words") not in codes([("human", "How many?"), ("gpt", value)])


@pytest.mark.parametrize(
    "text", ["5 apples", "[Verse 1] La la [end]", "{curly} words}", "nullify", "In 1984", "a: [1]"]
)
def test_text_with_numbers_and_brackets_is_not_a_warning(text):
    assert codes([("gpt", text)], has_questions=False) == []


def test_control_tokens_and_markup_start_with_one_of_the_characters_of_the_fast_search():
    assert {mark[0] for mark in (*CONTROL_TOKENS, *MARKUP, *MEDIA_MARKS)} == {"<", "&", "["}
    assert all(re.fullmatch(MARKS, mark) for mark in ("<", "&", "[", "\0"))


def test_a_tool_call_nested_deeper_than_python_can_parse_is_rejected():
    deep = '{"name": "f", "arguments": ' + '{"a": ' * 2000 + "1" + "}" * 2000 + "}"
    assert codes([("human", "?"), ("function_call", deep), ("observation", "2"), ("gpt", "2")]) == [
        (0, "broken-tool-call")
    ]


DEEP = '{"a": ' * 2000 + "1" + "}" * 2000


@pytest.mark.parametrize("value", ["NaN", "[-nan ]", '{"b": inf}', "-Infinity", "1" * 5_000, DEEP])
def test_nonstandard_json_in_tool_calls_and_tools_is_rejected(value):
    talk = [("human", "?"), ("function_call", f'{{"name": "f", "arguments": {{"a": {value}}}}}')]
    assert codes(talk, VALID[0])[0] == (0, "broken-tool-call")
    tools = pl.DataFrame({"row": [0, 1], "tools": ['[{"name": "f, nan, inf]"}]', f'[{{"a": {value}}}]']})
    assert codes(VALID[0], VALID[0], tools=tools) == [(1, "broken-tools")]


def test_a_long_decimal_and_nan_in_a_string_are_valid():
    tools = pl.DataFrame({"row": [0], "tools": [f'[{{"pi": 3.{"1" * 5_000}, "text": "is it [1, nan, inf]?"}}]']})
    assert codes(VALID[0], tools=tools) == []


def test_a_tool_call_at_the_end_of_a_conversation_is_a_warning():
    assert codes([("human", "1+1?"), ("function_call", CALL)]) == [(0, "open-tool-call")]


@pytest.mark.parametrize(
    ("answer", "is_found"),
    [
        *((" <think>a</think> \n", True), ("<think>cut off", True), ("<think>a</think><think>b</think>", True)),
        *(("<think>a</think>b", False), ("Write <think></think>", False), ("<think>a</think>b<think>c</think>", False)),
    ],
)
def test_an_answer_that_is_only_reasoning_is_rejected(answer, is_found):
    found = [(0, "only-reasoning")] if is_found else []
    assert [
        finding for finding in codes([("human", "Hi"), ("gpt", answer)]) if finding[1] != "outer-white-space"
    ] == found


def test_reasoning_before_a_tool_call_needs_no_answer():
    assert (
        codes(
            [("human", "?"), ("gpt", "<think>a</think>"), ("function_call", CALL), ("observation", "2"), ("gpt", "2")]
        )
        == []
    )


def test_a_call_of_a_tool_that_is_not_defined_is_a_warning():
    talk = VALID[4]
    tools = [
        '[{"type": "function", "function": {"name": "add"}}]',
        '[{"name": "sub"}, {"name": "add"}]',
        '[{"name": "sub"}]',
    ]
    findings = validate(turns(*[talk] * 4, VALID[0]), pl.DataFrame({"row": [0, 1, 2], "tools": tools}))
    assert findings.select("row", "code", "severity").rows() == [
        (2, "undeclared-tool", "warning"),
        (3, "calls-without-tools", "warning"),
    ]
    assert findings["reason"].to_list() == [
        "Turn 2 (function_call) calls add, which is not among the tools.",
        "Turn 2 (function_call) calls add; the conversation has no tools.",
    ]


def plain_verdict(talk: list[tuple]) -> bool:
    """The rules on roles and empty turns, in plain Python."""
    roles = [turn[0] for turn in talk]
    rest = roles[1:] if roles[0] == "system" else roles
    follows = {
        "human": {"gpt", "function_call"},
        "gpt": {"human", "function_call"},
        "function_call": {"observation"},
        "observation": {"observation", "gpt", "function_call"},
        "system": set(),
    }
    return (
        all(turn[1].strip() for turn in talk)
        and rest[:1] == ["human"]
        and all(b in follows[a] for a, b in itertools.pairwise(rest))
        and roles[-1] in ("gpt", "function_call")
        and all(results_match(talk, at) for at, role in enumerate(roles[:-1]) if role == "function_call")
    )


def results_match(talk: list[tuple], at: int) -> bool:
    """Whether the results after the tool call at `at` match it: one per call with equal ids, or one without ids."""
    calls = json.loads(talk[at][1])
    ids = [call["id"] for call in calls if "id" in call]
    results = list(itertools.takewhile(lambda turn: turn[0] == "observation", talk[at + 1 :]))
    answered = [turn[2] for turn in results if len(turn) > 2]
    if len(results) != len(calls):
        return len(results) == 1 and not ids and not answered
    all_named = len(ids) == len(calls) and len(answered) == len(results)
    return not all_named or set(ids) == set(answered)


def random_turn(rng: random.Random, role: str) -> tuple:
    """A turn, sometimes empty; a tool call is one or two calls, with or without ids."""
    if role == "function_call":
        calls = [{"name": "add", "arguments": {}, **({"id": f"c{n}"} if rng.random() < 0.5 else {})} for n in range(2)]
        return (role, json.dumps(calls[: rng.choice([1, 1, 2])]))
    id_ = (rng.choice(["c0", "c1"]),) if role == "observation" and rng.random() < 0.5 else ()
    return (role, rng.choice(["a", "b", "a", "b", "c", " "]), *id_)


def test_the_rules_equal_a_plain_python_implementation():
    rng = random.Random(11)
    talks = []
    for _ in range(20_000):
        roles = rng.choices(
            ["system", "human", "gpt", "function_call", "observation"], [1, 5, 5, 4, 5], k=rng.randint(1, 6)
        )
        talks.append([random_turn(rng, role) for role in roles])
    rejected = set(validate(turns(*talks)).filter(pl.col("severity") == "reject")["row"])
    assert rejected == {n for n, talk in enumerate(talks) if not plain_verdict(talk)}
    assert 0 < len(rejected) < len(talks)


REPAIRABLE = {
    "strip": ([("human", " Hi\n"), ("gpt", "Hello ")], [("human", "Hi"), ("gpt", "Hello")]),
    "trailing-user": ([("human", "Hi"), ("gpt", "Hello"), ("human", "Bye")], [("human", "Hi"), ("gpt", "Hello")]),
    "leading-assistant": ([("gpt", "Welcome"), ("human", "Hi"), ("gpt", "Hello")], [("human", "Hi"), ("gpt", "Hello")]),
    "html": (
        [("human", "<p>Fish &amp; chips?</p>"), ("gpt", "Yes.<br>Or &lt;no&gt;.")],
        [("human", "Fish & chips?"), ("gpt", "Yes.\nOr <no>.")],
    ),
    "mojibake": (
        [("human", "Wo ist die BrÃ¼cke?"), ("gpt", "Hinter dem Hafen â€“ links.")],
        [("human", "Wo ist die Brücke?"), ("gpt", "Hinter dem Hafen – links.")],
    ),
    "invisible": ([("human", "How\u200b far?"), ("gpt", "Far\u202e.")], [("human", "How far?"), ("gpt", "Far.")]),
    "nan-text": ([("human", "How far?"), ("gpt", " NaN ")], [("human", "How far?"), ("gpt", "")]),
    "stop-marker": (
        [("human", "How far?\n\n###\n\n"), ("gpt", "Two miles.</s>")],
        [("human", "How far?"), ("gpt", "Two miles.")],
    ),
    "trim-signature": (
        [
            ("human", "It leaks.\n\nKind regards,\nAda Byron\nExample Ltd\n+44 20 7946\nSent from my iPhone"),
            ("gpt", "Pull."),
        ],
        [("human", "It leaks."), ("gpt", "Pull.")],
    ),
    "merge-consecutive": (
        [("human", "Hi"), ("human", "You?"), ("gpt", "Hello")],
        [("human", "Hi\n\nYou?"), ("gpt", "Hello")],
    ),
}


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("\n \n    a = 1\n\n    b = 2\n", "    a = 1\n\n    b = 2"),
        ("\tif a:\r\n\t\tb()\r\n", "\tif a:\r\n\t\tb()"),
        ("    a = 1\nb\n  c ", "    a = 1\nb\n  c"),
        ("    One line. ", "One line."),
        ("    A paragraph.\nAnother.\n   ", "A paragraph.\nAnother."),
        (" Sure:\n    a = 1", "Sure:\n    a = 1"),
        ("\u3000\u3000Hi\n", "Hi"),
        (" \n ", ""),
    ],
)
def test_strip_keeps_the_indentation_of_texts_whose_lines_are_indented(text, stripped):
    repaired, _ = repair(turns([("human", text), ("gpt", "Hi")]), ["strip"])
    assert repaired["value"].to_list() == [stripped, "Hi"]


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_changes_only_the_conversations_it_applies_to(name):
    broken, expected = REPAIRABLE[name]
    repaired, touched = repair(turns(VALID[0], broken, VALID[1]), [name])
    assert repaired.equals(turns(VALID[0], expected, VALID[1]))
    assert touched.rows() == [(1, [name])]


@pytest.mark.parametrize("flags", [(False, True), (True, False)])
def test_turns_with_different_training_flags_are_not_merged(flags):
    talk = turns([("human", "Hi"), ("gpt", "Draft."), ("gpt", "Final.")])
    talk = talk.with_columns(train=pl.Series([True, *flags]))
    repaired, touched = repair(talk, ["merge-consecutive"])
    assert repaired.equals(talk)
    assert touched.is_empty()
    assert [code for _, code in validate(talk).select("row", "code").rows()] == ["same-role-twice"]


def test_every_repair_named_by_a_rule_exists():
    assert {rule.repair for rule in RULES.values() if rule.repair} == REPAIRS.keys() - {"trim-signature"}


def test_a_conversation_that_a_repair_would_empty_is_not_changed():
    repaired, touched = repair(turns([("human", "Hi")], VALID[0]), ["trailing-user"])
    assert repaired.equals(turns([("human", "Hi")], VALID[0]))
    assert touched.is_empty()


# -------------------------------------------------------------------------------------------------------------- texts

SUSPICIOUS = {
    "placeholder-text": ["nan", "NaN", "None", " null\n", "N/A", "#N/A", "undefined", "<NA>", "#REF!"],
    "no-letters": ["...", "?!", "👍", "---"],
    "invisible-text": ["How\u200bfar", "A\u00adb", "Two miles.\u202e", "\ufeffHi"],
    "mojibake": ["Wo ist die BrÃ¼cke?", "Itâ€™s", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "It‚Äôs here"],
    "stop-marker": ["Pull it.\n\n###\n\n", "Pull it.</s>", "Pull it.<|endoftext|>", "Pull it. [END]"],
    "html-markup": ["<p>Pull it.</p>", "Fish &amp; chips", "One<br/>two", "It&#39;s here", "Press <b>OK</b> twice."],
    "media-placeholder": ["What is this?\n<image>", "<audio> Who speaks?"],
}
FINE = [
    *(
        "Yes",
        "4",
        "none of them",
        "Nana",
        "an N/A value",
        "Brücke – café €5 “x” naïve",
        "Привет, «мир» — да.",
        "你好。",
    ),
    *(
        "می‌خواهم",
        "👩‍👩‍👧 waves",
        "He said “été” … où ?",
        "# Title\n### Part\ntext",
        "if a < b && c > d",
        "The END of it",
    ),
    *("Use AT&T", "a <b> in code:\n```html\n<p>x</p>\n```", "Write HTML: <p>x</p>", "It’s “smart”", "BEGIN\n  x;\nEND"),
]


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in SUSPICIOUS.items() for text in texts])
def test_a_suspicious_text_is_a_warning(code, text):
    findings = validate(turns([("human", text), ("gpt", "Pull it twice.")], *[VALID[0]] * 3))
    assert (0, code, "warning") in findings.select("row", "code", "severity").rows()
    assert set(findings["row"]) == {0}


@pytest.mark.parametrize("text", FINE)
def test_a_text_with_unusual_characters_is_no_warning(text):
    assert codes([("human", text), ("gpt", text)], *[VALID[0]] * 3) == []


def test_a_word_is_a_stop_marker_if_it_ends_most_answers():
    ended = [("human", "How far?"), ("gpt", "Two miles. END")]
    assert codes(ended, ended, VALID[0]) == [(0, "stop-marker"), (1, "stop-marker")]
    assert codes(ended, *[VALID[0]] * 3) == []


@pytest.mark.parametrize("text", ["\u200b", " \ufeff\u200d ", "\u2800", "\u3164"])
def test_a_text_of_invisible_characters_is_empty(text):
    findings = validate(turns([("human", text), ("gpt", "Hello")], [("human", "Hi"), ("gpt", text)]))
    rejects = findings.filter(pl.col("severity") == "reject")
    assert rejects.select("row", "code").rows() == [(0, "empty-question"), (1, "empty-answer")]


def test_markup_in_a_conversation_about_code_is_neither_reported_nor_removed():
    talk = [("human", "Write a web page with a paragraph."), ("gpt", "<p>Hello &amp; welcome</p>")]
    assert codes(talk) == []
    assert repair(turns(talk), ["html"])[1].is_empty()


def test_code_in_html_survives_the_repair():
    html = "<p>Try &lt;T&gt;:</p><pre><code>if a &lt; b:\n\n\n    List<String> x  \n</code></pre><ul><li>One</li></ul>"
    repaired, _ = repair(turns([("human", html), ("gpt", "Fine &amp; good, if a <b and c> d.")]), ["html"])
    assert repaired["value"].to_list() == [
        "Try <T>:\n\n```\nif a < b:\n\n\n    List<String> x  \n\n```\n\n- One",
        "Fine & good, if a <b and c> d.",
    ]


@pytest.mark.parametrize(
    "text",
    ["Thanks.\nIt leaks when it rains.", "It leaks.\nThanks", "Regards,\nwhy does it leak?", "Sent from my iPhone"],
)
def test_a_question_is_not_mistaken_for_a_signature(text):
    assert repair(turns([("human", text), ("gpt", "Pull.")]), ["trim-signature"])[1].is_empty()


@pytest.mark.parametrize("code", [code for code, rule in RULES.items() if rule.repair and rule.severity == "warning"])
def test_a_repair_of_a_warning_ends_the_warning(code):
    texts = SUSPICIOUS.get(code, [" Hi", "Hi \n"])
    talks = [[("human", text), ("gpt", "Hello")] for text in texts]
    assert code in [found for _, found in codes(*talks)]
    repaired, _ = repair(turns(*talks), [RULES[code].repair])
    assert code not in validate(repaired)["code"].to_list()
