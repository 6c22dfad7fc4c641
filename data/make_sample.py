"""topics.toml → the sample: support_tickets.csv and chats.jsonl in the same folder.

    python data/make_sample.py

The same topics give the same bytes. The files imitate exports of a support desk: questions with greetings and
signatures over several lines, and some empty answers, torn rows, duplicates, HTML, boilerplate, formulas and scripts.
`data/README.md` lists these defects.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tomllib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLUMNS = ("ticket", "created_at", "product", "language", "agent", "question", "answer", "csat")
HELLO, GOODBYE = "Hello from Tern & Tide!", "Fair winds!"
OPENINGS = ("", "", "", "Hi, ", "Hello! ", "Good morning, ", "Dear team,\n\n", "Hey there, ", "Hello Tern & Tide,\n")
CLOSINGS = ("", "", "", "", " Thanks!", "\n\nBest wishes,\nMarit", "\nMany thanks\nOle H.", " Thank you.", "\n\nTomasz")
AGENTS = ("Ada", "Bjarne", "Ines")
SYSTEM = "You answer for Tern & Tide, a small maker of inflatable boats in Marsvik. Be short, clear and kind."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_order",
            "description": "Where an order is and what is in it.",
            "parameters": {
                "type": "object",
                "properties": {"order": {"type": "string", "description": "Such as 48213."}},
                "required": ["order"],
            },
        },
    }
]


def main() -> None:
    """Write both files."""
    topics = tomllib.loads((HERE / "topics.toml").read_text(encoding="utf-8"))
    (HERE / "support_tickets.csv").write_text(render_tickets(topics), encoding="utf-8", newline="")
    (HERE / "chats.jsonl").write_text(render_chats(topics), encoding="utf-8", newline="")


def render_tickets(topics: dict[str, Any]) -> str:
    """The text of support_tickets.csv."""
    rng = random.Random(2026)
    questions = [row for topic in topics["topic"] for row in _questions(topic, topics["boats"], rng)]
    rows = [*questions, *topics["foreign"], *topics["messy"], *_empty_cells(questions, rng)]
    rows += _duplicates(questions, rng)
    rng.shuffle(rows)
    lines = [_csv_line(_ticket(row, number, rng)) for number, row in enumerate(rows)]
    lines[77:77] = [
        "T-30077,2026-03-02 11:05,Skua,en,Ines,Is the leash included, and how long is it?,Yes, two metres.,5\n"
    ]
    lines[201:201] = ["T-30201,2026-05-19 09:40,Puffin,en\n"]
    return _csv_line(COLUMNS) + "".join(lines)


def render_chats(topics: dict[str, Any]) -> str:
    """The text of chats.jsonl: OpenAI messages, one conversation per line."""
    rng = random.Random(813)
    boat_topics = [topic for topic in topics["topic"] if _mentions_boat(topic)]
    orders = [topic for topic in topics["topic"] if "{order}" in topic["answer"]]
    records = [_chat(rng.sample(boat_topics, rng.choice((2, 2, 3))), topics["boats"], rng) for _ in range(26)]
    records += [_order_chat(topic, rng) for topic in orders]
    records += _defective_chats(records)
    rng.shuffle(records)
    heads = [{"chat": f"C-{700 + n}", "channel": rng.choice(("web", "web", "app"))} for n in range(len(records))]
    lines = [json.dumps(head | record, ensure_ascii=False) for head, record in zip(heads, records, strict=True)]
    lines[17] = lines[17][: len(lines[17]) * 2 // 3]  # a truncated line
    return "\n".join(lines) + "\n"


def _questions(topic: dict[str, Any], boats: dict[str, Any], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Questions of a topic, each about several boats or orders, with an answer in the company's style."""
    for ask in topic["ask"]:
        for facts in _facts(topic, boats, rng):
            question = rng.choice(OPENINGS) + ask.format(**facts) + rng.choice(CLOSINGS)
            answer = f"{HELLO} {topic['answer'].format(**facts)} {GOODBYE}"
            yield {"ask": question, "answer": answer, "product": facts.get("product", "")}


def _facts(topic: dict[str, Any], boats: dict[str, Any], rng: random.Random) -> list[dict[str, str]]:
    if _mentions_boat(topic):
        return [{"product": boat, **boats[boat]} for boat in rng.sample(sorted(boats), 4)]
    if "{order}" in topic["answer"]:
        return [{"order": str(rng.randrange(41000, 49999))} for _ in range(2)]
    return [{}]


def _mentions_boat(topic: dict[str, Any]) -> bool:
    return "{product}" in topic["answer"] + topic["ask"][0]


def _empty_cells(questions: list[dict[str, Any]], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Nine tickets with an empty answer and one with an empty question."""
    for row, answer in zip(rng.sample(questions, 9), ("", "", "", "", "  ", "", "\n", "", ""), strict=True):
        yield row | {"answer": answer}
    yield rng.choice(questions) | {"ask": ""}


def _duplicates(questions: list[dict[str, Any]], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Twelve exact and ten near-duplicates."""
    yield from rng.sample(questions, 12)
    for row in rng.sample(questions, 10):
        yield row | {
            "ask": rng.choice((row["ask"].lower(), row["ask"] + " !!", "Again: " + row["ask"], row["ask"] + "  "))
        }


def _ticket(row: dict[str, Any], number: int, rng: random.Random) -> list[str]:
    opened = datetime(2026, 1, 5, 9) + timedelta(hours=18 * number, minutes=rng.randrange(400))
    machine = row.get("why") == "a machine's boilerplate"
    agent = "bot" if machine else rng.choice(AGENTS)
    score = (
        rng.choice("12") if machine or row.get("why") == "too short" else rng.choice(("", "3", "4", "4", "5", "5", "5"))
    )
    return [
        f"T-{20000 + number}",
        f"{opened:%Y-%m-%d %H:%M}",
        row.get("product", ""),
        row.get("language", "en"),
        agent,
        row["ask"],
        row["answer"],
        score,
    ]


def _csv_line(cells: list[str] | tuple[str, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _chat(topics: list[dict[str, Any]], boats: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A conversation with several questions about one boat."""
    boat = rng.choice(sorted(boats))
    messages = [{"role": "system", "content": SYSTEM}]
    for position, topic in enumerate(topics):
        facts = {"product": boat, **boats[boat]}
        lead = rng.choice(("Thanks. ", "Good. ", "And one more thing: ", "")) if position else rng.choice(("", "Hi! "))
        body = topic["answer"].format(**facts)
        greeting = "" if position else f"{HELLO} "
        farewell = f" {GOODBYE}" if topic is topics[-1] else ""
        messages.append({"role": "user", "content": lead + rng.choice(topic["ask"]).format(**facts)})
        messages.append({"role": "assistant", "content": greeting + body + farewell})
    return {"messages": messages}


def _order_chat(topic: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A question about an order, with a tool call, its result and an answer."""
    order = str(rng.randrange(41000, 49999))
    call = {
        "id": f"call_{order}",
        "type": "function",
        "function": {"name": "find_order", "arguments": json.dumps({"order": order})},
    }
    result = {"order": order, "state": rng.choice(("packed", "on its way", "delivered")), "parcels": 1}
    answer = f"{HELLO} {topic['answer'].format(order=order)} {GOODBYE}"
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": rng.choice(topic["ask"]).format(order=order)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "tools": TOOLS}


def _defective_chats(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chats with no last answer, an unknown role, an invalid tool call and an empty answer, and a duplicate."""
    unanswered = {"messages": [*records[0]["messages"], {"role": "user", "content": "Hello? Are you still there?"}]}
    unknown = {"messages": [{"role": "user", "content": "Hi"}, {"role": "supervisor", "content": "Please take over."}]}
    torn = json.loads(json.dumps(records[-1]))
    torn["messages"][2]["tool_calls"][0]["function"]["arguments"] = '{"order": 4'
    silent = {"messages": [{"role": "user", "content": "Do you sell sails?"}, {"role": "assistant", "content": ""}]}
    return [unanswered, unknown, torn, silent, records[3]]


if __name__ == "__main__":
    main()
