"""Scorers on small conversations; the simple cases are doctests in curate/scorers."""

from collections import Counter

import polars as pl
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from support.sentences import SENTENCES, WITHOUT_LANGUAGE

from curate.scorers import SCORERS
from curate.scorers.character_ratios import LETTER, SYMBOL, letter_ratio, symbol_ratio
from curate.scorers.features import compute_features, example_scores, run_scorer
from curate.scorers.formatting import control_tokens, unbalanced_fences, unfinished
from curate.scorers.language import language
from curate.scorers.language_identifier import LANGUAGES, NO_LANGUAGE, SAME, identify
from curate.scorers.length import assistant_share, characters, turns, words
from curate.scorers.quality import PENALTIES, Penalty, quality
from curate.scorers.refusals import boilerplate, refusal
from curate.scorers.repetition import echo, line_repetition, ngram_repetition, word_repetition
from schemas.conversation import CONVERSATIONS, fold


def frame_of(*conversations):
    rows = [
        {"row": row, "from": role, "value": value}
        for row, conversation in enumerate(conversations)
        for role, value in conversation
    ]
    return fold(pl.DataFrame(rows)).select("id", "conversations", "tools")


def values(scorer, *conversations, **parameters):
    return run_scorer(scorer, compute_features(frame_of(*conversations)), **parameters).to_list()


def answers(scorer, *texts, **parameters):
    return example_scores(scorer, *(("Go on, please", text) for text in texts), **parameters)


TOOL_CALL = [
    ("human", "Weather in Rome?"),
    ("function_call", '{"name": "weather", "arguments": {}}'),
    ("observation", '{"sky": "blue"}'),
    ("gpt", "It is sunny."),
]


def test_every_scorer_has_one_line_of_help_and_a_doctest():
    for name, scorer in SCORERS.items():
        assert scorer.__name__ == name
        assert scorer.__doc__.splitlines()[0].endswith(".") or ":" in scorer.__doc__.splitlines()[0], name
        assert ">>>" in scorer.__doc__, name


def test_no_scorer_is_named_like_a_feature():
    columns = compute_features(pl.DataFrame(schema=CONVERSATIONS)).columns
    assert not set(columns) & set(SCORERS)


def test_every_scorer_accepts_a_frame_without_rows():
    frame = compute_features(pl.DataFrame(schema=CONVERSATIONS))
    for name, scorer in SCORERS.items():
        scores = run_scorer(scorer, frame).alias(name)
        assert scores.len() == 0, name
        frame = frame.with_columns(scores)


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "quality"])
def test_no_scorer_returns_null_for_unusual_conversations(name):
    unusual = [
        [("human", ""), ("gpt", "")],
        [("system", "Be kind.")],
        [("human", "Call it"), ("function_call", "{}")],
        [("gpt", "I speak first.")],
        [("human", "\n\t "), ("gpt", "\u3000\n")],
        [("human", "🎉"), ("gpt", "🎉🎉\x00")],
        TOOL_CALL,
    ]
    assert None not in values(SCORERS[name], *unusual)


def test_a_row_has_the_same_scores_alone_and_among_others():
    many = [
        [("human", f"Say {n}"), ("gpt", "one two three four five " * (n % 4 + 1) + "é" * (n % 3))] for n in range(20)
    ]
    frame = compute_features(frame_of(*many))
    for name, scorer in SCORERS.items():
        if name == "quality":
            continue
        together = run_scorer(scorer, frame).to_list()
        alone = [run_scorer(scorer, frame.slice(row, 1)).item() for row in range(frame.height)]
        assert together == alone, name


def test_characters_and_turns_count_every_role():
    assert values(characters, TOOL_CALL) == [sum(len(text) for _, text in TOOL_CALL)]
    assert values(turns, TOOL_CALL) == [4]


def test_words_count_user_and_assistant_without_tool_calls():
    assert values(words, TOOL_CALL) == [6]


def test_the_assistant_share_includes_tool_calls():
    assistant = len(TOOL_CALL[1][1]) + len(TOOL_CALL[3][1])
    assert values(assistant_share, TOOL_CALL) == [assistant / sum(len(text) for _, text in TOOL_CALL)]


def test_a_chinese_character_is_a_word():
    assert answers(SCORERS["answer_words"], "你好，世界", "カナ and kanji 漢字") == [5, 6]


def test_an_ngram_that_occurs_once_is_not_a_repetition():
    assert answers(word_repetition, "Yes.", "New York") == [0.0, 0.0]


def test_overlapping_repeats_count_each_character_once():
    assert answers(ngram_repetition, "a a a a a a a a", n=3) == [0.875]  # the 2nd to the 8th word are in a repeat


def test_ngrams_do_not_cross_conversations():
    assert answers(ngram_repetition, "one two three", "one two three", n=3) == [0.0, 0.0]
    assert answers(ngram_repetition, "one two", "three one two three", n=3) == [0.0, 0.0]


def test_an_answer_shorter_than_the_ngram_has_no_repetition():
    assert answers(ngram_repetition, "no no", n=5) == [0.0]
    assert answers(word_repetition, "", n=2) == [0.0]


def test_empty_lines_are_not_repeated_lines():
    assert answers(line_repetition, "one\n\n\n\ntwo") == [0.0]


def test_an_extract_of_a_long_prompt_is_not_an_echo():
    text = " ".join(f"word{n}" for n in range(50))
    assert example_scores(echo, (f"Give the last five words of: {text}", text[-34:])) == [pytest.approx(0.1, abs=0.05)]


def test_a_copied_prompt_is_an_echo_in_any_case():
    assert example_scores(echo, ("Create a looping GIF", "create a looping gif")) == [1.0]


def test_counts_by_bytes_equal_counts_by_regular_expression():
    texts = ["Aa1 !?", "x = y*2; {ok} #5", "\t\n\\ @", "", "'\"`~^|<>$"]
    frame = pl.DataFrame({"text": texts})
    for scorer, pattern in ((letter_ratio, LETTER), (symbol_ratio, SYMBOL)):
        matches = frame.select(pl.col("text").str.count_matches(pattern)).to_series()
        visible = frame.select(pl.col("text").str.count_matches(r"\S")).to_series()
        expected = [m / v if v else float(scorer is letter_ratio) for m, v in zip(matches, visible, strict=True)]
        assert answers(scorer, *texts) == [pytest.approx(value, abs=1e-3) for value in expected]


@pytest.mark.parametrize(
    "text",
    [
        "Take the first road to the left and the",
        "The number of protons in an atom of calcium is,",
        "It is done in three steps (",
        "Rome was built over many years. Its oldest parts stand on the Palatine hill near the river, where the fir",
    ],
)
def test_an_answer_that_stops_in_the_middle_is_unfinished(text):
    assert answers(unfinished, text) == [True]


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "1. Natural Language Processing\n2. Understanding the Different Types of Leadership",
        "Thank you for your time.\n\nSincerely,",
        "SELECT * FROM table WHERE price > 100;",
        "x = 2 * y",
        "Good news. We are taking bookings for the whole summer from today on #travel #summer",
        "Here you are:\n```\nfor x in y\n```",
        "It is over. 终于结束了。",
        "Thanks. It will be ready in a few minutes",
        "",
    ],
)
def test_short_answers_lists_greetings_and_code_are_finished(text):
    assert answers(unfinished, text) == [False]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, I cannot do that.",
        "Sorry, the task requires a visual output which cannot be generated by the model.",
        "This instruction cannot be completed by a GPT model.",
        "As an AI language model, I cannot browse the internet.",
        "Unfortunately, I am not able to access your files.",
        "Je suis désolé, mais je ne peux pas répondre.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "对不起，我无法回答。",
    ],
)
def test_a_refusal_is_detected_by_its_beginning(text):
    assert answers(refusal, text) == [True]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Is there anything I can do to help?",
        "I couldn't help noticing the flowers.",
        "Chorus:\nI won't give up and I won't quit",
        "Dear customer, we apologize for any inconvenience.",
        "A GPT model is a language model.",
    ],
)
def test_an_apology_is_not_a_refusal(text):
    assert answers(refusal, text) == [False]


def test_a_refusal_in_any_answer_of_a_long_conversation_counts():
    talk = [("human", "Hi"), ("gpt", "Hello!"), ("human", "Do it"), ("gpt", "I'm sorry, I can't do that.")]
    assert values(refusal, talk) == [True]


def test_boilerplate_is_detected_anywhere_and_in_any_case():
    assert answers(boilerplate, "Well. AS AN AI LANGUAGE MODEL, I have no taste.", "AI is fun.") == [True, False]


def test_fences_are_balanced_per_answer():
    open_, close = ("gpt", "```py\nx"), ("gpt", "y\n```")
    assert values(unbalanced_fences, [("human", "a"), open_, ("human", "b"), close]) == [True]


def test_control_tokens_are_detected_in_any_turn():
    talk = [("human", "Why does <|im_start|> break it?"), ("gpt", "Because.")]
    assert values(control_tokens, talk, TOOL_CALL) == [True, False]


@pytest.mark.parametrize("words_of", [slice(None), slice(7)])
def test_sentences_and_their_first_words_are_detected(words_of):
    """Indonesian and Malay, and Serbian and Macedonian, are taken for each other most often."""
    texts = [(code, text) for code, lines in SENTENCES.items() for text in lines.split("\n")]
    cut = [("42", " ".join(text.split()[words_of]) if " " in text else text[:14]) for _, text in texts]
    right = Counter(
        code for (code, _), found in zip(texts, example_scores(language, *cut), strict=True) if found == code
    )
    assert min(right.values()) >= 8
    assert right.total() >= 0.98 * len(texts)


def test_texts_without_a_language_are_unknown():
    found = dict(
        zip(WITHOUT_LANGUAGE, example_scores(language, *(("6*7", text) for text in WITHOUT_LANGUAGE)), strict=True)
    )
    assert found == dict.fromkeys(WITHOUT_LANGUAGE, "unknown")


def test_a_text_has_the_language_of_most_of_its_letters():
    mixed = "I asked: " + SENTENCES["ja"], "Translation: " + SENTENCES["de"]
    assert example_scores(language, *(("42", text) for text in mixed)) == ["ja", "de"]


def test_many_texts_get_the_language_and_probability_that_py3langid_computes_for_each():
    texts = [
        *"\n".join(SENTENCES.values()).split("\n"),
        *WITHOUT_LANGUAGE,
        "",
        "CLOSE THE DOOR",
        "e\u0301te\u0301 \u0130",
    ]
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model.set_languages([*LANGUAGES.split(), NO_LANGUAGE])
    expected = []
    for text in texts:
        merged = Counter()
        for code, probability in model.rank(text):
            merged[SAME.get(code, code)] += probability
        expected.append(merged.most_common(1)[0])
    codes, probabilities = identify(pl.Series(texts))
    assert probabilities == pytest.approx([probability for _, probability in expected], abs=1e-4)
    compared = zip(codes, expected, strict=True)
    assert [(code, other) for code, (other, probability) in compared if code != other and probability > 0.05] == []
    assert identify(pl.Series([], dtype=pl.String))[0].to_list() == []


def test_a_number_has_the_language_of_its_question():
    assert example_scores(language, ("Combien font six fois sept dans la base dix ?", "42"), ("6*7", "42")) == [
        "fr",
        "unknown",
    ]


def test_a_penalty_is_zero_at_fine_full_at_worst_and_linear_in_between():
    frame = pl.DataFrame({"words": [50, 20, 15, 10, 0]})
    penalties = {"words": Penalty(weight=0.4, fine=20, worst=10)}
    assert frame.select(quality(penalties=penalties)).to_series().round(6).to_list() == [1.0, 1.0, 0.8, 0.6, 0.6]


def test_quality_is_never_negative():
    frame = pl.DataFrame({"refusal": [True], "boilerplate": [True]})
    penalties = {name: Penalty(weight=0.8) for name in frame.columns}
    assert frame.select(quality(penalties=penalties)).item() == 0.0


def test_the_default_penalties_are_on_scorers():
    assert set(PENALTIES) <= set(SCORERS)


@pytest.mark.parametrize("name", [name for name in SCORERS if name.startswith("has_")])
def test_a_conversation_of_several_turns_is_repairable_if_any_of_its_texts_is(name):
    defects = {
        "has_html": "<p>Fish &amp; chips</p>",
        "has_mojibake": "Ein CafÃ© am Hafen",
        "has_invisible": "Hel\u00adlo",
        "has_nan_text": "N/A",
        "has_signature": "It leaks.\n\nKind regards,\nAda",
    }
    clean = [("human", "Hi"), ("gpt", "Hello"), ("human", "It leaks."), ("gpt", "Oil it.")]
    found = values(SCORERS[name], clean, *([*clean[:2], ("human", text), *clean[3:]] for text in defects.values()))
    assert found == [False, *(name == other for other in defects)]
    tool_result = [("human", "Open it"), ("gpt", "Yes"), ("tool", defects[name]), ("gpt", "Done")]
    assert values(SCORERS[name], tool_result) == [False]
