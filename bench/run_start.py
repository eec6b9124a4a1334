"""From a dropped case to the end of its intake run, part by part, with Dagster's record in SQLite and in PostgreSQL.

`python -m bench.run_start [CASES]`. Both run as a site does: a server of the definitions, a daemon, and queries of this process. The sensor's
ticks are a second apart, so that the parts are those of Dagster. PostgreSQL is Debian's, on this machine, with fsync.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from assets import keys
from bench.common import KEY, show
from bench.latency import _of_run
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.settings import Workspace
from sensors import runs
from tests import postgres
from tests.conftest import REPOSITORY
from tests.site import Site, site

PROGRAM = "rt_dose"


def measure(folder: Path, home: Path, variables: Mapping[str, str], n: int) -> dict[str, float]:
    """Median seconds of each part over `n` cases after a first one, which finds everything cold."""
    own = {"MED_ASSETS_HOME": str(folder / "home"), "MED_ASSETS_PSEUDONYM_KEY": KEY, "MED_ASSETS_PURPOSE": "demo"}
    own |= {"MED_ASSETS_PROFILE": "demo", "MED_ASSETS_SETTLE_S": "0", "MED_ASSETS_TICK_S": "1", **variables}
    os.environ |= own | {"DAGSTER_HOME": str(home), "MED_ASSETS_PROGRAMS": PROGRAM}
    ws = Workspace.from_env()
    with site(folder, home, {**os.environ}) as machines, dg.DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs_count()
        machines.start_code_location()
        machines.start_daemon()
        found = [_one(ws, instance, machines, seed) for seed in range(n + 1)][1:]
        return {part: statistics.median(times[part] for times in found) for part in found[0]}


def _one(ws: Workspace, instance: dg.DagsterInstance, machines: Site, seed: int) -> dict[str, float]:
    before = instance.get_runs_count()
    write_case(ws.home / "made" / f"case-{seed}", seed)
    landing = batches.landing_folder(ws, PROGRAM)
    landing.mkdir(parents=True, exist_ok=True)
    dropped = time.time()
    (ws.home / "made" / f"case-{seed}").rename(landing / f"case-{seed}")
    machines.wait_for("a run", lambda: instance.get_runs_count() > before, instance)
    machines.wait_for("its end", lambda: not runs.unfinished(instance), instance)
    intake = next(
        one for one in instance.get_run_records() if one.dagster_run.job_name == keys.job(PROGRAM, keys.INTAKE)
    )
    return _of_run(instance, intake, dropped, "intake") | {"all": float(intake.end_time or 0.0) - dropped}


def main() -> None:
    """A row per part."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found = {}
    with tempfile.TemporaryDirectory() as name, postgres.running(durable=True) as server:
        for title in ("SQLite", "PostgreSQL"):
            folder = Path(name, title)
            home = folder / "dagster"
            variables = {}
            if title == "SQLite":
                home.mkdir(parents=True)
                (home / "dagster.yaml").write_text((REPOSITORY / "resources" / "dagster.yaml").read_text())
            else:
                variables = server.database()
                os.environ |= variables
                postgres.settings(home)
            found[title] = measure(folder, home, variables, n)
    rows = [(part, *(found[title][part] for title in found)) for part in found["SQLite"]]
    show(f"A dropped case and its intake run, median of {n}", ("part", *(f"{title}, s" for title in found)), rows)


if __name__ == "__main__":
    main()
