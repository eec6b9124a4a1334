"""The update sensor: evaluates the automation conditions of a program and lets cheap assets follow their inputs."""

import dagster as dg

from assets import keys
from sensors.settings import tick_s


def update_sensor(program: str) -> dg.SensorDefinition:
    """Sensor of one program. Dagster starts its runs itself, under the sensor's name and without a job's."""
    return dg.AutomationConditionSensorDefinition(
        keys.job(program, keys.UPDATE),
        target=dg.AssetSelection.key_prefixes(program),
        run_tags={keys.PROGRAM_TAG: program},
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=tick_s(),
        description="Lets cheap assets follow their inputs.",
    )
