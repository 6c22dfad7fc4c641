"""Conversations, a chat template and a tokenizer → token ids and labels, in chunks and on all cores.

`train.tokens.loss_mask` renders a conversation and finds its loss spans; `train.tokens.labels` encodes it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import polars as pl

from schemas.conversation import is_text
from schemas.environment import count_cores
from train.tokens.chat_template import Template
from train.tokens.labels import RENDERED, encode_renderings
from train.tokens.loss_mask import ChatRenderer
from train.tokens.process_pool import process_map
from train.tokens.reasoning import Reasoning
from train.tokens.template_budget import render_limits
from train.tokens.tokenizer import Tokenizer

MASK_POLICY = "assistant-turns/1"
"""Name and revision of the rule for labels; a part of the manifest and of the cache key."""

CHUNK = 1_000
"""Maximum number of conversations rendered at a time: about 0.2 s of work."""

CHUNK_BYTES = 2 * 2**20
"""Bytes of text after which a chunk ends: encodings take up to 300 bytes per token, so about 0.2 GB."""

TEXT = "It is a raw text: --template raw trains on raw texts, a chat template on conversations."
CONVERSATION = "It is a conversation: --template raw trains on raw texts, a chat template on conversations."

BYTES_PER_PROCESS = 2 * 2**20
"""Bytes of conversations for each process: about one second of work, as long as a process takes to start."""

MIN_PARALLEL_BYTES = 4 * BYTES_PER_PROCESS
"""Bytes of conversations below which one process renders all: about 20,000 short ones."""

Progress = Callable[[int, int], None]
"""Called with the number of conversations rendered so far, and of all."""


def render(
    conversations: pl.DataFrame,
    template: Template,
    tokenizer: Tokenizer,
    reasoning: Reasoning = "learn",
    progress: Progress = lambda *_: None,
) -> pl.DataFrame:
    """Ids and labels of each conversation, in the same order: the columns of `RENDERED`.

    A conversation that cannot be rendered has a `problem` and no ids. Raises `TrainError` if the template does not end
    an answer with a special token of this tokenizer: the model would never learn to stop.
    """
    renderer = ChatRenderer(template, tokenizer, reasoning)
    renderer.check_stop_token()
    chunks = _chunks(conversations)
    processes = _count_processes(conversations.estimated_size())
    if processes > 1:
        arguments = (template, tokenizer, reasoning)
        rendered = process_map(_make_worker, arguments, map(_Chunk, chunks), processes)
    else:
        rendered = (_render_chunk(chunk, renderer) for chunk in chunks)
    frames = _with_progress(rendered, conversations.height, progress)
    return pl.concat(frames) if chunks else pl.DataFrame(schema=RENDERED)


def _chunks(conversations: pl.DataFrame) -> list[pl.DataFrame]:
    """The conversations in order, divided after every `CHUNK` of them and every `CHUNK_BYTES` of their text."""
    size = pl.col("conversations").list.eval(pl.element().struct.field("value").str.len_bytes()).list.sum()
    before = size.fill_null(0).cast(pl.Int64).cum_sum().shift(1, fill_value=0)
    place = pl.struct(pl.int_range(pl.len()) // CHUNK, bytes=before // CHUNK_BYTES)
    lengths = conversations.select(place.rle().struct.field("len").cast(pl.Int64)).to_series()
    starts = lengths.cum_sum() - lengths
    return [conversations.slice(start, length) for start, length in zip(starts, lengths, strict=True)]


def _count_processes(size: float) -> int:
    return 1 if size < MIN_PARALLEL_BYTES else min(count_cores(), int(size / BYTES_PER_PROCESS))


def _with_progress(rendered: Iterable[pl.DataFrame], total: int, progress: Progress) -> Iterator[pl.DataFrame]:
    done = 0
    for frame in rendered:
        done += frame.height
        progress(done, total)
        yield frame


def _render_chunk(conversations: pl.DataFrame, renderer: ChatRenderer) -> pl.DataFrame:
    """The rendered frame of one chunk. Loops over rows, since a template is a program for one conversation."""
    with _few_collections():
        with render_limits():  # not while texts are encoded by other threads
            renderings = [renderer.render(row) for row in conversations.iter_rows(named=True)]
        rendered = encode_renderings(conversations["id"], renderings, renderer.tokenizer)
    return _reject_wrong_kind(rendered, conversations, renderer.template)


def _reject_wrong_kind(rendered: pl.DataFrame, conversations: pl.DataFrame, template: Template) -> pl.DataFrame:
    """Raw texts under a chat template, and conversations under the raw one, get a `problem`."""
    is_wrong = is_text(conversations["conversations"]) != template.raw
    if not is_wrong.any():
        return rendered
    problem = pl.when(is_wrong).then(pl.lit(CONVERSATION if template.raw else TEXT)).otherwise("problem")
    return rendered.with_columns(problem.alias("problem"))


@contextmanager
def _few_collections() -> Iterator[None]:
    """Collect garbage less often: the many small objects of a chunk have no cycles, and collecting takes a tenth."""
    usual = gc.get_threshold()
    gc.set_threshold(50_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Conversations for another process, pickled as Arrow IPC: a pickled slice would contain the complete frame."""

    conversations: pl.DataFrame

    def __reduce__(self) -> tuple[Any, ...]:
        buffer = BytesIO()
        self.conversations.write_ipc(buffer)
        return _read_chunk, (buffer.getvalue(),)


def _read_chunk(data: bytes) -> _Chunk:
    return _Chunk(pl.read_ipc(data))


def _make_worker(template: Template, tokenizer: Tokenizer, reasoning: Reasoning) -> Callable[[_Chunk], pl.DataFrame]:
    renderer = ChatRenderer(template, tokenizer, reasoning)
    return lambda chunk: _render_chunk(chunk.conversations, renderer)
