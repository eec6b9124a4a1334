"""Names of everything in the graph, in one place: asset keys, partitions, pools and tags."""

from collections.abc import Collection, Sequence

import dagster as dg

from resources.json_log import PROGRAM_TAG as PROGRAM_TAG

POOL = "gpu"
"""Pool of what trains or predicts; `dagster instance concurrency set gpu 1` lets one run at a time."""

INTAKE_POOL = "intake"
"""Pool of what takes batches in and prepares them."""

DATA = ("raw_cases", "prepared_cases", "dataset", "splits")
RESULTS = ("leaderboard", "champion", "monitoring", "predictions", "experiments", "report")
PER_PROGRAM = (*DATA, *RESULTS)
PER_EXPERIMENT = ("checkpoint", "evaluation")
EXPERIMENTS = "experiments"
SCREENING = "screening"
"""Of a program that looks for unusual cases."""

ANALYSIS = "analysis"
"""Stage of all analyses of a program; each has a name of its own."""

LEARNING_CURVE = "learning_curve"
"""Of a program whose `_program.yaml` asks for one."""

EXPENSIVE_ANALYSIS = "expensive_analysis"
"""Stage of the analyses that take hours."""

DECIDED = ("checkpoint", LEARNING_CURVE, EXPENSIVE_ANALYSIS)
"""Stages that follow no input: the retraining sensor or a person decides."""

FOLLOWS = {
    "prepared_cases": "all",
    "dataset": "any",
    "splits": "all",
    "evaluation": "all",
    "leaderboard": "any",
    "champion": "all",
    SCREENING: "any",
    ANALYSIS: "any",
    EXPERIMENTS: "any",
    "report": "any",
}
"""Stages that the update sensor keeps current, and whether an asset waits for all of its inputs or reads those that are there.

Raw cases wait for the intake sensor, trainings for the retraining sensor, monitoring for the night, predictions for their
sensor, and expensive analyses for a person.
"""

INTAKE, UPDATE, RETRAIN, EVALUATION_BACKFILL = "intake", "update", "retrain", "evaluation_backfill"
"""Jobs of every program."""

STAGE_TAG, FOLLOWS_TAG = "med_assets/stage", "med_assets/follows"
"""Tags of assets, beside `PROGRAM_TAG`. `FOLLOWS_TAG` has the value of `FOLLOWS`; an asset without it is not updated by itself."""

JOB_TAG, KIND_TAG = "med_assets/job", "med_assets/kind"
"""Tags of runs, beside `PROGRAM_TAG`: the job's name, and its kind. `deploy/dagster/dagster.yaml` limits how many runs of each go on."""

PRIORITY = {INTAKE: 20, UPDATE: 10, EVALUATION_BACKFILL: 0, RETRAIN: 0}
"""Which runs leave the queue first: cases that arrive, then what follows from them."""


def key(program: str, stage: str) -> dg.AssetKey:
    """Key of an asset that a program has once, e.g. rt_dose/dataset."""
    return dg.AssetKey([program, stage])


def experiment_key(program: str, experiment: str, stage: str) -> dg.AssetKey:
    """Key of an asset that every experiment has, e.g. rt_dose/checkpoint/baseline.

    The experiment comes last, since Dagster writes the last part into the boxes of the graph.
    """
    return dg.AssetKey([program, stage, experiment])


def job(program: str, name: str) -> str:
    """Name of a program's job, e.g. rt_dose_intake."""
    return f"{program}_{name}"


def group(program: str, stage: str) -> str:
    """Group of an asset, a box of the graph: a program's data, checkpoints, evaluations or results."""
    part = "data" if stage in DATA else f"{stage}s" if stage in PER_EXPERIMENT else "results"
    return f"{program}_{part}"


def batches_of(program: str) -> dg.DynamicPartitionsDefinition:
    """Intake batches of a program; the intake sensor adds them."""
    return dg.DynamicPartitionsDefinition(name=f"{program}_batches")


def one_run(known: Sequence[str], wanted: Collection[str]) -> dict[str, str]:
    """Tags of one run over the known batches (in Dagster's order) from the first that is wanted to the last."""
    indices = [index for index, batch in enumerate(known) if batch in wanted]
    ends = {"start": known[indices[0]], "end": known[indices[-1]]}
    return {f"dagster/asset_partition_range_{end}": batch for end, batch in ends.items()}
