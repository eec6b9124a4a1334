"""Listing a landing zone of N files in which nothing changed since they were taken: `python -m bench.rescan [N ...]`.

Half of the files lie in entries of 100, half in one entry. This is what a tick of the intake sensor does when there is nothing new; a tick of
more than 60 s fails in Dagster.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import show, workspace
from med_assets.landing import batches

PROGRAM = "rt_dose"
SIZES = (1000, 100_000)
EACH = 100


def fill(landing: Path, n: int) -> None:
    """Write N small files, half in entries of EACH, half in one."""
    for number in range(n):
        folder = landing / (f"case-{number // EACH}" if number < n // 2 else f"all/{number // 1000}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.dcm").write_bytes(b"any")


def measure(n: int) -> tuple[int, int, float, float, int]:
    """N, entries, seconds by the wall and of CPU of one listing, and files of the landing zone that it opened."""
    with tempfile.TemporaryDirectory() as name:
        ws = workspace(Path(name))
        landing = batches.landing_folder(ws, PROGRAM)
        fill(landing, n)
        batches.take(ws, PROGRAM, batches.untaken(ws, PROGRAM), time.time())
        batches.untaken(ws, PROGRAM)
        opened: list[str] = []
        listing = True

        def count(event: str, given: tuple[Any, ...]) -> None:
            if listing and event == "open" and str(given[0]).startswith(str(landing)):
                opened.append(str(given[0]))

        sys.addaudithook(count)  # Python has no way to take it away: it counts while it is listed
        started, cpu = time.perf_counter(), time.process_time()
        found = batches.untaken(ws, PROGRAM)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        listing = False
        assert not found, "expected nothing new in the landing zone"
        return n, len(os.listdir(landing)), wall_s, cpu_s, len(opened)


def main() -> None:
    """One row per N."""
    found = [measure(int(word)) for word in sys.argv[1:] or SIZES]
    show(
        "Listing of a landing zone in which nothing changed",
        ("files", "entries", "wall s", "CPU s", "files opened"),
        found,
    )


if __name__ == "__main__":
    main()
