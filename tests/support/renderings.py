"""Small conversations, and their renderings: ids and labels as text."""

from importlib.metadata import PackageNotFoundError, version

import polars as pl
import pytest
from support.make_tokenizers import CHATML
from support.stores import chat

from schemas.conversation import TURN, Conversation, Turn
from train.tokens.chat_template import Template, unsloth_templates
from train.tokens.render import render

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


def frame(*conversations):
    rows = [{"id": c.id, "conversations": [turn.as_row() for turn in c.turns], "tools": c.tools} for c in conversations]
    return pl.DataFrame(rows, schema={"id": pl.String, "conversations": pl.List(TURN), "tools": pl.String})


def render_one(conversation, tokenizer, template=CHATML):
    return render(frame(conversation), Template("under test", template), tokenizer).row(0, named=True)


def marked_text(row, tokenizer):
    """The tokens as text, those in the loss in brackets."""
    texts = [tokenizer.backend.decode([number], skip_special_tokens=False) for number in row["input_ids"]]
    return "".join(text if label == -100 else f"[{text}]" for text, label in zip(texts, row["labels"], strict=True))


def loss_text(row, tokenizer):
    """The text of the tokens in the loss."""
    return tokenizer.backend.decode([label for label in row["labels"] if label != -100], skip_special_tokens=False)


def unsloth_texts():
    """Unsloth's templates by name; skips the test if Unsloth is not installed."""
    try:
        version("unsloth")
    except PackageNotFoundError:
        pytest.skip("unsloth is not installed")
    return unsloth_templates()
