"""Output, logs and warnings of the training libraries → a log file, away from the output of commands."""

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
    """Inside, output of libraries is appended to `log`, and stdout is left to results.

    Must enclose the first import of the libraries, because they read the environment variables then.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for variable in BARS:
        os.environ.setdefault(variable, "1")
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(message, file=file)
        root, handler = logging.getLogger(), logging.StreamHandler(file)
        root.addHandler(handler)  # otherwise a library's basicConfig adds one for stderr
        try:
            yield
        finally:
            root.removeHandler(handler)
