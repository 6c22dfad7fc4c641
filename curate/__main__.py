"""The way in, `curate` or `python -m curate`: Ctrl-C while all else is still being imported ends in a sentence too."""

import gc
import sys

INTERRUPTED = 130

OBJECTS_BEFORE_COLLECTION = 10_000
"""New objects between two searches for garbage: a tenth of the searches of Python itself while modules are imported."""


def main() -> None:
    """Import the roof and run it."""
    gc.set_threshold(OBJECTS_BEFORE_COLLECTION)
    try:
        from curate.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; nothing was begun.\n")
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
