"""Packed conversations are blind for each other, and the check that says so would see it if they were not."""

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
    trainer, packed = trained(*arguments)
    collate = trainer.data_collator

    def without_borders(rows):
        batch = collate(rows)
        return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}

    trainer.data_collator = without_borders
    return trainer, packed

trained, found = packing_isolation._make_trainer, []
for packing_isolation._make_trainer in (trained, leaking):
    found.append(packing_isolation.check_isolation(TrainSection(model=sys.argv[1], engine="transformers")).as_json())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(sample):
    ran = subprocess.run(
        [sys.executable, "-P", "-c", CHECK, str(sample / "tiny")],
        capture_output=True, text=True, check=False, env=os.environ.copy(),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_changing_a_document_moves_no_other_and_packed_is_as_alone(found):
    packed, _ = found
    assert (packed["packed"], packed["isolated"], packed["dtype"]) == (True, True, "float32")
    assert [document["tokens"] for document in packed["documents"]] == [96, 80, 64, 48]
    assert {document["moved"] for document in packed["documents"]} == {0.0}
    assert all(abs(document["packed"] - document["alone"]) < 1e-5 for document in packed["documents"])
    assert packed["moved_when_joined"] > 1e-3


@pytest.mark.slow
def test_documents_that_see_each_other_are_found_out(found):
    _, leaking = found
    assert not leaking["isolated"]
    assert max(document["moved"] for document in leaking["documents"]) > 1e-3
    assert leaking["documents"][0]["moved"] == 0.0  # nothing stands before the first


@pytest.mark.slow
def test_the_command_says_that_unsloth_does_not_pack_without_a_gpu(curate, sample):
    ran = curate("check-packing", str(sample / "tiny"), "--engine", "unsloth")
    assert ran.returncode == 0, ran.stderr
    assert "trained one conversation a sequence here, so none can see another" in ran.stdout


def test_a_model_that_is_not_there_is_explained(curate):
    ran = curate("check-packing", "nowhere")
    assert ran.returncode == 1
    assert "There is no model folder at nowhere" in ran.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["unsloth", "transformers"])
def test_on_a_card_both_engines_pack_and_nothing_is_seen(curate, sample, engine):
    ran = curate("check-packing", str(sample / "tiny"), "--engine", engine, "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    isolation = json.loads(ran.stdout)
    assert (isolation["packed"], isolation["isolated"], isolation["device"]) == (True, True, "cuda")
    assert max(document["moved"] for document in isolation["documents"]) <= isolation["unmoved"]
