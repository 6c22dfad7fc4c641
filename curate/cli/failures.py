"""An exception of a command → two lines on stderr, with --json also a JSON document on stdout, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from typing import NoReturn

import typer

from curate.cli.console import print_error, print_json
from curate.cli.startup import INTERRUPTED
from schemas.errors import CurateError


@dataclass(frozen=True, slots=True)
class Failure:
    """The value of `error` in the output of --json, and the exit code."""

    code: str
    message: str
    hint: str
    exit_code: int = 1


def exit_after(end: BaseException, *, as_json: bool) -> NoReturn:
    """Report the exception that ended a command, and exit. Raises it again if it is unexpected, and with --debug."""
    if isinstance(end, SystemExit) and end.code != INTERRUPTED and _usage_message(end) is None:
        raise end  # the exit code of a result, which is printed
    failure = _explain(end)
    is_interruption = failure.code == "interrupted"
    is_raised = not is_interruption and (failure.code in ("usage", "internal") or os.environ.get("CURATE_DEBUG"))
    if is_interruption:
        print_error(f"{failure.message} {failure.hint}")
    elif not is_raised:
        print_error(f"Error: {failure.message}")
        if failure.hint:
            print_error(f"  → {failure.hint}")
    is_writable = not as_json or _print_document(failure)
    if not is_writable or (isinstance(end, OSError) and end.filename is None):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again at exit
    if is_raised:
        raise end  # Typer printed the message; Python prints the traceback
    sys.exit(failure.exit_code)


def _print_document(failure: Failure) -> bool:
    """Print the error on stdout; False if stdout is full or closed, which is the error or follows it."""
    try:
        print_json({"error": {"code": failure.code, "message": failure.message, "hint": failure.hint}})
    except OSError:
        return False
    return True


def _explain(end: BaseException) -> Failure:
    explained = _explain_error(end)
    if explained is not None:
        return explained
    if _is_interruption(end):
        hint = "Run the same command again to finish."
        return Failure("interrupted", "Interrupted; nothing is damaged.", hint, INTERRUPTED)
    message = _usage_message(end)
    if message is not None:
        return Failure("usage", message, "curate COMMAND --help shows the options.", 2)
    return Failure("internal", f"{type(end).__name__}: {end}", "This is a defect of curate; stderr has the traceback.")


def _explain_error(error: BaseException) -> Failure | None:
    """An explained failure of a command; None for any other exception."""
    if isinstance(error, CurateError):
        return Failure(error.code, error.what, error.hint)
    if isinstance(error, ModuleNotFoundError):
        return _explain_missing(error)
    if isinstance(error, MemoryError):
        return Failure("memory", "There is not enough memory.", "Close other programs, or work on smaller files.")
    return _explain_os_error(error) if isinstance(error, OSError) else None


def _explain_os_error(error: OSError) -> Failure | None:
    """The file and the cause; None for an error without a file, unless the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = "The output" if error.filename is None else str(error.filename)
        cause = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        return Failure(
            "disk-full", f"{what} cannot be written: {cause}.", "Free some space, and run the command again."
        )
    if error.filename is None:
        return None
    return Failure("file", f"{error.filename}: {error.strerror}.", "Check the path and its permissions.")


def _explain_missing(error: ModuleNotFoundError) -> Failure | None:
    """The command that installs a missing package of one of our extras; None for any other package."""
    from curate.doctor import find_extra
    from schemas.environment import install_command

    extra = find_extra(error.name or "")
    if extra is None:
        return None
    return Failure("missing-package", f"This needs {error.name}, which is not installed.", install_command(extra))


def _is_interruption(end: BaseException) -> bool:
    """Whether an exception stands for Ctrl-C: Python's before a command runs, DuckDB's, or Typer's exit code."""
    if isinstance(end, SystemExit):
        return end.code == INTERRUPTED
    return isinstance(end, KeyboardInterrupt) or str(end) == "Query interrupted"


def _usage_message(end: BaseException) -> str | None:
    """The message of wrong usage, which Typer has printed before it exits; None for any other exception."""
    cause = end.__context__ if isinstance(end, SystemExit) else None
    return cause.format_message() if isinstance(cause, typer.TyperException) else None
