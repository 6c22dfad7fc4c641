"""Errors of the libraries that load weights → a `TrainError` that names the folder; a full disk or memory stays one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.atomic import DISK_FULL
from schemas.errors import CurateError, TrainError


@contextmanager
def wrap_load_errors(folder: Path, hint: str | None = None) -> Iterator[None]:
    """Inside, an error of a library becomes a `TrainError` that names `folder`, with `hint` or a common one."""
    import torch

    try:
        yield
    except (CurateError, MemoryError):
        raise
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"The GPU has not enough memory for the model in {folder}: {_describe(error)}.",
            "Close other programs that use the GPU (nvidia-smi lists them), or use a smaller model.",
        ) from error
    except Exception as error:  # settings and weights of a model can make the libraries raise any type
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise TrainError(
            f"The weights in {folder} cannot be loaded: {_describe(error)}.",
            hint or "--debug shows the traceback. If other models load, download or save this one again.",
        ) from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].rstrip(".: ")
