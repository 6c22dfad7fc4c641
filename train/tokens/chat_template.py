"""In: the name of a chat template. Out: its Jinja text, and a function that renders messages with it.

A name is "tokenizer" (the model's own template), a file of `train/templates/`, one of Unsloth's, or the path of a
Jinja file. Rendering is what transformers' `apply_chat_template` does, in the same sandbox, with one difference:
a template that asks for today's date has `PINNED_DATE` written into it, so that neither training nor serving depends
on the day.
"""

from __future__ import annotations

import difflib
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
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.digest import text_digest
from schemas.environment import install_command
from schemas.errors import TrainError
from train.tokens.pinned_date import pin_date, uses_dynamic_date

PINNED_DATE = datetime(2026, 1, 1)
"""The day that templates are told, whenever they ask: else the same data would give other tokens tomorrow."""

FILES = (".jinja", ".jinja2", ".j2")

BUNDLED_TEMPLATES = Path(__file__).parents[1] / "templates"

RAW = "raw"
"""The template of texts in which nobody asks: words, and the tokens that begin and end a text."""


@dataclass(frozen=True)
class Template:
    """A chat template: its name, its Jinja text, and the SHA-256 of that text.

    `undated` is the text as it was found, before the day was written into it; None where it is not known.
    """

    name: str
    text: str
    undated: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the text, 64 hex digits."""
        return text_digest(self.text)

    def is_of(self, digest: str) -> bool:
        """Whether a digest is this one, or that of the text without the day, which older manifests name."""
        return digest == self.digest or (self.undated is not None and digest == text_digest(self.undated))

    @property
    def raw(self) -> bool:
        """Whether it is of texts, not of conversations."""
        return self.name == RAW


def find_template(name: str, tokenizer_folder: Path) -> Template:
    """The template called `name`, with the day in it; see the head of this file for what a name can be.

    Raises `TrainError` for a name that nobody knows, with the nearest and all that are known, and for a template that
    says every day something else.
    """
    found = _text_of(name, tokenizer_folder)
    try:
        text = pin_date(found, PINNED_DATE)
    except TemplateError as error:
        raise _invalid(name, error) from error
    if uses_dynamic_date(text):
        raise TrainError(
            f"The template {name} asks for today's date in a form that it makes up itself (strftime_now).",
            "Write a date into it, and give it by --template FILE.jinja: it would say every day something else.",
        )
    return Template(Path(name).name if name.endswith(FILES) else name, text, found)


def _text_of(name: str, tokenizer_folder: Path) -> str:
    if name == "tokenizer":
        return _of_tokenizer(tokenizer_folder)
    if name.endswith(FILES):
        return _of_file(Path(name))
    own = BUNDLED_TEMPLATES / f"{name}.jinja"
    if name in (RAW, *bundled_names()):
        return own.read_text(encoding="utf-8")
    unsloth = unsloth_templates()
    if name in unsloth:
        return unsloth[name]
    raise _unknown(name, unsloth)


def bundled_names() -> list[str]:
    """The names of the chat templates that this project brings along."""
    return sorted({path.stem for path in BUNDLED_TEMPLATES.glob("*.jinja")} - {RAW})


@lru_cache(maxsize=8)  # compiling takes as long as some hundred renderings
def compile_template(template: Template) -> Callable[..., str]:
    """A function from the template's variables (`messages`, `tools`, `bos_token` …) to the rendered text.

    Raises `TrainError` for a text that is no Jinja; the function raises jinja2's errors.
    """
    try:
        jinja = _environment().from_string(template.text)
    except TemplateError as error:
        raise _invalid(template.name, error) from error
    jinja.globals = dict(jinja.globals)  # a ChainMap, which each rendering copies: a sixth of its time
    return jinja.render


def _invalid(name: str, error: TemplateError) -> TrainError:
    return TrainError(f"The template {name} is no valid Jinja: {error}.", "Correct the template.")


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: renders what is inside; the masks here come from the structure."""

    tags = {"generation"}  # noqa: RUF012  the type that jinja2 declares

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, looking into messages first: `message.role` is no attribute of a dict, and asking costs a fifth."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """What the sandbox answers; for a key of a plain dict without the detour over its attributes."""
        if type(obj) is dict and attribute not in _OF_DICTS and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


_OF_DICTS = frozenset(dir(dict))


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox that transformers 5.17 renders in (`utils/chat_template_utils.py`)."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = PINNED_DATE.strftime  # which templates of older adapters still call
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


def _of_file(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"The template {path} cannot be read: {error}.", "Give the path of a Jinja file.") from error


def _of_tokenizer(folder: Path) -> str:
    """The model's own template: chat_template.jinja, else the key of tokenizer_config.json, as transformers looks."""
    beside = folder / "chat_template.jinja"
    if beside.exists():
        return beside.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    written = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.exists() else None
    if isinstance(written, list):
        written = {entry["name"]: entry["template"] for entry in written}.get("default")
    if isinstance(written, str):
        return written
    raise TrainError(
        f"The tokenizer in {folder} has no chat template of its own.",
        f"Give --template NAME: {', '.join(bundled_names())}, a name of Unsloth's, or a Jinja file.",
    )


def _unknown(name: str, unsloth: Mapping[str, str]) -> TrainError:
    known = sorted({"tokenizer", RAW, *bundled_names(), *unsloth})
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]}?" if near else ""
    more = "" if unsloth else f" Unsloth's are known once it is installed: {install_command('unsloth')}."
    return TrainError(
        f"There is no template {name}.{guess}", f"Known: {', '.join(known)}; or the path of a .jinja file.{more}"
    )


# ---------------------------------------------------------------------------------------------- Unsloth's templates

_DUMP = """
import json, sys
from unsloth.chat_templates import CHAT_TEMPLATES, DEFAULT_SYSTEM_MESSAGE
def filled(name, text):
    message = DEFAULT_SYSTEM_MESSAGE.get(name)
    for plain, escaped in (("\\\\", "\\\\\\\\"), ("'", "\\\\'"), ('"', '\\\\"'), ("\\r", "\\\\r")):
        message = message and message.replace(plain, escaped)
    return text if message is None else text.replace("{system_message}", message)
json.dump({name: filled(name, entry[0]) for name, entry in CHAT_TEMPLATES.items()}, open(sys.argv[1], "w"))
"""


@lru_cache(maxsize=1)
def unsloth_templates() -> Mapping[str, str]:
    """Unsloth's templates by name, their default system message filled in; empty where Unsloth is not installed.

    Importing Unsloth takes ten seconds and torch, so one child process does it once per release of Unsloth and
    leaves the texts in the user's cache folder. They are Unsloth's and stay out of this project.
    """
    try:
        path = cache_folder() / "templates" / f"unsloth-{version('unsloth')}.json"
    except PackageNotFoundError:
        return {}
    if not path.exists():
        _dump_unsloth(path)
    read: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return read


def cache_folder() -> Path:
    """Where this project keeps what it can make again: `CURATE_CACHE`, else `curate` in the user's cache folder."""
    given = os.environ.get("CURATE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curate"


def _dump_unsloth(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    quiet = {"UNSLOTH_AUTO_INSTALL": "0", "UNSLOTH_DISABLE_STATISTICS": "1"}
    command: Sequence[str] = (sys.executable, "-P", "-c", _DUMP, str(unfinished))
    done = subprocess.run(command, env=os.environ | quiet, cwd=path.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not unfinished.exists():
        reason = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise TrainError(
            f"Unsloth is installed but its templates cannot be read: {reason}",
            f"Try: python -c 'import unsloth'; or use one of {', '.join(bundled_names())}.",
        )
    unfinished.replace(path)
