"""The house: which package may import which, what starts quickly, and that the README tells the truth."""

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from curate.cli.app import app
from schemas.environment import install_command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLOORS = {"schemas": {"curate", "train"}, "curate": {"train"}, "train": {"curate"}}
ROOF = ROOT / "curate" / "cli"
FOLDERS = ("curate", "train", "schemas", "tests", "data")
HEAVY = ("polars", "duckdb", "pydantic", "torch", "pyarrow", "numpy", "tokenizers", "transformers", "rich.console")


def commands_of(group, before=""):
    """Every command under its whole name; one that holds others stands for these."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands_of(command, f"{before}{name} ")
        elif not command.hidden:
            yield f"{before}{name}", command


COMMANDS = dict(commands_of(typer.main.get_command(app)))


# floors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", FLOORS)
def test_a_floor_imports_nothing_from_above_or_beside(package):
    modules = [path for path in (ROOT / package).rglob("*.py") if not path.is_relative_to(ROOF)]
    wrong = {str(path.relative_to(ROOT)): imported(path) & FLOORS[package] for path in modules}
    assert {path: names for path, names in wrong.items() if names} == {}


def imported(path):
    """The top-level packages that a module imports, inside functions too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    whole = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in plain | whole}


def test_nothing_heavy_is_imported_at_start():
    script = "import sys, curate.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert set(HEAVY) & set(done.stdout.split()) == set()


def test_ctrl_c_while_everything_is_still_being_imported_is_no_traceback(curate, tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    ran = curate("--help", PYTHONPATH=str(tmp_path))
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "Interrupted; nothing was begun.\n")


def test_a_hidden_package_is_named_in_one_sentence(curate, tmp_path):
    (tmp_path / "train.py").touch()
    ran = curate("doctor", PYTHONPATH=str(tmp_path))
    assert ran.returncode == 1
    assert f"finds the package `train` in {tmp_path / 'train.py'}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_package_of_an_extra_that_is_missing_is_named_with_the_extra(curate, tmp_path):
    hidden = tmp_path / "hidden"
    (hidden / "torch").mkdir(parents=True)
    (hidden / "torch" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    lay_out(tmp_path / "w", steps=2)
    for command in ("import chats.jsonl", "freeze chats"):
        assert curate(*command.split(), "--set", "select.rules={}", cwd=tmp_path / "w").returncode == 0
    ran = curate("train", "chats@1", cwd=tmp_path / "w", PYTHONPATH=str(hidden))
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-2:] == [
        "Error: This needs torch, which is not installed.",
        f"  → {install_command('train')}",
    ]


def test_the_examples_of_what_people_are_asked_find_something_in_the_sample(tmp_path, curate):
    shown = (README + (ROOT / "curate/cli/review.py").read_text(encoding="utf-8")).splitlines()
    examples = {
        line.strip().split("--where ")[1].split('"')[1]
        for line in shown
        if "curate review" in line and "--where" in line
    }
    assert examples
    lay_out(tmp_path / "w", steps=2)
    for command in ("import support_tickets.csv chats.jsonl", "score", "select"):
        assert curate(*command.split(), cwd=tmp_path / "w").returncode == 0
    for number, where in enumerate(examples):
        ran = curate("review", "export", f"{number}.csv", "--where", where, cwd=tmp_path / "w")
        assert ran.returncode == 0, ran.stderr


# commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_purpose_an_example_and_a_place(name):
    command = COMMANDS[name]
    assert isinstance(command, TyperCommand)
    purpose, _, example = (command.help or "").partition("\b\n")
    assert purpose.strip().endswith("."), "a docstring opens with what the command does"
    assert example.startswith(f"curate {name}"), "then, behind a line with \\b, an example to paste"
    assert command.rich_help_panel, "and the command stands under a heading of the help"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_in_the_readme(name):
    assert re.search(rf"^\| `curate {name}` ", README, re.MULTILINE), f"the table of commands lacks {name}"


def test_the_readme_names_no_command_that_is_not_there():
    assert set(re.findall(r"^\| `curate ([\w -]+)", README, re.MULTILINE)) == set(COMMANDS)


# the README ----------------------------------------------------------------------------------------------------


def test_the_file_tree_in_the_readme_is_the_one_on_disk():
    assert sorted(tree_in_readme()) == sorted(tree_on_disk())


def tree_in_readme():
    """The paths of the block under "Where things are": a folder ends with /, what lies in it is indented by two."""
    block = re.search(r"## Where things are.*?```\n(.*?)```", README, re.DOTALL).group(1)
    folders = []
    for line in filter(str.strip, block.splitlines()):
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert len(line.split()) > 1, f"{name} has no purpose line"
        folders[depth:] = [name]
        yield "".join(folders)


def tree_on_disk():
    """Every file of the five folders and every folder but those of caches; data/tiny/ counts as one."""
    files = [path for path in files_of_the_project(*FOLDERS) if not path.is_relative_to("data/tiny")]
    folders = {f"{parent}/" for path in files for parent in path.parents if parent != Path()}
    return [*map(str, files), *folders, "data/tiny/"]


def files_of_the_project(*folders):
    """What git tracks or would; where there is no git, as in an unpacked release, all but what tools leave behind."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [Path(line) for line in listed if (ROOT / line).is_file()]
    found = [path.relative_to(ROOT) for folder in folders or ["."] for path in (ROOT / folder).rglob("*")]
    left = (".venv", "demo", "dist", "build", "unsloth_compiled_cache")
    ours = [path for path in found if path.parts[0] not in left and "__pycache__" not in path.parts]
    return [path for path in ours if (ROOT / path).is_file() and not re.search(r"(^|/)\.\w+_cache/", str(path))]


@pytest.mark.slow
def test_the_commands_in_the_readme_run_and_print_what_it_shows(curate, tmp_path, sample):
    lay_out(tmp_path / "w", steps=86)  # those that see every conversation once
    for command, shown in walkthrough():
        ran = curate(*shlex.split(command)[1:], cwd=tmp_path / "w")
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        printed = " ".join((ran.stdout + ran.stderr).split())
        missing = [line for line in shown if " ".join(line.split()) not in printed]
        assert missing == [], f"{command} printed\n{ran.stdout}{ran.stderr}"


def lay_out(folder, steps):
    """The demo's folder, with a recipe that trains for so many steps only."""
    from curate import demo

    demo.lay_out(folder)
    recipe = folder / "curate.toml"
    recipe.write_text(re.sub(r"^steps = \d+", f"steps = {steps}", recipe.read_text(), flags=re.MULTILINE))


def walkthrough():
    """Each `$ curate …` line of the console blocks, with the lines of its output that are shown."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for part in "\n".join(blocks).split("$ ")[1:]:
        command, *shown = part.strip().splitlines()
        yield command, [piece for line in shown for piece in line.split("…") if piece.strip()]


# init, doctor, demo, sample ------------------------------------------------------------------------------------


def test_init_writes_the_default_recipe_with_every_key_and_keeps_what_is_there(curate, tmp_path):
    from schemas.recipe import Recipe, load_recipe

    written = curate("init")
    assert written.returncode == 0
    assert "name a base model in it: model = … under [train]" in written.stdout
    assert load_recipe(tmp_path / "curate.toml") == Recipe()
    again = curate("init")
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert curate("init", "--replace").returncode == 0


def test_the_examples_in_the_recipe_of_init_are_a_valid_recipe():
    from curate.recipe_template import recipe_text
    from schemas.recipe import Recipe

    lines = [line.removeprefix("#") if re.match(r"#\S", line) else line for line in recipe_text().splitlines()]
    written = tomllib.loads("\n".join(lines))
    assert Recipe.model_validate(written)
    assert set(written) == {field.alias or name for name, field in Recipe.model_fields.items()}
    assert set(written["train"]) == set(Recipe().train_part())


def test_doctor_reports_as_json_and_ends_with_0_where_nothing_clashes(curate):
    ran = curate("doctor", "--json")
    findings = json.loads(ran.stdout)
    assert {"Python", "packages", "GPU", "store", "machine"} <= {finding["about"] for finding in findings}
    clashes = [finding for finding in findings if finding["state"] == "clash"]
    assert (ran.returncode, clashes) == (0, [])


def test_doctor_names_a_version_that_does_not_fit_and_what_to_type(monkeypatch):
    from curate import doctor

    there = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.15.0" if name == "trl" else there(name))
    clashes = {finding.about: finding for finding in doctor.diagnose(Path("none.duckdb")) if finding.state == "clash"}
    assert "cannot train without a Triton device" in clashes["trl"].found
    assert clashes["trl"].advice.startswith("pip install 'trl")


@pytest.mark.parametrize(
    ("capability", "state", "advice"), [("9.0", "ok", ""), ("7.5", "note", "pip install xformers")], ids=["H100", "T4"]
)
def test_doctor_says_whether_a_pack_takes_one_attention_call(capability, state, advice, tmp_path, monkeypatch):
    from curate import doctor

    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncase $1 in *compute_cap*) echo {capability};; *) echo 'A card, 1 MiB, 580';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (found,) = (finding for finding in doctor.diagnose(Path("none.duckdb")) if finding.about == "attention")
    assert found.state == state
    assert found.advice.startswith(advice)


def test_doctor_says_that_a_store_is_no_store(curate, tmp_path):
    (tmp_path / "notes.duckdb").write_text("buy milk")
    ran = curate("doctor", "--store", "notes.duckdb")
    assert ran.returncode == 1
    assert "notes.duckdb is not a curate store" in ran.stdout


def test_the_ten_commands_of_the_readme_are_the_steps_of_the_demo():
    from curate.demo import STEPS

    typed = re.findall(r"^\$ curate (.*)", README, re.MULTILINE)
    kept = {"chat": "chat r1 --compare"}
    missing = [
        step.command for step in STEPS if kept.get(step.command.split()[0], step.command) not in " | ".join(typed)
    ]
    assert missing == []


def test_a_demo_says_before_its_first_step_that_nothing_can_train(tmp_path, monkeypatch):
    from curate import demo, doctor
    from schemas.errors import CurateError

    there = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "torch" else there(name))
    said = []
    with pytest.raises(CurateError, match="for that are missing: torch") as raised:
        demo.demonstrate(tmp_path / "demo", said.append)
    assert raised.value.hint.startswith(install_command("train"))
    assert (said, (tmp_path / "demo").exists()) == ([], False)


def test_a_demo_without_unsloth_trains_with_the_other_engine_and_says_so(tmp_path, monkeypatch):
    from curate import demo
    from schemas.recipe import load_recipe

    monkeypatch.setattr(demo, "installed_version", lambda name: None)
    monkeypatch.setattr(demo, "STEPS", ())
    said = []
    demo.demonstrate(tmp_path / "demo", said.append)
    assert said[0].startswith("Unsloth is not installed")
    assert load_recipe(tmp_path / "demo" / "curate.toml").train.engine == "transformers"


def test_every_extra_installs_what_some_module_imports():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    used = {name for folder in FLOORS for path in (ROOT / folder).rglob("*.py") for name in imported(path)}
    idle = {extra for extra, needed in wanted.items() if not {re.match(r"[\w]+", one)[0] for one in needed} & used}
    assert idle == {"dev"}


def test_a_demo_replaces_nothing(curate, tmp_path):
    from curate.demo import lay_out

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    ran = curate("demo", "--to", "mine")
    assert ran.returncode == 1
    assert "not made by a demo" in ran.stderr
    assert lay_out(tmp_path / "demo") is None
    (tmp_path / "demo" / "labels.db").write_text("what people said")
    assert lay_out(tmp_path / "demo") == tmp_path / "demo.1"
    assert lay_out(tmp_path / "demo") == tmp_path / "demo.2"
    kept = (tmp_path / "mine" / "thesis.txt", tmp_path / "demo.1" / "labels.db")
    assert [path.read_text() for path in kept] == ["all my work", "what people said"]


def test_the_sample_is_what_its_script_writes(sample):
    script = runpy.run_path(str(sample / "make_sample.py"))
    topics = tomllib.loads((sample / "topics.toml").read_text(encoding="utf-8"))
    assert script["tickets"](topics).encode() == (sample / "support_tickets.csv").read_bytes()
    assert script["chats"](topics).encode() == (sample / "chats.jsonl").read_bytes()


def test_no_registry_address_and_no_absolute_path_of_a_machine_is_written_down():
    suspicious = re.compile(r"(?:index-url|find-links)[ =]\S+:|/(?:home|root|Users|work)/\w")
    texts = {path: (ROOT / path).read_bytes().decode("utf-8", "replace") for path in files_of_the_project()}
    assert [path for path, text in texts.items() if suspicious.search(text)] == []
    assert not (ROOT / ".ci").exists() or os.access(ROOT / ".ci" / "run", os.X_OK)
