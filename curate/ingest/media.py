"""A table and its turns → the rows that refer to an image, a sound or a video, which text training would lose."""

from __future__ import annotations

import polars as pl

from curate.ingest.column_names import name_words
from curate.ingest.shapes.cell_path import base_column
from curate.ingest.shapes.shape import PROBLEMS, ColumnMapping, problem_rows, shorten_expr

CODE = "refers-to-media"

_NAMES = {
    *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "image path", "image paths"),
    *("image url", "image urls", "image file", "audio", "audios", "audio path", "audio file", "audio url", "sound"),
    *("sounds", "speech", "video", "videos", "video path", "video file", "video url", "frames"),
}
"""Names of columns with media, as LLaVA, LlamaFactory and the Hugging Face Hub write them."""

_NO_MEDIA = (
    r"(?i)^[\s\[\]{},]*(?:(?:null|none|nan|false|n/a|\"\"|''|\"(?:bytes|path|url|src)\"\s*:\s*(?:null|\"\"))"
    r"[\s\[\]{},]*)*$"
)
"""A cell of such a column without media: empty, an empty list, or an object whose values are null."""

MEDIA_MARKS = ("<image>", "<audio>", "<video>", "<|image|>", "<|audio|>", "<|video|>", "<|image_pad|>")
"""Placeholders in the question of LLaVA, LlamaFactory and multimodal chat templates."""


_MULTIMODAL = ("sharegpt", "messages")
"""Shapes of multimodal data. A text-only Alpaca file may have `<image>` as an input: 5 of 52,002 rows of Alpaca."""


def media_problems(
    table: pl.DataFrame, mapping: ColumnMapping, turns: pl.DataFrame, members: pl.DataFrame
) -> pl.DataFrame:
    """The problems of rows with a filled media column that is not mapped, or with a placeholder in a question.

    Placeholders count in lists of turns, and in other shapes next to a media column. A placeholder that is closed in
    the same text (`</image>`) is markup. If several rows form one conversation (`members`), it is rejected with all of
    its rows.
    """
    columns = [_column_problems(table, name) for name in table.columns if _is_media(name, table, mapping)]
    rows = pl.concat([pl.DataFrame(schema=PROBLEMS), *columns])
    if rows.height and members.height:
        owners = members.select(pl.col("row").alias("owner"), row="position")
        rows = rows.join(owners, on="row").select(row="owner", code="code", reason="reason")
    if not columns and mapping.shape not in _MULTIMODAL:
        return rows
    return pl.concat([rows, _placeholder_problems(turns)]).unique("row", keep="first", maintain_order=True)


def _is_media(name: str, table: pl.DataFrame, mapping: ColumnMapping) -> bool:
    used = {base_column(column, table.columns) for column in mapping.fields.values()}
    return " ".join(name_words(name)) in _NAMES and name not in used


def _column_problems(table: pl.DataFrame, name: str) -> pl.DataFrame:
    cells = pl.DataFrame({"cell": table[name]}).with_row_index("row")
    filled = cells.filter(~pl.col("cell").fill_null("").str.contains(_NO_MEDIA))
    label = pl.lit(name)
    return problem_rows(
        filled, CODE, pl.format("The column {} refers to media: {}", label, shorten_expr(pl.col("cell")))
    )


def _placeholder_problems(turns: pl.DataFrame) -> pl.DataFrame:
    text = pl.col("value")
    found = turns.filter((pl.col("from") == "human") & text.str.contains_any(list(MEDIA_MARKS)))
    if found.is_empty():
        return pl.DataFrame(schema=PROBLEMS)
    found = found.filter(~text.str.contains(r"(?i)</(?:image|audio|video)>"))
    name = text.str.extract_many(list(MEDIA_MARKS)).list.first()
    return problem_rows(found, CODE, pl.format("A question contains the placeholder {}.", name))
