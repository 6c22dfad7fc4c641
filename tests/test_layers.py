"""Layers: imports point downwards only, and libraries neither print nor import the command line."""

import ast
import re
import tomllib

import pytest
from support.project import CLI, LAYERS, ROOT, imported_modules, imported_packages, modules, parse

ABOVE = {"schemas": {"curate", "train"}, "curate": {"train"}, "train": {"curate"}}
TERMINAL = {"typer", "rich"}
ORDER = {
    "curate": ("ingest", "scorers", "rule_columns", "dedup", "selection", "versions", "review"),
    "train": ("tokens", "model", "engines", "plan", "runs", "inference", "export", "checks"),
}
PROGRAMS = ("curate/review/argilla/server/", "train/export/llamacpp/server.py")  # child processes that report on stdout


def libraries(layer):
    return [path for path in modules(layer) if not path.is_relative_to(CLI)]


def forbidden_imports(layer, forbidden):
    imports = {relative(path): imported_packages(path) & forbidden for path in libraries(layer)}
    return {path: names for path, names in imports.items() if names}


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_library_imports_no_layer_above_or_next_to_it(layer):
    assert forbidden_imports(layer, ABOVE[layer]) == {}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_library_imports_neither_typer_nor_rich(layer):
    assert forbidden_imports(layer, TERMINAL) == {}


@pytest.mark.parametrize("layer", LAYERS)
def test_only_the_entry_point_imports_the_command_line(layer):
    users = {
        relative(path)
        for path in libraries(layer)
        if any(f"{name}.".startswith("curate.cli.") for name in imported_modules(path))
    }
    assert users <= {"curate/__main__.py"}


@pytest.mark.parametrize("layer", ORDER)
def test_a_folder_imports_only_folders_below_it(layer):
    upward = [
        f"{relative(path)} imports {name}"
        for path in libraries(layer)
        for name in imported_modules(path)
        if name.startswith(f"{layer}.") and rank(layer, ".".join(path.relative_to(ROOT).parts)) < rank(layer, name)
    ]
    assert upward == []


def rank(layer, module):
    """Position of a module's folder in the import order; modules outside of it, such as `demo`, are at the top."""
    folder = module.split(".")[1]
    return ORDER[layer].index(folder) if folder in ORDER[layer] else len(ORDER[layer])


@pytest.mark.parametrize("layer", LAYERS)
def test_a_library_prints_nothing(layer):
    printing = [relative(path) for path in libraries(layer) if any(map(prints, ast.walk(parse(path))))]
    assert [path for path in printing if not path.startswith(PROGRAMS)] == []


def prints(node):
    """Whether a node is a `print` call to stdout or stderr; `print(…, file=log)` is not."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"):
        return False
    target = next((ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "file"), "sys.stdout")
    return target in {"sys.stdout", "sys.stderr"}


def test_every_extra_installs_a_package_that_some_module_imports():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    imported = {name for layer in LAYERS for path in modules(layer) for name in imported_packages(path)}
    unused = {
        extra
        for extra, requirements in extras.items()
        if not {re.match(r"\w+", requirement)[0] for requirement in requirements} & imported
    }
    assert unused == {"dev"}
