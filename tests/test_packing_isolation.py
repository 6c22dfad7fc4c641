"""Packed conversations do not attend to each other, and the check detects a model in which they do."""

import json
import os
import subprocess
import sys

import pytest

CHECK = """
import json, sys, torch
from train.engines import packing_isolation
from schemas.recipe import TrainSection

def leaking(*arguments):
    trainer, packed = original(*arguments)
    collate = trainer.data_collator

    def without_borders(rows):
        batch = collate(rows)
        return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}

    trainer.data_collator = without_borders
    return trainer, packed

original, results = packing_isolation._make_trainer, []
for packing_isolation._make_trainer in (original, leaking):
    results.append(packing_isolation.check_isolation(TrainSection(model=sys.argv[1], engine="transformers")).as_json())
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(sample):
    ran = subprocess.run(
        [sys.executable, "-P", "-c", CHECK, str(sample / "tiny")],
        capture_output=True, text=True, check=False, env=os.environ.copy(),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_changing_a_document_changes_no_other_loss_and_packed_losses_equal_single_ones(results):
    packed, _ = results
    assert (packed["packed"], packed["isolated"], packed["dtype"]) == (True, True, "float32")
    assert [document["tokens"] for document in packed["documents"]] == [96, 80, 64, 48]
    assert {document["moved"] for document in packed["documents"]} == {0.0}
    assert all(abs(document["packed"] - document["alone"]) < 1e-5 for document in packed["documents"])
    assert packed["moved_when_joined"] > 1e-3


@pytest.mark.slow
def test_documents_that_attend_to_each_other_are_detected(results):
    _, leaking = results
    assert not leaking["isolated"]
    assert max(document["moved"] for document in leaking["documents"]) > 1e-3
    assert leaking["documents"][0]["moved"] == 0.0  # no document precedes the first


@pytest.mark.slow
def test_the_command_reports_that_unsloth_does_not_pack_without_a_gpu(curate, sample):
    ran = curate("check-packing", str(sample / "tiny"), "--engine", "unsloth")
    assert ran.returncode == 0, ran.stderr
    assert "packing is off; conversations are trained in separate rows" in ran.stdout


def test_a_missing_model_is_an_error(curate):
    ran = curate("check-packing", "nowhere")
    assert ran.returncode == 1
    assert "There is no model folder at nowhere" in ran.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["unsloth", "transformers"])
def test_on_a_gpu_both_engines_pack_without_leaks(curate, sample, engine):
    ran = curate("check-packing", str(sample / "tiny"), "--engine", engine, "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    isolation = json.loads(ran.stdout)
    assert (isolation["packed"], isolation["isolated"], isolation["device"]) == (True, True, "cuda")
    assert max(document["moved"] for document in isolation["documents"]) <= isolation["unmoved"]
