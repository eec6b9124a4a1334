"""How far a case is from those that a checkpoint was trained on, by measured facts of its image that are known without a label.

The distance is the mean over the three nearest training cases of the root mean square difference of the facts, each in standard
deviations of the training cases. The limit is a conformal quantile of the distances that training cases have from the others, so
that of new cases like them at most the configured share is beyond it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from med_assets import program
from med_assets.catalog import Catalog, FactValue
from med_assets.experiments import policies
from med_assets.settings import Settings
from med_assets.storage.provenance import cases_used_by

NEAREST = 3
"""Training cases whose distances are averaged: one alone may be odd itself, many hide a small group such as a second scanner."""

CONSTANT_SHARE = 0.01
"""Share of its value that stands for the standard deviation of a fact that is the same in all training cases."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Novelty:
    """A distance, and the fact that adds most to it with its value."""

    distance: float
    fact: str
    value: float


@dataclass(frozen=True)
class Reference:
    """Facts of the training cases, (case, fact), NaN where unknown, with centre and spread of each, and the limit of distance."""

    facts: tuple[str, ...]
    rows: Array
    centre: Array
    spread: Array
    limit: float | None

    @classmethod
    def of(cls, facts: Sequence[str], cases: Sequence[Mapping[str, FactValue]], share: float) -> "Reference":
        """The reference of training cases; `limit` is None where there are too few for the share."""
        values = [[_number(case.get(name)) for name in facts] for case in cases]
        rows = np.array(values, dtype=np.float64).reshape(len(cases), len(facts))
        kept = [index for index in range(len(facts)) if len(rows) and not np.isnan(rows[:, index]).all()]
        rows, names = rows[:, kept], tuple(facts[index] for index in kept)
        centre = np.nanmedian(rows, axis=0) if kept else np.zeros(0)
        spread = np.nanstd(rows, axis=0) if kept else np.zeros(0)
        constant = spread <= 1e-9 * np.maximum(np.abs(centre), 1e-9)
        spread = np.where(constant, CONSTANT_SHARE * np.maximum(np.abs(centre), 1.0), spread)
        reference = cls(names, rows, centre, spread, None)
        own = [reference._distance(row, leave_out=index) for index, row in enumerate(rows)]
        known = sorted(found.distance for found in own if found is not None)
        rank = math.ceil((len(known) + 1) * (1 - share))
        limit = known[rank - 1] if kept and rank <= len(known) else None
        return cls(names, rows, centre, spread, limit)

    def distance(self, facts: Mapping[str, FactValue]) -> Novelty | None:
        """Distance of a case; None where it has none of the facts, or there are fewer than NEAREST training cases."""
        return self._distance(np.array([_number(facts.get(name)) for name in self.facts], dtype=np.float64))

    def _distance(self, row: Array, leave_out: int | None = None) -> Novelty | None:
        if not row.size or np.isnan(row).all():
            return None
        others = self.rows if leave_out is None else np.delete(self.rows, leave_out, axis=0)
        apart = ((others - row) / self.spread) ** 2
        apart = apart[~np.isnan(apart).all(axis=1)]
        if len(apart) < NEAREST:
            return None
        distances = np.sqrt(np.nanmean(apart, axis=1))
        nearest = np.argsort(distances, kind="stable")[:NEAREST]
        most = int(np.nanargmax(np.nan_to_num(apart[nearest], nan=0.0).mean(axis=0)))
        return Novelty(float(distances[nearest].mean()), self.facts[most], float(row[most]))

    def flag(self, program_name: str, found: Novelty | None) -> str:
        """Why a case is far from the training cases, or nothing."""
        if found is None or self.limit is None or found.distance <= self.limit:
            return ""
        fact = program.get(program_name).facts[found.fact]
        usual = float(self.centre[self.facts.index(found.fact)])
        return (
            f"out of distribution: distance {found.distance:.3g} SD, limit {self.limit:.3g}; most by {found.fact} "
            f"{fact.written(found.value)}, in training {fact.written(usual)}"
        )


def _number(value: FactValue) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def training_reference(ws: Settings, program_name: str, checkpoint: str) -> Reference:
    """The reference of the training cases of a checkpoint. Raises ArtifactMissing where it is gone."""
    policy = policies.of(program_name).confidence
    trained = {case.case_id for case in cases_used_by(ws.store, checkpoint) if case.split == "train"}
    newest = {row.case_id: row.values for row in sorted(Catalog(ws, program_name).facts(), key=lambda row: row.batch)}
    return Reference.of(
        policy.facts, [newest[case_id] for case_id in sorted(trained & newest.keys())], policy.flag_share
    )
