"""Conversations in the web page: roles, directions, code, folds, rendered Markdown; at the widths of phone and desk."""

import pytest

pytest.importorskip("playwright", reason="requires playwright: pip install playwright")
from urllib.parse import urlsplit

from playwright.sync_api import expect
from support.browser import browser, make_set, open_chat, options, sign_in

assert browser  # a fixture, used by name

RUN = "window.ran = 1"
FENCE = "```"
HOSTILE = f"""hostile <img src="https://elsewhere.example/a.png" onerror="{RUN}"> <script>{RUN}</script>
[click me](javascript:{RUN}) [data](data:text/html,<script>{RUN}</script>) <javascript:{RUN}> [vb](vbscript:x)
![seen](https://elsewhere.example/pump.png) [safe](https://elsewhere.example/manual) <svg onload="{RUN}"></svg>

| <b onclick="{RUN}">a</b> | b |
|---|---|
| <iframe src="javascript:parent.ran = 1"></iframe> | ![x](javascript:{RUN}) |

{FENCE}html"><img src=x onerror={RUN}>
<b>code</b>
{FENCE}"""
MARKDOWN = f"""## Prices

| Item | Price |
|------|------:|
| Pump | 12.50 |

1. First
   - nested
2. **Second** with `code`

> quoted

$$x = \\frac12$$

{FENCE}python
def f(x):
    return x
{FENCE}
after"""
ARABIC = "مرحبا، أين طلبي؟\n- الاثنين (ABC)."
LINE = "word " * 600
CALL = '{\n  "name": "order",\n  "arguments": {"id": 7}\n}'
CHATS = {
    "hostile": [("user", HOSTILE), ("answer 1", HOSTILE)],
    "markdown": [("user", "markdown"), ("answer 1", MARKDOWN)],
    "arabic": [("user", "arabic " + ARABIC), ("answer 1", ARABIC), ("user", "Thanks"), ("answer 2", "שלום!")],
    "hebrew": [("user", "hebrew"), ("answer 1", "שלום, איפה ההזמנה שלי?")],
    "japanese": [("user", "japanese"), ("answer 1", "ご注文は発送済みです。" * 20)],
    "latex": [("user", "latex"), ("answer 1", r"\(a=1\) and $x^2$ cost $5 or $6_a_b_.")],
    "emoji": [("user", "emoji 👩‍👩‍👧‍👦"), ("answer 1", "🎉 🇩🇪 ¯\\_(ツ)_/¯")],
    "line": [("user", "line"), ("answer 1", LINE), ("user", "and"), ("answer 2", "A" * 3000)],
    "calls": [("tools", "[\n  {}\n]"), ("system", "calls"), ("user", "Where?"), ("answer 1 tool call", CALL),
              ("tool result", CALL), ("answer 2", "Shipped."), ("user", "Thanks"), ("answer 3", "Welcome.")],
    "turns": [("user" if n % 2 else f"answer {n // 2}", f"Turn {n}: turns.") for n in range(1, 81)],
}  # fmt: skip
MARKS = [f"answer {number}" for number in range(1, 41)]


@pytest.fixture(scope="module")
def chats(argilla_server):
    """The server, a set with unusual conversations, and an annotator's name and password."""
    records = [
        {"fields": {"conversation": [{"role": role, "content": escape(text)} for role, text in messages]},
         "external_id": name}
        for name, messages in CHATS.items()
    ]  # fmt: skip
    turns = options("multi_label_selection", *MARKS) | {"visible_options": 20}
    questions = [("decision", True, options("label_selection", "keep", "drop")), ("turns", False, turns)]
    made = make_set(argilla_server, "unusual", questions, records)
    return argilla_server, made, *argilla_server.annotator("reader")[:2]


def escape(text):
    from curate.review.argilla.client import escape

    return escape(text)


@pytest.fixture(scope="module")
def session(browser, chats):
    """A page, and the addresses that it requested."""
    server, _, name, password = chats
    page, requests = sign_in(browser, server, name, password)
    yield page, requests
    page.context.close()


@pytest.fixture
def page(session):
    yield session[0]
    session[0].set_viewport_size({"width": 1400, "height": 900})
    session[0].evaluate("localStorage.removeItem('curate-rendered')")


def show(page, chats, name, *, rendered=False):
    server, made, *_ = chats
    open_chat(page, server, made, name)
    if rendered:
        page.get_by_role("button", name="Rendered").click()
    return page.locator(".chat__item")


def test_raw_texts_are_shown_exactly_as_they_are(page, chats):
    for name in ("hostile", "markdown"):
        texts = show(page, chats, name).locator(".curate-text").all_text_contents()
        assert texts == [text for _, text in CHATS[name]]


def test_a_rendered_hostile_conversation_runs_and_loads_nothing(session, page, chats):
    answer = show(page, chats, "hostile", rendered=True).last
    links = answer.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert links == ["https://elsewhere.example/a.png", "https://elsewhere.example/manual"]
    expect(answer).to_contain_text("safe (elsewhere.example)")
    expect(answer).to_contain_text("[click me](javascript:")
    expect(answer).to_contain_text("Image: seen (elsewhere.example), not loaded")
    assert answer.locator(":is(img, iframe, script, svg, b)").count() == 0
    page.get_by_text("click me").last.click()
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert {urlsplit(url).netloc for url in session[1] if url.startswith("http")} == {urlsplit(chats[0].url).netloc}


def test_markdown_is_rendered_on_request_and_the_choice_is_remembered(page, chats):
    answer = show(page, chats, "markdown", rendered=True).last
    expected = {
        "h2": "Prices", "td >> nth=1": "12.50", "ol > li > ul > li": "nested", "strong": "Second",
        "blockquote": "quoted", "code[data-language=python]": "def f(x):\n    return x",
    }  # fmt: skip
    assert {selector: answer.locator(selector).first.text_content() for selector in expected} == expected
    assert show(page, chats, "markdown").last.locator("table").count() == 1
    page.get_by_role("button", name="Raw").click()
    assert answer.locator(".curate-text").text_content() == MARKDOWN


def test_each_paragraph_has_the_direction_of_its_language(page, chats):
    texts = show(page, chats, "arabic").locator(".curate-text")
    assert texts.nth(1).evaluate("text => getComputedStyle(text).direction") == "rtl"
    assert texts.nth(2).evaluate("text => getComputedStyle(text).direction") == "ltr"
    assert texts.evaluate_all("texts => texts.map(text => getComputedStyle(text).unicodeBidi)") == ["plaintext"] * 4


def test_code_and_calls_are_monospaced(page, chats):
    fonts = "codes => codes.map(code => getComputedStyle(code).fontFamily.includes('monospace'))"
    show(page, chats, "calls")
    assert page.locator(".curate-code").evaluate_all(fonts) == [True] * 3
    answer = show(page, chats, "markdown").last
    assert answer.locator(".curate-code").text_content().startswith("```python\ndef f")


def test_side_and_colour_follow_the_role(page, chats):
    items = show(page, chats, "calls")
    style = """items => items.map(item => [item.dataset.curateKind, getComputedStyle(item).alignItems,
        getComputedStyle(item.querySelector('.chat__role')).color])"""
    found = items.evaluate_all(style)
    assert [kind for kind, *_ in found] == [
        "tool", "system", "user", "call", "tool", "assistant", "user", "assistant"
    ]  # fmt: skip
    assert {kind: side for kind, side, _ in found} == dict.fromkeys(
        ("tool", "system", "call", "assistant"), "flex-start"
    ) | {"user": "flex-end"}
    colours = {kind: {colour for each, _, colour in found if each == kind} for kind in ("user", "assistant", "tool")}
    assert all(len(each) == 1 for each in colours.values())
    assert len(set.union(*colours.values())) == 3


def test_long_conversations_and_messages_are_folded_until_they_are_expanded(page, chats):
    items = show(page, chats, "turns")
    assert items.filter(visible=True).count() == 10
    page.get_by_role("button", name="Show 70 more messages").click()
    assert items.filter(visible=True).count() == 80
    items = show(page, chats, "line")
    expect(page.get_by_role("button", name="Show all 3,000 characters")).to_have_count(2)
    folded = items.nth(1).bounding_box()["height"]
    page.get_by_role("button", name="Show all 3,000 characters").first.click()
    assert items.nth(1).bounding_box()["height"] > folded
    page.get_by_role("button", name="Unfold all").click()
    expect(page.get_by_role("button", name="Show all 3,000 characters")).to_have_count(0)


def test_a_conversation_offers_only_the_marks_of_its_answers(page, chats):
    def marks():
        return page.locator("[aria-label='Question: turns'] .label-text__text").filter(visible=True).all_text_contents()

    show(page, chats, "hebrew")
    assert marks() == ["answer 1"]
    show(page, chats, "calls")
    assert marks() == ["answer 1", "answer 2", "answer 3"]
    show(page, chats, "turns")
    assert marks() == MARKS


@pytest.mark.parametrize("width", [390, 800, 1440])
def test_no_conversation_is_wider_than_its_window(page, chats, width):
    page.set_viewport_size({"width": width, "height": 900})
    for name in CHATS:
        items = show(page, chats, name, rendered=True)
        right = max(box["x"] + box["width"] for item in items.all() if (box := item.bounding_box()))
        assert right <= width, name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
