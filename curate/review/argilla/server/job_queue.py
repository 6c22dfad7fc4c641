"""Argilla's background jobs in this process: a Redis in memory, and one thread that works off its queues.

Jobs are few: statuses after a changed dataset, exchanges with the Hugging Face hub, webhooks. The queue is lost with
the process, unless a real Redis keeps it; the statuses are set right at the next start (`healing`).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fakeredis
import redis
from rq import Queue, SimpleWorker
from rq.registry import ScheduledJobRegistry
from rq.timeouts import TimerDeathPenalty

_PAUSE = 0.5
"""Seconds between two looks at the queues."""

_PATIENCE = 5
"""Seconds that a running job is given when the server stops."""


@contextmanager
def redis_in_memory() -> Iterator[None]:
    """While argilla_server is imported inside, the Redis that it opens is one in this process."""
    opens, server = redis.from_url, fakeredis.FakeServer()

    def from_url(url: str, **options: Any) -> fakeredis.FakeStrictRedis:  # noqa: ARG001  the name that is replaced
        return fakeredis.FakeStrictRedis(server=server)

    redis.from_url = from_url
    try:
        yield
    finally:
        redis.from_url = opens


class _Worker(SimpleWorker):
    """Works in a thread, where signals can be neither caught nor sent."""

    death_penalty_class = TimerDeathPenalty

    def _install_signal_handlers(self) -> None:
        """Nothing: the signals belong to the server."""


class Jobs:
    """A thread that works off the queues until it is stopped."""

    def __init__(self, queues: list[Queue]) -> None:
        self._queues = queues
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        logging.getLogger("rq.worker").setLevel(logging.WARNING)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the job that runs, or without it when it takes too long."""
        self._stop.set()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        away = False
        while not self._stop.wait(_PAUSE):
            try:
                self._work()
            except redis.ConnectionError as error:  # one of another process can go away, and come back
                if not away:
                    print(f"Redis does not answer, jobs wait: {error}", file=sys.stderr, flush=True)
                away = True
            else:
                away = False

    def _work(self) -> None:
        for queue in self._queues:
            _requeue_due(queue)
        if any(queue.count for queue in self._queues):
            _Worker(self._queues, connection=self._queues[0].connection).work(burst=True, logging_level="WARNING")


def _requeue_due(queue: Queue) -> None:
    """Failed jobs wait for their retry in a registry, which rq's own scheduler, a process, would empty."""
    registry = ScheduledJobRegistry(queue=queue)
    for name in registry.get_jobs_to_schedule():
        job = queue.fetch_job(name)
        registry.remove(name)
        if job is not None:
            queue.enqueue_job(job)
