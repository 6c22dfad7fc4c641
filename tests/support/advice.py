"""The import commands that an error prints, as the words that a shell passes on."""

import subprocess

from schemas.errors import SourceError


def printed_commands(error: SourceError) -> list[list[str]]:
    """The words after `curate import` of each command in the hint; the first is the file."""
    lines = [line for line in error.hint.splitlines() if line.startswith("    curate import ")]
    return [_words(line.removeprefix("    curate import ")) for line in lines]


def printed_options(error: SourceError) -> list[list[str]]:
    """The options of each command in the hint."""
    return [words[1:] for words in printed_commands(error)]


def section_fields(options: list[str]) -> dict[str, object]:
    """The fields of `ImportSection` for options."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    fields = {name: value for name, _, value in (word.partition("=") for option, word in pairs if option == "--map")}
    others = {option[2:].replace("-", "_"): word for option, word in pairs if option != "--map"}
    return {**others, **({"map": fields} if fields else {})}


def _words(line: str) -> list[str]:
    """The words of a line, split by a real shell, because advice must work when pasted."""
    output = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True).stdout
    return output.split("\0")[:-1]
