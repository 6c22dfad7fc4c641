"""Missing and damaged files in an adapter's folder: every command that needs one names it and suggests a command."""

import shutil

import pytest

from schemas.errors import CurateError
from train.checks.serving_parity import check_serving
from train.export.merge import merge
from train.inference.generate import load_chat_model
from train.runs.verify import verify

pytestmark = pytest.mark.slow

DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "random": lambda path: path.write_bytes(bytes(range(128, 256)) * 3),
}

COMMANDS = {
    "merge": lambda store, folder: merge(store, str(folder), to=folder.parent / "out"),
    "chat": lambda _, folder: load_chat_model(folder),
    "check-serving": lambda store, folder: check_serving(store, str(folder)),
}


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """A copy of an adapter's folder, which a test may damage."""
    monkeypatch.chdir(trained)
    return shutil.copytree(trained / "adapters/r1", tmp_path / "mine")


def refusal(command, trained, folder):
    with pytest.raises(CurateError) as caught:
        COMMANDS[command](trained / "curate.duckdb", folder)
    assert not (folder.parent / "out").exists()
    assert f"curate verify {folder} " in caught.value.hint
    return caught.value.what


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["adapter_config.json", "chat_template.jinja"])
def test_the_missing_or_damaged_file_is_named(trained, folder, name, command, damage):
    DAMAGES[damage](folder / name)
    assert name in refusal(command, trained, folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["merge", "chat"])
def test_missing_or_damaged_weights_are_reported_without_contacting_the_hub(trained, folder, command, damage):
    DAMAGES[damage](folder / "adapter_model.safetensors")
    expected = f"{folder} has no adapter_model.safetensors" if damage == "missing" else f"The weights in {folder} "
    assert expected in refusal(command, trained, folder)


def test_settings_that_are_not_an_object_are_damaged(trained, folder):
    (folder / "adapter_config.json").write_text("[]")
    assert "adapter_config.json is damaged: it does not contain settings" in refusal("merge", trained, folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["adapter_config.json", "chat_template.jinja", "ledger.parquet"])
def test_verify_names_the_file_and_makes_all_other_checks(trained, folder, name, damage):
    needed = {"adapter_config.json": {"adapter"}, "chat_template.jinja": {"tokens"}, "ledger.parquet": {"ledger"}}[name]
    DAMAGES[damage](folder / name)
    checks = {check.what: check for check in verify(trained / "curate.duckdb", str(folder)).checks}
    assert checks[f"file {name}"].state == "differs"
    failed = {what for what, check in checks.items() if check.state != "same"} - {f"file {name}"}
    assert failed == (set() if (name, damage) == ("ledger.parquet", "missing") else needed)
    assert {"base model", "version", "conversations", "tokenizer", "template"} <= set(checks)
