"""Splits that files, folders, datasets and a column are named after: stored with each row, used by freeze."""

import csv
import json

import polars as pl
import pytest
from support.stores import add, add_verdict, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.ingest.named_split import find_named_split
from curate.ingest.pipeline import import_files
from curate.versions.freeze import freeze
from schemas.errors import VersionError
from schemas.import_recipe import ImportSection
from schemas.recipe import check_recipe
from schemas.store import reading


@pytest.fixture
def store(tmp_path):
    return tmp_path / "x.duckdb"


def write_rows(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"What is question {n}?", "answer": f"Answer {n} of {path.stem}."} for n in numbers]
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def dry_run(store, **options):
    with reading(store) as connection:
        return freeze(connection, "support", check_recipe({"freeze": options}, "the test"), dry_run=True)


def read_metadata(store):
    with reading(store) as connection:
        rows = connection.sql("SELECT path, metadata ->> '$.split', count(*) FROM origins JOIN sources USING (source)"
                              " GROUP BY ALL ORDER BY ALL").fetchall()  # fmt: skip
    return [(path.rpartition("/")[2], split, count) for path, split, count in rows]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("test.jsonl", "test"),
        ("Train.CSV", "train"),
        ("validation.jsonl.gz", "validation"),
        ("train-00000-of-00002.parquet", "train"),
        ("test-00000-of-00001-a09b74b3ef9c3b56.parquet", "test"),
        ("dev-v1.1.json", "dev"),
        ("held_out.jsonl", "held_out"),
        ("eval_2.csv", "eval"),
        ("owner/name#test", "test"),
        ("hf:name#validation", "validation"),
        ("owner/name#test_sft", "test"),
        ("owner/name#answers", None),
        ("test_results.csv", None),
        ("customers_test.csv", None),
        ("trainer.csv", None),
        ("contest.csv", None),
        ("dev/tickets.csv", None),
        ("data.csv", None),
        ("-", None),
    ],
)
def test_a_name_alone(tmp_path, monkeypatch, path, split):
    monkeypatch.chdir(tmp_path)
    assert find_named_split(path) == split


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ("squad_train.json", "squad_dev.json", ("train", "dev")),
        ("train_sft-00000-of-00002.parquet", "test_sft-00000-of-00001.parquet", ("train", "test")),
        ("train/part-1.csv", "test/part-1.csv", ("train", "test")),
        ("train/part-1.csv", "val/part-1.csv", ("train", "val")),
        ("a_train.csv", "b_test.csv", (None, None)),
        ("test_results.csv", "test_answers.csv", (None, None)),
    ],
)
def test_further_words_and_folders_require_a_neighbour_of_the_other_split(tmp_path, train, test, words):
    for name in (train, test):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert tuple(find_named_split(str(tmp_path / name)) for name in (train, test)) == words


def test_the_files_of_a_hub_folder_keep_their_splits(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", range(20))
    write_rows(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", range(20, 40))
    write_rows(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", range(40, 45))
    run = CliRunner()
    output = run.invoke(app, ["import", "hub", "--store", str(store)])
    assert (
        "Splits named by files or folders (meta.split): test 5 rows, train 40 rows; curate freeze holds out test."
        in output.stdout.replace("\n", " ").replace("  ", " ")
    )
    assert read_metadata(store) == [
        ("test-00000-of-00001.parquet", "test", 5),
        ("train-00000-of-00002.parquet", "train", 20),
        ("train-00001-of-00002.parquet", "train", 20),
    ]
    output = run.invoke(app, ["freeze", "support", "--store", str(store)])
    assert "45 conversations = 40 train (40 groups), 5 held_out (5 groups)" in output.stdout
    assert "By the names of splits (meta.split): 40 train, 5 held_out" in output.stdout
    output = run.invoke(app, ["freeze", "support", "--held-out", "10%", "--store", str(store), "--dry-run"])
    assert "held_out = 0.1 was not used: every conversation has such a name." in output.stdout
    output = run.invoke(app, ["freeze", "all", "--held-out", "9", "--ignore-splits", "--store", str(store), "--json"])
    result = json.loads(output.stdout)
    assert (result["counts"], result["named_splits"]) == ({"train": 36, "held_out": 9}, None)


README = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train_sft
    path: data/a-*.jsonl
  - split: validation
    path:
    - "data/b.jsonl"
    - data/train-c.jsonl
---
# A dataset
"""


@pytest.mark.parametrize(
    ("name", "split"),
    [("a-1.jsonl", "train"), ("b.jsonl", "validation"), ("train-c.jsonl", "validation"), ("d.jsonl", None)],
)
def test_the_readme_of_a_dataset_names_the_splits_of_its_files(tmp_path, name, split):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text(README)
    assert find_named_split(str(tmp_path / "data" / name)) == split


@pytest.mark.parametrize(
    "text",
    ["", "# no metadata", "---\n: [\n---\n", "---\nconfigs: 3\n---\n", "---\nconfigs:\n- data_files: a.csv\n---\n"],
)
def test_a_readme_without_splits_changes_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert find_named_split(str(tmp_path / "test.csv")) == "test"
    assert find_named_split(str(tmp_path / "data.csv")) is None


def test_a_column_is_used_instead_of_the_file_name(store, tmp_path):
    path = tmp_path / "test.csv"
    cells = [(n, "Validation" if n < 3 else "train" if n < 9 else "other") for n in range(10)]
    path.write_text("question,answer,split\n" + "".join(f"Q {n}?,Answer {n}.,{word}\n" for n, word in cells))
    import_files(store, [str(path)], ImportSection())
    assert read_metadata(store) == [("test.csv", "Validation", 3), ("test.csv", "other", 1), ("test.csv", "train", 6)]
    named = dry_run(store, held_out=0).placement.named
    assert (named.train, named.held_out, named.moved, named.unnamed) == (6, 3, 0, 1)


def test_a_lone_train_file_is_split_like_any_other_with_the_same_digest(tmp_path):
    digests = set()
    for name in ("train.jsonl", "data.jsonl"):
        store = tmp_path / f"{name}.duckdb"
        write_rows(tmp_path / name, range(100))
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(" of train", " of data"))
        import_files(store, [str(tmp_path / name)], ImportSection())
        result = dry_run(store, held_out=0.2)
        assert result.placement.named is None
        assert result.version.counts["held_out"] > 5
        digests.add(result.version.digest)
    assert len(digests) == 1


def test_a_group_with_rows_on_both_sides_is_held_out(store, tmp_path):
    write_rows(tmp_path / "train.jsonl", range(20))
    write_rows(tmp_path / "test.jsonl", range(17, 25))
    import_files(store, [str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")], ImportSection())
    result = dry_run(store)
    named = result.placement.named
    assert (named.train, named.held_out, named.moved, named.unnamed) == (17, 11, 3, 0)
    assert result.version.counts == {"train": 17, "held_out": 11}
    assert result.placement.members.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1


def test_the_same_row_in_both_files_is_held_out_in_any_order_of_import(tmp_path):
    for order in (("train.csv", "test.csv"), ("test.csv", "train.csv")):
        store = tmp_path / f"{order[0]}.duckdb"
        for path, talks in ((name, questions(5, start=0 if name == "train.csv" else 4)) for name in order):
            add(store, talks, source=path, metadata={"split": path.removesuffix(".csv")})
        assert dry_run(store).version.counts == {"train": 4, "held_out": 5}


def test_an_edit_of_a_test_row_is_held_out(store):
    add(store, questions(5), metadata={"split": "train"})
    (before,) = add(store, [chat("Other?", "Bad.")], source="b.csv", metadata={"split": "test"})
    (edited,) = add(store, [chat("Other, rewritten?", "Good.")], parent=before)
    add_verdict(store, before, "edit", by_whom="ada", edited_to=edited)
    members = dry_run(store).placement.members
    assert members.filter(pl.col("split") == "held_out")["conversation"].to_list() == [edited]


def test_held_out_applies_to_the_conversations_without_a_named_split(store):
    tests = add(store, questions(5), source="test.csv", metadata={"split": "test"})
    add(store, questions(100, start=5), source="tickets.csv")
    result = dry_run(store, held_out=20)
    assert (result.version.counts, result.placement.named.unnamed) == ({"train": 80, "held_out": 25}, 100)
    with pytest.raises(VersionError, match="would be held out of 100 without a named split"):
        dry_run(store, held_out=100)
    sample = dry_run(store, held_out=0, sample=90).placement
    held_out = set(sample.members.filter(pl.col("split") == "held_out")["conversation"])
    assert held_out == set(sample.members["conversation"]) & set(tests)
    assert sample.named.held_out == len(held_out) > 0


def test_only_held_out_rows_leave_train_empty_which_is_reported(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add(store, questions(5), metadata={"split": "test"})
    output = CliRunner().invoke(app, ["freeze", "support", "--store", str(store), "--dry-run"])
    assert "train is empty: nothing is left to train on." in output.stdout


def test_a_corrected_reject_keeps_the_split_of_its_file(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("question,answer\nA?,B.\n")
    (tmp_path / "test.csv").write_text("question,answer\nC?,D.\nE?,\n")
    run = CliRunner()
    for arguments in (["import", "train.csv", "test.csv"], ["rejects", "--export", "fix.csv"]):
        assert run.invoke(app, [*arguments, "--store", str(store)]).exit_code == 0
    with (tmp_path / "fix.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["test"]
    text = (tmp_path / "fix.csv").read_text()
    (tmp_path / "fix.csv").write_text(text.replace("E?,", "E?,F.", 1))
    assert run.invoke(app, ["import", "fix.csv", "--store", str(store)]).exit_code == 0
    assert dry_run(store).version.counts == {"train": 1, "held_out": 2}
