"""Completion in a real bash: versions, runs, review sets, sources and names; silent without a readable store."""

import json
import os
import shutil
import subprocess
import sys

import duckdb
import pytest
from support.stores import add, chat

from curate.versions.freeze import freeze
from schemas.recipe import Recipe
from schemas.store import writing

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

SCRIPT = """
curate() { "$PYTHON" -P -m curate "$@"; }
eval "$(_CURATE_COMPLETE=source_bash curate)"
complete() { eval "COMP_WORDS=($1)"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _curate_completion "$PYTHON_CURATE"; }
while IFS= read -r line; do complete "$line"; echo "${COMPREPLY[*]}"; done
"""
"""Reads command lines, prints the completions of their last words. A word with @ is given as bash splits it."""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """`complete(folder, *lines)`: the completions of the last word of each command line."""
    program = tmp_path_factory.mktemp("bin") / "curate"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m curate "$@"\n')
    program.chmod(0o755)
    variables = os.environ | {"PYTHON": sys.executable, "PYTHON_CURATE": str(program)}

    def run(folder, *lines):
        command = ["bash", "--norc", "-c", SCRIPT]
        text = "".join(f"{line}\n" for line in lines)
        ran = subprocess.run(command, cwd=folder, env=variables, input=text, capture_output=True, text=True, check=True)
        assert ran.stderr == ""
        return [line.split() for line in ran.stdout.split("\n")[:-1]]

    return run


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    add(folder / "curate.duckdb", [chat(f"Question {number}?", f"Answer {number}.") for number in range(4)])
    recipe = Recipe.model_validate({"freeze": {"held_out": 0}})
    with writing(folder / "curate.duckdb") as connection:
        freeze(connection, "support", recipe)
        freeze(connection, "sales", recipe)
        for number, status in enumerate(("failed", "done", "done"), start=1):
            row = [f"r{number}", "support@1", "", f"adapters/r{number}", status, json.dumps({})]
            connection.execute(
                "INSERT INTO runs (run, version, version_digest, adapter, status, manifest, metrics, started_at, seq)"
                " VALUES (?, ?, ?, ?, ?, ?, '{}', now(), nextval('seq'))",
                row,
            )
        connection.execute(
            "INSERT INTO review_sets (review_set, server, questions, overlap) VALUES ('desk', 'spreadsheet', '[]', 1)"
        )
    return folder


CASES = {
    "curate verif": ["verify"],
    "curate verify ''": ["r3", "r2"],
    "curate train su": ["support@1"],
    "curate train support @": ["1"],
    "curate diff support @ 1 sal": ["sales@1"],
    "curate freeze s": ["sales", "support"],
    "curate review status d": ["desk"],
    "curate export --format me": ["messages"],
    "curate score --only qual": ["quality"],
    "curate templates chat": ["chatml"],
    "curate import --format x": ["xlsx"],
    "curate status --sto": ["--store"],
}


def test_values_come_from_the_store_and_the_registries(project, complete):
    found = dict(zip(CASES, complete(project, *CASES), strict=True))
    assert {line: [name for name in found[line] if name in CASES[line]] for line in CASES} == CASES
    assert found["curate verify ''"] == ["r3", "r2"]
    assert found["curate train support @"] == ["1"]


def test_nothing_is_printed_without_a_store_or_if_it_is_locked_or_damaged(project, complete, tmp_path):
    shutil.copy(project / "curate.duckdb", tmp_path)
    (tmp_path / "damaged.duckdb").write_text("no database")
    (tmp_path / "folder.duckdb").mkdir()
    lines = [f"curate verify --store {name}.duckdb ''" for name in ("curate", "missing", "damaged", "folder")]
    assert complete(tmp_path, lines[0]) == [["r3", "r2"]]
    with duckdb.connect(tmp_path / "curate.duckdb"):
        assert complete(tmp_path, *lines) == [[]] * 4
    assert not (tmp_path / "missing.duckdb").exists()


@pytest.mark.parametrize(
    ("words", "excluded"),
    [
        ("curate ver", {"duckdb", "polars", "rich.console"}),
        ("curate export --spl", {"duckdb", "polars", "rich.console"}),
        ("curate export --split tr", {"duckdb", "polars", "rich.console"}),
        ("curate verify r", {"polars", "rich.console", "numpy"}),
    ],
)
def test_a_completion_imports_only_what_it_needs(project, words, excluded):
    script = "import sys; from curate.cli.completion import complete_in_bash; from curate.cli.app import app\n"
    script += "try: complete_in_bash(app)\nfinally: print(*sys.modules)"
    variables = {"_CURATE_COMPLETE": "complete_bash", "COMP_WORDS": words.replace(" ", "\n")}
    variables["COMP_CWORD"] = str(len(words.split()) - 1)
    command = [sys.executable, "-P", "-c", script]
    ran = subprocess.run(command, cwd=project, env=os.environ | variables, capture_output=True, text=True, check=False)
    completions, modules = ran.stdout.splitlines()[:-1], set(ran.stdout.splitlines()[-1].split())
    assert completions
    assert excluded & modules == set()


def test_the_help_says_how_to_install_it(curate):
    assert "--install-completion" in curate("--help").stdout
