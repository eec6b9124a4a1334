"""Names of everything in the graph, in one place: asset keys, partitions, pools and tags."""

import dagster as dg

POOL = "gpu"
"""Pool of trainings; `dagster instance concurrency set gpu 1` lets one run at a time."""

DATA = ("raw_cases", "prepared_cases", "dataset", "splits")
OUTCOME = ("leaderboard", "champion", "monitoring", "report")
PER_PROGRAM = (*DATA, *OUTCOME)
PER_EXPERIMENT = ("checkpoint", "evaluation")
PROGRAM_TAG, STAGE_TAG = "med_assets/program", "med_assets/stage"


def key(program: str, stage: str) -> dg.AssetKey:
    """Key of an asset that a program has once, e.g. rt_dose/dataset."""
    return dg.AssetKey([program, stage])


def experiment_key(program: str, experiment: str, stage: str) -> dg.AssetKey:
    """Key of an asset that every experiment has, e.g. rt_dose/baseline/checkpoint."""
    return dg.AssetKey([program, experiment, stage])


def batches_of(program: str) -> dg.DynamicPartitionsDefinition:
    """Intake batches of a program; the intake sensor adds them."""
    return dg.DynamicPartitionsDefinition(name=f"{program}_batches")
