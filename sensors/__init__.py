"""What starts runs: sensors of intake, update, retraining and predictions, nightly evaluation, reconcile pass."""

import dagster as dg

from assets import programs
from sensors.automation import automated
from sensors.intake import intake_sensor
from sensors.monitoring import monitoring_schedule
from sensors.predictions import predictions_sensor
from sensors.reconcile import reconcile_schedule
from sensors.retrain import retrain_sensor
from sensors.update import update_sensor

__all__ = ["automated", "build_schedules", "build_sensors"]


def build_sensors(graph: list[dg.AssetsDefinition]) -> list[dg.SensorDefinition]:
    """Intake, update, retraining and predictions of every program of the graph."""
    of_program = (intake_sensor, update_sensor, retrain_sensor, predictions_sensor)
    return [make(name) for name in programs(graph) for make in of_program]


def build_schedules(graph: list[dg.AssetsDefinition]) -> list[dg.ScheduleDefinition]:
    """Nightly monitoring and the reconcile pass of every program of the graph."""
    nightly = [monitoring_schedule(name) for name in programs(graph)]
    return [*nightly, *(reconcile_schedule(name, graph) for name in programs(graph))]
