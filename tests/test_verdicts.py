"""What several people's answers come to under each policy, and what an edit makes of a conversation."""

from datetime import UTC, datetime

import polars as pl
import pytest
from support.stores import add, chat

from curate.review.pull import take_answers
from curate.review.sets import Entry, Place, Prepared, note_records, note_set
from curate.review.verdicts import judge
from schemas.conversation import Conversation
from schemas.digest import canonical_json
from schemas.errors import RecipeError
from schemas.recipe import ReviewSection, check_recipe
from schemas.review import ANSWERS, SetPlan, Task
from schemas.store import reading, writing

TALK = chat("Where is it?", "On its way.", "Since when?", "Since Monday.")


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "x.duckdb"
    add(path, [TALK])
    return path


def ask(store, conversations, name="desk", overlap=1, blind=()):
    """A review set of these conversations, as a push leaves it."""
    entries = [(Entry(Task(one, (), {}, ()), "random", one in blind, "d"), f"record of {one}") for one in conversations]
    with writing(store) as connection:
        note_set(connection, Prepared(name, SetPlan((), overlap, "", {}), [], Place(), {}), Place("http://x", "remote"))
        note_records(connection, name, entries)


def said(reviewer, conversation=TALK.id, status="submitted", at=1, **answers):
    return {
        "record": f"record of {conversation}", "conversation": conversation, "reviewer": reviewer,
        "response": f"{reviewer} {conversation}", "status": status,
        "answered_at": datetime(2026, 1, at, tzinfo=UTC), "answers": canonical_json(answers),
    }  # fmt: skip


def take(store, *rows, name="desk", partial=False, present=None, **section):
    with writing(store) as connection:
        frame = pl.DataFrame(list(rows), schema=ANSWERS)
        return take_answers(connection, ReviewSection(**section), name, frame, present, partial=partial)


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
    """What the answers come to, as the one outcome that is counted."""
    ask(store, [TALK.id], overlap=overlap)
    found = take(store, *rows, **section).outcomes
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
    rows = [said(name, **answer) for name, answer in zip("abc", answers, strict=False)]
    assert outcome(store, *rows, overlap=2, policy=policy) == expected


def test_a_named_expert_wins_and_is_not_waited_for(store):
    rows = [said("bob", **KEEP), said("cat", **KEEP), said("ann", **DROP)]
    assert outcome(store, *rows, overlap=9, policy="expert", experts=("ann",)) == "drop"
    assert verdicts(store) == [("drop", "ann", "review (expert): drop 1")]


def test_without_the_expert_the_majority_decides_once_enough_have_answered(store):
    section = {"policy": "expert", "experts": ("zoe",)}
    assert outcome(store, said("bob", **KEEP), overlap=2, **section) == "waiting"
    assert outcome(store, said("bob", **KEEP), said("cat", **KEEP), overlap=2, **section) == "keep"


def test_a_verdict_waits_for_as_many_answers_as_the_set_asks_for(store):
    assert outcome(store, said("ann", **DROP), overlap=2) == "waiting"
    assert verdicts(store) == []
    assert take(store, said("ann", **DROP), partial=True).outcomes["drop"] == 1


def test_one_drop_is_enough_under_any_drop_even_before_the_others_have_answered(store):
    assert outcome(store, said("ann", **DROP), overlap=3, policy="any-drop") == "drop"


def test_what_was_discarded_or_only_drafted_is_no_opinion(store):
    rows = [said("ann", status="discarded", **DROP), said("bob", status="draft", **DROP), said("cat", **KEEP)]
    assert outcome(store, *rows, policy="any-drop") == "keep"


def test_the_reason_says_policy_counts_quality_and_issues(store):
    ask(store, [TALK.id], overlap=3)
    take(store, said("cat", quality=2, issues=["wrong"], **DROP), said("ann", quality=5, **KEEP),
         said("bob", quality=1, issues=["style", "wrong"], **DROP))  # fmt: skip
    reason = "review (majority): keep 1, drop 2, quality 2.67, issues style, wrong"
    assert verdicts(store) == [("drop", "ann, bob, cat", reason)]


def test_a_third_person_in_another_set_ends_a_dispute(store):
    assert outcome(store, said("ann", **KEEP), said("bob", **DROP), overlap=2) == "disputed"
    ask(store, [TALK.id], name="third")
    take(store, said("cat", **DROP), name="third")
    assert verdicts(store) == [("drop", "ann, bob, cat", "review (majority): keep 1, drop 2")]


def test_a_policy_that_nobody_knows_is_refused_with_the_recipe():
    with pytest.raises(RecipeError, match="is no policy: any-drop, majority, expert"):
        check_recipe({"review": {"policy": "vote"}}, "the test")
    with pytest.raises(RecipeError, match="requires the question quality"):
        check_recipe({"review": {"policy": "mean >= 3", "questions": ["decision"]}}, "the test")


# edits ---------------------------------------------------------------------------------------------------------


def test_a_corrected_answer_becomes_a_conversation_whose_parent_is_the_old_one(store):
    assert outcome(store, said("ann", answer="Since Tuesday.", **FIX)) == "edit"
    (now,) = kept(store)
    assert [turn.value for turn in now.turns] == ["Where is it?", "On its way.", "Since when?", "Since Tuesday."]
    with reading(store) as connection:
        assert connection.execute("SELECT parent FROM conversations WHERE id = ?", [now.id]).fetchall() == [(TALK.id,)]


def test_marked_turns_become_train_flags(store):
    assert outcome(store, said("ann", turns=[2], **KEEP)) == "edit"
    (now,) = kept(store)
    assert [turn.train for turn in now.turns] == [True, False, True, True]


@pytest.mark.parametrize("same", ["Since Monday.", "Since Monday.\n", "Since\u00a0Monday.", "", "  "])
def test_an_answer_left_as_it_was_corrects_nothing(store, same):
    assert outcome(store, said("ann", answer=same, **KEEP)) == "keep"
    assert kept(store) == [TALK]


def test_what_a_text_box_puts_in_is_not_learned(store):
    assert outcome(store, said("ann", answer="Since\u00a0Tuesday,\r\nlate.\r\n", **FIX)) == "edit"
    assert kept(store)[0].turns[-1].value == "Since Tuesday,\nlate."


def test_hard_spaces_stay_where_the_answer_had_one(store):
    talk = chat("Combien\u00a0?", "5\u00a0kg.")
    add(store, [talk], source="french.csv")
    ask(store, [talk.id])
    take(store, said("ann", talk.id, answer="6\u00a0kg.", **FIX))
    assert {one.turns[-1].value for one in kept(store)} == {TALK.turns[-1].value, "6\u00a0kg."}


def test_marks_on_what_nobody_learns_change_nothing(store):
    assert outcome(store, said("ann", turns=[1, 3, 77], **KEEP)) == "keep"


def test_to_be_fixed_without_a_correction_is_out_until_somebody_writes_it(store):
    assert outcome(store, said("ann", **FIX)) == "drop"
    assert verdicts(store)[0][2].endswith("to be fixed, and nobody has written how")
    take(store, said("ann", answer="Since Tuesday.", **FIX))
    assert [turn.value for turn in kept(store)[0].turns][-1] == "Since Tuesday."


def test_with_no_turn_left_to_learn_from_a_conversation_is_out(store):
    assert outcome(store, said("ann", turns=[2, 4], **KEEP)) == "drop"
    assert kept(store) == []


def test_two_different_corrections_are_a_dispute_and_a_third_that_agrees_ends_it(store):
    rows = [said("ann", answer="Tuesday.", **FIX), said("bob", answer="Sunday.", **FIX)]
    assert outcome(store, *rows, overlap=2) == "disputed"
    take(store, *rows, said("cat", answer="Sunday.", **FIX))
    assert kept(store)[0].turns[-1].value == "Sunday."


def test_a_turn_is_left_out_when_half_of_the_people_mark_it(store):
    rows = [said("ann", turns=[2, 4], **KEEP), said("bob", turns=[2], **KEEP), said("cat", **KEEP)]
    assert outcome(store, *rows, overlap=3) == "edit"
    assert [turn.train for turn in kept(store)[0].turns] == [True, False, True, True]


def test_those_who_keep_the_answer_as_it_is_outvote_one_who_rewrites_it(store):
    rows = [said("ann", **KEEP), said("bob", **KEEP), said("cat", answer="Never.", **KEEP)]
    assert outcome(store, *rows, overlap=3) == "keep"
    assert kept(store) == [TALK]
    take(store, said("bob", answer="Never.", at=2, **KEEP), *rows[::2])
    assert kept(store)[0].turns[-1].value == "Never."
    assert verdicts(store)[-1] == ("edit", "ann, bob, cat", "review (majority): keep 3, answer by bob, cat")


def test_a_rewriting_against_one_who_leaves_the_answer_is_a_dispute_but_not_under_any_drop(store):
    rows = [said("ann", **KEEP), said("bob", answer="Never.", **KEEP)]
    assert outcome(store, *rows, overlap=2) == "disputed"
    assert take(store, *rows, policy="any-drop").outcomes["edit"] == 1


def test_of_those_who_want_it_fixed_one_correction_is_enough(store):
    rows = [said("ann", **FIX), said("bob", answer="Never.", **FIX)]
    assert outcome(store, *rows, overlap=2) == "edit"


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [([DROP, DROP], "drop"), ([FIX, FIX], "drop"), ([DROP, KEEP], "keep"), ([DROP, {}, {}], "keep")],
)
def test_under_a_mean_what_more_than_half_of_the_people_decide_goes_first(store, decisions, expected):
    rows = [said(name, quality=4, **each) for name, each in zip("abc", decisions, strict=False)]
    assert outcome(store, *rows, overlap=2, policy="mean >= 3.5") == expected


def test_an_expert_who_only_rates_leaves_the_decision_to_the_others(store):
    rows = [said("ann", quality=5), said("bob", **DROP)]
    assert outcome(store, *rows, policy="expert", experts=("ann",)) == "drop"


def test_an_edit_that_its_author_takes_back_leaves_again(store):
    outcome(store, said("ann", answer="Since Tuesday.", **FIX))
    take(store, said("ann", at=2, **KEEP))
    assert kept(store) == [TALK]


def test_tool_calls_keep_their_ids_when_a_later_answer_is_corrected(store):
    from schemas.conversation import Turn

    call = Turn("function_call", '{"name": "find"}', tool_call_id="c1")
    talk = Conversation(
        (Turn("human", "Q"), call, Turn("observation", "{}", tool_call_id="c1"), Turn("gpt", "A")), "[]"
    )
    add(store, [talk], source="tools.csv")
    ask(store, [talk.id])
    take(store, said("ann", talk.id, answer="B", turns=[2], **FIX))
    edited = next(one for one in kept(store) if one.tools)
    assert [turn.tool_call_id for turn in edited.turns] == [None, "c1", "c1", None]
    assert [(turn.train, turn.value) for turn in edited.turns][1::2] == [(False, '{"name": "find"}'), (True, "B")]


# what is kept of answers ---------------------------------------------------------------------------------------


def test_the_same_answers_again_write_nothing(store):
    ask(store, [TALK.id])
    row = said("ann", answer="Since Tuesday.", quality=4, **FIX)
    first, second = take(store, row), take(store, row)
    assert (first.answers["submitted"], first.verdicts) == (1, 1)
    assert (second.answers["submitted"], second.verdicts) == (0, 0)


def test_a_changed_answer_is_a_new_row_and_the_latest_counts(store):
    ask(store, [TALK.id])
    take(store, said("ann", **KEEP))
    take(store, said("ann", at=2, **DROP))
    with reading(store) as connection:
        rows = connection.sql("SELECT answers->>'decision' FROM reviews ORDER BY rowid").fetchall()
    assert rows == [("keep",), ("drop",)]
    assert [verdict for verdict, _, _ in verdicts(store)] == ["keep", "drop"]


def test_of_an_answer_in_a_sheet_and_one_on_the_server_the_later_one_counts_however_often_both_are_read(store):
    ask(store, [TALK.id])
    on_the_server, in_the_sheet = said("ann", at=1, **KEEP), {**said("ann", at=5, **DROP), "record": None}
    for row, outcome in ((on_the_server, "keep"), (in_the_sheet, "drop"), (on_the_server, "drop")):
        assert take(store, row).outcomes[outcome] == 1
    assert take(store, {**in_the_sheet, "answered_at": datetime(2026, 1, 9, tzinfo=UTC)}).answers["submitted"] == 0
    assert [verdict for verdict, _, _ in verdicts(store)] == ["keep", "drop"]


def test_an_answer_that_comes_back_as_it_was_counts_again(store):
    ask(store, [TALK.id], overlap=2)
    present = {f"record of {TALK.id}": TALK.id}
    take(store, said("ann", **DROP), said("bob", **DROP), present=present)
    take(store, said("bob", **DROP), present=present)
    both = (said("ann", **DROP), said("bob", **DROP))
    assert [take(store, *both, present=present).answers["submitted"] for _ in range(2)] == [1, 0]
    assert take(store, *both, present=present).outcomes["drop"] == 1


def test_an_answer_that_was_taken_back_is_told_and_counts_no_more(store):
    ask(store, [TALK.id], overlap=2)
    present = {f"record of {TALK.id}": TALK.id}
    take(store, said("ann", **DROP), said("bob", **KEEP), present=present)
    done = take(store, said("bob", **KEEP), present=present)
    assert (done.answers["withdrawn"], done.outcomes["waiting"]) == (1, 1)
    assert take(store, said("bob", **KEEP), present=present).answers["withdrawn"] == 0


@pytest.mark.parametrize("back", [{"status": "discarded"}, {"status": "draft"}, None])
def test_the_verdict_of_an_answer_that_is_taken_back_is_taken_back_too(store, back):
    ask(store, [TALK.id])
    present = {f"record of {TALK.id}": TALK.id}
    take(store, said("ann", **DROP), present=present)
    rows = [said("ann", at=2, **back)] if back else []
    done = take(store, *rows, present=present)
    assert (done.verdicts, done.outcomes["undecided"]) == (1, 1)
    assert verdicts(store)[-1] == ("undecided", "ann", "review (majority): taken back")
    with reading(store) as connection:
        assert connection.sql("SELECT kept, by_whom FROM current_verdicts").fetchall() == [(True, None)]
    assert take(store, *rows, present=present).verdicts == 0
    assert take(store, said("ann", at=3, **DROP), present=present).verdicts == 1
    assert kept(store) == []


def test_a_correction_whose_author_takes_it_back_leaves_and_the_rules_decide_again(store):
    from support.stores import add_verdict

    add_verdict(store, TALK.id, "drop")
    ask(store, [TALK.id], overlap=2)
    present = {f"record of {TALK.id}": TALK.id}
    take(store, said("ann", answer="Tuesday.", **FIX), said("bob", answer="Tuesday.", **FIX), present=present)
    assert kept(store)[0].turns[-1].value == "Tuesday."
    done = take(store, said("bob", answer="Tuesday.", **FIX), present=present)
    assert (done.outcomes["undecided"], done.outcomes["waiting"]) == (1, 0)
    assert kept(store) == []


def test_a_verdict_stands_while_a_set_that_asks_for_more_answers_waits(store):
    ask(store, [TALK.id])
    take(store, said("ann", **DROP))
    ask(store, [TALK.id], name="more", overlap=3)
    done = take(store, said("bob", status="discarded"), name="more")
    assert (done.outcomes["waiting"], done.verdicts, kept(store)) == (1, 0, [])


def test_a_record_that_is_gone_keeps_its_answers(store):
    ask(store, [TALK.id])
    take(store, said("ann", **DROP), present={f"record of {TALK.id}": TALK.id})
    done = take(store, present={})
    assert (done.gone, done.outcomes["drop"], done.answers["withdrawn"]) == (1, 1, 0)


def test_a_reviewer_called_rule_is_a_person(store):
    ask(store, [TALK.id])
    take(store, said("rule", **DROP))
    assert verdicts(store)[0][1] == "rule (person)"
    assert kept(store) == []


def test_whether_a_person_saw_suggestions_is_kept_with_the_answer(store):
    ask(store, [TALK.id], blind=[TALK.id])
    take(store, said("ann", **KEEP))
    with reading(store) as connection:
        assert connection.sql("SELECT blind FROM reviews").fetchall() == [(True,)]


def test_judging_writes_nothing_by_itself(store):
    ask(store, [TALK.id])
    take(store, said("ann", answer="Since Tuesday.", **FIX))
    before = verdicts(store)
    with reading(store) as connection:
        assert judge(connection, ReviewSection(), [TALK.id]).of("edit") == [TALK.id]
    assert verdicts(store) == before
