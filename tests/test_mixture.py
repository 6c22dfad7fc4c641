"""`[mix]`: how often an epoch uses each conversation, stored with the version, in its digest and in its bundles."""

import json
import random

import polars as pl
import pytest
from support.stores import add, add_verdict, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.selection import select_store
from curate.status import read_status
from curate.versions.bundle import export_version
from curate.versions.diff import diff_versions
from curate.versions.freeze import freeze
from curate.versions.restore import read_bundle, restore
from schemas import store as stores
from schemas.errors import RecipeError, VersionError
from schemas.migrations import MIGRATIONS, epochs_of_members
from schemas.recipe import check_recipe
from schemas.store import reading, writing
from schemas.version import find_version, read_members

IN_A, IN_B, IN_C = ({"where": f"source = '{name}.csv'"} for name in "abc")


@pytest.fixture
def store(tmp_path):
    """100 conversations in a.csv, 30 in b.csv and 30 in c.csv."""
    path = tmp_path / "x.duckdb"
    for name, size, start in (("a", 100, 0), ("b", 30, 100), ("c", 30, 200)):
        add(path, questions(size, start), source=f"{name}.csv")
    return path


def recipe(mix, held_out=0, **keys):
    return check_recipe({"freeze": {"held_out": held_out, **keys}, "mix": mix}, "the test")


def dry_run(store, mix, **keys):
    with reading(store) as connection:
        return freeze(connection, "support", recipe(mix, **keys), dry_run=True)


def freeze_store(store, mix, **keys):
    with writing(store) as connection:
        return freeze(connection, "support", recipe(mix, **keys)).version


def freeze_and_find_member(store, mix, keys):
    version = freeze_store(store, mix, **keys)
    with reading(store) as connection:
        return read_members(connection, version)["id"][0]


def used(store, mix, **keys):
    return {part.part: part.used for part in dry_run(store, mix, **keys).placement.mix}


@pytest.mark.parametrize(
    ("mix", "uses"),
    [
        ({"b": IN_B | {"epochs": 3}}, {"b": 90, "(others)": 130}),
        ({"b": IN_B | {"epochs": 2.5}}, {"b": 75, "(others)": 130}),
        ({"b": IN_B | {"epochs": 0.5}}, {"b": 15, "(others)": 130}),
        ({"b": IN_B | {"count": 20}}, {"b": 20, "(others)": 130}),
        ({"b": IN_B | {"share": 0.5}}, {"b": 30, "(others)": 30}),
        ({"b": IN_B | {"share": "10%"}}, {"b": 14, "(others)": 130}),
        ({"a": IN_A | {"share": 0.6}, "b": IN_B | {"share": 0.1}}, {"a": 60, "b": 10, "(others)": 30}),
        ({"a": IN_A | {"share": 0.5}, "b": IN_B | {"epochs": 2}}, {"a": 90, "b": 60, "(others)": 30}),
        ({"a": IN_A | {"share": 0.7}, "b": {"where": "file <> 'a.csv'", "share": 0.3}}, {"a": 100, "b": 43}),
    ],
    ids=str,
)
def test_an_epoch_has_the_shares_counts_and_repeats_of_the_recipe(store, mix, uses):
    result = dry_run(store, mix)
    assert {part.part: part.used for part in result.placement.mix} == uses
    assert result.placement.members["per_epoch"].sum() == sum(uses.values())
    assert result.placement.members["per_epoch"].min() == 1
    assert result.version.counts["train"] == result.placement.members.height


def test_repeats_are_spread_evenly_and_held_out_conversations_are_used_once(store):
    members = dry_run(store, {"b": IN_B | {"epochs": 2.5}}, held_out=40).placement.members
    held_out = members.filter(pl.col("split") == "held_out")
    assert (held_out.height, held_out["per_epoch"].unique().to_list()) == (40, [1])
    repeated = members.filter(pl.col("per_epoch") > 1)["per_epoch"]
    assert set(repeated) == {2, 3}


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"b": IN_B | {"count": 31}}, r"count is 31, but only 30 .*epochs = 1.03 repeats them"),
        ({"b": IN_B | {"share": 1.0}}, "add up to 1, but 130 train conversations are in no part"),
        ({"b": IN_B | {"share": 0.6}, "a": IN_A | {"epochs": 1}}, "needs 150 conversations, but only 30 .*is 0.23;"),
        ({"b": IN_B | {"share": 1.0}, "a": IN_A | {"count": 5}}, "which leaves nothing for a"),
        (
            {"b": {"where": "turns > 1", "epochs": 2}, "a": IN_A | {"count": 5}},
            "100 train .* of several parts.* b and a",
        ),
        ({"b": {"where": "source = 'z.csv'", "epochs": 2}}, "mix.b: no train conversation meets"),
        ({"b": {"where": "sorce = 'b.csv'", "epochs": 2}}, r"mix.b.where: .* did you mean source\?"),
        ({"b": {"where": "source", "epochs": 2}}, "is not a condition, its type is VARCHAR"),
        ({"b": {"where": "turns > 1", "share": 0.5}}, "the shares add up to 0.5, and no train conversation"),
        (
            {"b": IN_B | {"share": 0.7}, "a": IN_A | {"share": 0.7}},
            r"add up to 1.4, more than 1: 0.7 \(b\) \+ 0.7 \(a\)",
        ),
        ({"b": IN_B | {"share": 0.7, "epochs": 2}}, "give one of share, count and epochs, not share and epochs"),
        ({"b": IN_B | {"epochs": 1e18}}, "mix.b.epochs: .*1000"),
        ({"b": IN_B | {"share": 0.0001}}, "mix.b: a share of 0.0001 of an epoch with 130 .*count = 1"),
        ({"b": IN_B}, "give one of share, count and epochs, not none"),
        ({"b": IN_B | {"share": "many"}}, "mix.b.share: .*not a share"),
        ({"b": IN_B | {"epoch": 2}}, r"mix.b.epoch is not a known key, did you mean mix.b.epochs\?"),
    ],
    ids=str,
)
def test_a_mix_that_cannot_be_made_is_an_error(store, mix, message):
    with pytest.raises(RecipeError) as error:
        dry_run(store, mix)
    assert pl.Series([f"{error.value.what} {error.value.hint}"]).str.contains(message).item()


def test_the_largest_share_that_an_error_states_is_accepted(store):
    mix = {"b": IN_B | {"share": 0.23}, "a": IN_A | {"epochs": 1}}
    assert used(store, mix) == {"b": 30, "a": 100, "(others)": 0}


def random_mix(rng):
    choices = [
        {"epochs": rng.choice([0.3, 1, 2.4, 5])},
        {"count": rng.randrange(1, 15)},
        {"share": rng.choice([0.1, 0.3])},
    ]
    return {f"part {lang}": {"where": f"meta.lang = '{lang}'", **rng.choice(choices)} for lang in ("en", "de")}


@pytest.mark.parametrize("seed", range(6))
def test_the_sums_of_random_mixes_are_exact_in_any_order_of_import(tmp_path, seed):
    rng = random.Random(seed)
    files = []
    for number, lang in enumerate(["en", "de", "is", "en"]):
        talks = [chat(f"Question {rng.randrange(200)} {lang}?", f"Answer {rng.randrange(300)}.") for _ in range(50)]
        files.append((f"{number}.csv", list(dict.fromkeys(talks)), {"lang": lang}))
    mix, digests = random_mix(rng), set()
    for name, order in (("a", files), ("b", files[::-1])):
        for path, talks, metadata in order:
            add(tmp_path / name, talks, source=path, metadata=metadata)
        result = dry_run(tmp_path / name, mix, held_out=20, sample=150)
        digests.add(result.version.digest)
    assert len(digests) == 1
    members, parts = result.placement.members, result.placement.mix
    train = members.filter(pl.col("split") == "train")
    total = train["per_epoch"].sum()
    assert total == sum(part.used for part in parts)
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert sum(part.conversations for part in parts) + result.version.counts["held_out"] == result.placement.sampled
    assert members.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1
    for part in parts:
        options = mix.get(part.part, {})
        if "share" in options:
            assert part.used <= part.conversations
            assert part.used == pytest.approx(options["share"] * total, abs=1.5)
        elif "count" in options:
            assert part.used == options["count"]
        elif "epochs" in options:
            assert part.used == max(1, round(options["epochs"] * part.conversations))


def test_a_larger_count_contains_the_smaller_one(store):
    subsets = []
    for count in (5, 10, 25):
        members = dry_run(store, {"b": IN_B | {"count": count}}).placement.members
        subsets.append(set(members["conversation"]))
    assert subsets[0] < subsets[1] < subsets[2]
    other = dry_run(store, {"b": IN_B | {"count": 10}}, salt="other").placement.members
    assert set(other["conversation"]) != subsets[1]


def test_a_mix_is_part_of_the_digest_and_absent_from_versions_without_one(store):
    digests = {
        dry_run(store, mix).version.digest
        for mix in ({}, {"b": IN_B | {"epochs": 1}}, {"b": IN_B | {"epochs": 2}}, {"b": IN_B | {"count": 30}})
    }
    assert len(digests) == 4
    without = dry_run(store, {}).version
    assert without.recipe == {"score": {}, "select": {"rules": {}}, "freeze": {"held_out": 0.0, "salt": ""}}
    assert without.digest == "14937cc381780624573e47395a3c0818ee070712c35930fec373ac59bf9dc41e"


def test_a_manually_changed_number_of_uses_is_detected(store):
    label = freeze_store(store, {"b": IN_B | {"epochs": 3}}).label
    with writing(store) as connection:
        connection.execute("UPDATE members SET per_epoch = 2 WHERE per_epoch = 3")
    with reading(store) as connection, pytest.raises(VersionError, match="digest differs"):
        read_members(connection, find_version(connection, label))


def test_members_of_an_earlier_release_are_used_once(tmp_path, monkeypatch):
    path = tmp_path / "old.duckdb"
    with monkeypatch.context() as earlier:
        earlier.setattr(stores, "MIGRATIONS", MIGRATIONS[: MIGRATIONS.index(epochs_of_members)])
        earlier.setattr(stores, "create_views", lambda _: None)  # those of today need later tables
        with writing(path) as connection:
            connection.execute("INSERT INTO members VALUES ('support@1', 'c1', 'train')")
    with reading(path) as connection:
        assert connection.sql("FROM members").fetchall() == [("support@1", "c1", "train", 1)]


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("format", ["sharegpt", "messages"])
def test_a_bundle_has_the_uses_and_restores_them(store, tmp_path, format, parquet):
    version = freeze_store(store, {"b": IN_B | {"epochs": 2.5}, "a": IN_A | {"share": 0.3}}, held_out=10)
    with reading(store) as connection:
        export_version(connection, version.label, tmp_path / "bundle", format=format, parquet=parquet)
        before = read_members(connection, version)
    with writing(tmp_path / "other.duckdb") as connection:
        restored = restore(connection, read_bundle(tmp_path / "bundle")).version
        after = read_members(connection, restored)
    assert restored.digest == version.digest
    assert after.equals(before)
    assert set(after["per_epoch"]) == {1, 2, 3}
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "## Uses of train conversations per epoch" in card
    assert "`id split per_epoch`" in card


def test_a_changed_number_of_uses_in_a_bundle_is_an_error(store, tmp_path):
    version = freeze_store(store, {"b": IN_B | {"epochs": 3}})
    with reading(store) as connection:
        export_version(connection, version.label, tmp_path / "bundle")
    path = tmp_path / "bundle" / "train.jsonl"
    path.write_text(path.read_text().replace('"per_epoch": 3', '"per_epoch": 2', 1))
    with writing(tmp_path / "other.duckdb") as connection, pytest.raises(VersionError, match="not the exported file"):
        restore(connection, read_bundle(tmp_path / "bundle"))


def test_a_bundle_without_a_mix_does_not_mention_uses(store, tmp_path):
    freeze_store(store, {})
    with reading(store) as connection:
        export_version(connection, "support@1", tmp_path / "bundle")
    for path in (tmp_path / "bundle").iterdir():
        assert "per_epoch" not in path.read_text()


def test_a_diff_counts_changed_uses_and_states_what_the_mix_left_out(store):
    freeze_store(store, {})
    freeze_store(store, {"b": IN_B | {"epochs": 2}, "a": IN_A | {"count": 60}})
    with reading(store) as connection:
        diff = diff_versions(connection, "support@1", "support@2")
        back = diff_versions(connection, "support@2", "support@1")
    assert diff.counts == {"unchanged": 90, "added": 0, "removed": 40, "edited": 0, "moved": 0, "reweighted": 30}
    assert diff.reasons.select("change", "reason").rows() == [
        ("removed", "kept, but not in the sample or the mix"),
        ("reweighted", "mix.* in the recipe changed"),
    ]
    assert back.counts["added"] == 40
    assert back.reasons.filter(pl.col("change") == "added")["reason"].to_list() == [
        "already imported, but not in the earlier sample or mix"
    ]
    change = diff.changes.filter(pl.col("change") == "reweighted").row(0, named=True)
    assert (change["per_epoch_before"], change["per_epoch_after"]) == (1, 2)


def test_the_commands_show_the_mix(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curate.toml").write_text(
        "[freeze]\nheld_out = 0\n[mix.gold]\nwhere = \"file = 'b.csv'\"\nshare = 0.5\n"
    )
    run = CliRunner()
    shown = run.invoke(app, ["freeze", "support", "--store", str(store)]).stdout
    assert "An epoch uses 60 conversations, repeats counted; 100 kept ones are not used and are not members." in shown
    assert "gold limits the epoch" in shown
    result = json.loads(run.invoke(app, ["freeze", "support", "--store", str(store), "--json"]).stdout)
    assert [(part["part"], part["used"]) for part in result["mix"]] == [("gold", 30), ("(others)", 30)]
    assert (result["new"], result["sampled"], result["conversations"]) == (False, 160, 60)


@pytest.mark.parametrize("options", [{"sample": 50}, {"mix": {"b": IN_B | {"count": 5}}}, {}], ids=str)
def test_status_suggests_a_new_version_only_if_the_kept_conversations_changed(store, options):
    mix, keys = options.get("mix", {}), {key: value for key, value in options.items() if key != "mix"}
    with writing(store) as connection:
        connection.execute("INSERT INTO scores SELECT id FROM conversations")
        dropped, kept, *_ = [id_ for (id_,) in connection.sql("SELECT id FROM conversations ORDER BY id").fetchall()]
    select_store(store, recipe({}))
    add_verdict(store, dropped, "drop", by_whom="ada")
    member = freeze_and_find_member(store, mix, keys)

    def next_command():
        with reading(store) as connection:
            return read_status(connection)["next"]

    assert next_command() == "curate plan support@1 --model FOLDER"
    add_verdict(store, kept, "keep", by_whom="ada")
    assert next_command() == "curate plan support@1 --model FOLDER"
    add_verdict(store, dropped, "keep", by_whom="ada")
    assert next_command() == "curate freeze support"
    add_verdict(store, dropped, "drop", by_whom="ada")
    assert next_command() == "curate plan support@1 --model FOLDER"
    add_verdict(store, member, "drop", by_whom="ada")
    assert next_command() == "curate freeze support"
