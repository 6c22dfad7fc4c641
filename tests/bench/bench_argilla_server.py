"""How soon the labelling server answers after its start, how it searches, and what six people feel beside a push.

    python tests/bench/bench_argilla_server.py [--records 20000] [--starts 5]

Bars: a start takes less than 1.5 times what `import argilla_server` takes alone; at 20,000 records every kind of
question is answered in under 0.5 s at the median; six people who submit while a bulk push runs wait less than 1.5 s
in 95 of 100 cases, with no error and no answer lost. A bar that is missed ends with exit code 1.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.argilla_server import LabellingServer

from curate.review.argilla.process import install_environment

START_LIMIT, QUERY_LIMIT, SUBMIT_LIMIT = 1.5, 0.5, 1.5
BULK, PAGE, PEOPLE, PAUSE = 100, 10, 6, 0.5
ROUNDS = 15
COMMON = ["refund", "parcel", "late", "broken", "order", "invoice", "where", "thanks", "please", "account"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--starts", type=int, default=5)
    given = parser.parse_args()
    print(f"load before: {load()}")
    with tempfile.TemporaryDirectory() as folder:
        missed = starts(Path(folder), given.starts)
        server = LabellingServer(Path(folder) / "home")
        server.start()
        try:
            work = Work(server)
            work.push(given.records)
            missed += queries(work)
            missed += people_beside_a_push(work, given.records)
        finally:
            server.stop()
    print(f"load after: {load()}")
    for line in missed:
        print(f"MISSED: {line}")
    return int(bool(missed))


def load() -> str:
    return " ".join(f"{one:.1f}" for one in os.getloadavg())


def starts(folder: Path, rounds: int) -> list[str]:
    """Import, first start and later start in turn, so that what else the machine does meets all three."""
    python = install_environment(lambda *_: None)
    seconds: dict[str, list[float]] = {"import argilla_server": [], "first start": [], "later start": []}
    home = folder / "imported"
    home.mkdir()
    stock = os.environ | {"ARGILLA_HOME_PATH": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "TMPDIR": str(home)}
    for number in range(rounds):
        began = time.perf_counter()
        subprocess.run([str(python), "-P", "-c", "import argilla_server"], env=stock, check=True)
        seconds["import argilla_server"].append(time.perf_counter() - began)
        server = LabellingServer(folder / f"start-{number}")
        for kind in ("first start", "later start"):
            began = time.perf_counter()
            server.start()
            seconds[kind].append(time.perf_counter() - began)
            server.stop()
    base = statistics.median(seconds["import argilla_server"])
    missed = []
    print("\n| | median s | least s | x import |\n| --- | --- | --- | --- |")
    for kind, taken in seconds.items():
        ratio = statistics.median(taken) / base
        print(f"| {kind} | {statistics.median(taken):.2f} | {min(taken):.2f} | {ratio:.2f} |")
        missed += [f"{kind}: {ratio:.2f} x import"] * (ratio >= START_LIMIT)
    return missed


class Work:
    """A dataset as a team would have it: chats of four turns, two suggestions each, three kinds of metadata."""

    def __init__(self, server: LabellingServer) -> None:
        self.server = server
        self.draw = random.Random(1)
        self.words = COMMON + [f"w{n}" for n in range(5000)]
        self.dataset = self._make()
        self.path = f"datasets/{self.dataset}"
        self.questions = {one["name"]: one["id"] for one in server.ask("GET", f"{self.path}/questions")["items"]}
        self.pushed = 0

    def _make(self) -> str:
        ask = self.server.ask
        made = ask("POST", "datasets", {"name": "bench", "workspace_id": self.server.workspace})["id"]
        ask("PATCH", f"datasets/{made}", {"distribution": {"strategy": "overlap", "min_submitted": 2}})
        chat = {"type": "chat", "use_markdown": False}
        body = {"name": "chat", "title": "chat", "required": True, "settings": chat}
        ask("POST", f"datasets/{made}/fields", body)
        for name, settings in {
            "quality": {"type": "rating", "options": [{"value": n} for n in range(1, 6)]},
            "decision": {
                "type": "label_selection",
                "options": [{"value": one, "text": one} for one in ("keep", "fix", "drop")],
            },
        }.items():
            body = {"name": name, "title": name, "required": True, "settings": settings}
            ask("POST", f"datasets/{made}/questions", body)
        for name, kind in (("source", "terms"), ("line", "integer"), ("score", "float")):
            body = {"name": name, "title": name, "settings": {"type": kind}}
            ask("POST", f"datasets/{made}/metadata-properties", body)
        ask("PUT", f"datasets/{made}/publish")
        return made

    def push(self, count: int) -> None:
        began, first = time.perf_counter(), self.pushed
        while self.pushed < first + count:
            self.push_bulk(min(BULK, first + count - self.pushed))
        rate = count / (time.perf_counter() - began)
        print(f"\n{count:,} records pushed in bulks of {BULK}: {rate:,.0f} records/s")

    def push_bulk(self, count: int) -> None:
        items = [self.record(self.pushed + n) for n in range(count)]
        self.server.ask("PUT", f"{self.path}/records/bulk", {"items": items})
        self.pushed += count

    def record(self, number: int) -> dict:
        text = lambda count: " ".join(self.draw.choices(self.words, k=count))  # noqa: E731
        turns = [("user", 40), ("assistant", 120), ("user", 20), ("assistant", 100)]
        values = {"quality": self.draw.randint(1, 5), "decision": self.draw.choice(["keep", "fix", "drop"])}
        return {
            "external_id": f"r{number}",
            "fields": {"chat": [{"role": role, "content": text(count)} for role, count in turns]},
            "metadata": {"source": f"{self.draw.choice('abc')}.csv", "line": number, "score": self.draw.random()},
            "suggestions": [
                {"question_id": self.questions[name], "value": value, "score": self.draw.random(), "agent": "scorer"}
                for name, value in values.items()
            ],
        }


def queries(work: Work) -> list[str]:
    """Each kind of question as the page asks it: ten records with their suggestions and the person's own answers."""
    kinds = {name: [] for name in questions(work.pushed)}
    path = f"/api/v1/me/{work.path}/records/search?include=responses&include=suggestions&limit={PAGE}"
    with Caller(work.server, work.server.annotator("reader")[2]) as caller:
        for _ in range(ROUNDS):
            for name, body in questions(work.pushed).items():
                began = time.perf_counter()
                caller.ask("POST", path, body)
                kinds[name].append(time.perf_counter() - began)
    missed = []
    print(f"\n| at {work.pushed:,} records | median ms | worst of {ROUNDS} |\n| --- | --- | --- |")
    for name, taken in kinds.items():
        median = statistics.median(taken)
        print(f"| {name} | {median * 1000:.0f} | {max(taken) * 1000:.0f} |")
        missed += [f"{name}: {median:.2f} s"] * (median >= QUERY_LIMIT)
    return missed


def questions(count: int) -> dict[str, dict]:
    metadata = lambda name: {"entity": "metadata", "metadata_property": name}  # noqa: E731
    suggestion = lambda name: {"entity": "suggestion", "question": "quality", "property": name}  # noqa: E731
    where = lambda **one: {"filters": {"and": [one]}}  # noqa: E731
    order = lambda scope: {"sort": [{"scope": scope, "order": "desc"}]}  # noqa: E731
    text = lambda words: {"query": {"text": {"q": words}}}  # noqa: E731
    return {
        "page": {},
        "filter: pending": where(type="terms", scope={"entity": "response", "property": "status"}, values=["pending"]),
        "filter: a source": where(type="terms", scope=metadata("source"), values=["a.csv"]),
        "filter: lines": where(type="range", scope=metadata("line"), ge=5, le=count // 2),
        "filter: suggested rating": where(type="terms", scope=suggestion("value"), values=["2"]),
        "filter: suggestion's score": where(type="range", scope=suggestion("score"), ge=0.5),
        "sort: a score": order(metadata("score")),
        "sort: suggestion's score": order(suggestion("score")),
        "sort: when it came in": order({"entity": "record", "property": "inserted_at"}),
        "text: a common word": text("refund"),
        "text: a rare word": text("w77"),
        "text: a phrase, not another": text('"late broken" -invoice'),
        "text: a prefix": text("refu*"),
        "text: a typo": text("refumd~1"),
    }


def people_beside_a_push(work: Work, count: int) -> list[str]:
    """Six people look at a page and submit, again and again, until a push of a quarter of the records is done."""
    people = [work.server.annotator(f"person-{number}") for number in range(PEOPLE)]
    over, taken, errors, answers = threading.Event(), [], [], []

    def annotate(key: str, seed: int) -> None:
        draw = random.Random(seed)
        path = f"/api/v1/me/{work.path}/records/search?include=responses&include=suggestions&limit={PAGE}"
        pending = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
        with Caller(work.server, key) as caller:
            while not over.is_set():
                try:
                    [one, *_] = caller.ask("POST", path, {"filters": {"and": [pending]}})["items"]
                    values = {"quality": {"value": draw.randint(1, 5)}, "decision": {"value": "keep"}}
                    body = {"items": [{"record_id": one["record"]["id"], "status": "submitted", "values": values}]}
                    began = time.perf_counter()
                    [done] = caller.ask("POST", "/api/v1/me/responses/bulk", body)["items"]
                    taken.append(time.perf_counter() - began)
                    answers.append(done["item"]["id"])
                except Exception as error:
                    errors.append(repr(error))
                time.sleep(PAUSE)

    threads = [threading.Thread(target=annotate, args=(key, seed)) for seed, (_, _, key) in enumerate(people)]
    for thread in threads:
        thread.start()
    work.push(count // 4)
    over.set()
    for thread in threads:
        thread.join()
    kept = stored_answers(work)
    lost = len(set(answers) - kept)
    p50, p95 = statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
    print(f"\n{PEOPLE} people, {PAUSE} s between answers, beside it: {len(taken)} answers, {len(errors)} errors, "
          f"{lost} lost; submit p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms")  # fmt: skip
    return (
        [f"errors: {errors[:3]}"] * bool(errors)
        + [f"{lost} answers lost"] * bool(lost)
        + [f"submit p95 {p95:.2f} s"] * (p95 >= SUBMIT_LIMIT)
    )


def stored_answers(work: Work) -> set[str]:
    found: set[str] = set()
    for offset in range(0, work.pushed, 1000):
        page = work.server.ask("GET", f"{work.path}/records?include=responses&limit=1000&offset={offset}")["items"]
        found |= {answer["id"] for record in page for answer in record["responses"]}
    return found


class Caller:
    """One connection that stays open, as a browser's does."""

    def __init__(self, server: LabellingServer, key: str) -> None:
        self.connection = HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        self.headers = {"X-Argilla-Api-Key": key, "Content-Type": "application/json"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def ask(self, method: str, path: str, body: dict) -> dict:
        self.connection.request(method, path, json.dumps(body), self.headers)
        answer = self.connection.getresponse()
        said = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{answer.status}: {said[:300]!r}")
        return json.loads(said)


if __name__ == "__main__":
    sys.exit(main())
