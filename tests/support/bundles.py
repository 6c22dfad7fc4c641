"""A version with tool calls, flags and system prompts, exported to bundles and restored from them."""

import json

from support.stores import add, chat, questions

from curate.versions.bundle import export_version
from curate.versions.freeze import freeze
from curate.versions.restore import read_bundle, restore
from schemas.conversation import Conversation, Turn
from schemas.recipe import check_recipe
from schemas.store import reading, writing
from schemas.version import find_version, read_members

TOOLS = '[{"type":"function","function":{"name":"add","parameters":{"type":"object"}}}]'
CALL = '{"name": "add", "arguments": {"a": 1.0, "b": "ü \\"q\\""}, "id": "c1"}'
PARALLEL = '[{"name": "add", "arguments": {}, "id": "c2"}, {"name": "add", "arguments": {"a": 2}, "id": "c3"}]'
OWN_SPELLING = '{"name":"add","arguments":{"a":  1e5}}'

AGENT = Conversation(
    (
        Turn("system", "Use the tools."),
        Turn("human", "Add\n\u2028 two \t\x01 numbers"),
        Turn("gpt", "Sure."),
        Turn("function_call", CALL),
        Turn("observation", "3", tool_call_id="c1"),
        Turn("function_call", PARALLEL, train=False),
        Turn("observation", "4", tool_call_id="c2"),
        Turn("observation", '{"sum": 5}', tool_call_id="c3"),
        Turn("gpt", "Hm.", train=False),
        Turn("function_call", OWN_SPELLING),
        Turn("observation", "7"),
        Turn("gpt", "It is 3."),
    ),
    TOOLS,
)
SILENT = Conversation(
    (Turn("human", "One?"), Turn("gpt", "Wrong.", train=False), Turn("human", "Two?"), Turn("gpt", "Right."))
)
PLAIN = [
    chat("Hello?", "Hi.", "How?", "So."),
    chat("A?", "1.", "B?", "2.", "C?", "3."),
    chat("Who?", 'Me, "you" \\ and 😀.', system="Be kind."),
    *questions(30),
]


def add_support(store):
    """Add these conversations to a store and freeze all of them as support@1."""
    add(store, [AGENT, SILENT, *PLAIN])
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0.2}}, "the test"))
    return store


def export(store, to, **options):
    with reading(store) as connection:
        return export_version(connection, "support@1", to, **options)


def restore_store(store, folder, **options):
    statement = read_bundle(folder)
    with writing(store) as connection:
        return restore(connection, statement, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def members(store, label="support@1"):
    with reading(store) as connection:
        return read_members(connection, find_version(connection, label))
