"""Run Python in a process of its own that has imported what many of them need.

`python -m tests.code STDIN CODE WORD...` is `python -c CODE WORD...` with the open file STDIN as its input. Forked from a parent that has
imported `LIBRARIES` (`med_assets.storage.preloaded`), it costs no import but those that are its own.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from med_assets.storage import preloaded

LIBRARIES = (
    "boto3", "botocore.retries.standard", "moto.server", "moto.s3.responses", "pyarrow.parquet", "pandas", "pytest",
    "med_assets.catalog", "med_assets.storage.s3.lake", "med_assets.storage.s3.lease", "med_assets.storage.s3.local",
)  # fmt: skip
"""What the code of most of them imports: no torch or Great Expectations, which few need, nor duckdb, see `tests.conftest.COMMANDS`."""


class Code:
    """Code that runs in another process; as much of `subprocess.Popen` as tests use, with text."""

    def __init__(self, code: str, *words: str, environment: Mapping[str, str] = os.environ, stderr: int = 2) -> None:
        theirs, ours = os.pipe()
        answers, written = os.pipe()
        command = [sys.executable, "-m", "tests.code", str(theirs), code, *words]
        try:
            self._process = preloaded.start(command, environment, written, stderr, keep=[theirs], tied=True)
        finally:
            os.close(theirs)
            os.close(written)
        self.stdin: IO[str] = open(ours, "w")  # noqa: SIM115 - closed by `communicate`
        self.stdout: IO[str] = open(answers)  # noqa: SIM115 - closed by `communicate`
        self.pid, self.wait, self.poll = self._process.pid, self._process.wait, self._process.poll
        self.kill, self.send_signal = self._process.kill, self._process.send_signal

    def communicate(self, text: str = "", timeout: float | None = None) -> str:
        """Give it its last input, wait for its end, and return what it printed that was not read yet. Raises subprocess.TimeoutExpired."""
        with suppress(BrokenPipeError), self.stdin:
            self.stdin.write(text)
        with self.stdout:
            found = self.stdout.read()
        self.wait(timeout)
        return found


def main(stdin: str, code: str, *words: str) -> None:
    """Run the code as a new process of Python would."""
    if number := int(stdin):
        os.dup2(number, 0)
        os.close(number)
    sys.argv = ["-c", *words]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(*sys.argv[1:])
