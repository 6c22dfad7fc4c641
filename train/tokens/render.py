"""In: conversations, a template, a tokenizer. Out: token ids, and beside each the id again where it is learned.

`train.tokens.loss_mask` defines and checks the loss mask of a conversation; `train.tokens.labels` turns text into ids
and labels. Here many are done: in chunks, and on all cores when they are many, since a template is a
program of Python that runs on one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO

import polars as pl

from schemas.conversation import is_text
from schemas.environment import count_cores
from train.tokens.chat_template import Template
from train.tokens.labels import RENDERED, encode_renderings
from train.tokens.loss_mask import ChatRenderer
from train.tokens.process_pool import Work, spread
from train.tokens.reasoning import Reasoning
from train.tokens.tokenizer import Tokenizer

MASK_POLICY = "assistant-turns/1"
"""Name and revision of the rule that makes the labels; it goes into the manifest and the cache key."""

CHUNK = 1_000
"""Conversations that are rendered at a time, at most: some 0.1 s of work."""

CHUNK_BYTES = 2 * 2**20
"""Bytes of words after which a chunk ends: encodings take up to 300 bytes a token, which makes 0.2 GB."""

TEXT = "It is a text in which nobody asks: --template raw trains those, a chat template conversations."
CONVERSATION = "It is a conversation: --template raw trains texts in which nobody asks, a chat template conversations."

WORTH_A_PROCESS = 2 * 2**20
"""Bytes of conversations for each process: half a second of work, and a process takes a second to start."""

WORTH_PROCESSES = 4 * WORTH_A_PROCESS
"""Bytes of conversations below which this process does all: some 20,000 short ones."""


Progress = Callable[[int, int], None]
"""Told how many conversations are rendered, and of how many."""


def render(
    conversations: pl.DataFrame,
    template: Template,
    tokenizer: Tokenizer,
    reasoning: Reasoning = "learn",
    progress: Progress = lambda *_: None,
) -> pl.DataFrame:
    """Ids and labels of each conversation, in the order given: the columns of `RENDERED`.

    A conversation that cannot be rendered has a `problem` and no ids. Raises `TrainError` when the template does
    not end an answer with a special token of this tokenizer: the model would never learn to stop.
    """
    renderer = ChatRenderer(template, tokenizer, reasoning)
    renderer.check_stop_token()
    chunks = _chunks(conversations)
    processes = _processes(conversations.estimated_size())
    rendered = (
        _by_many(chunks, renderer, processes) if processes > 1 else (_rendered(chunk, renderer) for chunk in chunks)
    )
    return pl.concat(_told(rendered, conversations.height, progress)) if chunks else pl.DataFrame(schema=RENDERED)


def _chunks(conversations: pl.DataFrame) -> list[pl.DataFrame]:
    """The conversations in their order, parted at every `CHUNK` of them and at every `CHUNK_BYTES` of their words."""
    words = pl.col("conversations").list.eval(pl.element().struct.field("value").str.len_bytes()).list.sum()
    before = words.fill_null(0).cast(pl.Int64).cum_sum().shift(1, fill_value=0)
    place = pl.struct(pl.int_range(pl.len()) // CHUNK, bytes=before // CHUNK_BYTES)
    lengths = conversations.select(place.rle().struct.field("len").cast(pl.Int64)).to_series()
    starts = lengths.cum_sum() - lengths
    return [conversations.slice(start, length) for start, length in zip(starts, lengths, strict=True)]


def _told(rendered: Iterable[pl.DataFrame], total: int, progress: Progress) -> Iterator[pl.DataFrame]:
    done = 0
    for chunk in rendered:
        done += chunk.height
        progress(done, total)
        yield chunk


def _processes(size: float) -> int:
    return 1 if size < WORTH_PROCESSES else min(count_cores(), int(size / WORTH_A_PROCESS))


def _rendered(conversations: pl.DataFrame, renderer: ChatRenderer) -> pl.DataFrame:
    """One chunk: Jinja conversation by conversation (a template is a program), then the tokens."""
    with _few_collections():
        renderings = [renderer.render(row) for row in conversations.iter_rows(named=True)]
        rendered = encode_renderings(conversations["id"], renderings, renderer.tokenizer)
    return _without_strangers(rendered, conversations, renderer.template)


def _without_strangers(rendered: pl.DataFrame, conversations: pl.DataFrame, template: Template) -> pl.DataFrame:
    """A text under a chat template would be learned as an answer to nothing, a conversation in a text as one voice."""
    reason = CONVERSATION if template.raw else TEXT
    stranger = is_text(conversations["conversations"]) != template.raw
    if not stranger.any():
        return rendered
    problem = pl.when(stranger).then(pl.lit(reason)).otherwise("problem").alias("problem")
    return rendered.with_columns(problem)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Let Python look for cycles seldom: the many small objects of a chunk are none, and looking takes a tenth."""
    usual = gc.get_threshold()
    gc.set_threshold(50_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _by_many(chunks: list[pl.DataFrame], renderer: ChatRenderer, processes: int) -> Iterator[pl.DataFrame]:
    """The chunks rendered by several processes, in order."""
    _ = renderer.tokenizer.words  # found out once, here, and handed on with the tokenizer
    arguments = (renderer.template, renderer.tokenizer, renderer.reasoning)
    return map(pl.read_ipc, spread(_worker, arguments, (partial(_as_bytes, chunk) for chunk in chunks), processes))


def _worker(template: Template, tokenizer: Tokenizer, reasoning: Reasoning) -> Work:
    """What one of several processes does with a chunk."""
    renderer = ChatRenderer(template, tokenizer, reasoning)
    return lambda chunk: _as_bytes(_rendered(pl.read_ipc(chunk), renderer))


def _as_bytes(frame: pl.DataFrame) -> bytes:
    """The frame for another process. Pickled, a slice would take all of the frame along that it is a slice of."""
    written = BytesIO()
    frame.write_ipc(written)
    return written.getvalue()
