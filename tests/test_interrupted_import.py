"""The store after a command that did not finish: killed, interrupted, store in use, full disk."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from schemas.errors import StoreError
from schemas.store import reading, writing

CURATE = [sys.executable, "-P", "-c", "from curate.cli.app import main; main()"]
ROWS = 20_000
KILLS = 12

CONTENT = {
    "sources": "SELECT * EXCLUDE (imported_at, seq) FROM sources ORDER BY source",
    "conversations": "FROM conversations ORDER BY id",
    "origins": 'FROM origins ORDER BY source, "row"',
    "rejects": 'FROM rejects ORDER BY source, "row"',
}


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of `ROWS` rows with duplicates, empty answers and broken lines."""
    path = tmp_path / "large.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            words = " ".join(f"word{number * step % 977}" for step in range(1, 40))
            row = {"prompt": f"What is {number % 18_000}?", "response": words if number % 50 else "", "n": number}
            file.write(json.dumps(row)[: 30 if number % 997 == 0 else None] + "\n")
    return path


def content(store: Path) -> dict[str, list[Any]]:
    with reading(store) as connection:
        return {table: connection.sql(query).pl().to_dicts() for table, query in CONTENT.items()}


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CURATE, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def import_into(folder: Path, store: str, file: Path) -> float:
    """Import without interruption; returns the duration in seconds."""
    started = time.monotonic()
    process = start(folder, "import", str(file), "--store", store)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return time.monotonic() - started


def test_an_import_killed_repeatedly_ends_with_the_same_store(large: Path, tmp_path: Path) -> None:
    seconds = import_into(tmp_path, "undisturbed.duckdb", large)
    draw, store, kills = random.Random(11), tmp_path / "killed.duckdb", 0
    for _ in range(3 * KILLS):
        process = start(tmp_path, "import", str(large), "--store", store.name)
        try:
            process.wait(draw.uniform(0.2, 1.1) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        (source,) = (content(store)["sources"] if store.exists() else []) or [None]
        assert source is None or source["rows_read"] == ROWS
        if source is not None and kills < KILLS:
            store.unlink()  # the import finished: the next ones would find the file already imported
            store.with_name(f"{store.name}.wal").unlink(missing_ok=True)  # killed after its commit
            seconds *= 0.8  # the machine was busier during the reference import
        if kills == KILLS:
            break
    assert kills == KILLS
    import_into(tmp_path, "killed.duckdb", large)
    assert content(tmp_path / "killed.duckdb") == content(tmp_path / "undisturbed.duckdb")


@pytest.mark.parametrize("seconds", [0.2, 0.5, 0.8])
def test_an_interrupt_leaves_the_store_unchanged(large: Path, tmp_path: Path, seconds: float) -> None:
    process = start(tmp_path, "import", str(large), "-", stdin=subprocess.PIPE)
    while not (tmp_path / "curate.duckdb").exists():
        time.sleep(0.02)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    message = "Interrupted; nothing is damaged. Run the same command again to finish.\n"
    assert (errors, output, process.returncode) == (message, "", 130)
    assert content(tmp_path / "curate.duckdb")["origins"] == []


def test_a_store_in_use_is_an_error_with_the_process_number(
    large: Path, tmp_path: Path, curate: Callable[..., Any]
) -> None:
    with writing(tmp_path / "curate.duckdb"):
        ran = curate("import", str(large), CURATE_LOCK_TIMEOUT="0")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"in use by process {os.getpid()}" in ran.stderr
    assert len(ran.stderr.splitlines()) == 2


def test_a_store_that_cannot_be_opened_fails_before_standard_input_is_read(tmp_path: Path) -> None:
    (tmp_path / "curate.duckdb").write_text("no store")
    process = subprocess.Popen([*CURATE, "import", "-"], cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.wait(timeout=120) == 1
    assert process.stderr is not None
    assert b"is not a curate store" in process.stderr.read()


def test_waiting_for_a_store_in_use_is_reported_with_the_process_number(large: Path, tmp_path: Path) -> None:
    store = tmp_path / "curate.duckdb"
    with writing(store):
        process = start(tmp_path, "import", str(large))
        assert process.stderr is not None
        message = process.stderr.readline()
    output, _ = process.communicate()
    assert message == f"Waiting for the store curate.duckdb, which is in use by process {os.getpid()}.\n"
    assert process.returncode == 0
    assert f"{ROWS:,} rows read" in output


def test_a_full_disk_is_an_error_and_loses_no_data(large: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.jsonl"
    small.write_text('{"prompt": "Hi", "response": "Hello"}\n', encoding="utf-8")
    import_into(tmp_path, "curate.duckdb", small)
    before = content(tmp_path / "curate.duckdb")

    def no_file_larger_than_4_mb() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    process = start(tmp_path, "import", str(large), preexec_fn=no_file_larger_than_4_mb)
    output, errors = process.communicate()
    assert (process.returncode, output) == (1, "")
    assert len(errors.splitlines()) == 2
    assert "curate.duckdb" in errors
    assert content(tmp_path / "curate.duckdb") == before
    import_into(tmp_path, "curate.duckdb", large)


def test_a_disk_that_is_full_at_the_checkpoint_is_an_error(tmp_path: Path) -> None:
    """The log is written, the store is not: a limit on the file size simulates a full disk."""
    store = tmp_path / "x.duckdb"
    with writing(store) as connection:
        connection.execute("CREATE TABLE words AS SELECT md5(i::VARCHAR) AS word FROM range(20000) t(i)")
    code = (
        "import resource, signal, sys; from pathlib import Path; from schemas.store import writing\n"
        "from schemas.errors import StoreError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); size = Path(sys.argv[1]).stat().st_size\n"
        "try:\n"
        "    with writing(Path(sys.argv[1])) as connection:\n"
        "        connection.execute(\"SET checkpoint_threshold = '1KB'\")\n"
        "        connection.execute('INSERT INTO words SELECT md5(i::VARCHAR) FROM range(20000, 30000) t(i)')\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "except StoreError as error: print(type(error.__cause__).__name__, error, error.hint)\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code, str(store)], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"FatalException The store {store} cannot be written: ")
    assert "Free some disk space" in ran.stdout
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM words").fetchall()[0][0] in (20000, 30000)


def test_a_commit_that_fails_within_the_transaction_is_reported_as_a_full_disk(tmp_path: Path) -> None:
    store = tmp_path / "x.duckdb"
    with writing(store) as connection:
        connection.execute("CREATE TABLE words (word VARCHAR)")
    code = (
        "import resource, signal, sys; from pathlib import Path; from schemas.store import writing\n"
        "from schemas.errors import StoreError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    with writing(Path(sys.argv[1])) as connection:\n"
        "        connection.execute('INSERT INTO words SELECT md5(i::VARCHAR) FROM range(1000) t(i)')\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "        connection.commit()\n"
        "except StoreError as error: print(type(error.__cause__).__name__, error, error.hint)\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code, str(store)], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(f"TransactionException The store {store} cannot be written: ")
    assert "Free some disk space" in ran.stdout


def test_a_store_that_cannot_be_created_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import resource, signal; from pathlib import Path; from schemas.store import writing\n"
        "from schemas.errors import StoreError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    with writing(Path('x.duckdb')): pass\n"
        "except StoreError as error: print(error)\n"
    )
    command = [sys.executable, "-P", "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("The store x.duckdb cannot be")
    assert ".x.duckdb" not in ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"A query failed .*ledger"), writing(tmp_path / "curate.duckdb"):
        duckdb.connect().execute("FROM read_parquet('ledger.parquet')")
