"""One more case on top of N: CPU seconds, tables' files read and written, ratio to the first N. `python -m bench.incremental [N ...]`

The N cases are rows of the ledger, in batches of BATCH: what is measured is the cost of what did not change. CPU seconds are
those of this process and of those that read and prepare cases, without their start; of three cases, the median.
"""

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.common import show, workspace
from med_assets.catalog import CaseFacts, Catalog
from med_assets.cli import stages
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.records import BatchAudit, CaseVersion, PreparedCase
from med_assets.settings import Workspace

PROGRAM = "rt_dose"
SIZES = (10, 100, 1000, 10_000)
BATCH, REPEATS = 50, 3


def follow(ws: Workspace) -> int:
    """Take what is new and bring the cheap assets up to date; returns how many cases were computed."""
    batch = batches.take(ws, PROGRAM, batches.untaken(ws, PROGRAM), time.time())
    stages.intake(ws, PROGRAM, batch)
    prepared = stages.prepare(ws, PROGRAM, batch)
    stages.dataset(ws, PROGRAM)
    stages.splits(ws, PROGRAM)
    return prepared.counts["new"]


def ledger_rows(catalog: Catalog, batch: str, first: int, last: int) -> None:
    """Write the rows of a batch with the cases from `first` to before `last`, of other patients, like those of the newest case that has files."""
    template = catalog.batches()[-1]
    raw, prepared, facts = (
        catalog.case_versions(template)[0],
        catalog.prepared(template)[0],
        catalog.facts(template)[0],
    )
    audit = catalog.rows(BatchAudit, template)[0]
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(first, last)]
    own: list[dict[str, Any]] = [
        {"batch": batch, "case_id": one[:12], "patient_id": one[12:28], "version": one[:20], "content_hash": one}
        for one in hashes
    ]
    catalog.replace(CaseVersion, [replace(raw, **row) for row in own], batch)
    catalog.replace_facts([CaseFacts(batch, one[:12], one[:20], facts.values) for one in hashes], batch)
    catalog.replace(PreparedCase, [replace(prepared, **row) for row in own], batch)
    catalog.replace(BatchAudit, [replace(audit, batch=batch)], batch)


def fill(ws: Workspace, n: int) -> None:
    """Add the rows of `n` cases, and bring dataset and splits up to date."""
    catalog = Catalog(ws, PROGRAM)
    for start in range(0, n, BATCH):
        ledger_rows(catalog, f"2026-01-01T00-00-00_{start:08x}", start, min(start + BATCH, n))
    stages.dataset(ws, PROGRAM)
    stages.splits(ws, PROGRAM)


def cpu_s() -> float:
    """CPU seconds of this process and of its children so far."""
    times = [one.cpu_times() for one in (psutil.Process(), *psutil.Process().children())]
    return sum(one.user + one.system for one in times)


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How many files of tables, and of copies of them, are read and written within it."""
    counts = {"read": 0, "written": 0}
    originals = pa.OSFile, pa.memory_map, pq.write_table

    def of_file(path: Any, mode: str = "r", **named: Any) -> Any:
        counts["written" if mode == "wb" else "read"] += 1
        return originals[0](path, mode, **named)

    def mapped(*given: Any, **named: Any) -> Any:
        counts["read"] += 1
        return originals[1](*given, **named)

    def writing(*given: Any, **named: Any) -> None:
        counts["written"] += 1
        originals[2](*given, **named)

    pa.OSFile, pa.memory_map, pq.write_table = of_file, mapped, writing
    try:
        yield counts
    finally:
        pa.OSFile, pa.memory_map, pq.write_table = originals


def measure(n: int) -> tuple[int, int, float, int, int]:
    """N, cases computed for one more, CPU seconds, files of tables read, and written."""
    with tempfile.TemporaryDirectory() as name:
        ws = workspace(Path(name))
        landing = batches.landing_folder(ws, PROGRAM)
        write_case(landing / "case-0", 0)
        follow(ws)
        fill(ws, n)
        found = []
        for seed in range(1, REPEATS + 1):
            write_case(landing / f"case-{seed}", seed)
            started = cpu_s()
            with counted() as files:
                computed = follow(ws)
            found.append((cpu_s() - started, computed, files["read"], files["written"]))
        seconds, computed, read, written = (statistics.median(column) for column in zip(*found, strict=True))
        return n, int(computed), seconds, int(read), int(written)


def main() -> None:
    """One row per N."""
    measured = [measure(int(word)) for word in sys.argv[1:] or SIZES]
    rows = [(*row, row[2] / measured[0][2]) for row in measured]
    header = ("N", "cases computed for one more", "CPU s", "files of tables read", "written", "ratio to the first")
    show("One more case on top of N", header, rows)


if __name__ == "__main__":
    main()
