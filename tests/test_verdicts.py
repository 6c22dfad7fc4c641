"""Answers of several annotators → verdicts by each policy, and edited conversations."""

from datetime import UTC, datetime, timedelta
from random import Random

import polars as pl
import pytest
from support.stores import add, chat

from curate.review.pull import store_answers
from curate.review.sets import PreparedSet, RemoteRef, ReviewTask, save_records, save_set
from curate.review.verdicts import resolve_answers
from schemas.conversation import Conversation
from schemas.digest import canonical_json
from schemas.errors import RecipeError
from schemas.recipe import ReviewSection, check_recipe
from schemas.review import ANSWER_SCHEMA, SetPlan, Task
from schemas.store import reading, writing

TALK = chat("Where is it?", "On its way.", "Since when?", "Since Monday.")


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "x.duckdb"
    add(path, [TALK])
    return path


def make_set(store, conversations, name="desk", overlap=1, *, questions=(), blind=(), suggestions=()):
    """Record a review set of these conversations as a push does."""
    tasks = [
        (ReviewTask(Task(one, (), {}, ()), "random", one in blind, "d", suggestions), f"record of {one}")
        for one in conversations
    ]
    with writing(store) as connection:
        prepared = PreparedSet(name, SetPlan(questions, overlap, "", {}), [])
        save_set(connection, prepared, RemoteRef("http://x", "remote"))
        save_records(connection, name, tasks)


def answer(reviewer, conversation=TALK.id, status="submitted", at=1, **values):
    return {
        "record": f"record of {conversation}", "conversation": conversation, "reviewer": reviewer,
        "response": f"{reviewer} {conversation}", "status": status,
        "answered_at": datetime(2026, 1, at, tzinfo=UTC), "answers": canonical_json(values),
    }  # fmt: skip


def submit(store, *rows, name="desk", partial=False, present=None, **section):
    with writing(store) as connection:
        frame = pl.DataFrame(list(rows), schema=ANSWER_SCHEMA)
        return store_answers(connection, ReviewSection(**section), name, frame, present, partial=partial)


def verdicts(store):
    with reading(store) as connection:
        return connection.sql("SELECT verdict, by_whom, reason FROM verdicts ORDER BY rowid").fetchall()


def kept(store):
    with reading(store) as connection:
        rows = connection.sql(
            "SELECT conversations, tools FROM conversations JOIN current_verdicts ON id = conversation WHERE kept"
        ).pl()
    return [Conversation.from_row(row) for row in rows.to_dicts()]


def outcome(store, *rows, overlap=1, **section):
    """The outcome of the answers to one conversation."""
    make_set(store, [TALK.id], overlap=overlap)
    found = submit(store, *rows, **section).outcomes
    return next(name for name, count in found.items() if count)


# policies ------------------------------------------------------------------------------------------------------

KEEP, DROP, FIX = ({"decision": word} for word in ("keep", "drop", "fix"))


@pytest.mark.parametrize(
    ("policy", "answers", "expected"),
    [
        ("any-drop", [KEEP, KEEP, DROP], "drop"),
        ("any-drop", [KEEP, KEEP], "keep"),
        ("majority", [KEEP, KEEP, DROP], "keep"),
        ("majority", [KEEP, DROP, DROP], "drop"),
        ("majority", [KEEP, DROP], "disputed"),
        ("mean >= 3.5", [{"quality": 3}, {"quality": 4}], "keep"),
        ("mean >= 3.5", [{"quality": 3}, {"quality": 3}], "drop"),
    ],
)
def test_a_policy_turns_answers_into_one_outcome(store, policy, answers, expected):
    rows = [answer(name, **values) for name, values in zip("abc", answers, strict=False)]
    assert outcome(store, *rows, overlap=2, policy=policy) == expected


def test_an_expert_decides_alone_and_before_other_answers(store):
    rows = [answer("bob", **KEEP), answer("cat", **KEEP), answer("ann", **DROP)]
    assert outcome(store, *rows, overlap=9, policy="expert", experts=("ann",)) == "drop"
    assert verdicts(store) == [("drop", "ann", "review (expert): drop 1")]


def test_without_an_expert_the_majority_decides_when_there_are_enough_answers(store):
    section = {"policy": "expert", "experts": ("zoe",)}
    assert outcome(store, answer("bob", **KEEP), overlap=2, **section) == "waiting"
    assert outcome(store, answer("bob", **KEEP), answer("cat", **KEEP), overlap=2, **section) == "keep"


def test_a_verdict_needs_as_many_answers_as_the_overlap_of_the_set(store):
    assert outcome(store, answer("ann", **DROP), overlap=2) == "waiting"
    assert verdicts(store) == []
    assert submit(store, answer("ann", **DROP), partial=True).outcomes["drop"] == 1


def test_under_any_drop_one_drop_decides_before_other_answers(store):
    assert outcome(store, answer("ann", **DROP), overlap=3, policy="any-drop") == "drop"


def test_discarded_answers_and_drafts_do_not_count(store):
    rows = [answer("ann", status="discarded", **DROP), answer("bob", status="draft", **DROP), answer("cat", **KEEP)]
    assert outcome(store, *rows, policy="any-drop") == "keep"


def test_the_reason_lists_policy_decisions_quality_and_issues(store):
    make_set(store, [TALK.id], overlap=3)
    submit(store, answer("cat", quality=2, issues=["wrong"], **DROP), answer("ann", quality=5, **KEEP),
         answer("bob", quality=1, issues=["style", "wrong"], **DROP))  # fmt: skip
    reason = "review (majority): keep 1, drop 2, quality 2.67, issues style, wrong"
    assert verdicts(store) == [("drop", "ann, bob, cat", reason)]


def test_a_third_annotator_in_another_set_resolves_a_dispute(store):
    assert outcome(store, answer("ann", **KEEP), answer("bob", **DROP), overlap=2) == "disputed"
    make_set(store, [TALK.id], name="third")
    submit(store, answer("cat", **DROP), name="third")
    assert verdicts(store) == [("drop", "ann, bob, cat", "review (majority): keep 1, drop 2")]


def test_an_unknown_policy_in_the_recipe_is_an_error():
    with pytest.raises(RecipeError, match="is not a policy; use any-drop, majority, expert"):
        check_recipe({"review": {"policy": "vote"}}, "the test")
    with pytest.raises(RecipeError, match="requires the question quality"):
        check_recipe({"review": {"policy": "mean >= 3", "questions": ["decision"]}}, "the test")


# edits ---------------------------------------------------------------------------------------------------------


def test_a_correction_creates_a_conversation_with_the_original_as_parent(store):
    assert outcome(store, answer("ann", answer="Since Tuesday.", **FIX)) == "edit"
    (now,) = kept(store)
    assert [turn.value for turn in now.turns] == ["Where is it?", "On its way.", "Since when?", "Since Tuesday."]
    with reading(store) as connection:
        assert connection.execute("SELECT parent FROM conversations WHERE id = ?", [now.id]).fetchall() == [(TALK.id,)]


def test_marked_turns_are_excluded_from_the_loss(store):
    assert outcome(store, answer("ann", turns=[2], **KEEP)) == "edit"
    (now,) = kept(store)
    assert [turn.train for turn in now.turns] == [True, False, True, True]


@pytest.mark.parametrize("same", ["Since Monday.", "Since Monday.\n", "Since\u00a0Monday.", "", "  "])
def test_an_unchanged_or_empty_answer_is_not_a_correction(store, same):
    assert outcome(store, answer("ann", answer=same, **KEEP)) == "keep"
    assert kept(store) == [TALK]


def test_characters_inserted_by_the_text_box_are_removed(store):
    assert outcome(store, answer("ann", answer="Since\u00a0Tuesday,\r\nlate.\r\n", **FIX)) == "edit"
    assert kept(store)[0].turns[-1].value == "Since Tuesday,\nlate."


def test_hard_spaces_are_kept_if_the_original_answer_has_one(store):
    talk = chat("Combien\u00a0?", "5\u00a0kg.")
    add(store, [talk], source="french.csv")
    make_set(store, [talk.id])
    submit(store, answer("ann", talk.id, answer="6\u00a0kg.", **FIX))
    assert {one.turns[-1].value for one in kept(store)} == {TALK.turns[-1].value, "6\u00a0kg."}


def test_marks_on_turns_without_loss_change_nothing(store):
    assert outcome(store, answer("ann", turns=[1, 3, 77], **KEEP)) == "keep"


def test_a_fix_without_a_correction_is_excluded_until_one_is_submitted(store):
    assert outcome(store, answer("ann", **FIX)) == "drop"
    assert verdicts(store)[0][2].endswith("; marked fix without a correction")
    submit(store, answer("ann", answer="Since Tuesday.", **FIX))
    assert [turn.value for turn in kept(store)[0].turns][-1] == "Since Tuesday."


def test_a_conversation_without_turns_to_train_on_is_dropped(store):
    assert outcome(store, answer("ann", turns=[2, 4], **KEEP)) == "drop"
    assert kept(store) == []


def test_two_different_corrections_are_disputed_until_a_third_agrees_with_one(store):
    rows = [answer("ann", answer="Tuesday.", **FIX), answer("bob", answer="Sunday.", **FIX)]
    assert outcome(store, *rows, overlap=2) == "disputed"
    submit(store, *rows, answer("cat", answer="Sunday.", **FIX))
    assert kept(store)[0].turns[-1].value == "Sunday."


def test_a_turn_marked_by_half_of_the_annotators_is_excluded(store):
    rows = [answer("ann", turns=[2, 4], **KEEP), answer("bob", turns=[2], **KEEP), answer("cat", **KEEP)]
    assert outcome(store, *rows, overlap=3) == "edit"
    assert [turn.train for turn in kept(store)[0].turns] == [True, False, True, True]


def test_annotators_who_keep_the_answer_outvote_one_correction(store):
    rows = [answer("ann", **KEEP), answer("bob", **KEEP), answer("cat", answer="Never.", **KEEP)]
    assert outcome(store, *rows, overlap=3) == "keep"
    assert kept(store) == [TALK]
    submit(store, answer("bob", answer="Never.", at=2, **KEEP), *rows[::2])
    assert kept(store)[0].turns[-1].value == "Never."
    assert verdicts(store)[-1] == ("edit", "ann, bob, cat", "review (majority): keep 3, answer by bob, cat")


def test_a_correction_and_a_kept_answer_are_disputed_except_under_any_drop(store):
    rows = [answer("ann", **KEEP), answer("bob", answer="Never.", **KEEP)]
    assert outcome(store, *rows, overlap=2) == "disputed"
    assert submit(store, *rows, policy="any-drop").outcomes["edit"] == 1


def test_one_correction_is_enough_among_annotators_who_answer_fix(store):
    rows = [answer("ann", **FIX), answer("bob", answer="Never.", **FIX)]
    assert outcome(store, *rows, overlap=2) == "edit"


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [([DROP, DROP], "drop"), ([FIX, FIX], "drop"), ([DROP, KEEP], "keep"), ([DROP, {}, {}], "keep")],
)
def test_under_mean_a_decision_of_more_than_half_of_the_annotators_comes_first(store, decisions, expected):
    rows = [answer(name, quality=4, **each) for name, each in zip("abc", decisions, strict=False)]
    assert outcome(store, *rows, overlap=2, policy="mean >= 3.5") == expected


def test_an_expert_who_only_rates_does_not_decide(store):
    rows = [answer("ann", quality=5), answer("bob", **DROP)]
    assert outcome(store, *rows, policy="expert", experts=("ann",)) == "drop"


def test_an_edit_withdrawn_by_its_author_is_undone(store):
    outcome(store, answer("ann", answer="Since Tuesday.", **FIX))
    submit(store, answer("ann", at=2, **KEEP))
    assert kept(store) == [TALK]


def test_tool_calls_keep_their_ids_when_a_later_answer_is_corrected(store):
    from schemas.conversation import Turn

    call = Turn("function_call", '{"name": "find"}', tool_call_id="c1")
    talk = Conversation(
        (Turn("human", "Q"), call, Turn("observation", "{}", tool_call_id="c1"), Turn("gpt", "A")), "[]"
    )
    add(store, [talk], source="tools.csv")
    make_set(store, [talk.id])
    submit(store, answer("ann", talk.id, answer="B", turns=[2], **FIX))
    edited = next(one for one in kept(store) if one.tools)
    assert [turn.tool_call_id for turn in edited.turns] == [None, "c1", "c1", None]
    assert [(turn.train, turn.value) for turn in edited.turns][1::2] == [(False, '{"name": "find"}'), (True, "B")]


# stored answers ------------------------------------------------------------------------------------------------


def test_unchanged_answers_write_nothing(store):
    make_set(store, [TALK.id])
    row = answer("ann", answer="Since Tuesday.", quality=4, **FIX)
    first, second = submit(store, row), submit(store, row)
    assert (first.answers["submitted"], first.verdicts) == (1, 1)
    assert (second.answers["submitted"], second.verdicts) == (0, 0)


def test_a_changed_answer_is_a_new_row_and_the_latest_row_counts(store):
    make_set(store, [TALK.id])
    submit(store, answer("ann", **KEEP))
    submit(store, answer("ann", at=2, **DROP))
    with reading(store) as connection:
        rows = connection.sql("SELECT answers->>'decision' FROM reviews ORDER BY rowid").fetchall()
    assert rows == [("keep",), ("drop",)]
    assert [verdict for verdict, _, _ in verdicts(store)] == ["keep", "drop"]


def test_a_verdict_with_a_reason_of_an_earlier_release_is_not_stored_again(store):
    make_set(store, [TALK.id])
    submit(store, answer("ann", **FIX))
    with writing(store) as connection:
        former = "review (majority): fix 1; to be fixed, and nobody has written how"
        connection.execute("UPDATE verdicts SET reason = ?", [former])
    assert submit(store, answer("ann", **FIX)).verdicts == 0
    assert submit(store, answer("ann", at=2, **DROP)).verdicts == 1


def test_the_later_of_a_spreadsheet_answer_and_a_server_answer_counts_however_often_both_are_read(store):
    make_set(store, [TALK.id])
    on_server, in_sheet = answer("ann", at=1, **KEEP), {**answer("ann", at=5, **DROP), "record": None}
    for row, outcome in ((on_server, "keep"), (in_sheet, "drop"), (on_server, "drop")):
        assert submit(store, row).outcomes[outcome] == 1
    assert submit(store, {**in_sheet, "answered_at": datetime(2026, 1, 9, tzinfo=UTC)}).answers["submitted"] == 0
    assert [verdict for verdict, _, _ in verdicts(store)] == ["keep", "drop"]


def test_a_changed_answer_counts_although_the_clock_of_the_server_was_set_back(store):
    make_set(store, [TALK.id])
    assert submit(store, answer("ann", at=5, **DROP)).outcomes["drop"] == 1
    assert submit(store, answer("ann", at=1, **KEEP)).outcomes["keep"] == 1


def test_the_same_answer_submitted_again_is_newer_than_one_in_another_set(store):
    make_set(store, [TALK.id])
    make_set(store, [TALK.id], name="more")
    submit(store, answer("ann", at=1, **KEEP))
    assert submit(store, answer("ann", at=2, **DROP), name="more").outcomes["drop"] == 1
    assert submit(store, answer("ann", at=3, **KEEP)).outcomes["keep"] == 1


def test_an_answer_submitted_again_after_its_withdrawal_counts_again(store):
    make_set(store, [TALK.id], overlap=2)
    present = {f"record of {TALK.id}": TALK.id}
    submit(store, answer("ann", **DROP), answer("bob", **DROP), present=present)
    submit(store, answer("bob", **DROP), present=present)
    both = (answer("ann", **DROP), answer("bob", **DROP))
    assert [submit(store, *both, present=present).answers["submitted"] for _ in range(2)] == [1, 0]
    assert submit(store, *both, present=present).outcomes["drop"] == 1


def test_a_withdrawn_answer_is_counted_once_and_no_longer_used(store):
    make_set(store, [TALK.id], overlap=2)
    present = {f"record of {TALK.id}": TALK.id}
    submit(store, answer("ann", **DROP), answer("bob", **KEEP), present=present)
    done = submit(store, answer("bob", **KEEP), present=present)
    assert (done.answers["withdrawn"], done.outcomes["waiting"]) == (1, 1)
    assert submit(store, answer("bob", **KEEP), present=present).answers["withdrawn"] == 0


@pytest.mark.parametrize("back", [{"status": "discarded"}, {"status": "draft"}, None])
def test_the_verdict_of_a_withdrawn_answer_is_withdrawn(store, back):
    make_set(store, [TALK.id])
    present = {f"record of {TALK.id}": TALK.id}
    submit(store, answer("ann", **DROP), present=present)
    rows = [answer("ann", at=2, **back)] if back else []
    done = submit(store, *rows, present=present)
    assert (done.verdicts, done.outcomes["undecided"]) == (1, 1)
    assert verdicts(store)[-1] == ("undecided", "ann", "review (majority): answer withdrawn")
    with reading(store) as connection:
        assert connection.sql("SELECT kept, by_whom FROM current_verdicts").fetchall() == [(True, None)]
    assert submit(store, *rows, present=present).verdicts == 0
    assert submit(store, answer("ann", at=3, **DROP), present=present).verdicts == 1
    assert kept(store) == []


def test_after_a_withdrawn_correction_the_rules_decide_again(store):
    from support.stores import add_verdict

    add_verdict(store, TALK.id, "drop")
    make_set(store, [TALK.id], overlap=2)
    present = {f"record of {TALK.id}": TALK.id}
    submit(store, answer("ann", answer="Tuesday.", **FIX), answer("bob", answer="Tuesday.", **FIX), present=present)
    assert kept(store)[0].turns[-1].value == "Tuesday."
    done = submit(store, answer("bob", answer="Tuesday.", **FIX), present=present)
    assert (done.outcomes["waiting"], done.ended) == (1, 1)
    assert verdicts(store)[-1] == ("undecided", "bob", "review (majority): fix 1")
    assert kept(store) == []


def test_a_tie_after_a_changed_answer_ends_the_verdict(store):
    make_set(store, [TALK.id], overlap=2)
    assert submit(store, answer("ann", **DROP), answer("bob", **DROP)).outcomes["drop"] == 1
    done = submit(store, answer("ann", at=2, **KEEP), answer("bob", **DROP))
    assert (done.outcomes["disputed"], done.verdicts, done.ended) == (1, 1, 1)
    assert verdicts(store)[-1] == ("undecided", "ann, bob", "review (majority): keep 1, drop 1")
    assert kept(store) == [TALK]
    assert submit(store, answer("ann", at=2, **KEEP), answer("bob", **DROP)).verdicts == 0


def test_another_policy_resolves_the_answers_of_all_sets_again(store):
    (other,) = add(store, [chat("Really?", "Yes.")], source="other.csv")
    make_set(store, [TALK.id], overlap=2)
    make_set(store, [other], name="second")
    submit(store, answer("ann", **DROP), answer("bob", **KEEP))
    done = submit(store, answer("cyd", conversation=other, **KEEP), name="second", policy="any-drop")
    assert done.outcomes == {"keep": 1, "edit": 0, "drop": 0, "waiting": 0, "disputed": 0, "undecided": 0}
    assert [verdict for verdict, _, _ in verdicts(store)] == ["drop", "keep"]


def test_partial_stays_in_force_until_it_is_ended(store):
    make_set(store, [TALK.id], overlap=2)
    outcomes = [
        next(name for name, count in submit(store, answer("ann", **DROP), partial=partial).outcomes.items() if count)
        for partial in (None, True, None, False)
    ]
    assert outcomes == ["waiting", "drop", "drop", "waiting"]
    assert [verdict for verdict, _, _ in verdicts(store)] == ["drop", "undecided"]


ACTIONS = [KEEP, DROP, {"decision": "fix", "answer": "Never."}, {"decision": "fix", "answer": "Soon."}, None, "discard"]
"""Answers; `None` deletes an answer and `discard` discards it."""


class Desk:
    """A server with two sets of the same conversations, on which annotators answer, change and withdraw."""

    def __init__(self, conversations, random):
        self.conversations, self.random = conversations, random
        self.answers, self.partial, self.time = {"desk": {}, "more": {}}, {"desk": False, "more": False}, 0

    def act(self):
        """One random answer, change or withdrawal."""
        self.time += 1
        rows = self.answers[self.random.choice(["desk", "more"])]
        key = self.random.choice(["ann", "bob", "cyd"]), self.random.choice(self.conversations)
        action = self.random.choice(ACTIONS)
        if action is None:
            rows.pop(key, None)
        else:
            values = {"status": "discarded"} if action == "discard" else action
            row = answer(*key, **values)
            rows[key] = {**row, "answered_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=self.time)}

    def pull(self, store, name, policy):
        present = {f"record of {one}": one for one in self.conversations}
        rows = self.answers[name].values()
        submit(store, *rows, name=name, present=present, partial=self.partial[name], policy=policy, experts=["ann"])


@pytest.mark.parametrize("seed", range(10))
def test_verdicts_follow_from_the_current_answers_whatever_happened_before(tmp_path, seed):
    random = Random(seed)
    talks = [chat(f"Where is parcel {n}?", "On its way.") for n in range(100)]
    desk = Desk([talk.id for talk in talks], random)
    for name in ("lived", "fresh"):
        add(tmp_path / name, talks)
        make_set(tmp_path / name, desk.conversations, overlap=1 + seed % 2)
        make_set(tmp_path / name, desk.conversations, name="more", overlap=3)
    policies = ["majority", "any-drop", "expert", "mean >= 3"]
    for _ in range(6):
        for _ in range(150):
            desk.act()
        desk.partial[random.choice(["desk", "more"])] = random.random() < 0.3
        desk.pull(tmp_path / "lived", random.choice(["desk", "more"]), random.choice(policies))
    policy = random.choice(policies)
    for name in ("desk", "more"):
        desk.pull(tmp_path / "lived", name, policy)
    for name in ("more", "desk"):
        desk.pull(tmp_path / "fresh", name, policy)
    current = "SELECT conversation, kept, by_whom, reason FROM current_verdicts ORDER BY conversation"
    results = []
    for name in ("lived", "fresh"):
        with reading(tmp_path / name) as connection:
            results.append({one: verdict for one, *verdict in connection.sql(current).fetchall()})
    lived, fresh = results
    assert [lived[one] for one in desk.conversations] == [fresh[one] for one in desk.conversations]
    kept_lived, kept_fresh = ({one for one, verdict in result.items() if verdict[0]} for result in results)
    assert kept_lived == kept_fresh


def test_a_verdict_is_kept_while_a_set_with_a_larger_overlap_waits(store):
    make_set(store, [TALK.id])
    submit(store, answer("ann", **DROP))
    make_set(store, [TALK.id], name="more", overlap=3)
    done = submit(store, answer("bob", status="discarded"), name="more")
    assert (done.outcomes["drop"], done.verdicts, kept(store)) == (1, 0, [])


def test_a_record_deleted_on_the_server_keeps_its_answers(store):
    make_set(store, [TALK.id])
    submit(store, answer("ann", **DROP), present={f"record of {TALK.id}": TALK.id})
    done = submit(store, present={})
    assert (done.deleted, done.outcomes["drop"], done.answers["withdrawn"]) == (1, 1, 0)


def test_an_annotator_named_rule_is_a_person(store):
    make_set(store, [TALK.id])
    submit(store, answer("rule", **DROP))
    assert verdicts(store)[0][1] == "rule (person)"
    assert kept(store) == []


def test_answers_record_whether_suggestions_were_shown(store):
    make_set(store, [TALK.id], blind=[TALK.id])
    submit(store, answer("ann", **KEEP))
    with reading(store) as connection:
        assert connection.sql("SELECT blind FROM reviews").fetchall() == [(True,)]


def test_resolving_answers_writes_nothing(store):
    make_set(store, [TALK.id])
    submit(store, answer("ann", answer="Since Tuesday.", **FIX))
    before = verdicts(store)
    with reading(store) as connection:
        assert resolve_answers(connection, ReviewSection(), [TALK.id]).with_outcome("edit") == [TALK.id]
    assert verdicts(store) == before
