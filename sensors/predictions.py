"""The predictions sensor: the champion on every case without a label, as it arrives and when there is a new champion."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets import keys
from med_assets.settings import Workspace
from resources.phi_safe_errors import phi_safe
from sensors import runs
from sensors.each import by_program, for_each
from sensors.instance import instance_of
from sensors.settings import predictions_tick_s

DONE = "the champion predicted every case that came without a label"


def predictions_sensor(programs: Sequence[str], jobs: Sequence[UnresolvedAssetJobDefinition]) -> dg.SensorDefinition:
    """Sensor of all programs: for each one run over all batches with cases to predict that wait for its champion."""

    @dg.sensor(
        name="predictions",
        jobs=list(jobs),
        minimum_interval_seconds=predictions_tick_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Predicts cases that came without a label with the champion of their program, as they arrive.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        from med_assets.evaluation.predictions import waiting

        ws, instance = Workspace.from_env(), instance_of(context)

        def decide(program: str) -> tuple[str, dg.SkipReason | dg.RunRequest]:
            asset = keys.key(program, "predictions")
            missing = lambda: phi_safe(lambda: waiting(ws, program))  # noqa: E731 - asked for only where it matters
            return program, runs.over_batches(ws, instance, program, asset, missing, DONE)

        decisions = dict(for_each(context, programs, decide))
        requests = [
            found.with_replaced_attrs(job_name=keys.job(name, keys.EVALUATION_BACKFILL))
            for name, found in decisions.items()
            if isinstance(found, dg.RunRequest)
        ]
        reasons = {
            name: found.skip_message or "" for name, found in decisions.items() if isinstance(found, dg.SkipReason)
        }
        return dg.SensorResult(
            run_requests=requests or None, skip_reason=None if requests else by_program(reasons, len(programs))
        )

    return sensor
