"""Entry point of `curate` and `python -m curate`: settings of the process first, then the command line."""

import sys

from curate.cli import startup


def main() -> None:
    """Run the command line; Ctrl-C during the imports ends with a message too."""
    startup.tune_garbage_collection()
    startup.check_packages()
    try:
        from curate.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted before anything was started.\n")
        sys.exit(startup.INTERRUPTED)
    try:
        run()
    except SystemExit as end:
        if startup.process_end.is_short and not end.code:
            startup.end_process()
        raise


if __name__ == "__main__":
    main()
