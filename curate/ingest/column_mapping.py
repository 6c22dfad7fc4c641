"""Mapping: which column is what. From the columns and cells of a source to a shape and its fields.

Names decide first; cells decide where names say nothing, and whether a named column holds what its name promises.
Where two readings are possible nothing is guessed: the error lists them, each with the options that ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import polars as pl

from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, Shape
from schemas.errors import SourceError, nearest
from schemas.recipe import ImportSection
from schemas.text import join_names, plural

__all__ = [
    "ColumnMapping",
    "ParsedTable",
    "extend_mapping",
    "find_mapping",
    "merge_mappings",
    "metadata_json",
    "parse_table",
]

_GLANCE = 100
"""Cells that are looked at before all of them: one that fits is enough, and it is nearly always among these."""

_LISTED = 6
"""Readings that an error lists; more would not be read."""

_NAMES = 20
"""Names of columns that an error lists; some exports have hundreds."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """A mapping that is possible. Not `sure`: it rests on weak names, or has to be asked for."""

    mapping: ColumnMapping
    sure: bool


def find_mapping(table: pl.DataFrame, wanted: ImportSection) -> ColumnMapping:
    """The mapping that the columns and cells of `table` ask for, under what the recipe or the options say.

    Raises `SourceError` for a field or column that is not known, for preference data, when no shape fits, when
    two readings are possible and when rows of two shapes are mixed.
    """
    asked = _asked(table, wanted)
    readings = _readings(table, wanted.shape, asked)
    sure = _largest([reading.mapping for reading in readings if reading.sure])
    if not sure:
        raise _nothing_found(table, wanted.shape, asked, [reading.mapping for reading in readings])
    if len(sure) > 1:
        raise _mixed(table, sure) or _ambiguous(sure)
    return sure[0]


def extend_mapping(mapping: ColumnMapping, table: pl.DataFrame, wanted: ImportSection) -> ColumnMapping:
    """The mapping after one more batch of the same source: what `find_mapping` says of it, merged.

    A batch in which no shape can be found, such as one of broken cells, leaves the mapping as it is: its rows
    become rejects. Raises `SourceError` when the batch contradicts the mapping.
    """
    asked = {name: column for name, column in _options(wanted).items() if not column or column in table.columns}
    sure = _largest([reading.mapping for reading in _readings(table, wanted.shape, asked) if reading.sure])
    sure = [found for found in sure if found.shape == mapping.shape or not SHAPES[found.shape].last]
    if len(sure) > 1:
        raise _mixed(table, sure) or _ambiguous(sure)
    return merge_mappings(mapping, sure[0]) if sure else mapping


def merge_mappings(first: ColumnMapping, following: ColumnMapping) -> ColumnMapping:
    """One mapping for two batches of a source; the later one may have more optional columns.

    Raises `SourceError` when they contradict each other.

    >>> first, following = ColumnMapping("pairs", {"question": "q"}), ColumnMapping("pairs", {"system": "s"})
    >>> merge_mappings(first, following).fields
    {'question': 'q', 'system': 's'}
    """
    same = all(following.fields.get(name, column) == column for name, column in first.fields.items())
    if first.shape == following.shape and same:
        return ColumnMapping(first.shape, {**first.fields, **following.fields})
    raise SourceError(
        f"The source changes on the way: it begins as {_described(first)} and goes on as {_described(following)}.",
        _choose([first, following]),
    )


def parse_table(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table: every row ends in turns or in a problem."""
    return SHAPES[mapping.shape].read(table, mapping)


def metadata_json(table: pl.DataFrame, mapping: ColumnMapping) -> pl.Series:
    """JSON text per row of the columns that are no part of the conversation; null where a row has none.

    >>> table = pl.DataFrame({"q": ["Hi"], "a": ["Ho"], "id": ["7"]})
    >>> metadata_json(table, ColumnMapping("pairs", {"question": "q", "answer": "a"}))[0]
    '{"id":"7"}'
    """
    used = set(mapping.fields.values())
    rest = pl.DataFrame([table[name] for name in table.columns if name not in used])  # `pl.col("*")` is every column
    if not rest.width:
        return pl.Series("metadata", [None], dtype=pl.String).new_from_index(0, table.height)
    text = rest.to_struct("metadata").struct.json_encode()
    some = rest.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    return pl.select(pl.when(some).then(text).alias("metadata")).to_series()


# --- what was asked for


def _options(wanted: ImportSection) -> dict[str, str]:
    """Field -> column as the options say; an empty column leaves the field out."""
    long = {"group_by": wanted.group_by, "order_by": wanted.order_by, "role": wanted.role, "text": wanted.text}
    return {**wanted.map, **{name: column for name, column in long.items() if column is not None}}


def _asked(table: pl.DataFrame, wanted: ImportSection) -> dict[str, str]:
    """The options, after a check that every name in them is known."""
    asked = _options(wanted)
    if wanted.shape is not None and wanted.shape not in SHAPES:
        raise _unknown("shape", wanted.shape, SHAPES)
    shapes = list(SHAPES.values()) if wanted.shape is None else [SHAPES[wanted.shape]]
    fields = list(dict.fromkeys(name for shape in shapes for name in shape.fields))
    for name, column in asked.items():
        if name not in fields:
            raise _unknown(f"field of {wanted.shape}" if wanted.shape else "field", name, fields)
        if column and column not in table.columns:
            raise _unknown("column", column, table.columns)
    return asked


def _unknown(kind: str, name: str, known: Iterable[str]) -> SourceError:
    names = list(known)
    return SourceError(f"{name} is no known {kind}{nearest(name, names)}", f"There are: {join_names(names, _NAMES)}.")


# --- what is possible


def _readings(table: pl.DataFrame, shape: str | None, asked: dict[str, str]) -> list[_Reading]:
    """All readings of a table; those of a shape that stands last are sure where they are asked for, or all there is."""
    shapes = [shape] if shape else [name for name, known in SHAPES.items() if set(asked) <= set(known.fields)]
    if shape is not None or asked:
        return _readings_among(table, shapes, shape, asked)
    readings = _readings_among(table, [name for name in shapes if not SHAPES[name].last], shape, asked)
    last = [reading for name in shapes if SHAPES[name].last for reading in _readings_as(table, name, asked, False)]
    alone = not readings and len(table.columns) == 1  # `text` beside `label` may as well be a pair
    return [*readings, *(_Reading(reading.mapping, reading.sure and alone) for reading in last)]


def _readings_among(
    table: pl.DataFrame, shapes: Sequence[str], shape: str | None, asked: dict[str, str]
) -> list[_Reading]:
    """The readings as some shapes: by names, or by cells where no reading by names is sure."""
    by_name = [reading for name in shapes for reading in _readings_as(table, name, asked, anywhere=False)]
    if shape is not None or asked:
        by_name = [_Reading(reading.mapping, sure=True) for reading in by_name]
    else:
        _refuse_preference_data(table)
    if any(reading.sure for reading in by_name):
        return by_name
    by_cells = [reading for name in shapes for reading in _readings_as(table, name, asked, anywhere=True)]
    return by_name + [reading for reading in by_cells if reading not in by_name]


def _readings_as(table: pl.DataFrame, name: str, asked: dict[str, str], anywhere: bool) -> list[_Reading]:
    """The ways to fill the fields of one shape, each column used once."""
    shape = SHAPES[name]
    free = {column: _cells(table, column) for column in table.columns if column not in asked.values()}
    choices: dict[str, list[str]] = {}
    for field_name, field in shape.fields.items():
        given = asked.get(field_name)
        choices[field_name] = _candidates(field, free, anywhere) if given is None else [given] if given else []
        if field.required and not choices[field_name]:
            return []
    combinations = product(*(columns or [""] for columns in choices.values()))
    found = {_fields(shape, dict(zip(choices, columns, strict=True))): None for columns in combinations}
    return [_Reading(ColumnMapping(name, dict(fields)), _is_sure(shape, dict(fields))) for fields in found if fields]


def _cells(table: pl.DataFrame, column: str) -> pl.Series:
    """A column under a name that Polars takes for no pattern, as it takes `*` and `^a.*$`."""
    return table[column].rename("cells")


def _candidates(field: Field, free: dict[str, pl.Series], anywhere: bool) -> list[str]:
    """The columns that can be a field: by name, by cells (`anywhere`), by a weak name; the first that gives any."""
    named = [column for column in _named(field.names, free) if _can_be(field, free[column])]
    if named:
        return named
    if anywhere and field.anywhere:
        return [column for column, cells in free.items() if _mostly_is(field, cells)]
    return [column for column in _named(field.weak, free) if _can_be(field, free[column])]


def _named(names: Sequence[str], columns: Iterable[str]) -> Iterator[str]:
    """The columns that are called one of `names`; `System Prompt` is `system_prompt` unless that is there too."""
    columns = list(columns)
    for name in names:
        yield from [name] if name in columns else [column for column in columns if _plain(column) == _plain(name)]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _can_be(field: Field, cells: pl.Series) -> bool:
    """Whether some cell can be the field; of a column without any cell only a field of plain words can be sure."""
    if field.fits is None:
        return True
    if cells.null_count() == cells.len():
        return not field.anywhere
    return bool(field.fits(cells.head(_GLANCE)).any() or field.fits(cells).any())


def _mostly_is(field: Field, cells: pl.Series) -> bool:
    """Whether at least half of the cells that hold something are the field."""
    held = cells.len() - cells.null_count()
    return field.fits is not None and held > 0 and int(field.fits(cells).sum()) * 2 >= held


def _fields(shape: Shape, chosen: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The fields that are filled, no column twice: nothing when two required fields want the same column."""
    required = [chosen[name] for name, field in shape.fields.items() if field.required]
    if len(set(required)) < len(required):
        return ()
    filled: dict[str, str] = {}
    for name in sorted(chosen, key=lambda name: not shape.fields[name].required):
        if chosen[name] and chosen[name] not in filled.values():
            filled[name] = chosen[name]
    return tuple((name, filled[name]) for name in shape.fields if name in filled)


def _is_sure(shape: Shape, fields: dict[str, str]) -> bool:
    """Whether a reading may be chosen without being asked for: at most one field has it by a weak name."""
    weak = [name for name, column in fields.items() if column in _named(shape.fields[name].weak, [column])]
    return shape.detected and len(weak) <= 1


def _largest(mappings: list[ColumnMapping]) -> list[ColumnMapping]:
    """The mappings whose columns are not all in another: instruction, input, output is more than input, output."""
    columns = [set(mapping.fields.values()) for mapping in mappings]
    return [
        mapping for mapping, own in zip(mappings, columns, strict=True) if not any(own < other for other in columns)
    ]


def _refuse_preference_data(table: pl.DataFrame) -> None:
    """Raise `SourceError` for rows that hold a better and a worse answer, or good and bad answers under a label."""
    if {"chosen", "rejected"} <= set(table.columns):
        raise SourceError(
            "These are preferences (columns chosen and rejected): a better and a worse answer to each question, "
            "not conversations.",
            _chosen_only(table),
        )
    answers = {"completion", "response", "answer", "output"} & set(table.columns)
    if (
        answers
        and "label" in table.columns
        and set(table["label"].drop_nulls().str.to_lowercase()) == {"true", "false"}
    ):
        raise SourceError(
            "These are preferences (column label): good answers are marked true, bad ones false.",
            "Keep the rows with label true, or import all of them with --shape and --map.",
        )


def _chosen_only(table: pl.DataFrame) -> str:
    for shape, name in (("messages", "messages"), ("sharegpt", "conversations"), ("transcript", "transcript")):
        if _mostly_is(SHAPES[shape].fields[name], table["chosen"]):
            return f"To import the chosen side alone: {ColumnMapping(shape, {name: 'chosen'}).as_options()}"
    names = ("instruction", *SHAPES["pairs"].fields["question"].names)
    question = next(_named(names, table.columns), None)
    if question is None or not _can_be(SHAPES["pairs"].fields["question"], table[question]):
        return "Write each conversation with its chosen answer into one column first."
    mapping = ColumnMapping("pairs", {"question": question, "answer": "chosen"})
    return f"To import the chosen answers alone: {mapping.as_options()}"


# --- what to say


def _nothing_found(
    table: pl.DataFrame, shape: str | None, asked: dict[str, str], unsure: list[ColumnMapping]
) -> SourceError:
    columns = join_names(table.columns, _NAMES) or "none"
    if unsure:
        choice = "Ask for it" if len(unsure) == 1 else "Ask for one of them"
        return SourceError(f"What these columns mean is not certain: {columns}.", _choose(unsure, choice))
    if shape is None and not asked:
        example = ColumnMapping(
            "pairs", dict(zip(("question", "answer"), (*table.columns, "COLUMN", "COLUMN"), strict=False))
        )
        return SourceError(
            f"No shape fits these columns: {columns}.", f"Say which is what, such as {example.as_options()}"
        )
    shapes = [shape] if shape else [name for name, known in SHAPES.items() if set(asked) <= set(known.fields)]
    if not shapes:
        return SourceError(f"No shape has all of the fields {', '.join(asked)}.", "Leave one of them out.")
    missing = [name for name, field in SHAPES[shapes[0]].fields.items() if field.required and not asked.get(name)]
    if not missing:
        what = f"The columns {columns} cannot be read as {shapes[0]}: one stands for two fields, or does not fit."
        return SourceError(what, "Give each field a column of its own.")
    return SourceError(
        f"For {shapes[0]}, no column is found for {' and '.join(missing)}; the columns are {columns}.",
        "Add " + " ".join(f"--map {name}=COLUMN" for name in missing),
    )


def _mixed(table: pl.DataFrame, mappings: list[ColumnMapping]) -> SourceError | None:
    """The error for rows of which each fits one of the shapes alone; None when some row fits two."""
    filled = [_filled(table, mapping) for mapping in mappings]
    together = pl.DataFrame([mask.alias(str(number)) for number, mask in enumerate(filled)])
    overlap = together.select(pl.sum_horizontal(pl.all().cast(pl.Int64)).max()).item()
    if overlap > 1 or not all(mask.any() for mask in filled):
        return None
    counts = " and ".join(
        f"{plural(rows, 'row')} {'is' if rows == 1 else 'are'} {_described(mapping)}"
        for mask, mapping in zip(filled, mappings, strict=True)
        for rows in [int(mask.sum())]
    )
    return SourceError(f"The source mixes shapes: {counts}.", _choose(mappings, "Split it, or take one kind of row"))


def _filled(table: pl.DataFrame, mapping: ColumnMapping) -> pl.Series:
    """Which rows hold something in every required field, of the kind that the field wants."""
    masks = []
    for name, field in SHAPES[mapping.shape].fields.items():
        if field.required:
            cells = mapping.column(table, name)
            masks.append((cells.str.len_bytes() > 0).fill_null(False))
            masks += [field.fits(cells).fill_null(False)] if field.fits is not None else []
    return (
        pl.DataFrame([mask.alias(str(n)) for n, mask in enumerate(masks)])
        .select(pl.all_horizontal(pl.all()))
        .to_series()
    )


def _ambiguous(mappings: list[ColumnMapping]) -> SourceError:
    described = " or ".join(_described(mapping) for mapping in mappings[:_LISTED])
    return SourceError(f"The columns can be read in {len(mappings)} ways: {described}.", _choose(mappings))


def _described(mapping: ColumnMapping) -> str:
    return f"{mapping.shape} ({', '.join(mapping.fields.values())})"


def _choose(mappings: list[ColumnMapping], choice: str = "Ask for one of them") -> str:
    more = [f"\n    and {len(mappings) - _LISTED:,} more"] if len(mappings) > _LISTED else []
    return f"{choice}:" + "".join([*(f"\n    {mapping.as_options()}" for mapping in mappings[:_LISTED]), *more])
