"""How soon `curate --help` answers, beside the least that a command line of this kind needs.

    python tests/bench/bench_start.py

Prints the best of several runs, taken in turn, and their ratio; more than 1.5 ends with exit code 1.
"""

import subprocess
import sys
import time

LIMIT = 1.5
ROUNDS = 15
LEAST = [sys.executable, "-c", "import typer, rich"]
HELP = [sys.executable, "-P", "-m", "curate", "--help"]


def main() -> int:
    rounds = [(seconds(LEAST), seconds(HELP)) for _ in range(ROUNDS)]
    least, help_ = (min(times) for times in zip(*rounds, strict=True))
    print(f"import typer, rich  {least:.3f} s")
    print(f"curate --help       {help_:.3f} s")
    print(f"ratio               {help_ / least:.2f}  (limit {LIMIT})")
    return help_ > LIMIT * least


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
