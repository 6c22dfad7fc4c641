"""Resuming: a killed, interrupted or failed run ends with the same adapter as an uninterrupted one."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from support.training import SETTINGS, command, copy_project, make_project, section, train

from curate.status import read_status
from schemas.errors import TrainError
from schemas.run import read_runs
from schemas.store import reading, writing
from train import engines
from train.model.checkpoints import is_complete, mark_complete, newest_complete
from train.runs import fit as fitting
from train.runs.fit import train_version

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path, monkeypatch):
    store = make_project(tmp_path / "project")
    monkeypatch.chdir(store.parent)
    return store


def runs_of(store):
    with reading(store) as connection:
        return read_runs(connection)


def kill_after(folder, steps, number=signal.SIGKILL):
    """Start `curate train` and send it a signal after `steps` steps; its exit code and stderr."""
    process = subprocess.Popen(
        command("train", "support@1", *SETTINGS),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "adapters/r1.partial/metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < steps:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, number)
    _, stderr = process.communicate()
    return process.returncode, stderr


def test_a_killed_and_interrupted_run_ends_with_the_adapter_of_an_uninterrupted_one(project, trained):
    folder = project.parent
    kill_after(folder, 7)
    (run,) = runs_of(project)
    assert run.status == "interrupted"
    assert not run.adapter.exists()
    checkpoints = folder / "adapters/r1.partial/checkpoints"
    first, *later = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert is_complete(first)
    for checkpoint in later:  # as if the process had been killed while it wrote them
        weights = checkpoint / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    code, stderr = kill_after(folder, 10, signal.SIGINT)
    assert code == 130
    assert "Resuming run r1 from step 3." in stderr
    assert "run the same command again to resume it" in stderr
    done = (folder / "adapters/r1.partial/metrics.jsonl").read_text().count("\n")
    assert newest_complete(checkpoints).name == f"checkpoint-{done}"
    resumed = train(folder, "--resume")
    uninterrupted = json.loads((trained / "adapters/r1/manifest.json").read_text())
    assert resumed["run"] == "r1"
    assert resumed["manifest"]["adapter_digest"] == uninterrupted["adapter_digest"]
    losses = [
        [json.loads(line)["loss"] for line in (where / "adapters/r1/metrics.jsonl").read_text().splitlines()]
        for where in (folder, trained)
    ]
    assert losses[0] == losses[1]
    assert [(run.run, run.status) for run in runs_of(project)] == [("r1", "done")]
    assert not (folder / "adapters/r1.partial").exists()
    ledgers = [(where / "adapters/r1/ledger.parquet").read_bytes() for where in (folder, trained)]
    assert ledgers[0] == ledgers[1]


def test_a_checkpoint_is_used_only_if_each_of_its_files_is_complete(tmp_path):
    for step in (5, 10):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "optimizer.pt").write_bytes(b"state")
        mark_complete(checkpoint)
    unmarked = tmp_path / "checkpoint-15"
    unmarked.mkdir()
    (unmarked / "optimizer.pt").write_bytes(b"state")
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not unmarked.exists()
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"stat")
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-5"
    (tmp_path / "checkpoint-5" / "optimizer.pt").unlink()
    assert newest_complete(tmp_path) is None


def test_a_checkpoint_with_a_damaged_shard_in_a_subfolder_is_not_complete(tmp_path):
    shard = tmp_path / "checkpoint-5" / "optimizer_0" / "__0_0.distcp"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"state")
    mark_complete(tmp_path / "checkpoint-5")
    assert is_complete(tmp_path / "checkpoint-5")
    shard.write_bytes(b"")
    assert not is_complete(tmp_path / "checkpoint-5")


def use_load(monkeypatch, load):
    """Replace the function `load` of the engine unsloth."""
    monkeypatch.setitem(engines.ENGINES, "unsloth", replace(engines.ENGINES["unsloth"], load=load))


def fails_with(error):
    def load(job):
        raise error

    return load


def test_a_failed_run_is_recorded_with_its_reason_and_can_be_resumed(project, monkeypatch):
    use_load(monkeypatch, fails_with(RuntimeError("the disk is full\nand more")))
    with pytest.raises(TrainError, match=r"^Run r1 failed: RuntimeError: the disk is full\.$"):
        train_version(project, "support@1", section())
    (run,) = runs_of(project)
    assert (run.status, run.manifest.failure) == ("failed", "RuntimeError: the disk is full")
    with pytest.raises(TrainError):
        train_version(project, "support@1", section())
    assert [run.run for run in runs_of(project)] == ["r1"]


def test_a_failed_run_does_not_block_its_folder_for_another_recipe(project, monkeypatch):
    use_load(monkeypatch, fails_with(RuntimeError("no such lamp")))
    for run, rate in (("r1", 5e-3), ("r2", 3e-3)):
        with pytest.raises(TrainError, match=f"Run {run} failed: RuntimeError: no such lamp"):
            train_version(project, "support@1", section(learning_rate=rate), to=project.parent / "mine")


def test_checkpoints_of_a_failed_run_are_removed_only_by_fresh(project, monkeypatch):
    use_load(monkeypatch, fails_with(RuntimeError("no such lamp")))
    with pytest.raises(TrainError, match="Run r1 failed"):
        train_version(project, "support@1", section(), to=project.parent / "mine")
    checkpoint = project.parent / "mine.partial/checkpoints/checkpoint-8"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.bin").write_bytes(b"weights")
    mark_complete(checkpoint)
    with pytest.raises(TrainError, match=r"mine\.partial has complete checkpoints of run r1") as caught:
        train_version(project, "support@1", section(seed=1), to=project.parent / "mine")
    assert "--fresh" in caught.value.hint
    assert is_complete(checkpoint)
    with pytest.raises(TrainError, match="Run r2 failed"):
        train_version(project, "support@1", section(seed=1), to=project.parent / "mine", start="fresh")
    assert not checkpoint.exists()


def test_a_full_disk_is_reported_as_such(project, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    use_load(monkeypatch, fails_with(full))
    with pytest.raises(TrainError, match=r"^The disk of .*r1\.partial is full: OSError") as caught:
        train_version(project, "support@1", section())
    assert "resumes at the last complete checkpoint" in caught.value.hint


def test_an_interruption_is_not_recorded_as_a_failure(project, monkeypatch):
    use_load(monkeypatch, fails_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train_version(project, "support@1", section())
    assert [run.status for run in runs_of(project)] == ["interrupted"]


def test_fresh_or_another_recipe_begins_a_new_run(project, monkeypatch):
    use_load(monkeypatch, fails_with(KeyboardInterrupt()))
    for recipe, start in ((section(), "auto"), (section(), "fresh"), (section(seed=1), "auto"), (section(), "resume")):
        with pytest.raises(KeyboardInterrupt):
            train_version(project, "support@1", recipe, start=start)
    assert [run.run for run in runs_of(project)] == ["r1", "r2", "r3"]


def test_a_new_run_never_uses_the_checkpoints_of_another_run(project, monkeypatch, tmp_path):
    use_load(monkeypatch, fails_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train_version(project, "support@1", section(seed=1), to=tmp_path / "out")
    for recipe, start in ((section(seed=2), "auto"), (section(seed=1), "fresh")):
        with pytest.raises(TrainError, match=r"out\.partial already exists"):
            train_version(project, "support@1", recipe, to=tmp_path / "out", start=start)
    assert [run.run for run in runs_of(project)] == ["r1"]


def test_resume_requires_an_unfinished_run(project):
    with pytest.raises(TrainError, match="no unfinished run"):
        train_version(project, "support@1", section(), start="resume")
    assert runs_of(project) == []


def test_two_processes_cannot_train_the_same_run(project, monkeypatch):
    use_load(monkeypatch, fails_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train_version(project, "support@1", section())
    with (project.parent / "adapters/r1.partial/lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert [run.status for run in runs_of(project)] == ["running"]
        with reading(project) as connection:
            assert [run["status"] for run in read_status(connection)["runs"]] == ["running"]
        with pytest.raises(TrainError, match="being trained by another process"):
            train_version(project, "support@1", section())
    with reading(project) as connection:
        assert [run["status"] for run in read_status(connection)["runs"]] == ["interrupted"]


def test_an_interrupted_run_is_resumed_after_its_project_was_moved_or_copied(project, monkeypatch, tmp_path):
    folders = []

    def is_interrupted(job):
        folders.append(job.checkpoints)
        raise KeyboardInterrupt

    use_load(monkeypatch, is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_version(project, "support@1", section())
    copied = shutil.copytree(project.parent, tmp_path / "copied")
    moved = project.parent.rename(tmp_path / "moved")
    for folder in (copied, moved):
        monkeypatch.chdir(folder)
        with pytest.raises(KeyboardInterrupt):
            train_version(folder / "curate.duckdb", "support@1", section())
        assert folders[-1] == folder / "adapters/r1.partial/checkpoints"
        assert [run.run for run in runs_of(folder / "curate.duckdb")] == ["r1"]
    assert not project.parent.exists()


def test_a_run_killed_between_its_adapter_and_its_row_is_finished_without_training(trained, tmp_path, monkeypatch):
    store = copy_project(trained, tmp_path / "copy")
    monkeypatch.chdir(store.parent)
    use_load(monkeypatch, fails_with(AssertionError("it trained again")))
    with writing(store) as connection:
        connection.execute("UPDATE runs SET status = 'running', adapter_digest = NULL")
    run = train_version(store, "support@1", section())
    assert (run.run, run.status) == ("r1", "done")
    assert [run.status for run in runs_of(store)] == ["done"]


def test_steps_after_the_checkpoint_are_removed_from_the_metrics(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    step = engines.Step(1, 9, 1.5, 0.1, 1.0, 100, 1.0)
    fields = {name: getattr(step, name) for name in engines.Step.__dataclass_fields__}
    metrics.write_text("".join(json.dumps({**fields, "step": n}) + "\n" for n in range(1, 8)))
    record = fitting._MetricsLog(metrics, lambda _: None, last_step=5)
    record(engines.Step(6, 9, 0.5, 0.1, 1.0, 600, 6.0))
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert record.losses()["steps"] == 6
