"""Seconds that one tick of each sensor and schedule takes with N batches there and nothing to do.

`python -m bench.ticks [N ...]`. Every batch is known and materialized; the ticks are those of the daemon, run here.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import dagster as dg
from sensors.reconcile import reconcile_schedule

import resources
from assets import build_program, keys
from bench.common import KEY, show
from med_assets.landing import batches
from med_assets.settings import Workspace
from resources import WorkspaceResource
from sensors import automated
from sensors.intake import intake_sensor
from sensors.monitoring import monitoring_schedule
from sensors.retrain import retrain_sensor

PROGRAM = "rt_dose"
SIZES = (10, 1000, 10_000)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.monotonic()
    found = work()
    return time.monotonic() - started, found


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
    """One row per sensor or schedule: N, its name, seconds of its tick."""
    with tempfile.TemporaryDirectory() as name, dg.DagsterInstance.local_temp(name) as instance:
        os.environ |= {"MED_ASSETS_HOME": f"{name}/home", "MED_ASSETS_PSEUDONYM_KEY": KEY, "MED_ASSETS_SETTLE_S": "0"}
        ws = Workspace.from_env()
        filling, _ = _timed(lambda: _fill(ws, instance, n))
        assets = [automated(asset) for asset in build_program(PROGRAM)]
        resource = WorkspaceResource()

        def of_sensor(sensor: dg.SensorDefinition) -> Any:
            with dg.build_sensor_context(instance) as context:
                return sensor(context, workspace=resource)

        def of_schedule(schedule: dg.ScheduleDefinition) -> Any:
            with dg.build_schedule_context(instance) as context:
                return schedule(context, workspace=resource)

        defs = dg.Definitions(assets=assets, resources=resources.build())
        first, evaluated = _timed(lambda: dg.evaluate_automation_conditions(defs, instance))
        again, _ = _timed(lambda: dg.evaluate_automation_conditions(defs, instance, cursor=evaluated.cursor))
        rows = [
            ("(making the batches)", filling),
            ("intake", _timed(lambda: of_sensor(intake_sensor(PROGRAM)))[0]),
            ("retraining", _timed(lambda: of_sensor(retrain_sensor(PROGRAM)))[0]),
            ("monitoring", _timed(lambda: of_schedule(monitoring_schedule(PROGRAM)))[0]),
            ("reconcile", _timed(lambda: of_schedule(reconcile_schedule(PROGRAM, assets)))[0]),
            ("automation, first", first),
            ("automation, nothing changed", again),
        ]
        return [(n, *row) for row in rows]


def main() -> None:
    """A row per N and tick."""
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    # A process for each size: Dagster's contexts keep an instance that is gone in a context variable.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        found = [row for rows in pool.map(measure, sizes) for row in rows]
    show("One tick with N batches and nothing to do", ("N", "tick", "s"), found)


if __name__ == "__main__":
    main()
