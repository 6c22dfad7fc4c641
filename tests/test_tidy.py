"""curate runs --tidy removes what failed or was interrupted, and never an adapter or what can be resumed."""

import fcntl
import json
import shutil
from dataclasses import replace

import pytest
from support.training import make_project, section

from schemas.errors import TrainError
from schemas.run import LOCK_FILE, read_runs
from schemas.store import reading, writing
from train import engines
from train.model.checkpoints import mark_complete
from train.runs.fit import train_version
from train.runs.tidy import tidy_runs

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the failed run r1, the interrupted run r2, and r3, which failed after a checkpoint."""
    store = make_project(tmp_path / "project")
    monkeypatch.chdir(store.parent)
    for seed, error in enumerate([RuntimeError("no such layer"), KeyboardInterrupt(), RuntimeError("disk full")]):
        fail(monkeypatch, store, seed, error)
    checkpoint = store.parent / "adapters/r3.partial/checkpoints/checkpoint-8"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.bin").write_bytes(b"weights")
    mark_complete(checkpoint)
    return store


def fail(monkeypatch, store, seed, error):
    def load(job):
        raise error

    monkeypatch.setitem(engines.ENGINES, "unsloth", replace(engines.ENGINES["unsloth"], load=load))
    with pytest.raises((TrainError, KeyboardInterrupt)):
        train_version(store, "support@1", section(seed=seed))


def names(store):
    with reading(store) as connection:
        return [run.run for run in read_runs(connection)]


def test_failed_and_interrupted_runs_are_removed_with_their_folders(project, curate):
    ran = curate("runs", "--tidy", "--json", cwd=project.parent)
    report = json.loads(ran.stdout)
    kept = {run["run"]: run["kept_because"] for run in report["runs"]}
    assert (kept, report["written"]) == ({"r1": "", "r2": "", "r3": "it can be resumed"}, True)
    assert names(project) == ["r3"]
    assert [path.name for path in (project.parent / "adapters").iterdir()] == ["r3.partial"]
    again = curate("runs", "--tidy", "--checkpoints", cwd=project.parent)
    assert "removed" in again.stdout
    assert (names(project), list((project.parent / "adapters").iterdir())) == ([], [])


def test_a_dry_run_removes_nothing(project, curate):
    ran = curate("runs", "--tidy", "--dry-run", "--checkpoints", cwd=project.parent)
    assert ran.stdout.count("would be removed") == 3
    assert "no such layer" in ran.stdout
    assert names(project) == ["r1", "r2", "r3"]
    assert len(list((project.parent / "adapters").iterdir())) == 3


def test_adapters_running_runs_and_folders_of_others_stay(project, curate):
    adapters = project.parent / "adapters"
    (adapters / "r1").mkdir()
    (adapters / "r1" / "adapter_model.safetensors").touch()
    (adapters / "r3.partial" / LOCK_FILE).unlink()  # not a folder that a run has written
    with (adapters / "r2.partial" / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ran = curate("runs", "--tidy", "--checkpoints", cwd=project.parent)
    assert (ran.returncode, names(project)) == (0, ["r1", "r2"])
    assert sorted(path.name for path in adapters.iterdir()) == ["r1", "r1.partial", "r2.partial", "r3.partial"]


def test_no_process_can_train_in_a_folder_while_it_is_removed(project, monkeypatch):
    def remove(folder):
        with (folder / LOCK_FILE).open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with writing(project):  # nor does the removal of large folders lock the store
            removed.append(folder.name)
        rmtree(folder)

    removed: list[str] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr("train.runs.tidy.shutil.rmtree", remove)
    tidy_runs(project)
    assert (removed, names(project)) == (["r1.partial", "r2.partial"], ["r3"])


def test_options_of_tidy_need_it(curate):
    for option in ("--dry-run", "--checkpoints"):
        ran = curate("runs", option)
        assert (ran.returncode, "only with --tidy" in ran.stderr) == (2, True)
