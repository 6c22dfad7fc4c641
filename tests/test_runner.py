"""Scoring a store: only missing values are computed, in columns named after scorer and parameters."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

import polars as pl
import pytest
from support.stores import add, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.scorers import REVISIONS, SCORERS, plan, runner
from curate.scorers.plan import describe_scorers, plan_scorers
from curate.scorers.quality import quality
from curate.scorers.runner import score_frame, score_store
from curate.scorers.summary import explain_quality
from schemas.errors import RecipeError, StoreError, VersionError
from schemas.recipe import Recipe, check_recipe
from schemas.store import reading, writing

ALL = Recipe()


def recipe(**sections):
    return check_recipe({"score": sections}, "the test")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "x.duckdb"


def scores(store, columns="*"):
    with reading(store) as connection:
        return connection.sql(f"SELECT {columns} FROM scores ORDER BY conversation").pl()


def computed_counts(report):
    return {column: count for column, count in report.computed.items() if count}


# --- missing values ---


def test_every_scorer_fills_a_column(store):
    ids = add(store, questions(3))
    report = score_store(store, ALL)
    assert report.conversations == 3
    assert computed_counts(report) == dict.fromkeys(SCORERS, 3)
    frame = scores(store)
    assert frame.columns == ["conversation", *SCORERS]
    assert frame["conversation"].to_list() == sorted(ids)
    assert frame.null_count().sum_horizontal().item() == 0


def test_a_second_run_computes_nothing(store):
    add(store, questions(3))
    score_store(store, ALL)
    before = scores(store)
    assert computed_counts(score_store(store, ALL)) == {}
    assert scores(store).equals(before)


def test_only_new_conversations_are_computed(store):
    add(store, questions(3))
    score_store(store, ALL)
    add(store, questions(5, start=100), source="more.csv")
    assert computed_counts(score_store(store, ALL)) == dict.fromkeys(SCORERS, 5)
    assert scores(store).height == 8


def test_values_do_not_depend_on_when_they_were_computed(tmp_path):
    step_by_step, at_once = tmp_path / "a.duckdb", tmp_path / "b.duckdb"
    for start in (0, 10):
        add(step_by_step, questions(10, start), source=f"{start}.csv")
        score_store(step_by_step, ALL, ["words"])
        score_store(step_by_step, ALL)
    add(at_once, questions(20))
    score_store(at_once, ALL)
    columns = ", ".join(["conversation", *SCORERS])
    assert scores(step_by_step, columns).equals(scores(at_once, columns))


def test_a_missing_cell_is_computed_into_its_row(store):
    first, *_ = add(store, questions(3))
    score_store(store, ALL)
    before = scores(store)
    with writing(store) as connection:
        connection.execute("UPDATE scores SET echo = NULL, words = NULL WHERE conversation = ?", [first])
    assert computed_counts(score_store(store, ALL)) == {"echo": 1, "words": 1}
    assert scores(store).equals(before)


def test_only_runs_a_scorer_and_its_dependencies(store):
    add(store, questions(2))
    report = score_store(
        store, recipe(quality={"penalties": {"words": {"weight": 1, "fine": 9, "worst": 5}}}), ["quality"]
    )
    assert next(iter(computed_counts(report))) == "words"
    assert scores(store).width == 3


def test_progress_is_reported_after_each_slice(store, monkeypatch):
    monkeypatch.setattr(runner, "SLICE_ROWS", 4)
    monkeypatch.setattr(runner, "PART_ROWS", 3)
    add(store, questions(10))
    calls = []
    score_store(store, ALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]
    assert scores(store).height == 10


def test_a_frame_is_scored_without_a_store():
    frame = pl.DataFrame({"id": ["a"], "conversations": [[t.as_row() for t in chat("Hi", "Hello").turns]]})
    frame = frame.with_columns(tools=pl.lit(None, pl.String))
    assert score_frame(frame, plan_scorers({}, ["words", "turns"])).rows() == [("a", 2, 2)]


# --- parameters and columns ---


def test_other_parameters_fill_a_second_column(store):
    add(store, questions(2))
    score_store(store, ALL)
    report = score_store(store, recipe(ngram_repetition={"n": 4}))
    one, two = computed_counts(report)
    assert one.startswith("ngram_repetition__")
    assert two.startswith("quality__")  # it depends on the other column
    assert {"ngram_repetition", one, "quality", two} < set(scores(store).columns)
    assert computed_counts(score_store(store, ALL)) == {}


@pytest.mark.parametrize("scored_before", [[ALL], []], ids=["with the default column", "without it"])
def test_quality_reads_the_column_of_the_recipes_parameters(store, tmp_path, scored_before):
    talks = [chat("Hi", "one two three four five six seven one two three four five six seven"), *questions(2)]
    longer = {"ngram_repetition": {"n": 12}}
    settings = recipe(**longer, quality={"penalties": {"ngram_repetition": {"weight": 1, "fine": 0, "worst": 1}}})
    for path in (store, tmp_path / "fresh.duckdb"):
        add(path, talks)
    for before in (*scored_before, recipe(**longer)):
        score_store(store, before)
    score_store(store, settings)
    score_store(tmp_path / "fresh.duckdb", settings)
    column = plan_scorers(settings.score, ["quality"])[-1].column
    assert scores(store, f'"{column}"').rows() == scores(tmp_path / "fresh.duckdb", f'"{column}"').rows()


def test_explicit_default_parameters_fill_the_default_column():
    assert plan_scorers({"ngram_repetition": {"n": 5}}, ["ngram_repetition"])[0].column == "ngram_repetition"


def test_the_table_scorers_has_the_parameters_of_each_column(store):
    add(store, questions(1))
    score_store(store, recipe(word_repetition={"n": 1}), ["word_repetition"])
    with reading(store) as connection:
        row = connection.sql('SELECT "column", scorer, parameters, digest FROM scorers').fetchall()[0]
    assert row[0] == f"word_repetition__{row[3][:8]}"
    assert row[1:3] == ("word_repetition", '{"n":1}')


def test_a_changed_formula_is_computed_again(store, monkeypatch):
    add(store, questions(2))
    score_store(store, ALL)
    monkeypatch.setitem(REVISIONS, "echo", 2)
    assert computed_counts(score_store(store, ALL)) == {"echo": 2, "quality": 2}


def test_again_recomputes_existing_values(store):
    add(store, questions(2))
    score_store(store, ALL)
    assert computed_counts(score_store(store, ALL, ["words"], again=True)) == {"words": 2}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"wrds": {}}, "Unknown scorer wrds, did you mean words?"),
        ({"ngram_repetition": {"m": 3}}, "score.ngram_repetition.m is not a parameter of ngram_repetition."),
        ({"language": {"confidenc": 1}}, "did you mean confidence?"),
        ({"ngram_repetition": {"n": "five"}}, "score.ngram_repetition.n: Input should be a valid integer"),
        ({"ngram_repetition": {"n": 0}}, "score.ngram_repetition.n: Input should be greater than or equal to 1"),
        ({"ngram_repetition": {"n": 10**21}}, "score.ngram_repetition.n: Input should be less than or equal to 1000"),
        ({"echo": {"n": 1001}}, "score.echo.n: Input should be less than or equal to 1000"),
        ({"refusal": {"within": 10**21}}, "score.refusal.within: Input should be less than or equal to 1000000"),
        ({"language": {"characters": 1001}}, "score.language.characters: Input should be less than or equal to 1000"),
        ({"quality": {"penalties": {"words": {"wieght": 1}}}}, "score.quality.penalties.words.wieght"),
        ({"quality": {"penalties": {"wrds": {"weight": 1}}}}, "quality depends on wrds, which is not a scorer"),
        ({"quality": {"penalties": {"language": {"weight": 1}}}}, "language"),
        ({"quality": {"penalties": {"quality": {"weight": 1}}}}, "Circular scorer dependency: quality → quality"),
    ],
)
def test_an_invalid_recipe_is_an_error_before_anything_is_computed(store, sections, message):
    add(store, questions(1))
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        score_store(store, recipe(**sections))
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM scores").fetchall() == [(0,)]


def test_a_store_without_conversations_is_an_error_and_is_not_created(store):
    with pytest.raises(StoreError, match=r"The store .* does not exist"):
        score_store(store, ALL)
    assert not store.exists()
    with writing(store):
        pass
    with pytest.raises(StoreError, match="There are no conversations"):
        score_store(store, ALL)


# --- scorers of other packages ---


def shouting(*, least: int = 2) -> pl.Expr:
    """Exclamation marks in the answer."""
    return pl.col("answer").str.count_matches("!", literal=True) >= least


def crooked(frame: pl.DataFrame) -> pl.Series:
    """One value too many."""
    return pl.Series([1.0] * (frame.height + 1))


@pytest.fixture
def plugins(monkeypatch):
    points = {
        name: EntryPoint(name, f"{__name__}:{name}", "curate.scorers") for name in ("shouting", "crooked", "missing")
    }
    monkeypatch.setattr(plan, "_plugins", lambda: points)


@pytest.mark.usefixtures("plugins")
def test_a_scorer_of_another_package_runs_if_the_recipe_names_it(store):
    add(store, [chat("Hi", "Hello!!"), chat("Hi", "Hello!")])
    assert "shouting" not in score_store(store, ALL).computed
    score_store(store, recipe(shouting={}))
    assert sorted(scores(store)["shouting"]) == [False, True]


@pytest.mark.usefixtures("plugins")
def test_a_scorer_with_too_many_values_or_a_failing_import_is_an_error(store):
    add(store, questions(2))
    with pytest.raises(RecipeError, match="crooked returned 3 values for 2 rows"):
        score_store(store, ALL, ["crooked"])
    with pytest.raises(RecipeError, match=r"missing .* cannot be imported"):
        score_store(store, ALL, ["missing"])


# --- reports ---


def test_the_list_has_default_parameters_and_the_first_sentence_of_the_docstring():
    listed = {row["scorer"]: row for row in describe_scorers()}
    assert listed["ngram_repetition"]["parameters"] == "n = 5"
    assert listed["turns"]["description"] == "Number of turns of all roles."


def test_a_summary_has_the_extreme_values(store):
    ids = add(store, [chat("a", "b " * n) for n in (1, 2, 50)])
    summaries = {row["column"]: row for row in score_store(store, ALL).summaries}
    assert (summaries["answer_words"]["min"], summaries["answer_words"]["median"]) == (1, 2)
    assert summaries["answer_words"]["highest"][0] == ids[2]
    assert summaries["language"]["values"][0]["conversations"] == 3


def test_the_penalties_of_an_explanation_add_up_to_the_quality(store):
    (conversation,) = add(store, [chat("Do it", "I'm sorry, but I can't help with that and the")])
    score_store(store, ALL)
    explanation = explain_quality(store, ALL, conversation[:8])
    penalties = {row["score"]: row["penalty"] for row in explanation["penalties"] if row["penalty"]}
    assert penalties == {"refusal": 0.5, "unfinished": 0.3}
    assert explanation["scores"]["quality"] == pytest.approx(1 - sum(penalties.values()))


def test_an_explanation_of_an_unknown_or_ambiguous_id_is_an_error(store):
    add(store, questions(40))
    score_store(store, ALL)
    with pytest.raises(VersionError, match="No scored conversation has an id that begins with zz"):
        explain_quality(store, ALL, "zz")
    with reading(store) as connection:
        ids = [id_ for (id_,) in connection.sql("SELECT id FROM conversations").fetchall()]
    shared = next(digit for digit in "0123456789abcdef" if sum(id_[0] == digit for id_ in ids) > 1)  # 40 ids, 16 digits
    with pytest.raises(VersionError, match="Several conversation ids"):
        explain_quality(store, ALL, shared)
    with pytest.raises(VersionError, match="The id is empty"):
        explain_quality(store, ALL, "")


def test_the_command_prints_every_score_and_the_next_command(store):
    add(store, questions(3))
    result = CliRunner().invoke(app, ["score", "--store", str(store)])
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in SCORERS)
    assert "curate select" in result.stderr


# --- interruption ---


def test_the_same_command_finishes_after_a_kill_at_any_moment(tmp_path):
    store, undisturbed = tmp_path / "killed.duckdb", tmp_path / "undisturbed.duckdb"
    for path in (store, undisturbed):
        add(path, questions(3000))
    score_store(undisturbed, ALL)
    command = [sys.executable, "-P", "-c", "from curate.cli.app import main; main()", "score", "--store", str(store)]
    for delay in (0.4, 0.8, 1.1, 1.4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with reading(store) as connection:
            assert connection.sql("SELECT count(*) FROM scores").fetchall()[0][0] in (0, 3000)
    score_store(store, ALL)
    assert scores(store).equals(scores(undisturbed))


def test_quality_reads_only_scores():
    needs = plan_scorers({}, ["quality"])[-1].needs
    assert set(needs) == set(quality().meta.root_names())
