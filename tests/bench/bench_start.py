"""Start-up time of `curate --help` against `import typer, rich`, the minimum of a command line like this.

    python tests/bench/bench_start.py

Prints the best of several alternating runs and their ratio; a ratio above 1.3 exits with 1.
"""

import subprocess
import sys
import time

LIMIT = 1.3
ROUNDS = 15
MINIMUM = [sys.executable, "-c", "import typer, rich"]
HELP = [sys.executable, "-P", "-m", "curate", "--help"]


def main() -> int:
    rounds = [(seconds(MINIMUM), seconds(HELP)) for _ in range(ROUNDS)]
    minimum, help_ = (min(times) for times in zip(*rounds, strict=True))
    print(f"import typer, rich  {minimum:.3f} s")
    print(f"curate --help       {help_:.3f} s")
    print(f"ratio               {help_ / minimum:.2f}  (limit {LIMIT})")
    return help_ > LIMIT * minimum


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
