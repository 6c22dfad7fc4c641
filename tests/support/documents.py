"""Documents as data: the commands with their help, the file trees and the console blocks.

`make command-table` prints the command table of the README.
"""

import re

import typer
from support.project import LAYERS, ROOT, project_files
from typer.core import TyperGroup

from curate.cli.app import app

FOLDERS = (*LAYERS, "tests", "data")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def all_commands(group=None, prefix=""):
    """Visible commands by name, for example `review users add`, in the order of the help."""
    group, commands = group or typer.main.get_command(app), {}
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, TyperGroup) and command.invoke_without_command:
            commands[f"{prefix}{name}"] = command
        if isinstance(command, TyperGroup):
            commands |= all_commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            commands[f"{prefix}{name}"] = command
    return commands


def purpose(command):
    """The first sentence of a command's help."""
    text = " ".join((command.help or "").partition("\b\n")[0].split())
    return re.split(r"(?<=\.) ", text)[0]


def command_table():
    """The README's table of commands, from their help."""
    rows = [f"| `curate {name}` | {purpose(command)} |" for name, command in all_commands().items()]
    return "\n".join(["| command | purpose |", "| --- | --- |", *rows])


JSON_GUIDE = ROOT / "curate" / "cli" / "README.md"


def json_documents():
    """Name of a command, with the option that changes its document, -> keys of its document, from the guide."""
    rows = r"^\| `([^`]+)` \| ((?:list of )?(?:the columns|`).*) \|$"
    return dict(re.findall(rows, JSON_GUIDE.read_text(encoding="utf-8"), re.MULTILINE))


def commands_with(option):
    """The names of the commands that have an option, such as --json."""
    commands = all_commands().items()
    return {name for name, command in commands if any(option in parameter.opts for parameter in command.params)}


def file_tree(folder):
    """Paths and purposes in the code block of a folder's README; two spaces of indent per level."""
    block = re.search(r"```text\n(.*?)```", (ROOT / folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    parents, purposes = [folder], {}
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, text = line.strip().partition(" ")
        parents[depth + 1 :] = [name.rstrip("/")]
        purposes["/".join(parents) + "/" * name.endswith("/")] = text.strip()
    return purposes


def disk_tree(folder):
    """Files and folders below a folder, except that `data/tiny/` counts as one."""
    files = [path for path in project_files(folder) if not path.is_relative_to("data/tiny")]
    folders = {f"{parent}/" for path in files for parent in path.parents if len(parent.parts) > 1}
    return {*map(str, files), *folders, *(["data/tiny/"] if folder == "data" else [])}


def console_blocks():
    """Each `$ curate …` line of the README's console blocks, with the shown parts of its output."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for part in "\n".join(blocks).split("$ ")[1:]:
        command, *shown = part.strip().splitlines()
        yield command, [piece for line in shown for piece in line.split("…") if piece.strip()]


if __name__ == "__main__":
    print(command_table())
