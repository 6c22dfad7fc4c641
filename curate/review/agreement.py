"""Agreeing: people's answers come in; how far they are, how well they agree and what suggestions do to them go out.

Agreement is Krippendorff's alpha (Krippendorff, Content Analysis, 2004), 1 when all say the same, 0 when they agree
as often as chance would have it; a rating counts as ordinal, a choice as nominal. Since a page that shows
suggestions makes people agree with them, it is told for the blind share too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import polars as pl
from duckdb import DuckDBPyConnection

from curate.review.sets import read_questions
from curate.review.verdicts import DISPUTED, judge
from schemas.errors import ReviewError
from schemas.recipe import ReviewSection
from schemas.review import DECISION, DECISIONS, DISCARDED, DRAFT, SUBMITTED, Kind, Question

PAUSE = 30 * 60
"""Seconds after which somebody who answers again is thought to have been away: such gaps do not count as work."""

Rows = list[dict[str, Any]]
Level = Literal["ordinal", "nominal"]

SPREADSHEET = "spreadsheet"
"""The server of a set that is on none."""

RULES, PEOPLE = "rules (rows) and people (columns)", "two people, by name (rows, columns)"
"""The tables of decisions against decisions."""

SETS_SQL = f"""
    WITH counted AS (
        SELECT r.review_set, r.conversation, any_value(r.blind) AS blind, any_value(r.gone) AS gone,
            count(l.reviewer) FILTER (l.status = 'submitted') AS answers
        FROM review_records r
        LEFT JOIN latest_reviews l ON l.dataset = r.review_set AND l.conversation = r.conversation
        WHERE r.review_set IN (SELECT name FROM wanted) GROUP BY ALL
        HAVING answers > 0 OR bool_or(r.record IS NOT NULL) OR r.review_set IN (
            SELECT o.review_set FROM review_sets o WHERE server IS NULL)
    )
    SELECT s.review_set AS "set", coalesce(s.server, '{SPREADSHEET}') AS server, s.overlap, count(*) AS conversations,
        count(*) FILTER (answers >= s.overlap) AS done,
        count(*) FILTER (answers > 0 AND answers < s.overlap) AS begun,
        count(*) FILTER (answers = 0) AS untouched, count(*) FILTER (blind) AS blind, count(*) FILTER (gone) AS gone
    FROM counted JOIN review_sets s USING (review_set) GROUP BY ALL ORDER BY 1
"""
PEOPLE_SQL = """
    SELECT dataset, reviewer, status, answered_at FROM latest_reviews
    WHERE dataset IN (SELECT name FROM wanted) AND status <> 'withdrawn'
"""
VALUES_SQL = """
    SELECT l.dataset, l.conversation, l.reviewer, l.blind, q.name AS question, q.kind,
        l.answers ->> ('$."' || replace(q.name, '"', '\\"') || '"') AS value,
        list_filter(from_json(l.suggestions, '[{"question": "VARCHAR", "value": "VARCHAR"}]'),
            lambda each: each.question = q.name)[1].value AS hint
    FROM latest_reviews l JOIN questions q USING (dataset)
    WHERE l.status = 'submitted' AND value IS NOT NULL
    ORDER BY l.dataset, l.conversation, l.reviewer
"""
"""One row per answered rating or choice; `hint` is what was suggested then, or would have been."""

SAID_SQL = """
    SELECT conversation, string_agg(reviewer || ': ' || coalesce(answers ->> 'decision', answers::VARCHAR), '; '
        ORDER BY reviewer) AS said
    FROM current_answers WHERE conversation IN (SELECT conversation FROM differing)
    GROUP BY conversation ORDER BY conversation
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """How reviewing stands: a row per set, per person and per question, and the conversations on which people differ.

    `agreement` has alpha over all answers and over the blind ones; `anchoring` says how often people answer what is
    suggested when they see it and when they do not; `confusions` are tables of decisions against decisions.
    """

    sets: Rows
    people: Rows
    agreement: Rows
    anchoring: Rows
    confusions: dict[str, Rows]
    disputed: Rows

    def as_json(self) -> dict[str, Any]:
        """The standing as plain values."""
        return asdict(self)


def survey_reviews(connection: DuckDBPyConnection, section: ReviewSection, name: str | None = None) -> Standing:
    """How reviewing stands, in all sets or in the one called `name`. Raises `ReviewError` for an unknown one."""
    names = _names(connection, name)
    connection.register("wanted", pl.DataFrame({"name": names}, schema={"name": pl.String}))
    asked = _asked(connection)
    questions = _merged(question for _, question in asked)
    values = _values(connection, asked)
    standing = Standing(
        sets=connection.sql(SETS_SQL).pl().to_dicts(),
        people=_people(connection.sql(PEOPLE_SQL).pl()),
        agreement=[row for question in questions if (row := _agreement(question, values))["people"]],
        anchoring=_anchoring(values, questions),
        confusions=_confusions(values),
        disputed=_disputed(connection, section),
    )
    connection.unregister("wanted")
    return standing


def alpha(values: pl.DataFrame, level: Level, domain: Sequence[int | str]) -> float | None:
    """Krippendorff's alpha of `values` (`conversation`, `reviewer`, `value`), rounded; null where it is undefined.

    It is where nobody shares a conversation with anybody, and where all answers are the same one.
    """
    import krippendorff

    pairs = values.filter(pl.len().over("conversation") > 1)
    if pairs.is_empty() or pairs["value"].n_unique() < 2:
        return None
    places = {option: place for place, option in enumerate(domain)}
    counted = pairs.with_columns(place=pl.col("value").replace_strict(places, return_dtype=pl.Int64))
    wide = counted.pivot("place", index="conversation", values="reviewer", aggregate_function="len").fill_null(0)
    table = wide.select(pl.col(str(place)) if str(place) in wide.columns else pl.lit(0).alias(str(place))
                        for place in places.values())  # fmt: skip
    found = krippendorff.alpha(
        value_counts=table.to_numpy(), value_domain=list(places.values()), level_of_measurement=level
    )
    return round(float(found), 4)


def _names(connection: DuckDBPyConnection, name: str | None) -> list[str]:
    names = [one for (one,) in connection.execute("SELECT review_set FROM review_sets ORDER BY 1").fetchall()]
    if not names:
        raise ReviewError(
            "Nothing was given to people yet.", "curate review push NAME, or curate review export FILE.csv"
        )
    if name is not None and name not in names:
        raise ReviewError(f"The store knows no review set {name}.", f"It knows {', '.join(names)}.")
    return [name] if name else names


def _asked(connection: DuckDBPyConnection) -> list[tuple[str, Question]]:
    """The ratings and choices that the wanted sets ask, each with its set."""
    texts = connection.sql(
        "SELECT review_set, questions FROM review_sets WHERE review_set IN (SELECT name FROM wanted) ORDER BY ALL"
    ).fetchall()
    return [(name, each) for name, text in texts for each in read_questions(text) if each.kind in ("rating", "choice")]


def _merged(questions: Iterable[Question]) -> list[Question]:
    """Each question once, with the options of all sets; a rating and a choice of one name are two questions."""
    merged: dict[tuple[str, Kind], Question] = {}
    for question in questions:
        before = merged.setdefault((question.name, question.kind), question)
        options = tuple(dict.fromkeys((*before.options, *question.options)))
        merged[question.name, question.kind] = replace(before, options=options)
    return list(merged.values())


def _values(connection: DuckDBPyConnection, asked: Sequence[tuple[str, Question]]) -> pl.DataFrame:
    """The rows of `VALUES_SQL`. Values are texts, so that ratings and choices share a column."""
    rows = [(name, question.name, question.kind) for name, question in asked]
    columns = dict.fromkeys(("dataset", "name", "kind"), pl.String)
    connection.register("questions", pl.DataFrame(rows, schema=columns, orient="row"))
    values: pl.DataFrame = connection.sql(VALUES_SQL).pl()
    connection.unregister("questions")
    return values


def _of(question: Question) -> pl.Expr:
    """The rows that answer it."""
    return (pl.col("question") == question.name) & (pl.col("kind") == question.kind)


def _people(answers: pl.DataFrame) -> Rows:
    """A row per person: answers by status, how fast, since when."""
    counts = {status: (pl.col("status") == status).sum().cast(pl.Int64) for status in (SUBMITTED, DISCARDED, DRAFT)}
    gaps = pl.col("answered_at").sort().diff().dt.total_seconds()
    pace = gaps.filter((gaps > 0) & (gaps <= PAUSE)).median()
    grouped = answers.group_by("reviewer").agg(
        **counts,
        seconds_each=pace,
        first=pl.col("answered_at").min().dt.strftime("%Y-%m-%d %H:%M"),
        last=pl.col("answered_at").max().dt.strftime("%Y-%m-%d %H:%M"),
    )
    return grouped.sort("reviewer").to_dicts()


def _agreement(question: Question, values: pl.DataFrame) -> dict[str, Any]:
    """How well people agree on a question, in all answers and in the blind ones."""
    level: Level = "ordinal" if question.kind == "rating" else "nominal"
    domain = [str(option) for option in (sorted(question.options) if question.kind == "rating" else question.options)]
    mine = values.filter(_of(question)).unique(["conversation", "reviewer"], keep="last")
    shared = mine.filter(pl.len().over("conversation") > 1)
    return {
        "question": question.name,
        "level": level,
        "alpha": alpha(mine, level, domain),
        "alpha_blind": alpha(mine.filter("blind"), level, domain),
        "people": mine["reviewer"].n_unique(),
        "answered_by_several": shared["conversation"].n_unique(),
    }


def _anchoring(values: pl.DataFrame, questions: Sequence[Question]) -> Rows:
    """Per question: how often the answer is the suggestion, where it was seen and where it was not."""
    rows = []
    for question in questions:
        hinted = values.filter(_of(question) & pl.col("hint").is_not_null())
        same = hinted.with_columns(same=pl.col("value") == pl.col("hint"))
        seen, unseen = same.filter(~pl.col("blind"))["same"], same.filter("blind")["same"]
        if not len(seen) or not len(unseen):
            continue
        shares = [float(part.sum()) / len(part) for part in (seen, unseen)]
        spread = sum(share * (1 - share) / len(part) for share, part in zip(shares, (seen, unseen), strict=True))
        rows.append(
            {
                "question": question.name,
                "seen": len(seen),
                "as_suggested": round(shares[0], 4),
                "blind": len(unseen),
                "as_would_be_suggested": round(shares[1], 4),
                "difference": round(shares[0] - shares[1], 4),
                "plus_minus": round(1.96 * spread**0.5, 4),  # 95 %, by the normal approximation
            }
        )
    return rows


def _confusions(values: pl.DataFrame) -> dict[str, Rows]:
    """Decisions against decisions: of the rules and people, and of each two people."""
    said = values.filter(pl.col("question") == DECISION).unique(["conversation", "reviewer"], keep="last")
    hinted = said.filter(pl.col("hint").is_not_null()).select(row="hint", column="value")
    pairs = said.join(said, on="conversation", suffix="_other").filter(pl.col("reviewer") < pl.col("reviewer_other"))
    found = {
        RULES: hinted,
        PEOPLE: pairs.select(row="value", column="value_other"),
    }
    return {title: _table(frame) for title, frame in found.items() if frame.height}


def _table(pairs: pl.DataFrame) -> Rows:
    """How often each pair of decisions, as the rows of a table."""
    counts = {(row, column): count for row, column, count in pairs.group_by("row", "column").len().iter_rows()}
    return [{"": row, **{column: counts.get((row, column), 0) for column in DECISIONS}} for row in DECISIONS]


def _disputed(connection: DuckDBPyConnection, section: ReviewSection) -> Rows:
    """The conversations of the wanted sets on which people differ, and who says what."""
    asked = connection.sql(
        """SELECT DISTINCT conversation FROM current_answers WHERE conversation IN (
               SELECT conversation FROM review_records WHERE review_set IN (SELECT name FROM wanted))"""
    ).pl()["conversation"]
    differing = judge(connection, section, asked.to_list()).of(DISPUTED)
    connection.register("differing", pl.DataFrame({"conversation": differing}, schema={"conversation": pl.String}))
    rows: Rows = connection.sql(SAID_SQL).pl().to_dicts()
    connection.unregister("differing")
    return rows
