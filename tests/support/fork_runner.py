"""Runs commands of `curate` in forked children of a process that has imported them, and measures time and memory.

Reads one JSON list from stdin: each entry is a folder and the arguments. Prints a JSON list of results. A command by
itself would spend most of its time on imports.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MODULES = (
    "curate.cli.app",
    "curate.cli.data",
    "curate.cli.training",
    "curate.cli.review",
    "curate.cli.versions",
    "curate.cli.store",
    "curate.ingest.pipeline",
    "curate.ingest.readers.parquet",
    "curate.ingest.readers.yaml_list",
    "jinja2.sandbox",
    "tokenizers",
)
"""Modules that start no threads of Polars when they are imported: a child of the fork would wait for these forever."""


def main(seconds: int) -> None:
    """Import the commands, then run each in a child."""
    for module in MODULES:
        __import__(module)
    print(json.dumps([_run(folder, arguments, seconds) for folder, arguments in json.load(sys.stdin)]))


def _run(folder: str, arguments: list[str], seconds: int) -> dict[str, Any]:
    start = time.monotonic()
    child = os.fork()
    if not child:
        _run_child(folder, arguments, seconds)
    _, status, usage = os.wait4(child, 0)
    output = [_read(Path(folder) / name) for name in ("stdout", "stderr")]
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start,
        "bytes": peak,
        "stdout": output[0],
        "stderr": output[1],
    }


def _run_child(folder: str, arguments: list[str], seconds: int) -> None:
    from curate.cli.app import main as run

    code = 99
    try:
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(seconds)  # ends the process
        sys.argv = ["curate", *arguments]
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(20_000)
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    main(int(sys.argv[1]))
