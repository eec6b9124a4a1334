"""What 100,000 cases cost: tables, stages, ticks and one more batch, on a home of one machine and in a bucket; and intake by workers.

`python -m bench.scale [CASES [INTAKE_CASES]]`. The cases are rows of the ledger, in batches of BATCH, written through the Catalog as stages
write them: they have no files. The one more batch is a tiny DICOM phantom, and the throughput of intake and preparation is that of INTAKE_CASES
of them. The bucket is moto, in a process of this machine: its answers take no network, so count requests, and add the latency of yours.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dagster as dg

from assets import build_program, jobs, keys, versions
from bench.common import KEY, show
from bench.incremental import ledger_rows
from bench.s3_transfer import BUCKET, server
from med_assets.catalog import Catalog, query_tables
from med_assets.cli import stages
from med_assets.intake.reader import end_idle
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.records import PreparedCase
from med_assets.settings import Workspace
from med_assets.storage.s3 import bucket
from sensors.current import CODE, DATA
from sensors.observe import SAME_TIME_S
from sensors.update import update_sensor

PROGRAM = "rt_dose"
BATCH = 100
CASES, INTAKE_CASES = 100_000, 100
FIRST = 1000
"""The least number of cases; each next one is ten times as many."""

WORKERS, SIMULATED = (1, 2), (4, 8, 16)
SQL = "SELECT status, count(*) AS n FROM prepared_cases GROUP BY status"


@dataclass
class Requests:
    """HTTP requests to a bucket by operation, and the bytes of their bodies and of the answers."""

    counts: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0

    def since(self, before: "Requests") -> "Requests":
        """Those that came after others."""
        return Requests(self.counts - before.counts, self.sent - before.sent, self.received - before.received)

    def copy(self) -> "Requests":
        """Those until now."""
        return Requests(self.counts.copy(), self.sent, self.received)


@contextmanager
def counted_requests() -> Iterator[Requests]:
    """Requests of all clients that this process makes in here, as they are counted."""
    found, events = Requests(), bucket._session().events

    def asked(request: Any, event_name: str, **_: Any) -> None:
        found.counts[event_name.rpartition(".")[2]] += 1
        found.sent += int(request.headers.get("Content-Length") or 0)

    def answered(response_dict: Any, **_: Any) -> None:
        if response_dict is not None:  # it is None where the connection failed
            found.received += int(response_dict["headers"].get("Content-Length") or 0)

    handlers = {"before-send.s3": asked, "response-received.s3": answered}
    for name, handler in handlers.items():
        events.register(name, handler)
    try:
        yield found
    finally:
        for name, handler in handlers.items():
            events.unregister(name, handler)


def environment(home: Path) -> dict[str, str]:
    """Settings of a demo home."""
    return {
        "MED_ASSETS_HOME": str(home),
        "MED_ASSETS_PSEUDONYM_KEY": KEY,
        "MED_ASSETS_PURPOSE": "demo",
        "MED_ASSETS_PROFILE": "demo",
        "MED_ASSETS_SETTLE_S": "0",
        "MED_ASSETS_PROGRAMS": PROGRAM,
    }


@dataclass(frozen=True)
class Cost:
    """What some work took: seconds on the clock, CPU seconds of this process and its children, and requests."""

    cases: int
    work: str
    wall_s: float
    cpu_s: float
    requests: Requests


class Site:
    """A home with a Dagster instance, and what was measured with it."""

    def __init__(self, ws: Workspace, instance: dg.DagsterInstance, requests: Requests) -> None:
        self.ws, self.instance, self.requests = ws, instance, requests
        self.costs: list[Cost] = []
        self.cases = self.seed = 0
        graph = build_program(PROGRAM)
        self.update = update_sensor(graph, [PROGRAM], jobs.of_program(PROGRAM, graph), patience_s=0.0)

    def measure(self, work: str, do: Callable[[], Any]) -> Any:
        """Do some work and keep what it cost."""
        before, wall, cpu = self.requests.copy(), time.perf_counter(), _cpu_s()
        found = do()
        wall_s, cpu_s = time.perf_counter() - wall, _cpu_s() - cpu
        self.costs.append(Cost(self.cases, work, wall_s, cpu_s, self.requests.since(before)))
        return found

    def take_one(self) -> None:
        """One more batch of one phantom, from the landing zone to the splits."""
        batch = batches.take(self.ws, PROGRAM, batches.untaken(self.ws, PROGRAM), time.time())
        stages.intake(self.ws, PROGRAM, batch)
        stages.prepare(self.ws, PROGRAM, batch)
        stages.dataset(self.ws, PROGRAM)
        stages.splits(self.ws, PROGRAM)

    def drop(self) -> None:
        """Let a phantom arrive."""
        write_case(batches.landing_folder(self.ws, PROGRAM) / f"case-{self.seed}", self.seed)
        self.seed += 1

    def grow(self, to: int) -> list[str]:
        """Add rows of cases until there are so many; returns their batches."""
        catalog, added = Catalog(self.ws, PROGRAM), []
        for start in range(self.cases, to, BATCH):
            batch = f"2026-01-01T00-00-00_{start:08x}"
            ledger_rows(catalog, batch, start, min(start + BATCH, to))
            added.append(batch)
        self.cases = to
        return added

    def tell_dagster(self, added: Sequence[str]) -> None:
        """Record batches as prepared by the present code."""
        self.instance.add_dynamic_partitions(keys.batches_of(PROGRAM).name or "", added)
        for batch in added:
            tags = {DATA: batch, CODE: versions.of_prepared_cases(PROGRAM)}
            event = dg.AssetMaterialization(keys.key(PROGRAM, "prepared_cases"), partition=batch, tags=tags)
            self.instance.report_runless_asset_event(event)

    def tick(self, cursor: str | None) -> str | None:
        """One tick of the update sensor; returns its cursor."""
        with dg.build_sensor_context(self.instance, cursor=cursor) as context:
            found = self.update(context)
        return found.cursor if isinstance(found, dg.SensorResult) else None

    def cost(self) -> None:
        """Measure everything that may depend on the number of cases."""
        catalog = Catalog(self.ws, PROGRAM)
        self.measure("read all prepared rows, first", lambda: catalog.rows(PreparedCase))
        self.measure("the same again", lambda: catalog.rows(PreparedCase))
        self.measure("SQL: cases by status", lambda: query_tables(self.ws, SQL))
        self.measure("dataset", lambda: stages.dataset(self.ws, PROGRAM))
        self.measure("splits", lambda: stages.splits(self.ws, PROGRAM))
        cursor = self.measure("tick of update, first", lambda: self.tick(None))
        time.sleep(SAME_TIME_S)  # what was written just now is compared again
        cursor = self.tick(cursor)
        self.measure("tick of update, idle", lambda: self.tick(cursor))
        self.drop()
        self.measure("one more batch", self.take_one)
        self.measure("tick of update after it, compares", lambda: self.tick(cursor))


def _cpu_s() -> float:
    """CPU seconds of this process and of its children so far, those that go on included."""
    import psutil

    times = [one.cpu_times() for one in (psutil.Process(), *psutil.Process().children(recursive=True))]
    return sum(one.user + one.system for one in times) + sum(os.times()[2:4])


def home_of(store: dict[str, str], cases: int) -> tuple[list[Cost], list[tuple[Any, ...]]]:
    """What all costs at each number of cases in a home of one machine, or in the bucket of `store`; and how the tables grow."""
    growth = []
    with (
        counted_requests() as requests,
        tempfile.TemporaryDirectory() as name,
        dg.DagsterInstance.local_temp(name) as instance,
    ):
        os.environ |= environment(Path(name, "home")) | store
        site = Site(Workspace.from_env(), instance, requests)
        site.drop()
        site.take_one()
        sizes = sorted({min(cases, FIRST * 10**power) for power in range(9)})
        for size in sizes:
            added = size - site.cases
            new = site.measure("(writing the rows)", partial(site.grow, size))
            site.tell_dagster(new)
            files, n_bytes = stored(site.ws)
            filling = site.costs[-1]
            growth.append(
                (
                    size,
                    files,
                    n_bytes / size,
                    1000 * filling.wall_s / (added / BATCH),
                    sum(filling.requests.counts.values()) / (added / BATCH),
                    filling.requests.sent / added,
                )
            )
            site.cost()
    return site.costs, growth


def stored(ws: Workspace) -> tuple[int, int]:
    """Files of the tables, or objects of tables and log, and their bytes."""
    if ws.store_location is None:
        sizes = [path.stat().st_size for path in (ws.home / "lake").rglob("*.parquet")]
        return len(sizes), sum(sizes)
    pages = bucket.client().get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=ws.store_location.bucket, Prefix=ws.store_location.key("tables/"))
    sizes = [one["Size"] for page in found for one in page.get("Contents", ())]
    return len(sizes), sum(sizes)


def taken_in(landing: Path, workers: int) -> tuple[float, float, float]:
    """Seconds of intake and preparation of a landing zone in one batch, CPU seconds of this process, and of those that it started."""
    with tempfile.TemporaryDirectory() as name:
        os.environ |= environment(Path(name))
        ws = replace(Workspace.from_env(), landing=landing, workers=workers)
        batch = batches.take(ws, PROGRAM, batches.untaken(ws, PROGRAM), time.time())
        before, wall = os.times(), time.perf_counter()
        stages.intake(ws, PROGRAM, batch)
        stages.prepare(ws, PROGRAM, batch)
        wall = time.perf_counter() - wall
        end_idle()  # so that their CPU seconds count
        own_user, own_system, user, system, _ = (after - now for after, now in zip(os.times(), before, strict=True))
    for path in landing.glob(f".batches/{PROGRAM}/*"):  # the next home takes the same files
        path.unlink()
    return wall, own_user + own_system, user + system


def throughput(cases: int) -> list[tuple[Any, ...]]:
    """Cases per second by workers: measured, and for more than there are cores here by the CPU seconds of a case that one process must spend.

    What a batch costs whatever its cases, such as imports, is that of a batch of one, and is taken off for the simulated.
    """
    with tempfile.TemporaryDirectory() as name:
        one, all_of_them = Path(name, "one"), Path(name, "all")
        write_case(one / PROGRAM / "case", 0)
        for seed in range(cases):
            write_case(all_of_them / PROGRAM / f"case-{seed}", seed)
        found = {workers: alone(taken_in, all_of_them, workers) for workers in WORKERS}
        _, own_of_one, others_of_one = alone(taken_in, one, max(WORKERS))
    _, own_s, others_s = found[max(WORKERS)]
    own, others = ((all_s - of_one) / (cases - 1) for all_s, of_one in ((own_s, own_of_one), (others_s, others_of_one)))
    rows: list[tuple[Any, ...]] = [
        (workers, "measured, with the start", cases / wall_s, (own_s + others_s) / cases, own_s / cases)
        for workers, (wall_s, own_s, others_s) in found.items()
    ]
    return rows + [(n, "simulated", 1 / max(own, others / n), own + others, own) for n in (*WORKERS, *SIMULATED)]


def alone(do: Callable[..., Any], *arguments: Any) -> Any:
    """Do something in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(do, *arguments).result()


@contextmanager
def bucket_of_bench() -> Iterator[dict[str, str]]:
    """Variables of an endpoint on this machine, and of a home in a bucket there."""
    with server() as found:
        yield found | {"MED_ASSETS_STORE": f"s3://{BUCKET}/home"}


TABLES = (
    "cases",
    "files or objects",
    "bytes per case",
    "ms per batch",
    "requests per batch",
    "bytes sent per case",
)
COSTS = ("work", "cases", "s", "CPU s", "ratio to the first", "requests", "MB sent", "MB received")
THROUGHPUT = ("workers", "how", "cases/s", "CPU s per case", "of it in the one process that collects")


def show_home(title: str, costs: Sequence[Cost], growth: Sequence[Sequence[Any]]) -> None:
    """The tables of one kind of home."""
    show(f"Tables of a home ({title}): rows of the ledger in batches of {BATCH}", TABLES, growth)
    first = {cost.work: cost.cpu_s for cost in reversed(costs)}
    rows = [
        (
            cost.work,
            cost.cases,
            cost.wall_s,
            cost.cpu_s,
            cost.cpu_s / first[cost.work] if first[cost.work] else "",
            ", ".join(f"{n} {name}" for name, n in cost.requests.counts.most_common()),
            cost.requests.sent / 1e6,
            cost.requests.received / 1e6,
        )
        for cost in sorted(costs, key=lambda one: one.work)
    ]
    show(f"By number of cases ({title})", COSTS, rows)


def main() -> None:
    """Tables of growth, of costs by number of cases in both kinds of home, and of throughput by workers."""
    cases, phantoms = (*map(int, sys.argv[1:]), *(CASES, INTAKE_CASES)[len(sys.argv) - 1 :])
    show_home("one machine", *alone(home_of, {}, cases))
    with bucket_of_bench() as store:
        show_home("bucket", *alone(home_of, store, cases))
    show(f"Intake and preparation of {phantoms} phantoms in one batch", THROUGHPUT, throughput(phantoms))


if __name__ == "__main__":
    main()
