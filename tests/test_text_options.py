"""Options that change texts: `--system`, and `[import.substitute]` of the recipe."""

import json

import pytest

from curate.ingest.pipeline import import_files
from schemas.errors import RecipeError, SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading

ROWS = [
    {"question": "It leaks. [#42]", "answer": "Pull the lever."},
    {"question": "How far?", "answer": "Two miles.", "system": "Be brief."},
]


def write(tmp_path, rows=ROWS):
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def stored(store):
    with reading(store) as connection:
        rows = connection.sql(
            'SELECT conversations, repairs, raw FROM origins JOIN conversations ON id = conversation ORDER BY "row"'
        ).fetchall()
    return [([(turn["from"], turn["value"]) for turn in turns], repairs, raw) for turns, repairs, raw in rows]


def test_a_system_prompt_is_added_to_conversations_without_one(tmp_path):
    store = tmp_path / "s.duckdb"
    (result,) = import_files(store, [write(tmp_path)], ImportSection(system="Answer as a mate."))
    assert [turns[0] for turns, _, _ in stored(store)] == [("system", "Answer as a mate."), ("system", "Be brief.")]
    assert result.mapping["system"] == "Answer as a mate."
    assert result.repaired == {}


def test_a_system_prompt_of_the_command_line_is_another_import(tmp_path, curate):
    path = write(tmp_path)
    plain = import_files(tmp_path / "a.duckdb", [path], ImportSection())[0].source
    ran = curate("import", path, "--system", "Answer as a mate.", "--json")
    assert json.loads(ran.stdout)[0]["source"] != plain
    assert json.loads(ran.stdout)[0]["conversations"] == 2


def test_plain_text_has_no_system_prompt(tmp_path):
    path = write(tmp_path, [{"text": "Once upon a time."}])
    with pytest.raises(SourceError, match="Plain text has no system prompt"):
        import_files(tmp_path / "s.duckdb", [path], ImportSection(system="Answer as a mate."))


def test_a_substitution_is_counted_and_keeps_the_original_row(tmp_path, curate):
    (tmp_path / "curate.toml").write_text("[import.substitute]\nticket = ['\\s*\\[#(\\d+)\\]', \" (ticket $1)\"]\n")
    ran = curate("import", write(tmp_path))
    assert "Repaired by substitute.ticket: 1 row" in ran.stdout
    (turns, repairs, raw), (_, none, _) = stored(tmp_path / "curate.duckdb")
    assert turns[0] == ("human", "It leaks. (ticket 42)")
    assert (repairs, none) == (["substitute.ticket"], None)
    assert "[#42]" in raw


def test_an_import_without_substitutions_has_the_same_id_as_before(tmp_path):
    path = write(tmp_path)
    sections = [ImportSection(), ImportSection(substitute={}), ImportSection(substitute={"a": ("b", "c")})]
    ids = [import_files(tmp_path / f"{n}.duckdb", [path], one)[0].source for n, one in enumerate(sections)]
    assert ids[0] == ids[1] != ids[2]


def test_an_invalid_pattern_is_an_error_with_its_name(tmp_path):
    with pytest.raises(RecipeError, match=r"import\.substitute\.ticket is not a regular expression .*: \[") as caught:
        import_files(tmp_path / "s.duckdb", [write(tmp_path)], ImportSection(substitute={"ticket": ("[", "")}))
    assert "replace_all" not in str(caught.value.hint)


@pytest.mark.parametrize("replacement", ["$2", "$name", "${name}", "$1st", "${", "${}"])
def test_a_replacement_with_a_group_that_the_pattern_lacks_is_an_error(tmp_path, replacement):
    section = ImportSection(substitute={"ticket": (r"#(\d+)", f"ticket {replacement}")})
    with pytest.raises(RecipeError, match=r"import\.substitute\.ticket: the replacement refers to \$"):
        import_files(tmp_path / "s.duckdb", [write(tmp_path)], section)


@pytest.mark.parametrize(
    ("pattern", "replacement", "text"),
    [(r"\[#(\d+)\]", "${1}a", "42a"), (r"\[#(?<n>\d+)\]", "$n $1", "42 42"), (r"\[#42\]", "$$5 $0", "$5 [#42]")],
)
def test_a_replacement_may_contain_groups_and_dollar_signs(tmp_path, pattern, replacement, text):
    import_files(tmp_path / "s.duckdb", [write(tmp_path)], ImportSection(substitute={"ticket": (pattern, replacement)}))
    assert stored(tmp_path / "s.duckdb")[0][0][0] == ("human", f"It leaks. {text}")


@pytest.mark.parametrize("written", ['"a"', '["a"]', '["a", "b", "c"]', "5"])
def test_a_substitution_of_another_type_is_an_error_with_the_expected_form(tmp_path, curate, written):
    (tmp_path / "curate.toml").write_text(f"[import.substitute]\nticket = {written}\n")
    failed = curate("import", write(tmp_path))
    assert "import.substitute.ticket should be [pattern, replacement]" in " ".join(failed.stderr.split())


def test_the_command_of_exported_rejects_has_the_system_prompt(tmp_path, curate):
    path = write(tmp_path, [*ROWS, {"question": "Empty?", "answer": ""}])
    curate("import", path, "--system", "Answer as a mate.")
    ran = curate("rejects", "--export", "fix.jsonl")
    assert "--system 'Answer as a mate.'" in ran.stdout
