"""The web page in a real browser: sign in, read, rate, correct, submit, discard, search."""

import shutil
from urllib.parse import urlsplit

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:
    pytest.skip("requires a browser: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402

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
def browser():
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def project(argilla_server):
    """A dataset with chats of different kinds, and an annotator's name, password and key."""
    server = argilla_server
    made = server.ask("POST", "datasets", {"name": "page", "workspace_id": server.workspace})["id"]
    path = f"datasets/{made}"
    chat = {"type": "chat", "use_markdown": False}
    server.ask("POST", f"{path}/fields", {"name": "chat", "title": "Chat", "required": True, "settings": chat})
    for name, required, settings in (
        ("quality", True, {"type": "rating", "options": [{"value": n} for n in range(1, 6)]}),
        ("decision", True, labels("label_selection", "keep", "fix", "drop")),
        ("skip", False, labels("multi_label_selection", "turn-2", "turn-4")),
        ("answer", False, {"type": "text", "use_markdown": False}),
    ):
        body = {"name": name, "title": name, "required": required, "settings": settings}
        server.ask("POST", f"{path}/questions", body)
    server.ask("PUT", f"{path}/publish")
    texts = {"hostile": HOSTILE, "escaped": ESCAPED, "plain": "My zebra is late.", "other": "My parrot is late."}
    items = [
        {"fields": {"chat": [{"role": "user", "content": text}, {"role": "assistant", "content": "Sorry."}]},
         "external_id": name}
        for name, text in texts.items()
    ]  # fmt: skip
    server.ask("POST", f"{path}/records/bulk", {"items": items})
    return server, made, *server.annotator("page-reviewer")


def labels(kind, *names):
    return {"type": kind, "options": [{"value": name, "text": name} for name in names]}


def signed_in(browser, project, **options):
    """The start page of a signed-in annotator, and the addresses requested since."""
    server, _, name, password, _ = project
    page = browser.new_context(viewport={"width": 1400, "height": 900}, **options).new_page()
    page.set_default_timeout(30_000)
    requests = []
    page.on("requestfinished", lambda request: requests.append(request.url))
    page.goto(f"{server.url}/sign-in")
    page.get_by_role("textbox").first.fill(name)
    page.locator("input[type=password]").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{server.url}/")
    return page, requests


@pytest.fixture(scope="module")
def page(browser, project):
    opened, _ = signed_in(browser, project)
    yield opened
    opened.context.close()


def open_chat(page, project, words):
    """Find a chat with the page's search box."""
    server, made, *_ = project
    page.goto(f"{server.url}/dataset/{made}/annotation-mode")
    page.get_by_title("Search").or_(page.locator("[data-title=Search]")).first.click()
    page.locator("input[role=search]").fill(words)
    page.keyboard.press("Enter")
    expect(page.locator("body")).to_contain_text("1 of 1")


def press(page, button):
    """Press a button of the form and wait for the response to its request."""
    with page.expect_response(lambda answer: "/responses" in answer.url and answer.request.method != "GET"):
        page.get_by_role("button", name=button).click()


def answer_of(project, name):
    server, made, *_ = project
    items = server.ask("GET", f"datasets/{made}/records?include=responses")["items"]
    [one] = [item for item in items if item["external_id"] == name]
    return [(answer["status"], answer["values"]) for answer in one["responses"]]


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
    open_chat(page, project, "click")
    expect(page.locator("body")).to_contain_text("click me")
    page.get_by_text("click me").click()
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    assert {urlsplit(url).netloc for url in requests if url.startswith("http")} == {urlsplit(project[0].url).netloc}
    page.context.close()


def test_without_the_policy_its_scripts_run(browser, project):
    """The test above passes because of the policy: a browser that ignores it runs the scripts of the same page."""
    page, _ = signed_in(browser, project, bypass_csp=True)
    open_chat(page, project, "click")
    page.wait_for_function("window.ran > 0")
    page.context.close()


def test_escaped_characters_are_displayed_as_written(page, project):
    open_chat(page, project, "think")
    expect(page.locator("body")).to_contain_text("<think>one &amp; two</think> if a < b")


def test_an_annotator_rates_marks_corrects_and_submits(page, project):
    open_chat(page, project, "zebra")
    page.locator("label[for=quality_4]").click()
    page.locator("label[for=decision_fix]").click()
    page.locator("label[for='skip_turn-2']").click()
    page.locator("[contenteditable=true]").fill("It is at home, if 1 < 2 & <b>all</b> is well.")
    press(page, "Submit")
    expect(page.locator("body")).to_contain_text("25.00%")
    [(status, values)] = answer_of(project, "plain")
    assert status == "submitted"
    assert {name: value["value"] for name, value in values.items()} == {
        "quality": 4,
        "decision": "fix",
        "skip": ["turn-2"],
        "answer": "It is at home, if 1 < 2 & <b>all</b> is well.",
    }


def test_a_discarded_answer_is_counted_separately(page, project):
    open_chat(page, project, "parrot")
    press(page, "Discard")
    [(status, _)] = answer_of(project, "other")
    assert status == "discarded"
    server, made, *_, key = project
    counts = server.ask("GET", f"me/datasets/{made}/metrics", key=key)["responses"]
    assert (counts["submitted"], counts["discarded"], counts["pending"]) == (1, 1, 2)
