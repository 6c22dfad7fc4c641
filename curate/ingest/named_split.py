"""The path of a source → the split that its README, file, folder or dataset names, such as `test`.

It is stored with each row as `meta.split`, unless the source has a column `split`; `curate freeze` uses both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from curate.ingest.readers.compression import COMPRESSED

SPLIT_COLUMN = "split"
"""The column in which rows keep the name of their split, as `meta.split`."""

TRAIN_NAMES = ("train", "training")
HELD_OUT_NAMES = (
    *("test", "testing", "validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    *("held_out", "heldout", "holdout"),
)
"""Words for the splits of published datasets and of our own exports."""

_WORD = "|".join(sorted((*TRAIN_NAMES, *HELD_OUT_NAMES), key=len, reverse=True))
_FIRST, _LAST = re.compile(rf"({_WORD})(?=[-_. ]|$)"), re.compile(rf"(?:^|(?<=[-_. ]))({_WORD})$")
_SHARD = re.compile(r"([-_. ](v?\d[\d.]*|of|[0-9a-f]{16}))+$")
"""The end of `train-00000-of-00002-0123456789abcdef` and of `dev-v1.1`."""

README, README_FOLDERS = "README.md", 3
"""The metadata of a dataset on the Hugging Face hub, in the folder of a file or up to two folders above."""

_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?\n)---[ \t]*(\r?\n|$)", re.DOTALL)


def find_named_split(path: str) -> str | None:
    """The word for a split in `name#split`, in the README of a dataset, or in the name of a file or its folder.

    A README names splits in its metadata (`configs`, `data_files`), which precedes the names of files. None if no split
    is named.

    `test.jsonl`, `train-00000-of-00002.parquet` and `dev-v1.1.json` are named after a split. With further words
    (`squad_train.json`), and for folders (`test/part-1.csv`), a neighbour of the other split is required
    (`squad_dev.json`, `train/`): `test_results.csv` and `~/dev/tickets.csv` are not named after a split.
    """
    _name, _, part = path.partition("#")
    if part and not Path(path).exists():
        return _split_name(part)[0]
    file = Path(path)
    if word := _find_in_readme(file):
        return word
    word, rest = _split_name(_stem(file.name))
    if word and (not rest or _has_neighbour(file, word, rest)):
        return word
    word, rest = _split_name(file.parent.name)
    return word if word and not rest and _has_neighbour(file.parent, word, rest) else None


def _find_in_readme(file: Path) -> str | None:
    """The word for the split whose pattern in the nearest README matches the file."""
    for folder in [*file.absolute().parents][:README_FOLDERS]:
        name = file.absolute().relative_to(folder).as_posix()
        for split, pattern in _read_patterns(folder / README):
            if fnmatch(name, pattern) and (word := _split_name(split)[0]):
                return word
    return None


def _read_patterns(readme: Path) -> Iterator[tuple[str, str]]:
    """The splits and path patterns in `configs`; nothing if there are none, or the metadata cannot be read."""
    try:
        metadata = _FRONT_MATTER.match(readme.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return
    values = _load_yaml(metadata[1]) if metadata else None
    configs = values.get("configs") if isinstance(values, dict) else None
    for config in configs if isinstance(configs, list) else []:
        files = config.get("data_files") if isinstance(config, dict) else None
        for entry in files if isinstance(files, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("split"), str):
                paths = entry.get("path")
                for pattern in paths if isinstance(paths, list) else [paths]:
                    yield entry["split"], str(pattern)


def _load_yaml(text: str) -> object:
    """The content of a YAML text; None if it is not valid."""
    import yaml  # 0.01 s, and most files are not next to a README with metadata

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _stem(name: str) -> str:
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).stem


def _split_name(name: str) -> tuple[str | None, str]:
    """The word for a split at the start or the end of a name, and the rest without the numbers of a shard."""
    stem = _SHARD.sub("", name.lower())
    match = _FIRST.match(stem) or _LAST.search(stem)
    return (match[1], stem[: match.start(1)] + stem[match.end(1) :]) if match else (None, stem)


def _has_neighbour(path: Path, word: str, rest: str) -> bool:
    """Whether the folder of `path` has an entry with the same name for the other split."""
    is_folder = path.is_dir()
    try:
        neighbours = [entry for entry in path.absolute().parent.iterdir() if entry.is_dir() == is_folder]
    except OSError:
        return False
    names = (_split_name(entry.name if is_folder else _stem(entry.name)) for entry in neighbours)
    return any(other and same == rest and (other in TRAIN_NAMES) != (word in TRAIN_NAMES) for other, same in names)
