"""How long a dropped case takes to become a prepared one with `make ui` running, and what that time is made of.

`python -m bench.latency [CASES]`. Settings are the defaults: a case settles for 30 s, sensors tick every 30 s.
"""

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from assets.run import instance_of
from bench.common import KEY, show
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.settings import Workspace

PROGRAM = "rt_dose"
SHAPE, SPACING_MM = (20, 32, 32), (9.0, 10.0, 10.0)
"""Tiny cases: what is measured is waiting and starting, not computing."""
PATIENCE_S = 600.0
ROOT = Path(__file__).resolve().parents[1]


def _wait(met: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not met():
        if time.monotonic() > end:
            sys.exit(f"waited {PATIENCE_S:.0f} s for {what}, in vain")
        time.sleep(0.2)


def one(ws: Workspace, instance: dg.DagsterInstance, seed: int) -> dict[str, float]:
    """Seconds of each part of one case's way."""
    landing = batches.landing_folder(ws, PROGRAM)
    known = set(batches.known(ws, PROGRAM))
    write_case(ws.home / "made" / f"case-{seed}", seed, shape=SHAPE, spacing_mm=SPACING_MM)
    landing.mkdir(parents=True, exist_ok=True)
    (ws.home / "made" / f"case-{seed}").rename(landing / f"case-{seed}")
    dropped = time.time()
    _wait(lambda: set(batches.known(ws, PROGRAM)) - known, "the batch")
    taken = time.time()
    (batch,) = set(batches.known(ws, PROGRAM)) - known
    _wait(lambda: ws.lake.rows("prepared_cases", f"{PROGRAM}/{batch}"), "the prepared row")
    prepared = time.time()
    wanted = dg.RunsFilter(tags={"dagster/partition": batch})
    _wait(lambda: instance.get_run_records(wanted), "the run")
    _wait(lambda: instance.get_run_records(wanted)[0].start_time, "the run's start")
    run = instance.get_run_records(wanted)[0]
    created, started = run.create_timestamp.timestamp(), float(run.start_time or 0.0)
    return {
        "settling": ws.settle_s,
        "waiting for the sensor": taken - dropped - ws.settle_s,
        "the run is asked for": created - taken,
        "the run's process starts": started - created,
        "intake and preparation": prepared - started,
        "all": prepared - dropped,
    }


@contextmanager
def running() -> Iterator[tuple[Workspace, dg.DagsterInstance, int]]:
    """A demo workspace, its Dagster instance, and the process id of a `make ui` that works on them until the end."""
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"MED_ASSETS_HOME": f"{name}/home", "MED_ASSETS_PSEUDONYM_KEY": KEY, "MED_ASSETS_PURPOSE": "demo"}
        os.environ |= {"MED_ASSETS_PROFILE": "demo", "DAGSTER_HOME": f"{name}/dagster"}
        os.environ.pop("MED_ASSETS_SETTLE_S", None)
        ws = Workspace.from_env()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with instance_of(ws) as instance:
            instance.get_runs_count()  # makes the storage before two processes do
            command = [sys.executable, "-m", "resources.ui", "-p", str(port)]
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # which a job in the background ignores, and its children too
            with (Path(name) / "log").open("wb") as log:
                server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            try:
                yield ws, instance, server.pid
            finally:
                os.killpg(server.pid, signal.SIGINT)
                server.wait(timeout=60)


def main() -> None:
    """Medians over the cases; the first case, which finds everything cold, is left out."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with running() as (ws, instance, _):
        found = [one(ws, instance, seed) for seed in range(n + 1)][1:]
    rows = [(part, statistics.median(times[part] for times in found)) for part in found[0]]
    show(f"From a dropped case to its prepared row, median of {n}", ("part", "s"), rows)


if __name__ == "__main__":
    main()
