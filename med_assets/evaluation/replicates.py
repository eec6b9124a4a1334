"""Checkpoints beside the present one of each experiment: the champion, and trainings that differ in their seed alone."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.evaluation.comparison import SPLIT
from med_assets.experiments.configuration import from_json
from med_assets.launch.runs import runs_of
from med_assets.records import RunScore
from med_assets.settings import Settings

SPREAD = (
    "Trainings that differ in nothing but their seed, on the present dataset: the mean over seeds of the validation mean, and its "
    "SD. A difference between two experiments that is no larger than that SD may be one of seeds."
)


@dataclass(frozen=True)
class Replicate:
    """A recorded run: the hash of its experiment without the seed, the seed, and its aggregated scores."""

    experiment: str
    checkpoint: str
    settings: str
    seed: int
    scores: tuple[RunScore, ...]

    @property
    def label(self) -> str:
        """Its name beside other seeds."""
        return f"{self.experiment} (seed {self.seed})"


def champion_label(experiment: str) -> str:
    """Name of the champion in a list that has a later checkpoint of the same experiment too."""
    return f"{experiment} (champion)"


def replicates(ws: Settings, program_name: str) -> list[Replicate]:
    """The runs that were scored on the present dataset, oldest first, of experiments that have two or more seeds.

    Runs are replicates where their experiments are equal but for the seed and have the same initial weights.
    """
    catalog, found = Catalog(ws, program_name), []
    version = catalog.dataset().version
    for run in runs_of(ws, program_name):
        recorded = catalog.rows(RunScore, run.experiment, run.checkpoint)
        scores = [row for row in recorded if row.dataset_version == version]
        if not scores or not ws.store.has(run.checkpoint):
            continue
        path = ws.store.fetch(run.checkpoint) / "experiment.json"
        chosen = from_json(program_name, path.read_text(encoding="utf-8"))
        settings = f"{chosen.model_copy(update={'seed': 0}).hash()} {run.initial} {run.teacher}"
        found.append(Replicate(run.experiment, run.checkpoint, settings, chosen.seed, tuple(scores)))
    newest = {(one.experiment, one.settings, one.seed): one for one in found}
    seeds: dict[tuple[str, str], int] = {}
    for experiment, settings, _ in newest:
        seeds[experiment, settings] = seeds.get((experiment, settings), 0) + 1
    return [one for one in newest.values() if seeds[one.experiment, one.settings] > 1]


def spread(program_name: str, found: Sequence[Replicate]) -> pd.DataFrame:
    """The deciding metrics over seeds for people, a row per experiment and metric."""
    chosen, groups = program.get(program_name), dict[tuple[str, str], list[Replicate]]()
    for one in found:
        groups.setdefault((one.experiment, one.settings), []).append(one)
    rows = []
    for (experiment, _), members in sorted(groups.items()):
        for metric in chosen.deciding_metrics:
            wanted = (SPLIT, metric.name, metric.subject)
            means = [
                row.mean
                for one in members
                for row in one.scores
                if (row.split, row.metric, row.subject) == wanted and row.mean is not None
            ]
            if len(means) < 2:
                continue
            rows.append(
                {
                    "experiment": experiment,
                    "metric": metric.label,
                    "seeds": ", ".join(str(one.seed) for one in members),
                    "mean over seeds": f"{math.fsum(means) / len(means):.3f}",
                    "SD between seeds": f"{statistics.stdev(means):.3f}",
                    "lowest": f"{min(means):.3f}",
                    "highest": f"{max(means):.3f}",
                }
            )
    return pd.DataFrame(rows)
