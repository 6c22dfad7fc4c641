"""The whole way of a conversation that people change: pushed, answered in a browser, pulled, frozen, previewed."""

import shutil

import pytest
from support.stores import add, chat
from support.training import TINY

pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
from test_review_page import BROWSER, browser, open_chat, press, signed_in

from curate.scorers.runner import score_store
from schemas.recipe import Recipe

LONG = chat("Where is it?", "On <b>its</b> way.", "Since when?", "Since Monday.")
SHORT = chat("Who are you?", "Nobody.")
SPOILT = chat("Hello?", "<think>Rude.</think>Go away.")

assert BROWSER, browser  # the module above skips without one; its fixture is used by name


@pytest.fixture
def reviewer(argilla_server):
    """What `signed_in` takes: the server, and whom to sign in as."""
    name, password, key = argilla_server.annotator("journey")
    return argilla_server, None, name, password, key


def test_what_a_person_does_in_the_page_is_what_a_training_sees(curate, tmp_path, browser, reviewer):
    server, *_ = reviewer
    shutil.copytree(TINY, tmp_path / "tiny")
    add(tmp_path / "curate.duckdb", [LONG, SHORT, SPOILT])
    score_store(tmp_path / "curate.duckdb", Recipe())
    at = ("--home", str(server.home))
    assert curate("review", "push", "journey", "--blind", "0", *at).returncode == 0
    made = next(one["id"] for one in server.ask("GET", "me/datasets")["items"] if one["name"] == "journey")
    page, _ = signed_in(browser, reviewer)

    open_chat(page, (server, made), "Monday")
    page.locator("label[for=decision_keep]").click()
    page.locator("label[for='turns_answer 1']").click()
    press(page, "Submit")
    open_chat(page, (server, made), "nobody")
    page.locator("label[for=decision_fix]").click()
    page.locator("[contenteditable=true]").first.fill("A model & <i>no more</i>.")
    press(page, "Submit")
    open_chat(page, (server, made), "rude")
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
