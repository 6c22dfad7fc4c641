"""What a person typed to single sources: folders and patterns become their files, in the order of their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curate.ingest.readers.detect import SUFFIXES, data_suffix, is_dataset
from schemas.errors import SourceError, nearest_name

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""Files that lie beside data and describe it: a folder and a pattern pass them over, by its own name each is read."""


def expand(paths: Sequence[str]) -> list[str]:
    """The sources that `paths` name, each once: files, the files of folders and patterns, datasets, `-`.

    A folder is searched to its bottom, behind links too, for files with a known ending; what starts with a dot is
    passed over.
    Raises `SourceError` for a path that names nothing.
    """
    return list(dict.fromkeys(source for path in paths for source in _named_by(path)))


def passed_over(paths: Sequence[str]) -> list[str]:
    """What `expand` leaves out of the folders and patterns among `paths`; without what a dot hides."""
    return [file for path in paths for file in _passed_over(path) if file not in paths]


def _passed_over(path: str) -> list[str]:
    if not path or is_dataset(path) or Path(path).is_file():
        return []
    if Path(path).is_dir():
        return [str(entry) for entry in _entries(Path(path)) if not _is_data(entry)]
    return [str(file) for file in _matches(path) if file.name in DESCRIPTIONS] if _is_pattern(path) else []


def _named_by(path: str) -> list[str]:
    try:
        return _sources(path)
    except OSError as error:
        what = f"{path} cannot be looked for: {error.strerror}."
        raise SourceError(what, "Check the path, and who may read it.") from error


def _sources(path: str) -> list[str]:
    if not path:
        raise SourceError("The name of a file is empty.", "An unset variable may stand in its place.")
    if path == "-" or is_dataset(path) or Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        return _files_of(path)
    if _is_pattern(path):
        return _matching(path)
    if Path(path).exists():
        return [path]
    if Path(path).is_symlink():
        raise SourceError(f"{path} is a link to something that is not there, or to itself.", "ls -l shows where to.")
    raise SourceError(f"There is no file or folder {path}.", _nearest(Path(path)))


def _files_of(folder: str) -> list[str]:
    files = [str(entry) for entry in _entries(Path(folder)) if _is_data(entry)]
    if not files:
        raise SourceError(
            f"The folder {folder} holds no data.", f"Known endings: {', '.join(SUFFIXES)}, and .gz, .zst."
        )
    return files


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder and in those below it, in order, without what a dot hides.

    Linked folders come last and none is entered twice: a link may lead back, or to where another one leads.
    """
    found: list[Path] = []
    waiting, entered = [folder], set[Path]()
    while waiting:
        at = waiting.pop()
        if at.resolve() in entered:
            continue
        entered.add(at.resolve())
        try:
            entries = sorted(entry for entry in at.iterdir() if not entry.name.startswith("."))
        except OSError:  # it may not be entered: then it is left out, and said to be
            found.append(at)
            continue
        found += [entry for entry in entries if not entry.is_dir()]
        folders = [entry for entry in reversed(entries) if entry.is_dir()]
        linked = [entry for entry in folders if entry.is_symlink()]
        waiting = [*linked, *waiting, *(entry for entry in folders if entry not in linked)]
    return sorted(found)


def _is_data(entry: Path) -> bool:
    return entry.name not in DESCRIPTIONS and data_suffix(entry.name) in SUFFIXES and entry.is_file()


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _matching(pattern: str) -> list[str]:
    matches = _matches(pattern)
    files = [str(file) for file in matches if file.name not in DESCRIPTIONS]
    if matches and not files:
        what = f"{pattern} matches nothing but {matches[0]}, which describes data by its name."
        raise SourceError(what, "Name it without a pattern if it is data.")
    if not files:
        raise SourceError(f"No file matches {pattern}.", "Check the pattern; ** reaches into folders.")
    return files


def _matches(pattern: str) -> list[Path]:
    root = Path(pattern).anchor
    try:
        found = list(Path(root).glob(str(Path(pattern).relative_to(root))))
    except ValueError as error:
        hint = "** stands for folders, between slashes alone: 'data/**/*.csv'"
        raise SourceError(f"{pattern} is no pattern that can be followed.", hint) from error
    return sorted((file for file in found if file.is_file()), key=str)


def _nearest(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir() if file.exists()] if path.parent.is_dir() else []
    near = nearest_name(path.name, names)
    return f"Did you mean {path.parent / near}?" if near else "Check the path."
