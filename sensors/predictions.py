"""The predictions sensor: the champion on every case without a label, as it arrives and when there is a new champion."""

import dagster as dg

from assets import keys
from resources.discretion import discreetly
from resources.workspace import WorkspaceResource
from sensors import runs
from sensors.settings import tick_s


def predictions_sensor(program: str) -> dg.SensorDefinition:
    """Sensor of one program: one run over all batches with cases to predict that wait for the champion."""
    predictions, prepared = keys.key(program, "predictions"), keys.key(program, "prepared_cases")

    @dg.sensor(
        name=f"{program}_predictions",
        target=dg.AssetSelection.assets(predictions),
        minimum_interval_seconds=tick_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Predicts cases that came without a label with the champion, as they arrive.",
    )
    def sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SkipReason | dg.RunRequest:
        from med_assets.stages.predictions import waiting
        from med_assets.stages.promotion import current

        ws, instance = workspace.open(), context.instance
        if current(ws, program) is None:
            return dg.SkipReason("there is no champion yet")
        if any(runs.targets(run, [predictions]) for run in runs.unfinished(instance)):
            return dg.SkipReason("cases are being predicted")
        ready = instance.get_materialized_partitions(prepared)
        known = [
            batch for batch in instance.get_dynamic_partitions(keys.batches_of(program).name or "") if batch in ready
        ]
        missing = discreetly(lambda: waiting(ws, program))
        wanted = {batch for batch in known if batch in missing}
        if not wanted:
            return dg.SkipReason("the champion predicted every case that came without a label")
        state = sorted((batch, missing[batch]) for batch in wanted)
        return dg.RunRequest(run_key=runs.state_key(state), tags=keys.one_run(known, wanted))

    return sensor
