"""Keys in the web page → stored answers: what is stored is what was typed, and nothing is lost without a note."""

import random

import pytest

pytest.importorskip("playwright", reason="requires playwright: pip install playwright")
from playwright.sync_api import expect
from support.browser import answers, browser, make_set, open_set, options, press, sign_in

assert browser  # a fixture, used by name

SEQUENCES = 200
DECISIONS = ("keep", "fix", "drop")
ISSUES = tuple(f"issue-{number}" for number in range(1, 13))
SINGLE = {"quality": (1, 2, 3, 4, 5), "decision": DECISIONS}
ORDER = ("quality", "decision", "issues", "skip", "answer")
CHOICES = SINGLE | {"issues": ISSUES, "skip": ("turn-2", "turn-4")}
TEXT = "Sorry."
QUESTIONS = [
    ("quality", False, options("rating", *SINGLE["quality"])),
    ("decision", True, options("label_selection", *DECISIONS)),
    ("issues", False, options("multi_label_selection", *ISSUES)),
    ("skip", False, options("multi_label_selection", *CHOICES["skip"])),
    ("answer", False, {"type": "text", "use_markdown": False}),
]
ENTER, DOWN, UP, SPACE, DELETE, BACK, ESCAPE = "Enter", "ArrowDown", "ArrowUp", " ", "Delete", "Backspace", "Escape"
ELSEWHERE = "a click into the conversation"
FULL = {"quality": 4, "decision": "keep", "answer": TEXT}
KEPT = {*"0123456789", ENTER, DOWN, UP}


class Typed:
    """The answers to a conversation by the keys pressed so far, as the guide for annotators describes them."""

    def __init__(self, suggested):
        self.values = {"issues": set(), "skip": set()} | suggested
        self.place = 0
        self.digits = ""
        self.is_elsewhere = False

    @property
    def question(self):
        return ORDER[self.place]

    def press(self, key):
        if key.isdecimal() and self.question != "answer":
            return self._digit(key)
        self._select()
        if key == ELSEWHERE:
            self.is_elsewhere = True
        elif self.is_elsewhere:  # arrows and space scroll the conversation
            return None
        elif key in (DOWN, UP):
            self.place = max(0, min(len(ORDER) - 1, self.place + (1 if key == DOWN else -1)))
        elif key == SPACE and self.question != "answer":
            self.digits = "1"  # the first option of a question is focused
            self._select()
        elif key == DELETE and self.question in SINGLE:
            self.values.pop(self.question, None)
        elif len(key) == 1 and self.question == "answer":
            self.values["answer"] = self.values.get("answer", "") + key
        return None

    def _digit(self, key):
        self.is_elsewhere = False
        keys = [str(number) for number in range(1, len(CHOICES[self.question]) + 1)]
        matches = [each for each in keys if each.startswith(self.digits + key)]
        if not matches and self.digits:
            self._select()
            return self.press(key)
        self.digits += key
        if len(matches) < 2:
            self._select()
        return None

    def _select(self):
        digits, self.digits = self.digits, ""
        options = CHOICES.get(self.question, ())
        if not digits or not 0 < int(digits) <= len(options):
            return
        option = options[int(digits) - 1]
        if self.question in SINGLE:
            self.values[self.question] = option
            self.place += 1
        else:
            self.values[self.question] ^= {option}

    @property
    def stored(self):
        return {
            name: [each for each in CHOICES[name] if each in value] if isinstance(value, set) else value
            for name, value in self.values.items()
            if value
        }


def random_suggestions(chance):
    """Suggested answers: usually all of them, as most conversations have them."""
    suggested = {"quality": chance.randint(1, 5), "decision": chance.choice(DECISIONS), "answer": TEXT}
    return {name: value for name, value in suggested.items() if chance.random() < 0.8}


def random_keys(chance, typed):
    """Keys until the conversation can be submitted, and Enter; each is pressed in `typed`."""
    keys = []

    def press(key):
        keys.append(key)
        typed.press(key)

    for _ in range(chance.randint(1, 9)):
        if typed.question == "answer":
            for letter in "".join(chance.choices("ab c19é<&", k=chance.randint(0, 4))).strip():
                press(letter)
            keys.append(ESCAPE)
            press(UP)
        elif chance.random() < 0.75:
            press(chance.choice("1122334455690"))
        else:
            press(chance.choice([DOWN, DOWN, UP, SPACE, DELETE, "k"]))
            if chance.random() < 0.2:
                keys.append(chance.choice([BACK, ELSEWHERE]))
                typed.press(keys[-1])
    while "decision" not in typed.values:
        keys.append(ESCAPE)
        at = "1" if typed.is_elsewhere else {0: DOWN, 1: chance.choice("123")}.get(typed.place, UP)
        press(at)
    if typed.question == "answer":
        keys.append(ESCAPE)
    press(ENTER)
    return keys


@pytest.fixture(scope="module")
def account(argilla_server):
    return argilla_server.annotator("typist")


@pytest.fixture
def open_page(browser, argilla_server, account):
    """Create a set with suggestions per record, and open it: the page, and a function that reads the stored answers."""
    opened = []

    def open_(name, suggestions):
        made = make_set(argilla_server, name, QUESTIONS, [])
        items = argilla_server.ask("GET", f"datasets/{made}/questions")["items"]
        ids = {question["name"]: question["id"] for question in items}
        records = [
            {"fields": {"conversation": [{"role": "user", "content": f"Question {number}"},
                                         {"role": "answer 1", "content": TEXT}]},
             "external_id": str(number), "metadata": {"position": number},
             "suggestions": [{"question_id": ids[name], "value": value} for name, value in suggested.items()]}
            for number, suggested in enumerate(suggestions)
        ]  # fmt: skip
        for start in range(0, len(records), 100):
            body = {"items": records[start : start + 100]}
            argilla_server.ask("POST", f"datasets/{made}/records/bulk", body)
        page, _ = sign_in(browser, argilla_server, *account[:2])
        opened.append(page)
        open_set(page, argilla_server, made)
        return page, lambda: answers(argilla_server, made)

    yield open_
    for page in opened:
        page.context.close()


def note(page, kind):
    return page.locator(f".curate-note--{kind}")


def test_stored_answers_are_the_typed_ones_for_200_random_key_sequences(open_page):
    chance = random.Random(13)
    suggestions = [random_suggestions(chance) for _ in range(SEQUENCES)]
    page, stored = open_page("keys", suggestions)
    expected, sequences = {}, {}
    for number, suggested in enumerate(suggestions):
        typed = Typed(suggested)
        sequences[str(number)] = (suggested, random_keys(chance, typed))
        expected[str(number)] = ("submitted", typed.stored)
    for number, (_, keys) in sequences.items():
        if not set(keys) <= KEPT:  # the others are typed at once, while the page is still saving
            page.get_by_text(f"Question {number}", exact=True).wait_for()
        for key in keys:
            page.locator(".chat__bubble").first.click() if key == ELSEWHERE else page.keyboard.press(key)
    expect(note(page, "progress")).to_contain_text(f"You: {SEQUENCES} submitted", timeout=20_000)
    result = stored()
    wrong = {n: (sequences[n], expected[n], result.get(n)) for n in expected if result.get(n) != expected[n]}
    assert not wrong


def test_a_submit_that_is_not_possible_names_the_missing_question(open_page):
    page, stored = open_page("missing", [{"quality": 3}])
    expect(note(page, "missing")).to_have_text("To submit, answer “decision”")
    page.keyboard.press("Enter")
    page.keyboard.type("32")
    expect(note(page, "missing")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(note(page, "progress")).to_contain_text("You: 1 submitted, 0 discarded, of 1 in this set.")
    assert stored() == {"0": ("submitted", {"quality": 3, "decision": "fix"})}
    page.reload()  # the list is empty, and the page shows a form without a conversation
    page.get_by_role("button", name="Submit").wait_for()
    page.keyboard.type("11")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    expect(note(page, "unsaved")).to_have_count(0)


def test_backspace_discards_only_when_it_is_pressed_twice_in_a_row(open_page):
    page, stored = open_page("discard", [FULL, FULL])
    for key in ("Backspace", "4", "Backspace"):
        page.keyboard.press(key)
    expect(note(page, "confirm")).to_contain_text("again to discard")
    assert stored() == {}
    with page.expect_response(lambda answer: "/responses" in answer.url):
        page.keyboard.press("Backspace")
    page.get_by_text("Question 1", exact=True).wait_for()
    assert {name: status for name, (status, _) in stored().items()} == {"0": "discarded"}


def test_keys_in_a_search_box_neither_submit_nor_discard(open_page):
    page, stored = open_page("boxes", [FULL])
    page.locator("[data-title=Search]").first.click()
    page.locator("input[role=search]").first.fill("Question??")
    for key in ("Backspace", "Backspace", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".pagination__info")).to_have_text("1 of 1")
    assert stored() == {}


def test_a_click_on_the_selected_choice_keeps_it_and_clear_removes_it(open_page):
    page, stored = open_page("clicks", [FULL])
    page.locator("label[for=quality_4]").click()
    page.locator("label[for=decision_keep]").click()
    page.locator("label[for=decision_keep]").click()
    expect(page.locator("#quality_4")).to_be_checked()
    page.get_by_role("button", name="clear").click()
    expect(page.locator("#quality_4")).not_to_be_checked()
    press(page, "Submit")
    assert stored() == {"0": ("submitted", {"decision": "keep", "answer": TEXT})}


def test_changes_are_not_left_without_a_second_request(open_page):
    page, stored = open_page("leave", [FULL, FULL])
    page.keyboard.type("2")
    page.keyboard.press("ArrowRight")
    expect(note(page, "confirm")).to_contain_text("not saved")
    page.keyboard.type("3")
    page.locator("[aria-label^=Next]").click()
    expect(note(page, "confirm")).to_contain_text("not saved")
    expect(page.get_by_text("Question 0", exact=True)).to_be_visible()
    page.locator("[aria-label^=Next]").click()
    page.get_by_text("Question 1", exact=True).wait_for()
    page.keyboard.press("ArrowLeft")  # nothing was changed here
    page.get_by_text("Question 0", exact=True).wait_for()
    assert stored() == {}


def test_an_answer_without_a_connection_stays_and_is_saved_by_a_second_try(open_page):
    page, stored = open_page("offline", [FULL, FULL])
    correct(page, " Corrected.")
    page.context.set_offline(True)
    page.get_by_role("button", name="Submit").click()
    expect(note(page, "unsaved")).to_contain_text("Not saved: the server cannot be reached.")
    page.locator("label[for=quality_5]").click()
    expect(page.get_by_text("Question 0", exact=True)).to_be_visible()
    expect(page.locator("[contenteditable]").first).to_contain_text("Sorry. Corrected.")
    assert stored() == {}
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("Question 1", exact=True).wait_for()
    expect(note(page, "unsaved")).to_have_count(0)
    assert stored() == {"0": ("submitted", FULL | {"quality": 5, "answer": "Sorry. Corrected."})}


@pytest.mark.parametrize(("status", "reason"), [(401, "you are signed out"), (500, "the server answered 500")])
def test_an_answer_that_the_server_refused_is_offered_again_after_a_reload(open_page, status, reason):
    page, stored = open_page(f"refused{status}", [FULL])
    correct(page, " Corrected.")
    page.route("**/records/*/responses", lambda route: route.fulfill(status=status, body="{}"))
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    page.unroute_all()
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(page.url)
    expect(note(page, "unsaved")).to_contain_text(f"Not saved: {reason}")
    with page.expect_response(lambda answer: "/responses" in answer.url):
        page.get_by_role("button", name="Try again").click()
    expect(note(page, "unsaved")).to_have_count(0)
    assert stored() == {"0": ("submitted", FULL | {"answer": "Sorry. Corrected."})}


def test_an_answer_that_was_not_saved_is_not_offered_to_another_account(open_page, argilla_server):
    page, _ = open_page("accounts", [FULL])
    page.route("**/records/*/responses", lambda route: route.abort())
    page.keyboard.press("Enter")
    expect(note(page, "unsaved")).to_contain_text("Not saved")
    page.on("dialog", lambda dialog: dialog.accept())
    opened = page.url
    page.evaluate("localStorage.removeItem('auth._token.local')")
    name, password, _ = argilla_server.annotator("successor")
    page.goto(f"{argilla_server.url}/sign-in")
    page.get_by_role("textbox").first.fill(name)
    page.locator("input[type=password]").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{argilla_server.url}/")
    page.goto(opened)
    expect(note(page, "progress")).to_contain_text("You: 0 submitted")
    expect(note(page, "unsaved")).to_have_count(0)


def correct(page, text):
    """Type at the end of the correction."""
    page.locator("[aria-label='Question: answer'] [contenteditable]").click()
    page.keyboard.press("Control+End")
    page.keyboard.type(text)
