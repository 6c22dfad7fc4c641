"""Writes the sample: support_tickets.csv and chats.jsonl beside this file, out of topics.toml.

    python data/make_sample.py

The same topics give the same bytes. The files are a support desk's export as real ones are: questions with
greetings and signatures over several lines, and here and there an empty answer, a torn row, a duplicate, HTML,
a machine's boilerplate, a formula, a script. `data/README.md` lists what is in them.
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
    (HERE / "support_tickets.csv").write_text(tickets(topics), encoding="utf-8", newline="")
    (HERE / "chats.jsonl").write_text(chats(topics), encoding="utf-8", newline="")


def tickets(topics: dict[str, Any]) -> str:
    """The text of support_tickets.csv."""
    draw = random.Random(2026)
    asked = [row for topic in topics["topic"] for row in _questions(topic, topics["boats"], draw)]
    rows = [*asked, *topics["foreign"], *topics["messy"], *_empty(asked, draw), *_again(asked, draw)]
    draw.shuffle(rows)
    lines = [_csv_line(_ticket(row, number, draw)) for number, row in enumerate(rows)]
    lines[77:77] = [
        "T-30077,2026-03-02 11:05,Skua,en,Ines,Is the leash included, and how long is it?,Yes, two metres.,5\n"
    ]
    lines[201:201] = ["T-30201,2026-05-19 09:40,Puffin,en\n"]
    return _csv_line(COLUMNS) + "".join(lines)


def chats(topics: dict[str, Any]) -> str:
    """The text of chats.jsonl: OpenAI messages, one conversation a line."""
    draw = random.Random(813)
    about = [topic for topic in topics["topic"] if _is_about_a_boat(topic)]
    orders = [topic for topic in topics["topic"] if "{order}" in topic["answer"]]
    records = [_chat(draw.sample(about, draw.choice((2, 2, 3))), topics["boats"], draw) for _ in range(26)]
    records += [_order_chat(topic, draw) for topic in orders]
    records += _spoilt(records)
    draw.shuffle(records)
    heads = [{"chat": f"C-{700 + n}", "channel": draw.choice(("web", "web", "app"))} for n in range(len(records))]
    lines = [json.dumps(head | record, ensure_ascii=False) for head, record in zip(heads, records, strict=True)]
    lines[17] = lines[17][: len(lines[17]) * 2 // 3]  # the export was cut off here
    return "\n".join(lines) + "\n"


def _questions(topic: dict[str, Any], boats: dict[str, Any], draw: random.Random) -> Iterator[dict[str, Any]]:
    """A topic's questions, each about several boats or orders, with an answer in the house's voice."""
    for ask in topic["ask"]:
        for facts in _facts(topic, boats, draw):
            question = draw.choice(OPENINGS) + ask.format(**facts) + draw.choice(CLOSINGS)
            answer = f"{HELLO} {topic['answer'].format(**facts)} {GOODBYE}"
            yield {"ask": question, "answer": answer, "product": facts.get("product", "")}


def _facts(topic: dict[str, Any], boats: dict[str, Any], draw: random.Random) -> list[dict[str, str]]:
    if _is_about_a_boat(topic):
        return [{"product": boat, **boats[boat]} for boat in draw.sample(sorted(boats), 4)]
    if "{order}" in topic["answer"]:
        return [{"order": str(draw.randrange(41000, 49999))} for _ in range(2)]
    return [{}]


def _is_about_a_boat(topic: dict[str, Any]) -> bool:
    return "{product}" in topic["answer"] + topic["ask"][0]


def _empty(asked: list[dict[str, Any]], draw: random.Random) -> Iterator[dict[str, Any]]:
    """Tickets that were closed without an answer, or opened without a question."""
    for row, answer in zip(draw.sample(asked, 9), ("", "", "", "", "  ", "", "\n", "", ""), strict=True):
        yield row | {"answer": answer}
    yield draw.choice(asked) | {"ask": ""}


def _again(asked: list[dict[str, Any]], draw: random.Random) -> Iterator[dict[str, Any]]:
    """Tickets that came twice: word for word, and nearly."""
    yield from draw.sample(asked, 12)
    for row in draw.sample(asked, 10):
        yield row | {
            "ask": draw.choice((row["ask"].lower(), row["ask"] + " !!", "Again: " + row["ask"], row["ask"] + "  "))
        }


def _ticket(row: dict[str, Any], number: int, draw: random.Random) -> list[str]:
    opened = datetime(2026, 1, 5, 9) + timedelta(hours=18 * number, minutes=draw.randrange(400))
    machine = row.get("why") == "a machine's boilerplate"
    agent = "bot" if machine else draw.choice(AGENTS)
    score = (
        draw.choice("12")
        if machine or row.get("why") == "too short"
        else draw.choice(("", "3", "4", "4", "5", "5", "5"))
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


def _chat(about: list[dict[str, Any]], boats: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Several questions about one boat, one after another."""
    boat = draw.choice(sorted(boats))
    messages = [{"role": "system", "content": SYSTEM}]
    for place, topic in enumerate(about):
        facts = {"product": boat, **boats[boat]}
        lead = draw.choice(("Thanks. ", "Good. ", "And one more thing: ", "")) if place else draw.choice(("", "Hi! "))
        body = topic["answer"].format(**facts)
        greeting = "" if place else f"{HELLO} "
        farewell = f" {GOODBYE}" if topic is about[-1] else ""
        messages.append({"role": "user", "content": lead + draw.choice(topic["ask"]).format(**facts)})
        messages.append({"role": "assistant", "content": greeting + body + farewell})
    return {"messages": messages}


def _order_chat(topic: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A question about an order that the assistant looks up with a tool before it answers."""
    order = str(draw.randrange(41000, 49999))
    call = {
        "id": f"call_{order}",
        "type": "function",
        "function": {"name": "find_order", "arguments": json.dumps({"order": order})},
    }
    found = {"order": order, "state": draw.choice(("packed", "on its way", "delivered")), "parcels": 1}
    answer = f"{HELLO} {topic['answer'].format(order=order)} {GOODBYE}"
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": draw.choice(topic["ask"]).format(order=order)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(found)},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "tools": TOOLS}


def _spoilt(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chats as they also come: left by the customer, answered by nobody we know, with a torn tool call, twice."""
    unanswered = {"messages": [*records[0]["messages"], {"role": "user", "content": "Hello? Are you still there?"}]}
    unknown = {"messages": [{"role": "user", "content": "Hi"}, {"role": "supervisor", "content": "Please take over."}]}
    torn = json.loads(json.dumps(records[-1]))
    torn["messages"][2]["tool_calls"][0]["function"]["arguments"] = '{"order": 4'
    silent = {"messages": [{"role": "user", "content": "Do you sell sails?"}, {"role": "assistant", "content": ""}]}
    return [unanswered, unknown, torn, silent, records[3]]


if __name__ == "__main__":
    main()
