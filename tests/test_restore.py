"""Restore: a bundle restores the version with the same digest; damage and changes are detected."""

import json
import shutil

import pytest
from support.bundles import (
    PLAIN,
    add_support,
    export,
    members,
    restore_store,
)
from support.stores import add, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.versions.freeze import freeze
from curate.versions.restore import read_bundle
from schemas.errors import VersionError
from schemas.recipe import check_recipe
from schemas.store import reading, writing
from schemas.version import find_version


@pytest.fixture
def store(tmp_path):
    return add_support(tmp_path / "x.duckdb")


@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
@pytest.mark.parametrize("format", ["sharegpt", "messages"])
def test_a_version_rebuilt_from_its_bundle_alone_has_the_same_digest(store, tmp_path, format, parquet):
    export(store, tmp_path / "bundle", format=format, parquet=parquet)
    other = tmp_path / "other.duckdb"
    result = restore_store(other, tmp_path / "bundle")
    assert members(other).equals(members(store))
    assert (result.new, result.conversations) == (True, len(PLAIN) + 2)
    with reading(store) as first, reading(other) as second:
        assert find_version(first, "support@1") == find_version(second, "support@1")


def test_changed_conversations_in_a_bundle_are_an_error_with_their_ids(store, tmp_path):
    export(store, tmp_path / "bundle")
    train = tmp_path / "bundle" / "train.jsonl"
    train.write_text(train.read_text(encoding="utf-8").replace("Answer 1", "Answer 7", 1), encoding="utf-8")
    with pytest.raises(VersionError, match=r"train\.jsonl line \d+: the id is [0-9a-f]{32}, not [0-9a-f]{32}"):
        restore_store(tmp_path / "other.duckdb", tmp_path / "bundle")
    with reading(tmp_path / "other.duckdb") as connection:
        assert connection.sql("SELECT count(*) FROM conversations").fetchall() == [(0,)]


def test_a_bundle_with_a_missing_line_or_a_changed_recipe_is_an_error(store, tmp_path):
    export(store, tmp_path / "bundle")
    short = shutil.copytree(tmp_path / "bundle", tmp_path / "short")
    text = (short / "train.jsonl").read_text(encoding="utf-8")
    (short / "train.jsonl").write_text(text.split("\n", 1)[1], encoding="utf-8")
    with pytest.raises(VersionError, match=r"train\.jsonl has \d+ conversations instead of \d+"):
        restore_store(tmp_path / "other.duckdb", short)
    path = tmp_path / "bundle" / "version.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"salt": ""', '"salt": "b"'), encoding="utf-8")
    with pytest.raises(VersionError, match=r"version\.json itself was changed"):
        restore_store(tmp_path / "other.duckdb", tmp_path / "bundle")


def change_statement(folder, changes):
    """Replace keys of version.json."""
    statement = json.loads((folder / "version.json").read_text(encoding="utf-8"))
    (folder / "version.json").write_text(json.dumps(statement | changes), encoding="utf-8")


def test_stated_counts_are_compared_with_the_files(store, tmp_path):
    exported = export(store, tmp_path / "bundle")
    counts = exported.version.counts
    change_statement(
        tmp_path / "bundle", {"counts": {"train": counts["train"] + 1, "held_out": counts["held_out"] - 1}}
    )
    for path in (store, tmp_path / "other.duckdb"):
        with pytest.raises(VersionError, match=r"version\.json was changed: it states .* but the files contain"):
            restore_store(path, tmp_path / "bundle")
    with reading(store) as connection:
        assert find_version(connection, "support@1") == exported.version


def test_an_existing_version_keeps_its_parent_and_date(store, tmp_path):
    exported = export(store, tmp_path / "bundle")
    change_statement(tmp_path / "bundle", {"parent": "evil@7", "frozen_at": "1999-01-01T00:00:00+00:00"})
    assert restore_store(store, tmp_path / "bundle").version == exported.version
    with reading(store) as connection:
        assert find_version(connection, "support@1") == exported.version
    export(store, tmp_path / "again")


@pytest.mark.parametrize(
    "change",
    [
        {"number": -5},
        {"number": 0},
        {"number": "x"},
        {"number": 1e99},
        {"number": 2**31},
        {"parent": 5},
        {"parent": "a b"},
        {"name": 5},
        {"counts": []},
        {"counts": {"train": "a"}},
        {"counts": {"test": 35}},
        {"frozen_at": "nope"},
        {"frozen_at": 5},
        {"frozen_at": "1999-01-01T00:00:00"},
        {"frozen_at": "0001-01-01T00:00:00+14:00"},
        {"frozen_at": "9999-12-31T23:59:59-14:00"},
        {"files": []},
        {"files": {}},
        {"files": {"x": {}}},
        {"files": {"train.jsonl": {"split": "test", "conversations": 35, "sha256": ""}}},
        {"format": []},
        {"bundle": "x"},
        {"recipe": None},
        {"digest": 7},
    ],
    ids=str,
)
def test_an_invalid_value_in_version_json_is_an_error_with_its_key(store, tmp_path, change):
    export(store, tmp_path / "bundle")
    change_statement(tmp_path / "bundle", change)
    with pytest.raises(VersionError, match=rf"version\.json .*\b{next(iter(change))}") as error:
        read_bundle(tmp_path / "bundle")
    assert error.value.hint == "Fetch the bundle again."


@pytest.mark.parametrize("name", ["x" * 300, "../train.jsonl", "train\0.jsonl"], ids=ascii)
def test_an_impossible_file_name_in_version_json_is_an_error(store, tmp_path, name):
    export(store, tmp_path / "bundle")
    files = json.loads((tmp_path / "bundle" / "version.json").read_text(encoding="utf-8"))["files"]
    change_statement(
        tmp_path / "bundle", {"files": {name: files["train.jsonl"], "held_out.jsonl": files["held_out.jsonl"]}}
    )
    with pytest.raises(VersionError, match=f"bundle has no file {name},"):
        restore_store(tmp_path / "other.duckdb", tmp_path / "bundle")


@pytest.mark.parametrize("year", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"])
def test_the_earliest_and_the_latest_date_are_restored(store, tmp_path, year):
    export(store, tmp_path / "bundle")
    change_statement(tmp_path / "bundle", {"frozen_at": year})
    restore_store(tmp_path / "other.duckdb", tmp_path / "bundle")
    with reading(tmp_path / "other.duckdb") as connection:
        assert find_version(connection, "support@1").frozen_at.isoformat() == year


def test_freezing_after_the_largest_version_number_is_an_error(store, tmp_path):
    export(store, tmp_path / "bundle")
    change_statement(tmp_path / "bundle", {"number": 2**31 - 1})
    other = tmp_path / "other.duckdb"
    restore_store(other, tmp_path / "bundle")
    add(other, questions(1, start=900))
    recipe = check_recipe({}, "the test")
    with (
        writing(other) as connection,
        pytest.raises(VersionError, match="support@2147483647 has the largest possible number"),
    ):
        freeze(connection, "support", recipe)
    with writing(other) as connection:
        assert freeze(connection, "guest", recipe).version.label == "guest@1"


def test_row_counts_of_a_restored_bundle_add_up(store, tmp_path):
    export(store, tmp_path / "bundle")
    other = tmp_path / "other.duckdb"
    add(other, PLAIN[:10])
    assert restore_store(other, tmp_path / "bundle").conversations == 25
    with reading(other) as connection:
        sums = "SELECT sum(rows_read), sum(rows_kept), sum(rows_duplicate), sum(conversations) FROM sources"
        assert connection.sql(f"{sums} WHERE shape = 'bundle'").fetchall() == [(35, 25, 10, 25)]
        assert connection.sql("SELECT count(*), count(*) FILTER (duplicate) FROM origins").fetchall() == [(45, 10)]


def test_restoring_again_repairs_a_damaged_store_and_adds_nothing(store, tmp_path):
    export(store, tmp_path / "bundle")
    with writing(store) as connection:
        connection.execute("DELETE FROM conversations WHERE id = ?", [PLAIN[3].id])
        connection.execute("DELETE FROM members WHERE conversation = ?", [PLAIN[4].id])
    result = restore_store(store, tmp_path / "bundle")
    assert (result.new, result.conversations) == (False, 1)
    assert members(store).height == 35
    with reading(store) as connection:
        before = connection.sql("SELECT count(*) FROM origins").fetchall()
    assert restore_store(store, tmp_path / "bundle").conversations == 0
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM origins").fetchall() == before


def test_another_version_of_the_same_label_is_not_overwritten(store, tmp_path):
    export(store, tmp_path / "bundle")
    other = tmp_path / "other.duckdb"
    add(other, questions(5, start=900))
    with writing(other) as connection:
        freeze(connection, "support", check_recipe({}, "the test"))
    with pytest.raises(VersionError, match="another support@1"):
        restore_store(other, tmp_path / "bundle")
    assert restore_store(other, tmp_path / "bundle", name="guest").version.label == "guest@1"
    assert members(other, "guest@1").height == 35


def test_a_folder_that_is_not_a_bundle_is_an_error(tmp_path):
    with pytest.raises(VersionError, match=r"has no version\.json"):
        read_bundle(tmp_path)
    (tmp_path / "version.json").write_text("{}")
    with pytest.raises(VersionError, match="lacks bundle"):
        read_bundle(tmp_path)


def test_the_commands_export_and_restore(store, tmp_path):
    run, bundle = CliRunner(), str(tmp_path / "bundle")
    output = run.invoke(app, ["export", "support@1", "--to", bundle, "--store", str(store), "--json"])
    assert output.exit_code == 0, output.output
    assert json.loads(output.stdout)["left_out"] == {}
    again = run.invoke(app, ["restore", bundle, "--store", str(tmp_path / "other.duckdb")])
    assert "support@1 restored: 35 conversations" in again.stdout
