"""The web page in a real browser: sign in, read, rate, correct, submit, discard, search."""

from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright", reason="requires playwright: pip install playwright")
from playwright.sync_api import expect
from support.browser import answers, browser, make_set, open_chat, options, press, sign_in

assert browser  # a fixture, used by name

RUN = "window.ran = (window.ran || 0) + 1"
HOSTILE = f"""
<img src="nowhere.png" onerror="{RUN}">
<svg onload="{RUN}"></svg>
<script>{RUN}</script>
<iframe srcdoc="&lt;script&gt;parent.ran = 1&lt;/script&gt;"></iframe>
<iframe src="javascript:parent.ran = 1"></iframe>
<details open ontoggle="{RUN}">more</details>
<a href="javascript:{RUN}">click me</a>
<img src="https://elsewhere.example/leak.png"><link rel="stylesheet" href="https://elsewhere.example/leak.css">
<form action="https://elsewhere.example/"><button>send me</button></form>
<style>@import "https://elsewhere.example/leak.css"; body {{ background: url(https://elsewhere.example/b.png) }}</style>
"""
ESCAPED = "&lt;think&gt;one &amp;amp; two&lt;/think&gt; if a &lt; b"


@pytest.fixture(scope="module")
def project(argilla_server):
    """A dataset with chats of different kinds, and an annotator's name, password and key."""
    texts = {"hostile": HOSTILE, "escaped": ESCAPED, "plain": "My zebra is late.", "other": "My parrot is late."}
    chats = [
        {"fields": {"conversation": [{"role": "user", "content": text}, {"role": "assistant", "content": "Sorry."}]},
         "external_id": name}
        for name, text in texts.items()
    ]  # fmt: skip
    questions = [
        ("quality", True, options("rating", 1, 2, 3, 4, 5)),
        ("decision", True, options("label_selection", "keep", "fix", "drop")),
        ("skip", False, options("multi_label_selection", "turn-2", "turn-4")),
        ("answer", False, {"type": "text", "use_markdown": False}),
    ]
    made = make_set(argilla_server, "page", questions, chats)
    return argilla_server, made, *argilla_server.annotator("page-reviewer")


def signed_in(browser, project, **browser_options):
    server, _, name, password, _ = project
    return sign_in(browser, server, name, password, **browser_options)


@pytest.fixture(scope="module")
def page(browser, project):
    opened, _ = signed_in(browser, project)
    yield opened
    opened.context.close()


def test_a_wrong_password_is_rejected(browser, project):
    server = project[0]
    page = browser.new_page()
    page.goto(f"{server.url}/sign-in")
    page.get_by_role("textbox").first.fill("page-reviewer")
    page.locator("input[type=password]").fill("not this one")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("body")).to_contain_text("Wrong username or password")
    page.close()


def test_a_hostile_conversation_runs_no_script_and_sends_no_request_elsewhere(browser, project):
    page, requests = signed_in(browser, project)
    open_chat(page, *project[:2], "click")
    expect(page.locator("body")).to_contain_text("click me")
    page.get_by_text("click me").click()
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    assert {urlsplit(url).netloc for url in requests if url.startswith("http")} == {urlsplit(project[0].url).netloc}
    page.context.close()


def test_without_the_policy_its_scripts_run(browser, project):
    """The test above passes because of the policy: a browser that ignores it runs the scripts of the same page."""
    page, _ = signed_in(browser, project, bypass_csp=True)
    open_chat(page, *project[:2], "click")
    page.wait_for_function("window.ran > 0")
    page.context.close()


def test_escaped_characters_are_displayed_as_written(page, project):
    open_chat(page, *project[:2], "think")
    expect(page.locator("body")).to_contain_text("<think>one &amp; two</think> if a < b")


def test_an_annotator_rates_marks_corrects_and_submits(page, project):
    open_chat(page, *project[:2], "zebra")
    page.locator("label[for=quality_4]").click()
    page.locator("label[for=decision_fix]").click()
    page.locator("label[for='skip_turn-2']").click()
    page.locator("[contenteditable=true]").fill("It is at home, if 1 < 2 & <b>all</b> is well.")
    press(page, "Submit")
    expect(page.locator("body")).to_contain_text("25.00%")
    assert answers(*project[:2])["plain"] == (
        "submitted",
        {
            "quality": 4,
            "decision": "fix",
            "skip": ["turn-2"],
            "answer": "It is at home, if 1 < 2 & <b>all</b> is well.",
        },
    )


def test_a_discarded_answer_is_counted_separately(page, project):
    open_chat(page, *project[:2], "parrot")
    page.get_by_role("button", name="Discard").click()
    expect(page.locator(".curate-note--confirm")).to_contain_text("again to discard")
    press(page, "Discard")
    assert answers(*project[:2])["other"][0] == "discarded"
    server, made, *_, key = project
    counts = server.ask("GET", f"me/datasets/{made}/metrics", key=key)["responses"]
    assert (counts["submitted"], counts["discarded"], counts["pending"]) == (1, 1, 2)
