"""The way in, `curate` or `python -m curate`: Ctrl-C while all else is still being imported ends in a sentence too."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Import the roof and run it."""
    try:
        from curate.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; nothing was begun.\n")
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
