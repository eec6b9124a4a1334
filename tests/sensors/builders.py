"""Sensors of one program, for tests."""

import dagster as dg

from assets import keys
from sensors.intake import intake_sensor
from sensors.predictions import predictions_sensor


def intake(program: str) -> dg.SensorDefinition:
    """The intake sensor of one program, which waits for nothing."""
    selection = [keys.key(program, stage) for stage in keys.DATA]
    return intake_sensor([program], [dg.define_asset_job(keys.job(program, keys.INTAKE), selection)], patience_s=0.0)


def predictions(program: str) -> dg.SensorDefinition:
    """The predictions sensor of one program."""
    job = dg.define_asset_job(keys.job(program, keys.EVALUATION_BACKFILL), [keys.key(program, "predictions")])
    return predictions_sensor([program], [job])
