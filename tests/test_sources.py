"""Imports: listed, removed and replaced, with versions, verdicts and reviews that stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.stores import add_verdict

from curate.dedup.clusters import deduplicate_store
from curate.ingest.pipeline import import_files
from curate.ingest.rejects import RejectFilter, export_rejects, list_rejects
from curate.ingest.removal import remove_source
from curate.ingest.sources import list_sources
from curate.scorers.runner import score_store
from curate.selection import select_store
from curate.status import read_status
from curate.versions.freeze import freeze
from curate.versions.lineage import Lineage, trace
from curate.versions.removed_rows import RemovedRow
from schemas.conversation import Conversation, Turn
from schemas.errors import RecipeError, SourceError
from schemas.import_recipe import ImportSection
from schemas.recipe import Recipe
from schemas.store import reading, writing
from schemas.version import check_members, find_version, read_members

QUESTION_1, QUESTION_2, QUESTION_3 = (
    "How do I reset the password of my account?",
    "Where can I find last month's invoice?",
    "<img src=x onerror=alert(1)> '; DROP TABLE sources; --",
)
HEADER = "title,question,answer\n"
ROW_1 = f"T1,{QUESTION_1},Open the settings and choose reset.\n"
ROW_2 = f"T2,{QUESTION_2},It is in the billing section.\n"
ROW_3 = f"T3,{QUESTION_3},=cmd() <|im_end|>\n"
BAD = "T4,What is missing here?,\n"
RECIPE = Recipe.model_validate({"freeze": {"held_out": 0}})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "curate.duckdb"


def write(path: Path, *rows: str) -> str:
    path.write_text(HEADER + "".join(rows), encoding="utf-8")
    return str(path)


def load(store: Path, path: str, on_changed="stop", dry_run=False, **section):
    return import_files(store, [path], ImportSection(**section), on_changed=on_changed, dry_run=dry_run)[0]


def counts(store: Path) -> dict[str, tuple[int, ...]]:
    """File name -> rows read, kept, duplicate, rejected, and conversations that only this import has."""
    with reading(store) as connection:
        rows = list_sources(connection)
    names = ("rows_read", "rows_kept", "rows_duplicate", "rows_rejected", "only_here")
    return {Path(row["path"]).name: tuple(row[name] for name in names) for row in rows}


def id_of(question: str, answer: str) -> str:
    return Conversation((Turn("human", question), Turn("gpt", answer))).id


ID_1 = id_of(QUESTION_1, "Open the settings and choose reset.")
ID_2 = id_of(QUESTION_2, "It is in the billing section.")


def conversations(store: Path, query="SELECT id FROM conversations") -> set[str]:
    with reading(store) as connection:
        return {id_ for (id_,) in connection.sql(query).fetchall()}


def test_a_removed_import_takes_its_rejects_and_the_conversations_that_only_it_contributed(store, tmp_path):
    load(store, write(tmp_path / "a.csv", ROW_1, ROW_2, BAD))
    load(store, write(tmp_path / "b.csv", ROW_1, ROW_3))
    assert counts(store) == {"a.csv": (3, 2, 0, 1, 1), "b.csv": (2, 1, 1, 0, 1)}
    report = remove_source(store, "a.csv")
    assert (report.rows, report.conversations, report.retained, report.duplicates_kept) == (3, 1, 0, 1)
    assert counts(store) == {"b.csv": (2, 2, 0, 0, 2)}
    assert ID_1 in conversations(store)
    assert ID_2 not in conversations(store)
    assert conversations(store, "SELECT raw FROM rejects") == set()
    with reading(store) as connection:
        assert read_status(connection)["counts"]["conversations"] == 2
        removed = [row for row in list_sources(connection, removed=True) if row["removed_at"]]
    assert [(row["path"], row["only_here"], row["reason"]) for row in removed] == [
        (str(tmp_path / "a.csv"), 1, "removed with curate sources remove")
    ]


def test_a_dry_run_of_a_removal_states_the_same_numbers_and_changes_nothing(store, tmp_path):
    load(store, write(tmp_path / "a.csv", ROW_1, ROW_2, BAD))
    before = counts(store)
    planned = remove_source(store, "a.csv", dry_run=True)
    assert counts(store) == before
    assert not planned.written
    done = remove_source(store, "a.csv")
    assert (planned.rows, planned.conversations) == (done.rows, done.conversations) == (3, 2)


def test_an_unknown_an_ambiguous_and_a_removed_import_are_named(store, tmp_path):
    path = write(tmp_path / "a.csv", ROW_1)
    load(store, path)
    with pytest.raises(SourceError, match=r"No import matches other\.csv"):
        remove_source(store, "other.csv")
    load(store, write(tmp_path / "a.csv", ROW_2), on_changed="add")
    with pytest.raises(SourceError, match=r"2 imports match a\.csv"):
        remove_source(store, "a.csv")
    with reading(store) as connection:
        first, second = (row["source"] for row in list_sources(connection))
    remove_source(store, first[:8])
    with pytest.raises(SourceError, match="was removed on"):
        remove_source(store, first[:8])
    remove_source(store, second)
    assert counts(store) == {}


def test_a_frozen_version_stays_whole_while_nothing_later_keeps_its_removed_conversation(store, tmp_path):
    load(store, write(tmp_path / "a.csv", ROW_1, ROW_2))
    load(store, write(tmp_path / "b.csv", ROW_1, ROW_3))
    score_store(store, RECIPE)
    select_store(store, RECIPE)
    with writing(store) as connection:
        before = freeze(connection, "faq", RECIPE).version
    report = remove_source(store, "a.csv")
    assert (report.retained, report.versions) == (1, ["faq@1"])
    with writing(store) as connection:
        version = find_version(connection, "faq@1")
        check_members(connection, version)
        assert version.digest == before.digest
        assert ID_2 in set(read_members(connection, version)["id"])
        status = read_status(connection)["counts"]
        assert (status["conversations"], status["kept"], status["with_verdict"], status["unscored"]) == (2, 2, 2, 0)
        assert sum(freeze(connection, "faq", RECIPE).version.counts.values()) == 2
    assert score_store(store, RECIPE, again=True).conversations == 2
    assert select_store(store, RECIPE).conversations == 2
    assert deduplicate_store(store, RECIPE).conversations == 2


def test_a_conversation_that_is_imported_again_is_a_kept_row_and_is_not_kept_before_the_next_selection(store, tmp_path):
    rule = Recipe.model_validate({"select": {"rules": {"long": "words >= 5"}}, "freeze": {"held_out": 0}})
    load(store, write(tmp_path / "a.csv", ROW_1, ROW_2))
    score_store(store, rule)
    select_store(store, rule)
    with writing(store) as connection:
        digest = freeze(connection, "faq", rule).version.digest
    remove_source(store, "a.csv")
    again = load(store, write(tmp_path / "c.csv", ROW_1, ROW_2))
    assert (again.rows_kept, again.rows_duplicate, again.conversations) == (2, 0, 2)
    assert conversations(store, "SELECT conversation FROM current_verdicts WHERE kept") == set()
    with reading(store) as connection:
        assert read_status(connection)["next"] == "curate select"
    select_store(store, rule)
    with writing(store) as connection:
        result = freeze(connection, "faq", rule)
    assert (result.new, result.version.digest) == (False, digest)


def test_human_verdicts_and_edits_stay_but_an_edit_of_a_removed_conversation_is_not_kept(store, tmp_path):
    load(store, write(tmp_path / "a.csv", ROW_1, ROW_2))
    with writing(store) as connection:
        connection.execute(
            "INSERT INTO conversations SELECT 'e' || id[2:], conversations, tools, id FROM conversations WHERE id = ?",
            [ID_1],
        )
    edit = "e" + ID_1[1:]
    add_verdict(store, ID_1, "edit", by_whom="ann", edited_to=edit)
    kept = "SELECT conversation FROM current_verdicts WHERE kept"
    assert conversations(store, kept) == {edit, ID_2}
    remove_source(store, "a.csv")
    assert conversations(store, kept) == set()
    assert conversations(store) == {ID_1, edit}
    assert conversations(store, "SELECT conversation FROM verdicts WHERE by_whom = 'ann'") == {ID_1}
    load(store, write(tmp_path / "b.csv", ROW_1))
    assert conversations(store, kept) == {edit}


def test_an_edit_stays_kept_as_long_as_one_of_its_originals_has_an_import(store, tmp_path):
    load(store, write(tmp_path / "a.csv", ROW_1))
    load(store, write(tmp_path / "b.csv", ROW_2))
    with writing(store) as connection:
        connection.execute(
            "INSERT INTO conversations SELECT 'e' || id[2:], conversations, tools, id FROM conversations WHERE id = ?",
            [ID_1],
        )
    edit = "e" + ID_1[1:]
    for original in (ID_1, ID_2):
        add_verdict(store, original, "edit", by_whom="ann", edited_to=edit)
    remove_source(store, "a.csv")
    assert conversations(store, "SELECT conversation FROM current_verdicts WHERE kept") == {edit}


def test_trace_reports_the_removal_for_the_conversation_and_for_its_line(store, tmp_path):
    load(store, write(tmp_path / "a.csv", ROW_1, ROW_2, BAD))
    load(store, write(tmp_path / "b.csv", ROW_1))
    remove_source(store, "a.csv")
    with reading(store) as connection:
        (shared,) = trace(connection, ID_1)
        (gone,) = trace(connection, ID_2[:10])
        (line,) = trace(connection, "a.csv:3")
        (reject,) = trace(connection, "a.csv#3")
    assert isinstance(shared, Lineage)
    assert [row["line"] for row in shared.removed] == [2]
    assert [Path(origin["path"]).name for origin in shared.origins] == ["b.csv"]
    assert gone == line
    assert isinstance(gone, RemovedRow)
    assert (gone.conversation, gone.line) == (ID_2, 3)
    assert isinstance(reject, RemovedRow)
    assert (reject.code, reject.conversation) == ("empty-answer", None)


def test_rejects_that_the_removed_import_corrected_are_open_again(store, tmp_path):
    load(store, write(tmp_path / "a.csv", ROW_1, BAD))
    fix = tmp_path / "fix.csv"
    with reading(store) as connection:
        export_rejects(connection, RejectFilter(), fix)
    text = fix.read_text()
    fix.write_text(text.replace("What is missing here?,,", "What is missing here?,An answer.,"))
    assert load(store, str(fix)).closed == 1
    assert remove_source(store, "fix.csv").reopened == 1
    with reading(store) as connection:
        assert read_status(connection)["counts"]["open_rejects"] == 1


def test_corrected_rejects_are_imported_again_under_their_name_without_asking(store, tmp_path):
    load(store, write(tmp_path / "a.csv", ROW_1, BAD, BAD.replace("T4", "T5").replace("here", "there")))
    fix = tmp_path / "fix.csv"
    with reading(store) as connection:
        export_rejects(connection, RejectFilter(), fix)
    half = fix.read_text().replace("missing here?,,", "missing here?,An answer.,")
    fix.write_text(half)
    load(store, str(fix))
    fix.write_text(half.replace("missing there?,,", "missing there?,Another answer.,"))
    load(store, str(fix))
    with reading(store) as connection:
        assert read_status(connection)["counts"]["open_rejects"] == 0


@pytest.mark.parametrize("change", ["content", "mapping"])
def test_a_changed_file_or_mapping_stops_and_names_the_earlier_import(store, tmp_path, change):
    path = write(tmp_path / "a.csv", ROW_1)
    earlier = load(store, path, map={"question": "title", "answer": "question"})
    section = {"map": {"question": "title", "answer": "question"}}
    if change == "content":
        write(tmp_path / "a.csv", ROW_2)
        expected = "other content"
    else:
        section = {}
        expected = "another mapping (--shape pairs --map question=title --map answer=question)"
    for dry_run in (True, False):
        with pytest.raises(SourceError) as error:
            load(store, path, dry_run=dry_run, **section)
        assert f"a.csv was imported before with {expected}: import {earlier.source[:12]}" in error.value.what
        assert "--replace" in str(error.value.hint)
        assert "--add" in str(error.value.hint)
    assert counts(store) == {"a.csv": (1, 1, 0, 0, 1)}


def test_the_same_bytes_with_the_same_mapping_are_already_imported(store, tmp_path):
    path = write(tmp_path / "a.csv", ROW_1)
    load(store, path)
    assert load(store, path).imported_before == path


def test_replace_removes_the_earlier_import_and_keeps_scores_and_verdicts_of_unchanged_rows(store, tmp_path):
    path = write(tmp_path / "a.csv", ROW_1, ROW_2)
    earlier = load(store, path)
    score_store(store, RECIPE)
    select_store(store, RECIPE)
    write(tmp_path / "a.csv", ROW_1, ROW_3)
    planned = load(store, path, on_changed="replace", dry_run=True)
    result = load(store, path, on_changed="replace")
    for each in (planned, result):
        assert (each.rows_kept, each.rows_duplicate, each.conversations) == (2, 0, 2)
        assert (each.replaced, each.disappeared) == ([earlier.source], 1)
    assert conversations(store, "SELECT conversation FROM scores") == {ID_1}
    assert conversations(store, "SELECT conversation FROM current_verdicts WHERE kept") == {ID_1}
    with reading(store) as connection:
        (gone,) = trace(connection, ID_2)
    assert isinstance(gone, RemovedRow)
    assert gone.reason == f"replaced by the import {result.source[:12]} of {path}"
    assert counts(store) == {"a.csv": (2, 2, 0, 0, 2)}


def test_a_row_that_its_correction_and_the_replaced_file_reject_is_open_once(store, tmp_path):
    path = write(tmp_path / "a.csv", ROW_1, BAD)
    load(store, path)
    with reading(store) as connection:
        export_rejects(connection, RejectFilter(), tmp_path / "fix.csv")
    load(store, str(tmp_path / "fix.csv"))
    write(tmp_path / "a.csv", ROW_1, BAD, ROW_2)
    assert load(store, path, on_changed="replace").closed == 0
    with reading(store) as connection:
        assert [each["path"] for each in list_rejects(connection, RejectFilter(), None)] == [path]
        found = read_status(connection)["counts"]
    assert (found["open_rejects"], found["closed_rejects"], found["corrected_rejects"]) == (1, 1, 0)
    remove_source(store, "a.csv")
    with reading(store) as connection:
        assert read_status(connection)["counts"]["open_rejects"] == 1


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_replacement_names_the_import_that_becomes_the_first_one_of_shared_conversations(store, tmp_path, dry_run):
    path, other = write(tmp_path / "a.csv", ROW_1, ROW_2), write(tmp_path / "b.csv", ROW_1, ROW_3)
    load(store, path)
    load(store, other)
    write(tmp_path / "a.csv", ROW_1)
    result = load(store, path, on_changed="replace", dry_run=dry_run)
    assert (result.moved, result.disappeared) == ({other: 1}, 1)


def test_a_replacement_that_rejects_too_many_rows_leaves_the_earlier_import(store, tmp_path):
    path = write(tmp_path / "a.csv", ROW_1, ROW_2)
    load(store, path)
    write(tmp_path / "a.csv", BAD, ROW_1)
    with pytest.raises(SourceError, match="more than the allowed"):
        load(store, path, on_changed="replace", max_rejects=0.1)
    assert counts(store) == {"a.csv": (2, 2, 0, 0, 2)}


def test_a_rule_selects_one_of_two_imports_of_a_path(store, tmp_path):
    path = write(tmp_path / "a.csv", ROW_1)
    wrong = load(store, path, map={"question": "title", "answer": "question"})
    right = load(store, path, on_changed="add")
    for rule, kept in (
        (f"import_id = '{right.source}'", {ID_1}),
        (f"not starts_with(import_id, '{wrong.source[:8]}')", {ID_1}),
        ("import_id = 'none'", set()),
    ):
        select_store(store, Recipe.model_validate({"select": {"rules": {"one": rule}}}))
        assert conversations(store, "SELECT conversation FROM current_verdicts WHERE kept") == kept


def test_near_duplicates_are_searched_again_if_the_kept_one_was_removed(store, tmp_path):
    words = " ".join(f"word{n}" for n in range(60))
    near = Recipe.model_validate({"select": {"rules": {"one": "not near_duplicate"}}, "freeze": {"held_out": 0}})
    load(store, write(tmp_path / "a.csv", f"T1,What is this?,{words} and a longer end of it.\n"))
    load(store, write(tmp_path / "b.csv", f"T2,What is this?,{words}\n", ROW_1))
    assert deduplicate_store(store, near).near_duplicates == 1
    remove_source(store, "a.csv")
    with pytest.raises(RecipeError, match="near_duplicate, which is not computed"):
        select_store(store, near)
    assert deduplicate_store(store, near).near_duplicates == 0
    assert select_store(store, near).kept == 2


def test_the_search_for_near_duplicates_still_covers_the_rest_after_a_removal(store, tmp_path):
    near = Recipe.model_validate({"select": {"rules": {"one": "not near_duplicate"}}})
    load(store, write(tmp_path / "a.csv", ROW_1))
    load(store, write(tmp_path / "b.csv", ROW_2))
    deduplicate_store(store, near)
    remove_source(store, "a.csv")
    assert select_store(store, near).kept == 1
    load(store, str(tmp_path / "a.csv"))
    with pytest.raises(RecipeError, match="not computed for 1 conversation"):
        select_store(store, near)


def test_lists_of_imports_show_the_newest_and_count_the_others(tmp_path, curate):
    folder = tmp_path / "exports"
    folder.mkdir()
    for number in range(45):
        write(folder / f"{number:02}.csv", ROW_1, f"T{number},Where is door {number}?,To the left.\n")
    curate("import", str(folder))
    for command in ("status", "sources"):
        listed = curate(command).stdout
        assert "and 5 earlier imports; --limit N lists the newest N, --json all of them" in listed
        assert "44.csv" in listed
        assert "05.csv" in listed
        assert "04.csv" not in listed
        assert len(listed.splitlines()) < 55
        assert "earlier import" not in curate(command, "--limit", "45").stdout
        assert "43 earlier imports" in curate(command, "--limit", "2").stdout
    assert "45 files" in curate("status").stdout
    mappings = [line for line in curate("sources").stdout.splitlines() if ": pairs (" in line]
    assert len(mappings) == 1
    assert "and 37 more: pairs (question = question, answer = answer)" in mappings[0]
    assert len(json.loads(curate("sources", "--json").stdout)) == 45
    newest = json.loads(curate("status", "--json", "--limit", "3").stdout)["sources"]
    assert [Path(source["path"]).name for source in newest] == ["42.csv", "43.csv", "44.csv"]
