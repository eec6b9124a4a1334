"""The composition root: loads assets, resources and sensors, and applies what holds for all of them."""

import gc
import warnings

import dagster as dg

gc.disable()  # what is loaded here stays: to look for garbage among it is a tenth of loading

warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

import assets  # noqa: E402 - after the filters above
import resources  # noqa: E402 - after the filters above
import sensors  # noqa: E402 - after the filters above
from assets import jobs  # noqa: E402 - after the filters above
from med_assets.storage import logs  # noqa: E402 - after the filters above
from med_assets.storage.files import keep_private  # noqa: E402 - after the filters above
from resources import json_log, late_sqlite  # noqa: E402 - after the filters above

keep_private()
late_sqlite.keep_engines()
if logs.is_json():
    logs.configure(stream=json_log.install())
graph = assets.build()
named_jobs = [job for name in assets.programs(graph) for job in jobs.of_program(name, graph)]

defs = dg.Definitions(
    assets=graph,
    jobs=named_jobs,
    sensors=sensors.build_sensors(graph, named_jobs),
    schedules=sensors.build_schedules(graph),
    resources=resources.build(),
    # A step in a process of its own costs 6-7 s before it does anything, and a training has its own process anyway.
    executor=dg.in_process_executor,
)
"""Everything that Dagster loads."""

gc.freeze()
gc.enable()
