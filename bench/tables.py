"""Commits of tables in a folder and in a bucket, by one writer and by eight, and ten thousand partitions. `python -m bench.tables`

Each writer is a process that replaces partitions of its own by 20 rows. The folder is on the disk of the repository, and each file is flushed to it.
The bucket is moto's on this machine, in a process of its own, with the CPU that the writers have too: a real server answers more requests.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.common import clock, show
from bench.s3_transfer import BUCKET, server
from med_assets.storage.lake import Change, Lake
from med_assets.storage.s3 import table_log
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake
from med_assets.storage.s3.table_state import CHECKPOINT_COMMITS, Part
from med_assets.storage.s3.waiting import Planned

TABLES: dict[str, dict[str, type]] = {"scores": {"case_id": str, "value": float}}
CASES = [f"case-{number}" for number in range(20)]


def rows(number: int) -> dict[str, list[Any]]:
    """Rows of a partition, others for each number."""
    return {"case_id": CASES, "value": [number + each / len(CASES) for each in range(len(CASES))]}


ROWS = rows(0)
SECONDS = 5.0
WRITERS = 8
N_PARTITIONS = 10_000
N_FILES = 2_000
"""Partitions that are read, and so really written: that takes a while."""


def opened(location: str, home: Path) -> Lake:
    """The tables in a bucket below this prefix, or in a folder where there is none."""
    root = home / "lake"
    return S3Lake(Location(BUCKET, location), root, TABLES) if location else Lake(root, TABLES)


def write(writer: str, location: str, home: str) -> None:
    """What one process does: say that it is ready, wait for a line, commit for SECONDS, and print what it took."""
    tables, took = opened(location, Path(home)), list[float]()
    tables.write_columns("scores", f"p/first{writer}", ROWS)
    requests = counted(tables._log.client) if isinstance(tables, S3Lake) else Counter[str]()
    print("ready", flush=True)
    sys.stdin.readline()
    cpu_s = time.process_time()
    started = now = time.perf_counter()
    while now - started < SECONDS:
        tables.write_columns("scores", f"p/{writer}-{len(took) % 50}", rows(len(took)))
        before, now = now, time.perf_counter()
        took.append(now - before)
    work = {"seconds": took, "cpu_s": time.process_time() - cpu_s, "requests": requests.total()}
    print(json.dumps(work), flush=True)


def commits(location: str, homes: list[Path]) -> tuple[float, float, float, float]:
    """What one writer in each of these homes does, all together.

    Commits per second, median of how long one takes (ms), CPU of the writers (ms) and requests per commit.
    """
    command = [sys.executable, "-m", "bench.tables", "write"]
    processes = [
        subprocess.Popen(
            [*command, str(writer), location, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for writer, home in enumerate(homes)
    ]
    took, cpu_s, requests = list[float](), 0.0, 0
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate()
        work = json.loads(out)
        took += work["seconds"]
        cpu_s += work["cpu_s"]
        requests += work["requests"]
    return len(took) / SECONDS, 1000 * statistics.median(took), 1000 * cpu_s / len(took), requests / len(took)


def counted(client: Any) -> Counter[str]:
    """Requests that a client makes from now on, by method."""
    found: Counter[str] = Counter()
    client.meta.events.register("before-send.s3", lambda request, **_: found.update([request.method]))
    return found


def in_words(found: Counter[str]) -> str:
    """Requests by method."""
    return ", ".join(f"{number} {method}" for method, number in sorted(found.items())) or "none"


def many(folder: Path) -> list[tuple[object, ...]]:
    """How long it takes to open, to commit to and to read many partitions, and how many requests."""
    seconds: dict[str, float] = {}
    first = S3Lake(Location(BUCKET, "many"), folder / "first" / "lake", TABLES)
    first.adopt(
        [
            Planned("unread", f"q/b{number:05d}", Part(f"{number:064x}", "0" * 8, 100, ()))
            for number in range(N_PARTITIONS)
        ]
    )
    for number in range(99):
        first.write_columns("scores", f"p/{number % 10}", ROWS)
    lines: list[tuple[object, ...]] = []

    def step(title: str, tables: S3Lake, work: Any) -> None:
        found = counted(tables._log.client)
        with clock(seconds, title):
            work(tables)
        lines.append((title, 1000 * seconds[title], in_words(found)))

    new = S3Lake(Location(BUCKET, "many"), folder / "new" / "lake", TABLES)
    step(f"open cold, {N_PARTITIONS} partitions", new, lambda tables: tables.partitions("unread"))
    table_log.forget(folder / "new")
    step("open again, by a new process of the same machine", new, lambda tables: tables.partitions("unread"))
    step("a commit", new, lambda tables: tables.write_columns("scores", "p/x", ROWS))

    read = S3Lake(Location(BUCKET, "read"), folder / "first" / "lake", TABLES)
    for start in range(0, N_FILES, 100):
        read.commit([Change("scores", f"q/b{number:05d}", ROWS) for number in range(start, start + 100)])
    new = S3Lake(Location(BUCKET, "read"), folder / "reader" / "lake", TABLES)
    step(f"read {N_FILES} partitions for the first time, without a pack", new, lambda tables: tables.columns("scores"))
    step("read them again", new, lambda tables: tables.columns("scores"))
    while read.number % CHECKPOINT_COMMITS:
        read.write_columns("scores", "p/x", ROWS)
    new = S3Lake(Location(BUCKET, "read"), folder / "later" / "lake", TABLES)
    step(f"read {N_FILES} partitions for the first time, with a pack", new, lambda tables: tables.columns("scores"))
    return lines


def main() -> None:
    """Measure, and print two tables."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name, server() as variables:
        os.environ |= variables
        folder, lines = Path(name), list[tuple[object, ...]]()
        base = 0.0
        for title, location, homes in (
            ("a folder on disk, 1 writer", "", ["f1"]),
            (f"a folder on disk, {WRITERS} writers", "", [f"f{WRITERS}"] * WRITERS),
            ("a bucket, 1 writer", "one", ["b1"]),
            (f"a bucket, {WRITERS} writers of one machine", "machine", ["b8"] * WRITERS),
            (f"a bucket, {WRITERS} writers of {WRITERS} machines", "machines", [f"m{n}" for n in range(WRITERS)]),
        ):
            per_second, *others = commits(location, [folder / home for home in homes])
            base = base or per_second
            lines.append((title, per_second, *others, per_second / base))
        header = (
            "tables",
            "commits per second",
            "median of one, ms",
            "CPU of writers per commit, ms",
            "requests per commit",
            "times a folder with 1 writer",
        )
        show(f"Commits of a partition of 20 rows, {SECONDS:.0f} s each", header, lines)
        show("Many partitions in a bucket", ("what", "ms", "requests"), many(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(*sys.argv[2:])
    else:
        main()
