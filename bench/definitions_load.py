"""Seconds from a new process to loaded definitions, best and median of several. `python -m bench.definitions_load`"""

import statistics
import subprocess
import sys

from bench.common import clock, show

REPEATS = 5
STATEMENTS = {"import dagster": "import dagster", "load all definitions": "import definitions"}


def main() -> None:
    """One row per statement."""
    rows = []
    for label, statement in STATEMENTS.items():
        taken = []
        for _ in range(REPEATS):
            seconds: dict[str, float] = {}
            with clock(seconds, label):
                subprocess.run([sys.executable, "-W", "ignore", "-c", statement], check=True)
            taken.append(seconds[label])
        rows.append((label, min(taken), statistics.median(taken)))
    show("Loading the definitions", ("what", "best s", "median s"), rows)


if __name__ == "__main__":
    main()
