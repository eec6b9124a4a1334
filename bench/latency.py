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

from assets import keys
from assets.run import instance_of, materialize
from bench.common import KEY, show
from med_assets.catalog import Catalog
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.records import PreparedCase
from med_assets.settings import Workspace
from sensors import runs
from sensors.settings import tick_s

PROGRAM = "rt_dose"
SEEDS = range(12)
EXPERIMENT = "mean_dose"
PATIENCE_S = 600.0
ROOT = Path(__file__).resolve().parents[1]


def _wait(met: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not met():
        if time.monotonic() > end:
            sys.exit(f"waited {PATIENCE_S:.0f} s for {what}, in vain")
        time.sleep(0.2)


def one(ws: Workspace, instance: dg.DagsterInstance, seed: int) -> dict[str, float]:
    """Seconds of each part of one case's way to the report, and how many runs there were."""
    landing, report = batches.landing_folder(ws, PROGRAM), keys.key(PROGRAM, "report")
    known, runs_before = set(batches.known(ws, PROGRAM)), instance.get_runs_count()
    write_case(ws.home / "made" / f"case-{seed}", seed)
    landing.mkdir(parents=True, exist_ok=True)
    (ws.home / "made" / f"case-{seed}").rename(landing / f"case-{seed}")
    dropped = time.time()
    _wait(lambda: set(batches.known(ws, PROGRAM)) - known, "the batch")
    taken = time.time()
    (batch,) = set(batches.known(ws, PROGRAM)) - known
    _wait(lambda: Catalog(ws, PROGRAM).has(PreparedCase, batch), "the prepared row")
    prepared = time.time()

    def reported() -> float:
        event = instance.get_latest_materialization_event(report)
        return event.timestamp if event and event.timestamp > dropped else 0.0

    _wait(reported, "the report")
    _wait(lambda: not runs.unfinished(instance), "the end of the runs")
    time.sleep(2 * tick_s())  # in which nothing more should start
    intake, update = reversed(instance.get_run_records(limit=2))
    found = {
        "settling": ws.settle_s,
        "waiting for the sensor": taken - dropped - ws.settle_s,
        **_of_run(instance, intake, taken, "intake"),
        **_of_run(instance, update, float(intake.end_time or 0.0), "update"),
    }
    return found | {
        "to the prepared row": prepared - dropped,
        "to the report": reported() - dropped,
        "runs": instance.get_runs_count() - runs_before,
        "load of the machine (1 minute)": os.getloadavg()[0],
    }


def _of_run(instance: dg.DagsterInstance, record: dg.RunRecord, since: float, title: str) -> dict[str, float]:
    """Seconds of the parts of a run, which something before it made possible at `since`."""
    created, started = record.create_timestamp.timestamp(), float(record.start_time or 0.0)
    steps = instance.get_run_step_stats(record.dagster_run.run_id)
    in_steps = {one.step_key.removeprefix(f"{PROGRAM}__"): (one.end_time or 0) - (one.start_time or 0) for one in steps}
    return {
        f"{title}: until it is requested": created - since,
        f"{title}: queue and start of its process": started - created,
        **{f"{title}: {name}": seconds for name, seconds in in_steps.items()},
        f"{title}: between its steps": float(record.end_time or 0.0) - started - sum(in_steps.values()),
    }


@contextmanager
def running(
    prepare: Callable[[Workspace], None] = lambda ws: None,
) -> Iterator[tuple[Workspace, dg.DagsterInstance, int]]:
    """A demo workspace, its Dagster instance, and the process id of a `make ui` that works on them until the end."""
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"MED_ASSETS_HOME": f"{name}/home", "MED_ASSETS_PSEUDONYM_KEY": KEY, "MED_ASSETS_PURPOSE": "demo"}
        os.environ |= {"MED_ASSETS_PROFILE": "demo", "DAGSTER_HOME": f"{name}/dagster"}
        prepare(Workspace.from_env(os.environ | {"MED_ASSETS_SETTLE_S": "0"}))
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


def prepare(ws: Workspace) -> None:
    """Cases with a model that was evaluated, so that a new one has something to update."""
    for seed in SEEDS:
        write_case(batches.landing_folder(ws, PROGRAM) / f"case-{seed}", seed)
    materialize(ws, PROGRAM, (EXPERIMENT,))


def main() -> None:
    """Medians over the cases; the first case, which finds everything cold, is left out."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with running(prepare) as (ws, instance, _):
        found = [one(ws, instance, seed) for seed in range(100, 100 + n + 1)][1:]
    rows = [(part, statistics.median(times.get(part, 0.0) for times in found)) for part in found[0]]
    show(f"From a dropped case to its prepared row and the updated report, median of {n}", ("part", "s"), rows)


if __name__ == "__main__":
    main()
