"""Documents: commands, tables, file trees and console blocks in them match the program and the disk."""

import re
import shlex

import pytest
import typer
from support.documents import (
    FOLDERS,
    README,
    all_commands,
    command_table,
    commands_with,
    console_blocks,
    disk_tree,
    file_tree,
    json_documents,
    purpose,
)
from support.project import ROOT, demo_project, project_files
from typer.core import TyperCommand, TyperGroup

from curate.cli.app import Commands, app
from schemas.import_recipe import ImportSection

COMMANDS = all_commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_purpose_an_example_and_a_heading(name):
    command = COMMANDS[name]
    assert isinstance(command, TyperCommand | TyperGroup)
    assert purpose(command).endswith("."), "the docstring starts with the purpose, a sentence"
    example = (command.help or "").partition("\b\n")[2]
    assert example.startswith(f"curate {name}"), "after a line with \\b follows an example"
    assert command.rich_help_panel, "the command has a heading in `curate --help`"


def test_the_help_of_curate_shows_the_purposes_of_its_commands():
    """They are in a table, because the help does not import the commands."""
    stated = {command.name: command.short_help for command in Commands.lazy_commands}
    group = typer.main.get_command(app)
    loaded = {name: purpose(group.get_command(typer.Context(group), name)) for name in stated}
    assert stated == loaded


def test_the_command_table_of_the_readme_is_the_help_of_the_commands():
    """To refresh it: `make command-table`."""
    assert command_table() in README


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_file_tree_of_a_readme_is_the_one_on_disk(folder):
    tree = file_tree(folder)
    assert sorted(tree) == sorted(disk_tree(folder))
    assert [path for path, text in tree.items() if not text] == [], "every file has a purpose"


def test_relative_links_between_documents_lead_to_files():
    documents = [path for path in project_files() if path.suffix == ".md"]
    links = [
        (document, link)
        for document in documents
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    ]
    assert len(links) > 20
    assert [(str(document), link) for document, link in links if not (ROOT / document.parent / link).exists()] == []


def test_paths_named_in_the_contribution_guide_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = [
        path for path in re.findall(r"`([\w./-]+)`", text) if "/" in path or path.endswith((".md", ".py", "-revs"))
    ]
    assert len(paths) > 10
    assert [path for path in paths if not list(ROOT.glob(path)) and not list(ROOT.glob(f"*/**/{path}"))] == []


def test_the_index_of_decisions_lists_every_decision_in_order_and_links_to_it():
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    titles = re.findall(r"^### (.+)", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]  # as GitHub makes them
    assert re.findall(r"^\| \[(.+)\]\(#(.*?)\)", text, re.MULTILINE) == list(zip(titles, anchors, strict=True))


@pytest.mark.slow
def test_the_guide_lists_every_key_of_the_import_section_once():
    text = (ROOT / "curate/ingest/README.md").read_text(encoding="utf-8")
    table = text.split("## Options in the recipe")[1].split("\n## ")[0]
    listed = [key for line in table.splitlines() if line.startswith("|") for key in re.findall(r"`([a-z_]+)`", line)]
    assert sorted(listed) == sorted(ImportSection.model_fields)
    without = table.split("| none:")[1]
    (command,) = (each for name, each in COMMANDS.items() if name == "import")
    options = {parameter.name for parameter in command.params}
    keys = set(re.findall(r"`([a-z_]+)`", without))
    assert keys == set(ImportSection.model_fields) - options - {"map", "roles"}


def test_the_commands_of_the_readme_run_and_print_the_shown_output(curate, tmp_path, sample):
    demo_project(tmp_path / "w", steps=86)  # the fewest that reach every conversation
    for command, shown in console_blocks():
        ran = curate(*shlex.split(command)[1:], cwd=tmp_path / "w")
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        printed = " ".join((ran.stdout + ran.stderr).split())
        missing = [line for line in shown if " ".join(line.split()) not in printed]
        assert missing == [], f"{command} printed\n{ran.stdout}{ran.stderr}"


def test_the_ten_commands_of_the_readme_are_the_steps_of_the_demo():
    from curate.demo import STEPS

    typed = " | ".join(re.findall(r"^\$ curate (.*)", README, re.MULTILINE))
    shortened = {"chat": "chat r1 --compare"}
    commands = [shortened.get(step.command.split()[0], step.command) for step in STEPS]
    assert [command for command in commands if command not in typed] == []


def test_the_where_examples_of_review_commands_match_conversations_of_the_sample(tmp_path, curate):
    texts = [README, (ROOT / "curate/cli/review.py").read_text(encoding="utf-8")]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "curate" / "review").glob("README.md")]
    lines = [line for text in texts for line in text.splitlines() if "curate review" in line and "--where" in line]
    examples = {line.split("--where ")[1].split('"')[1] for line in lines}
    assert examples
    demo_project(tmp_path / "w", steps=2)
    for command in ("import support_tickets.csv chats.jsonl", "score", "select"):
        assert curate(*command.split(), cwd=tmp_path / "w").returncode == 0
    for number, where in enumerate(examples):
        ran = curate("review", "export", f"{number}.csv", "--where", where, cwd=tmp_path / "w")
        assert ran.returncode == 0, ran.stderr


def test_the_guide_has_the_json_document_of_every_command_that_prints_one():
    assert {name.partition(" --")[0] for name in json_documents()} == commands_with("--json")
