"""What comes of all experiments of a program: leaderboard, champion, monitoring, predictions, records, screening, analyses, report.

The leaderboard's data version covers all evaluations, so that what reads them depends on the leaderboard alone.
"""

from collections.abc import Sequence

import dagster as dg

from assets import keys, versions
from assets.checks import blocking, informing
from assets.factory import attributes, batches, one_signature, run_stage, several_batches_in_a_run
from med_assets.evaluation.analysis import Analysis
from med_assets.launch.stages import Stage
from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource


def leaderboard(program: str, experiments: Sequence[str]) -> dg.AssetsDefinition:
    """All experiments side by side."""

    @dg.asset(
        **attributes(
            keys.key(program, "leaderboard"),
            "All evaluated experiments side by side, with n and confidence intervals.",
            versions.of_stage(program, "evaluate"),
            {"parquet"},
        ),
        deps=[keys.experiment_key(program, name, "evaluation") for name in experiments],
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.LEADERBOARD)

    return asset


def champion(program: str) -> dg.AssetsDefinition:
    """The promoted checkpoint."""
    key = keys.key(program, "champion")

    @dg.asset(
        **attributes(
            key,
            "The promoted checkpoint. It changes only for one better beyond doubt and worse in nothing guarded.",
            versions.of_gate(program),
            {"parquet"},
        ),
        deps=[keys.key(program, "leaderboard")],
        check_specs=[
            blocking(
                "champion_regression",
                key,
                "Scored anew on the present dataset, the champion is not worse than when it was promoted, within its margins.",
            ),
            informing("challenger_accepted", key, "The gate did not refuse the last challenger."),
        ],
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.CHAMPION)

    return asset


@several_batches_in_a_run()
def monitoring(program: str) -> dg.AssetsDefinition:
    """The champion scored on each batch; a schedule fills it nightly."""
    key = keys.key(program, "monitoring")

    @dg.asset(
        **attributes(
            key,
            "The champion scored on each intake batch, many in one run; cases that it was trained on are marked.",
            versions.of_monitoring(program),
            {"parquet"},
        ),
        deps=[keys.key(program, "champion"), keys.key(program, "prepared_cases")],
        partitions_def=keys.batches_of(program),
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[
            informing("in_control", key, "No metric of the champion left its control limits."),
            informing("drift", key, "New cases are distributed as the champion's training set."),
        ],
        pool=keys.POOL,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.MONITORING, batches(context))

    return asset


@several_batches_in_a_run()
def predictions(program: str) -> dg.AssetsDefinition:
    """The champion on cases that came without a label; a sensor fills it as they arrive."""

    @dg.asset(
        **attributes(
            keys.key(program, "predictions"),
            "The champion on the cases of each intake batch that came without a label, many batches in one run: DICOM and NIfTI "
            "files, pictures, and how sure the model is.",
            versions.of_predictions(program),
            {"dicom", "parquet"},
        ),
        deps=[keys.key(program, "champion"), keys.key(program, "prepared_cases")],
        partitions_def=keys.batches_of(program),
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=keys.POOL,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.PREDICTIONS, batches(context))

    return asset


def screening(program: str) -> dg.AssetsDefinition:
    """All cases by risk, of a program that looks for unusual cases."""

    @dg.asset(
        **attributes(
            keys.key(program, keys.SCREENING),
            "All cases by risk under the champion, or the best candidate, as CSV, and the queue of those that a person reads first.",
            versions.of_screening(program),
            {"csv"},
        ),
        deps=[
            keys.key(program, "champion"),
            keys.key(program, "dataset"),
            keys.key(program, "prepared_cases"),
            keys.key(program, "leaderboard"),
        ],
        pool=keys.POOL,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.SCREENING, read=["prepared_cases"])

    return asset


def analysis(program: str, chosen: Analysis, experiments: Sequence[str]) -> dg.AssetsDefinition:
    """One analysis of a program. An expensive one waits for a person to start it, and for the accelerator."""

    @dg.asset(
        **attributes(
            keys.key(program, chosen.name),
            chosen.description,
            versions.of_analysis(chosen),
            {"csv"},
            stage=keys.EXPENSIVE_ANALYSIS if chosen.expensive else keys.ANALYSIS,
        ),
        deps=[dg.AssetKey([program, *parts]) for parts in chosen.inputs(experiments)],
        pool=keys.POOL if chosen.expensive else None,
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.ANALYSE, [chosen.name])

    return asset


def experiments(program: str) -> dg.AssetsDefinition:
    """The records of all experiments, and their index."""

    @dg.asset(
        **attributes(
            keys.key(program, keys.EXPERIMENTS),
            "Every run with its code, data, hardware, scores, status and command, and what was never trained; figures for print "
            "and an executed notebook of each experiment, written where something changed.",
            versions.of_experiments(program),
            {"html", "notebook"},
        ),
        deps=[keys.key(program, "splits"), keys.key(program, "leaderboard"), keys.key(program, "champion")],
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.EXPERIMENTS)

    return asset


def report(program: str, more: Sequence[str]) -> dg.AssetsDefinition:
    """The HTML report. `more` names what this program has beside the stages of every program."""
    key = keys.key(program, "report")
    read = ("leaderboard", "champion", "dataset", "monitoring", keys.EXPERIMENTS, *more)

    @dg.asset(
        **attributes(
            key,
            "One HTML file for people: tables, plots, images and the champion's model card.",
            versions.of_report(),
            {"html"},
        ),
        deps=[keys.key(program, name) for name in read],
        check_specs=[
            blocking("synthetic_report", key, "No synthetic case had a part in a report that is not marked synthetic.")
        ],
    )
    @one_signature
    def asset(
        context: dg.AssetExecutionContext, workspace: WorkspaceResource, launcher: LauncherResource
    ) -> dg.MaterializeResult:
        return run_stage(context, workspace, launcher, Stage.REPORT, read=["monitoring"])

    return asset
