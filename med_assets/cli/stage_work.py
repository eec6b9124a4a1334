"""What each asset of the graph does: one or more stages and the checks of the asset, wherever it runs."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import TYPE_CHECKING

from med_assets import program
from med_assets.capabilities import Screens
from med_assets.cli import stages
from med_assets.launch.stage_request import Request
from med_assets.launch.stages import Stage
from med_assets.storage.result import StageOutcome, StageResult, worst

if TYPE_CHECKING:
    from med_assets.launch.training import Launch
    from med_assets.settings import Workspace

Work = Callable[["Workspace", Request, "Launch | None"], StageOutcome]


def perform(ws: "Workspace", request: Request, launch: "Launch | None" = None) -> StageOutcome:
    """Run a stage in this process, with the checks of its asset. `launch` runs its trainings and predictions, which else go where the
    experiment or MED_ASSETS_LAUNCHER says. Raises what the stage raises.
    """
    return WORK[request.stage](ws, request, launch)


def _intake(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    from med_assets.intake.checks import residual_phi

    result = reduce(StageResult.added, [stages.intake(ws, asked.program, batch) for batch in asked.names])
    return StageOutcome(
        result, {"residual_phi": worst({batch: residual_phi(ws, asked.program, batch) for batch in asked.names})}
    )


def _prepare(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    from med_assets.preparation.checks import audit

    result = reduce(StageResult.added, [stages.prepare(ws, asked.program, batch) for batch in asked.names])
    return StageOutcome(result, {"audit": worst({batch: audit(ws, asked.program, batch) for batch in asked.names})})


def _dataset(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    from med_assets.dataset.checks import synthetic_data

    result = stages.dataset(ws, asked.program)
    return StageOutcome(result, {"synthetic_data": synthetic_data(ws, asked.program)})


def _splits(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    from med_assets.dataset.checks import between_cases, held_out, patient_leakage

    result = stages.splits(ws, asked.program)
    return StageOutcome(
        result,
        {
            "patient_leakage": patient_leakage(ws, asked.program),
            "between_cases": between_cases(ws, asked.program),
            "held_out": held_out(ws, asked.program),
        },
    )


def _train(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    return StageOutcome(stages.train(ws, asked.program, asked.names[0], asked.overrides, launch))


def _evaluate(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    from med_assets.evaluation.checks import doubts, fine_tuning
    from med_assets.launch.training import experiment

    name = asked.names[0]
    result = stages.evaluate(ws, asked.program, name, launch)
    if isinstance(program.get(asked.program), Screens):
        result = result.joined(stages.thresholds(ws, asked.program, name))
    checks = {"doubts": doubts(ws, asked.program, name)}
    if experiment(ws, asked.program, name).fine_tunes():
        checks["fine_tuning"] = fine_tuning(ws, asked.program, name)
    return StageOutcome(result, checks)


def _learning_curve(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    result = stages.learning_curve(ws, asked.program, asked.names[0], overrides=asked.overrides, launch=launch)
    return StageOutcome(result)


def _leaderboard(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    return StageOutcome(stages.leaderboard(ws, asked.program))


def _champion(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    from med_assets.promotion.checks import challenger_accepted, champion_regression

    result = stages.champion(ws, asked.program)
    return StageOutcome(
        result,
        {
            "champion_regression": champion_regression(ws, asked.program),
            "challenger_accepted": challenger_accepted(ws, asked.program),
        },
    )


def _monitoring(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    from med_assets.monitoring.checks import drift, in_control

    result = stages.monitor(ws, asked.program, asked.names or None, launch)
    return StageOutcome(result, {"in_control": in_control(ws, asked.program), "drift": drift(ws, asked.program)})


def _predictions(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    return StageOutcome(stages.predictions(ws, asked.program, asked.names or None, launch))


def _screening(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    return StageOutcome(stages.screening(ws, asked.program, launch=launch))


def _analyse(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    return StageOutcome(stages.analyse(ws, asked.program, asked.names[0]))


def _experiments(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    return StageOutcome(stages.experiments(ws, asked.program))


def _report(ws: "Workspace", asked: Request, launch: "Launch | None") -> StageOutcome:
    from med_assets.reporting.checks import synthetic_report

    result = stages.report(ws, asked.program)
    return StageOutcome(result, {"synthetic_report": synthetic_report(ws, asked.program)})


WORK: Mapping[Stage, Work] = {
    Stage.INTAKE: _intake,
    Stage.PREPARE: _prepare,
    Stage.DATASET: _dataset,
    Stage.SPLITS: _splits,
    Stage.TRAIN: _train,
    Stage.EVALUATE: _evaluate,
    Stage.LEARNING_CURVE: _learning_curve,
    Stage.LEADERBOARD: _leaderboard,
    Stage.CHAMPION: _champion,
    Stage.MONITORING: _monitoring,
    Stage.PREDICTIONS: _predictions,
    Stage.SCREENING: _screening,
    Stage.ANALYSE: _analyse,
    Stage.EXPERIMENTS: _experiments,
    Stage.REPORT: _report,
}
"""What each stage does."""
