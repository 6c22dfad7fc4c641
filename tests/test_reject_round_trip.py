"""Rejects of every format: exported in the columns of the source, corrected, imported as printed, closed."""

import csv
import json
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.source_files import write, write_workbook

ROWS = [{"topic": "Why?", "reply": "So."}, {"topic": "When?", "reply": ""}, {"topic": "Who, and why?", "reply": ""}]
MAP = ["--map", "question=topic", "--map", "answer=reply"]


def table_text(delimiter, **dialect):
    lines = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    quote = dialect.get("quote", '"')
    return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in line) + "\n" for line in lines)


def write_source(folder, name):
    path = folder / name
    if name.endswith(".xlsx"):
        write_workbook(path, S=[list(ROWS[0]), *(list(row.values()) for row in ROWS)])
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        content = {
            "a.csv": table_text(","),
            "a.tsv": table_text("\t"),
            "quotes.csv": table_text(";", quote="'"),
            "title.csv": "Export\n\n" + table_text(","),
            "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
            "a.json": json.dumps(ROWS, indent=1),
            "columns.json": json.dumps({key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]}),
            "a.yaml": "".join(f'- topic: "{row["topic"]}"\n  reply: "{row["reply"]}"\n' for row in ROWS),
        }[name]
        write(path, content)


def read_export(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def write_export(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def printed_command(export):
    (line,) = [line for line in export.stdout.splitlines() if "→ curate import" in line]
    return shlex.split(line.split("→ curate ")[1])


@pytest.mark.parametrize("target", ["fix.csv", "fix.jsonl"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", []),
        ("a.tsv", []),
        ("quotes.csv", ["--delimiter", ";", "--quote", "'"]),
        ("title.csv", ["--skip-lines", "2"]),
        ("a.jsonl", []),
        ("a.json", []),
        ("columns.json", []),
        ("a.yaml", []),
        ("a.parquet", []),
        ("a.xlsx", []),
    ],
)
def test_corrected_rejects_are_imported_by_the_printed_command(tmp_path, curate, name, options, target):
    write_source(tmp_path, name)
    (first,) = json.loads(curate("import", name, *MAP, *options, "--json").stdout)
    assert first["rejected"] == {"empty-answer": 2}
    command = printed_command(curate("rejects", "--export", target))
    rows = read_export(tmp_path / target)
    assert [row["topic"] for row in rows] == ["When?", "Who, and why?"]
    write_export(tmp_path / target, [{**row, "reply": "Now."} for row in rows])
    (second,) = json.loads(curate(*command, "--json").stdout)
    assert (second["rows_kept"], second["closed"]) == (2, 2)
    assert "no open rejects" in curate("rejects").stdout


@pytest.mark.parametrize("target", ["fix.csv", "fix.jsonl"])
@pytest.mark.parametrize("options", [MAP, [*MAP, "--repair", "strip", "--system", "Be brief."]], ids=["map", "more"])
def test_corrected_rejects_are_imported_without_options_by_the_mapping_of_their_source(
    tmp_path, curate, options, target
):
    write_source(tmp_path, "a.csv")
    curate("import", "a.csv", *options)
    curate("rejects", "--export", target)
    write_export(tmp_path / target, [{**row, "reply": "Now."} for row in read_export(tmp_path / target)])
    (dry,) = json.loads(curate("import", target, "--dry-run", "--json").stdout)
    (result,) = json.loads(curate("import", target, "--json").stdout)
    assert dry["mapping"] == result["mapping"]
    assert result["mapping"]["fields"] == {"question": "topic", "answer": "reply"}
    assert (result["rows_kept"], result["closed"]) == (2, 2)
    assert "no open rejects" in curate("rejects").stdout


def test_an_option_overrides_the_mapping_of_the_source_and_other_files_do_not_get_it(tmp_path, curate):
    write_source(tmp_path, "a.csv")
    curate("import", "a.csv", *MAP)
    curate("rejects", "--export", "fix.csv")
    write_export(tmp_path / "fix.csv", [{**row, "reply": "Now."} for row in read_export(tmp_path / "fix.csv")])
    swapped = ("--map", "question=reply", "--map", "answer=topic")
    (result,) = json.loads(curate("import", "fix.csv", *swapped, "--json").stdout)
    assert result["mapping"]["fields"] == {"question": "reply", "answer": "topic"}
    write(tmp_path / "b.csv", "topic,reply\nWhat?,_curate_reject\n")
    assert "No shape fits" in curate("import", "b.csv").stderr


def test_ragged_rows_are_exported_under_the_columns_of_the_source(tmp_path, curate):
    write(tmp_path / "a.csv", "topic,reply\nWhy?,So.\nWhen, then?,Now.\nWho?\n")
    curate("import", "a.csv", *MAP)
    command = printed_command(curate("rejects", "--export", "fix.csv"))
    rows = read_export(tmp_path / "fix.csv")
    assert list(rows[0])[:3] == ["topic", "reply", "_curate_raw"]
    assert [row["_curate_raw"] for row in rows] == ["When, then?,Now.", "Who?"]
    (again,) = json.loads(curate(*command, "--json").stdout)
    assert (again["rows_kept"], again["closed"]) == (0, 0)
    write_export(tmp_path / "fix.csv", [{**row, "topic": "When, then?", "reply": row["_curate_raw"]} for row in rows])
    (fixed,) = json.loads(curate(*command, "--json").stdout)
    assert (fixed["rows_kept"], fixed["closed"]) == (2, 2)


@pytest.mark.parametrize("target", ["fix.csv", "fix.jsonl"])
def test_nan_is_exported_as_null_and_imported(tmp_path, curate, target):
    lines = ['{"topic": "Why?", "reply": "So."}', '{"topic": "NaN, you say?", "reply": NaN}']
    write(tmp_path / "a.jsonl", "\n".join(lines))
    curate("import", "a.jsonl", *MAP)
    exported = curate("rejects", "--export", target)
    assert "1 row had NaN" in exported.stdout
    (row,) = read_export(tmp_path / target)
    assert (row["topic"], row["reply"] or None) == ("NaN, you say?", None)
    write_export(tmp_path / target, [{**row, "reply": "No."}])
    (result,) = json.loads(curate(*printed_command(exported), "--json").stdout)
    assert (result["rows_kept"], result["closed"]) == (1, 1)


def test_a_row_in_another_encoding_is_not_imported_without_a_correction(tmp_path, curate):
    write(tmp_path / "a.csv", "topic,reply\nGrüße?,So.\nÄhre?,So.\n".encode() + b"Stra\xdfe?,So.\n")
    curate("import", "a.csv", *MAP)
    command = printed_command(curate("rejects", "--export", "fix.csv"))
    assert json.loads(curate(*command, "--json").stdout)[0]["rows_kept"] == 0


def test_conditions_and_repairs_of_the_source_are_printed(tmp_path, curate):
    write(tmp_path / "a.csv", "topic,reply,label\nWhy?,So.,good\nWhen?,,good\nWho?,Ann.,bad\n")
    curate("import", "a.csv", *MAP, "--where", "label = 'good'", "--repair", "strip")
    command = printed_command(curate("rejects", "--code", "empty-answer", "--export", "fix.csv"))
    assert command[command.index("--where") + 1] == "label = 'good'"
    assert command[command.index("--repair") + 1] == "strip"
    assert "--where" not in printed_command(curate("rejects", "--code", "excluded-by-where", "--export", "out.csv"))
