"""Annotators' answers and the recipe's policy → one outcome per conversation, stored as a verdict.

An answer that corrects the text or marks turns is an edit: it creates a conversation whose parent is the one shown. If
the policy cannot decide, the conversation waits, or is disputed and needs another annotator. A verdict that no longer
follows from the current answers is ended by another row, and the rules apply again. So the latest verdicts depend on
the current answers, the sets and the policy, not on the order in which answers arrived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from schemas.conversation import ASSISTANT_ROLES, CONVERSATIONS, fold, unfold
from schemas.recipe import ReviewSection
from schemas.review import DROP, FIX, KEEP, Policy

WAITING, DISPUTED = "waiting", "disputed"
"""Outcomes without a verdict: too few answers, or answers that disagree."""

UNDECIDED, ANSWER_WITHDRAWN = "undecided", "answer withdrawn"
"""The verdict that ends an earlier human verdict, and its reason if no answer is left."""

NO_CORRECTION, NOTHING_LEFT = "marked fix without a correction", "no turn left to train on"
"""Reasons to drop a conversation whose annotators did not answer drop."""

FORMER_NO_CORRECTION, FORMER_NOTHING_LEFT = "to be fixed, and nobody has written how", "no turn is left to learn from"
"""The same reasons as stored by earlier releases; they count as equal, so that no verdict is stored again."""

ANSWERS_SQL = """
    SELECT a.conversation, a.reviewer, a.answered_at, asked.overlap,
        TRY_CAST(a.answers ->> 'quality' AS INTEGER) AS quality,
        a.answers ->> 'decision' AS decision,
        TRY_CAST(a.answers -> 'issues' AS VARCHAR[]) AS issues,
        TRY_CAST(a.answers -> 'turns' AS INTEGER[]) AS turns,
        a.answers ->> 'answer' AS answer
    FROM current_answers a JOIN (
        SELECT conversation, reviewer, min(if(partial, 1, s.overlap)) AS overlap
        FROM latest_reviews JOIN review_sets s ON s.review_set = dataset WHERE status = 'submitted' GROUP BY ALL
    ) asked USING (conversation, reviewer)
    WHERE a.conversation IN (SELECT conversation FROM reviewed)
"""
"""The current answers; `overlap` is that of the least demanding set in which the annotator answered."""

OVERLAPS_SQL = """
    WITH sets AS (
        SELECT conversation, if(partial, 1, overlap) AS overlap,
            NOT gone AND NOT removed AND (record IS NOT NULL OR server IS NULL) AS is_open
        FROM review_records JOIN review_sets USING (review_set)
        WHERE conversation IN (SELECT conversation FROM reviewed)
    ), largest AS (
        SELECT conversation, coalesce(max(overlap) FILTER (is_open), max(overlap)) AS largest FROM sets GROUP BY ALL
    )
    SELECT DISTINCT conversation, overlap FROM sets JOIN largest USING (conversation) WHERE overlap <= largest
"""
"""The numbers of answers that the sets of each conversation ask for; the largest is that of a set in which it can be
answered, because it was sent and is not deleted."""

LATEST_SQL = f"""
    SELECT conversation, verdict, by_whom, edited_to, decided_at, replace(
        replace(reason, '{FORMER_NO_CORRECTION}', '{NO_CORRECTION}'), '{FORMER_NOTHING_LEFT}', '{NOTHING_LEFT}'
    ) AS reason
    FROM verdicts WHERE review IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY seq DESC) = 1
"""
UNANSWERED_SQL = f"""
    SELECT conversation, by_whom FROM ({LATEST_SQL})
    WHERE verdict <> '{UNDECIDED}' AND conversation IN (SELECT conversation FROM reviewed)
"""
"""Conversations with a human verdict, which ends if none of their answers is left."""

EDITED: dict[str, Any] = {**CONVERSATIONS, "parent": pl.String, "trained": pl.Boolean}


@dataclass(frozen=True, slots=True)
class ReviewOutcomes:
    """The outcome of each answered conversation, and the conversations made by edits.

    `outcomes` has `conversation`, `outcome` (keep, drop, edit, waiting, disputed or undecided), `reason`, `by_whom` and
    `edited_to`; `edited` has `id`, `conversations`, `tools` and `parent`.
    """

    outcomes: pl.DataFrame
    edited: pl.DataFrame

    def with_outcome(self, *outcomes: str) -> list[str]:
        """The conversations with one of these outcomes, sorted."""
        return sorted(self.outcomes.filter(pl.col("outcome").is_in(outcomes))["conversation"].to_list())


def resolve_answers(
    connection: DuckDBPyConnection, section: ReviewSection, conversations: Sequence[str]
) -> ReviewOutcomes:
    """Resolve the current answers to these conversations, over all review sets; writes nothing."""
    policy = Policy.parse(section.policy)
    reviewed = pl.DataFrame({"conversation": conversations}, schema={"conversation": pl.String})
    connection.register("reviewed", reviewed)
    overlaps = connection.sql(OVERLAPS_SQL).pl()
    largest = overlaps.group_by("conversation").agg(largest=pl.col("overlap").max())
    current = (
        connection.sql(ANSWERS_SQL)
        .pl()
        .with_columns(
            pl.col("issues").list.eval(pl.element().replace(section.renamed)).list.unique(maintain_order=True)
        )
    )
    answers = _normalize_edits(current, _read_turns(connection))
    answers = answers.join(largest, on="conversation").with_columns(overlap=pl.min_horizontal("overlap", "largest"))
    if policy.name == "expert":
        answers = _select_experts(answers, section)
    else:
        answers = answers.with_columns(expert=pl.lit(False))
    decided = _decide(answers, overlaps, policy)
    edits = _combine_edits(answers, decided, policy)
    edited = _apply_edits(connection, edits)
    verdicts = connection.sql(UNANSWERED_SQL).pl()
    connection.unregister("reviewed")
    outcomes = _add_unanswered(_build_outcomes(decided, edits, edited, policy), verdicts, policy)
    changed = edited.filter((pl.col("id") != pl.col("parent")) & pl.col("trained")).drop("trained")
    return ReviewOutcomes(outcomes, changed)


def find_disputed(connection: DuckDBPyConnection, section: ReviewSection, *, only_kept: bool = False) -> list[str]:
    """The disputed conversations; with `only_kept` those that a freeze includes."""
    query = "SELECT DISTINCT conversation FROM current_answers"
    if only_kept:
        query += " SEMI JOIN current_verdicts ON current_verdicts.conversation = current_answers.conversation AND kept"
    answered = connection.sql(query).pl()["conversation"].to_list()
    return resolve_answers(connection, section, answered).with_outcome(DISPUTED)


def write_verdicts(connection: DuckDBPyConnection, resolved: ReviewOutcomes, review_set: str) -> dict[str, int]:
    """Append the edited conversations, and the verdicts that differ from the latest; their number by verdict.

    A conversation that waits or is disputed gets an `undecided` verdict if it has a verdict.
    """
    connection.register("edited", resolved.edited)
    connection.execute(
        """INSERT INTO conversations (id, conversations, tools, parent) SELECT id, conversations, tools, parent
           FROM edited WHERE id NOT IN (SELECT id FROM conversations)"""
    )
    verdict = pl.when(pl.col("outcome").is_in([WAITING, DISPUTED])).then(pl.lit(UNDECIDED)).otherwise("outcome")
    connection.register("outcomes", resolved.outcomes.with_columns(verdict=verdict))
    written = connection.execute(
        f"""INSERT INTO verdicts (conversation, verdict, reason, by_whom, edited_to, review)
            SELECT conversation, o.verdict, o.reason, o.by_whom, o.edited_to, $review_set FROM outcomes o
            LEFT JOIN ({LATEST_SQL}) l USING (conversation)
            WHERE if(o.verdict = $undecided, coalesce(l.verdict, $undecided) <> $undecided,
                     (o.verdict, o.reason, o.by_whom, o.edited_to) IS DISTINCT FROM
                     (l.verdict, l.reason, l.by_whom, l.edited_to))
            ORDER BY conversation RETURNING verdict""",
        {"review_set": review_set, "undecided": UNDECIDED},
    ).fetchall()
    connection.unregister("edited")
    connection.unregister("outcomes")
    return Counter(verdict for (verdict,) in written)


# --- answers ---


def _read_turns(connection: DuckDBPyConnection) -> pl.DataFrame:
    """The turns of the reviewed conversations, numbered from 1."""
    rows = connection.sql(
        "SELECT id, conversations, tools FROM conversations WHERE id IN (SELECT conversation FROM reviewed) ORDER BY id"
    ).pl()
    return unfold(rows.cast({"conversations": CONVERSATIONS["conversations"]})).with_columns(
        conversation="id", number=pl.col("position").cast(pl.Int64) + 1
    )


def _normalize_edits(answers: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """The answers without edits that change nothing: `answer` is then null, `turns` has only turns with loss tokens.

    An edit without a decision counts as fix. Answers without a decision, an edit or a rating are removed.
    """
    last = (
        turns.filter(pl.col("from") == "gpt")
        .group_by("conversation")
        .agg(pl.col("value").sort_by("number").last().alias("original"))
    )
    trained = (
        turns.filter(pl.col("from").is_in(ASSISTANT_ROLES) & pl.col("train"))
        .group_by("conversation")
        .agg(pl.col("number").alias("trained"))
    )
    joined = answers.join(last, on="conversation", how="left").join(trained, on="conversation", how="left")
    hard = pl.col("original").str.contains("\u00a0").fill_null(False)
    lines = pl.col("answer").str.replace_all("\r\n", "\n").str.replace(r"\n+$", "")  # the text box appends them
    answer = pl.when(hard).then(lines).otherwise(lines.str.replace_all("\u00a0", " "))
    same = (_plain("answer") == _plain("original")) | (_plain("answer") == "") | pl.col("original").is_null()
    marks = pl.col("turns").cast(pl.List(pl.Int64)).fill_null([]).list.set_intersection(pl.col("trained").fill_null([]))
    normalized = joined.with_columns(
        answer=pl.when(same.fill_null(True)).then(None).otherwise(answer), turns=marks.list.sort()
    )
    is_edit = pl.col("answer").is_not_null() | (pl.col("turns").list.len() > 0)
    return normalized.with_columns(decision=pl.coalesce("decision", pl.when(is_edit).then(pl.lit(FIX)))).filter(
        pl.col("decision").is_not_null() | pl.col("quality").is_not_null()
    )


def _plain(column: str) -> pl.Expr:
    """A text without the changes that a browser's text box makes: line ends, hard spaces, trailing space."""
    return pl.col(column).str.replace_all("\r\n", "\n").str.replace_all("\u00a0", " ").str.strip_chars_end()


def _select_experts(answers: pl.DataFrame, section: ReviewSection) -> pl.DataFrame:
    """Per conversation the answer of the first expert who decided; all answers if none did."""
    rank = {name: place for place, name in enumerate(section.experts)}
    place = pl.col("reviewer").replace_strict(rank, default=len(rank), return_dtype=pl.Int64)
    ranked = answers.with_columns(rank=pl.when(pl.col("decision").is_null()).then(len(rank)).otherwise(place))
    first = pl.col("rank").min().over("conversation")
    return ranked.filter(pl.col("rank") == first).with_columns(expert=pl.col("rank") < len(rank)).drop("rank")


# --- outcomes ---


def _tally(answers: pl.DataFrame) -> pl.DataFrame:
    """One row per conversation: count of each decision, mean quality, issues, annotators."""
    counts = {name: (pl.col("decision") == name).sum().cast(pl.Int64) for name in (KEEP, FIX, DROP)}
    return (
        answers.group_by("conversation")
        .agg(
            **counts,
            rated=pl.col("quality").count().cast(pl.Int64),
            mean=pl.col("quality").mean(),
            issues=pl.col("issues").explode().drop_nulls().unique().sort().str.join(", "),
            by_whom=pl.col("reviewer").sort().str.join(", "),
            annotators=pl.len().cast(pl.Int64),
            expert=pl.col("expert").any(),
        )
        .sort("conversation")
    )


def _decide(answers: pl.DataFrame, overlaps: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """One row per conversation: the tally, `side`, and `needed`, the overlap of the sets whose answers were counted.

    If the most demanding set of a conversation has too few answers, those to less demanding sets decide. So a new set
    that asks for more answers does not end the verdict of an earlier one.
    """
    counted = answers.join(overlaps.rename({"overlap": "needed"}), on="conversation")
    counted = counted.filter(pl.col("overlap") <= pl.col("needed"))
    numbers = counted["needed"].unique().sort(descending=True).to_list() or [1]
    sides = [_add_side(_tally(counted.filter(pl.col("needed") == number)), policy, number) for number in numbers]
    decided_first = pl.concat(sides).sort(pl.col("side") == WAITING, maintain_order=True)
    return decided_first.unique("conversation", keep="first").sort("conversation")


def _add_side(tallied: pl.DataFrame, policy: Policy, needed: int) -> pl.DataFrame:
    """The tally with `needed` and `side`: keep, fix or drop by the policy, or waiting, or disputed."""
    rows = tallied.with_columns(needed=pl.lit(needed, pl.Int64))
    decisions = pl.sum_horizontal(KEEP, FIX, DROP)
    too_few = (pl.col("rated") if policy.name == "mean" else decisions) < pl.col("needed")
    most = pl.max_horizontal(KEEP, FIX, DROP)
    is_tie = pl.sum_horizontal(*((pl.col(name) == most).cast(pl.Int64) for name in (KEEP, FIX, DROP))) > 1
    waiting, drop, fix, keep = (pl.lit(word) for word in (WAITING, DROP, FIX, KEEP))
    first = pl.when(pl.col(DROP) == most).then(drop).when(pl.col(FIX) == most).then(fix).otherwise(keep)
    majority = pl.when(is_tie).then(pl.lit(DISPUTED)).otherwise(first)
    half = pl.col("annotators") / 2
    sides = {
        "any-drop": pl.when(pl.col(DROP) > 0).then(drop).when(too_few).then(waiting)
        .when(pl.col(FIX) > 0).then(fix).otherwise(keep),
        "majority": pl.when(too_few).then(waiting).otherwise(majority),
        "mean": pl.when(too_few).then(waiting).when(pl.col(DROP) > half).then(drop).when(pl.col(FIX) > half).then(fix)
        .when(pl.col("mean") >= policy.min_mean).then(keep).otherwise(drop),
        "expert": pl.when(too_few & ~pl.col("expert")).then(waiting).otherwise(majority),
    }  # fmt: skip
    return rows.with_columns(side=sides[policy.name])


def _combine_edits(answers: pl.DataFrame, decided: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """The edits of the winning side: `conversation`, `answer` or null, its `authors`, `turns`, `tied` corrections.

    A turn is excluded from the loss if half of that side marks it, under any-drop if one annotator does. The most
    frequent correction is used; if two are equally frequent, the conversation is disputed. An annotator who answers
    keep without a correction votes for the original answer, except under any-drop; one who answers fix does not.
    """
    sides = answers.join(decided.select("conversation", "side", "needed"), on="conversation")
    winning = sides.filter(
        (pl.col("overlap") <= pl.col("needed"))
        & pl.col("side").is_in([KEEP, FIX])
        & (pl.lit(policy.name in ("any-drop", "mean")) | (pl.col("decision") == pl.col("side")))
        & (pl.col("decision").fill_null(KEEP) != DROP)
    )
    share = 0.0 if policy.name == "any-drop" else 0.5
    marks = (
        winning.select("conversation", "turns", pl.len().over("conversation").alias("voters"))
        .explode("turns", empty_as_null=False)
        .group_by("conversation", "turns", "voters")
        .len()
        .filter(pl.col("len") >= share * pl.col("voters"))
        .group_by("conversation")
        .agg(pl.col("turns").sort())
    )
    keeps_original = (pl.col("side") == KEEP) & pl.lit(policy.name != "any-drop")
    texts = (
        winning.filter(pl.col("answer").is_not_null() | keeps_original)
        .group_by("conversation", "answer")
        .agg(pl.len(), authors=pl.col("reviewer").sort().str.join(", "))
    )
    best = texts.filter(pl.col("len") == pl.col("len").max().over("conversation"))
    corrections = best.group_by("conversation").agg(
        pl.col("answer").min(), pl.col("authors").first(), tied=pl.len() > 1
    )
    return (
        winning.select("conversation").unique()
        .join(marks, on="conversation", how="left")
        .join(corrections, on="conversation", how="left")
        .with_columns(pl.col("turns").fill_null([]), pl.col("tied").fill_null(False))
        .filter(pl.col("answer").is_not_null() | (pl.col("turns").list.len() > 0))
        .sort("conversation")
    )  # fmt: skip


def _apply_edits(connection: DuckDBPyConnection, edits: pl.DataFrame) -> pl.DataFrame:
    """The edited conversations: `id`, `conversations`, `tools`, `parent`, `trained`: whether any turn is."""
    clear = edits.filter(~pl.col("tied"))
    connection.register("clear", clear.select("conversation"))
    parents = connection.sql(
        "SELECT id, conversations, tools FROM conversations WHERE id IN (SELECT conversation FROM clear) ORDER BY id"
    ).pl()
    connection.unregister("clear")
    if parents.is_empty():
        return pl.DataFrame(schema=EDITED)
    turns = unfold(parents.cast({"conversations": CONVERSATIONS["conversations"]})).join(
        clear, left_on="id", right_on="conversation", maintain_order="left"
    )
    last_answer = pl.col("position").filter(pl.col("from") == "gpt").max().over("id")
    is_corrected = pl.col("answer").is_not_null() & (pl.col("position") == last_answer)
    is_marked = pl.col("turns").list.contains(pl.col("position").cast(pl.Int64) + 1)
    changed = turns.select(
        pl.col("id").alias("row"), "from", "tool_call_id",
        value=pl.when(is_corrected).then("answer").otherwise("value"), train=pl.col("train") & ~is_marked,
    )  # fmt: skip
    trained = changed.group_by("row").agg(trained=(pl.col("train") & pl.col("from").is_in(ASSISTANT_ROLES)).any())
    folded = fold(changed, parents["tools"]).rename({"row": "parent"})
    return folded.join(trained, left_on="parent", right_on="row").select(*CONVERSATIONS, "parent", "trained")


def _build_outcomes(decided: pl.DataFrame, edits: pl.DataFrame, edited: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """One row per conversation, in the columns of `ReviewOutcomes.outcomes`."""
    corrected_by = pl.when(pl.col("answer").is_not_null()).then("authors")
    rows = (
        decided.join(edits.select("conversation", "tied", corrected_by=corrected_by), on="conversation", how="left")
        .join(edited.select("parent", "id", "trained"), left_on="conversation", right_on="parent", how="left")
        .with_columns(pl.col("tied").fill_null(False), changed=pl.col("id") != pl.col("conversation"))
        .with_columns(pl.col("changed").fill_null(False))
    )
    untrained = pl.col("changed") & ~pl.col("trained")
    uncorrected = (pl.col("side") == FIX) & ~pl.col("changed")
    outcome = (
        pl.when(pl.col("tied")).then(pl.lit(DISPUTED))
        .when(untrained | uncorrected).then(pl.lit(DROP))
        .when(pl.col("changed")).then(pl.lit("edit"))
        .otherwise("side")
    )  # fmt: skip
    note = (
        pl.when(pl.col("tied")).then(pl.lit("; corrections are tied"))
        .when(untrained).then(pl.lit(f"; {NOTHING_LEFT}"))
        .when(uncorrected).then(pl.lit(f"; {NO_CORRECTION}"))
        .otherwise(pl.lit(""))
    )  # fmt: skip
    return rows.with_columns(outcome=outcome, note=note).select(
        "conversation",
        "outcome",
        reason=pl.concat_str(_reason(policy), "note"),
        by_whom="by_whom",
        edited_to=pl.when(pl.col("outcome") == "edit").then("id"),
    )


def _reason(policy: Policy) -> pl.Expr:
    """The policy, the count of each decision, the mean quality, the issues, and the author of the correction."""
    counts = [pl.when(pl.col(name) > 0).then(pl.format(f"{name} {{}}", pl.col(name))) for name in (KEEP, FIX, DROP)]
    mean = pl.when(pl.col("mean").is_not_null()).then(pl.format("quality {}", pl.col("mean").round(2)))
    issues = pl.when(pl.col("issues") != "").then(pl.format("issues {}", pl.col("issues")))
    correction = pl.format("answer by {}", pl.col("corrected_by"))
    parts = pl.concat_list(*counts, mean, issues, correction).list.drop_nulls().list.join(", ")
    return pl.format(f"review ({policy}): {{}}", parts)


def _add_unanswered(outcomes: pl.DataFrame, verdicts: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """The outcomes, and `undecided` for conversations with a verdict (`verdicts`) and without an answer."""
    undecided = verdicts.join(outcomes, on="conversation", how="anti").select(
        "conversation",
        outcome=pl.lit(UNDECIDED),
        reason=pl.lit(f"review ({policy}): {ANSWER_WITHDRAWN}"),
        by_whom="by_whom",
        edited_to=pl.lit(None, pl.String),
    )
    return pl.concat([outcomes, undecided]).sort("conversation")
