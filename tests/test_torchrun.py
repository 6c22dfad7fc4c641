"""Several processes: they train on the sequences of one, in its order, and stop and resume together."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import polars as pl
import pytest
from support.training import SETTINGS, command, make_project, section, train

from schemas.errors import TrainError
from schemas.manifest import read_manifest
from schemas.run import read_runs
from schemas.store import reading
from train.model.checkpoints import newest_complete
from train.runs.fit import prepare_run
from train.runs.torchrun import Processes, join_training, make_processes
from train.runs.verify import verify

pytestmark = pytest.mark.slow

REFERENCE = ("--engine", "transformers", "--set=train.max_length=128", "--set=train.eval_every=4")
TWO = ("--set=train.batch=2", "--set=train.effective_batch=4", "--gpus", "2", "--to", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project with the same training by one process and by two, which were interrupted."""
    folder = make_project(tmp_path_factory.mktemp("project")).parent
    (folder / "one").mkdir()  # --to accepts an empty folder
    train(folder, *REFERENCE, "--to", "one")
    interrupt(folder, steps=5)
    train(folder, *REFERENCE, *TWO)
    return folder


def interrupt(folder, steps):
    """Start the run with two processes and send Ctrl-C to the command after some steps."""
    metrics = folder / "two.partial/metrics.jsonl"
    process = subprocess.Popen(
        command("train", "support@1", *SETTINGS, *REFERENCE, *TWO), cwd=folder, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 180
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < steps:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "run the same command again to resume it" in stderr
    done = metrics.read_bytes().count(b"\n")
    assert newest_complete(folder / "two.partial/checkpoints").name == f"checkpoint-{done}"


def metrics(folder, name):
    return pl.read_ndjson(folder / name / "metrics.jsonl")


def test_the_transformers_engine_trains_with_the_same_command(folder):
    run = read_manifest(folder / "one")
    assert run.metrics["eval_loss"] < run.metrics["eval_loss_base"] - 1
    assert run.engine["packing"] is True
    assert run.engine["sequences"] < run.tokens.conversations
    assert (folder / "one/adapter_model.safetensors").exists()


def test_two_interrupted_processes_have_the_loss_curve_of_one(folder):
    one, two = metrics(folder, "one"), metrics(folder, "two")
    assert two["step"].to_list() == one["step"].to_list() == list(range(1, 17))
    assert two["loss"].to_list() == pytest.approx(one["loss"].to_list(), abs=2e-4)
    held_out = one["eval_loss"].drop_nulls().to_list()
    assert two["eval_loss"].drop_nulls().to_list() == pytest.approx(held_out, abs=2e-4)
    packs = read_manifest(folder / "one").engine["sequences"]
    assert packs % 4, "the last step of an epoch has to be short, or filler is not tried"
    assert 2 * packs < 16 * 4, "there have to be several epochs, or the second shuffle is not tried"
    counts = [pl.read_parquet(folder / name / "ledger.parquet")["epoch_count"] for name in ("one", "two")]
    assert counts[0].equals(counts[1])
    assert set(counts[0].drop_nulls()) == {8}  # filler is not counted


def test_the_manifest_records_the_processes_and_the_adapter_is_verified(folder):
    one, two = read_manifest(folder / "one"), read_manifest(folder / "two")
    assert (two.machine.gpus, two.machine.sharding) == (2, "ddp")
    assert (two.engine["batch"], two.engine["accumulate"]) == (2, 1)
    assert (two.tokens, two.data) == (one.tokens, one.data)
    assert verify(folder / "curate.duckdb", str(folder / "two")).verified
    with reading(folder / "curate.duckdb") as connection:
        assert [run.status for run in read_runs(connection)] == ["done", "done"]
    assert not (folder / "two.partial").exists()


def test_each_sequence_is_used_once_in_the_order_of_one_process(monkeypatch):
    from accelerate.data_loader import SeedableRandomSampler

    from train.engines.sampler import SamplerWithFiller

    plain = SeedableRandomSampler(range(10), data_seed=3)
    padded = SamplerWithFiller(SeedableRandomSampler(range(10), data_seed=3), filler=2)
    for epoch in range(3):
        plain.set_epoch(epoch)
        padded.set_epoch(epoch)
        assert list(padded) == [*plain, 10, 11]
    assert len(padded) == 12


def test_impossible_process_counts_are_errors_before_the_version_is_read(folder, monkeypatch):
    monkeypatch.chdir(folder)
    store = folder / "curate.duckdb"
    with pytest.raises(TrainError, match="engine unsloth trains with one process on a CPU"):
        prepare_run(store, "support@1", section(), processes=Processes(2))
    with pytest.raises(TrainError, match="4 packs per step cannot be divided among 3 GPUs"):
        prepare_run(store, "support@1", section(engine="transformers"), processes=Processes(3))
    with pytest.raises(TrainError, match="no sharding called 'zero3'"):
        make_processes(2, "zero3")
    with pytest.raises(TrainError, match="requires --master HOST:PORT"):
        make_processes(2, "ddp", nodes=2)
    with pytest.raises(TrainError, match="--node 2 is out of range for --nodes 2"):
        make_processes(2, "ddp", nodes=2, node=2, master="host:1")
    with pytest.raises(TrainError, match="needs the folder of the run"):
        join_training(None, Processes(nodes=2, node=1, master="host:1"))


def test_two_machines_train_together_and_only_the_first_has_a_store(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = (
        "--set=train.batch=2",
        "--set=train.effective_batch=4",
        "--nodes",
        "2",
        "--master",
        f"127.0.0.1:{port}",
        "--to",
    )
    other = tmp_path / "other machine"
    other.mkdir()
    (other / "tiny").symlink_to(folder / "tiny")
    joining = subprocess.Popen(
        command("train", "support@1", *SETTINGS, *REFERENCE, *shared, str(folder / "nodes"), "--node", "1"),
        cwd=other,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        train(folder, *REFERENCE, *shared, str(folder / "nodes"))
        _, stderr = joining.communicate(timeout=60)
    finally:
        joining.kill()
    assert joining.returncode == 0, stderr
    assert [path.name for path in other.iterdir()] == ["tiny"]
    assert metrics(folder, "nodes")["loss"].to_list() == pytest.approx(
        metrics(folder, "one")["loss"].to_list(), abs=2e-4
    )
    assert read_manifest(folder / "nodes").machine.gpus == 2


def test_two_processes_fine_tune_all_weights(folder):
    short = ("--set=train.steps=3", "--set=train.method=full", "--set=train.batch=2", "--set=train.effective_batch=4")
    run = train(folder, *REFERENCE, *short, "--gpus", "2", "--to", "full")
    metrics = run["manifest"]["metrics"]
    assert metrics["eval_loss_base"] == pytest.approx(read_manifest(folder / "one").metrics["eval_loss_base"], abs=2e-4)
    assert metrics["eval_loss"] < metrics["eval_loss_base"]


FAIL_IN_STEP = """
import os, signal
if os.environ.get("RANK") == "1":
    from schemas.errors import TrainError
    from train.engines import distributed
    total, steps = distributed.all_reduce_sum, []
    def failing_total(values, device):
        steps.append(len(values))
        if len(steps) == 4:
            {failure}
        return total(values, device)
    distributed.all_reduce_sum = failing_total
"""
"""Loaded at the start of every Python: the second process fails within a step while the first one waits for it."""


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("raise TrainError('The lamp is too hot.', 'Wait.')", "The lamp is too hot."),
        ("raise RuntimeError('no such lamp')", "Process 1 failed: RuntimeError: no such lamp"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "training.log"),
    ],
)
def test_the_first_failure_of_several_processes_is_reported(failure, message, folder, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FAIL_IN_STEP.format(failure=failure))
    ran = subprocess.run(
        command("train", "support@1", *SETTINGS, *REFERENCE, *TWO[:-1], str(tmp_path / "x")),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "to resume it" not in ran.stderr
    with reading(folder / "curate.duckdb") as connection:
        assert read_runs(connection)[-1].status == "failed"


RUN_OUT_OF_MEMORY = """
import json, os, sys
from pathlib import Path
if os.environ.get("RANK") == "1" and json.loads(Path(sys.argv[1], "job.json").read_text())["size"] is None:
    import torch
    from train.engines import distributed
    total, steps = distributed.all_reduce_sum, []
    def full_total(values, device):
        steps.append(len(values))
        if len(steps) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return total(values, device)
    distributed.all_reduce_sum = full_total
"""
"""Loaded at the start of every Python: the second process, with the batch size of the recipe, runs out of memory after
five sums over both processes: one per step, whether to stop, and that of the held-out loss after the fourth step."""


def test_processes_that_run_out_of_memory_restart_once_with_a_smaller_batch(folder, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(RUN_OUT_OF_MEMORY)
    before = set(Path(tempfile.gettempdir()).glob("torchelastic_*"))
    ran = subprocess.run(
        command("train", "support@1", *SETTINGS, *REFERENCE, *TWO[:-1], "full-memory", "--json"),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("ran out of memory") == 1
    facts = json.loads(ran.stdout)["manifest"]["engine"]
    (step_down,) = facts["steps_down"]
    assert (step_down["batch"], step_down["accumulate"]) == (facts["batch"], facts["accumulate"]) == (1, 2)
    assert "Resuming run r" in ran.stderr
    one, two = metrics(folder, "one"), metrics(folder, "full-memory")
    assert two["step"].to_list() == one["step"].to_list()
    assert two["loss"].to_list() == pytest.approx(one["loss"].to_list(), abs=2e-4)
    assert set(Path(tempfile.gettempdir()).glob("torchelastic_*")) == before
