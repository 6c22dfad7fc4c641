"""Templates are programs of others: time, memory and output of a rendering, and the size of its numbers, are limited.

The sandbox denies access to Python, but loops, recursion and repetition need nothing else to fill a memory. A timer
interrupts Python code, an operating system limit ends allocations, and large numbers, which neither would interrupt,
are refused.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError

from schemas.errors import TrainError

SECONDS = 5.0
"""Of a rendering. Long conversations take milliseconds."""

MEMORY = 1 << 30
"""Bytes that renderings may allocate."""

CHARACTERS = 32 << 20
"""Of a rendered text. A conversation has at most a million."""

TEMPLATE_CHARACTERS = 1 << 20
"""Of a template; the longest of the common ones have 20,000."""

LARGEST_NUMBER = 10_000
"""Bits of a product or power."""

_HINT = "Correct the template, or use another one with --template."


class _Clock:
    """When the current rendering of this process began; 0 between renderings."""

    started = 0.0
    is_limited = False


def limit_rendering(name: str, render: Callable[..., str]) -> Callable[..., str]:
    """The function `render` of the template called `name`; it raises `TrainError` beyond a limit.

    Endless recursion is jinja2's `TemplateError`, as the data may cause it.
    """

    @wraps(render)
    def limited(*arguments: Any, **variables: Any) -> str:
        with limit_template(name):
            text = render(*arguments, **variables)
        if len(text) > CHARACTERS:
            raise TrainError(
                f"The template {name} renders a conversation as {len(text):,} characters; the maximum is "
                f"{CHARACTERS:,}.",
                _HINT,
            )
        return text

    return limited


@contextmanager
def limit_template(name: str) -> Iterator[None]:
    """Limit one rendering, or the compilation, which evaluates constants; raises errors like `limit_rendering`."""
    with render_limits():
        _Clock.started = time.monotonic()
        try:
            yield
        except RecursionError as error:
            raise TemplateError("it calls itself too often, or is nested too deep") from error
        except MemoryError as error:
            raise TrainError(f"The template {name} needs more than {MEMORY:,} bytes of memory.", _HINT) from error
        except _TimeOutError as error:
            what = f"The template {name} takes more than {SECONDS:.0f} s for a conversation."
            raise TrainError(what, _HINT) from error
        finally:
            _Clock.started = 0.0


@contextmanager
def render_limits() -> Iterator[None]:
    """Limit renderings in this block; nested blocks cost nothing. Time is limited in the main thread only.

    It is not limited if code in C handles the signal of the timer.
    """
    if _Clock.is_limited:
        yield
        return
    _Clock.is_limited = True
    try:
        with _memory_limit(), _timer():
            yield
    finally:
        _Clock.is_limited = False


@contextmanager
def _memory_limit() -> Iterator[None]:
    """Limit the address space of this process to its present size and `MEMORY`, where the system has such a limit."""
    pages = _pages()
    if pages is None:
        yield
        return
    import resource  # missing on Windows

    size = pages * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = size + MEMORY
    if soft == resource.RLIM_INFINITY or soft > bound:
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _pages() -> int | None:
    """The size of this process's address space in pages; None where the system does not report it."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return None


class _TimeOutError(BaseException):
    """A rendering took too long; not an `Exception`, which Jinja catches while it folds constants."""


@contextmanager
def _timer() -> Iterator[None]:
    """Check the time of a rendering regularly; afterwards, a timer that another library had set continues."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    handler = signal.getsignal(signal.SIGALRM)
    if handler is None:  # installed by code in C: Python could not restore it
        yield
        return
    start, (left, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, _check_time)
    signal.setitimer(signal.ITIMER_REAL, SECONDS / 5, SECONDS / 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # one that ended meanwhile fires at once
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-6), interval)


def _check_time(_signal: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _Clock.started and now - _Clock.started > SECONDS:
        _Clock.started = now  # not again while this error leaves the rendering: a second one would skip its clean-up
        raise _TimeOutError


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Raise `TemplateError` for a product or power of numbers that takes long to compute."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > LARGEST_NUMBER:
            raise TemplateError(f"a number of more than {LARGEST_NUMBER:,} bits is computed")
