"""Errors while weights are loaded: damaged files name the folder; a full memory or disk is not called damage."""

import errno

import pytest
import torch

from schemas.errors import TrainError
from train.model.load_errors import wrap_load_errors


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()], ids=repr
)
def test_a_full_memory_or_disk_keeps_its_own_error(tmp_path, error):
    with pytest.raises(type(error)) as caught, wrap_load_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_full_gpu_is_not_called_damage(tmp_path):
    with pytest.raises(TrainError, match="GPU has not enough memory") as caught, wrap_load_errors(tmp_path, "verify"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    assert caught.value.what.endswith(": OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.")
    assert "smaller model" in caught.value.hint


@pytest.mark.parametrize("hint", [None, "curate verify r1"])
def test_another_error_names_the_folder_its_type_and_its_first_line(tmp_path, hint):
    with pytest.raises(TrainError) as caught, wrap_load_errors(tmp_path, hint):
        raise KeyError("rope\nmore")
    assert caught.value.what == f"The weights in {tmp_path} cannot be loaded: KeyError: 'rope\\nmore'."
    assert caught.value.hint.startswith(hint or "--debug shows the traceback")
