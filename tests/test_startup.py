"""Starting `curate`: nothing heavy is imported, and failures before the first command are explained in a sentence."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from support.project import demo_project

from curate.cli.app import Commands
from schemas.environment import DISTRIBUTION, install_command

HEAVY = {"polars", "duckdb", "pydantic", "torch", "pyarrow", "numpy", "tokenizers", "transformers", "rich.console"}


def imported_modules(script):
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{script}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_help_imports_no_command():
    script = "import sys; from curate.cli.app import app; app(['--help'], standalone_mode=False)"
    commands = {f"curate.cli.{command.module}" for command in Commands.lazy_commands}
    assert commands & imported_modules(script) == set()


@pytest.mark.parametrize("module", sorted({command.module for command in Commands.lazy_commands}))
def test_a_command_imports_heavy_packages_only_when_it_runs(module):
    assert HEAVY & imported_modules(f"import sys, curate.cli.{module}") == set()


def test_the_version_is_that_of_the_installed_package(curate):
    ran = curate("--version")
    assert (ran.returncode, ran.stdout) == (0, f"curate {version(DISTRIBUTION)}\n")


def test_ctrl_c_during_the_first_imports_ends_without_a_traceback(curate, tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    ran = curate("--help", PYTHONPATH=str(tmp_path))
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "Interrupted before anything was started.\n")


@pytest.mark.parametrize(
    ("command", "is_short"),
    [
        ("import chats.csv --json", True),
        ("-q import chats.csv --json", True),
        ("--debug import chats.csv --json --dry-run", True),
        ("import missing.csv --json", False),
        ("status --json", False),
    ],
)
def test_only_a_finished_import_skips_the_exit_of_python(tmp_path, command, is_short):
    (tmp_path / "chats.csv").write_text("question,answer\nWhere is it?,It is there.\n")
    script = "import atexit; atexit.register(print, 'at exit'); from curate.__main__ import main; main()"
    run = [sys.executable, "-P", "-c", script, *command.split()]
    ran = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.endswith("at exit\n") is not is_short
    if is_short:
        assert ran.returncode == 0
        assert json.loads(ran.stdout)[0]["rows_kept"] == 1
        assert (tmp_path / "curate.duckdb").exists() == ("--dry-run" not in command)
        assert not list(tmp_path.glob("*.wal"))


def test_a_file_that_shadows_one_of_our_packages_is_named(curate, tmp_path):
    (tmp_path / "train.py").touch()
    ran = curate("doctor", PYTHONPATH=str(tmp_path))
    assert ran.returncode == 1
    assert f"finds the package `train` in {tmp_path / 'train.py'}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_missing_package_is_named_together_with_the_extra_that_installs_it(curate, tmp_path):
    hidden = tmp_path / "hidden"
    (hidden / "torch").mkdir(parents=True)
    (hidden / "torch" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    demo_project(tmp_path / "w", steps=2)
    for command in ("import chats.jsonl", "freeze chats"):
        assert curate(*command.split(), "--set", "select.rules={}", cwd=tmp_path / "w").returncode == 0
    ran = curate("train", "chats@1", cwd=tmp_path / "w", PYTHONPATH=str(hidden))
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-2:] == [
        "Error: This needs torch, which is not installed.",
        f"  → {install_command('train')}",
    ]
