"""The columns of the leaderboard. To add one, write a function that gives the cells of a line, and add it to COLUMNS."""

from collections.abc import Callable, Mapping

from med_assets import program
from med_assets.capabilities import SplitPlots, split_figure
from med_assets.catalog import Catalog
from med_assets.evaluation.aggregates import cell
from med_assets.evaluation.costs import checkpoint_facts
from med_assets.evaluation.line import Line, further_name
from med_assets.evaluation.scoring import HELD_OUT


def deciding_scores(catalog: Catalog, line: Line) -> Mapping[str, str]:
    """`mean [low, high] (n)` by split and deciding metric, validation first."""
    chosen = program.get(catalog.program)
    metrics = chosen.deciding_metrics
    found = {(split, metric): line.scores.get((split, metric.name)) for split in HELD_OUT for metric in metrics}
    return {f"{split} {metric.label}": cell(one) if one else "" for (split, metric), one in found.items()}


def further_scores(catalog: Catalog, line: Line) -> Mapping[str, str]:
    """`mean [low, high] (n)` by split and further metric of the program, validation first."""
    wanted = [(split, *key) for split in HELD_OUT for key in program.get(catalog.program).further_metrics]
    found = {key: line.further.get(key) for key in wanted}
    return {further_name(*key): cell(one) if one else "" for key, one in found.items()}


def figure_of_all_cases(catalog: Catalog, line: Line) -> Mapping[str, str]:
    """Where the record of an experiment has the figure of all its validation cases, such as a confusion matrix, below the folder of reports.

    The record is written later, from what the leaderboard shows too, so whether the figure is there already is not asked.
    """
    if not isinstance(program.get(catalog.program), SplitPlots):
        return {}
    recorded = catalog.checkpoint(line.experiment) is not None
    path = f"{catalog.program}/experiments/{line.experiment}/figures/{split_figure('val')}"
    return {"all cases": path if recorded else ""}


def costs(catalog: Catalog, line: Line) -> Mapping[str, str]:
    """What the checkpoint costs, where that was measured."""
    found = checkpoint_facts(catalog.ws, catalog.program, line.checkpoint)
    return {name: f"{value:g}" for name, value in found.items()}


def checkpoint(catalog: Catalog, line: Line) -> Mapping[str, str]:
    """The key of the checkpoint."""
    return {"checkpoint": line.checkpoint}


Column = Callable[[Catalog, Line], Mapping[str, str]]
"""Gives the cells of a line by the name of the column; an empty one where it has nothing to say. It reads, and computes nothing."""

COLUMNS: tuple[Column, ...] = (
    deciding_scores,
    further_scores,
    figure_of_all_cases,
    costs,
    checkpoint,
)
"""The columns after the experiment, in their order; one that is empty in every line is left out."""
