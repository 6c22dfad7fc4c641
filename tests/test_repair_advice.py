"""Advice on repairs: a repair is suggested only if it works, and not again after it was applied."""

import json

import pytest

from curate.ingest.pipeline import import_files
from schemas.import_recipe import ImportSection

ASK, SAY, BYE = ("human", "How far is it?"), ("gpt", "Two miles."), ("human", "Bye then.")
CALL = ("function_call", '{"name": "depth", "arguments": {"harbour": "A"}}')

REPAIRED = {
    "trailing-user": ([ASK, SAY, BYE], ("trailing-user",)),
    "leading-assistant": ([SAY, ASK, SAY], ("leading-assistant",)),
    "merge-consecutive": ([ASK, BYE, SAY], ("merge-consecutive",)),
    "two after each other": ([SAY, ASK, SAY, BYE], ("trailing-user", "leading-assistant")),
    "strip": ([("human", " How far?"), SAY], ("strip",)),
    "html": ([("human", "<p>Far?</p>"), ("gpt", "Two &amp;amp; a half.")], ("html",)),
    "mojibake": ([("human", "Wo ist die BrÃ¼cke?"), SAY], ("mojibake",)),
    "invisible": ([("human", "How\u200b far?"), SAY], ("invisible",)),
    "stop-marker": ([("human", "How far?\n\n###"), SAY], ("stop-marker",)),
}
NOT_REPAIRED = {
    "only a question": [ASK],
    "no answer": [BYE, ASK],
    "a call without result": [ASK, CALL, SAY],
    "a result without call": [ASK, ("observation", "4"), SAY],
    "an unknown role": [ASK, ("narrator", "It rains."), SAY],
    "an empty answer": [ASK, ("gpt", "")],
}


def imported(tmp_path, talks, *repairs, **options):
    path = tmp_path / "talks.jsonl"
    rows = [{"conversations": [{"from": who, "value": text} for who, text in talk]} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = ImportSection(repair=repairs, **options)
    (result,) = import_files(tmp_path / "s.duckdb", [str(path)], section, dry_run=True)
    return result


@pytest.mark.parametrize("name", REPAIRED)
def test_a_suggested_repair_works_and_is_not_suggested_again(tmp_path, name):
    talk, repairs = REPAIRED[name]
    (advice,) = imported(tmp_path, [[ASK, SAY], talk]).advice.values()
    assert (advice.repairs, advice.tried, advice.repaired) == (repairs, 1, 1)
    after = imported(tmp_path, [[ASK, SAY], talk], *repairs)
    assert after.rows_rejected == 0
    assert {one: advice.repairs for one, advice in after.advice.items() if advice.repairs} == {}


@pytest.mark.parametrize("name", NOT_REPAIRED)
def test_a_repair_that_does_not_work_is_not_suggested(tmp_path, name):
    result = imported(tmp_path, [[ASK, SAY], NOT_REPAIRED[name]])
    assert result.rows_rejected == 1
    assert not any(advice.repairs for advice in result.advice.values())


def test_the_share_of_repaired_conversations_is_stated(tmp_path):
    (advice,) = imported(tmp_path, [[ASK, SAY, BYE]] * 3 + [[ASK]] * 2).advice.values()
    assert (advice.tried, advice.repaired) == (5, 3)


def imported_branches(tmp_path, *rows):
    path = tmp_path / "tree.jsonl"
    keys = ("message_id", "parent_id", "role", "text")
    path.write_text("".join(json.dumps({**dict(zip(keys, row, strict=True)), "tree": "r"}) + "\n" for row in rows))
    section = ImportSection(shape="long", group_by="tree", role="role", text="text")
    return import_files(tmp_path / "s.duckdb", [str(path)], section, dry_run=True)[0]


def test_rival_replies_are_a_warning_and_merging_them_is_not_suggested(tmp_path):
    first = [("r", None, "user", "How do I sail?"), ("a1", "r", "assistant", "Start with the wind.")]
    rival = ("a2", "r", "assistant", "Start with the knots.")
    result = imported_branches(tmp_path, *first, rival)
    assert (result.rejected, result.advice) == ({"same-role-twice": 3}, {})
    result = imported_branches(tmp_path, *first, ("b1", "a1", "user", "And then?"), rival)
    assert (result.rows_kept, result.warnings) == (4, {"rival-replies": 1})
    result = imported_branches(tmp_path, *first, ("b1", "a1", "assistant", "Then rest."))
    assert result.advice["same-role-twice"].repairs == ("merge-consecutive",)


def test_a_warning_has_the_line_and_reason_of_its_first_conversation(tmp_path, curate):
    path = tmp_path / "faq.csv"
    path.write_text("question,answer\nOne?,Yes.\nTwo?,nan\nThree?,N/A\n")
    (result,) = import_files(tmp_path / "s.duckdb", [str(path)], ImportSection(), dry_run=True)
    assert result.warnings == {"placeholder-text": 2}
    assert result.warning_examples == {
        "placeholder-text": {"row": 2, "line": 3, "reason": "Turn 2 (gpt) is a placeholder: nan"}
    }
    ran = curate("import", "faq.csv", "--dry-run")
    assert "Warning placeholder-text: 2 conversations, first in line 3." in ran.stdout
    assert "--repair nan-text rejects it." in " ".join(ran.stdout.split())
    assert "in a trial" not in ran.stdout
    assert "To repair them" not in ran.stdout
    again = curate("import", "faq.csv", "--repair", "nan-text")
    assert "3 rows read = 1 conversation + 0 duplicates + 2 rejected" in again.stdout
    assert json.loads(curate("import", "faq.csv", "--dry-run", "--json", "--add").stdout)[0]["warning_examples"]
