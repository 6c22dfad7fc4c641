"""Keeps what the training libraries print, log and warn out of our own lines, and in a file."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")


@contextmanager
def quiet(log: Path = Path(os.devnull)) -> Iterator[None]:
    """Inside, whatever libraries say goes to the end of `log`; stdout stays free for results.

    The variables are read when the libraries are imported, so it has to stand around the first import.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for switch in BARS:
        os.environ.setdefault(switch, "1")
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(message, file=file)
        root, handler = logging.getLogger(), logging.StreamHandler(file)
        root.addHandler(handler)  # with one there, a library's basicConfig adds none that writes to stderr
        try:
            yield
        finally:
            root.removeHandler(handler)
