"""The name of a chat template → its Jinja text, and a function that renders messages with it.

A name is "tokenizer" (the model's own template), a file of `train/templates/`, one of Unsloth's templates, or the path
of a Jinja file. Rendering equals transformers' `apply_chat_template`, in the same sandbox, with one exception: in a
template that uses today's date, `PINNED_DATE` replaces it, so that neither training nor inference depends on the day.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.atomic import atomic_file
from schemas.digest import text_digest
from schemas.environment import install_command
from schemas.errors import TrainError, nearest
from train.tokens.pinned_date import pin_date, uses_dynamic_date
from train.tokens.template_budget import TEMPLATE_CHARACTERS, check_operands, limit_rendering, limit_template

PINNED_DATE = datetime(2026, 1, 1)
"""The date in every template that uses today's; otherwise the same data would have other tokens tomorrow."""

FILES = (".jinja", ".jinja2", ".j2")

BUNDLED_TEMPLATES = Path(__file__).parents[1] / "templates"

RAW = "raw"
"""The template for plain-text pretraining: the text between its begin and end tokens."""


@dataclass(frozen=True)
class Template:
    """A chat template: its name and its Jinja text, with the date pinned.

    `unpinned` is the original text, or None if it is not known.
    """

    name: str
    text: str
    unpinned: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the text, 64 hex digits."""
        return text_digest(self.text)

    def matches(self, digest: str) -> bool:
        """Whether a digest is that of the text, or of the original text, which older manifests record."""
        return digest == self.digest or (self.unpinned is not None and digest == text_digest(self.unpinned))

    @property
    def raw(self) -> bool:
        """Whether it is for raw texts instead of conversations."""
        return self.name == RAW


def find_template(name: str, tokenizer_folder: Path) -> Template:
    """The template called `name`, with the date pinned. The module docstring lists possible names.

    Raises `TrainError` for an unknown name, and for a template whose date cannot be pinned.
    """
    unpinned = _find_text(name, tokenizer_folder)
    try:
        text = pin_date(unpinned, PINNED_DATE)
    except TemplateError as error:
        raise _invalid(name, error) from error
    if uses_dynamic_date(text):
        raise TrainError(
            f"The template {name} prints today's date in a format that it computes (strftime_now), so it would render "
            "other tokens every day.",
            "Write a date into a copy of it, and use --template FILE.jinja.",
        )
    return Template(Path(name).name if name.endswith(FILES) else name, text, unpinned)


def _find_text(name: str, tokenizer_folder: Path) -> str:
    if name == "tokenizer":
        return _read_tokenizer_template(tokenizer_folder)
    if name.endswith(FILES):
        return _read_file(Path(name))
    if name in (RAW, *bundled_names()):
        return (BUNDLED_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    unsloth = unsloth_templates()
    if name in unsloth:
        return unsloth[name]
    raise _unknown(name, unsloth)


def bundled_names() -> list[str]:
    """The names of the chat templates of this project."""
    return sorted({path.stem for path in BUNDLED_TEMPLATES.glob("*.jinja")} - {RAW})


@lru_cache(maxsize=8)  # compiling takes as long as some hundred renderings
def compile_template(template: Template) -> Callable[..., str]:
    """A function from the template's variables (`messages`, `tools`, `bos_token` …) to the rendered text.

    Raises `TrainError` for text that is not valid Jinja; the function raises jinja2's errors, and `TrainError` beyond
    the limits of `template_budget`.
    """
    if len(template.text) > TEMPLATE_CHARACTERS:
        raise TrainError(
            f"The template {template.name} has {len(template.text):,} characters; the maximum is "
            f"{TEMPLATE_CHARACTERS:,}.",
            "Check that it is a chat template.",
        )
    try:
        with limit_template(template.name):
            jinja = _environment().from_string(template.text)
    except (TemplateError, SyntaxError, OverflowError) as error:
        raise _invalid(template.name, error) from error
    jinja.globals = dict(jinja.globals)  # each rendering would copy the ChainMap: a sixth of its time
    return limit_rendering(template.name, jinja.render)


def _invalid(name: str, error: Exception) -> TrainError:
    reason = f"{str(error).rstrip('.') or type(error).__name__}"
    return TrainError(f"The template {name} is not valid Jinja: {reason}.", "Correct the template.")


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: renders its content; the loss mask does not depend on these tags."""

    tags = {"generation"}  # noqa: RUF012  the type that jinja2 declares

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, but a dict's key precedes its attributes: looking for `message.role` there takes a fifth longer."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator whose result may be large."""
        check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The value that the sandbox returns; for a key of a plain dict without a search in its attributes."""
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


_DICT_ATTRIBUTES = frozenset(dir(dict))


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox of transformers 5.17 (`utils/chat_template_utils.py`)."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = PINNED_DATE.strftime  # called by templates of older adapters
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _read_file(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"The template {path} cannot be read: {error}.", "Use the path of a Jinja file.") from error


def _read_tokenizer_template(folder: Path) -> str:
    """The model's own template: chat_template.jinja, otherwise a key of tokenizer_config.json, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return _read_file(file)
    config = folder / "tokenizer_config.json"
    try:
        template = json.loads(_read_file(config)).get("chat_template") if config.exists() else None
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise TrainError(f"{config} is not valid: {error}.", "Save the tokenizer again.") from error
    if isinstance(template, str):
        return template
    raise TrainError(
        f"The tokenizer in {folder} has no chat template.",
        f"Use --template NAME: {', '.join(bundled_names())}, a name of Unsloth's, or a Jinja file.",
    )


def _unknown(name: str, unsloth: Mapping[str, str]) -> TrainError:
    known = sorted({"tokenizer", RAW, *bundled_names(), *unsloth})
    more = "" if unsloth else f" For Unsloth's templates: {install_command('unsloth')}."
    return TrainError(
        f"There is no template {name}{nearest(name, known)}",
        f"Known: {', '.join(known)}; or the path of a .jinja file.{more}",
    )


# ---------------------------------------------------------------------------------------------- Unsloth's templates

_DUMP = """
import json, sys
from unsloth.chat_templates import CHAT_TEMPLATES, DEFAULT_SYSTEM_MESSAGE
def insert_system_message(name, text):
    message = DEFAULT_SYSTEM_MESSAGE.get(name)
    for plain, escaped in (("\\\\", "\\\\\\\\"), ("'", "\\\\'"), ('"', '\\\\"'), ("\\r", "\\\\r")):
        message = message and message.replace(plain, escaped)
    return text if message is None else text.replace("{system_message}", message)
texts = {name: insert_system_message(name, entry[0]) for name, entry in CHAT_TEMPLATES.items()}
json.dump(texts, open(sys.argv[1], "w"))
"""


@lru_cache(maxsize=1)
def unsloth_templates() -> Mapping[str, str]:
    """Unsloth's templates by name, with their default system message; empty if Unsloth is not installed.

    Importing Unsloth takes ten seconds and torch, so a child process does it once per release of Unsloth and writes the
    texts to the cache. They are not part of this project, since they are Unsloth's.
    """
    path = _unsloth_file()
    if path is None:
        return {}
    if not path.exists():
        _dump_unsloth(path)
    texts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return texts


def known_unsloth_names() -> list[str]:
    """The names of Unsloth's templates if an earlier command wrote their texts; otherwise none, without a wait."""
    path = _unsloth_file()
    return list(unsloth_templates()) if path is not None and path.exists() else []


def _unsloth_file() -> Path | None:
    """The file of the texts for the installed release of Unsloth; None without Unsloth."""
    try:
        return cache_folder() / "templates" / f"unsloth-{version('unsloth')}.json"
    except PackageNotFoundError:
        return None


def cache_folder() -> Path:
    """The folder for files that can be made again: `CURATE_CACHE`, otherwise `curate` in the user's cache folder."""
    folder = os.environ.get("CURATE_CACHE")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curate"


def _dump_unsloth(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    variables = os.environ | {"UNSLOTH_AUTO_INSTALL": "0", "UNSLOTH_DISABLE_STATISTICS": "1"}
    with atomic_file(path) as temporary:
        command: Sequence[str] = (sys.executable, "-P", "-c", _DUMP, str(temporary))
        ran = subprocess.run(command, env=variables, cwd=path.parent, capture_output=True, text=True, check=False)
        if ran.returncode != 0 or not temporary.exists():
            reason = (ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[-1]
            raise TrainError(
                f"Unsloth is installed but its templates cannot be read: {reason}",
                f"Try python -c 'import unsloth', or use one of {', '.join(bundled_names())}.",
            )
