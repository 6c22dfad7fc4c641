"""Conversations pushed and answers pulled per second, compared with Argilla's own SDK.

    python tests/bench/bench_review.py [--records 5000] [--peer PYTHON]

Starts `curate review serve` in a temporary folder. Each record has a question and an answer of about 800 characters
together and the default scores. The first push sends two suggestions per record (quality and decision), the second the
three of the default questions; a pull reads, stores and resolves two answers per record. `--peer` is a Python with
argilla 2.8.0: its `records.log` sends a fifth of the records, without metadata, its `records.to_list` reads the same
answers. The exit code is 1 below 200 records/s pushed or 1,000 pulled.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.argilla_server import LabellingServer
from support.stores import add, chat

from curate.review.argilla.client import connect
from curate.review.pull import pull
from curate.review.push import push
from curate.review.queue import QueueQuery
from curate.scorers.runner import score_store
from curate.selection import select_store
from schemas.recipe import Recipe, check_recipe

PUSH, PULL = 200, 1000
PART = 500
PEER = """
import json, sys, time
import argilla as rg

url, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = rg.Argilla(api_url=url, api_key=key)
settings = rg.Settings(
    fields=[rg.ChatField(name="conversation")],
    questions=[rg.RatingQuestion(name="quality", values=[1, 2, 3, 4, 5]),
               rg.LabelQuestion(name="decision", labels=["keep", "fix", "drop"])],
)
dataset = rg.Dataset(name="peer", settings=settings, workspace=client.workspaces[0].name, client=client)
dataset.create()
records = [
    rg.Record(fields={"conversation": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]},
              suggestions=[rg.Suggestion("quality", 4, agent="quality", score=0.8),
                           rg.Suggestion("decision", "keep", agent="rules")])
    for question, reply in json.load(sys.stdin)
]
start = time.perf_counter()
dataset.records.log(records)
pushed = time.perf_counter() - start
start = time.perf_counter()
ours = client.datasets("two")  # the set with two answers to each record
read = ours.records(with_responses=True, with_suggestions=False).to_list(flatten=False)
pulled = time.perf_counter() - start
print(json.dumps({"push": count / pushed, "pull": len(read) / pulled}))
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--peer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = LabellingServer(Path(folder) / "home")
        server.start()
        try:
            rates = measure_rates(Path(folder), server, given.records)
            if given.peer:
                rates |= peer(given.peer, server, given.records // 5)
        finally:
            server.stop()
    show(rates)
    return int(rates["push, two suggestions"][0] < PUSH or rates["pull, two answers each"][0] < PULL)


def measure_rates(folder: Path, server: LabellingServer, count: int) -> dict[str, tuple[float, float | None]]:
    """Operation -> records per second, and per CPU second."""
    store = folder / "curate.duckdb"
    add(store, talks(count))
    score_store(store, Recipe())
    select_store(store, Recipe())
    two = check_recipe({"review": {"questions": ["quality", "decision"], "blind": 0, "overlap": 2}}, "bench")
    all_ = check_recipe({"review": {"blind": 0}}, "bench")
    rates = {}
    with connect(None, server.home) as argilla:

        def rate(work):
            return measure(server.pid, count, work)

        rates["push, two suggestions"] = rate(lambda: push(store, two, argilla, "two", QueueQuery()).sent)
        rates["push, three suggestions"] = rate(lambda: push(store, all_, argilla, "three", QueueQuery()).sent)
        rates["push again, nothing changed"] = rate(lambda: push(store, two, argilla, "two", QueueQuery()).unchanged)
        answer(server, "two", annotators=2)
        rates["pull, two answers each"] = rate(
            lambda: pull(store, two.review, argilla, "two").answers["submitted"] // 2
        )
        rates["pull again, nothing changed"] = rate(lambda: count * pull(store, two.review, argilla, "two").unchanged)
    return rates


def measure(server: int, count: int, work) -> tuple[float, float]:
    """Records per second, and per CPU second of this process and the server together."""
    start, spent = time.perf_counter(), time.process_time() + cpu_seconds(server)
    done = work()
    seconds, spent = time.perf_counter() - start, time.process_time() + cpu_seconds(server) - spent
    assert done == count, f"{done} of {count}"
    return count / seconds, count / spent


def cpu_seconds(process: int) -> float:
    """CPU seconds used by a process, from Linux's count of ticks."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def talks(count: int) -> list:
    words = "The pump of the boat does not fit its valve any more, and the gauge shows nothing at all. " * 4
    return [chat(f"Question {n}: {words}", f"Answer {n}: {words}") for n in range(count)]


def answer(server: LabellingServer, name: str, annotators: int) -> None:
    """Answer every record in bulk, as the owner may do for other accounts."""
    dataset = next(one["id"] for one in server.ask("GET", "me/datasets")["items"] if one["name"] == name)
    keys = [server.annotator(f"person{number}")[2] for number in range(annotators)]
    users = [server.ask("GET", "me", key=key)["id"] for key in keys]
    total = server.ask("GET", f"datasets/{dataset}/records?limit=1")["total"]
    for offset in range(0, total, PART):
        records = server.ask("GET", f"datasets/{dataset}/records?limit={PART}&offset={offset}")["items"]
        items = [
            {
                "id": record["id"],
                "responses": [
                    {"user_id": user, "status": "submitted",
                     "values": {"quality": {"value": 4}, "decision": {"value": "keep"}}}
                    for user in users
                ],
            }
            for record in records
        ]  # fmt: skip
        server.ask("PUT", f"datasets/{dataset}/records/bulk", {"items": items})


def peer(python: str, server: LabellingServer, count: int) -> dict[str, tuple[float, float | None]]:
    given = json.dumps([[turn.value for turn in talk.turns] for talk in talks(count)])
    done = subprocess.run(
        [python, "-c", PEER, server.url, server.api_key, str(count)],
        input=given, text=True, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    rates = json.loads(done.stdout.splitlines()[-1])
    return {"SDK push, two suggestions": (rates["push"], None), "SDK pull, two answers each": (rates["pull"], None)}


def show(rates: dict[str, tuple[float, float | None]]) -> None:
    one, five, _ = os.getloadavg()
    print(
        f"load {one:.1f} (1 min), {five:.1f} (5 min)\n\n| operation | records/s | per CPU second |\n| --- | --- | --- |"
    )
    for operation, (wall, cpu) in rates.items():
        print(f"| {operation} | {wall:,.0f} | {'' if cpu is None else f'{cpu:,.0f}'} |")


if __name__ == "__main__":
    sys.exit(main())
