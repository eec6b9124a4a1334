"""The predictions sensor: the champion on every case without a label, as it arrives and when there is a new champion."""

import dagster as dg

from assets import keys
from med_assets.settings import Workspace
from resources.phi_safe_errors import phi_safe
from sensors import runs
from sensors.instance import instance_of
from sensors.settings import decision_tick_s


def predictions_sensor(program: str) -> dg.SensorDefinition:
    """Sensor of one program: one run over all batches with cases to predict that wait for the champion."""
    predictions = keys.key(program, "predictions")

    @dg.sensor(
        name=f"{program}_predictions",
        job_name=keys.job(program, keys.EVALUATION_BACKFILL),
        minimum_interval_seconds=decision_tick_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Predicts cases that came without a label with the champion, as they arrive.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason | dg.RunRequest:
        from med_assets.evaluation.predictions import waiting

        ws = Workspace.from_env()
        done = "the champion predicted every case that came without a label"
        return runs.over_batches(
            ws, instance_of(context), program, predictions, lambda: phi_safe(lambda: waiting(ws, program)), done
        )

    return sensor
