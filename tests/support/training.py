"""Small real trainings for tests: a store with one version, and `curate train` on it in its own process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.stores import add, chat

from curate.versions.freeze import freeze
from schemas.recipe import Recipe, TrainSection
from schemas.store import writing

TINY = Path(__file__).resolve().parents[2] / "data" / "tiny"

RECIPE = {
    "model": "tiny",
    "steps": 16,
    "batch": 4,
    "accumulate": 1,
    "learning_rate": 5e-3,
    "rank": 8,
    "save_every": 3,
    "max_length": 256,
}
SETTINGS = [f"--set=train.{key}={value}" for key, value in RECIPE.items()]

SECRET = "hf_notForAnybody"

WORDS = ["lamp", "kettle", "tent", "jacket", "camera", "ticket", "charger", "helmet", "speaker", "toaster"]
COLORS = ["red", "green", "blue", "black"]


def section(**changes):
    return TrainSection(**{**RECIPE, **changes})


def conversations():
    return [
        chat(f"What about the {color} {word}?", f"Hello! The {color} {word} is here.")
        for word in WORDS
        for color in COLORS
    ]


def make_project(folder):
    """A folder with the tiny model and a store whose version support@1 has 40 conversations."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(TINY, folder / "tiny")
    store = folder / "curate.duckdb"
    add(store, conversations())
    recipe = Recipe.model_validate({"freeze": {"held_out": 0.2}})
    with writing(store) as connection:
        freeze(connection, "support", recipe)
    return store


def command(*arguments):
    return [sys.executable, "-P", "-c", "from curate.cli.app import main; main()", *arguments]


def run_here(*arguments):
    """The command in this process, where torch is already loaded: its exit code and output."""
    from typer.testing import CliRunner

    from curate.cli.app import app

    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def train(folder, *arguments):
    """`curate train support@1 --json` in `folder`: the run as JSON."""
    ran = subprocess.run(
        command("train", "support@1", *SETTINGS, *arguments, "--json"),
        cwd=folder,
        env=os.environ | {"HF_TOKEN": SECRET},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def copy_project(folder, to):
    """The store of a copy of a project, whose runs refer to the copy."""
    shutil.copytree(folder, to)
    with writing(to / "curate.duckdb") as connection:
        connection.execute("UPDATE runs SET adapter = ? || '/adapters/' || run", [str(to)])
    for config in to.glob("adapters/*/adapter_config.json"):
        text = config.read_text(encoding="utf-8").replace(str(folder), str(to))
        config.write_text(text, encoding="utf-8")
    return to / "curate.duckdb"
