"""Samples, numbers of held-out conversations, strata and additional groups of a version."""

import itertools
import json
import random
from collections import Counter

import polars as pl
import pytest
from support.stores import add, add_verdict, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.versions.freeze import freeze
from schemas.errors import RecipeError, VersionError
from schemas.recipe import Recipe, check_recipe, load_recipe
from schemas.store import reading, writing

LANGUAGES = ("en", "de", "is")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "x.duckdb"


def dry_run(store, **options):
    with reading(store) as connection:
        return freeze(connection, "support", check_recipe({"freeze": options}, "the test"), dry_run=True)


def read_members(store, **options):
    return dry_run(store, **options).placement.members


def random_files(seed):
    """Files of conversations about 80 questions, some of them in several files, with languages and customers."""
    rng = random.Random(seed)
    files = []
    for number in range(4):
        talks = [chat(f"Question {rng.randrange(80)}?", f"Answer {rng.randrange(300)}.") for _ in range(60)]
        metadata = {"lang": rng.choice(LANGUAGES), "customer": rng.choice(["ada", "bob", "eve", ""])}
        files.append((f"{number}.csv", list(dict.fromkeys(talks)), metadata))
    return files


def write_files(store, files):
    for path, talks, metadata in files:
        add(store, talks, source=path, metadata=metadata)


OPTIONS = (
    {"held_out": 40},
    {"held_out": 0.2, "stratify": ["source"]},
    {"held_out": 30, "stratify": ["meta.lang", "turns"]},
    {"held_out": 0.3, "group": ["meta.customer"]},
    {"held_out": 25, "sample": 120},
    {"held_out": 0.1, "sample": 0.5, "stratify": ["file"], "salt": "s"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_members_do_not_depend_on_the_order_of_import_and_no_group_is_in_both_splits(tmp_path, seed, options):
    files = random_files(seed)
    shuffled = [(path, talks[::-1], metadata) for path, talks, metadata in files[::-1]]
    digests, placed = set(), []
    for name, order in (("a", files), ("b", shuffled)):
        write_files(tmp_path / name, order)
        result = dry_run(tmp_path / name, **options)
        digests.add(result.version.digest)
        placed.append(result.placement.members)
    assert len(digests) == 1
    members = placed[0]
    assert members.group_by("group").agg(pl.col("split").n_unique())["split"].to_list() == [1] * (
        members["group"].n_unique()
    )
    counts = result.version.counts
    assert sum(counts.values()) == members.height == len(set(members["conversation"]))
    wanted = result.placement.wanted
    if wanted is not None:
        smallest = members.filter(pl.col("split") == "train").group_by("group").len()["len"].min()
        assert 0 <= wanted - counts["held_out"] < smallest
    for stratum in result.placement.strata:
        assert 0 <= stratum["held_out"] <= stratum["conversations"]
    if result.placement.strata:
        totals = Counter()
        for stratum in result.placement.strata:
            totals.update(conversations=stratum["conversations"], held_out=stratum["held_out"])
        assert dict(totals) == {"conversations": members.height, "held_out": counts["held_out"]}


def test_a_number_of_conversations_is_held_out_exactly_if_groups_are_small(store):
    add(store, [*questions(100), *[chat("The same question?", f"Answer {n}.") for n in range(50)]])
    for number in (1, 7, 60, 99):
        assert dry_run(store, held_out=number).version.counts == {"train": 150 - number, "held_out": number}


def test_each_stratum_is_held_out_in_proportion(store):
    for path, size, start in (("a.csv", 100, 0), ("b.csv", 50, 100), ("c.csv", 10, 200)):
        add(store, questions(size, start), source=path)
    result = dry_run(store, held_out=0.1, stratify=["source"])
    assert {row["stratum"]: row["held_out"] for row in result.placement.strata} == {
        "source = a.csv": 10,
        "source = b.csv": 5,
        "source = c.csv": 1,
    }
    assert dry_run(store, held_out=3, stratify=["source"]).placement.unrepresented == ["source = c.csv"]


def test_an_edit_belongs_to_the_stratum_of_the_original(store):
    add(store, questions(10), source="a.csv")
    (before,) = add(store, [chat("Other?", "Bad.")], source="b.csv")
    (edited,) = add(store, [chat("Other, rewritten?", "Good.")], parent=before)
    add_verdict(store, before, "edit", by_whom="ada", edited_to=edited)
    strata = dry_run(store, held_out=1, stratify=["file"]).placement.strata
    assert [(row["stratum"], row["conversations"]) for row in strata] == [("file = a.csv", 10), ("file = b.csv", 1)]


def test_a_row_without_a_value_is_in_a_stratum_of_its_own_and_in_no_additional_group(store):
    add(store, questions(10), metadata={"customer": "ada"})
    add(store, questions(10, start=10), source="other.csv", metadata={"customer": " "})
    result = dry_run(store, held_out=2, stratify=["meta.customer"])
    assert {row["stratum"] for row in result.placement.strata} == {
        "meta.customer = ada",
        "meta.customer = (empty)",
    }
    assert dry_run(store, held_out=2, group=["meta.customer"]).groups == {"train": 9, "held_out": 2}


def test_a_customer_connects_all_conversations_of_all_imports(store):
    """The same row in two files, of two customers, connects both of them."""
    add(store, questions(10), metadata={"customer": "ada"})
    add(store, questions(10, start=9), source="other.csv", metadata={"customer": "bob"})
    assert sum(dry_run(store, group=["meta.customer"]).groups.values()) == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_sample_contains_the_smaller_one(store, seed):
    write_files(store, random_files(seed))
    samples = [set(read_members(store, sample=size)["conversation"]) for size in ("1%", 10, 50, "60%", 150, "100%")]
    assert [len(sample) for sample in samples[1:3]] == [10, 50]
    assert all(small <= large for small, large in itertools.pairwise(samples))
    assert samples[-1] == set(read_members(store)["conversation"])


def test_a_sample_keeps_the_side_of_each_conversation(store):
    add(store, questions(300))
    everything = dict(read_members(store, held_out=0.2).select("conversation", "split").iter_rows())
    part = dict(read_members(store, held_out=0.2, sample=100).select("conversation", "split").iter_rows())
    assert all(everything[one] == split for one, split in part.items())
    other = set(read_members(store, sample=100, salt="other")["conversation"])
    assert other != set(part)


def test_more_conversations_than_there_are_is_an_error_with_the_largest_number(store):
    add(store, questions(10))
    with pytest.raises(VersionError, match="only 10 conversations are kept") as sample:
        dry_run(store, sample=11)
    assert "--sample 10 or less" in sample.value.hint
    with pytest.raises(VersionError, match="10 conversations would be held out of 10"):
        dry_run(store, held_out=10)
    assert dry_run(store, held_out=9).version.counts == {"train": 1, "held_out": 9}


@pytest.mark.parametrize("key", ["stratify", "group"])
def test_an_unknown_column_is_an_error_with_the_nearest_name(store, key):
    add(store, questions(10), metadata={"customer": "ada"})
    with pytest.raises(RecipeError, match=rf"freeze.{key}: 'meta.custmer' reads .* did you mean customer\?"):
        dry_run(store, **{key: ["meta.custmer"]})
    with pytest.raises(RecipeError, match="quality, which is not computed for 10 conversations"):
        dry_run(store, **{key: ["quality"]})


@pytest.mark.parametrize(
    ("value", "read"), [(200, 200), ("200", 200), ("10%", 0.1), (0.1, 0.1), (0, 0.0), (1, 1), ("0.05", 0.05)]
)
def test_an_amount_is_a_share_or_a_number_of_conversations(value, read):
    recipe = check_recipe({"freeze": {"held_out": value}}, "the test")
    assert (recipe.freeze.held_out, type(recipe.freeze.held_out)) == (read, type(read))


@pytest.mark.parametrize("value", [1.0, "100%", -1, 1.5, "ten", True, "5%%", float("nan")])
def test_an_invalid_amount_is_an_error(value):
    with pytest.raises(RecipeError, match=r"freeze.held_out: .*(share must be less|neither a share)"):
        check_recipe({"freeze": {"held_out": value}}, "the test")


def test_keys_at_their_default_are_not_part_of_the_digest(store, tmp_path):
    (tmp_path / "curate.toml").write_text('[freeze]\nstratify = []\ngroup = []\nsalt = ""\n')
    assert load_recipe(tmp_path / "curate.toml").data_part() == Recipe().data_part()
    assert Recipe().data_part() == {"score": {}, "select": {"rules": {}}, "freeze": {"held_out": 0.05, "salt": ""}}
    add(store, questions(20))
    digests = {dry_run(store, **options).version.digest for options in ({}, {"sample": 20}, {"stratify": ["source"]})}
    assert len(digests) == 3


def test_the_command_freeze_takes_numbers_and_reports_what_groups_prevent(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add(store, [*questions(5), *[chat("The same question?", f"Answer {n}.") for n in range(50)]])
    run = CliRunner()
    arguments = ["freeze", "support", "--held-out", "9", "--store", str(store), "--dry-run"]
    output = run.invoke(app, arguments)
    assert "5 instead of 9 conversations held out: groups stay whole." in output.stdout
    result = json.loads(run.invoke(app, [*arguments, "--sample", "40", "--json"]).stdout)
    assert (result["kept"], result["conversations"], result["held_out_wanted"]) == (55, 40, 9)
    assert "A sample of 40 of 55 kept conversations." in run.invoke(app, [*arguments, "--sample", "40"]).stdout
    wrong = run.invoke(app, [*arguments, "--sample", "many"])
    assert wrong.exit_code == 1
    assert "--sample 'many' is neither a share" in str(wrong.exception or wrong.output)
    with writing(store) as connection:
        assert connection.sql("SELECT count(*) FROM versions").fetchall() == [(0,)]
