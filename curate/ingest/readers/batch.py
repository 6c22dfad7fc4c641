"""The output of a reader: consecutive records of a source as a table of text, and the records it could not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import polars as pl

REJECTS = {"row": pl.Int64, "line": pl.Int64, "code": pl.String, "reason": pl.String, "raw": pl.String}
"""Records that cannot be read: `code` names the violated rule, `reason` is a sentence, `raw` the original text."""

EXCLUDED_ROWS = {"row": pl.Int64, "line": pl.Int64}


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of a source."""

    table: pl.DataFrame
    """The columns of the source; every cell is text or null, a nested value is JSON text."""
    row: pl.Series
    """Int64, number of the record in the source, from 1; as long as `table`, unless `sources` is given."""
    line: pl.Series
    """Int64, line of the file on which the record starts, from 1; null for formats without lines."""
    rejects: pl.DataFrame
    """`REJECTS`, sorted by row: records that cannot be read. The field `row` does not contain their numbers."""
    raw: Callable[[pl.Series], pl.Series]
    """Positions in `row`, from 0 → the original text of these records."""
    sources: pl.DataFrame | None = None
    """`position` (in `table`), `record` (position in `row`): the records that each row of the table comes from; None if
    each row is the record at the same position."""
    excluded: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EXCLUDED_ROWS))
    """`EXCLUDED_ROWS`: records that the SELECT of `--sql` left out."""

    @property
    def records(self) -> int:
        """Number of records of the source."""
        return self.row.len() + self.rejects.height + self.excluded.height
