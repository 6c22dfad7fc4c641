"""Faster ways to the same ids: masks cached by shape, several processes, and the cache of versions."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from support.make_tokenizers import CHATML
from support.renderings import CONVERSATIONS, WITH_CALL, frame, loss_text, unsloth_texts
from support.stores import chat

from schemas.conversation import Conversation, Turn
from train.tokens import cache
from train.tokens import render as rendering
from train.tokens.cache import render_version
from train.tokens.chat_template import Template, bundled_names, find_template
from train.tokens.labels import RENDERED
from train.tokens.process_pool import process_map
from train.tokens.render import render
from train.tokens.tokenizer import Tokenizer


def _same_shapes():
    """Conversations with the shape of an earlier one, simple and difficult ones."""
    plain = [chat(f"Hi {n}", f"Hello {n}.", f"And {n}?", f"Bye {n}", system=f"Be {n}.") for n in range(3)]
    return [*plain, *(other for c in CONVERSATIONS.values() for other in (c, _with_other_text(c)))]


def _with_other_text(conversation):
    return Conversation(tuple(Turn(turn.role, f"{turn.value}?") for turn in conversation.turns))


def _assert_same_as_alone(text, tokenizer):
    template = Template("under test", text)
    together = render(frame(*_same_shapes()), template, tokenizer)
    alone = pl.concat(render(frame(conversation), template, tokenizer) for conversation in _same_shapes())
    assert together.equals(alone)


def test_conversations_of_the_same_shape_are_labelled_as_if_rendered_alone(tokenizer, tokenizer_dir):
    for name in ("tokenizer", *bundled_names()):
        _assert_same_as_alone(find_template(name, tokenizer_dir).text, tokenizer)


@pytest.mark.slow
def test_conversations_of_the_same_shape_are_labelled_correctly_with_every_template_of_unsloth(tokenizer):
    for text in set(unsloth_texts().values()):
        _assert_same_as_alone(text, tokenizer)


def test_a_template_that_depends_on_the_text_is_not_cached(tokenizer):
    counting = CHATML.replace("message.content +", "(message.content if 'a' in message.content else 'ohne a') +")
    rows = render(frame(chat("a", "a b"), chat("a", "c")), Template("counting", counting), tokenizer)
    assert loss_text(rows.row(0, named=True), tokenizer) == "a b<|im_end|>"
    assert rows["omitted_turns"].to_list() == [[], [2]]


def test_several_processes_render_the_same_frame(sample, monkeypatch):
    folder = sample / "tiny"
    conversations = frame(*(chat(f"Hi {n} é", f"Hello {n}.") for n in range(30)), WITH_CALL)
    template, tokenizer = find_template("tokenizer", folder), Tokenizer.load(folder)
    one = render(conversations, template, tokenizer)
    monkeypatch.setattr(rendering, "CHUNK", 7)
    monkeypatch.setattr(rendering, "_count_processes", lambda _size: 2)
    monkeypatch.setattr(rendering, "_render_chunk", None)  # not called in this process
    environment = dict(os.environ)
    assert render(conversations, template, tokenizer).equals(one)
    assert os.environ == environment


def test_an_error_in_a_process_is_raised_and_a_killed_process_is_an_error():
    with pytest.raises(ValueError, match="non-hexadecimal"):
        list(process_map(partial, (bytes.fromhex,), ["00", "not hex"], 2))
    with pytest.raises(BrokenProcessPool):
        list(process_map(partial, (os._exit,), [1, 1], 2))


WORK = """
import os
import time
from train.tokens.process_pool import process_map
def make(): return work
def work(seconds):
    os.write(1, b"at work\\n")  # at once: several processes write
    time.sleep(seconds)
if __name__ == "__main__":
    list(process_map(make, (), [0.0] * 2 + [2.0] * 40, 2))
"""


@pytest.fixture
def working(tmp_path):
    """A command with two processes at work, in a folder that has files named like our and the library's modules."""
    for name in ("train", "pickle", "polars"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "command").write_text(WORK)
    process = subprocess.Popen(
        [sys.executable, "bin/command"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert [process.stdout.readline() for _ in range(4)] == ["at work\n"] * 4
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_ends_the_processes_after_their_current_work_with_one_traceback(working):
    os.killpg(working.pid, signal.SIGINT)
    _, errors = working.communicate(timeout=20)  # 40 s of work were left
    assert errors.count("Traceback") == 1
    assert errors.endswith("KeyboardInterrupt\n")


def test_the_processes_end_if_their_parent_is_killed(working):
    working.kill()
    working.communicate(timeout=10)  # until the last process has closed its output


# ---------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def members():
    conversations = [chat(f"Hi {n}", "Hello") for n in range(5)]
    return frame(*conversations).sort("id").with_columns(split=pl.lit("train"))


def test_a_version_is_rendered_once(members, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    template = Template("chatml", CHATML)
    first = render_version(members, "d1", template, tokenizer)
    monkeypatch.setattr(cache, "render_members", None)
    assert render_version(members, "d1", template, tokenizer).equals(first)
    assert first.columns == [*RENDERED, "split"]


@pytest.mark.parametrize("damage", [b"", b"PAR1 half of it"])
def test_a_damaged_cache_file_is_rendered_again(members, tokenizer, monkeypatch, tmp_path, damage):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    first = render_version(members, "d1", Template("chatml", CHATML), tokenizer)
    (file,) = tmp_path.rglob("*.parquet")
    file.write_bytes(damage)
    assert render_version(members, "d1", Template("chatml", CHATML), tokenizer).equals(first)
    assert pl.read_parquet(file).height == 5


def test_the_cache_key_has_template_version_and_mask_policy(members, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    for text in (CHATML, "{{ bos_token }}" + CHATML):
        render_version(members, "d1", Template("chatml", text), tokenizer)
    render_version(members, "d2", Template("chatml", CHATML), tokenizer)
    monkeypatch.setattr(cache, "MASK_POLICY", rendering.MASK_POLICY + "'")
    render_version(members, "d1", Template("chatml", CHATML), tokenizer)
    assert len([*tmp_path.rglob("*.parquet")]) == 4


def test_the_least_recently_used_file_is_deleted(members, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    render_version(members, "d1", Template("chatml", CHATML), tokenizer)
    (first,) = tmp_path.rglob("*.parquet")
    monkeypatch.setattr(cache, "MAX_BYTES", int(first.stat().st_size * 1.5))
    render_version(members, "d2", Template("chatml", CHATML), tokenizer)
    (second,) = tmp_path.rglob("*.parquet")
    assert first != second
