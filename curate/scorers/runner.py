"""Scoring: conversations of the store come in, one value per scorer and conversation goes out into `scores`.

Only what is missing is computed: new conversations, new scorers, changed parameters. A scorer with the default
parameters has the column of its name; with others the column `<scorer>__<8 hex digits>`, so that values of both
stand side by side.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection
from polars.exceptions import PolarsError
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from curate.scorers import ENTRY_POINTS, REVISIONS, SCORERS, Scorer
from curate.scorers.features import MATERIAL, evaluate, material, takes_frame
from curate.scorers.quality import Penalty
from schemas.digest import canonical_json, digest
from schemas.errors import RecipeError, StoreError, VersionError, nearest
from schemas.recipe import Recipe
from schemas.store import reading, writing

SLICE = 65_536
"""Conversations that are read from the store at a time; with the words of the parts below they take about 300 MB."""

PART = 8_192
"""Conversations that are scored at a time. The n-gram tables of so many stay in the processor's cache: telling
duplicates apart costs 20 to 30 ns a word, at 100,000 conversations 90 ns."""

Progress = Callable[[int, int], None]
"""Told how many conversations are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """A scorer with its parameters: what fills one column of `scores`."""

    name: str
    function: Scorer
    parameters: Mapping[str, Any]
    needs: tuple[str, ...]
    column: str
    digest: str
    written: str

    def over(self, frame: pl.DataFrame) -> pl.Series:
        """The values for the rows of a scorers' frame, under the scorer's name."""
        try:
            values = evaluate(self.function, frame, **self.parameters).alias(self.name)
        except PolarsError as error:
            what = f"The scorer {self.name} cannot be computed: {str(error).splitlines()[0]}"
            raise RecipeError(
                what, f"Look at score.{self.name} in the recipe; {self.written} is what it was given."
            ) from error
        return _storable(values, frame.height)


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What one `curate score` did: how many values it computed per column, and how the columns stand."""

    conversations: int
    computed: dict[str, int]
    summaries: list[dict[str, Any]]


def score_store(
    store: Path,
    recipe: Recipe,
    only: Sequence[str] = (),
    *,
    again: bool = False,
    progress: Progress | None = None,
) -> ScoreReport:
    """Compute what is missing in the store at `store`, all in one transaction, and sum it up.

    `only` names the scorers to run (with those they stand on) instead of all; `again` computes them all anew.
    Raises `RecipeError` for an unknown scorer or parameter, before anything is computed.
    """
    wanted = plan(recipe.score, only)
    check_not_empty(store)
    with writing(store) as connection:
        _make_room(connection, wanted, again=again)
        computed = _fill(connection, wanted, progress)
        rows = connection.sql("SELECT count(*) FROM conversations").fetchall()
        return ScoreReport(int(rows[0][0]), computed, summarise(connection, [scoring.column for scoring in wanted]))


def check_not_empty(store: Path) -> None:
    """Raise `StoreError` for a store without conversations, or no store: before one is made by writing."""
    with reading(store) as connection:
        if not connection.sql("SELECT 1 FROM conversations LIMIT 1").fetchall():
            raise StoreError(f"There are no conversations in {store} yet.", "curate import FILE")


def score_frame(conversations: pl.DataFrame, wanted: Sequence[Scoring]) -> pl.DataFrame:
    """The id and the scores of a conversations frame, one column per scorer, under the scorers' names.

    Pure: the same rows give the same values, alone or among others. `conversations` may already have columns of
    scores that `wanted` stands on. Works in parts of `PART` rows, on all processors.
    """
    parts = list(conversations.iter_slices(PART)) or [conversations]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pl.concat(pool.map(lambda part: _score_part(part, wanted), parts))


def _score_part(conversations: pl.DataFrame, wanted: Sequence[Scoring]) -> pl.DataFrame:
    frame = material(conversations)
    for scoring in wanted:
        frame = frame.with_columns(scoring.over(frame))
    return frame.select("id", *(scoring.name for scoring in wanted))


def _storable(values: pl.Series, height: int) -> pl.Series:
    """`values` as DuckDB keeps them: every whole number a BIGINT, every other a DOUBLE."""
    if len(values) != height:
        raise RecipeError(f"The scorer {values.name} gave {len(values)} values for {height} rows.", "Correct it.")
    if values.dtype.is_integer():
        return values.cast(pl.Int64)
    if values.dtype.is_numeric():
        return values.cast(pl.Float64)
    if values.dtype in (pl.Boolean, pl.String):
        return values
    raise RecipeError(f"The scorer {values.name} gave {values.dtype}, not numbers, truths or texts.", "Correct it.")


# --- which scorers, with which parameters ---


def plan(sections: Mapping[str, Mapping[str, Any]], only: Sequence[str] = ()) -> list[Scoring]:
    """The scorers to run, each after those it stands on, with the parameters that the recipe's `[score]` gives.

    Without `only`: all of this project, and those of other packages that have a section. Raises `RecipeError`
    for an unknown scorer or parameter with the nearest known name, and for a wrong value.
    """
    for name in (*sections, *only):
        _check_known(name)
    planned: dict[str, Scoring] = {}
    for name in only or dict.fromkeys((*SCORERS, *sections)):
        _plan(name, sections, planned, ())
    return list(planned.values())


def _plan(
    name: str, sections: Mapping[str, Mapping[str, Any]], planned: dict[str, Scoring], path: tuple[str, ...]
) -> None:
    """Put `name` into `planned` behind the scorers it stands on."""
    if name in planned:
        return
    if name in path:
        raise RecipeError(f"Scorers stand on each other in a circle: {' → '.join((*path, name))}.", "Break the circle.")
    function = find_scorer(name)
    parameters = _check_parameters(name, function, sections.get(name, {}))
    needs = _needs(name, function, parameters.values)
    for need in needs:
        _plan(need, sections, planned, (*path, name))
    planned[name] = _scoring(name, function, parameters, [planned[need] for need in needs])


@dataclass(frozen=True, slots=True)
class _Parameters:
    values: dict[str, Any]
    written: dict[str, Any]
    default: bool


def _scoring(name: str, function: Scorer, parameters: _Parameters, needs: Sequence[Scoring]) -> Scoring:
    identity = {
        "scorer": name,
        "parameters": parameters.written,
        "revision": REVISIONS.get(name, 1),
        "needs": {need.name: need.digest for need in needs},
    }
    mark = digest(identity)
    plain = parameters.default and all(need.column == need.name for need in needs)
    column = name if plain else f"{name}__{mark[:8]}"
    names = tuple(need.name for need in needs)
    return Scoring(name, function, parameters.values, names, column, mark, canonical_json(parameters.written))


def _needs(name: str, function: Scorer, parameters: Mapping[str, Any]) -> list[str]:
    """The scorers whose values an expression reads; a scorer that takes the frame reads only the frame.

    Raises `RecipeError` for an expression over something that is neither a score nor part of the material.
    """
    if takes_frame(function):
        return []
    made = function(**parameters)
    assert isinstance(made, pl.Expr)  # its roots include "", the element of a list
    read = [root for root in dict.fromkeys(made.meta.root_names()) if root and root not in MATERIAL]
    for root in read:
        if root not in scorer_names():
            what = f"{name} stands on {root}, which is no scorer{nearest(root, scorer_names())}"
            raise RecipeError(what, f"Look at score.{name} in the recipe; curate score --list shows the scorers.")
    return read


def _check_parameters(name: str, function: Scorer, given: Mapping[str, Any]) -> _Parameters:
    """The parameters in full, checked against the signature; raises `RecipeError` with all that is wrong."""
    model = _model(name, function)
    try:
        checked = model.model_validate(dict(given))
    except ValidationError as error:
        problems = "; ".join(_problem(name, list(model.model_fields), dict(problem)) for problem in error.errors())
        raise RecipeError(problems, f"curate score --list shows the parameters of {name}.") from error
    written = checked.model_dump(mode="json")
    values = {field: getattr(checked, field) for field in model.model_fields}
    return _Parameters(values, written, default=written == model().model_dump(mode="json"))


@cache
def _model(name: str, function: Scorer) -> type[BaseModel]:
    """The scorer's keyword parameters as a pydantic model: their types and defaults are its configuration."""
    keywords = keyword_parameters(function)
    fields: dict[str, Any] = {
        parameter.name: (parameter.annotation, parameter.default) for parameter in keywords.values()
    }
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False), **fields)


def keyword_parameters(function: Scorer) -> dict[str, inspect.Parameter]:
    """The parameters of a scorer that a recipe can set; all must be keyword-only and have a default."""
    signature = inspect.signature(function, eval_str=True)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _problem(name: str, known: Sequence[str], problem: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return f"score.{name}.{key} is not a parameter of {name}{nearest(key, known)}"
    return f"score.{name}.{key}: {problem['msg']}"


def _check_known(name: str) -> None:
    if name not in scorer_names():
        raise RecipeError(f"There is no scorer {name}{nearest(name, scorer_names())}", "curate score --list shows all.")


def scorer_names() -> list[str]:
    """The names of all scorers, this project's first."""
    return [*SCORERS, *_others()]


@cache
def _others() -> dict[str, EntryPoint]:
    """The scorers of other packages, not imported yet; a name of this project cannot be taken."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in SCORERS}


def find_scorer(name: str) -> Scorer:
    """The scorer's function. Raises `RecipeError` when the package that offers it cannot be imported."""
    if name in SCORERS:
        return SCORERS[name]
    point = _others()[name]
    try:
        loaded: Scorer = point.load()
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"The scorer {name} ({point.value}) cannot be loaded: {error}.", "Repair its package."
        ) from error
    return loaded


def describe_scorers() -> list[dict[str, str]]:
    """One row per scorer: `scorer`, `parameters` as written in a recipe, `what` it says."""
    return [_describe(name, find_scorer(name)) for name in scorer_names()]


def _describe(name: str, function: Scorer) -> dict[str, str]:
    defaults = _model(name, function)().model_dump(mode="json")
    shown = ", ".join(f"{key} = {canonical_json(value)}" for key, value in defaults.items())
    return {"scorer": name, "parameters": shown, "what": (inspect.getdoc(function) or "").partition("\n")[0]}


# --- the store ---


def _make_room(connection: DuckDBPyConnection, wanted: Sequence[Scoring], *, again: bool) -> None:
    """Empty the columns that are to be computed again: all wanted, or those of another formula."""
    for scoring in wanted:
        known = connection.execute('SELECT digest FROM scorers WHERE "column" = ?', [scoring.column]).fetchall()
        if known and (again or known[0][0] != scoring.digest):
            connection.execute(f'ALTER TABLE scores DROP COLUMN "{scoring.column}"')
            connection.execute('DELETE FROM scorers WHERE "column" = ?', [scoring.column])


@dataclass(frozen=True, slots=True)
class _Slice:
    """Up to `SLICE` conversations that lack the same scores."""

    new: bool
    missing: tuple[Scoring, ...]
    mask: list[bool]
    first: int
    last: int
    rows: int


def _fill(connection: DuckDBPyConnection, wanted: Sequence[Scoring], progress: Progress | None) -> dict[str, int]:
    """Compute what is missing and write it; returns the number of values computed per column."""
    slices = list(_find_missing(connection, wanted))
    total, done = sum(piece.rows for piece in slices), 0
    computed = {scoring.column: 0 for scoring in wanted}
    for piece in slices:
        scores = score_frame(_read(connection, piece, wanted), piece.missing)
        _write(connection, piece, scores.rename({scoring.name: scoring.column for scoring in piece.missing}))
        computed |= {scoring.column: computed[scoring.column] + piece.rows for scoring in piece.missing}
        done += piece.rows
        if progress:
            progress(done, total)
    _register(connection, wanted)
    return computed


def _find_missing(connection: DuckDBPyConnection, wanted: Sequence[Scoring]) -> Iterator[_Slice]:
    """The conversations that lack scores, those that lack the same ones together, in the store's order."""
    stored = stored_columns(connection)
    lacks = [f's."{scoring.column}" IS NULL' if scoring.column in stored else "true" for scoring in wanted]
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE missing AS
        SELECT *, (row_number() OVER (PARTITION BY new, lacks ORDER BY number) - 1) // {SLICE} AS slice
        FROM (SELECT c.rowid AS number, s.conversation IS NULL AS new, [{", ".join(lacks)}] AS lacks
              FROM conversations c LEFT JOIN scores s ON s.conversation = c.id)
        WHERE list_bool_or(lacks)""")
    rows = connection.sql("""
        SELECT new, lacks, min(number), max(number), count(*) FROM missing
        GROUP BY new, lacks, slice ORDER BY new DESC, lacks, slice""").fetchall()
    for new, mask, first, last, count in rows:
        missing = tuple(scoring for scoring, lacking in zip(wanted, mask, strict=True) if lacking)
        yield _Slice(new, missing, mask, first, last, count)


def _read(connection: DuckDBPyConnection, piece: _Slice, wanted: Sequence[Scoring]) -> pl.DataFrame:
    """The conversations of a slice, with the scores that the missing ones stand on and that are there already.

    Each is read from the column that its parameters in this recipe have, and stands under its scorer's name.
    """
    columns = {scoring.name: scoring.column for scoring in wanted}
    missing = {scoring.name for scoring in piece.missing}
    there = sorted({need for scoring in piece.missing for need in scoring.needs} - missing)
    extra = "".join(f', s."{columns[need]}" AS "{need}"' for need in there)
    frame: pl.DataFrame = connection.sql(
        f"""SELECT c.id, c.conversations, c.tools{extra}
            FROM conversations c JOIN missing m ON m.number = c.rowid LEFT JOIN scores s ON s.conversation = c.id
            WHERE c.rowid BETWEEN $first AND $last AND m.new = $new AND m.lacks = $mask""",
        params={"first": piece.first, "last": piece.last, "new": piece.new, "mask": piece.mask},
    ).pl()
    return frame


def _write(connection: DuckDBPyConnection, piece: _Slice, scores: pl.DataFrame) -> None:
    """Put computed values into the wide table: as new rows, or into the rows that are there."""
    stored = stored_columns(connection)
    for column in scores.columns[1:]:
        if column not in stored:
            connection.execute(f'ALTER TABLE scores ADD COLUMN "{column}" {_sql_type(scores[column].dtype)}')
    connection.register("fresh_scores", scores.rename({"id": "conversation"}))
    if piece.new:
        connection.execute("INSERT INTO scores BY NAME SELECT * FROM fresh_scores")
    else:
        changes = ", ".join(f'"{column}" = f."{column}"' for column in scores.columns[1:])
        connection.execute(
            f"UPDATE scores SET {changes} FROM fresh_scores f WHERE f.conversation = scores.conversation"
        )
    connection.unregister("fresh_scores")


def _sql_type(dtype: pl.DataType) -> str:
    return {pl.Int64: "BIGINT", pl.Float64: "DOUBLE", pl.Boolean: "BOOLEAN", pl.String: "VARCHAR"}[dtype.base_type()]


def _register(connection: DuckDBPyConnection, wanted: Sequence[Scoring]) -> None:
    connection.executemany(
        'INSERT OR REPLACE INTO scorers ("column", scorer, parameters, digest) VALUES (?, ?, ?, ?)',
        [[scoring.column, scoring.name, scoring.written, scoring.digest] for scoring in wanted],
    )


def stored_columns(connection: DuckDBPyConnection) -> dict[str, str]:
    """The columns of `scores` that hold values, with their DuckDB types."""
    rows = connection.sql(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'scores' ORDER BY column_index"
    ).fetchall()
    return {name: kind for name, kind in rows if name != "conversation"}


# --- what is shown ---


def summarise(connection: DuckDBPyConnection, columns: Sequence[str]) -> list[dict[str, Any]]:
    """One row per column: its smallest, middle, 95 % and largest value, or its most frequent ones, with examples."""
    stored = stored_columns(connection)
    return [_summary(connection, column, stored[column]) for column in columns if column in stored]


def _summary(connection: DuckDBPyConnection, column: str, kind: str) -> dict[str, Any]:
    if kind in ("BIGINT", "DOUBLE"):
        return {"column": column, **_number_summary(connection, column)}
    return {"column": column, **_value_summary(connection, column)}


def _number_summary(connection: DuckDBPyConnection, column: str) -> dict[str, Any]:
    low, middle, high, top, lowest, highest = connection.sql(f"""
        SELECT min("{column}"), median("{column}"), quantile_disc("{column}", 0.95), max("{column}"),
            arg_min(conversation, "{column}", 3), arg_max(conversation, "{column}", 3) FROM scores""").fetchall()[0]
    return {"min": low, "median": middle, "p95": high, "max": top, "lowest": lowest or [], "highest": highest or []}


def _value_summary(connection: DuckDBPyConnection, column: str) -> dict[str, Any]:
    rows = connection.sql(f"""
        SELECT "{column}" AS value, count(*) AS conversations, arg_min(conversation, conversation, 3) AS examples
        FROM scores GROUP BY value ORDER BY conversations DESC, value LIMIT 8""").fetchall()
    return {"values": [{"value": value, "conversations": count, "examples": ids} for value, count, ids in rows]}


def as_rows(report: ScoreReport, examples: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The summaries as rows of two tables: one row per number, and one per value of the truths and texts.

    `examples` says how many ids a cell has, by their first 8 digits.
    """
    numbers, others = [], []
    for summary in report.summaries:
        score = {"score": summary["column"]}
        if "values" not in summary:
            ends = {end: _short(summary[end][:examples]) for end in ("lowest", "highest")}
            numbers.append(summary | ends | score)
        for value in summary.get("values", ()):
            share = share_of(value["conversations"], report.conversations)
            others.append(score | value | {"share": share, "examples": _short(value["examples"][:examples])})
    return numbers, others


def share_of(part: int, whole: int) -> str:
    """A share in percent; neither nothing nor all is said of what is only almost so.

    >>> share_of(1, 4), share_of(1, 74519), share_of(74518, 74519), share_of(0, 0)
    ('25.00%', '< 0.01%', '> 99.99%', '0.00%')
    """
    share = part / max(whole, 1)
    if 0 < share < LEAST_SHARE:
        return f"< {LEAST_SHARE:.2%}"
    return f"> {1 - LEAST_SHARE:.2%}" if 1 - LEAST_SHARE < share < 1 else f"{share:.2%}"


LEAST_SHARE = 0.0001
"""The smallest share that two decimals of a percentage can tell from nothing."""


def _short(ids: Sequence[str]) -> str:
    return " ".join(id_[:8] for id_ in ids)


def explain(store: Path, recipe: Recipe, conversation: str) -> dict[str, Any]:
    """The scores of one conversation and, penalty by penalty, how its quality came about.

    `conversation` is an id or its beginning. Raises `VersionError` when it fits none or many.
    """
    wanted = {scoring.name: scoring for scoring in plan(recipe.score)}
    with reading(store) as connection:
        row = _scores_of(connection, conversation)
    penalties = wanted["quality"].parameters["penalties"]
    values = {name: row[scoring.column] for name, scoring in wanted.items() if scoring.column in row}
    frame = pl.DataFrame([{name: values.get(name) for name in penalties}])
    return {
        "conversation": row["conversation"],
        "scores": values,
        "penalties": [
            {"score": name, "value": values.get(name), **penalty.model_dump(), "taken": _taken(frame, name, penalty)}
            for name, penalty in penalties.items()
        ],
    }


def _taken(frame: pl.DataFrame, score: str, penalty: Penalty) -> float:
    taken: float = frame.select(penalty.expression(score)).item()
    return round(taken, 4)


def _scores_of(connection: DuckDBPyConnection, beginning: str) -> dict[str, Any]:
    found = connection.sql("SELECT * FROM scores WHERE starts_with(conversation, ?) LIMIT 2", params=[beginning]).pl()
    if not beginning:
        raise VersionError("The id is empty.", "curate sql 'SELECT conversation FROM scores LIMIT 5' shows some.")
    if found.height == 1:
        row: dict[str, Any] = found.row(0, named=True)
        return row
    if found.height:
        raise VersionError(f"More than one conversation begins with {beginning}.", "Give more of the id.")
    raise VersionError(f"No scored conversation begins with {beginning}.", "curate score, or look at the id again.")
