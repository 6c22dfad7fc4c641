"""Judging: people's answers and a policy come in; one outcome per conversation goes out, and becomes a verdict.

An answer that corrects the text or marks turns is an edit: a new conversation whose parent is the one people saw.
Where the policy cannot decide, there is no verdict: the conversation waits, or is disputed and a third person is
asked. What stood before stands until then, unless somebody whose answer it was made of took that answer back and the
others are too few: then the verdict is taken back too, and the rules decide again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from schemas.conversation import ASSISTANT_ROLES, CONVERSATIONS, fold, unfold
from schemas.recipe import ReviewSection
from schemas.review import DROP, FIX, KEEP, Policy

WAITING, DISPUTED = "waiting", "disputed"
"""What an outcome is besides a verdict: too few have answered, or those who did differ."""

UNDECIDED, TAKEN_BACK = "undecided", "taken back"
"""The verdict that takes an earlier one of people back, and its reason."""

TO_BE_FIXED, NOTHING_LEFT = "to be fixed, and nobody has written how", "no turn is left to learn from"
"""Why a conversation that people do not drop is dropped all the same."""

OPINIONS_SQL = """
    SELECT o.conversation, o.reviewer, o.answered_at,
        TRY_CAST(o.answers ->> 'quality' AS INTEGER) AS quality,
        o.answers ->> 'decision' AS decision,
        TRY_CAST(o.answers -> 'issues' AS VARCHAR[]) AS issues,
        TRY_CAST(o.answers -> 'turns' AS INTEGER[]) AS turns,
        o.answers ->> 'answer' AS answer
    FROM current_answers o WHERE o.conversation IN (SELECT conversation FROM asked)
"""
NEEDED_SQL = """
    SELECT conversation,
        coalesce(max(overlap) FILTER (NOT gone AND (record IS NOT NULL OR server IS NULL)), max(overlap)) AS needed
    FROM review_records JOIN review_sets USING (review_set)
    WHERE conversation IN (SELECT conversation FROM asked) GROUP BY conversation
"""
"""How many answers a conversation waits for: as many as the set asks for that asks for the most, among those in which
somebody can answer: there it was sent and is not deleted."""

LATEST_SQL = """
    SELECT conversation, verdict, reason, by_whom, edited_to, decided_at FROM verdicts WHERE review IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY decided_at DESC, rowid DESC) = 1
"""
SILENT_SQL = f"""
    SELECT v.conversation, string_agg(DISTINCT before.reviewer, ', ' ORDER BY before.reviewer) AS people
    FROM ({LATEST_SQL}) v
    JOIN reviews before ON before.conversation = v.conversation
        AND before.status = 'submitted' AND before.pulled_at <= v.decided_at
    JOIN reviews since ON since.conversation = v.conversation AND since.reviewer = before.reviewer
        AND since.status <> 'submitted' AND since.pulled_at > v.decided_at
    WHERE v.verdict <> '{UNDECIDED}' AND v.conversation IN (SELECT conversation FROM asked)
      AND (v.conversation, before.reviewer) NOT IN (SELECT conversation, reviewer FROM current_answers)
    GROUP BY v.conversation
"""
"""Verdicts that were made of an answer which its author has taken back since, and said nothing else."""

OUTCOMES = {
    "conversation": pl.String,
    "outcome": pl.String,
    "reason": pl.String,
    "by_whom": pl.String,
    "edited_to": pl.String,
}


EDITIONS: dict[str, Any] = {**CONVERSATIONS, "parent": pl.String, "learned": pl.Boolean}


@dataclass(frozen=True, slots=True)
class Judged:
    """What answers came to: a row of `OUTCOMES` per conversation, and the conversations that edits made.

    An outcome is keep, drop, edit, waiting, disputed or undecided; `editions` has `id`, `conversations`, `tools` and
    `parent`.
    """

    outcomes: pl.DataFrame
    editions: pl.DataFrame

    def of(self, *outcomes: str) -> list[str]:
        """The conversations with one of these outcomes, sorted."""
        found = self.outcomes.filter(pl.col("outcome").is_in(outcomes))
        return sorted(found["conversation"].to_list())


def judge(
    connection: DuckDBPyConnection, section: ReviewSection, asked: Sequence[str], *, partial: bool = False
) -> Judged:
    """What people's latest answers to the conversations `asked` come to, over all sets; nothing is written.

    `partial` does not wait for more answers than there are.
    """
    policy = Policy.read(section.policy)
    connection.register("asked", pl.DataFrame({"conversation": asked}, schema={"conversation": pl.String}))
    needed = connection.sql(NEEDED_SQL).pl()
    opinions = _effective(connection.sql(OPINIONS_SQL).pl(), _turns(connection))
    if partial:
        needed = needed.with_columns(needed=pl.lit(1))
    counted = _heard(opinions, section) if policy.name == "expert" else opinions.with_columns(expert=pl.lit(False))
    tallied = _decide(_tally(counted), needed, policy)
    edits = _edits(counted, tallied, policy)
    editions = _editions(connection, edits)
    silent = connection.sql(SILENT_SQL).pl()
    connection.unregister("asked")
    return Judged(_without_silent(_outcomes(tallied, edits, editions, policy), silent, policy), _new(editions))


def disputes(connection: DuckDBPyConnection, section: ReviewSection, *, only_kept: bool = False) -> list[str]:
    """The conversations on which people differ now; with `only_kept` those of them that a freeze takes."""
    query = "SELECT DISTINCT conversation FROM current_answers"
    kept = (
        " SEMI JOIN current_verdicts ON current_verdicts.conversation = current_answers.conversation AND kept"
        if only_kept
        else ""
    )
    asked = connection.sql(query + kept).pl()["conversation"].to_list()
    return judge(connection, section, asked).of(DISPUTED)


def write_verdicts(connection: DuckDBPyConnection, judged: Judged, review_set: str) -> int:
    """Append the editions and the verdicts that are not the latest already; how many verdicts that were."""
    connection.register("editions", judged.editions)
    connection.execute(
        """INSERT INTO conversations (id, conversations, tools, parent) SELECT id, conversations, tools, parent
           FROM editions WHERE id NOT IN (SELECT id FROM conversations)"""
    )
    connection.register("outcomes", judged.outcomes.filter(pl.col("outcome").is_in([KEEP, DROP, "edit", UNDECIDED])))
    written = connection.execute(
        f"""INSERT INTO verdicts (conversation, verdict, reason, by_whom, edited_to, review)
            SELECT conversation, outcome, o.reason, o.by_whom, o.edited_to, ? FROM outcomes o
            LEFT JOIN ({LATEST_SQL}) l USING (conversation)
            WHERE (outcome, o.reason, o.by_whom, o.edited_to) IS DISTINCT FROM
                  (l.verdict, l.reason, l.by_whom, l.edited_to)
            ORDER BY conversation""",
        [review_set],
    ).fetchall()
    connection.unregister("editions")
    connection.unregister("outcomes")
    return int(written[0][0])


# --- from answers to opinions ---


def _turns(connection: DuckDBPyConnection) -> pl.DataFrame:
    """The turns of the conversations asked about, numbered from 1."""
    rows = connection.sql(
        "SELECT id, conversations, tools FROM conversations WHERE id IN (SELECT conversation FROM asked) ORDER BY id"
    ).pl()
    return unfold(rows.cast({"conversations": CONVERSATIONS["conversations"]})).with_columns(
        conversation="id", number=pl.col("position").cast(pl.Int64) + 1
    )


def _effective(opinions: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """The opinions with edits that change nothing taken out: `answer` null, `turns` only those that would be learned.

    Without a decision, a correction or a mark says fix; without any of them the answer is no opinion.
    """
    last = (
        turns.filter(pl.col("from") == "gpt")
        .group_by("conversation")
        .agg(pl.col("value").sort_by("number").last().alias("original"))
    )
    learned = (
        turns.filter(pl.col("from").is_in(ASSISTANT_ROLES) & pl.col("train"))
        .group_by("conversation")
        .agg(pl.col("number").alias("learned"))
    )
    joined = opinions.join(last, on="conversation", how="left").join(learned, on="conversation", how="left")
    hard = pl.col("original").str.contains("\u00a0").fill_null(False)
    lines = pl.col("answer").str.replace_all("\r\n", "\n").str.replace(r"\n+$", "")  # the text box adds them
    answer = pl.when(hard).then(lines).otherwise(lines.str.replace_all("\u00a0", " "))
    same = (_plain("answer") == _plain("original")) | (_plain("answer") == "") | pl.col("original").is_null()
    marks = pl.col("turns").cast(pl.List(pl.Int64)).fill_null([]).list.set_intersection(pl.col("learned").fill_null([]))
    edited = joined.with_columns(
        answer=pl.when(same.fill_null(True)).then(None).otherwise(answer), turns=marks.list.sort()
    )
    edits = pl.col("answer").is_not_null() | (pl.col("turns").list.len() > 0)
    return edited.with_columns(decision=pl.coalesce("decision", pl.when(edits).then(pl.lit(FIX)))).filter(
        pl.col("decision").is_not_null() | pl.col("quality").is_not_null()
    )


def _plain(column: str) -> pl.Expr:
    """A text without what a browser's text box changes on its own: line ends, hard spaces, space at the end."""
    return pl.col(column).str.replace_all("\r\n", "\n").str.replace_all("\u00a0", " ").str.strip_chars_end()


def _heard(opinions: pl.DataFrame, section: ReviewSection) -> pl.DataFrame:
    """Of each conversation the first named expert's opinion alone; all opinions where no expert has decided."""
    rank = {name: place for place, name in enumerate(section.experts)}
    place = pl.col("reviewer").replace_strict(rank, default=len(rank), return_dtype=pl.Int64)
    ranked = opinions.with_columns(rank=pl.when(pl.col("decision").is_null()).then(len(rank)).otherwise(place))
    first = pl.col("rank").min().over("conversation")
    return ranked.filter(pl.col("rank") == first).with_columns(expert=pl.col("rank") < len(rank)).drop("rank")


# --- from opinions to outcomes ---


def _tally(opinions: pl.DataFrame) -> pl.DataFrame:
    """One row per conversation: how often each decision, the mean quality, the issues, and who spoke."""
    counts = {name: (pl.col("decision") == name).sum().cast(pl.Int64) for name in (KEEP, FIX, DROP)}
    return (
        opinions.group_by("conversation")
        .agg(
            **counts,
            rated=pl.col("quality").count().cast(pl.Int64),
            mean=pl.col("quality").mean(),
            issues=pl.col("issues").explode().drop_nulls().unique().sort().str.join(", "),
            by_whom=pl.col("reviewer").sort().str.join(", "),
            people=pl.len().cast(pl.Int64),
            expert=pl.col("expert").any(),
        )
        .sort("conversation")
    )


def _decide(tallied: pl.DataFrame, needed: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """The tally with `side`: keep, fix or drop as the policy says, or waiting, or disputed."""
    rows = tallied.join(needed, on="conversation", how="left").with_columns(pl.col("needed").fill_null(1))
    decided = pl.sum_horizontal(KEEP, FIX, DROP)
    few = (pl.col("rated") if policy.name == "mean" else decided) < pl.col("needed")
    most = pl.max_horizontal(KEEP, FIX, DROP)
    ties = pl.sum_horizontal(*((pl.col(name) == most).cast(pl.Int64) for name in (KEEP, FIX, DROP))) > 1
    waiting, drop, fix, keep = (pl.lit(word) for word in (WAITING, DROP, FIX, KEEP))
    first = pl.when(pl.col(DROP) == most).then(drop).when(pl.col(FIX) == most).then(fix).otherwise(keep)
    majority = pl.when(ties).then(pl.lit(DISPUTED)).otherwise(first)
    half = pl.col("people") / 2
    sides = {
        "any-drop": pl.when(pl.col(DROP) > 0).then(drop).when(few).then(waiting)
        .when(pl.col(FIX) > 0).then(fix).otherwise(keep),
        "majority": pl.when(few).then(waiting).otherwise(majority),
        "mean": pl.when(few).then(waiting).when(pl.col(DROP) > half).then(drop).when(pl.col(FIX) > half).then(fix)
        .when(pl.col("mean") >= policy.least).then(keep).otherwise(drop),
        "expert": pl.when(few & ~pl.col("expert")).then(waiting).otherwise(majority),
    }  # fmt: skip
    return rows.with_columns(side=sides[policy.name])


def _edits(opinions: pl.DataFrame, tallied: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """What the winning side changes: `conversation`, `answer` or null, its `authors`, `turns`, `torn` between answers.

    A turn is skipped when half of that side marks it, or anybody under any-drop. Of several answers the most frequent
    is taken; two that are equally frequent are a dispute. Who keeps the conversation without a correction is for the
    answer as it is, but under any-drop, where one objection is enough; who wants it fixed is not.
    """
    sides = opinions.join(tallied.select("conversation", "side"), on="conversation")
    winning = sides.filter(
        pl.col("side").is_in([KEEP, FIX])
        & (pl.lit(policy.name in ("any-drop", "mean")) | (pl.col("decision") == pl.col("side")))
        & (pl.col("decision").fill_null(KEEP) != DROP)
    )
    share = 0.0 if policy.name == "any-drop" else 0.5
    people = pl.len().over("conversation").alias("voices")
    marks = (
        winning.select("conversation", "turns", people)
        .explode("turns", empty_as_null=False)
        .group_by("conversation", "turns", "voices")
        .len()
        .filter(pl.col("len") >= share * pl.col("voices"))
        .group_by("conversation")
        .agg(pl.col("turns").sort())
    )
    as_it_is = (pl.col("side") == KEEP) & pl.lit(policy.name != "any-drop")
    texts = (
        winning.filter(pl.col("answer").is_not_null() | as_it_is)
        .group_by("conversation", "answer")
        .agg(pl.len(), authors=pl.col("reviewer").sort().str.join(", "))
    )
    best = texts.filter(pl.col("len") == pl.col("len").max().over("conversation"))
    answers = best.group_by("conversation").agg(pl.col("answer").min(), pl.col("authors").first(), torn=pl.len() > 1)
    return (
        winning.select("conversation").unique()
        .join(marks, on="conversation", how="left")
        .join(answers, on="conversation", how="left")
        .with_columns(pl.col("turns").fill_null([]), pl.col("torn").fill_null(False))
        .filter(pl.col("answer").is_not_null() | (pl.col("turns").list.len() > 0))
        .sort("conversation")
    )  # fmt: skip


def _editions(connection: DuckDBPyConnection, edits: pl.DataFrame) -> pl.DataFrame:
    """The conversations that the edits make: `id`, `conversations`, `tools`, `parent`, `learned` (any turn is)."""
    settled = edits.filter(~pl.col("torn"))
    connection.register("edited", settled.select("conversation"))
    parents = connection.sql(
        "SELECT id, conversations, tools FROM conversations WHERE id IN (SELECT conversation FROM edited) ORDER BY id"
    ).pl()
    connection.unregister("edited")
    if parents.is_empty():
        return pl.DataFrame(schema=EDITIONS)
    turns = unfold(parents.cast({"conversations": CONVERSATIONS["conversations"]})).join(
        settled, left_on="id", right_on="conversation", maintain_order="left"
    )
    answers = pl.col("position").filter(pl.col("from") == "gpt").max().over("id")
    corrected = pl.col("answer").is_not_null() & (pl.col("position") == answers)
    silent = pl.col("turns").list.contains(pl.col("position").cast(pl.Int64) + 1)
    changed = turns.select(
        pl.col("id").alias("row"), "from", "tool_call_id",
        value=pl.when(corrected).then("answer").otherwise("value"), train=pl.col("train") & ~silent,
    )  # fmt: skip
    learned = changed.group_by("row").agg(learned=(pl.col("train") & pl.col("from").is_in(ASSISTANT_ROLES)).any())
    folded = fold(changed, parents["tools"]).rename({"row": "parent"})
    return folded.join(learned, left_on="parent", right_on="row").select(*CONVERSATIONS, "parent", "learned")


def _new(editions: pl.DataFrame) -> pl.DataFrame:
    """Those editions that stand: others than their parents, and with something to learn."""
    return editions.filter((pl.col("id") != pl.col("parent")) & pl.col("learned")).drop("learned")


def _outcomes(tallied: pl.DataFrame, edits: pl.DataFrame, editions: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """One row per conversation, in the columns of `OUTCOMES`."""
    rows = (
        tallied.join(edits.select("conversation", "torn", answered=_authors()), on="conversation", how="left")
        .join(editions.select("parent", "id", "learned"), left_on="conversation", right_on="parent", how="left")
        .with_columns(pl.col("torn").fill_null(False), edited=pl.col("id") != pl.col("conversation"))
        .with_columns(pl.col("edited").fill_null(False))
    )
    spent = pl.col("edited") & ~pl.col("learned")
    unfixed = (pl.col("side") == FIX) & ~pl.col("edited")
    outcome = (
        pl.when(pl.col("torn")).then(pl.lit(DISPUTED))
        .when(spent | unfixed).then(pl.lit(DROP))
        .when(pl.col("edited")).then(pl.lit("edit"))
        .otherwise("side")
    )  # fmt: skip
    why = (
        pl.when(pl.col("torn")).then(pl.lit("; as many for one answer as for another"))
        .when(spent).then(pl.lit(f"; {NOTHING_LEFT}"))
        .when(unfixed).then(pl.lit(f"; {TO_BE_FIXED}"))
        .otherwise(pl.lit(""))
    )  # fmt: skip
    return rows.with_columns(outcome=outcome, why=why).select(
        "conversation",
        "outcome",
        reason=pl.concat_str(_told(policy), "why"),
        by_whom="by_whom",
        edited_to=pl.when(pl.col("outcome") == "edit").then("id"),
    )


def _authors() -> pl.Expr:
    """Who wrote the answer that is taken; null where it is the one that was there."""
    return pl.when(pl.col("answer").is_not_null()).then("authors")


def _without_silent(outcomes: pl.DataFrame, silent: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """The outcomes, undecided where an answer behind the verdict was taken back and nobody is left, or too few."""
    settled = outcomes.filter(pl.col("outcome") != WAITING).select("conversation")
    undecided = silent.join(settled, on="conversation", how="anti").select(
        "conversation",
        outcome=pl.lit(UNDECIDED),
        reason=pl.lit(f"review ({policy}): {TAKEN_BACK}"),
        by_whom="people",
        edited_to=pl.lit(None, pl.String),
    )
    rest = outcomes.join(undecided, on="conversation", how="anti")
    return pl.concat([rest, undecided]).sort("conversation")


def _told(policy: Policy) -> pl.Expr:
    """The reason in words: the policy, how often each decision, the mean quality, the issues, and whose answer."""
    counts = [pl.when(pl.col(name) > 0).then(pl.format(f"{name} {{}}", pl.col(name))) for name in (KEEP, FIX, DROP)]
    mean = pl.when(pl.col("mean").is_not_null()).then(pl.format("quality {}", pl.col("mean").round(2)))
    issues = pl.when(pl.col("issues") != "").then(pl.format("issues {}", pl.col("issues")))
    answered = pl.format("answer by {}", pl.col("answered"))
    parts = pl.concat_list(*counts, mean, issues, answered).list.drop_nulls().list.join(", ")
    return pl.format(f"review ({policy}): {{}}", parts)
