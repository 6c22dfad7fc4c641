"""Small files of one import: the store and the results are those of importing one file after the other."""

import csv
import gzip
import json
import random
from pathlib import Path

import polars as pl
import pytest

from curate.ingest import file_groups, pipeline
from curate.ingest.pipeline import import_files
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading, writing

ORDER = {
    "sources": "seq",
    "conversations": "rowid",
    "origins": "rowid",
    "rejects": "rowid",
    "excluded_rows": "rowid",
    "removed_sources": "seq",
    "removed_rows": "rowid",
    "retained": "rowid",
}
TIMES = ("seq", "imported_at", "removed_at", "removal")


def content(store):
    with reading(store) as connection:
        tables = {name: connection.sql(f"FROM {name} ORDER BY {order}").pl() for name, order in ORDER.items()}
    return {name: table.drop(TIMES, strict=False).to_dicts() for name, table in tables.items()}


def assert_same_as_one_by_one(tmp_path, files, section=None, **options):
    """Import the files together and one by one; the results of the former."""
    section = section or ImportSection()
    alone = [import_files(tmp_path / "alone.duckdb", [str(file)], section, **options)[0] for file in files]
    together = import_files(tmp_path / "together.duckdb", [str(file) for file in files], section, **options)
    assert content(tmp_path / "together.duckdb") == content(tmp_path / "alone.duckdb")
    assert together == alone
    return together


def talk(number, answer="It is there."):
    return {"question": f"Where is number {number}?", "answer": f"{answer} {number}"}


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row) if isinstance(row, dict) else row}\n" for row in rows), encoding="utf-8")


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def varied_rows(number):
    """A few rows, of which some are duplicates of other files, some are rejected, and some have warnings."""
    rows = [talk(number * 3 + at) for at in range(5)]
    if number % 4 == 0:
        rows[1]["answer"] = ""
    if number % 5 == 0:
        rows[2]["answer"] = f"  Padded {number}. "
    if number % 7 == 0:
        rows[3]["question"] = "nan"
    if number % 6 == 0:
        rows = [{**row, "ticket": f"T-{number}", "language": None if number % 12 else "en"} for row in rows]
    return rows


def squad_article(row):
    """Two conversations in one row; some answers are empty."""
    answers = (row["answer"], "" if "1" in row["answer"] else "No.")
    asked = [{"question": row["question"], "answers": [{"text": text, "answer_start": 0}]} for text in answers]
    return {"title": "Places", "paragraphs": [{"context": "Some places.", "qas": asked}]}


@pytest.fixture
def varied(tmp_path):
    """Sixty small files: formats, shapes, columns, duplicates, rejects, warnings, and files with the same bytes."""
    folder = tmp_path / "exports"
    folder.mkdir()
    for number in range(60):
        path, rows = folder / f"{number:02}", varied_rows(number)
        if number % 10 == 3:
            write_csv(path.with_suffix(".csv"), rows)
        elif number % 10 == 4:
            path.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")
        elif number % 10 == 5:
            turns = [{"role": "user", "content": row["question"]} for row in rows]
            messages = [[turn, {"role": "assistant", "content": "Yes."}] for turn in turns]
            write_lines(path.with_suffix(".jsonl"), [{"messages": each} for each in messages] + [{"messages": "[1"}])
        elif number % 10 == 6:
            pl.DataFrame(rows).write_parquet(path.with_suffix(".parquet"))
        elif number % 10 == 7:
            write_lines(path.with_suffix(".jsonl"), [*rows, "{broken", {**rows[0], "later": "x"}])
        elif number % 10 == 8:
            write_lines(path.with_suffix(".jsonl"), [squad_article(row) for row in rows])
        elif number % 10 == 9:
            write_lines(path.with_suffix(".jsonl"), varied_rows(1))
        else:
            write_lines(path.with_suffix(".jsonl"), rows)
    words = [{"question": f"Which word is {at}?", "answer": f"The last one is {at} END"} for at in range(4)]
    write_lines(folder / "61.jsonl", words)
    write_lines(folder / "62.jsonl", [*words[:1], *(talk(at) for at in range(900, 905))])
    (folder / "63_train.jsonl").write_bytes((folder / "00.jsonl").read_bytes())
    write_lines(folder / "63_test.jsonl", [talk(950), {"question": "<b>Bold</b> text?", "answer": "It is <i>not</i>."}])
    return sorted(folder.iterdir())


def test_a_folder_gives_the_store_of_its_files_one_by_one(tmp_path, varied, monkeypatch):
    monkeypatch.setattr(file_groups, "MAX_FILES", 25)
    results = assert_same_as_one_by_one(tmp_path, varied)
    assert sum(result.rows_rejected for result in results) > 10
    assert sum(result.rows_duplicate for result in results) > 20
    assert sum(result.imported_before is not None for result in results) >= 5
    assert {"outer-white-space", "stop-marker", "html-markup"} <= {code for each in results for code in each.warnings}
    assert any(result.partly_rejected for result in results)


def test_files_are_in_fact_converted_together(varied, monkeypatch, tmp_path):
    tables = []
    convert = file_groups.convert
    monkeypatch.setattr(
        file_groups,
        "convert",
        lambda batch, *rest, **options: (tables.append(batch.table.height), convert(batch, *rest, **options))[1],
    )
    import_files(tmp_path / "store.duckdb", [str(file) for file in varied], ImportSection())
    assert max(tables) > 100
    assert len(tables) < 10


@pytest.mark.parametrize(
    "section",
    [
        ImportSection(repair=["strip", "nan-text"]),
        ImportSection(where="answer LIKE '%there%'", shape="pairs", map={"question": "question", "answer": "answer"}),
        ImportSection(system="Be brief."),
        ImportSection(sql="SELECT *, question AS copy FROM rows WHERE row_number <> 2"),
    ],
    ids=["repair", "where", "system", "sql"],
)
def test_options_apply_to_each_file_of_a_group(tmp_path, section):
    files = [tmp_path / f"{number}.jsonl" for number in range(8)]
    for number, file in enumerate(files):
        write_lines(file, varied_rows(number))
    assert_same_as_one_by_one(tmp_path, files, section)


def test_replaced_files_take_their_place_in_the_order(tmp_path):
    files = [tmp_path / f"{number}.jsonl" for number in range(6)]
    for store in ("alone", "together"):
        for number, file in enumerate(files):
            write_lines(file, [talk(number), talk(number + 1), talk(90)])
        import_files(tmp_path / f"{store}.duckdb", [str(file) for file in files[1:4]], ImportSection())
    write_lines(files[2], [talk(2), talk(91), talk(90)])
    write_lines(files[3], [talk(92)])
    results = assert_same_as_one_by_one(tmp_path, files, on_changed="replace")
    assert [len(result.replaced) for result in results] == [0, 0, 1, 1, 0, 0]
    assert results[3].disappeared == 2


@pytest.fixture(params=["group", "large files"])
def rotated(request, tmp_path, monkeypatch):
    """Three logs in two stores: `a` moved to `b`, the old `b` to `c`, and `a` is new."""
    if request.param == "large files":
        for module in ("open_file", "file_groups"):
            monkeypatch.setattr(f"curate.ingest.{module}.SMALL_FILE", 0)
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    write_lines(files[0], [talk(1), talk(2), {"question": "Why?", "answer": ""}])
    write_lines(files[1], [talk(3), talk(2)])
    for store in ("alone", "together"):
        import_files(tmp_path / f"{store}.duckdb", [str(file) for file in files[:2]], ImportSection())
    files[1].rename(files[2])
    files[0].rename(files[1])
    write_lines(files[0], [talk(4), talk(2)])
    return files


def test_a_moved_file_is_imported_after_the_file_that_replaces_its_earlier_import(tmp_path, rotated):
    results = assert_same_as_one_by_one(tmp_path, rotated, on_changed="replace")
    assert [(each.imported_before, len(each.replaced), each.rows_kept) for each in results] == [
        (None, 1, 1),
        (None, 1, 1),
        (None, 0, 1),
    ]
    sources = content(tmp_path / "together.duckdb")["sources"]
    assert [Path(each["path"]).name for each in sources] == ["a.jsonl", "b.jsonl", "c.jsonl"]


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("together", [1, 500])
def test_a_moved_file_before_the_one_that_replaces_its_import_stops(tmp_path, rotated, together, dry_run, monkeypatch):
    monkeypatch.setattr(pipeline, "GROUP_FILES", together)
    a, b, _ = map(str, rotated)
    store = tmp_path / "together.duckdb"
    before = content(store)
    with pytest.raises(SourceError) as error:
        import_files(store, [b, a], ImportSection(), dry_run=dry_run, on_changed="replace")
    assert error.value.what == (
        f"{b} has the rows of the import {before['sources'][0]['source'][:12]} of {a}, which {a} replaces."
    )
    assert error.value.hint.startswith(f"Name {a} before {b}, or import it with --replace alone first.")
    assert content(store) == before
    results = import_files(store, [a, b], ImportSection(), dry_run=dry_run, on_changed="replace")
    assert [each.imported_before for each in results] == [None, None]


def test_a_moved_file_is_imported_before_if_nothing_is_replaced(tmp_path, rotated):
    results = assert_same_as_one_by_one(tmp_path, rotated, on_changed="add")
    assert [each.imported_before for each in results] == [None, str(rotated[0]), str(rotated[1])]


def test_added_and_unchanged_files_in_one_group(tmp_path):
    files = [tmp_path / f"{number}.jsonl" for number in range(4)]
    for number, file in enumerate(files):
        write_lines(file, [talk(number), {"question": "Why?", "answer": ""}])
    for store in ("alone", "together"):
        import_files(tmp_path / f"{store}.duckdb", [str(file) for file in files[:3]], ImportSection())
    write_lines(files[1], [talk(1), talk(7)])
    results = assert_same_as_one_by_one(tmp_path, files, on_changed="add")
    assert [result.imported_before is not None for result in results] == [True, False, True, False]


def test_a_new_mapping_of_the_same_bytes_closes_the_rejects_of_the_first(tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        write_lines(file, [talk(1), {"question": "Why?", "answer": ""}])
    for store in ("alone", "together"):
        import_files(tmp_path / f"{store}.duckdb", [str(files[0])], ImportSection())
    section = ImportSection(shape="pairs", map={"question": "answer", "answer": "question"})
    results = assert_same_as_one_by_one(tmp_path, files, section, on_changed="add")
    assert results[0].closed == 1


def test_a_conversation_of_a_removed_import_is_kept_by_the_first_file_of_a_group(tmp_path):
    first, *files = [tmp_path / f"{number}.jsonl" for number in range(4)]
    for file in (first, *files):
        write_lines(file, [talk(1), talk(2)] if file == first else [talk(1), talk(int(file.stem) + 10)])
    for store in ("alone", "together"):
        path = tmp_path / f"{store}.duckdb"
        import_files(path, [str(first)], ImportSection())
        with writing(path) as connection:  # as `sources remove` leaves it if a version has the conversation
            connection.execute("INSERT INTO retained SELECT id FROM conversations")
            for table in ("origins", "sources"):
                connection.execute(f"DELETE FROM {table}")
    results = assert_same_as_one_by_one(tmp_path, files)
    assert [result.rows_kept for result in results] == [2, 1, 1]


def test_a_limit_on_rejects_applies_to_each_file(tmp_path):
    files = [tmp_path / f"{number}.jsonl" for number in range(4)]
    for number, file in enumerate(files):
        write_lines(file, [talk(number), talk(10), *([{"question": "Why?", "answer": ""}] if number == 2 else [])])
    with pytest.raises(SourceError, match=r"2\.jsonl: 1 of 3 rows \(33\.3%\) would be rejected"):
        import_files(tmp_path / "store.duckdb", [str(file) for file in files], ImportSection(max_rejects=0.2))
    assert len(import_files(tmp_path / "store.duckdb", [str(file) for file in files], ImportSection())) == 4
    with pytest.raises(SourceError, match=r"2\.jsonl: .* were rejected"):
        import_files(tmp_path / "store.duckdb", [str(file) for file in files], ImportSection(max_rejects=0.2))


def test_a_file_of_a_group_that_changes_during_the_import_is_named(tmp_path):
    files = [tmp_path / f"{number}.jsonl" for number in range(4)]
    for number, file in enumerate(files):
        write_lines(file, [talk(number)])

    def change(path, _mapping):
        if path == str(files[3]):
            files[1].write_text(json.dumps(talk(7)) + "\n" + json.dumps(talk(8)) + "\n", encoding="utf-8")

    with pytest.raises(SourceError, match=r"1\.jsonl was changed during the import"):
        import_files(tmp_path / "store.duckdb", [str(file) for file in files], ImportSection(), on_mapping=change)
    assert content(tmp_path / "store.duckdb")["sources"] == []


def test_a_dry_run_of_a_group_shows_the_examples_of_each_file(tmp_path):
    files = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for number, file in enumerate(files):
        write_lines(file, [talk(number), talk(50)])
    results = import_files(tmp_path / "no.duckdb", [str(file) for file in files], ImportSection(), dry_run=True)
    asked = [[example["conversations"][0]["value"] for example in result.examples] for result in results]
    assert asked == [[f"Where is number {number}?", "Where is number 50?"] for number in range(3)]


def test_files_whose_common_table_cannot_be_converted_are_converted_alone(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise SourceError("The table cannot be converted.")

    monkeypatch.setattr(file_groups, "convert", fail)
    files = [tmp_path / f"{number}.jsonl" for number in range(6)]
    for number, file in enumerate(files):
        extra = {"ticket": number} if number % 2 else {}  # two tables
        write_lines(file, [{**talk(10 * number + at), **extra} for at in range(3)])
    results = assert_same_as_one_by_one(tmp_path, files)
    assert [each.rows_kept for each in results] == 6 * [3]


def test_large_files_keep_their_place_between_small_ones(tmp_path, monkeypatch):
    for module in ("open_file", "file_groups"):
        monkeypatch.setattr(f"curate.ingest.{module}.SMALL_FILE", 500)
    files = [tmp_path / f"{number}.jsonl" for number in range(9)]
    for number, file in enumerate(files):
        write_lines(file, [talk(at) for at in range(number, number + (30 if number in (2, 7) else 3))])
    assert_same_as_one_by_one(tmp_path, files)


def test_groups_end_with_a_transaction(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "GROUP_FILES", 4)
    sizes = []
    group = file_groups._group
    monkeypatch.setattr(file_groups, "_group", lambda files: (sizes.append(len(files)), group(files))[1])
    files = [tmp_path / f"{number}.jsonl" for number in range(10)]
    for file in files:
        write_lines(file, [talk(random.randrange(100))])
    import_files(tmp_path / "store.duckdb", [str(file) for file in files], ImportSection())
    assert sizes == [4, 4, 2]


def test_one_turn_per_row_is_grouped_within_its_file(tmp_path):
    files: list[Path] = [tmp_path / f"{number}.csv" for number in range(3)]
    for number, file in enumerate(files):
        turns = [("human", "Where is it?"), ("gpt", f"There, {number}.")]
        write_csv(file, [{"chat": "1", "who": who, "what": what} for who, what in turns])
    section = ImportSection(shape="long", group_by="chat", role="who", text="what")
    results = assert_same_as_one_by_one(tmp_path, files, section)
    assert [result.conversations for result in results] == [1, 1, 1]


def test_json_lines_that_are_read_together_are_read_as_alone(tmp_path):
    good = json.dumps(talk(1)).encode()
    contents = {
        "plain": good + b"\n",
        "blank_lines": b"\n" + good + b"\r\n  \n" + json.dumps(talk(2)).encode(),
        "byte_order_mark": b"\xef\xbb\xbf" + json.dumps(talk(3)).encode(),
        "other_order": json.dumps(dict(reversed(talk(4).items()))).encode(),
        "later_key": good + b"\n" + json.dumps({**talk(5), "note": "x"}).encode(),
        "missing_key": json.dumps({**talk(6), "note": "x"}).encode() + b"\n" + json.dumps(talk(7)).encode(),
        "not_json": b"not json\n" + json.dumps(talk(8)).encode(),
        "nan": json.dumps({**talk(9), "note": float("nan")}).encode(),
        "twice": b'{"question": "Why?", "answer": "So.", "answer": "No."}\n' + json.dumps(talk(10)).encode(),
        "damaged": json.dumps(talk(11)).encode()
        + b'\n{"question": "Caf\xe9?", "answer": "So."}\n{"question": "\xc3\xa9t\xc3\xa9?", "answer": "Oui."}\n'
        + '{"question": "Où?", "answer": "Là."}'.encode(),
        "nested": json.dumps(
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
        ).encode(),
        "turns": json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]).encode(),
        "unicode": json.dumps({"question": "Où est-ce ?", "answer": "Là-bas 🙂"}, ensure_ascii=False).encode(),
        "null": json.dumps({"question": "Why?", "answer": None, "note": None}).encode() + b"\n" + good,
    }
    files = [tmp_path / f"{name}.jsonl" for name in contents]
    for file, content_ in zip(files, contents.values(), strict=True):
        file.write_bytes(content_)
    files.append(tmp_path / "compressed.jsonl.gz")
    files[-1].write_bytes(gzip.compress(good + b"\n" + json.dumps(talk(12)).encode()))
    results = assert_same_as_one_by_one(tmp_path, files)
    assert sum(result.rows_rejected for result in results) >= 4
    assert [name for result in results for name in result.columns].count("note") == 4
