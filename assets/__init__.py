"""The asset graph: written once, built for every registered program. Stages do their work in med_assets."""

import dagster as dg

from assets import data, experiment, intake, outcome
from med_assets import experiments, program


def build_program(name: str) -> list[dg.AssetsDefinition]:
    """All assets of one program, from raw cases to the report."""
    chosen = experiments.names(name)
    return [
        intake.raw_cases(name),
        intake.prepared_cases(name),
        data.dataset(name),
        data.splits(name),
        *(experiment.checkpoint(name, each) for each in chosen),
        *(experiment.evaluation(name, each) for each in chosen),
        outcome.leaderboard(name, chosen),
        outcome.champion(name),
        outcome.monitoring(name),
        outcome.report(name),
    ]


def build() -> list[dg.AssetsDefinition]:
    """The assets of all registered programs."""
    return [asset for name in program.registered() for asset in build_program(name)]
