"""Verifying and retraining: every digest is computed again, and a repeated training gives an identical adapter."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.training import command, copy_project, run_here

from curate.cli.views.runs import show_retraining
from schemas.digest import file_digest
from schemas.errors import TrainError, VersionError
from schemas.manifest import read_manifest
from schemas.run import Run, read_runs
from schemas.store import reading, writing
from train import engines
from train.runs.retrain import Retraining, differences, largest_difference, losses_apart, retrain
from train.runs.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """The store of a copy of the trained project, which a test may damage."""
    store = copy_project(trained, tmp_path / "copy")
    monkeypatch.chdir(store.parent)
    return store


def failed_checks(verification):
    return {check.what: check.state for check in verification.checks if check.state != "same"}


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_unchanged_adapter_is_verified(trained):
    verification = verify(trained / "curate.duckdb", "r1")
    assert failed_checks(verification) == {}
    assert verification.verified
    names = {check.what for check in verification.checks}
    assert {"adapter", "base model", "version", "conversations", "tokenizer", "template", "tokens", "ledger"} <= names


def test_an_adapter_can_be_given_by_its_folder(trained):
    assert verify(trained / "curate.duckdb", str(trained / "adapters" / "r1")).verified


def test_one_changed_byte_of_the_weights_is_detected(project):
    weights = project.parent / "adapters/r1/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert failed_checks(verify(project, "r1")) == {"file adapter_model.safetensors": "differs", "adapter": "differs"}


def test_a_changed_setting_of_the_adapter_is_detected(project):
    edit(project.parent / "adapters/r1/adapter_config.json", '"lora_alpha": 16', '"lora_alpha": 32')
    assert failed_checks(verify(project, "r1"))["adapter"] == "differs"


def test_a_missing_file_is_detected(project):
    (project.parent / "adapters/r1/ledger.parquet").unlink()
    assert failed_checks(verify(project, "r1")) == {"file ledger.parquet": "differs"}


def test_files_that_the_manifest_does_not_list_are_detected(project):
    adapter = project.parent / "adapters" / "r1"
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    (adapter / "more").mkdir()
    (adapter / "more" / "code.py").touch()
    (adapter / ".gitattributes").touch()
    (check,) = [check for check in verify(project, "r1").checks if check.state != "same"]
    assert (check.what, check.found) == ("other files", "adapter_model.bin, more/code.py")


def test_another_base_model_is_detected(project):
    edit(project.parent / "tiny/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    assert failed_checks(verify(project, "r1")) == {"base model": "differs"}


def test_another_tokenizer_and_its_tokens_are_detected(project):
    edit(project.parent / "tiny/tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true')
    failed = failed_checks(verify(project, "r1"))
    assert (failed["tokenizer"], failed["tokens"]) == ("differs", "differs")


def test_another_template_is_detected(project):
    edit(project.parent / "tiny/tokenizer_config.json", "You are a helpful assistant.", "You are no help.")
    assert failed_checks(verify(project, "r1")) == {"template": "differs"}


def test_a_manifest_with_a_template_digest_without_pinned_date_is_verified_and_repeated(project, curate):
    settings = project.parent / "tiny/tokenizer_config.json"
    asks = '{% if strftime_now is not defined %}{{ strftime_now("%d %b %Y") }}{% endif %}'
    template = asks + json.loads(settings.read_text())["chat_template"]
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": template}))
    folder = project.parent / "adapters/r1"
    (folder / "chat_template.jinja").write_text(template)
    written = json.loads((folder / "manifest.json").read_text())
    written["rendering"]["template_digest"] = file_digest(folder / "chat_template.jinja")
    written["files"]["chat_template.jinja"] = file_digest(folder / "chat_template.jinja")
    (folder / "manifest.json").write_text(json.dumps(written))
    with writing(project) as connection:
        connection.execute("UPDATE runs SET manifest = ? WHERE run = 'r1'", [json.dumps(written)])
    assert failed_checks(verify(project, "r1")) == {}
    again = curate("retrain", "r1", "--json", cwd=project.parent)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["same_tokens"]
    dated = (project.parent / "adapters/r2/chat_template.jinja").read_text()
    assert dated == template.replace('strftime_now("%d %b %Y")', '"01 Jan 2026"')
    edit(settings, "%d %b", "%b %d")
    assert failed_checks(verify(project, "r1")) == {"template": "differs"}


def test_a_changed_conversation_in_the_store_is_detected(project):
    with writing(project) as connection:
        name = connection.sql("SELECT min(conversation) FROM members WHERE split = 'train'").fetchall()[0][0]
        connection.execute(
            """UPDATE conversations SET conversations = list_transform(conversations, lambda turn: struct_update(
                 turn, "value" := replace(turn."value", 'Hello', 'Hullo'))) WHERE id = ?""",
            [name],
        )
    verification = verify(project, "r1")
    assert {"conversations", "tokens"} <= set(failed_checks(verification))
    assert any(name in check.found for check in verification.checks)


def test_two_conversations_with_exchanged_content_are_detected(project):
    with writing(project) as connection:
        first, second = (
            name
            for (name,) in connection.sql(
                "SELECT conversation FROM members WHERE split = 'held_out' ORDER BY 1 LIMIT 2"
            ).fetchall()
        )
        connection.execute(
            """UPDATE conversations SET conversations = other.conversations FROM conversations AS other
               WHERE (conversations.id, other.id) IN ((?, ?), (?, ?))""",
            [first, second, second, first],
        )
    (check,) = [check for check in verify(project, "r1").checks if check.state == "differs"]
    assert (check.what, first in check.found, second in check.found) == ("conversations", True, True)


def test_changed_members_of_a_version_are_detected(project):
    with writing(project) as connection:
        connection.execute("UPDATE members SET split = 'train'")
    assert failed_checks(verify(project, "r1")) == {"version": "differs", "tokens": "unchecked"}


def test_an_edited_manifest_differs_from_the_one_in_the_store(project):
    edit(project.parent / "adapters/r1/manifest.json", '"learning_rate": 0.005', '"learning_rate": 0.001')
    assert failed_checks(verify(project, "r1")) == {"manifest": "differs", "recipe": "differs"}


def test_an_impossible_check_is_not_verified(trained, tmp_path):
    verification = verify(tmp_path / "none.duckdb", str(trained / "adapters" / "r1"))
    assert failed_checks(verification) == {
        "manifest in the store": "unchecked",
        "version": "unchecked",
        "tokens": "unchecked",
    }
    assert not verification.verified


def test_a_moved_project_is_verified_by_run_and_by_folder(project, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    project.parent.rename(moved)
    monkeypatch.chdir(moved)
    for target in ("r1", "adapters/r1"):
        verification = verify(moved / "curate.duckdb", target)
        assert verification.verified
        assert verification.run_is_known
    shutil.rmtree(moved / "adapters")
    with pytest.raises(TrainError, match=r"The adapter of run r1 is not in .*/moved/adapters/r1"):
        verify(moved / "curate.duckdb", "r1")


def test_in_a_copied_project_the_copy_of_the_adapter_is_checked(project, tmp_path, monkeypatch):
    copied = shutil.copytree(project.parent, tmp_path / "copied")
    monkeypatch.chdir(copied)
    (copied / "adapters/r1/recipe.json").write_text("{}")
    assert failed_checks(verify(copied / "curate.duckdb", "r1")) == {"file recipe.json": "differs"}
    assert verify(project, "r1").verified


def test_an_adapter_from_another_store_is_verified_and_reported_as_such(project):
    with writing(project) as connection:
        connection.execute("DELETE FROM runs")
    verification = verify(project, "adapters/r1")
    assert verification.verified
    assert not verification.run_is_known
    assert failed_checks(verification) == {"manifest in the store": "unchecked"}
    ran = run_here("verify", "adapters/r1")
    assert ran.exit_code == 0
    assert "This store has no run with this adapter" in ran.stdout
    (project.parent / "adapters/r1/recipe.json").write_text("{}")
    assert run_here("verify", "adapters/r1").exit_code == 1


def test_the_command_exits_with_1_and_names_the_differences(curate, project):
    (project.parent / "adapters/r1/recipe.json").write_text("{}")
    ran = curate("verify", "r1", cwd=project.parent)
    assert ran.returncode == 1
    assert "not verified: file recipe.json" in ran.stdout


def test_a_missing_run_or_folder_is_an_error(trained, tmp_path):
    with pytest.raises(VersionError, match="There is no run r9"):
        verify(trained / "curate.duckdb", "r9")
    with pytest.raises(TrainError, match=r"has no manifest.json"):
        verify(trained / "curate.duckdb", str(tmp_path))


def test_retraining_gives_an_identical_adapter(project):
    ran = subprocess.run(
        command("retrain", "r1", "--json"), cwd=project.parent, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["identical"]
    assert result["same_tokens"]
    assert result["largest_difference"] == result["losses_apart"] == 0.0
    assert result["repeated"]
    assert result["changed"] == []
    assert result["after"]["run"] == "r2"
    for name in ("adapter_model.safetensors", "ledger.parquet"):
        one, two = (project.parent / "adapters" / run / name for run in ("r1", "r2"))
        assert one.read_bytes() == two.read_bytes()


def test_an_interrupted_retrain_is_resumed_and_never_resumes_the_original_run(project, monkeypatch):
    def is_interrupted(job):
        jobs.append(job)
        raise KeyboardInterrupt

    jobs = []
    monkeypatch.setitem(engines.ENGINES, "unsloth", replace(engines.ENGINES["unsloth"], load=is_interrupted))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            retrain(project, "r1")
    assert len(jobs) == 2
    with reading(project) as connection:
        assert [(run.run, run.status) for run in read_runs(connection)] == [("r1", "done"), ("r2", "interrupted")]
    with writing(project) as connection:
        connection.execute("UPDATE runs SET status = 'running' WHERE run = 'r1'")
    with pytest.raises(TrainError, match="Run r1 is interrupted"):
        retrain(project, "adapters/r1")


def test_the_largest_difference_of_two_adapters_is_measured(trained, project):
    from safetensors.torch import load_file, save_file

    folder = project.parent / "adapters/r1"
    weights = load_file(folder / "adapter_model.safetensors")
    name = sorted(weights)[0]
    weights[name][0, 0] += 0.25
    save_file(weights, folder / "adapter_model.safetensors")
    assert largest_difference(trained / "adapters/r1", folder) == pytest.approx(0.25, abs=1e-6)


def test_the_largest_difference_of_the_losses_of_two_runs_is_measured(trained, project):
    folder = project.parent / "adapters/r1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[4]["loss"] += 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert losses_apart(trained / "adapters/r1", folder) == pytest.approx(0.5)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert losses_apart(trained / "adapters/r1", folder) is None


def test_changed_packages_are_named(trained):
    before = read_manifest(trained / "adapters/r1")
    after = before.model_copy(update={"packages": {**before.packages, "torch": "9.9"}})
    assert differences(before, after) == [f"packages.torch: {before.packages['torch']} → 9.9"]


def test_a_run_whose_base_model_has_changed_is_not_repeated(project):
    edit(project.parent / "tiny/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    with pytest.raises(TrainError, match="Run r1 cannot be repeated because of changes in: model"):
        retrain(project, "r1")


def test_a_chat_shows_before_and_after(project):
    ran = run_here("chat", "r1", "--compare", "--json", "-p", "What about the red lamp?")
    assert ran.exit_code == 0, ran.output
    (answer,) = json.loads(ran.stdout)
    assert answer["adapter"].startswith("Hello! The")
    assert answer["base"] != answer["adapter"]


def test_a_base_model_may_be_moved(project):
    moved = project.parent / "elsewhere"
    (project.parent / "tiny").rename(moved)
    config = project.parent / "adapters/r1/adapter_config.json"
    edit(config, str(project.parent / "tiny"), str(moved))
    assert verify(project, "r1").verified


def test_a_repeated_run_of_another_store_is_named_by_its_folder(trained, capsys):
    before = read_manifest(trained / "adapters/r1")
    after = Run("r1", "done", trained / "adapters/r1", before)
    again = Retraining(before, after, True, True, 0.0, 0.0, (), external_adapter=Path("there/adapters/r1"))
    show_retraining(again)
    assert capsys.readouterr().out.startswith("Run r1 repeats run r1 of there/adapters/r1 bit for bit: ")
    show_retraining(replace(again, after=replace(after, run="r2"), external_adapter=None))
    assert capsys.readouterr().out.startswith("Run r2 repeats run r1 bit for bit: ")
