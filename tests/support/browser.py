"""The labelling server's web page in a real browser: sign in, open conversations, press keys and buttons."""

import shutil

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:
    pytest.skip("requires a browser: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402

FORM = "form.questions-form"


@pytest.fixture(scope="module")
def browser():
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield opened
        opened.close()


def sign_in(browser, server, name, password, **options):
    """The start page of a signed-in annotator, and the addresses requested since."""
    page = browser.new_context(**{"viewport": {"width": 1400, "height": 900}} | options).new_page()
    page.set_default_timeout(30_000)
    requests = []
    page.on("requestfinished", lambda request: requests.append(request.url))
    page.goto(f"{server.url}/sign-in")
    page.get_by_role("textbox").first.fill(name)
    page.locator("input[type=password]").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{server.url}/")
    return page, requests


def open_set(page, server, dataset):
    """Open a review set at its first conversation."""
    page.goto(f"{server.url}/dataset/{dataset}/annotation-mode")
    page.wait_for_selector(FORM)


def open_chat(page, server, dataset, words):
    """Find a conversation with the page's search box."""
    page.goto(f"{server.url}/dataset/{dataset}/annotation-mode")
    page.get_by_title("Search").or_(page.locator("[data-title=Search]")).first.click()
    page.locator("input[role=search]").first.fill(words)
    page.keyboard.press("Enter")
    expect(page.locator(".pagination__info")).to_have_text("1 of 1")


def press(page, button):
    """Press a button of the form and wait for the response to its request."""
    with page.expect_response(lambda answer: "/responses" in answer.url and answer.request.method != "GET"):
        page.get_by_role("button", name=button).click()


def make_set(server, name, questions, records, overlap=1):
    """A published dataset with the chat field `conversation`; its id. Records are bodies of Argilla's API.

    `questions` are (name, required, settings).
    """
    body = {"name": name, "workspace_id": server.workspace, "allow_extra_metadata": True,
            "distribution": {"strategy": "overlap", "min_submitted": overlap}}  # fmt: skip
    made = server.ask("POST", "datasets", body)["id"]
    path = f"datasets/{made}"
    chat = {"type": "chat", "use_markdown": False}
    field = {"name": "conversation", "title": "Conversation", "required": True, "settings": chat}
    server.ask("POST", f"{path}/fields", field)
    for question, required, settings in questions:
        body = {"name": question, "title": question, "required": required, "settings": settings}
        server.ask("POST", f"{path}/questions", body)
    server.ask("PUT", f"{path}/publish")
    for start in range(0, len(records), 100):
        server.ask("POST", f"{path}/records/bulk", {"items": records[start : start + 100]})
    return made


def options(kind, *names):
    """The settings of a question with these options."""
    return {"type": kind, "options": [{"value": name} | ({} if kind == "rating" else {"text": name}) for name in names]}


def answers(server, dataset):
    """External id -> (status, question -> value) of the answer to each record that has one."""
    items = server.ask("GET", f"datasets/{dataset}/records?include=responses&limit=1000")["items"]
    return {
        item["external_id"]: (one["status"], {name: each["value"] for name, each in (one["values"] or {}).items()})
        for item in items
        for one in item["responses"]
    }
