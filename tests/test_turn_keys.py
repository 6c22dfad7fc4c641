"""Own role names and keys of turns: assigned by options, stored with the source, named by the rejects without them."""

import json
import re
import shlex

import polars as pl
import pytest

from curate.ingest.import_options import apply_options
from curate.ingest.pipeline import import_files
from schemas.errors import RecipeError, SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading

TALK = [("Ann", "How deep is the harbour?"), ("Bob", "Ten feet.")]


def talk(role="from", text="value", names=("Ann", "Bob")):
    said = zip(names, (words for _, words in TALK), strict=True)
    return [{role: name, text: words} for name, words in said]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(tmp_path, path, **options):
    section = apply_options(ImportSection(), options)
    (result,) = import_files(tmp_path / "curate.duckdb", [str(path)], section, on_changed="add")
    return result


def roles(tmp_path):
    with reading(tmp_path / "curate.duckdb") as connection:
        turns = connection.execute("SELECT unnest(conversations) FROM conversations").fetchall()
    return [(turn["from"], turn["value"]) for (turn,) in turns]


ASSIGNED = [("human", TALK[0][1]), ("gpt", TALK[1][1])]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("sharegpt.jsonl", json.dumps({"conversations": talk()}), {}),
        ("messages.jsonl", json.dumps({"messages": talk("role", "content")}), {}),
        ("long.csv", "id,who,text\n1,Ann,How deep is the harbour?\n1,Bob,Ten feet.\n", {"group_by": "id"}),
        (
            "transcript.csv",
            'talk\n"Ann: How deep is the harbour?\nBob: Ten feet."\n',
            {"shape": "transcript", "map": ["transcript=talk"]},
        ),
    ],
)
def test_a_name_is_assigned_to_a_role_in_every_shape_with_roles_in_any_case(tmp_path, name, content, options):
    (tmp_path / name).write_text(content, encoding="utf-8")
    column = ["who"] if name == "long.csv" else []
    result = run(tmp_path, tmp_path / name, **options, role=[*column, "ann=user", " BOB=assistant"])
    assert (result.rows_rejected, roles(tmp_path)) == (0, ASSIGNED)
    assert result.mapping["roles"] == {"ann": "human", " BOB": "gpt"}


def test_a_flag_is_a_role_name_in_csv_json_and_parquet(tmp_path):
    rows = {"ticket": [1, 1], "inbound": [True, False], "body": [words for _, words in TALK]}
    frame = pl.DataFrame(rows)
    frame.write_csv(tmp_path / "flags.csv")
    frame.write_parquet(tmp_path / "flags.parquet")
    frame.write_ndjson(tmp_path / "flags.jsonl")
    options = {"group_by": "ticket", "text": "body", "role": ["inbound", "True=human", "False=gpt"]}
    for suffix in ("csv", "parquet", "jsonl"):
        assert run(tmp_path, tmp_path / f"flags.{suffix}", **options).rows_rejected == 0
    assert roles(tmp_path) == ASSIGNED


def test_a_known_name_can_get_another_role(tmp_path):
    path = write(tmp_path / "a.jsonl", {"conversations": talk(names=("agent", "customer"))})
    assert run(tmp_path, path, role=["agent=human", "customer=gpt"]).rows_rejected == 0
    assert roles(tmp_path) == ASSIGNED


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"chat": talk("speaker", "utterance", names=("client", "agent"))}, {"text_key": "utterance"}),
        ({"chat": talk("who", "said", names=("client", "agent"))}, {"role_key": "who", "text_key": "said"}),
        ({"chat": {"turns": talk(names=("user", "gpt"))}}, {"turns_key": "chat.turns"}),
        (
            {
                "chat": [
                    {"author": {"role": role}, "content": {"parts": [words]}}
                    for role, words in zip(("user", "assistant"), (words for _, words in TALK), strict=True)
                ]
            },
            {"role_key": "author.role", "text_key": "content.parts[0]"},
        ),
        (
            {"messages": [{"role": "user", **turn} for turn in talk("name", "content")]},
            {"role_key": "name", "role": ["Ann=human", "Bob=gpt"]},
        ),
        (
            {"chat": talk("who", "said", names=("client", "agent"))},
            {"shape": "sharegpt", "map": ["conversations=chat"], "role_key": "who", "text_key": "said"},
        ),
    ],
)
def test_turns_with_keys_of_their_own_are_read_by_the_keys_given(tmp_path, row, options):
    result = run(tmp_path, write(tmp_path / "a.jsonl", row), **options)
    assert (result.rows_rejected, roles(tmp_path)) == (0, ASSIGNED)


def test_own_keys_keep_tool_calls_in_their_original_text(tmp_path):
    call = {"id": "c1", "function": {"name": "depth", "arguments": {"at": 1e5}}}
    turns = [
        {"who": "user", "said": "How deep?"},
        {"who": "assistant", "said": "", "tool_calls": [call]},
        {"who": "tool", "said": "10", "tool_call_id": "c1"},
        {"who": "assistant", "said": "Ten feet."},
    ]
    path = tmp_path / "a.csv"
    pl.DataFrame({"chat": [json.dumps(turns).replace("100000.0", "1e5")]}).write_csv(path)
    assert run(tmp_path, path, role_key="who", text_key="said").rows_rejected == 0
    assert [role for role, _ in roles(tmp_path)] == ["human", "function_call", "observation", "gpt"]
    assert '"at": 1e5' in roles(tmp_path)[1][1]


def test_a_given_key_is_never_replaced_by_a_known_one(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "name": "Bob", "content": "Hello"}]},
    )
    result = run(tmp_path, path, role_key="name", role=["Bob=gpt"])
    assert result.rejected == {"missing-role": 1}
    assert "no name" in result.reject_examples[0]["reason"]
    result = run(tmp_path, path, turns_key="messages", text_key="words")
    assert set(result.rejected) <= {"empty-question", "missing-text"}
    assert roles(tmp_path) == []


def test_a_turn_in_which_an_own_key_occurs_twice_is_rejected(tmp_path):
    path = tmp_path / "a.jsonl"
    turns = '[{"who": "user", "said": "Hi", "said": "Ho"}, {"who": "gpt", "said": "Hello"}]'
    path.write_text(f'{{"chat": {turns}}}\n', encoding="utf-8")
    assert run(tmp_path, path, role_key="who", text_key="said").rejected == {"duplicate-key": 1}


def test_a_turn_without_a_known_text_key_names_its_other_keys(tmp_path, curate):
    path = write(tmp_path / "a.jsonl", {"chat": talk("speaker", "utterance", names=("client", "agent"))})
    result = run(tmp_path, path)
    assert result.rejected == {"missing-text": 1}
    (option,) = re.findall(r"(--text-key) can name another key: (\w+)", result.reject_examples[0]["reason"])
    done = curate("import", str(path), *option, "--add", "--store", str(tmp_path / "curate.duckdb"))
    assert done.returncode == 0, done.stderr
    assert roles(tmp_path) == ASSIGNED


def test_unknown_roles_are_counted_and_the_printed_options_import_them(tmp_path, curate):
    path = write(tmp_path / "a.jsonl", *({"conversations": [*talk(), *talk()], "n": n} for n in range(3)))
    refused = curate("import", str(path), "--dry-run")
    assert "Unknown roles: Ann (3 rows), Bob (3 rows)." in refused.stdout
    (options,) = re.findall(r"for example: (--role .*)", refused.stdout)
    done = curate("import", str(path), *shlex.split(options), "--json")
    (result,) = json.loads(done.stdout)
    assert (result["rows_rejected"], result["mapping"]["roles"]) == (0, {"Ann": "human", "Bob": "gpt"})
    assert "Ann" in curate("sources").stdout


def test_the_options_printed_after_an_import_replace_it(tmp_path, curate):
    path = write(tmp_path / "a.jsonl", *({"conversations": [*talk(), *talk()], "n": n} for n in range(3)))
    (options,) = re.findall(r"for example: (--role .*)", curate("import", str(path)).stdout)
    done = curate("import", str(path), *shlex.split(options))
    assert done.returncode == 0, done.stderr
    assert "3 rows read = 1 conversation + 2 duplicates + 0 rejected" in done.stdout
    assert "--replace" not in curate("import", str(path), "--dry-run", "--add").stdout


def test_roles_and_keys_are_in_the_recipe_and_in_the_options_of_exported_rejects(tmp_path, curate):
    (tmp_path / "curate.toml").write_text(
        '[import]\nrole_key = "who"\ntext_key = "said"\nroles = { Ann = "human", Bob = "gpt" }\n', encoding="utf-8"
    )
    broken = talk("who", "said", names=("Ann", "Eve"))
    path = write(tmp_path / "a.jsonl", {"chat": talk("who", "said")}, {"chat": broken})
    assert curate("import", str(path)).returncode == 0
    exported = curate("rejects", "--export", "fix.jsonl", "--json")
    options = json.loads(exported.stdout)["options"]
    assert "--role-key who" in options
    assert "--role Ann=human" in options
    fixed = tmp_path / "fix.jsonl"
    fixed.write_text(fixed.read_text(encoding="utf-8").replace("Eve", "Bob").replace("Ten", "Nine"), encoding="utf-8")
    (tmp_path / "curate.toml").unlink()
    done = curate("import", str(fixed), *shlex.split(options), "--json")
    assert json.loads(done.stdout)[0]["closed"] == 1


def test_only_imports_with_roles_or_keys_have_them_in_their_id(tmp_path):
    path = write(tmp_path / "a.jsonl", {"conversations": talk(names=("user", "gpt"))})
    plain, assigned = run(tmp_path, path), run(tmp_path, path, role=["Ann=human"])
    assert plain.source != assigned.source
    assert not {"roles", "keys"} & set(plain.mapping)


def test_options_that_cannot_be_used_are_errors(tmp_path):
    path = write(tmp_path / "a.jsonl", {"chat": talk("who", "said"), "other": talk("who", "said")})
    with pytest.raises(RecipeError, match="--role Ann=boss assigns an unknown role") as role_error:
        run(tmp_path, path, role=["Ann=boss"])
    assert "system, human, gpt" in role_error.value.hint
    with pytest.raises(SourceError, match="2 columns with lists of objects") as turns_error:
        run(tmp_path, path, role_key="who")
    assert "chat, other" in turns_error.value.hint
    with pytest.raises(SourceError, match="0 columns with lists"):
        run(tmp_path, path, role_key="whom")
    with pytest.raises(SourceError, match="not for the shape pairs"):
        run(tmp_path, path, role_key="who", shape="pairs")
