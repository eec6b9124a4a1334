"""CPU that one tick of each sensor and schedule takes with N batches there and nothing to do, in the process that evaluates it.

`python -m bench.ticks [N ...]`. Every batch is known and materialized; the ticks are those of the code server, run here.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import dagster as dg

from assets import build_program, jobs, keys
from bench.common import KEY, show
from med_assets.landing import batches
from med_assets.settings import Workspace
from resources.workspace import WorkspaceResource
from sensors.intake import intake_sensor
from sensors.monitoring import monitoring_schedule
from sensors.observe import SAME_TIME_S
from sensors.predictions import predictions_sensor
from sensors.retrain import retrain_sensor
from sensors.update import update_sensor

PROGRAM = "rt_dose"
SIZES = (10, 1000, 10_000)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return 1000 * (time.process_time() - started), found


def _fill(ws: Workspace, instance: dg.DagsterInstance, n: int) -> None:
    """N batches of one small entry, all known, registered and materialized."""
    landing = batches.landing_folder(ws, PROGRAM)
    landing.mkdir(parents=True)
    (landing / "entry").write_text("any")
    first = batches.take(ws, PROGRAM, batches.untaken(ws, PROGRAM), time.time())
    (landing / "entry").unlink()  # a landing zone is emptied by its owners
    (manifest,) = ws.home.rglob(f"{first}.json")
    for number in range(1, n):
        shutil.copyfile(manifest, manifest.with_stem(f"{first}{number:06d}"))
    known = batches.known(ws, PROGRAM)
    instance.add_dynamic_partitions(keys.batches_of(PROGRAM).name or "", known)
    for stage in ("raw_cases", "prepared_cases"):
        for batch in known:
            tags = {"dagster/data_version": batch, "dagster/code_version": "1"}
            event = dg.AssetMaterialization(keys.key(PROGRAM, stage), partition=batch, tags=tags)
            instance.report_runless_asset_event(event)


def measure(n: int) -> list[tuple[Any, ...]]:
    """One row per sensor or schedule: N, its name, ms of CPU of its first tick in a process and of one after that."""
    with tempfile.TemporaryDirectory() as name, dg.DagsterInstance.local_temp(name) as instance:
        os.environ |= {"MED_ASSETS_HOME": f"{name}/home", "MED_ASSETS_PSEUDONYM_KEY": KEY, "MED_ASSETS_SETTLE_S": "0"}
        ws = Workspace.from_env()
        filling, _ = _timed(lambda: _fill(ws, instance, n))
        graph = build_program(PROGRAM)
        named = jobs.of_program(PROGRAM, graph)
        sensors = {
            "intake": intake_sensor([PROGRAM], named, patience_s=0.0),
            "update": update_sensor(graph, [PROGRAM], named, patience_s=0.0),
            "retraining": retrain_sensor(PROGRAM, graph),
            "predictions": predictions_sensor([PROGRAM], named),
        }
        resource = WorkspaceResource()

        def of_sensor(sensor: dg.SensorDefinition, cursor: str | None) -> Any:
            with dg.build_sensor_context(instance, cursor=cursor, resources={"workspace": resource}) as context:
                return sensor(context)

        def of_schedule(schedule: dg.ScheduleDefinition) -> Any:
            with dg.build_schedule_context(instance, resources={"workspace": resource}) as context:
                return schedule(context)

        rows: list[tuple[Any, ...]] = [(n, "(making the batches)", filling, None)]
        time.sleep(SAME_TIME_S)  # what was written just now is compared again
        for title, sensor in sensors.items():
            first, found = _timed(partial(of_sensor, sensor, None))
            _, found = _timed(partial(of_sensor, sensor, getattr(found, "cursor", None)))
            again, _ = _timed(partial(of_sensor, sensor, getattr(found, "cursor", None)))
            rows.append((n, title, first, again))
        nightly = partial(of_schedule, monitoring_schedule(PROGRAM))
        return [*rows, (n, "monitoring, nightly", _timed(nightly)[0], _timed(nightly)[0])]


def main() -> None:
    """A row per N and tick."""
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    # A process for each size: Dagster's contexts keep an instance that is gone in a context variable.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        found = [row for rows in pool.map(measure, sizes) for row in rows]
    show("One tick with N batches and nothing to do", ("N", "tick", "first, ms of CPU", "again, ms of CPU"), found)


if __name__ == "__main__":
    main()
