"""Review sets as spreadsheets: exported, filled in, imported, and shown by preview."""

import csv
import json
import shutil
from collections import Counter

import pytest
from support.stores import add, add_verdict, chat, questions
from support.training import TINY

from curate.review.queue import QueueQuery
from curate.review.spreadsheet import export_sheet, import_sheet
from curate.scorers.runner import score_store
from schemas.errors import ExportError, RecipeError, ReviewError, SourceError
from schemas.recipe import Recipe, ReviewSection, check_recipe
from schemas.store import reading, writing

LONG = chat("Where is it?", "=On its way.", "Since when?", "Since Monday.")


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "curate.duckdb"
    add(path, [LONG, *questions(5)], metadata={"rating": "4"})
    return path


def export(store, file, recipe=None, name="desk", replace=False, **query):
    return export_sheet(store, recipe or Recipe(), file, name, QueueQuery(**query), replace=replace)


def rows_of(file):
    with file.open(encoding="utf-8-sig", newline="") as sheet:
        return list(csv.DictReader(sheet))


def write(file, rows, delimiter=",", encoding="utf-8"):
    with file.open("w", encoding=encoding, newline="") as sheet:
        writer = csv.DictWriter(sheet, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def fill(file, answers, **options):
    """Write answers (conversation -> cells) into a spreadsheet, as an annotator does."""
    write(file, [row | answers.get(row["conversation"], {}) for row in rows_of(file)], **options)


# export and import


def test_preview_of_a_version_shows_the_answers_of_an_imported_spreadsheet(curate, tmp_path, store):
    shutil.copytree(TINY, tmp_path / "tiny")
    one, two, three = (talk.id for talk in questions(3))
    assert curate("review", "export", "desk.csv").returncode == 0
    file = tmp_path / "desk.csv"
    fill(file, {
        LONG.id: {"quality": "4", "decision": "keep", "turns": "answer 1"},
        one: {"quality": "1", "decision": "drop", "issues": "wrong, style"},
        two: {"quality": "3", "decision": "fix", "answer": "A better answer."},
        three: {"quality": "5", "decision": "keep", "note": "=HYPERLINK(0)"},
    })  # fmt: skip
    imported = curate("review", "import", "desk.csv", "--annotator", "ann")
    assert imported.returncode == 0, imported.stderr
    assert "4 rows with answers, 2 empty, 0 rejected" in imported.stdout
    assert curate("freeze", "desk", "--held-out", "0").returncode == 0
    shown = curate("preview", "desk@1", "--limit", "9", "--set", "train.model=tiny").stdout
    assert "⟦Since Monday." in shown
    assert "=On its way." in shown
    assert "⟦=On its way." not in shown
    assert "⟦A better answer." in shown
    assert "Answer 0." not in shown
    assert "ann: keep 1" not in shown


def test_a_spreadsheet_without_annotator_names_is_rejected_with_one_message(curate, tmp_path, store):
    curate("review", "export", "desk.csv")
    fill(tmp_path / "desk.csv", {talk.id: {"decision": "keep"} for talk in questions(3)})
    ran = curate("review", "import", "desk.csv")
    assert ran.returncode == 1
    assert ran.stdout.count("the annotator is missing") == 1
    assert " and 2 more rows: the annotator is missing: fill the column reviewer" in ran.stdout
    imported = curate("review", "import", "desk.csv", "--annotator", "ann")
    assert imported.returncode == 0
    assert "Verdicts for desk, combined with all other review sets:" in imported.stdout


def test_status_trace_and_diff_show_answers_and_verdicts(curate, tmp_path, store):
    assert curate("freeze", "desk", "--held-out", "0").returncode == 0
    one, two, _ = (talk.id for talk in questions(3))
    curate("review", "export", "desk.csv")
    fill(tmp_path / "desk.csv", {
        LONG.id: {"decision": "keep", "turns": "1"},
        one: {"decision": "drop", "note": "nobody says that"},
        two: {"decision": "fix", "answer": "A better answer."},
    })  # fmt: skip
    curate("review", "import", "desk.csv", "--annotator", "ann")
    curate("freeze", "desk", "--held-out", "0")
    compared = curate("diff", "desk@1", "desk@2", "--list").stdout
    assert "3 unchanged, 0 added, 1 removed, 2 edited, 0 moved" in compared
    assert "ann: review (majority): drop 1" in compared
    assert "+A better answer." in compared
    assert "+(gpt) (no loss)" in compared
    traced = curate("trace", one).stdout
    assert "ann in desk: " in traced
    assert "nobody says that" in traced
    assert "current verdict: not kept, ann: review (majority): drop 1" in traced
    status = json.loads(curate("status", "--json").stdout)
    assert status["counts"]["with_human_verdict"] == 3
    shown = curate("status").stdout
    assert "3 by annotators" in shown
    assert "3 of 6 conversations answered in desk by ann; verdicts: 1 drop, 2 edit" in shown


def test_a_spreadsheet_of_a_set_with_turn_numbers_is_read_by_turns(tmp_path, store):
    """Sets of earlier releases offer the numbers of turns."""
    export(store, tmp_path / "s.csv")
    with writing(store) as connection:
        old = connection.sql("SELECT replace(questions::VARCHAR, '\"answer ', '\"') FROM review_sets").fetchall()[0][0]
        connection.execute("UPDATE review_sets SET questions = ?", [old])
    export(store, tmp_path / "t.csv")
    assert "[4 assistant]" in next(row["text"] for row in rows_of(tmp_path / "t.csv") if "Monday" in row["text"])
    fill(tmp_path / "t.csv", {LONG.id: {"decision": "keep", "turns": "4"}})
    assert import_sheet(store, ReviewSection(), tmp_path / "t.csv", "ann").rejected == []
    with reading(store) as connection:
        assert connection.sql("SELECT answers ->> 'turns' FROM reviews").fetchall() == [("[4]",)]


def test_formulas_are_escaped_in_the_file_and_restored_on_import(tmp_path, store):
    export(store, tmp_path / "s.csv")
    row = next(row for row in rows_of(tmp_path / "s.csv") if row["conversation"] == LONG.id)
    assert "=On its way." in row["text"]
    talk = chat("Sum?", "=1+1")
    add(store, [talk], source="formula.csv")
    export(store, tmp_path / "f.csv", name="formulas", where="answer = '=1+1'")
    (row,) = rows_of(tmp_path / "f.csv")
    assert row["answer"] == "'=1+1"
    fill(tmp_path / "f.csv", {talk.id: {"decision": "keep"}})
    (imported,) = import_sheet(store, ReviewSection(), tmp_path / "f.csv", "ann").sets
    assert imported.outcomes["keep"] == 1  # not edit: the answer is unchanged


def test_a_spreadsheet_saved_with_semicolons_is_read(tmp_path, store):
    export(store, tmp_path / "s.csv")
    fill(tmp_path / "s.csv", {LONG.id: {"decision": "Keep", "quality": "4.0"}}, delimiter=";", encoding="utf-8-sig")
    assert import_sheet(store, ReviewSection(), tmp_path / "s.csv", "ann").answered == 1


def test_importing_a_spreadsheet_again_adds_only_changed_cells(tmp_path, store):
    file = tmp_path / "s.csv"
    export(store, file)
    fill(file, {LONG.id: {"decision": "keep"}})
    import_sheet(store, ReviewSection(), file, "ann")
    (again,) = import_sheet(store, ReviewSection(), file, "ann").sets
    assert (again.answers["submitted"], again.verdicts) == (0, 0)
    fill(file, {LONG.id: {"decision": "drop"}})
    (changed,) = import_sheet(store, ReviewSection(), file, "ann").sets
    assert (changed.answers["submitted"], changed.verdicts) == (1, 1)


def test_an_unchanged_row_keeps_its_time_when_the_spreadsheet_is_imported_again(tmp_path, store):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    export(store, first, name="a")
    export(store, second, name="b")
    fill(first, {LONG.id: {"decision": "keep", "reviewer": "ann"}})
    import_sheet(store, ReviewSection(), first)
    fill(second, {LONG.id: {"decision": "drop", "reviewer": "ann"}})
    assert import_sheet(store, ReviewSection(), second).sets[0].outcomes["drop"] == 1
    fill(first, {questions(1)[0].id: {"decision": "keep", "reviewer": "ann"}})
    (again,) = import_sheet(store, ReviewSection(), first).sets
    assert (again.answers["submitted"], again.outcomes["keep"], again.outcomes["drop"]) == (1, 1, 1)
    with reading(store) as connection:
        rows = connection.execute("SELECT count(*) FROM reviews WHERE conversation = ?", [LONG.id]).fetchall()
    assert rows == [(2,)]


def test_answers_from_two_copies_of_a_spreadsheet_both_count(tmp_path, store):
    recipe = check_recipe({"review": {"overlap": 2, "policy": "any-drop"}}, "the test")
    export(store, tmp_path / "s.csv", recipe)
    fill(tmp_path / "s.csv", {LONG.id: {"decision": "keep", "reviewer": "ann"}})
    (first,) = import_sheet(store, recipe.review, tmp_path / "s.csv").sets
    fill(tmp_path / "s.csv", {LONG.id: {"decision": "drop", "reviewer": "bob"}})
    (second,) = import_sheet(store, recipe.review, tmp_path / "s.csv").sets
    assert (first.outcomes["waiting"], second.outcomes["drop"]) == (1, 1)


# invalid rows and files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"decision": "keep"}, "the annotator is missing: fill the column reviewer, or add --annotator NAME"),
        ({"reviewer": "ann", "quality": "3"}, "decision is empty"),
        ({"reviewer": "ann", "decision": "maybe"}, "decision is 'maybe', not one of keep, fix, drop"),
        ({"reviewer": "ann", "decision": "keep", "quality": "6"}, "quality is '6', not one of 1, 2, 3, 4, 5"),
        (
            {"reviewer": "ann", "decision": "keep", "turns": "3"},
            "turns has '3', but the conversation has the answers 1",
        ),
        ({"reviewer": "ann", "decision": "keep", "issues": "rude"}, "issues is 'rude', not one of wrong, unfinished"),
        ({"reviewer": "ann", "decision": "keep", "conversation": "f00"}, "the set desk has no conversation 'f00'"),
    ],
)
def test_an_invalid_row_is_rejected_with_its_line_and_the_others_count(tmp_path, store, cells, reason):
    file = tmp_path / "s.csv"
    export(store, file, sample=3, order="turns desc")
    other = rows_of(file)[1]["conversation"]
    fill(file, {LONG.id: cells, other: {"decision": "keep", "reviewer": "ann"}})
    done = import_sheet(store, ReviewSection(), file)
    (rejected,) = done.rejected
    assert rejected["line"] == 2
    assert rejected["reason"].startswith(reason)
    assert (done.answered, done.empty) == (1, 1)


def test_a_file_that_is_not_a_review_spreadsheet_is_an_error(tmp_path, store):
    (tmp_path / "x.csv").write_text("question,answer\nq,a\n")
    with pytest.raises(SourceError, match="has no column set and no column conversation"):
        import_sheet(store, ReviewSection(), tmp_path / "x.csv")
    (tmp_path / "latin.csv").write_bytes("set,conversation\nGr\xfc\xdfe,x\n".encode("latin-1"))
    with pytest.raises(SourceError, match="is not UTF-8"):
        import_sheet(store, ReviewSection(), tmp_path / "latin.csv")
    with pytest.raises(SourceError, match="There is no file"):
        import_sheet(store, ReviewSection(), tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("set,conversation\nelse,x\n")
    with pytest.raises(ReviewError, match="belongs to the review set 'else', which this store does not have"):
        import_sheet(store, ReviewSection(), tmp_path / "other.csv")


def test_a_text_longer_than_a_cell_is_rejected_with_the_reason(tmp_path, store):
    (long,) = add(store, [chat("Q", "word " * 7000)], source="long.csv")
    done = export(store, tmp_path / "s.csv")
    assert done.rejected == [{"conversation": long, "reason": "35,021 characters, but a spreadsheet cell holds 32,767"}]
    assert done.rows == 6


def test_an_existing_file_is_not_overwritten(tmp_path, store):
    export(store, tmp_path / "s.csv")
    with pytest.raises(ExportError, match="may contain answers"):
        export(store, tmp_path / "s.csv")


# members of a set ----------------------------------------------------------------------------------------------


def members(file):
    return [row["conversation"] for row in rows_of(file)]


def test_a_sample_is_reproducible_and_a_larger_one_adds_to_it(tmp_path, store):
    export(store, tmp_path / "a.csv", sample=2)
    export(store, tmp_path / "b.csv", sample=2)
    export(store, tmp_path / "c.csv", sample=4)
    export(store, tmp_path / "d.csv")
    two, four = members(tmp_path / "a.csv"), members(tmp_path / "c.csv")
    assert members(tmp_path / "b.csv") == two
    assert len(set(four)) == 4
    assert set(two) < set(four)
    assert set(members(tmp_path / "d.csv")) == set(four)  # the name alone means the set as it is


def test_dropped_conversations_are_included_on_request_and_reviewed_ones_never(tmp_path, store):
    kept, ruled_out, judged = (talk.id for talk in questions(3))
    add_verdict(store, kept, "keep")
    add_verdict(store, ruled_out, "drop")
    add_verdict(store, judged, "keep")
    add_verdict(store, judged, "keep", by_whom="ann")
    export(store, tmp_path / "a.csv")
    assert members(tmp_path / "a.csv") == [kept]
    export(store, tmp_path / "b.csv", name="both", also_dropped=True)
    assert {kept, ruled_out} <= set(members(tmp_path / "b.csv"))
    assert judged not in members(tmp_path / "b.csv")


def test_the_queue_uncertain_selects_from_both_sides_of_the_threshold(tmp_path):
    store = tmp_path / "u.duckdb"
    talks = [chat(f"Please explain {n}?", "I'm sorry, but I can't." if n % 2 else "A long and fine answer, in full.")
             for n in range(6)]  # fmt: skip
    add(store, talks)
    recipe = check_recipe({"select": {"rules": {"good": "quality >= 0.6"}}}, "the test")
    score_store(store, recipe)
    with reading(store) as connection:
        near = connection.sql("SELECT conversation FROM scores ORDER BY abs(quality - 0.6), conversation").fetchall()
    export(store, tmp_path / "u.csv", recipe, queue="uncertain", sample=3)
    assert members(tmp_path / "u.csv") == [one for (one,) in near[:3]]


STORY = (
    "The pump of the grey boat was left in the rain for a week, and since then it makes a noise like a kettle, "
    "which frightens the dog, the neighbours and, as we found out last night, the harbour master. What now?"
)


def test_near_duplicates_come_cluster_by_cluster_the_largest_first(tmp_path, store):
    def talk(*changes):
        return chat(*(text for change in changes for text in (change(STORY), "Dry it for a day, then oil it.")))

    pairs = add(store, [talk(str), talk(str.upper)], source="a.csv")
    other = STORY.replace("pump", "paddle").replace("kettle", "trumpet").replace("rain", "sun").replace("dog", "cat")
    three = add(store, [talk(lambda _, end=end: other + end) for end in ("", " Thanks!", " Any idea?")], source="b.csv")
    export(store, tmp_path / "n.csv", queue="near-duplicates")
    found = members(tmp_path / "n.csv")
    assert (set(found[:3]), set(found[3:])) == (set(three), set(pairs))
    export(store, tmp_path / "f.csv", queue="near-duplicates", name="four", sample=4)
    assert set(members(tmp_path / "f.csv")[:3]) == set(three)


def test_versions_of_one_text_are_one_cluster(tmp_path):
    words = [f"word{number}" for number in range(120)]
    versions = [" ".join([*words[:at], "another", *words[at + 1 :]]) for at in range(0, 120, 12)]
    far = " ".join(reversed(words))
    ids = add(tmp_path / "v.duckdb", [chat("Which?", text) for text in [*versions, f"{versions[0]}!", far]])
    export(tmp_path / "v.duckdb", tmp_path / "n.csv", queue="near-duplicates")
    assert set(members(tmp_path / "n.csv")) == set(ids[:-1])


@pytest.mark.parametrize(
    "text",
    [
        "我们的退款政策非常简单如果您在三十天内提出申请我们会在五个工作日内把全部款项退回到您原来的支付方式请您耐心等待谢谢您的理解和支持",
        "ご注文の商品は三営業日以内に倉庫から発送されますので到着まで今しばらくお待ちくださいますようお願い申し上げます",
        "กรุณารอสักครู่เจ้าหน้าที่ของเรากำลังตรวจสอบคำสั่งซื้อของคุณและจะติดต่อกลับภายในสองวันทำการขอบคุณที่ใช้บริการ",
    ],
    ids=["Chinese", "Japanese", "Thai"],
)
def test_texts_without_spaces_have_near_duplicates(tmp_path, text):
    ids = add(tmp_path / "z.duckdb", [chat("?", text), chat("?", text[:-1]), chat("?", text[::-1])])
    export(tmp_path / "z.duckdb", tmp_path / "n.csv", queue="near-duplicates")
    assert set(members(tmp_path / "n.csv")) == set(ids[:2])


def test_the_queue_near_duplicates_without_any_is_an_error(tmp_path, store):
    with pytest.raises(ReviewError, match=r"No near-duplicates among the conversations that are"):
        export(store, tmp_path / "n.csv", queue="near-duplicates")
    with pytest.raises(ReviewError, match=r"No near-duplicates among the conversations that are"):
        export(store, tmp_path / "n.csv", queue="near-duplicates", where="turns > 90")
    with pytest.raises(ReviewError) as refused:
        export(store, tmp_path / "n.csv", queue="near-duplicates", where="turns > 90", also_dropped=True)
    assert "kept" not in refused.value.what
    assert refused.value.hint == "Loosen --where."


def test_the_near_duplicates_of_the_sample_include_its_ten_repeated_tickets(curate, tmp_path, sample):
    assert curate("import", str(sample / "support_tickets.csv")).returncode == 0
    export(tmp_path / "curate.duckdb", tmp_path / "n.csv", queue="near-duplicates")
    texts = [row["text"].lower().partition("[answer 1]") for row in rows_of(tmp_path / "n.csv")]
    assert len(texts) == 161  # data/make_sample.py: in small letters, with "!!", with spaces; another boat's name
    questions = Counter("".join(filter(str.isalnum, question)) for question, _, _ in texts)
    assert sum(count == 2 for count in questions.values()) >= 9


def test_the_queue_disagreement_selects_disputed_conversations(tmp_path, store):
    recipe = check_recipe({"review": {"overlap": 2}}, "the test")
    with pytest.raises(ReviewError, match="No conversation is disputed"):
        export(store, tmp_path / "d.csv", recipe, name="third", queue="disagreement")
    export(store, tmp_path / "s.csv", recipe)
    for name, decision in (("ann", "keep"), ("bob", "drop")):
        fill(tmp_path / "s.csv", {LONG.id: {"decision": decision, "reviewer": name}})
        import_sheet(store, recipe.review, tmp_path / "s.csv")
    export(store, tmp_path / "d.csv", recipe, name="third", queue="disagreement")
    assert members(tmp_path / "d.csv") == [LONG.id]
    assert rows_of(tmp_path / "d.csv")[0]["text"].endswith(
        "[earlier answers]\nAnnotator 1\ndecision: keep\n\nAnnotator 2\ndecision: drop"
    )


def test_unknown_names_and_queues_are_errors(tmp_path, store):
    with pytest.raises(RecipeError, match="did you mean turns"):
        export(store, tmp_path / "s.csv", where="turn > 2")
    with pytest.raises(ReviewError, match="Unknown queue best"):
        export(store, tmp_path / "s.csv", queue="best")
    with pytest.raises(ReviewError, match="none of 6 is kept, unreviewed and selected by --where"):
        export(store, tmp_path / "s.csv", where="turns > 20")


def test_blind_conversations_have_no_suggestions_and_stay_blind(tmp_path, store):
    recipe = check_recipe({"review": {"blind": 0.5}}, "the test")
    score_store(store, recipe)
    export(store, tmp_path / "a.csv", recipe)
    blind = {row["conversation"] for row in rows_of(tmp_path / "a.csv") if not row["suggested quality"]}
    assert 0 < len(blind) < 6
    assert all(row["answer"] for row in rows_of(tmp_path / "a.csv"))  # the text to correct is no verdict
    export(store, tmp_path / "b.csv", Recipe())
    assert {row["conversation"] for row in rows_of(tmp_path / "b.csv") if not row["suggested quality"]} == blind


def test_a_set_keeps_its_questions(tmp_path, store):
    export(store, tmp_path / "a.csv")
    other = check_recipe({"review": {"questions": ["decision", "note"]}}, "the test")
    with pytest.raises(ReviewError, match="The set desk has the additional question answer"):
        export(store, tmp_path / "b.csv", other)


def test_an_additional_question_is_asked_and_its_answers_are_stored(tmp_path, store):
    tone = {"kind": "choice", "title": "How does it sound?", "options": ["warm", "cold"]}
    recipe = check_recipe({"review": {"more": {"tone": tone}}}, "the test")
    export(store, tmp_path / "a.csv", recipe)
    fill(tmp_path / "a.csv", {LONG.id: {"decision": "keep", "tone": "WARM"}})
    import_sheet(store, recipe.review, tmp_path / "a.csv", "ann")
    with reading(store) as connection:
        assert connection.sql("SELECT answers->>'tone' FROM current_answers").fetchall() == [("warm",)]


def test_suggestions_come_from_scores_with_the_recipes_parameters(tmp_path, store):
    strict = check_recipe({"score": {"quality": {"penalties": {"words": {"fine": 100, "worst": 0, "weight": 1}}}},
                           "review": {"blind": 0}}, "the test")  # fmt: skip
    score_store(store, strict)
    export(store, tmp_path / "a.csv", strict)
    assert {row["suggested quality"] for row in rows_of(tmp_path / "a.csv")} <= {"1", "2"}
