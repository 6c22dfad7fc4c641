"""Prompts and answers, any number per row → turns, problems, and the conversations of each row."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from curate.ingest.shapes.pairs import interleave
from curate.ingest.shapes.shape import MEMBERS, PROBLEMS, ParsedTable, problem_rows

NO_ANSWER = "no-answer"


def parse_parts(
    height: int, parts: pl.DataFrame, problems: Sequence[pl.DataFrame] = (), *, earlier: pl.DataFrame | None = None
) -> ParsedTable:
    """The conversations of a table with `height` rows, one per row of `parts`.

    `parts` has the `position` of the row in the table, in order, the texts of the turns (`human` and `gpt`, or other
    roles, in their order; a null is not a turn), and optionally `no_answer`, the reason why a part has none. A row with
    one of `problems` has no other parts; one without parts and problems has no answer. `earlier` are turns that precede
    those of every part of their row, which is the position.
    """
    failed = pl.concat([pl.DataFrame(schema=PROBLEMS), *problems]).unique("row", keep="first", maintain_order=True)
    parts = parts.with_columns(pl.col("position").cast(pl.Int64)).join(
        failed, left_on="position", right_on="row", how="anti", maintain_order="left"
    )
    rows = pl.DataFrame({"row": pl.int_range(height, eager=True)})
    rest = rows.join(parts, left_on="row", right_on="position", how="anti").join(failed, on="row", how="anti")
    failed = pl.concat([failed, problem_rows(rest, NO_ANSWER, "The row has no answer.")]).rename({"row": "position"})
    parts = pl.concat([parts, failed], how="diagonal").sort("position", maintain_order=True)
    if "no_answer" in parts.columns:
        missing = pl.col("no_answer").is_not_null()
        parts = parts.with_columns(
            pl.when(missing).then(pl.lit(NO_ANSWER)).otherwise("code").alias("code"),
            pl.coalesce("no_answer", "reason").alias("reason"),
        ).drop("no_answer")
    return _to_table(height, parts.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64)), earlier)


def _to_table(height: int, parts: pl.DataFrame, earlier: pl.DataFrame | None) -> ParsedTable:
    """The parsed table of numbered parts: those with a `code` are problems, all others have turns."""
    sound = parts.filter(pl.col("code").is_null())
    roles = [name for name in parts.columns if name not in ("row", "position", "code", "reason")]
    turns = interleave({role: sound[role] for role in roles})
    turns = turns.with_columns(sound["row"].gather(turns["row"]).alias("row"))
    if earlier is not None and earlier.height:
        before = sound.select("row", "position").join(earlier.rename({"row": "position"}), on="position", how="inner")
        turns = pl.concat([before.select(turns.columns), turns]).sort("row", maintain_order=True)
    return ParsedTable(
        turns,
        problems=parts.filter(pl.col("code").is_not_null()).select(*PROBLEMS),
        members=pl.DataFrame(schema=MEMBERS) if parts.height == height else parts.select(*MEMBERS),
    )


def join_texts(*names: str) -> pl.Expr:
    r"""The texts of columns with blank lines between them, without empty ones.

    >>> pl.DataFrame({"a": ["A text.", " "], "b": ["Why?", "Why?"]}).select(join_texts("a", "b")).to_series().to_list()
    ['A text.\n\nWhy?', 'Why?']
    """
    texts = [pl.when(pl.col(name).str.strip_chars() != "").then(name) for name in names]
    return pl.concat_str(texts, separator="\n\n", ignore_nulls=True)
