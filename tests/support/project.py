"""The project's own files and imports, for the tests of layers, documents and the demo."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("schemas", "curate", "train")
CLI = ROOT / "curate" / "cli"
UNTRACKED = (".venv", "demo", "dist", "build", "unsloth_compiled_cache")


def project_files(*folders):
    """Paths that git tracks or would track. Without git, as in an unpacked release: all but what tools leave."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [Path(line) for line in listing.splitlines() if (ROOT / line).is_file()]
    paths = [path.relative_to(ROOT) for folder in folders or ["."] for path in (ROOT / folder).rglob("*")]
    paths = [path for path in paths if path.parts[0] not in UNTRACKED and "__pycache__" not in path.parts]
    return [path for path in paths if (ROOT / path).is_file() and not re.search(r"(^|/)\.\w+_cache/", str(path))]


def modules(layer):
    """The Python files of a layer, as absolute paths."""
    return sorted((ROOT / layer).rglob("*.py"))


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path):
    """Dotted names of the modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update(_submodule(node.module, alias.name) for alias in node.names)
    return names


def imported_packages(path):
    return {name.partition(".")[0] for name in imported_modules(path)}


def _submodule(package, name):
    target = ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if target.is_dir() or target.with_suffix(".py").is_file() else package


def demo_project(folder, steps):
    """Copy the demo's sample and recipe to `folder`, with `train.steps` set to `steps`."""
    from curate import demo

    demo.copy_sample(folder)
    recipe = folder / "curate.toml"
    recipe.write_text(re.sub(r"^steps = \d+", f"steps = {steps}", recipe.read_text(), flags=re.MULTILINE))
