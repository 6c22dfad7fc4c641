"""Start time of the labelling server, search times, and response times of six annotators during a push.

    python tests/bench/bench_argilla_server.py [--records 20000] [--starts 5]

Limits: a start takes less than 1.5 times as long as `import argilla_server`; at 20,000 records the median of every kind
of query is below 0.5 s; the 95th percentile of submits by six annotators during a bulk push is below 1.5 s, without
errors and lost answers. The exit code is 1 if a limit is exceeded.
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
BULK, PAGE, ANNOTATORS, PAUSE = 100, 10, 6, 0.5
ROUNDS = 15
COMMON = ["refund", "parcel", "late", "broken", "order", "invoice", "where", "thanks", "please", "account"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--starts", type=int, default=5)
    given = parser.parse_args()
    print(f"load before: {load()}")
    with tempfile.TemporaryDirectory() as folder:
        exceeded = starts(Path(folder), given.starts)
        server = LabellingServer(Path(folder) / "home")
        server.start()
        try:
            work = Work(server)
            work.push(given.records)
            exceeded += queries(work)
            exceeded += annotate_during_push(work, given.records)
        finally:
            server.stop()
    print(f"load after: {load()}")
    for line in exceeded:
        print(f"EXCEEDED: {line}")
    return int(bool(exceeded))


def load() -> str:
    return " ".join(f"{one:.1f}" for one in os.getloadavg())


def starts(folder: Path, rounds: int) -> list[str]:
    """Measure import, first start and later start in turn, so that other load affects all three."""
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
    exceeded = []
    print("\n| | median s | least s | x import |\n| --- | --- | --- | --- |")
    for kind, durations in seconds.items():
        ratio = statistics.median(durations) / base
        print(f"| {kind} | {statistics.median(durations):.2f} | {min(durations):.2f} | {ratio:.2f} |")
        exceeded += [f"{kind}: {ratio:.2f} x import"] * (ratio >= START_LIMIT)
    return exceeded


class Work:
    """A dataset of chats of four turns with two suggestions each and three kinds of metadata."""

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
    """Each kind of query as the page sends it: ten records with suggestions and the annotator's own answers."""
    kinds = {name: [] for name in build_queries(work.pushed)}
    path = f"/api/v1/me/{work.path}/records/search?include=responses&include=suggestions&limit={PAGE}"
    with Caller(work.server, work.server.annotator("reader")[2]) as caller:
        for _ in range(ROUNDS):
            for name, body in build_queries(work.pushed).items():
                began = time.perf_counter()
                caller.ask("POST", path, body)
                kinds[name].append(time.perf_counter() - began)
    exceeded = []
    print(f"\n| at {work.pushed:,} records | median ms | worst of {ROUNDS} |\n| --- | --- | --- |")
    for name, durations in kinds.items():
        median = statistics.median(durations)
        print(f"| {name} | {median * 1000:.0f} | {max(durations) * 1000:.0f} |")
        exceeded += [f"{name}: {median:.2f} s"] * (median >= QUERY_LIMIT)
    return exceeded


def build_queries(count: int) -> dict[str, dict]:
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


def annotate_during_push(work: Work, count: int) -> list[str]:
    """Six annotators search and submit repeatedly during a push of a quarter of the records."""
    annotators = [work.server.annotator(f"person-{number}") for number in range(ANNOTATORS)]
    over, durations, errors, answers = threading.Event(), [], [], []

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
                    durations.append(time.perf_counter() - began)
                    answers.append(done["item"]["id"])
                except Exception as error:
                    errors.append(repr(error))
                time.sleep(PAUSE)

    threads = [threading.Thread(target=annotate, args=(key, seed)) for seed, (_, _, key) in enumerate(annotators)]
    for thread in threads:
        thread.start()
    work.push(count // 4)
    over.set()
    for thread in threads:
        thread.join()
    kept = stored_answers(work)
    lost = len(set(answers) - kept)
    p50, p95 = statistics.median(durations), statistics.quantiles(durations, n=20)[-1]
    print(f"\n{ANNOTATORS} annotators, {PAUSE} s between answers: {len(durations)} answers, {len(errors)} errors, "
          f"{lost} lost; submit p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms")  # fmt: skip
    return (
        [f"errors: {errors[:3]}"] * bool(errors)
        + [f"{lost} answers lost"] * bool(lost)
        + [f"submit p95 {p95:.2f} s"] * (p95 >= SUBMIT_LIMIT)
    )


def stored_answers(work: Work) -> set[str]:
    ids: set[str] = set()
    for offset in range(0, work.pushed, 1000):
        page = work.server.ask("GET", f"{work.path}/records?include=responses&limit=1000&offset={offset}")["items"]
        ids |= {answer["id"] for record in page for answer in record["responses"]}
    return ids


class Caller:
    """A connection that stays open, like that of a browser."""

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
        content = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{answer.status}: {content[:300]!r}")
        return json.loads(content)


if __name__ == "__main__":
    sys.exit(main())
