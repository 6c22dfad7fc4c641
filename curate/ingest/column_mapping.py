"""The columns and cells of a source → a shape and the column of each of its fields.

Column names are considered first. Cells decide if names are not sufficient, and verify that a named column has the
expected content. If several mappings are possible, the error lists them with the options that select each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import polars as pl

from curate.ingest.answer_labels import check_labels, label_hint
from curate.ingest.column_content import Content
from curate.ingest.column_names import MAX_LISTED, find_named
from curate.ingest.plausibility import check_plausibility
from curate.ingest.preference import CHOSEN, check_preference_data
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.cell_path import base_column
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, Shape, is_mostly, is_plain_text
from curate.ingest.suggestions import (
    describe_columns,
    list_commands,
    list_contents,
    may_be_plain_text,
    suggest_flagged,
    suggest_mappings,
)
from schemas.errors import SourceError, nearest
from schemas.import_recipe import ImportSection
from schemas.text import join_names, plural

_SAMPLE = 100
"""Cells that are inspected before all others: one fitting cell is enough, and it is nearly always among these."""

_MAX_LISTED = 6
"""Mappings that an error lists."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible mapping. If it is not `sure`, it is based on weak names, or must be requested by options."""

    mapping: ColumnMapping
    sure: bool


def find_mapping(table: pl.DataFrame, section: ImportSection) -> ColumnMapping:
    """The mapping of the columns and cells of `table`, subject to the options in `section`.

    Raises `SourceError` for an unknown field or column, for preference data, if no shape fits, if several mappings are
    possible, and if the rows have different shapes.
    """
    options = _check_options(table, section)
    candidates = _candidates(table, section.shape, options)
    mappings = _maximal([candidate.mapping for candidate in candidates if candidate.sure])
    asked = [found.mapping for found in candidates if not found.sure and SHAPES[found.mapping.shape].proven]
    if asked and section.shape is None and not options:
        raise _no_mapping_error(table, None, options, asked)
    if not mappings and section.shape is None and not options:
        check_preference_data(table)
    if len(mappings) != 1:
        error = (
            _mixed_shapes_error(table, mappings) or _ambiguity_error(mappings)
            if mappings
            else _no_mapping_error(table, section.shape, options, [candidate.mapping for candidate in candidates])
        )
        raise SourceError(error.what, f"{error.hint}{label_hint(table)}")
    if section.shape is None and not options:
        check_labels(table, mappings[0], section.where)
        check_plausibility(table, mappings[0])
    return mappings[0]


def extend_mapping(mapping: ColumnMapping, table: pl.DataFrame, section: ImportSection) -> ColumnMapping:
    """The mapping of a source, merged with that of one more batch.

    A batch without a mapping, for example with broken cells only, does not change the mapping: its rows become
    rejects. Raises `SourceError` if the batch contradicts the mapping.
    """
    options = {
        name: column
        for name, column in field_options(section).items()
        if not column or base_column(column, table.columns)
    }
    candidates = _candidates(table, section.shape, options)
    mappings = _maximal([candidate.mapping for candidate in candidates if candidate.sure])
    mappings = [found for found in mappings if found.shape == mapping.shape or not SHAPES[found.shape].fallback]
    if all(SHAPES[found.shape].proven for found in mappings):  # such as choices counted from 0 in a batch without a 0
        mappings = [found for found in mappings if found.shape == mapping.shape] or mappings
    if len(mappings) > 1:
        raise _mixed_shapes_error(table, mappings) or _ambiguity_error(mappings)
    if section.shape is None and not options:
        check_labels(table, mapping, section.where)
    return merge_mappings(mapping, mappings[0]) if mappings else mapping


def merge_mappings(first: ColumnMapping, following: ColumnMapping) -> ColumnMapping:
    """One mapping for two batches of a source; the later one may have more optional columns.

    Raises `SourceError` if they contradict each other.

    >>> first, following = ColumnMapping("pairs", {"question": "q"}), ColumnMapping("pairs", {"system": "s"})
    >>> merge_mappings(first, following).fields
    {'question': 'q', 'system': 's'}
    """
    same = all(following.fields.get(name, column) == column for name, column in first.fields.items())
    if first.shape == following.shape and same:
        return replace(first, fields={**first.fields, **following.fields})
    raise SourceError(
        f"The columns change within the source, from {_describe(first)} to {_describe(following)}.",
        _list_options([first, following]),
    )


def parse_table(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table: every row becomes turns or a problem."""
    return SHAPES[mapping.shape].parse(table, mapping)


def metadata_json(table: pl.DataFrame, mapping: ColumnMapping) -> pl.Series:
    """JSON text per row of the columns that the mapping does not use; null for a row without values.

    >>> table = pl.DataFrame({"q": ["Hi"], "a": ["Ho"], "id": ["7"]})
    >>> metadata_json(table, ColumnMapping("pairs", {"question": "q", "answer": "a"}))[0]
    '{"id":"7"}'
    """
    used = set(mapping.fields.values())
    rest = pl.DataFrame([table[name] for name in table.columns if name not in used])  # `pl.col("*")` is every column
    if not rest.width:
        return pl.Series("metadata", [None], dtype=pl.String).new_from_index(0, table.height)
    text = rest.to_struct("metadata").struct.json_encode()
    has_value = rest.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    return pl.select(pl.when(has_value).then(text).alias("metadata")).to_series()


# ------------------------------------------------------------------------------------------------------------- options


def field_options(section: ImportSection) -> dict[str, str]:
    """Field → column from the options; an empty column excludes the field."""
    long = {"group_by": section.group_by, "order_by": section.order_by, "role": section.role, "text": section.text}
    return {**section.map, **{name: column for name, column in long.items() if column is not None}}


def _check_options(table: pl.DataFrame, section: ImportSection) -> dict[str, str]:
    """The field options. Raises `SourceError` for an unknown shape, field or column."""
    options = field_options(section)
    if section.shape is not None and section.shape not in SHAPES:
        raise _unknown_name("shape", section.shape, SHAPES)
    shapes = list(SHAPES.values()) if section.shape is None else [SHAPES[section.shape]]
    fields = list(dict.fromkeys(name for shape in shapes for name in shape.fields))
    for name, column in options.items():
        if name not in fields:
            raise _unknown_name(f"field of {section.shape}" if section.shape else "field", name, fields)
        if column and base_column(column, table.columns) is None:
            raise _unknown_name("column", column, table.columns)
    return options


def _unknown_name(kind: str, name: str, known: Iterable[str]) -> SourceError:
    names = list(known)
    what = f"{name} is not a known {kind}{nearest(name, names)}"
    most = len(SHAPES) if kind == "shape" else MAX_LISTED
    return SourceError(what, f"Known names: {join_names(names, most)}.")


# ---------------------------------------------------------------------------------------------------------- candidates


def _candidates(table: pl.DataFrame, shape: str | None, options: dict[str, str]) -> list[Candidate]:
    """All possible mappings. Those of a fallback shape are sure if requested, or if there is only one column."""
    shapes = [shape] if shape else _shapes_with(options)
    cells = {column: _cells(table, column) for column in table.columns if column not in options.values()}
    if shape is not None or options:
        return _candidates_among(cells, shapes, shape, options)
    check_preference_data(table, CHOSEN)
    candidates = _candidates_among(cells, [name for name in shapes if not SHAPES[name].fallback], shape, options)
    fallbacks = [
        candidate
        for name in shapes
        if SHAPES[name].fallback
        for candidate in _candidates_of(cells, name, options, any_name=False)
    ]
    alone = not candidates and len(table.columns) == 1  # `text` and `label` may be a pair
    return [*candidates, *(replace(candidate, sure=candidate.sure and alone) for candidate in fallbacks)]


def _shapes_with(fields: Iterable[str]) -> list[str]:
    return [name for name, shape in SHAPES.items() if set(fields) <= set(shape.fields)]


def _candidates_among(
    cells: dict[str, pl.Series], shapes: Sequence[str], shape: str | None, options: dict[str, str]
) -> list[Candidate]:
    """The candidates of some shapes: by names; also by cells if none by names is sure."""
    by_name = [found for name in shapes for found in _candidates_of(cells, name, options, any_name=False)]
    if shape is not None or options:
        by_name = [replace(candidate, sure=True) for candidate in by_name]
    if any(candidate.sure for candidate in by_name):
        return by_name
    by_cells = [found for name in shapes for found in _candidates_of(cells, name, options, any_name=True)]
    return by_name + [candidate for candidate in by_cells if candidate not in by_name]


def _candidates_of(
    free: dict[str, pl.Series], name: str, options: dict[str, str], *, any_name: bool
) -> list[Candidate]:
    """The ways to assign the columns that are `free`, and those of `options`, to the fields of a shape, each once."""
    shape = SHAPES[name]
    if shape.proven:  # by the keys in its cells: a column without cells proves nothing
        free = {column: cells for column, cells in free.items() if cells.null_count() < cells.len()}
    choices: dict[str, list[str]] = {}
    for field_name, field in shape.fields.items():
        given = options.get(field_name)
        choices[field_name] = _matching_columns(field, free, any_name) if given is None else [given] if given else []
        if field.required and not choices[field_name]:
            return []
    combinations = product(*(columns or [""] for columns in choices.values()))
    assignments = {_assign(shape, dict(zip(choices, columns, strict=True))): None for columns in combinations}
    return [
        Candidate(ColumnMapping(name, dict(fields)), _is_sure(shape, dict(fields))) for fields in assignments if fields
    ]


def _cells(table: pl.DataFrame, column: str) -> pl.Series:
    """A column under a fixed name: Polars interprets names such as `*` and `^a.*$` as patterns."""
    return table[column].rename("cells")


def _matching_columns(field: Field, free: dict[str, pl.Series], any_name: bool) -> list[str]:
    """The columns that can be a field, by name, by cells (`any_name`) or by a weak name: the first that gives any."""
    if field.find is not None:
        return field.find(free)
    named = [column for column in find_named(field.names, free) if _can_be(field, free[column])]
    if named:
        return named
    if any_name and field.any_name:
        return [column for column, cells in free.items() if field.fits is not None and is_mostly(field.fits(cells))]
    return [column for column in find_named(field.weak_names, free) if _can_be(field, free[column])]


def _can_be(field: Field, cells: pl.Series) -> bool:
    """Whether some cell fits the field; a column without cells fits only a field of plain text."""
    if field.fits is None:
        return True
    if cells.null_count() == cells.len():
        return field.fits is is_plain_text
    return bool(field.fits(cells.head(_SAMPLE)).any() or (cells.len() > _SAMPLE and field.fits(cells).any()))


def _assign(shape: Shape, chosen: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The assigned fields, each column once; empty if two required fields have the same column."""
    required = [chosen[name] for name, field in shape.fields.items() if field.required]
    if len(set(required)) < len(required):
        return ()
    assigned: dict[str, str] = {}
    for name in sorted(chosen, key=lambda name: not shape.fields[name].required):
        if chosen[name] and chosen[name] not in assigned.values():
            assigned[name] = chosen[name]
    return tuple((name, assigned[name]) for name in shape.fields if name in assigned)


def _is_sure(shape: Shape, fields: dict[str, str]) -> bool:
    """Whether a mapping may be used without a request: at most one field has a weak name."""
    weak = [name for name, column in fields.items() if column in find_named(shape.fields[name].weak_names, [column])]
    return shape.detected and len(weak) <= 1


def _maximal(mappings: list[ColumnMapping]) -> list[ColumnMapping]:
    """The mappings whose columns are not a subset of another's: instruction, input, output beats input, output.

    A mapping of a proven shape also beats those of other shapes with the same columns, and stays next to larger ones.
    One of a shape that gives way is beaten by all others: a list of texts may be turns, or tags next to a question and
    its answer.
    """
    mappings = [mapping for mapping in mappings if not SHAPES[mapping.shape].gives_way] or mappings
    return [mapping for mapping in mappings if not any(_beats(other, mapping) for other in mappings)]


def _beats(mapping: ColumnMapping, other: ColumnMapping) -> bool:
    columns, others = set(mapping.fields.values()), set(other.fields.values())
    if SHAPES[other.shape].proven:
        return mapping.shape == other.shape and others < columns
    return others < columns or (SHAPES[mapping.shape].proven and others == columns)


# -------------------------------------------------------------------------------------------------------------- errors


def _no_mapping_error(
    table: pl.DataFrame, shape: str | None, options: dict[str, str], unsure: list[ColumnMapping]
) -> SourceError:
    columns = join_names(table.columns, MAX_LISTED) or "none"
    if unsure:
        choice = "Confirm it with" if len(unsure) == 1 else "Choose one with"
        return SourceError(f"The meaning of these columns is not certain: {columns}.", _list_options(unsure, choice))
    if shape is None and not options:
        return _unknown_columns_error(table, columns)
    shapes = [shape] if shape else _shapes_with(options)
    if not shapes:
        return SourceError(f"No shape has all of the fields {', '.join(options)}.", "Omit one of them.")
    missing = [name for name, field in SHAPES[shapes[0]].fields.items() if field.required and not options.get(name)]
    if not missing:
        what = f"The columns {columns} do not fit {shapes[0]}: a column is used for two fields, or has other content."
        return SourceError(what, "Map each field to a column of its own.")
    return SourceError(
        f"{shapes[0]} needs a column for {' and '.join(missing)}; the columns are {columns}.",
        "Add " + " ".join(f"--map {name}=COLUMN" for name in missing),
    )


def _unknown_columns_error(table: pl.DataFrame, columns: str) -> SourceError:
    """The error for columns without known names: the mappings that their cells suggest, or a list of the cells."""
    if flagged := suggest_flagged(table):
        mapping, roles = flagged
        hint = f"For one turn per row, with --dry-run it only shows examples:{mapping.as_command(roles)}"
        return SourceError(f"No shape fits these columns: {columns}.", hint)
    suggested = suggest_mappings(table)
    if suggested:
        return SourceError(f"No shape fits these columns: {columns}.", list_commands(suggested))
    contents = describe_columns(table)
    texts = [content for content in contents.values() if content.kind == "text"]
    plain = (
        ColumnMapping("text", {"text": texts[0].column}) if len(texts) == 1 and may_be_plain_text(texts[0]) else None
    )
    return SourceError(
        f"No shape fits these columns, and no two of them seem to be questions and answers:{list_contents(contents)}",
        "If two columns are questions and answers, add --map question=COLUMN --map answer=COLUMN."
        + (f"\nAs plain text without questions:{plain.as_command()}" if plain else "")
        + _python_values_hint(contents),
    )


def _python_values_hint(contents: dict[str, Content]) -> str:
    """A line for columns with lists and dicts as Python prints them, which are not JSON."""
    names = [content.column for content in contents.values() if content.example.startswith(("[{'", "{'", "['"))]
    if not names:
        return ""
    return f"\n{names[0]} has values as Python prints them, not JSON: write the file again with json.dumps or to_json."


def _mixed_shapes_error(table: pl.DataFrame, mappings: list[ColumnMapping]) -> SourceError | None:
    """The error for rows that each fit exactly one of the mappings; None if a row fits two."""
    fitting = [_fits(table, mapping) for mapping in mappings]
    masks = pl.DataFrame([mask.alias(str(number)) for number, mask in enumerate(fitting)])
    overlap = masks.select(pl.sum_horizontal(pl.all().cast(pl.Int64)).max()).item()
    if overlap > 1 or not all(mask.any() for mask in fitting):
        return None
    counts = " and ".join(
        f"{plural(rows, 'row')} {'is' if rows == 1 else 'are'} {_describe(mapping)}"
        for mask, mapping in zip(fitting, mappings, strict=True)
        for rows in [int(mask.sum())]
    )
    return SourceError(
        f"The source mixes shapes: {counts}.", _list_options(mappings, "Split it, or import one kind of row with")
    )


def _fits(table: pl.DataFrame, mapping: ColumnMapping) -> pl.Series:
    """Whether each row has a fitting value in every required field."""
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


def _ambiguity_error(mappings: list[ColumnMapping]) -> SourceError:
    described = " or ".join(_describe(mapping) for mapping in mappings[:_MAX_LISTED])
    return SourceError(f"The columns fit {len(mappings)} mappings: {described}.", _list_options(mappings))


def _describe(mapping: ColumnMapping) -> str:
    return f"{mapping.shape} ({', '.join(mapping.fields.values())})"


def _list_options(mappings: list[ColumnMapping], choice: str = "Choose one with") -> str:
    more = [f"\n    and {len(mappings) - _MAX_LISTED:,} more"] if len(mappings) > _MAX_LISTED else []
    return f"{choice.removesuffix(':')}:" + "".join([*(_command(mapping) for mapping in mappings[:_MAX_LISTED]), *more])


def _command(mapping: ColumnMapping) -> str:
    """The command that imports with a mapping, and its summary on the next line."""
    summary = SHAPES[mapping.shape].summary
    return f"{mapping.as_command()}\n        {summary}" if summary else mapping.as_command()
