"""Selection: syntax and names of rules, precedence of verdicts, and the verdicts that are written."""

import json
import shutil
from pathlib import Path

import pytest
from support.stores import add, add_verdict, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.ingest.pipeline import import_files
from curate.scorers.runner import score_store
from curate.selection import KEPT_SQL, select_store
from schemas.errors import RecipeError, StoreError
from schemas.import_recipe import ImportSection
from schemas.recipe import Recipe, check_recipe
from schemas.rule import Expression
from schemas.store import reading, writing


@pytest.fixture
def connection(tmp_path):
    with writing(tmp_path / "x.duckdb") as connection:
        for name in "abc":
            connection.execute("INSERT INTO conversations (id, conversations) VALUES (?, [])", [name])
            connection.execute(
                "INSERT INTO origins (source, row, conversation, duplicate) VALUES ('s', 1, ?, false)", [name]
            )
        yield connection


def insert_edit(connection, name, parent):
    connection.execute("INSERT INTO conversations (id, conversations, parent) VALUES (?, [], ?)", [name, parent])


def insert_verdict(connection, conversation, verdict, by_whom="rule", edited_to=None):
    connection.execute(
        """INSERT INTO verdicts (conversation, verdict, reason, by_whom, edited_to, selection)
           VALUES (?, ?, 'because', ?, ?, ?)""",
        [conversation, verdict, by_whom, edited_to, "s" if by_whom == "rule" else None],
    )


def kept(connection):
    return "".join(sorted(name for (name,) in connection.sql(KEPT_SQL).fetchall()))


def test_without_any_selection_everything_is_kept(connection):
    assert kept(connection) == "abc"


def test_conversations_imported_after_the_latest_selection_are_not_kept(connection):
    insert_verdict(connection, "a", "keep")
    insert_verdict(connection, "b", "drop")
    assert kept(connection) == "a"


def test_a_later_rule_verdict_replaces_an_earlier_one(connection):
    for name in "abc":
        insert_verdict(connection, name, "drop")
    insert_verdict(connection, "b", "keep")
    assert kept(connection) == "b"


def test_a_human_verdict_overrides_a_later_rule(connection):
    insert_verdict(connection, "a", "keep", "ann")
    insert_verdict(connection, "b", "drop", "ann")
    for name in "abc":
        insert_verdict(connection, name, "drop" if name == "a" else "keep")
    assert kept(connection) == "ac"


def test_an_edit_replaces_the_original(connection):
    insert_edit(connection, "A", "a")
    insert_verdict(connection, "a", "edit", "ann", edited_to="A")
    for name in "abcA":
        insert_verdict(connection, name, "drop")
    assert kept(connection) == "A"


def test_a_withdrawn_edit_is_not_kept(connection):
    insert_edit(connection, "A", "a")
    insert_verdict(connection, "a", "edit", "ann", edited_to="A")
    insert_verdict(connection, "a", "keep", "ann")
    assert kept(connection) == "abc"


def test_an_edit_back_to_the_original_keeps_the_original(connection):
    insert_edit(connection, "A", "a")
    insert_verdict(connection, "a", "edit", "ann", edited_to="A")
    insert_verdict(connection, "A", "edit", "ann", edited_to="a")
    assert kept(connection) == "abc"


# --- rules ---

RATED = [chat("Where is it?", "On its way to you."), chat("Why so late?", "A storm held the ship back for days.")]


@pytest.fixture(scope="module")
def scored_store(tmp_path_factory):
    """Three scored conversations: two of ann.csv, rated 4.5 and not a number, one of bob.csv, not rated."""
    path = tmp_path_factory.mktemp("selection") / "x.duckdb"
    add(path, RATED[:1], source="in/ann.csv", metadata={"rating": "4.5", "the topic": "it's late"})
    add(path, RATED[1:], source="in/ann2.csv", metadata={"rating": "none", "the topic": " "})
    add(path, [chat("Do it", "I'm sorry, but I can't help with that.", tools="[]")], source="in/bob.csv")
    score_store(path, Recipe())
    return path


@pytest.fixture
def store(scored_store, tmp_path):
    return Path(shutil.copy(scored_store, tmp_path / "x.duckdb"))


def rules(**written):
    return check_recipe({"select": {"rules": written}}, "the test")


def kept_questions(store, rule):
    """The first words of the questions of the kept conversations."""
    selection = select_store(store, rules(rule=rule))
    with reading(store) as connection:
        ids = [id_ for (id_,) in connection.sql(KEPT_SQL).fetchall()]
        rows = connection.execute(
            "SELECT conversations[1].value FROM conversations WHERE id IN (SELECT unnest(?))", [ids]
        )
        words = sorted(text.split()[0] for (text,) in rows.fetchall())
    assert len(words) == selection.kept
    return words


def verdicts(store):
    with reading(store) as connection:
        return connection.sql(
            "SELECT conversation, verdict, reason, by_whom, selection FROM verdicts ORDER BY rowid"
        ).fetchall()


@pytest.mark.parametrize(
    ("rule", "questions"),
    [
        ("not refusal", ["Where", "Why"]),
        ("quality between 0.4 and 0.6", ["Do"]),
        ("language in ('en', 'de') and answer_words > 7", ["Do", "Why"]),
        ("meta.rating >= 4", ["Where"]),
        ("meta.rating = 'none'", ["Why"]),
        ("rating >= 4 or rating is null", ["Do", "Where"]),
        ("meta.\"the topic\" like '%late'", ["Where"]),
        ("file = 'bob.csv'", ["Do"]),
        ("source like 'in/ann%' and turns = 2", ["Where", "Why"]),
        ("has_tools", ["Do"]),
        ("prompt ilike 'WHY%' or contains(answer, 'sorry')", ["Do", "Why"]),
        ("case when refusal then words > 100 else true end", ["Where", "Why"]),
        ("try_cast(meta.rating as double) is null -- a comment ends with its line", ["Do", "Why"]),
        ("coalesce(meta.rating, '5') <> 'none'", ["Do", "Where"]),
        ('meta."the topic" is null', ["Do", "Why"]),
        ("true", ["Do", "Where", "Why"]),
    ],
)
def test_a_rule_reads_scores_facts_and_metadata(store, rule, questions):
    assert kept_questions(store, rule) == questions


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("", "the rule is empty"),
        ("quality >", "is not an SQL expression"),
        ("quality > 0.5; DROP TABLE verdicts", "is not an SQL expression"),
        ("true) UNION (SELECT true", "is not an SQL expression"),
        ("true) ORDER BY (1", "is not an SQL expression"),
        ("true) LIMIT (0", "is not an SQL expression"),
        ("words > 1) or (1 = 1", "is not an SQL expression"),
        ("true LIMIT 0", "is not an SQL expression|more than one expression"),
        ("id IN (SELECT conversation FROM verdicts)", "a subquery"),
        ("EXISTS (FROM verdicts)", "a subquery"),
        ("count(*) > 1", "calls count_star"),
        ("row_number() OVER () = 1", "a window function"),
        ("getenv('HOME') = 'x'", "calls getenv"),
        ("read_text('x') = 'y'", "calls read_text"),
        ("main.lower(id) = 'x'", "calls lower"),
        ("lowr(id) = 'x'", "did you mean lower"),
        ("list_transform([1], lambda x: x) = [1]", "calls"),
        ("words = $1", "more than one expression|a parameter"),
        ("qualty > 0.5", "reads qualty, which is unknown, did you mean quality"),
        ("meta.ratin > 3", "did you mean rating"),
        ("scores.quality > 1", "reads scores.quality, which is unknown"),
        ("words + 1", "is not a condition, its type is BIGINT"),
        ("refusal > 'often'", "often"),
        ("meta.rating::integer > 3", "cannot be applied"),
        ("meta.rating > '4'", "compares it with the text '4'"),
        ("' -4.5e1' <= rating", "compares it with the text"),
        ("rating between '1' and '3' or words > 3", "compares it with the text '1'"),
    ],
)
def test_anything_but_a_condition_over_known_names_is_an_error(store, rule, message):
    before = verdicts(store)
    with pytest.raises(RecipeError, match=message) as error:
        select_store(store, rules(bad=rule))
    assert error.value.hint
    assert verdicts(store) == before


def test_an_error_at_run_time_names_the_rule(store):
    for rule, hint in (("file = 1", "curate select --where"), ("meta.rating::integer > 3", "try_cast")):
        with pytest.raises(RecipeError, match=r"select\.rules\.bad: .* cannot be applied") as error:
            select_store(store, rules(fine="turns > 0", bad=rule, later="turns > 1"))
        assert hint in error.value.hint


def test_an_empty_rule_is_an_error(store):
    with pytest.raises(RecipeError, match="the rule is empty"):
        select_store(store, rules(), where="")


@pytest.mark.parametrize("links", [130, 300, 600, 900])
@pytest.mark.parametrize(("chain", "end"), [("turns + ", "turns > 1"), ("not ", "turns > 1")])
def test_a_rule_that_is_nested_too_deep_is_an_error(chain, end, links):
    with pytest.raises(RecipeError, match=r"rule deep: .* is nested too deep") as error:
        Expression.read(chain * links + end, "rule deep")
    assert len(error.value.what) < 400


def test_the_deepest_accepted_rule_can_be_applied():
    for links in range(70, 130):
        text = "turns + " * links + "turns > 1"
        try:
            rule = Expression.read(text, "rule deep")
        except RecipeError:
            break
        assert rule.names == (("turns",),)
        assert rule.sql(lambda parts, _: parts[0]).count("turns") == links + 1
    assert 80 < links < 129


def test_names_are_found_anywhere_in_a_rule():
    rule = Expression.read("case when a then b in (c, 1) else not (d + e between f and 2) end", "the test")
    assert [name for (name,) in rule.names] == ["a", "b", "c", "d", "e", "f"]


def test_a_rule_on_missing_scores_is_an_error(store):
    add(store, questions(2))
    with pytest.raises(RecipeError, match="reads quality, which is not computed for 2 conversations") as error:
        select_store(store, rules(good="quality > 0.5"))
    assert error.value.hint == "curate score"


def test_missing_scores_and_near_duplicates_are_named_together(store):
    add(store, questions(2))
    recipe = rules(new="not near_duplicate", good="quality > 0.5", short="words < 9")
    with pytest.raises(RecipeError) as error:
        select_store(store, recipe)
    assert [line.split(", which")[0].rpartition(" ")[2] for line in error.value.what.splitlines()] == [
        "near_duplicate",
        "quality",
    ]
    assert error.value.hint == "curate score && curate dedup"


def test_a_rule_reads_the_score_with_the_parameters_of_the_recipe(store):
    recipe = check_recipe(
        {"score": {"word_repetition": {"n": 1}}, "select": {"rules": {"r": "word_repetition = 0"}}}, "the test"
    )
    with pytest.raises(RecipeError, match="word_repetition__"):
        select_store(store, recipe)
    score_store(store, recipe)
    assert select_store(store, recipe).rules[0].rule == "word_repetition = 0"


def test_a_conversation_is_counted_at_the_first_rule_it_fails(store):
    selection = select_store(store, rules(polite="not refusal", rated="meta.rating > 3"), "turns = 2")
    steps = [(step.name, step.before, step.dropped, step.unknown, step.after) for step in selection.rules]
    assert steps == [("polite", 3, 1, 0, 2), ("rated", 2, 1, 1, 1), ("--where", 1, 0, 0, 1)]
    assert selection.rules[0].examples[0]["prompt"] == "Do it"
    assert (selection.conversations, selection.kept_by_rules, selection.kept) == (3, 1, 1)


def test_column_names_in_rules_are_case_sensitive_and_do_not_clash(tmp_path):
    store = tmp_path / "columns.duckdb"
    add(store, [chat("Hi", "Hello")], metadata={"conversation": "C1", "Rating": "5", "rating": "1"})
    for rule in (
        *("conversation = 'C1'", "meta.conversation = 'C1' and id <> 'C1'", "meta.Rating = '5' and meta.rating = '1'"),
        *("meta.Rating > 4 and meta.rating < 2", "Rating = '5' and rating = '1'"),
    ):
        assert select_store(store, rules(one=rule), dry_run=True).kept == 1, rule
    both = rules(large="meta.Rating > 4", small="meta.rating < 2")
    assert select_store(store, both, dry_run=True).kept == 1


def test_the_reason_of_a_verdict_is_the_text_of_the_rule(store):
    selection = select_store(store, rules(polite="not refusal", rated="meta.rating > 3"))
    reasons = sorted((verdict, reason, by_whom, sel) for _, verdict, reason, by_whom, sel in verdicts(store))
    assert reasons == [
        ("drop", "polite: not refusal", "rule", selection.selection),
        ("drop", "rated: meta.rating > 3 (unknown: NULL)", "rule", selection.selection),
        ("keep", "every rule holds", "rule", selection.selection),
    ]


def test_repeating_a_selection_adds_no_verdicts(store):
    assert select_store(store, rules(polite="not refusal")).verdicts == 3
    assert select_store(store, rules(polite="not refusal")).verdicts == 0
    assert len(verdicts(store)) == 3


def test_only_changed_verdicts_are_written_when_rules_change(store):
    for rule, new, kept in (("not refusal", 3, 2), ("true", 1, 3), ("not refusal", 1, 2)):
        selection = select_store(store, rules(one=rule))
        assert (selection.verdicts, selection.kept) == (new, kept)


def test_another_reason_for_the_same_verdict_is_not_a_changed_verdict(store):
    first = select_store(store, rules(one="not refusal"))
    assert (first.verdicts, first.reasons) == (3, 0)
    renamed = select_store(store, rules(polite="not refusal"))
    assert (renamed.verdicts, renamed.reasons) == (0, 1)
    assert [reason for _, verdict, reason, _, _ in verdicts(store)[3:]] == ["polite: not refusal"]
    changed = select_store(store, rules(polite="true"))
    assert (changed.verdicts, changed.reasons) == (1, 0)


@pytest.mark.parametrize("rule", ["1 / 0 > 1", "0 / (turns - turns) > 1", "words % (turns - turns) < 9"])
def test_a_division_by_zero_is_unknown_and_drops(store, rule):
    selection = select_store(store, rules(one=rule))
    assert [(step.dropped, step.unknown, step.after) for step in selection.rules] == [(3, 3, 0)]
    assert {reason for _, _, reason, _, _ in verdicts(store)} == {f"one: {rule} (unknown: NULL)"}


def test_without_rules_everything_is_kept(store):
    select_store(store, rules(none="false"))
    selection = select_store(store, Recipe())
    assert (selection.kept, selection.rules) == (3, [])
    assert verdicts(store)[-1][2] == "no rules"


def test_only_new_conversations_get_verdicts_in_a_repeated_selection(store):
    select_store(store, rules(any="turns > 0"))
    add(store, questions(4))
    assert select_store(store, rules(any="turns > 0")).verdicts == 4


def test_a_dry_run_counts_the_same_and_writes_nothing(store):
    dry = select_store(store, rules(polite="not refusal"), dry_run=True)
    assert verdicts(store) == []
    wet = select_store(store, rules(polite="not refusal"))
    assert (dry.rules, dry.kept, dry.verdicts, wet.verdicts) == (wet.rules, wet.kept, 0, 3)


def test_human_verdicts_override_rules_in_the_counts(store):
    with reading(store) as connection:
        ids = {
            text: id_ for id_, text in connection.sql("SELECT id, conversations[1].value FROM conversations").fetchall()
        }
    add_verdict(store, ids["Do it"], "keep", by_whom="ann")
    add_verdict(store, ids["Where is it?"], "drop", by_whom="ann")
    (edited,) = add(store, [chat("Why so late?", "A storm.")], parent=ids["Why so late?"])
    add_verdict(store, ids["Why so late?"], "edit", by_whom="ann", edited_to=edited)
    for dry_run in (True, False):
        selection = select_store(store, rules(polite="not refusal"), dry_run=dry_run)
        assert selection.kept_by_rules == 2
        assert (selection.kept_by_humans, selection.dropped_by_humans, selection.kept) == (2, 2, 2)
    with reading(store) as connection:
        assert {id_ for (id_,) in connection.sql(KEPT_SQL).fetchall()} == {ids["Do it"], edited}


def test_a_missing_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match=r"The store .* does not exist"):
        select_store(tmp_path / "none.duckdb", Recipe())


def test_the_command_prints_counts_examples_and_the_next_command(store):
    command = ["select", "--store", str(store), "--where", "not refusal and meta.rating > 3"]
    result = CliRunner().invoke(app, [*command, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "not refusal and meta.rating > 3" in result.stdout
    assert "Do it" in result.stdout
    assert "The next freeze includes 1" in result.stdout
    assert "NULL" in result.stderr
    assert "Nothing was written" in result.stderr
    report = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (report["kept"], report["verdicts"]) == (1, 3)


def test_the_command_reports_that_there_are_no_rules(store):
    shown = CliRunner().invoke(app, ["select", "--set", "select.rules={}", "--store", str(store)])
    assert shown.exit_code == 0, shown.output
    assert "There are no rules" in shown.stderr
    assert shown.stdout.startswith("Rules keep 3 of 3")


def test_a_column_from_a_later_file_applies_to_rows_imported_before(tmp_path):
    """Labels or ratings of imported rows are often in a second file, whose rows are duplicates."""
    (tmp_path / "a.csv").write_text("question,answer,stars\nWhy?,So.,\nWho?,Me.,\n")
    (tmp_path / "b.csv").write_text("question,answer,stars\nWhy?,So.,5\nWho?,Me.,2\n")
    kept = set()
    for order in (["a.csv", "b.csv"], ["b.csv", "a.csv"]):
        store = tmp_path / f"{order[0]}.duckdb"
        import_files(store, [str(tmp_path / name) for name in order], ImportSection())
        kept.add(select_store(store, Recipe(), "meta.stars >= 4").kept)
    assert kept == {1}


def test_the_first_file_with_a_value_in_a_column_is_used(tmp_path):
    for name, stars in (("a.csv", 5), ("b.csv", 1)):
        (tmp_path / name).write_text(f"question,answer,stars\nWhy?,So.,{stars}\n")
    store = tmp_path / "curate.duckdb"
    import_files(store, [str(tmp_path / name) for name in ("a.csv", "b.csv")], ImportSection())
    assert select_store(store, Recipe(), "meta.stars = 5").kept == 1


def test_a_column_that_clashes_with_a_built_in_name_is_reported(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,source\nWhy?,So.,web\n")
    store = tmp_path / "curate.duckdb"
    import_files(store, [str(tmp_path / "a.csv")], ImportSection())
    assert select_store(store, Recipe(), "meta.source = 'web'").shadowed == []
    selection = select_store(store, Recipe(), "source = 'web'")
    assert (selection.kept, selection.shadowed) == (0, ["source"])
    shown = CliRunner().invoke(app, ["select", "--store", str(store), "--where", "source = 'web'", "--dry-run"])
    assert "write meta.source for the source column" in " ".join(shown.stderr.split())
    assert "The rule --where keeps none of 1 conversation" in " ".join(shown.stderr.split())
