"""`[import]` of the recipe: how files are read and their rows become conversations."""

from __future__ import annotations

import re

from pydantic import Field, ValidationInfo, field_validator, model_validator

from schemas.section import Section

MAX_RECORD = 16 << 20
"""Bytes of a record. A conversation has at most 1,000,000 characters; an import needs 20 times the size of a record."""

MAX_RATIO, MAX_SIZE, MAX_WINDOW = 500, 1 << 40, 128 << 20
"""Limits of compressed files: texts shrink to a third or a tenth, logs to a hundredth; zstd decompresses a window of
128 MB by default."""

_SIZE = re.compile(r"(\d+) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)


class ImportSection(Section):
    """How rows are read.

    `curate import` has an option for each key except `substitute`, `max_ratio`, `max_size` and `max_window`.
    """

    shape: str | None = Field(
        None,
        description="shape of the rows, such as pairs, messages or long; detected by default",
        examples=["pairs"],
    )
    encoding: str | None = Field(None, description="such as cp1252; UTF-8 by default", examples=["cp1252"])
    map: dict[str, str] = Field(
        {}, description="part of a conversation = column of the file", examples=[{"question": "body"}]
    )
    repair: tuple[str, ...] = Field((), description="names of repairs to apply, such as trailing-user")
    substitute: dict[str, tuple[str, str]] = Field(
        {},
        description="name = [regular expression, replacement], applied to every turn before the repairs; $1 is a group",
        examples=[{"ticket_number": ["\\s*\\[#\\d+\\]", ""]}],
    )
    system: str | None = Field(
        None, min_length=1, description="system prompt of conversations without one", examples=["Answer as a mate."]
    )
    group_by: str | None = Field(
        None, description="shape long: the column that identifies the conversation", examples=["ticket"]
    )
    order_by: str | None = Field(
        None, description="shape long: the column that orders the turns", examples=["created_at"]
    )
    role: str | None = Field(None, description="shape long: the column that holds the role", examples=["author"])
    roles: dict[str, str] = Field(
        {},
        description="name of a speaker = system, human, gpt, function_call or observation, besides the known names",
        examples=[{"customer": "human", "Ann": "gpt"}],
    )
    turns_key: str | None = Field(
        None, description="the column, or path, with a list of turns that have other keys", examples=["chat.turns"]
    )
    role_key: str | None = Field(
        None, description="lists of turns: the key, or path, of the role", examples=["author.role"]
    )
    text_key: str | None = Field(
        None, description="lists of turns: the key, or path, of the text", examples=["utterance"]
    )
    text: str | None = Field(
        None, description="shapes long and text: the column that holds the text", examples=["body"]
    )
    format: str | None = Field(
        None, description="file format, such as csv or jsonl; detected by default", examples=["jsonl"]
    )
    delimiter: str | None = Field(
        None, description="delimited text: the character between cells; detected by default", examples=[";"]
    )
    quote: str | None = Field(
        None, description='delimited text: the character around cells, "" for none', examples=["'"]
    )
    escape: str | None = Field(
        None, description="delimited text: the character that takes away the meaning of the next", examples=["\\"]
    )
    skip_lines: int = Field(0, ge=0, description="delimited text and workbooks: lines before the header")
    header: bool | None = Field(
        None,
        description="whether the first row has the column names; otherwise they are column_1 ...",
        examples=[False],
    )
    sheet: str | None = Field(None, description="sheet of a workbook, or table of a database", examples=["Sheet1"])
    where: str | None = Field(
        None,
        description="an SQL condition on columns; other rows become rejects with the code excluded-by-where",
        examples=["label = 'good'"],
    )
    sql: str | None = Field(
        None,
        description="a SELECT over the table rows, with row_number, whose result is imported; other rows are excluded",
        examples=["SELECT * FROM rows WHERE length(answer) > 100"],
    )
    max_rejects: float = Field(1.0, ge=0, le=1, description="maximum share of rejected rows per file")

    max_record: int = Field(MAX_RECORD, ge=1, description="bytes of a record, such as 64M; longer ones are rejected")
    max_ratio: int = Field(MAX_RATIO, ge=1, description="compressed files: maximum ratio of expansion")
    max_size: int = Field(MAX_SIZE, ge=1, description="compressed files: maximum bytes after decompression")
    max_window: int = Field(MAX_WINDOW, ge=1 << 10, description="compressed files: maximum window of zstd and xz")

    @field_validator("max_record", "max_size", "max_window", mode="before")
    @classmethod
    def _read_size(cls, value: object) -> object:
        """A number of bytes, also as `64M` or `64 MiB`."""
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ") if match else value

    @field_validator("delimiter", "quote", "escape")
    @classmethod
    def _check_sign(cls, text: str | None, info: ValidationInfo) -> str | None:
        """One ASCII character, also `tab` for a tab; an empty quote means that there is none."""
        sign = "\t" if text in ("\\t", "tab") else text
        if sign == "" and info.field_name == "quote":
            return sign
        if sign is not None and (len(sign) != 1 or not sign.isascii() or sign in "\r\n\0"):
            raise ValueError(f"{sign!r} is not one ASCII character")
        return sign

    @model_validator(mode="after")
    def _check_signs(self) -> ImportSection:
        signs = [sign for sign in (self.delimiter, self.quote, self.escape) if sign]
        if len(set(signs)) < len(signs):
            raise ValueError("delimiter, quote and escape must be different characters")
        return self
