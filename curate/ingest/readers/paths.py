"""Command-line paths → single sources: folders and patterns become their files, sorted by name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from curate.ingest.readers.compression import COMPRESSED, data_suffix
from curate.ingest.readers.formats import FORMATS, SUFFIXES, match_path
from schemas.errors import SourceError, nearest_name
from schemas.text import shell_quote

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""Files that describe a dataset. Folders and patterns skip them; each can be imported by its own name."""


NOTES = re.compile(r"(readme|licen[cs]e|changelog|contributing|citation|notice|requirements)\b.*", re.IGNORECASE)
"""Names of files next to data. Folders skip them; each can be imported by its own name."""


def expand(paths: Sequence[str]) -> list[str]:
    """The distinct sources that `paths` name: files, the files of folders and patterns, datasets, `-`.

    Folders are searched recursively, including linked ones, for files with a known suffix. Hidden files are skipped.
    Raises `SourceError` for a path that matches nothing.
    """
    return list(dict.fromkeys(source for path in paths for source in _sources(path)))


def find_skipped(paths: Sequence[str]) -> list[str]:
    """The files of the folders and patterns in `paths` that `expand` skips, except hidden ones."""
    return [file for path in paths for file in _skipped(path) if file not in paths]


def _skipped(path: str) -> list[str]:
    if not path or match_path(path) or Path(path).is_file():
        return []
    if Path(path).is_dir():
        files = _data_files(Path(path))
        return [str(entry) for entry in _entries(Path(path)) if str(entry) not in files]
    return [str(file) for file in _matches(path) if file.name in DESCRIPTIONS] if _is_pattern(path) else []


def _sources(path: str) -> list[str]:
    try:
        return _resolve(path)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be accessed: {error.strerror}.", "Check the path and its permissions."
        ) from error


def _resolve(path: str) -> list[str]:
    if not path:
        raise SourceError("A file name is empty.", "Check for an unset shell variable.")
    if path == "-" or match_path(path) or Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        return _files_of(path)
    if _is_pattern(path):
        return _matching_files(path)
    if Path(path).exists():
        return [path]
    if Path(path).is_symlink():
        raise SourceError(f"{path} is a link to itself or to a missing file.", "Show its target with ls -l.")
    raise SourceError(f"There is no file or folder {path}.", _suggest(Path(path)))


def _files_of(folder: str) -> list[str]:
    if _is_exported_version(Path(folder)):
        raise SourceError(
            f"{folder} is a version that curate export wrote.",
            f"Restore the version:\n    curate restore {shell_quote(folder)}\n"
            "Import its conversations as new ones by the names of its files.",
        )
    files = _data_files(Path(folder))
    if not files:
        raise SourceError(
            f"The folder {folder} contains no data files.",
            f"Known suffixes: {', '.join(SUFFIXES)}, each also with {' or '.join(COMPRESSED)}.",
        )
    return files


def _entries(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders, sorted, without hidden ones.

    Linked folders are searched last and no folder is searched twice: a link may point to a parent folder, or to the
    target of another link.
    """
    entries: list[Path] = []
    waiting, visited = [folder], set[Path]()
    while waiting:
        current = waiting.pop()
        if current.resolve() in visited:
            continue
        visited.add(current.resolve())
        try:
            children = sorted(child for child in current.iterdir() if not child.name.startswith("."))
        except OSError:  # not readable: listed as an entry, so that it is reported as skipped
            entries.append(current)
            continue
        entries += [child for child in children if not child.is_dir()]
        folders = [child for child in reversed(children) if child.is_dir()]
        linked = [child for child in folders if child.is_symlink()]
        waiting = [*linked, *waiting, *(child for child in folders if child not in linked)]
    return sorted(entries)


def _data_files(folder: Path) -> list[str]:
    """The files with a known suffix. Those that are often something else, such as notes, count if they are alone."""
    files = [entry for entry in _entries(folder) if _is_data(entry)]
    primary = [file for file in files if FORMATS[SUFFIXES[data_suffix(file.name)]].is_primary]
    return [str(file) for file in primary or files]


def _is_exported_version(folder: Path) -> bool:
    try:
        return "bundle" in json.loads((folder / "version.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _is_data(entry: Path) -> bool:
    is_other = entry.name in DESCRIPTIONS or NOTES.fullmatch(entry.name)
    return not is_other and data_suffix(entry.name) in SUFFIXES and entry.is_file()


def _is_pattern(path: str) -> bool:
    return any(wildcard in path for wildcard in "*?[")


def _matching_files(pattern: str) -> list[str]:
    matches = _matches(pattern)
    files = [str(file) for file in matches if file.name not in DESCRIPTIONS]
    if matches and not files:
        raise SourceError(
            f"{pattern} matches only {matches[0]}, which by its name describes a dataset.",
            "If it is data, give its name without a pattern.",
        )
    if not files:
        raise SourceError(f"No file matches {pattern}.", "Check the pattern; ** matches subfolders.")
    return files


def _matches(pattern: str) -> list[Path]:
    root = Path(pattern).anchor
    try:
        paths = list(Path(root).glob(str(Path(pattern).relative_to(root))))
    except ValueError as error:
        hint = "** matches folders and must be a path component of its own: 'data/**/*.csv'"
        raise SourceError(f"{pattern} is not a valid pattern.", hint) from error
    return sorted((path for path in paths if path.is_file()), key=str)


def _suggest(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir() if file.exists()] if path.parent.is_dir() else []
    near = nearest_name(path.name, names)
    return f"Did you mean {path.parent / near}?" if near else "Check the path."
