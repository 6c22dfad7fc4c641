"""In: work that is pure Python, in parcels of bytes. Out: what several processes make of them, in the same order.

The processes are started by name and spoken to through pipes, not by `multiprocessing`: a fork would take Polars'
locked threads along, and its spawned processes run the caller's own renderer again. They end when their input does,
so also with a caller that is killed.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from queue import SimpleQueue
from typing import IO, Any

Work = Callable[[bytes], bytes]

Parcel = Callable[[], bytes]
"""Makes a parcel when its turn comes: all of them at once would be the whole data a second time."""

SIZE = 8
"""Bytes in which the length of a parcel is told before it."""


def spread(make: Callable[..., Work], arguments: tuple[Any, ...], parcels: Iterable[Parcel], n: int) -> Iterator[bytes]:
    """`make(*arguments)` is called in each of `n` processes; what it returns turns one parcel into another.

    `make` is a function of a module and `arguments` can be pickled. Raises `RuntimeError` when a process ends early;
    why stands on stderr.
    """
    setup = pickle.dumps((make, arguments))
    idle: SimpleQueue[_Helper] = SimpleQueue()

    def ask(parcel: Parcel) -> bytes:
        helper = idle.get()
        try:
            return helper.ask(parcel())
        finally:
            idle.put(helper)

    with ExitStack() as stack:
        for _ in range(n):
            idle.put(stack.enter_context(closing(_Helper(setup))))
        yield from stack.enter_context(ThreadPoolExecutor(n)).map(ask, parcels)


class _Helper:
    """One process, and a pipe to and from it."""

    def __init__(self, setup: bytes) -> None:
        command = [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"]
        alone = {"TOKENIZERS_PARALLELISM": "false", "POLARS_MAX_THREADS": "1"}  # each is one of many
        there = os.environ | alone | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(command, env=there, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.setup: bytes | None = setup

    def send(self, parcel: bytes) -> None:
        assert self.process.stdin is not None
        try:
            _write(self.process.stdin, parcel)
        except BrokenPipeError as error:
            raise RuntimeError("A process that helps ended early.") from error

    def ask(self, parcel: bytes) -> bytes:
        if self.setup is not None:  # sent here and not at the start, so that all of them start at once
            self.send(self.setup)
            self.setup = None
        self.send(parcel)
        assert self.process.stdout is not None
        answer = _read(self.process.stdout)
        if answer is None:
            raise RuntimeError("A process that helps ended early.")
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def serve() -> None:
    """The other end: read how to work, then parcels, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started it answers Ctrl-C
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    questions = sys.stdin.buffer
    setup = _read(questions)
    if setup is None:
        return
    make, arguments = pickle.loads(setup)
    work: Work = make(*arguments)
    while (parcel := _read(questions)) is not None:
        try:
            _write(answers, work(parcel))
        except BrokenPipeError:
            return


def _write(pipe: IO[bytes], parcel: bytes) -> None:
    pipe.write(len(parcel).to_bytes(SIZE, "big"))
    pipe.write(parcel)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    size = pipe.read(SIZE)
    return pipe.read(int.from_bytes(size, "big")) if len(size) == SIZE else None
