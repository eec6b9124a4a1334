"""CPU seconds from a new process to loaded definitions beside those of `import dagster`. `python -m bench.definitions_load`

Both are measured in one process, several times, since a busy machine changes both alike. Bytecode is written, as it is
by default: an environment that forbids it compiles all modules of the project in each process.
"""

import os
import statistics
import subprocess
import sys

from bench.common import show

REPEATS = 5
CODE = (
    "import time, dagster; first = time.process_time(); import definitions; print(first, time.process_time() - first)"
)


def main() -> None:
    """One row per statement, and how many times `import dagster` all of it takes."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    subprocess.run(command, env=env, check=True, capture_output=True)  # fills the cache of experiments
    taken = [
        tuple(
            map(float, subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.split()[-2:])
        )
        for _ in range(REPEATS)
    ]
    dagster, ours = zip(*taken, strict=True)
    ratios = [(first + then) / first for first, then in taken]
    rows = [
        (label, min(found), statistics.median(found))
        for label, found in (
            ("import dagster", dagster),
            ("the definitions, after that", ours),
            ("both / import dagster", ratios),
        )
    ]
    show("Loading the definitions, warm", ("what", "best, s of CPU", "median, s of CPU"), rows)


if __name__ == "__main__":
    main()
