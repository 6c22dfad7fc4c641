"""Conversations that annotators change: pushed, answered in a browser, pulled, frozen, previewed."""

import shutil

import pytest
from support.browser import browser, open_chat, press, sign_in
from support.stores import add, chat
from support.training import TINY

pytest.importorskip("playwright", reason="requires playwright: pip install playwright")

from curate.scorers.runner import score_store
from schemas.recipe import Recipe

LONG = chat("Where is it?", "On <b>its</b> way.", "Since when?", "Since Monday.")
SHORT = chat("Who are you?", "Nobody.")
SPOILT = chat("Hello?", "<think>Rude.</think>Go away.")

assert browser  # a fixture, used by name


@pytest.fixture
def annotator(argilla_server):
    """The server, and an annotator's name and password."""
    return argilla_server, *argilla_server.annotator("journey")[:2]


def test_preview_shows_the_answers_given_in_the_page(curate, tmp_path, browser, annotator):
    server, *_ = annotator
    shutil.copytree(TINY, tmp_path / "tiny")
    add(tmp_path / "curate.duckdb", [LONG, SHORT, SPOILT])
    score_store(tmp_path / "curate.duckdb", Recipe())
    at = ("--home", str(server.home))
    assert curate("review", "push", "journey", "--blind", "0", *at).returncode == 0
    made = next(one["id"] for one in server.ask("GET", "me/datasets")["items"] if one["name"] == "journey")
    page, _ = sign_in(browser, *annotator)

    open_chat(page, server, made, "Monday")
    page.locator("label[for=decision_keep]").click()
    page.locator("label[for='turns_answer 1']").click()
    press(page, "Submit")
    open_chat(page, server, made, "nobody")
    page.locator("label[for=decision_fix]").click()
    page.locator("[contenteditable=true]").first.fill("A model & <i>no more</i>.")
    press(page, "Submit")
    open_chat(page, server, made, "rude")
    page.locator("label[for=quality_1]").click()
    page.locator("label[for=decision_drop]").click()
    press(page, "Submit")
    page.context.close()

    pulled = curate("review", "pull", "journey", *at)
    assert "journey: new answers: 3 submitted." in pulled.stdout
    assert curate("freeze", "journey", "--held-out", "0").returncode == 0
    shown = curate("preview", "journey@1", "--limit", "9", "--set", "train.model=tiny").stdout
    assert "⟦Since Monday." in shown
    assert "On <b>its</b> way." in shown
    assert "⟦On <b>its</b> way." not in shown
    assert "⟦A model & <i>no more</i>." in shown
    assert "Rude" not in shown
