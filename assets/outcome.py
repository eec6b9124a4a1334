"""P/leaderboard, P/champion, P/monitoring, P/predictions and P/report: which model is used, how it does, and what people read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from assets import keys, versions
from assets.gates import Gate
from assets.shell import Call, Stage, build

if TYPE_CHECKING:
    from med_assets.dataset.checks import CheckOutcome
    from med_assets.evaluation.analysis import Analysis
    from med_assets.settings import Workspace
    from med_assets.storage.result import StageResult


def leaderboard(program: str, experiments: Sequence[str]) -> dg.AssetsDefinition:
    """All experiments side by side."""

    def run(call: Call) -> "StageResult":
        from med_assets.evaluation.stage import leaderboard

        return leaderboard(call.ws, program)

    return build(
        Stage(
            program,
            "leaderboard",
            "All evaluated experiments side by side, with n and confidence intervals.",
            versions.of_stage(program, "evaluate"),
            run,
            deps=tuple(keys.experiment_key(program, name, "evaluation") for name in experiments),
            kinds=frozenset({"parquet"}),
        )
    )


def champion(program: str) -> dg.AssetsDefinition:
    """The promoted checkpoint."""

    def run(call: Call) -> "StageResult":
        from med_assets.promotion.stage import champion

        return champion(call.ws, program)

    def regression(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.champion_regression(ws, program)

    return build(
        Stage(
            program,
            "champion",
            "The promoted checkpoint. It changes only for one better beyond doubt and worse in nothing guarded.",
            versions.of_gate(program),
            run,
            deps=(keys.key(program, "leaderboard"),),
            kinds=frozenset({"parquet"}),
            gates=(
                Gate(
                    "champion_regression",
                    "No challenger that is worse, or not shown to be better, is promoted.",
                    regression,
                ),
            ),
        )
    )


def monitoring(program: str) -> dg.AssetsDefinition:
    """The champion scored on each batch; a schedule fills it nightly."""

    def run(call: Call) -> "StageResult":
        from med_assets.monitoring.stage import monitor

        return monitor(call.ws, program, call.batches)

    def in_control(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.in_control(ws, program)

    def drift(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.drift(ws, program)

    return build(
        Stage(
            program,
            "monitoring",
            "The champion scored on each intake batch, many in one run; cases that it was trained on are marked.",
            versions.of_monitoring(program),
            run,
            deps=(keys.key(program, "champion"), keys.key(program, "prepared_cases")),
            kinds=frozenset({"parquet"}),
            gates=(
                Gate("in_control", "No metric of the champion left its control limits.", in_control, blocking=False),
                Gate("drift", "New cases are distributed as the champion's training set.", drift, blocking=False),
            ),
            by_batch=True,
            single_run=True,
        )
    )


def predictions(program: str) -> dg.AssetsDefinition:
    """The champion on cases that came without a label; a sensor fills it as they arrive."""

    def run(call: Call) -> "StageResult":
        from med_assets.evaluation.predictions import predictions

        return predictions(call.ws, program, call.batches)

    return build(
        Stage(
            program,
            "predictions",
            "The champion on the cases of each intake batch that came without a label, many batches in one run: DICOM and NIfTI "
            "files, pictures, and how sure the model is.",
            versions.of_predictions(program),
            run,
            deps=(keys.key(program, "champion"), keys.key(program, "prepared_cases")),
            kinds=frozenset({"dicom", "parquet"}),
            by_batch=True,
            single_run=True,
        )
    )


def screening(program: str, experiments: Sequence[str]) -> dg.AssetsDefinition:
    """All cases by risk, of a program that looks for unusual cases."""

    def run(call: Call) -> "StageResult":
        from med_assets.screening.stage import screening

        return screening(call.ws, program)

    return build(
        Stage(
            program,
            keys.SCREENING,
            "All cases by risk under the champion, or the best candidate, as CSV, and the queue of those that a person reads first.",
            versions.of_screening(program),
            run,
            deps=(
                keys.key(program, "champion"),
                keys.key(program, "dataset"),
                keys.key(program, "prepared_cases"),
                *(keys.experiment_key(program, name, keys.THRESHOLDS) for name in experiments),
            ),
            kinds=frozenset({"csv"}),
        )
    )


def analysis(program: str, chosen: "Analysis", experiments: Sequence[str]) -> dg.AssetsDefinition:
    """One analysis of a program. An expensive one waits for a person to start it, and for the accelerator."""

    def run(call: Call) -> "StageResult":
        from med_assets.evaluation.analyse import analyse

        return analyse(call.ws, program, chosen.name)

    return build(
        Stage(
            program,
            chosen.name,
            chosen.description,
            versions.of_analysis(chosen),
            run,
            deps=tuple(dg.AssetKey([program, *parts]) for parts in chosen.inputs(experiments)),
            kinds=frozenset({"csv"}),
            kind=keys.ANALYSIS,
            pool=keys.POOL if chosen.expensive else None,
        )
    )


def experiments(program: str, names: Sequence[str]) -> dg.AssetsDefinition:
    """The index of experiments."""

    def run(call: Call) -> "StageResult":
        from med_assets.reporting.index import index

        return index(call.ws, program)

    return build(
        Stage(
            program,
            keys.INDEX,
            "Every run with its code, data, hardware, scores, status and command, and what was never trained.",
            versions.of_record(program),
            run,
            deps=(
                keys.key(program, "splits"),
                keys.key(program, "champion"),
                *(keys.experiment_key(program, name, stage) for name in names for stage in ("checkpoint", keys.RECORD)),
            ),
            kinds=frozenset({"html", "markdown"}),
        )
    )


def report(program: str, more: Sequence[str]) -> dg.AssetsDefinition:
    """The HTML report. `more` names what this program has beside the stages of every program."""

    def synthetic_report(ws: "Workspace", batch: str | None) -> "CheckOutcome":
        from med_assets.dataset import checks

        return checks.synthetic_report(ws, program)

    def run(call: Call) -> "StageResult":
        from med_assets.reporting.stage import report

        return report(call.ws, program)

    return build(
        Stage(
            program,
            "report",
            "One HTML file for people: tables, plots, images and the champion's model card.",
            versions.of_report(),
            run,
            deps=tuple(
                keys.key(program, name)
                for name in (
                    "leaderboard",
                    "champion",
                    "dataset",
                    "monitoring",
                    keys.INDEX,
                    *more,
                )
            ),
            kinds=frozenset({"html"}),
            gates=(
                Gate(
                    "synthetic_report",
                    "No synthetic case had a part in a report that is not marked synthetic.",
                    synthetic_report,
                ),
            ),
        )
    )
