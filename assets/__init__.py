"""The asset graph: written once, built for every registered program. Stages do their work in med_assets."""

import logging
from collections.abc import Sequence

import dagster as dg

from assets import data, experiment, intake, keys, results, versions
from med_assets import program
from med_assets.capabilities import Screens
from med_assets.errors import ConfigurationError
from med_assets.evaluation import analysis
from med_assets.experiments import policies
from med_assets.launch import training
from med_assets.settings import Settings

log = logging.getLogger(__name__)


def build_program(name: str) -> list[dg.AssetsDefinition]:
    """All assets of one program, from raw cases to the report."""
    ws = Settings.from_env()
    # Composed once for both assets of an experiment: it is most of what loading the definitions costs.
    screened = isinstance(program.get(name), Screens)
    analyses, evaluating = analysis.of(name), versions.of_evaluation(name)
    usable, broken = training.sorted_out(ws, name)
    configured = list(usable.values())
    chosen = tuple(each.name for each in configured)
    curve = _learning_curve(name, chosen)
    more = [*([keys.SCREENING] if screened else []), *([keys.LEARNING_CURVE] if curve else [])]
    for each, why in broken.items():
        log.warning("%s/%s is left out of the graph: %s", name, each, why)
    return [
        intake.raw_cases(name),
        intake.prepared_cases(name),
        data.dataset(name),
        data.splits(name),
        *(experiment.checkpoint(name, each) for each in configured),
        *(experiment.evaluation(name, each, evaluating) for each in configured),
        results.leaderboard(name, chosen),
        results.champion(name),
        results.monitoring(name),
        results.predictions(name),
        *([results.screening(name)] if screened else []),
        *(experiment.learning_curve(name, each) for each in configured if each.name == curve),
        *(results.analysis(name, each, chosen) for each in analyses.values()),
        results.experiments(name),
        results.report(name, [*more, *analyses]),
    ]


def _learning_curve(name: str, chosen: Sequence[str]) -> str | None:
    """The experiment of a program's learning curve; one whose file is gone or has a mistake costs this curve alone."""
    try:
        curve = policies.learning_curve_of(name)
    except ConfigurationError as error:
        log.warning("the learning curve of %s is left out of the graph: %s", name, error)
        return None
    return curve if curve in chosen else None


def build() -> list[dg.AssetsDefinition]:
    """The assets of all registered programs; one whose files in conf/ have a mistake is left out, with a warning.

    Raises ConfigurationError for settings of the workspace that can't be used: all programs have these.
    """
    Settings.from_env()
    built: list[dg.AssetsDefinition] = []
    for name in program.registered():
        try:
            built += build_program(name)
        except ConfigurationError as error:
            log.warning("%s is left out of the graph: %s", name, error)
    return built


def programs(graph: Sequence[dg.AssetsDefinition]) -> tuple[str, ...]:
    """Names of the programs that a graph has, sorted."""
    return tuple(sorted({key.path[0] for asset in graph for key in asset.keys}))
