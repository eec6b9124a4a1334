"""A process of pytest-xdist that has the libraries of the tests from the parent of `tests.fresh`, which imports them once for all.

`python -m tests.worker -u -c CODE`, as execnet starts Python, is that process to execnet: it starts CODE, gives it its own input and output,
and ends with it. Each would else spend ten seconds of a core on the imports that all have in common.
"""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

from med_assets.storage import preloaded

GIVEN_VARIABLE = "PYTEST_GIVEN"
"""Environment variable with the names of the variables that a worker was started with, without those that imports of its parent set."""

COMMAND = shlex.join([sys.executable, "-m", "tests.worker"])
"""What execnet starts in place of Python."""


def main(*words: str) -> int:
    """Start a worker, wait for its end, and return its exit status; it is killed when this process is."""
    code = words[words.index("-c") + 1]
    command = [sys.executable, "-m", "tests.fresh", str(Path(__file__).resolve().parents[1]), code]
    given = {GIVEN_VARIABLE: json.dumps(sorted(os.environ))}
    process = preloaded.start(command, os.environ | given, stdin=0, tied=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a worker ends when its controller says so
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
