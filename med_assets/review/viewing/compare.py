"""Two models of a program compared: the cases on which they differ most, by their scores and by what they predict."""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from med_assets import program
from med_assets.catalog import Catalog, usable
from med_assets.program import Metric
from med_assets.records import CaseScore, Checkpoint, PreparedCase
from med_assets.review.viewing.cases import Model, UnknownCase, models_of, viewable_program
from med_assets.review.viewing.contract import Kind, Layer, Role
from med_assets.settings import Settings

BUDGET_S = 2.0
"""Seconds of one request in which predictions are compared; those that are left over are compared by a later one."""

KEPT = 20_000
"""Pairs of predictions whose Dice stays in memory."""


@dataclass(frozen=True)
class Difference:
    """A case that two models predicted: the primary metric of each, None where it is undefined, and the Dice of both predictions, None unless known."""

    case_id: str
    split: str
    first: float | None
    second: float | None
    dice: float | None

    @property
    def change(self) -> float | None:
        """The second model's score minus the first's."""
        return None if self.first is None or self.second is None else self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Two models on their common cases, the largest differences of scores first, then the lowest Dice."""

    metric: Metric
    first: str
    second: str
    rows: tuple[Difference, ...]
    masks: bool
    """Whether they predict masks, which have a Dice."""

    @property
    def waiting(self) -> int:
        """Cases whose predictions are still to be compared."""
        return sum(row.dice is None for row in self.rows) if self.masks else 0


def experiments_of(ws: Settings, program_name: str) -> list[str]:
    """Experiments with a checkpoint, the champion's first."""
    catalog = Catalog(ws, program_name)
    found = sorted(row.experiment for row in catalog.rows(Checkpoint))
    champion = catalog.champion()
    return sorted(found, key=lambda name: champion is None or name != champion.experiment)


class Comparer:
    """Compares models, and keeps what it found of pairs of predictions; threads may share it."""

    def __init__(self, ws: Settings) -> None:
        self.ws = ws
        self._dice: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._without_masks: set[str] = set()

    def compare(self, program_name: str, first: str, second: str) -> Comparison:
        """Two experiments on the cases whose prediction by both is in the store. Raises UnknownCase."""
        known = experiments_of(self.ws, program_name)
        for name in (first, second):
            if name not in known:
                raise UnknownCase(
                    f"expected one of the trained experiments {', '.join(known) or '(none)'}, got {name!r}"
                )
        metric = program.get(program_name).primary_metric
        catalog = Catalog(self.ws, program_name)
        scores = {name: _scores(catalog, name, metric) for name in (first, second)}
        splits = {row.patient_id: row.split for row in catalog.assignments().values()}
        rows, masks, end = [], False, time.monotonic() + BUDGET_S
        newest = {row.case_id: row for row in sorted(usable(catalog.prepared()), key=lambda row: row.batch)}
        for case in newest.values():
            models = {model.experiment: model for model in models_of(self.ws, program_name, case)}
            if first not in models or second not in models:
                continue
            pair = (models[first], models[second])
            dice, has_masks = self._overlap(program_name, case, pair, end)
            masks |= has_masks
            rows.append(
                Difference(
                    case.case_id, splits.get(case.patient_id, ""), scores[first].get(case.case_id), scores[second].get(case.case_id), dice
                )
            )  # fmt: skip
        return Comparison(metric, first, second, tuple(sorted(rows, key=_rank)), masks)

    def _overlap(
        self, program_name: str, case: PreparedCase, pair: tuple[Model, Model], end: float
    ) -> tuple[float | None, bool]:
        """Dice of the predicted masks and whether there are such masks; None where the time is over."""
        key = (pair[0].prediction, pair[1].prediction)
        if key in self._dice:
            return self._dice[key], True
        if program_name in self._without_masks or time.monotonic() > end:
            return None, False
        first, second = (self._predicted_mask(program_name, case, model) for model in pair)
        if first is None or second is None:
            self._without_masks.add(program_name)
            return None, False
        self._dice[key] = dice_of(first, second)
        if len(self._dice) > KEPT:
            self._dice.popitem(last=False)
        return self._dice[key], True

    def _predicted_mask(self, program_name: str, case: PreparedCase, model: Model) -> np.ndarray | None:
        store = self.ws.store
        views = viewable_program(program_name).views(self.ws, store.fetch(case.artifact), store.fetch(model.prediction))
        for view in views:
            for layer in view.layers:
                if layer.kind is Kind.MASKS and (bits := _predicted_bits(layer)):
                    return np.asarray(layer.read() & bits) != 0
        return None


def dice_of(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty, since then they agree."""
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / total if total else 1.0


def _predicted_bits(layer: Layer) -> int:
    return sum(1 << mask.bit for mask in layer.masks if mask.role is Role.PREDICTION)


def _scores(catalog: Catalog, experiment: str, metric: Metric) -> Mapping[str, float | None]:
    rows: Sequence[CaseScore] = catalog.rows(CaseScore, experiment)
    return {row.case_id: row.value for row in rows if (row.metric, row.subject) == (metric.name, metric.subject)}


def _rank(row: Difference) -> tuple[float, float, str]:
    change = -1.0 if row.change is None else abs(row.change)
    return -change, 2.0 if row.dice is None else row.dice, row.case_id
