"""The sample in a new folder → a frozen version and a trained adapter, made by real commands, one process each."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from curate.doctor import missing_packages
from schemas.atomic import write_text
from schemas.environment import install_command, installed_version
from schemas.errors import CurateError, SourceError
from schemas.text import shell_quote

MARKER = ".curate-demo"
"""A file in each demo folder: only folders with this file are renamed for a new demo."""

SAMPLE = ("support_tickets.csv", "chats.jsonl", "curate.toml")
TINY = "tiny"


@dataclass(frozen=True, slots=True)
class DemoStep:
    """A command and its purpose."""

    purpose: str
    command: str


STEPS = (
    DemoStep(
        "Import two exports of a support desk: every row becomes a conversation, a duplicate or a reject.",
        "import support_tickets.csv chats.jsonl",
    ),
    DemoStep("List the rejected rows with reasons and lines.", "rejects"),
    DemoStep("Score every conversation.", "score"),
    DemoStep("Apply the rules in curate.toml: a conversation is dropped by the first rule it fails.", "select"),
    DemoStep("Freeze the kept conversations: the same data always has the same digest.", "freeze support"),
    DemoStep("Inspect the loss mask: tokens in brackets contribute to the loss.", "preview support@1 --limit 1"),
    DemoStep("Count tokens, packs and steps before anything is loaded.", "plan support@1"),
    DemoStep(
        "Train an adapter on this version. The base is a tiny model with 1.8 million parameters.", "train support@1"
    ),
    DemoStep(
        "Chat without and with the adapter. The tiny model learns the style of the answers, not their facts.",
        "chat r1 --compare --max-tokens 60"
        " --prompt 'How long is the warranty?' --prompt 'What does the Gannet cost at the moment?'",
    ),
    DemoStep("Verify the adapter against its manifest.", "verify r1"),
)

NEXT = """\
Files in {folder}:
  curate.toml      the recipe: change a rule and run the commands again to make support@2
  curate.duckdb    the store: every row, score, verdict, version and run
  adapters/r1      the adapter, with its manifest and model card

Next, in that folder:
  curate trace support_tickets.csv:2       trace a line to its conversation, version and run
  curate import YOUR.csv --dry-run         show the detected columns and rejects of your file
  curate init mine.toml                    write a recipe with every key explained
"""


def run_demo(folder: Path, report: Callable[[str], None]) -> None:
    """Copy the sample into `folder` and run `STEPS` there; `report` is called with each line between the commands.

    Raises `CurateError` if packages for training are missing, before anything is written, and if a step fails; raises
    `SourceError` if `folder` is neither new, empty nor from an earlier demo.
    """
    missing = missing_packages("train")
    if missing:
        raise CurateError(
            f"The demo trains a model, and these packages are missing: {', '.join(missing)}.",
            f"{install_command('train')}; without training: curate import FILE",
        )
    earlier = copy_sample(folder)
    if earlier is not None:
        report(f"The earlier demo was renamed to {earlier}.")
    if installed_version("unsloth") is None:
        recipe = folder / "curate.toml"
        text = recipe.read_text(encoding="utf-8")
        write_text(recipe, text.replace("[train]\n", '[train]\nengine = "transformers"\n'))
        report('Unsloth is not installed, so TRL and PEFT train: engine = "transformers" in the recipe.')
    for number, step in enumerate(STEPS, start=1):
        report(f"\n{number}/{len(STEPS)}  {step.purpose}\n$ curate {step.command}")
        _run(step.command, folder)
    report("\n" + NEXT.format(folder=folder))
    if shutil.which("curate") is None:
        report(f"To run curate without a path: source {Path(sys.executable).parent / 'activate'}")


def sample_folder() -> Path:
    """The folder of the sample: inside an installed `curate`, or next to it in a checkout."""
    package = Path(__file__).parent
    installed, checkout = package / "data", package.parent / "data"
    return installed if installed.is_dir() else checkout


def copy_sample(folder: Path) -> Path | None:
    """Copy the sample into a new `folder`; returns the new name of an earlier demo, or None.

    Raises `SourceError` if `folder` contains anything else.
    """
    earlier = None
    if (folder / MARKER).is_file():
        names = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
        earlier = next(path for path in names if not path.exists())
        folder.rename(earlier)
    elif folder.exists() and any(folder.iterdir()):
        raise SourceError(
            f"{folder} is not empty and was not made by a demo.", "Choose a new folder: curate demo --to NAME"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    for name in SAMPLE:
        shutil.copy(sample_folder() / name, folder / name)
    shutil.copytree(sample_folder() / TINY, folder / TINY)
    return earlier


def _run(command: str, folder: Path) -> None:
    """Run `curate command` in `folder`, with the store in that folder even if CURATE_STORE is set."""
    environment = {name: value for name, value in os.environ.items() if name != "CURATE_STORE"}
    arguments = [sys.executable, "-P", "-m", "curate", *shlex.split(command)]
    process = subprocess.run(arguments, cwd=folder, env=environment, check=False)
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode:
        raise CurateError(
            f"The step `curate {command}` ended with exit code {process.returncode}; see its message above.",
            f"cd {shell_quote(str(folder))} and run it there; curate doctor checks the installation.",
        )
