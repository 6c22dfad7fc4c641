"""`curate demo`: checks before the first step, folders that it may fill, and the reproducible sample."""

import runpy
import tomllib

import pytest

from schemas.environment import install_command


def test_the_demo_fails_before_its_first_step_if_nothing_can_train(tmp_path, monkeypatch):
    from curate import demo, doctor
    from schemas.errors import CurateError

    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "torch" else installed(name))
    lines = []
    with pytest.raises(CurateError, match="these packages are missing: torch") as raised:
        demo.run_demo(tmp_path / "demo", lines.append)
    assert raised.value.hint.startswith(install_command("train"))
    assert (lines, (tmp_path / "demo").exists()) == ([], False)


def test_the_demo_trains_with_transformers_if_unsloth_is_not_installed(tmp_path, monkeypatch):
    from curate import demo
    from schemas.recipe import load_recipe

    monkeypatch.setattr(demo, "installed_version", lambda name: None)
    monkeypatch.setattr(demo, "STEPS", ())
    lines = []
    demo.run_demo(tmp_path / "demo", lines.append)
    assert lines[0].startswith("Unsloth is not installed")
    assert load_recipe(tmp_path / "demo" / "curate.toml").train.engine == "transformers"


def test_the_demo_overwrites_no_folder_and_keeps_earlier_demos(curate, tmp_path):
    from curate.demo import copy_sample

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    ran = curate("demo", "--to", "mine")
    assert ran.returncode == 1
    assert "not made by a demo" in ran.stderr
    assert copy_sample(tmp_path / "demo") is None
    (tmp_path / "demo" / "labels.db").write_text("annotators' answers")
    assert copy_sample(tmp_path / "demo") == tmp_path / "demo.1"
    assert copy_sample(tmp_path / "demo") == tmp_path / "demo.2"
    kept = (tmp_path / "mine" / "thesis.txt", tmp_path / "demo.1" / "labels.db")
    assert [path.read_text() for path in kept] == ["all my work", "annotators' answers"]


def test_make_sample_writes_the_committed_bytes(sample):
    script = runpy.run_path(str(sample / "make_sample.py"))
    topics = tomllib.loads((sample / "topics.toml").read_text(encoding="utf-8"))
    assert script["render_tickets"](topics).encode() == (sample / "support_tickets.csv").read_bytes()
    assert script["render_chats"](topics).encode() == (sample / "chats.jsonl").read_bytes()
