"""Annotators' answers in the store → progress, inter-annotator agreement and suggestion bias.

Agreement is Krippendorff's alpha (Krippendorff, Content Analysis, 2004): 1 if all answers are equal, 0 if they agree as
often as by chance. Ratings are ordinal, choices nominal. Visible suggestions increase agreement, so alpha is also
computed for the blind share alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.review.question_kinds import KINDS, Level
from curate.review.sets import parse_questions
from curate.review.verdicts import DISPUTED, resolve_answers
from schemas.errors import ReviewError
from schemas.recipe import ReviewSection
from schemas.review import DECISION, DECISIONS, DISCARDED, DRAFT, SUBMITTED, TURNS, KindName, Question
from schemas.timing import timed

MAX_GAP = 30 * 60
"""Seconds between two answers of an annotator; longer gaps are breaks and do not count for the pace."""

Rows = list[dict[str, Any]]

SPREADSHEET = "spreadsheet"
"""The server of a set that was only exported."""

RULES, ANNOTATORS = "rules_by_annotators", "annotators_by_annotators"
"""Keys of the confusion tables, rows by columns; annotators by name."""

SETS_SQL = f"""
    WITH counted AS (
        SELECT r.review_set, r.conversation, any_value(r.blind) AS blind, any_value(r.gone) AS gone,
            count(l.reviewer) FILTER (l.status = 'submitted') AS answers
        FROM review_records r
        LEFT JOIN latest_reviews l ON l.dataset = r.review_set AND l.conversation = r.conversation
        WHERE r.review_set IN (SELECT name FROM requested) AND NOT r.removed GROUP BY ALL
        HAVING answers > 0 OR bool_or(r.record IS NOT NULL) OR r.review_set IN (
            SELECT o.review_set FROM review_sets o WHERE server IS NULL)
    )
    SELECT s.review_set AS "set", coalesce(s.server, '{SPREADSHEET}') AS server, s.overlap, count(*) AS conversations,
        count(*) FILTER (answers >= s.overlap) AS done,
        count(*) FILTER (answers > 0 AND answers < s.overlap) AS partial,
        count(*) FILTER (answers = 0) AS unanswered, count(*) FILTER (blind) AS blind, count(*) FILTER (gone) AS deleted
    FROM counted JOIN review_sets s USING (review_set) GROUP BY ALL ORDER BY 1
"""
ANNOTATORS_SQL = """
    SELECT dataset, reviewer, status, answered_at FROM latest_reviews
    WHERE dataset IN (SELECT name FROM requested) AND status <> 'withdrawn'
"""
VALUES_SQL = """
    SELECT l.dataset, l.conversation, l.reviewer, l.blind, q.name AS question, q.kind,
        l.answers ->> ('$."' || replace(q.name, '"', '\\"') || '"') AS value,
        list_filter(from_json(l.suggestions, '[{"question": "VARCHAR", "value": "VARCHAR"}]'),
            lambda each: each.question = q.name)[1].value AS suggestion
    FROM latest_reviews l JOIN questions q USING (dataset)
    WHERE l.status = 'submitted' AND value IS NOT NULL
    ORDER BY l.dataset, l.conversation, l.reviewer
"""
"""One row per answered rating or choice; `suggestion` is the one shown, or the hidden one of a blind task."""

LABELS_SQL = """
    WITH answered AS (
        SELECT q.name AS question, l.reviewer, l.answers -> ('$."' || replace(q.name, '"', '\\"') || '"') AS answer
        FROM latest_reviews l JOIN questions q USING (dataset) WHERE l.status = 'submitted'
    )
    SELECT question, reviewer,
        unnest(if(json_type(answer) = 'ARRAY', from_json(answer, '["VARCHAR"]'), [answer ->> '$'])) AS value
    FROM answered WHERE answer IS NOT NULL
"""

DISPUTED_SQL = """
    SELECT conversation, string_agg(reviewer || ': ' || coalesce(answers ->> 'decision', answers::VARCHAR), '; '
        ORDER BY reviewer) AS answers
    FROM current_answers WHERE conversation IN (SELECT conversation FROM disputed)
    GROUP BY conversation ORDER BY conversation
"""


@dataclass(frozen=True, slots=True)
class ReviewStats:
    """One row per set, annotator and question, and the disputed conversations with their answers.

    `agreement` has alpha over all answers and over the blind ones, `suggestion_bias` how often answers equal the
    suggestion with and without seeing it, `labels` how often each annotator chose each option. `confusions` are tables
    of decisions by decisions.
    """

    sets: Rows
    annotators: Rows
    agreement: Rows
    suggestion_bias: Rows
    confusions: dict[str, Rows]
    labels: Rows
    disputed: Rows


@timed("computing agreement")
def review_stats(connection: DuckDBPyConnection, section: ReviewSection, name: str | None = None) -> ReviewStats:
    """The statistics of all sets, or of the set `name`. Raises `ReviewError` for an unknown set."""
    connection.register("requested", pl.DataFrame({"name": _set_names(connection, name)}, schema={"name": pl.String}))
    asked = _read_questions(connection)
    measured = [(set_name, each) for set_name, each in asked if KINDS[each.kind].level]
    values = _rename(_read_values(connection, measured), section)
    questions = _merge_questions((_with_current_names(each, section) for _, each in measured), values)
    stats = ReviewStats(
        sets=connection.sql(SETS_SQL).pl().to_dicts(),
        annotators=_annotators(connection.sql(ANNOTATORS_SQL).pl()),
        agreement=[row for question in questions if (row := _agreement(question, values))["annotators"]],
        suggestion_bias=_suggestion_bias(values, questions),
        confusions=_confusions(values),
        labels=_count_labels(_rename(_read_labels(connection, asked), section)),
        disputed=_disputed(connection, section),
    )
    connection.unregister("requested")
    return stats


def krippendorff_alpha(values: pl.DataFrame, level: Level, domain: Sequence[int | str]) -> float | None:
    """Krippendorff's alpha of `values` (`conversation`, `reviewer`, `value`), rounded to 4 digits.

    None if it is undefined: no conversation has two answers, or all answers are equal.
    """
    import krippendorff

    pairs = values.filter(pl.len().over("conversation") > 1)
    if pairs.is_empty() or pairs["value"].n_unique() < 2:
        return None
    places = {option: place for place, option in enumerate(domain)}
    placed = pairs.with_columns(place=pl.col("value").replace_strict(places, return_dtype=pl.Int64))
    wide = placed.pivot("place", index="conversation", values="reviewer", aggregate_function="len").fill_null(0)
    counts = wide.select(pl.col(str(place)) if str(place) in wide.columns else pl.lit(0).alias(str(place))
                         for place in places.values())  # fmt: skip
    alpha = krippendorff.alpha(
        value_counts=counts.to_numpy(), value_domain=list(places.values()), level_of_measurement=level
    )
    return round(float(alpha), 4)


def _set_names(connection: DuckDBPyConnection, name: str | None) -> list[str]:
    names = [one for (one,) in connection.execute("SELECT review_set FROM review_sets ORDER BY 1").fetchall()]
    if not names:
        raise ReviewError("There is no review set.", "curate review push NAME, or curate review export FILE.csv")
    if name is not None and name not in names:
        raise ReviewError(f"The store has no review set {name}.", f"Known sets: {', '.join(names)}.")
    return [name] if name else names


def _read_questions(connection: DuckDBPyConnection) -> list[tuple[str, Question]]:
    """The questions of the requested sets: set and question."""
    rows = connection.sql(
        "SELECT review_set, questions FROM review_sets WHERE review_set IN (SELECT name FROM requested) ORDER BY ALL"
    ).fetchall()
    return [(name, each) for name, text in rows for each in parse_questions(text)]


def _with_current_names(question: Question, section: ReviewSection) -> Question:
    options = [section.renamed.get(str(option), option) for option in question.options]
    return replace(question, options=tuple(dict.fromkeys(options)))


def _rename(values: pl.DataFrame, section: ReviewSection) -> pl.DataFrame:
    """The values and suggestions with the current names of options."""
    names = [name for name in ("value", "suggestion") if name in values.columns]
    return values.with_columns(pl.col(names).replace(section.renamed))


def _merge_questions(questions: Iterable[Question], values: pl.DataFrame) -> list[Question]:
    """Each question once, with the options of all sets and retired ones that were answered.

    A rating and a choice with the same name are two questions.
    """
    merged: dict[tuple[str, KindName], Question] = {}
    for question in questions:
        first = merged.setdefault((question.name, question.kind), question)
        options = tuple(dict.fromkeys((*first.options, *question.options)))
        merged[question.name, question.kind] = replace(first, options=options)
    answered = {
        key: values.filter(_is_answer_to(each))["value"].unique().sort().to_list() for key, each in merged.items()
    }
    return [
        each if each.kind == "rating" else replace(each, options=tuple(dict.fromkeys((*each.options, *answered[key]))))
        for key, each in merged.items()
    ]


def _read_values(connection: DuckDBPyConnection, measured: Sequence[tuple[str, Question]]) -> pl.DataFrame:
    """The rows of `VALUES_SQL`. Values are texts, so that ratings and choices share a column."""
    rows = [(name, question.name, question.kind) for name, question in measured]
    columns = dict.fromkeys(("dataset", "name", "kind"), pl.String)
    connection.register("questions", pl.DataFrame(rows, schema=columns, orient="row"))
    values: pl.DataFrame = connection.sql(VALUES_SQL).pl()
    connection.unregister("questions")
    return values


def _read_labels(connection: DuckDBPyConnection, asked: Sequence[tuple[str, Question]]) -> pl.DataFrame:
    """One row per chosen option: `question`, `reviewer`, `value`."""
    rows = [(name, each.name) for name, each in asked if each.kind in ("choice", "labels") and each.name != TURNS]
    columns = dict.fromkeys(("dataset", "name"), pl.String)
    connection.register("questions", pl.DataFrame(rows, schema=columns, orient="row"))
    labels: pl.DataFrame = connection.sql(LABELS_SQL).pl()
    connection.unregister("questions")
    return labels


def _count_labels(labels: pl.DataFrame) -> Rows:
    """How often each annotator chose each option."""
    grouped = labels.rename({"value": "label"}).group_by("question", "label", "reviewer")
    counts = grouped.agg(answers=pl.len().cast(pl.Int64))
    return counts.sort("question", "label", "reviewer").to_dicts()


def _is_answer_to(question: Question) -> pl.Expr:
    return (pl.col("question") == question.name) & (pl.col("kind") == question.kind)


def _annotators(answers: pl.DataFrame) -> Rows:
    """One row per annotator: answers by status, median seconds per answer, times of the first and last answer."""
    counts = {status: (pl.col("status") == status).sum().cast(pl.Int64) for status in (SUBMITTED, DISCARDED, DRAFT)}
    gaps = pl.col("answered_at").sort().diff().dt.total_seconds()
    grouped = answers.group_by("reviewer").agg(
        **counts,
        seconds_each=gaps.filter((gaps > 0) & (gaps <= MAX_GAP)).median(),
        first=pl.col("answered_at").min(),
        last=pl.col("answered_at").max(),
    )
    return grouped.sort("reviewer").to_dicts()


def _agreement(question: Question, values: pl.DataFrame) -> dict[str, Any]:
    """Alpha of one question, over all answers and over the blind ones."""
    level = KINDS[question.kind].level or "nominal"
    options = sorted(question.options) if level == "ordinal" else question.options
    domain = [str(option) for option in options]
    answers = values.filter(_is_answer_to(question)).unique(["conversation", "reviewer"], keep="last")
    shared = answers.filter(pl.len().over("conversation") > 1)
    return {
        "question": question.name,
        "level": level,
        "alpha": krippendorff_alpha(answers, level, domain),
        "alpha_blind": krippendorff_alpha(answers.filter("blind"), level, domain),
        "annotators": answers["reviewer"].n_unique(),
        "shared": shared["conversation"].n_unique(),
    }


def _suggestion_bias(values: pl.DataFrame, questions: Sequence[Question]) -> Rows:
    """Per question: the share of answers equal to the suggestion, where it was visible and where it was hidden."""
    rows = []
    for question in questions:
        suggested = values.filter(_is_answer_to(question) & pl.col("suggestion").is_not_null())
        same = suggested.with_columns(same=pl.col("value") == pl.col("suggestion"))
        visible, hidden = same.filter(~pl.col("blind"))["same"], same.filter("blind")["same"]
        if not len(visible) or not len(hidden):
            continue
        shares = [float(part.sum()) / len(part) for part in (visible, hidden)]
        variance = sum(share * (1 - share) / len(part) for share, part in zip(shares, (visible, hidden), strict=True))
        rows.append(
            {
                "question": question.name,
                "shown": len(visible),
                "equal_if_shown": round(shares[0], 4),
                "blind": len(hidden),
                "equal_if_blind": round(shares[1], 4),
                "difference": round(shares[0] - shares[1], 4),
                "margin": round(1.96 * variance**0.5, 4),  # 95 % confidence, normal approximation
            }
        )
    return rows


def _confusions(values: pl.DataFrame) -> dict[str, Rows]:
    """Decisions by decisions: of rules and annotators, and of each pair of annotators."""
    decisions = values.filter(pl.col("question") == DECISION).unique(["conversation", "reviewer"], keep="last")
    by_rules = decisions.filter(pl.col("suggestion").is_not_null()).select(row="suggestion", column="value")
    pairs = decisions.join(decisions, on="conversation", suffix="_other")
    by_others = pairs.filter(pl.col("reviewer") < pl.col("reviewer_other")).select(row="value", column="value_other")
    frames = {RULES: by_rules, ANNOTATORS: by_others}
    return {key: _confusion_table(frame) for key, frame in frames.items() if frame.height}


def _confusion_table(pairs: pl.DataFrame) -> Rows:
    """How often each pair of decisions occurs, one row per decision."""
    counts = {(row, column): count for row, column, count in pairs.group_by("row", "column").len().iter_rows()}
    return [{"": row, **{column: counts.get((row, column), 0) for column in DECISIONS}} for row in DECISIONS]


def _disputed(connection: DuckDBPyConnection, section: ReviewSection) -> Rows:
    """The disputed conversations of the requested sets with their answers."""
    answered = connection.sql(
        """SELECT DISTINCT conversation FROM current_answers WHERE conversation IN (
               SELECT conversation FROM review_records WHERE review_set IN (SELECT name FROM requested))"""
    ).pl()["conversation"]
    disputed = resolve_answers(connection, section, answered.to_list()).with_outcome(DISPUTED)
    connection.register("disputed", pl.DataFrame({"conversation": disputed}, schema={"conversation": pl.String}))
    rows: Rows = connection.sql(DISPUTED_SQL).pl().to_dicts()
    connection.unregister("disputed")
    return rows
