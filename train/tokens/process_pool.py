"""A function and values → its results from several processes, in the same order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

CHILD_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false", "POLARS_MAX_THREADS": "1"}
"""Modules in the current folder do not shadow installed ones, and each process uses one core."""

_function: Callable[[Any], Any] | None = None
"""In a child process: the function that `process_map` calls."""


def process_map(
    make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...], values: Iterable[Any], processes: int
) -> Iterator[Any]:
    """Call `make(*arguments)` once in each process, and the function it returns with each of `values`.

    Processes are spawned, since a fork would copy locks held by threads of Polars; a script that calls this needs the
    usual `if __name__ == "__main__"`. Raises what the function raises, and `BrokenProcessPool` if a process is killed.
    """
    with _child_environment():
        pool = ProcessPoolExecutor(processes, get_context("spawn"), _initialize, (make, arguments))
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it: we handle Ctrl-C
        try:
            results = pool.map(_call, values)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    with pool:
        yield from results


@contextmanager
def _child_environment() -> Iterator[None]:
    previous = {name: os.environ.get(name) for name in CHILD_ENVIRONMENT}
    os.environ.update(CHILD_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _initialize(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _function  # noqa: PLW0603
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _function = make(*arguments)


def _exit_with_parent() -> None:
    """End this process if the parent is killed; the pool would wait for more work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(value: Any) -> Any:
    assert _function is not None
    return _function(value)
