"""What starts runs: sensors of intake, update, retraining and predictions, and nightly monitoring."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets import keys, programs
from sensors.intake import intake_sensor
from sensors.monitoring import monitoring_schedule
from sensors.predictions import predictions_sensor
from sensors.retrain import retrain_sensor
from sensors.update import update_sensor

__all__ = ["build_schedules", "build_sensors"]


def build_sensors(
    graph: list[dg.AssetsDefinition], jobs: Sequence[UnresolvedAssetJobDefinition]
) -> list[dg.SensorDefinition]:
    """Intake, update and predictions of all programs of the graph, and retraining of each."""
    names = programs(graph)
    if not names:
        return []
    intake, update, predicting = (
        [job for job in jobs if job.name in {keys.job(name, kind) for name in names}]
        for kind in (keys.INTAKE, keys.UPDATE, keys.EVALUATION_BACKFILL)
    )
    return [
        intake_sensor(names, intake),
        update_sensor(graph, names, [*intake, *update]),
        predictions_sensor(names, predicting),
        *(retrain_sensor(name, graph) for name in names),
    ]


def build_schedules(graph: list[dg.AssetsDefinition]) -> list[dg.ScheduleDefinition]:
    """Nightly monitoring of every program of the graph."""
    return [monitoring_schedule(name) for name in programs(graph)]
