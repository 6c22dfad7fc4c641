"""Files that are nearly JSON: the printed commands convert them."""

import os
import subprocess
from pathlib import Path

import pytest
from support.imports import import_one, pairs

from curate.ingest.readers.json_repairs import conversion_hint
from schemas.errors import SourceError

PYTHON = """{'question': 'Why?', 'answer': 'It\\'s // so.', 'ok': True, 'n': None}
{'question': 'What?', 'answer': "That's it, ]", 'ok': False, 'n': 1}
"""
ARRAYS = "[{'question': 'Why?', 'answer': 'So.', 'tags': array(['a', 'b'], dtype=object)}]"
LINES = """# exported
{"question": "Why?", "answer": "https://x.y # no, }"} // first
{"question": "What?", "answer": "That \\" /* no */",}
"""
LIST = """[
  // first
  {"question": "Why?", "answer": "So.", /* last */ },
  {"question": "What?", "answer": "That."}, # end
]
"""


@pytest.mark.parametrize(
    ("name", "text", "answers"),
    [
        ("a.jsonl", PYTHON, ["It's // so.", "That's it, ]"]),
        ("a b.txt", PYTHON, ["It's // so.", "That's it, ]"]),
        ("a.json", f"[{PYTHON.strip().replace(chr(10), ',')}]", ["It's // so.", "That's it, ]"]),
        ("arrays.json", ARRAYS, ["So."]),
        ("lines.jsonl", LINES, ["https://x.y # no, }", 'That " /* no */']),
        ("list.json", LIST, ["So.", "That."]),
    ],
)
def test_the_printed_command_converts_the_file(tmp_path: Path, name: str, text: str, answers: list[str]) -> None:
    path, store = tmp_path / name, tmp_path / "x.duckdb"
    path.write_text(text)
    try:
        broken = [each for each in import_one(store, path).reject_examples if each["code"] == "broken-json"]
        hint = conversion_hint(str(path), broken[0]["raw"])
    except SourceError as error:
        hint = str(error.hint)
    _, convert, command = hint.splitlines()
    subprocess.run(["bash", "-c", convert], check=True, env=os.environ)
    converted = Path(command.removeprefix("    curate import ").strip("'"))
    result = import_one(tmp_path / "y.duckdb", converted)
    assert (result.rows_rejected, [pair[1] for pair in pairs(tmp_path / "y.duckdb")]) == (0, answers)


@pytest.mark.parametrize("record", ['{"question": "Why?"', '{"a": 1} x', "{'a': f()}", '{"a": NaN}', "text // comment"])
def test_no_command_is_printed_for_a_record_that_it_does_not_convert(record: str) -> None:
    assert conversion_hint("a.jsonl", record) == ""
