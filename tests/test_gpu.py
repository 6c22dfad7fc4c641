"""On a CUDA device: QLoRA is packed, learns, and the same training gives the same adapter, bit for bit."""

import pytest
from training import make_project, train

from schemas.run import read_manifest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("engine", ["unsloth", "transformers"])
def test_qlora_on_a_gpu_is_packed_learns_and_repeats_bit_for_bit(engine, tmp_path):
    folder = make_project(tmp_path / "project").parent
    options = ("--engine", engine, "--set=train.method=qlora")
    for name in ("first", "again"):
        train(folder, *options, "--fresh", "--to", str(folder / name))
    manifest = read_manifest(folder / "first")
    assert manifest.machine.device == "cuda"
    assert manifest.engine["method"] == "qlora"
    assert manifest.engine["packing"]
    assert manifest.metrics["eval_loss"] < manifest.metrics["eval_loss_base"]
    assert manifest.adapter_digest == read_manifest(folder / "again").adapter_digest
