"""Verifying and retraining: an adapter is proven by digests taken again, and repeated to the same bits."""

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
    """A copy of the trained project that a test may spoil; its store."""
    store = copy_project(trained, tmp_path / "copy")
    monkeypatch.chdir(store.parent)
    return store


def spoilt(verification):
    return {check.what: check.state for check in verification.checks if check.state != "same"}


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_adapter_that_nobody_touched_is_proven(trained):
    verification = verify(trained / "curate.duckdb", "r1")
    assert spoilt(verification) == {}
    assert verification.proven
    names = {check.what for check in verification.checks}
    assert {"adapter", "base model", "version", "conversations", "tokenizer", "template", "tokens", "ledger"} <= names


def test_a_folder_is_as_good_as_its_runs_name(trained):
    assert verify(trained / "curate.duckdb", str(trained / "adapters" / "r1")).proven


def test_one_changed_byte_of_the_weights_is_found(project):
    weights = project.parent / "adapters/r1/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert spoilt(verify(project, "r1")) == {"file adapter_model.safetensors": "differs", "adapter": "differs"}


def test_a_changed_setting_of_the_adapter_is_found(project):
    edit(project.parent / "adapters/r1/adapter_config.json", '"lora_alpha": 16', '"lora_alpha": 32')
    assert spoilt(verify(project, "r1"))["adapter"] == "differs"


def test_a_missing_file_is_found(project):
    (project.parent / "adapters/r1/ledger.parquet").unlink()
    assert spoilt(verify(project, "r1")) == {"file ledger.parquet": "differs"}


def test_another_base_model_is_found(project):
    edit(project.parent / "tiny/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    assert spoilt(verify(project, "r1")) == {"base model": "differs"}


def test_another_tokenizer_is_found_and_so_are_its_tokens(project):
    edit(project.parent / "tiny/tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true')
    found = spoilt(verify(project, "r1"))
    assert (found["tokenizer"], found["tokens"]) == ("differs", "differs")


def test_another_template_is_found(project):
    edit(project.parent / "tiny/tokenizer_config.json", "You are a helpful assistant.", "You are no help.")
    assert spoilt(verify(project, "r1")) == {"template": "differs"}


def test_a_run_whose_manifest_names_a_template_without_the_day_in_it_is_proven_and_repeated(project, curate):
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
    assert spoilt(verify(project, "r1")) == {}
    again = curate("retrain", "r1", "--json", cwd=project.parent)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["same_tokens"]
    dated = (project.parent / "adapters/r2/chat_template.jinja").read_text()
    assert dated == template.replace('strftime_now("%d %b %Y")', '"01 Jan 2026"')
    edit(settings, "%d %b", "%b %d")
    assert spoilt(verify(project, "r1")) == {"template": "differs"}


def test_a_conversation_that_was_changed_in_the_store_is_found(project):
    with writing(project) as connection:
        name = connection.sql("SELECT min(conversation) FROM members WHERE split = 'train'").fetchall()[0][0]
        connection.execute(
            """UPDATE conversations SET conversations = list_transform(conversations, lambda turn: struct_update(
                 turn, "value" := replace(turn."value", 'Hello', 'Hullo'))) WHERE id = ?""",
            [name],
        )
    found = verify(project, "r1")
    assert {"conversations", "tokens"} <= set(spoilt(found))
    assert any(name in check.found for check in found.checks)


def test_two_conversations_whose_words_were_exchanged_are_found(project):
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


def test_a_version_whose_members_were_changed_is_found(project):
    with writing(project) as connection:
        connection.execute("UPDATE members SET split = 'train'")
    assert spoilt(verify(project, "r1")) == {"version": "differs", "tokens": "unchecked"}


def test_a_manifest_that_was_edited_is_not_the_one_in_the_store(project):
    edit(project.parent / "adapters/r1/manifest.json", '"learning_rate": 0.005', '"learning_rate": 0.001')
    assert spoilt(verify(project, "r1")) == {"manifest": "differs", "recipe": "differs"}


def test_what_cannot_be_checked_is_not_proven(trained, tmp_path):
    found = verify(tmp_path / "none.duckdb", str(trained / "adapters" / "r1"))
    assert spoilt(found) == {"manifest in the store": "unchecked", "version": "unchecked", "tokens": "unchecked"}
    assert not found.proven


def test_a_project_that_was_moved_is_proven_by_its_runs_and_by_its_folders(project, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    project.parent.rename(moved)
    monkeypatch.chdir(moved)
    for target in ("r1", "adapters/r1"):
        found = verify(moved / "curate.duckdb", target)
        assert found.proven
        assert found.run_is_known
    shutil.rmtree(moved / "adapters")
    with pytest.raises(TrainError, match=r"The adapter of run r1 is not in .*/moved/adapters/r1"):
        verify(moved / "curate.duckdb", "r1")


def test_of_a_copied_project_the_copys_adapter_is_looked_at(project, tmp_path, monkeypatch):
    copied = shutil.copytree(project.parent, tmp_path / "copied")
    monkeypatch.chdir(copied)
    (copied / "adapters/r1/recipe.json").write_text("{}")
    assert spoilt(verify(copied / "curate.duckdb", "r1")) == {"file recipe.json": "differs"}
    assert verify(project, "r1").proven


def test_an_adapter_from_another_store_is_proven_and_told_to_be_from_there(project):
    with writing(project) as connection:
        connection.execute("DELETE FROM runs")
    found = verify(project, "adapters/r1")
    assert found.proven
    assert not found.run_is_known
    assert spoilt(found) == {"manifest in the store": "unchecked"}
    ran = run_here("verify", "adapters/r1")
    assert ran.exit_code == 0
    assert "This store has no run with this adapter" in ran.stdout
    (project.parent / "adapters/r1/recipe.json").write_text("{}")
    assert run_here("verify", "adapters/r1").exit_code == 1


def test_the_command_ends_with_1_and_names_what_differs(curate, project):
    (project.parent / "adapters/r1/recipe.json").write_text("{}")
    ran = curate("verify", "r1", cwd=project.parent)
    assert ran.returncode == 1
    assert "not proven: file recipe.json" in ran.stdout


def test_a_run_or_folder_that_is_not_there_is_explained(trained, tmp_path):
    with pytest.raises(VersionError, match="There is no run r9"):
        verify(trained / "curate.duckdb", "r9")
    with pytest.raises(TrainError, match=r"has no manifest.json"):
        verify(trained / "curate.duckdb", str(tmp_path))


def test_retraining_gives_the_same_bits(project):
    ran = subprocess.run(
        command("retrain", "r1", "--json"), cwd=project.parent, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["identical"]
    assert found["same_tokens"]
    assert found["largest_difference"] == found["losses_apart"] == 0.0
    assert found["repeated"]
    assert found["changed"] == []
    assert found["after"]["run"] == "r2"
    for name in ("adapter_model.safetensors", "ledger.parquet"):
        one, two = (project.parent / "adapters" / run / name for run in ("r1", "r2"))
        assert one.read_bytes() == two.read_bytes()


def test_a_retrain_that_was_cut_off_goes_on_by_the_same_command_and_never_with_the_run_itself(project, monkeypatch):
    def is_interrupted(job):
        asked.append(job.batch_config)
        raise KeyboardInterrupt

    asked = []
    monkeypatch.setitem(engines.ENGINES, "unsloth", replace(engines.ENGINES["unsloth"], load=is_interrupted))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            retrain(project, "r1")
    assert len(asked) == 2
    with reading(project) as connection:
        assert [(run.run, run.status) for run in read_runs(connection)] == [("r1", "done"), ("r2", "interrupted")]
    with writing(project) as connection:
        connection.execute("UPDATE runs SET status = 'running' WHERE run = 'r1'")
    with pytest.raises(TrainError, match="Run r1 is interrupted"):
        retrain(project, "adapters/r1")


def test_how_far_two_adapters_are_apart_is_measured(trained, project):
    from safetensors.torch import load_file, save_file

    folder = project.parent / "adapters/r1"
    weights = load_file(folder / "adapter_model.safetensors")
    name = sorted(weights)[0]
    weights[name][0, 0] += 0.25
    save_file(weights, folder / "adapter_model.safetensors")
    assert largest_difference(trained / "adapters/r1", folder) == pytest.approx(0.25, abs=1e-6)


def test_how_far_the_losses_of_two_runs_are_apart_is_measured(trained, project):
    folder = project.parent / "adapters/r1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[4]["loss"] += 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert losses_apart(trained / "adapters/r1", folder) == pytest.approx(0.5)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert losses_apart(trained / "adapters/r1", folder) is None


def test_what_explains_a_difference_is_named(trained):
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


def test_a_base_model_may_move(project):
    moved = project.parent / "elsewhere"
    (project.parent / "tiny").rename(moved)
    config = project.parent / "adapters/r1/adapter_config.json"
    edit(config, str(project.parent / "tiny"), str(moved))
    assert verify(project, "r1").proven


def test_a_run_of_another_store_that_is_repeated_is_told_by_its_folder(trained, capsys):
    before = read_manifest(trained / "adapters/r1")
    after = Run("r1", "done", trained / "adapters/r1", before)
    again = Retraining(before, after, True, True, 0.0, 0.0, (), elsewhere=Path("there/adapters/r1"))
    show_retraining(again)
    assert capsys.readouterr().out.startswith("Run r1 is run r1 of there/adapters/r1 again, bit for bit: ")
    show_retraining(replace(again, after=replace(after, run="r2"), elsewhere=None))
    assert capsys.readouterr().out.startswith("Run r2 is run r1 again, bit for bit: ")
