"""Walks the whole way on the sample: a fresh folder comes in, real commands run in it, one after the other.

Each step is the command that a person would type, printed before it runs, in a process of its own; so the
folder that is left behind can be worked on with the same commands.
"""

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

from curate.doctor import missing_of
from schemas.atomic import write_text
from schemas.environment import install_command, installed_version
from schemas.errors import CurateError, SourceError

MARK = ".curate-demo"
"""A file in each folder that this made: only such a folder makes room for a new demo."""

SAMPLE = ("support_tickets.csv", "chats.jsonl", "curate.toml")
TINY = "tiny"


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the way, and why it is there."""

    why: str
    command: str


STEPS = (
    Step(
        "Read two exports of a support desk: every row ends as a conversation, a duplicate or a reject.",
        "import support_tickets.csv chats.jsonl",
    ),
    Step("Why rows were refused, and where they stand.", "rejects"),
    Step("Measure every conversation.", "score"),
    Step("Keep the good ones by the rules in curate.toml; who leaves, leaves at a rule.", "select"),
    Step("Freeze what is kept: the digest stands for exactly this data.", "freeze support"),
    Step("What will be learned, in brackets; the rest is only seen.", "preview support@1 --limit 1"),
    Step("How much that is, before anything is loaded.", "plan support@1"),
    Step("Train an adapter on exactly that version. The base is a toy of 1.8 million parameters.", "train support@1"),
    Step(
        "The same questions before and after. A toy learns the voice of the house, not its facts.",
        "chat r1 --compare --max-tokens 60"
        " --prompt 'How long is the warranty?' --prompt 'What does the Gannet cost at the moment?'",
    ),
    Step("Prove that the adapter is made of what its manifest says.", "verify r1"),
)

NEXT = """\
Everything lies in {folder}:
  curate.toml      the recipe: change a rule, and the commands above make support@2
  curate.duckdb    the store: every row, score, verdict, version and run
  adapters/r1      the adapter, with its manifest and its card

Next, in that folder:
  curate trace support_tickets.csv:2       what became of a line
  curate import YOUR.csv --dry-run         how your rows would be read, and what would be refused
  curate init mine.toml                    a full recipe, with every key explained
"""


def demonstrate(folder: Path, show: Callable[[str], None]) -> None:
    """Lay the sample into `folder` and run `STEPS` there; `show` gets every line that is ours.

    Raises `SourceError` when `folder` is not ours to fill, `CurateError` when what trains is not installed, before
    anything is done, and when a step fails.
    """
    _check_training()
    kept = lay_out(folder)
    if kept is not None:
        show(f"The earlier demo is kept, with all that is in it: {kept}")
    if installed_version("unsloth") is None:
        _without_unsloth(folder / "curate.toml")
        show('Unsloth is not installed: TRL and PEFT train, engine = "transformers" in the recipe.')
    for number, step in enumerate(STEPS, start=1):
        show(f"\n{number}/{len(STEPS)}  {step.why}\n$ curate {step.command}")
        _run(step.command, folder)
    show("\n" + NEXT.format(folder=folder))
    if shutil.which("curate") is None:
        show(f"To type curate alone: source {Path(sys.executable).parent / 'activate'}")


def _check_training() -> None:
    missing = missing_of("train")
    if missing:
        what = f"The demo trains a model, and for that are missing: {', '.join(missing)}."
        raise CurateError(what, f"{install_command('train')}; without it: curate import FILE.")


def _without_unsloth(recipe: Path) -> None:
    """Let the other engine train."""
    text = recipe.read_text(encoding="utf-8")
    write_text(recipe, text.replace("[train]\n", '[train]\nengine = "transformers"\n'))


def sample_folder() -> Path:
    """Where the sample lies: inside an installed `curate`, or beside it in a checkout."""
    package = Path(__file__).parent
    installed, checkout = package / "data", package.parent / "data"
    return installed if installed.is_dir() else checkout


def lay_out(folder: Path) -> Path | None:
    """A fresh `folder` with the sample in it; where an earlier demo was, the folder that now keeps it.

    Raises `SourceError` when `folder` holds anything else.
    """
    kept = None
    if (folder / MARK).is_file():
        kept = next(path for n in itertools.count(1) if not (path := folder.with_name(f"{folder.name}.{n}")).exists())
        folder.rename(kept)
    elif folder.exists() and any(folder.iterdir()):
        raise SourceError(
            f"{folder} is not empty and was not made by a demo.", "Give a new folder: curate demo --to NAME"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    for name in SAMPLE:
        shutil.copy(sample_folder() / name, folder / name)
    shutil.copytree(sample_folder() / TINY, folder / TINY)
    return kept


def _run(command: str, folder: Path) -> None:
    """Run `curate command` in `folder`, with the store there whatever CURATE_STORE says."""
    environment = {name: value for name, value in os.environ.items() if name != "CURATE_STORE"}
    arguments = [sys.executable, "-P", "-m", "curate", *shlex.split(command)]
    done = subprocess.run(arguments, cwd=folder, env=environment, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise CurateError(
            f"The step `curate {command}` ended with exit code {done.returncode}; its own message stands above.",
            f"cd {shlex.quote(str(folder))} and run it there; curate doctor says what is missing.",
        )
