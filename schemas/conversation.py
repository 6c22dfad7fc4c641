"""Conversations in ShareGPT terms: types, content ids, and the conversion between nested rows and single turns.

Many conversations are a *conversations frame* (one row each, turns nested) or a *turns frame* (one sorted row per turn,
for vectorised work); a single one is a frozen `Conversation`. The id is a hash of the content only, so that equal
conversations have the same id in every store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import polars_hash  # noqa: F401  registers the namespace `chash`
import pyarrow as pa
from duckdb import DuckDBPyConnection

ROLES = ("system", "human", "gpt", "function_call", "observation")
"""Valid roles. `function_call` is a tool call of the assistant, `observation` the result of a tool."""

ASSISTANT_ROLES = ("gpt", "function_call")
"""Roles whose text can be in the loss."""

TURN_FIELDS = {"from": pl.String, "value": pl.String, "train": pl.Boolean, "tool_call_id": pl.String}
TURN = pl.Struct(TURN_FIELDS)
CONVERSATIONS = {"id": pl.String, "conversations": pl.List(TURN), "tools": pl.String}
"""Columns of a conversations frame, which are the first columns of the table `conversations`."""

FIRST_QUESTION_SQL = """conversations[list_position([turn."from" for turn in conversations], 'human')].value"""
"""SQL: the first user turn of a row of `conversations`; null if there is none."""

PRESENT_SQL = "c.id NOT IN (SELECT conversation FROM removed_conversations)"
"""Condition on a row `c` of `conversations`: its imports were not all removed."""

IMPORTED_SQL = f"(c.parent IS NULL OR c.id IN (SELECT conversation FROM origins)) AND {PRESENT_SQL}"
"""Condition on a row `c` of `conversations`: it has an import, and is not only the result of an edit."""

PREVIEW_CHARACTERS = 80

ID_LENGTH = 32
"""Hex digits of SHA-256 that are kept: 128 bits, a collision probability of 10^-15 for 10^12 conversations."""

MAX_WIDE_TURNS = 8
"""Conversations of equal length with up to this many turns are hashed in wide form, with five columns per turn."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. `train=False` excludes it from the loss."""

    role: str
    value: str
    train: bool = True
    tool_call_id: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Turn:
        """The turn in a struct of type `TURN`."""
        train = row.get("train")
        return cls(row["from"], row["value"], True if train is None else train, row.get("tool_call_id"))

    def as_row(self) -> dict[str, Any]:
        """This turn as a struct of type `TURN`."""
        return {"from": self.role, "value": self.value, "train": self.train, "tool_call_id": self.tool_call_id}

    def canonical(self) -> str:
        """The text that is hashed for the id; every variable part is preceded by its length in bytes.

        >>> Turn("human", "Grüße").canonical()
        'human:7:Grüße;'
        >>> Turn("gpt", "Hi", train=False).canonical()
        'gpt!:2:Hi;'
        """
        silent = "" if self.train else "!"
        call = "" if self.tool_call_id is None else f"#{_with_length(self.tool_call_id)}"
        return f"{self.role}{silent}{call}:{_with_length(self.value)};"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation: its turns in order and the JSON text of its tools, if any."""

    turns: tuple[Turn, ...]
    tools: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Conversation:
        """The conversation in a row of a conversations frame."""
        return cls(tuple(Turn.from_row(turn) for turn in row["conversations"]), row.get("tools"))

    @property
    def id(self) -> str:
        """The content id, `ID_LENGTH` hex digits.

        >>> Conversation((Turn("human", "Hi"), Turn("gpt", "Hello"))).id
        'ba38274ab51c3a2fefe05fb28d3dd5be'
        """
        head = "" if self.tools is None else f"tools:{_with_length(self.tools)};"
        text = head + "".join(turn.canonical() for turn in self.turns)
        return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def fold(turns: pl.DataFrame, tools: Sequence[str | None] | pl.Series | None = None) -> pl.DataFrame:
    """Conversations of a turns frame: columns `row`, `id`, `conversations`, `tools`, in the order of the rows.

    `turns` has the columns `row`, `from`, `value` and optionally `train`, `tool_call_id`; the turns of one row are
    consecutive and in order. `tools` holds one JSON text or null per distinct row. One pass without grouping: the
    nested column refers to the turn columns.
    """
    turns = turns.select(
        "row",
        "from",
        "value",
        pl.col("train").fill_null(True) if "train" in turns.columns else pl.lit(True).alias("train"),
        pl.col("tool_call_id") if "tool_call_id" in turns.columns else pl.lit(None, pl.String).alias("tool_call_id"),
    )
    runs = turns["row"].rle().struct.unnest()
    folded = pl.DataFrame(
        {
            "row": runs["value"],
            "canonical": _canonical_text(turns, runs["len"]),
            "conversations": _to_lists(turns.select(*TURN_FIELDS).to_struct("turn"), runs["len"]),
            "tools": pl.Series("tools", tools if tools is not None else [None] * runs.height, dtype=pl.String),
        }
    )
    text = pl.col("canonical")
    if tools is not None:
        head = pl.concat_str(pl.lit("tools:"), *_with_length_expr("tools"), pl.lit(";"))
        text = pl.concat_str(pl.when(pl.col("tools").is_null()).then(pl.lit("")).otherwise(head), text)
    return folded.select("row", _sha256(text).str.head(ID_LENGTH).alias("id"), "conversations", "tools")


def is_text(conversations: pl.Series) -> pl.Series:
    """Which conversations are raw text: a single turn of the assistant, without a question.

    >>> is_text(pl.Series([[{"from": "gpt", "value": "Once."}], [{"from": "human", "value": "Hi"}]])).to_list()
    [True, False]
    """
    roles = conversations.list.eval(pl.element().struct.field("from"))
    return (roles.list.len() == 1) & (roles.list.first() == "gpt")


def unfold(conversations: pl.DataFrame) -> pl.DataFrame:
    """The turns frame of a conversations frame: `id`, `position` (from 0) and the fields of `TURN`."""
    return (
        conversations.select("id", "conversations", pl.int_ranges(pl.col("conversations").list.len()).alias("position"))
        .explode("conversations", "position")
        .unnest("conversations")
        .select("id", "position", *TURN_FIELDS)
    )


def _with_length(text: str) -> str:
    return f"{len(text.encode())}:{text}"


def _with_length_expr(column: str) -> list[pl.Expr]:
    """The parts of `_with_length`, to be joined with others in one `concat_str`, which copies the text once."""
    return [pl.col(column).str.len_bytes().cast(pl.String), pl.lit(":"), pl.col(column)]


def _canonical_text(turns: pl.DataFrame, lengths: pl.Series) -> pl.Series:
    """The text that is hashed for each id, without tools: `Turn.canonical` of all its turns.

    If all conversations have the same small number of turns, the turns become columns that are joined once. This takes
    half the time of joining twice: within turns, then within conversations.
    """
    optional = not turns["train"].all(), turns["tool_call_id"].null_count() < turns.height
    if lengths.n_unique() != 1 or lengths[0] > MAX_WIDE_TURNS:
        per_turn = turns.select(pl.concat_str(_canonical_turn(*optional))).to_series()
        return _to_lists(per_turn, lengths).list.join("")
    suffixes = [f" {turn}" for turn in range(lengths[0])]
    wide = [
        turns.gather_every(len(suffixes), turn).select(pl.all().name.suffix(suffix))
        for turn, suffix in enumerate(suffixes)
    ]
    pieces = [piece for suffix in suffixes for piece in _canonical_turn(*optional, suffix)]
    return pl.concat(wide, how="horizontal").select(pl.concat_str(pieces)).to_series()


def _canonical_turn(some_silent: bool, some_calls: bool, suffix: str = "") -> list[pl.Expr]:
    """The parts of `Turn.canonical`, from the columns of a turns frame whose names end in `suffix`.

    `some_silent`, `some_calls`: whether any turn is excluded from the loss, or has the id of a call.
    """
    silent = pl.when(f"train{suffix}").then(pl.lit("")).otherwise(pl.lit("!"))
    call_id = f"tool_call_id{suffix}"
    call = (
        pl.when(pl.col(call_id).is_null())
        .then(pl.lit(""))
        .otherwise(pl.concat_str(pl.lit("#"), *_with_length_expr(call_id)))
    )
    rest = [pl.lit(":"), *_with_length_expr(f"value{suffix}"), pl.lit(";")]
    return [pl.col(f"from{suffix}"), *([silent] if some_silent else []), *([call] if some_calls else []), *rest]


def _sha256(text: pl.Expr) -> pl.Expr:
    hashed: pl.Expr = text.chash.sha2_256()  # type: ignore[attr-defined]
    return hashed


def _to_lists(values: pl.Series, lengths: pl.Series) -> pl.Series:
    """Lists of `lengths` over the flat `values`. Equal lengths, the common case, need no copy."""
    if lengths.n_unique() == 1:
        return values.reshape((-1, lengths[0])).arr.to_list()
    offsets = pl.concat([pl.Series([0], dtype=pl.Int64), lengths.cast(pl.Int64).cum_sum()])
    lists = pl.from_arrow(pa.LargeListArray.from_arrays(offsets.to_arrow(), _one_chunk(values.to_arrow())))
    assert isinstance(lists, pl.Series)
    return lists


def _one_chunk(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def preview_prompts(connection: DuckDBPyConnection, ids: Sequence[str]) -> dict[str, str]:
    """The beginning of the first user turn of each conversation, on one line."""
    rows = connection.execute(
        f"SELECT id, ({FIRST_QUESTION_SQL})[:{PREVIEW_CHARACTERS}] FROM conversations WHERE id IN (SELECT unnest(?))",
        [list(ids)],
    ).fetchall()
    return {id_: " ".join((text or "").split()) for id_, text in rows}
