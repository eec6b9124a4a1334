"""The asset graph: written once, built for every registered program. Stages do their work in med_assets."""

import dagster as dg

from assets import data, experiment, intake, keys, outcome
from med_assets import analysis, experiments, program
from med_assets.settings import Workspace
from med_assets.stages import learning_curves, training


def build_program(name: str) -> list[dg.AssetsDefinition]:
    """All assets of one program, from raw cases to the report."""
    ws, chosen = Workspace.configuration(), experiments.names(name)
    # Composed once for both assets of an experiment: it is most of what loading the definitions costs.
    screened = program.get(name).screening() is not None
    analyses = analysis.of(name)
    curve = learning_curves.configured(name)
    more = [*([keys.SCREENING] if screened else []), *([keys.LEARNING_CURVE] if curve else [])]
    configured = [training.experiment(ws, name, each) for each in chosen]
    return [
        intake.raw_cases(name),
        intake.prepared_cases(name),
        data.dataset(name),
        data.splits(name),
        *(experiment.checkpoint(name, each) for each in configured),
        *(experiment.evaluation(name, each) for each in configured),
        *(experiment.record(name, each) for each in configured),
        *(experiment.thresholds(name, each) for each in configured if screened),
        outcome.leaderboard(name, chosen),
        outcome.champion(name),
        outcome.monitoring(name),
        *([outcome.screening(name, chosen)] if screened else []),
        *(experiment.learning_curve(name, each) for each in configured if each.name == curve),
        *(outcome.analysis(name, each, chosen) for each in analyses.values()),
        outcome.experiments(name, chosen),
        outcome.report(name, [*more, *analyses]),
    ]


def build() -> list[dg.AssetsDefinition]:
    """The assets of all registered programs."""
    return [asset for name in program.registered() for asset in build_program(name)]
