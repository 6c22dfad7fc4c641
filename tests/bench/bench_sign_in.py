"""Response times of signed-in requests while eight threads send wrong passwords to the labelling server.

    python tests/bench/bench_sign_in.py [--seconds 20]

Limit: the median of a signed-in request is below 200 ms. The exit code is 1 if it is exceeded.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.argilla_server import LabellingServer

THREADS, LIMIT = 8, 0.2


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = LabellingServer(Path(folder) / "home")
        server.start()
        try:
            _, _, key = server.annotator("ann")
            print(f"load {os.getloadavg()[0]:.1f}; without wrong passwords: {show(measure(server, key, 5))}")
            medians = [
                under_attack(server, key, given.seconds, "from one address", lambda number, _: f"10.0.0.{number}"),
                under_attack(
                    server,
                    key,
                    given.seconds,
                    "from a new address each",
                    lambda number, each: f"10.{number}.{each >> 8 & 255}.{each & 255}",
                ),
            ]
        finally:
            server.stop()
    return int(max(medians) > LIMIT)


def under_attack(server, key, seconds, title, address) -> float:
    stop, statuses = threading.Event(), Counter()

    def attack(number: int) -> None:
        each = 0
        while not stop.is_set():
            each += 1
            statuses[try_password(server, address(number, each))] += 1

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    times = measure(server, key, seconds)
    stop.set()
    for thread in threads:
        thread.join()
    print(f"{THREADS} threads with wrong passwords {title}: {show(times)}; their answers: {dict(statuses)}")
    return statistics.median(times)


def try_password(server, address: str) -> int:
    headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Forwarded-For": address}
    with closing(HTTPConnection(urlsplit(server.url).netloc, timeout=120)) as connection:
        connection.request("POST", "/api/v1/token", urlencode({"username": "ann", "password": "wrong"}), headers)
        return connection.getresponse().status


def measure(server, key: str, seconds: float) -> list[float]:
    times, end = [], time.monotonic() + seconds
    with closing(HTTPConnection(urlsplit(server.url).netloc, timeout=120)) as connection:
        while time.monotonic() < end:
            start = time.monotonic()
            connection.request("GET", "/api/v1/me", headers={"X-Argilla-Api-Key": key})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            times.append(time.monotonic() - start)
            time.sleep(0.05)
    return times


def show(times: list[float]) -> str:
    p95 = statistics.quantiles(times, n=20)[-1]
    return f"median {statistics.median(times) * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms of {len(times)}"


if __name__ == "__main__":
    sys.exit(main())
