"""Argilla's background jobs → run by one thread of this process, from a Redis in memory unless an external one is set.

Jobs are rare: statuses after a changed dataset, transfers with the Hugging Face hub, webhooks. The queue in memory is
lost with the process; statuses are corrected at the next start (`repair`).
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

_POLL_SECONDS = 0.5
_STOP_SECONDS = 5
"""Time for a running job when the server stops."""


@contextmanager
def redis_in_memory() -> Iterator[None]:
    """Import argilla_server inside this block, so that it connects to a Redis in this process."""
    original, server = redis.from_url, fakeredis.FakeServer()

    def from_url(url: str, **options: Any) -> fakeredis.FakeStrictRedis:  # noqa: ARG001  the replaced signature
        return fakeredis.FakeStrictRedis(server=server)

    redis.from_url = from_url
    try:
        yield
    finally:
        redis.from_url = original


class _ThreadWorker(SimpleWorker):
    """A worker in a thread, where signals can be neither handled nor sent."""

    death_penalty_class = TimerDeathPenalty

    def _install_signal_handlers(self) -> None:
        """Leave the signals to the server."""


class JobWorker:
    """A thread that runs the jobs of some queues until it is stopped."""

    def __init__(self, queues: list[Queue]) -> None:
        self._queues = queues
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        logging.getLogger("rq.worker").setLevel(logging.WARNING)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the running job, or without waiting for it if it takes too long."""
        self._stop.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        disconnected = False
        while not self._stop.wait(_POLL_SECONDS):
            try:
                self._run_jobs()
            except redis.ConnectionError as error:  # an external Redis may be restarted
                if not disconnected:
                    print(f"Redis does not answer, jobs wait: {error}", file=sys.stderr, flush=True)
                disconnected = True
            else:
                disconnected = False

    def _run_jobs(self) -> None:
        for queue in self._queues:
            _requeue_due(queue)
        if any(queue.count for queue in self._queues):
            worker = _ThreadWorker(self._queues, connection=self._queues[0].connection)
            worker.work(burst=True, logging_level="WARNING")


def _requeue_due(queue: Queue) -> None:
    """Queue failed jobs again when they are due. rq's own scheduler does this in a separate process."""
    registry = ScheduledJobRegistry(queue=queue)
    for name in registry.get_jobs_to_schedule():
        job = queue.fetch_job(name)
        registry.remove(name)
        if job is not None:
            queue.enqueue_job(job)
