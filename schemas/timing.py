"""A step of a library → its seconds in the log, which --verbose prints."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def timed(step: str, *values: object) -> Iterator[None]:
    """Log how long the block, or the decorated function, took; `values` are formatted into `step` with %.

    >>> with timed("reading %s", "a.csv"):
    ...     pass
    """
    start = time.perf_counter()
    yield
    logger.debug(f"{step}: %.3f s", *values, time.perf_counter() - start)
