"""Names of everything in the graph, in one place: asset keys, partitions, pools and tags."""

from collections.abc import Collection, Sequence

import dagster as dg

POOL = "gpu"
"""Pool of trainings; `dagster instance concurrency set gpu 1` lets one run at a time."""

DATA = ("raw_cases", "prepared_cases", "dataset", "splits")
OUTCOME = ("leaderboard", "champion", "monitoring", "predictions", "experiments", "report")
PER_PROGRAM = (*DATA, *OUTCOME)
PER_EXPERIMENT = ("checkpoint", "evaluation", "record")
INDEX, RECORD = "experiments", "record"
SCREENING = "screening"
THRESHOLDS = "thresholds"
"""Of a program that looks for unusual cases, and of its experiments."""

ANALYSIS = "analysis"
"""Stage of all analyses of a program; each has a name of its own."""

LEARNING_CURVE = "learning_curve"
"""Of a program whose `_program.yaml` asks for one."""

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


def one_run(known: Sequence[str], wanted: Collection[str]) -> dict[str, str]:
    """Tags of one run over the known batches (in Dagster's order) from the first that is wanted to the last."""
    places = [place for place, batch in enumerate(known) if batch in wanted]
    ends = {"start": known[places[0]], "end": known[places[-1]]}
    return {f"dagster/asset_partition_range_{end}": batch for end, batch in ends.items()}
