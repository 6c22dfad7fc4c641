"""The `[score]` sections of a recipe → the scorers to run, in order of dependency, with checked parameters.

A scorer with default parameters fills the column of its name, with other parameters the column
`<scorer>__<8 hex digits>`, so that the values of both are kept.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import polars as pl
from polars.exceptions import PolarsError
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from curate.scorers import ENTRY_POINTS, REVISIONS, SCORERS, Scorer
from curate.scorers.features import FEATURES, is_frame_scorer, run_scorer
from schemas.digest import canonical_json, digest
from schemas.errors import RecipeError, nearest


@dataclass(frozen=True, slots=True)
class PlannedScorer:
    """A scorer with its parameters, and the column of `scores` that it fills."""

    name: str
    function: Scorer
    parameters: Mapping[str, Any]
    needs: tuple[str, ...]
    """the scorers whose values it reads"""
    column: str
    digest: str
    """of name, parameters, revision and the digests of `needs`"""
    parameters_json: str

    def run(self, frame: pl.DataFrame) -> pl.Series:
        """The value for each row of a features frame, named after the scorer: Int64, Float64, Boolean or String.

        Raises `RecipeError` if Polars cannot compute it, or if the values have another length or type.
        """
        try:
            values = run_scorer(self.function, frame, **self.parameters).alias(self.name)
        except PolarsError as error:
            raise RecipeError(
                f"The scorer {self.name} cannot be computed: {str(error).splitlines()[0]}",
                f"Check score.{self.name} in the recipe. The parameters are {self.parameters_json}.",
            ) from error
        if len(values) != frame.height:
            raise RecipeError(
                f"The scorer {self.name} returned {len(values)} values for {frame.height} rows.", "Correct the scorer."
            )
        if values.dtype.is_integer():
            return values.cast(pl.Int64)
        if values.dtype.is_numeric():
            return values.cast(pl.Float64)
        if values.dtype in (pl.Boolean, pl.String):
            return values
        raise RecipeError(
            f"The scorer {self.name} returned {values.dtype} instead of numbers, booleans or strings.",
            "Correct the scorer.",
        )


def plan_scorers(sections: Mapping[str, Mapping[str, Any]], only: Sequence[str] = ()) -> list[PlannedScorer]:
    """The scorers to run, each after those it depends on, with the parameters of the recipe's `[score]` sections.

    Without `only`: all scorers of this project, and those of other packages that have a section. Raises `RecipeError`
    for an unknown scorer or parameter, with the nearest known name, for an invalid value, and for a circular
    dependency.
    """
    for name in (*sections, *only):
        if name not in scorer_names():
            raise RecipeError(
                f"Unknown scorer {name}{nearest(name, scorer_names())}", "curate score --list shows all scorers."
            )
    planned: dict[str, PlannedScorer] = {}
    for name in only or dict.fromkeys((*SCORERS, *sections)):
        _add(name, sections, planned, ())
    return list(planned.values())


def _add(
    name: str, sections: Mapping[str, Mapping[str, Any]], planned: dict[str, PlannedScorer], path: tuple[str, ...]
) -> None:
    """Append `name` to `planned`, after the scorers it depends on."""
    if name in planned:
        return
    if name in path:
        raise RecipeError(
            f"Circular scorer dependency: {' → '.join((*path, name))}.", f"Remove one of them from score.{name}."
        )
    function = find_scorer(name)
    parameters = _check_parameters(name, function, sections.get(name, {}))
    needs = _dependencies(name, function, dict(parameters))
    for need in needs:
        _add(need, sections, planned, (*path, name))
    planned[name] = _planned_scorer(name, function, parameters, [planned[need] for need in needs])


def _planned_scorer(
    name: str, function: Scorer, parameters: BaseModel, needs: Sequence[PlannedScorer]
) -> PlannedScorer:
    written = parameters.model_dump(mode="json")
    identity = digest(
        {
            "scorer": name,
            "parameters": written,
            "revision": REVISIONS.get(name, 1),
            "needs": {need.name: need.digest for need in needs},
        }
    )
    is_default = written == type(parameters)().model_dump(mode="json") and all(
        need.column == need.name for need in needs
    )
    return PlannedScorer(
        name=name,
        function=function,
        parameters=dict(parameters),
        needs=tuple(need.name for need in needs),
        column=name if is_default else f"{name}__{identity[:8]}",
        digest=identity,
        parameters_json=canonical_json(written),
    )


def _dependencies(name: str, function: Scorer, parameters: Mapping[str, Any]) -> list[str]:
    """The scorers whose values an expression reads; a frame scorer reads the features only.

    Raises `RecipeError` for an expression over a name that is neither a scorer nor a feature.
    """
    if is_frame_scorer(function):
        return []
    expression = function(**parameters)
    assert isinstance(expression, pl.Expr)
    roots = dict.fromkeys(expression.meta.root_names())  # includes "", the element of a list
    needs = [root for root in roots if root and root not in FEATURES]
    for need in needs:
        if need not in scorer_names():
            raise RecipeError(
                f"{name} depends on {need}, which is not a scorer{nearest(need, scorer_names())}",
                f"Check score.{name} in the recipe; curate score --list shows all scorers.",
            )
    return needs


def _check_parameters(name: str, function: Scorer, values: Mapping[str, Any]) -> BaseModel:
    """All parameters, checked against the signature. Raises one `RecipeError` with every problem."""
    model = _parameter_model(name, function)
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = "; ".join(_describe_problem(name, model, dict(problem)) for problem in error.errors())
        raise RecipeError(problems, f"curate score --list shows the parameters of {name}.") from error


def _describe_problem(name: str, model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return f"score.{name}.{key} is not a parameter of {name}{nearest(key, model.model_fields)}"
    return f"score.{name}.{key}: {problem['msg']}"


@cache
def _parameter_model(name: str, function: Scorer) -> type[BaseModel]:
    """The scorer's keyword-only parameters, which must have defaults, as a pydantic model."""
    fields: dict[str, Any] = {
        parameter.name: (parameter.annotation, parameter.default)
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False), **fields)


def scorer_names() -> list[str]:
    """The names of all scorers, those of this project first."""
    return [*SCORERS, *_plugins()]


@cache
def _plugins() -> dict[str, EntryPoint]:
    """The scorers of other packages by name, not imported. A scorer of this project cannot be replaced."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in SCORERS}


def find_scorer(name: str) -> Scorer:
    """The function of a scorer. Raises `RecipeError` if its package cannot be imported."""
    if name in SCORERS:
        return SCORERS[name]
    point = _plugins()[name]
    try:
        scorer: Scorer = point.load()
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"The scorer {name} ({point.value}) cannot be imported: {error}.", "Repair its package."
        ) from error
    return scorer


def describe_scorers() -> list[dict[str, str]]:
    """One row per scorer: `scorer`, `parameters` as written in a recipe, and `description`."""
    return [_describe_scorer(name, find_scorer(name)) for name in scorer_names()]


def _describe_scorer(name: str, function: Scorer) -> dict[str, str]:
    defaults = _parameter_model(name, function)().model_dump(mode="json")
    parameters = ", ".join(f"{key} = {json.dumps(value, sort_keys=True)}" for key, value in defaults.items())
    description = (inspect.getdoc(function) or "").partition("\n")[0]
    return {"scorer": name, "parameters": parameters, "description": description}
