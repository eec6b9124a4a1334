"""What an experiment's scores, time and memory are held against: its `targets`, each with the milestones on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from med_assets.catalog import Catalog
from med_assets.evaluation.aggregates import cell
from med_assets.evaluation.scoring import HELD_OUT
from med_assets.experiments.configuration import with_present_names
from med_assets.experiments.parts import Target, Targets
from med_assets.launch.training import usable
from med_assets.records import AggregateScore
from med_assets.settings import Settings
from med_assets.storage.files import read_json

ABOUT = (
    "What the scores of each experiment, and the time and memory of its training, are held against, by `targets` of the experiment. "
    "A mean over cases decides; in brackets its interval. A target decides nothing else: promotion has rules of its own."
)

MIB_PER_GIB = 1024.0


@dataclass(frozen=True)
class Comparison:
    """A number of an experiment beside the one that it is to reach.

    `reached` is None where the number was not measured. `milestones` are those of the target, each with whether it was reached.
    """

    what: str
    unit: str
    goal: float
    at_least: bool
    value: float | None
    shown: str
    milestones: Mapping[float, bool]

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached, None where there is no number."""
        if self.value is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def goal_text(self) -> str:
        """The goal for people, with its unit."""
        unit = "" if self.unit in ("", "1") else f" {self.unit}"
        return f"at {'least' if self.at_least else 'most'} {self.goal:g}{unit}"

    @property
    def status(self) -> str:
        """Reached, not reached or not measured."""
        return {True: "reached", False: "not reached", None: "not measured"}[self.reached]

    @property
    def milestones_text(self) -> str:
        """The milestones for people: those that were reached, and the next one."""
        done = [f"{mark:g}" for mark, reached in self.milestones.items() if reached]
        ahead = [f"{mark:g}" for mark, reached in self.milestones.items() if not reached]
        parts = [f"reached {', '.join(done)}"] if done else []
        return "; ".join([*parts, *([f"next {ahead[0]}"] if ahead else [])])


def compare(targets: Targets, scores: Sequence[AggregateScore], result: Mapping[str, Any]) -> list[Comparison]:
    """Hold the scores of a checkpoint, and the `result.json` of its training, against targets; those of scores once per split."""
    found = [comparison for target in targets.scores for comparison in _scores(target, scores)]
    seconds, peaks = result.get("seconds"), (result.get("peak_memory") or {}).values()
    limits = (
        ("time of training", "h", targets.training_hours, seconds and seconds / 3600),
        ("memory of the accelerator", "GiB", targets.accelerator_gib, _peak(peaks, "peak_accelerator_mb")),
        ("memory of the training process", "GiB", targets.host_gib, _peak(peaks, "peak_host_mb")),
    )
    for what, unit, most, value in limits:
        if most is not None:
            shown = "" if value is None else f"{value:.3g}"
            found.append(Comparison(what, unit, most, False, value, shown, {}))
    return found


def comparisons(ws: Settings, program_name: str, name: str) -> list[Comparison]:
    """Hold the present checkpoint of an experiment against the targets that its file has now; empty where it has none or no evaluation."""
    catalog, configured = Catalog(ws, program_name), usable(ws, program_name).get(name)
    checkpoint = catalog.checkpoint(name)
    if configured is None or checkpoint is None or not ws.store.has(checkpoint.checkpoint):
        return []
    scores = [row for row in catalog.rows(AggregateScore, name) if row.checkpoint == checkpoint.checkpoint]
    result = with_present_names(read_json(ws.store.fetch(checkpoint.checkpoint) / "result.json"))
    return compare(configured.targets, scores, result) if scores else []


def table(compared: Sequence[Comparison]) -> pd.DataFrame:
    """Comparisons for people, a row each."""
    return pd.DataFrame(
        [
            {
                "target": one.what,
                "goal": one.goal_text,
                "got": one.shown,
                "status": one.status,
                "milestones": one.milestones_text,
            }
            for one in compared
        ]
    )


def _scores(target: Target, scores: Sequence[AggregateScore]) -> list[Comparison]:
    """The splits in which a metric was scored, each held against its target; one comparison without a number where there is none."""
    name = f"{target.metric} of {target.subject}"
    found = [
        row
        for split in HELD_OUT
        for row in scores
        if (row.split, row.metric, row.subject) == (split, target.metric, target.subject)
    ]
    if not found:
        return [Comparison(name, "", target.goal, target.least is not None, None, "", {})]
    return [
        Comparison(
            f"{name}, {row.split}",
            row.unit,
            target.goal,
            target.least is not None,
            row.mean,
            cell(row),
            {mark: row.mean is not None and target.reaches(row.mean, mark) for mark in target.milestones},
        )
        for row in found
    ]


def _peak(phases: Any, name: str) -> float | None:
    """The greatest peak of all phases, GiB; None where none was measured."""
    found = [phase[name] for phase in phases if phase.get(name) is not None]
    return max(found) / MIB_PER_GIB if found else None
