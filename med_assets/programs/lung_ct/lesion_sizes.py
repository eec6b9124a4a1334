"""Results by size of lesion: what share is found, how well it is outlined, and how large the false positives are.

The size of a lesion is the diameter of the sphere with its volume, and of a false positive that of its predicted component. Scores of a
case say it band by band; over the cases of a split the lesions are pooled, with an interval over patients.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import pi
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Interval,
    mean_with_interval,
    percentile_interval,
    resampled_counts,
)
from med_assets.metrics.lesions import HIT, LESION, Lesion, match_lesions
from med_assets.metrics.score import PooledScore, Score
from med_assets.program import ReportTable

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.records import CaseScore

SENSITIVITY, DICE, FALSE = "sensitivity_by_size", "dice_by_size", "false_positives_by_size"
"""Scores of a case in a band of sizes."""

POOLED = {SENSITIVITY: "sensitivity_by_size_pooled", DICE: "dice_by_size_pooled"}
"""Those over all lesions of a split: a mean over cases would weigh a lesion less the more its patient has."""

INTERVAL = (
    f"{CONFIDENCE:.0%} percentile bootstrap over patients, {RESAMPLES} resamples, seed {SEED}, of the pooled lesions"
)

_SIZE = "the size is the diameter of the sphere with the same volume"


@dataclass(frozen=True)
class Bands:
    """Bands of sizes, each from one end up to below the next."""

    ends_mm: tuple[float, ...]
    """The ends between them, rising."""

    @property
    def names(self) -> tuple[str, ...]:
        """The bands by rising size, as subjects of scores."""
        ends = [f"{end:g}" for end in self.ends_mm]
        between = [f"lesions {low}-{high} mm" for low, high in pairwise(ends)]
        return (f"lesions below {ends[0]} mm", *between, f"lesions from {ends[-1]} mm")

    def place(self, volume_mm3: float) -> int:
        """Index in `names` of the band that a volume is in."""
        return bisect_right(self.ends_mm, diameter_mm(volume_mm3))


def diameter_mm(volume_mm3: float) -> float:
    """Return the diameter of the sphere with a volume, rounded to a micrometre, so that a sphere of 10 mm is in the band from 10 mm."""
    return round(float((6 * volume_mm3 / pi) ** (1 / 3)), 3)


def scores_by_size(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing_mm: tuple[float, float, float], bands: Bands
) -> list[Score]:
    """Scores of one case by band: three rows for each, undefined ones with None. Masks are (z, y, x) on one grid."""
    matched = match_lesions(truth, prediction)
    voxel_mm3 = float(np.prod(spacing_mm))
    places = [bands.place(lesion.voxels * voxel_mm3) for lesion in matched.lesions]
    false = [bands.place(voxels * voxel_mm3) for voxels in matched.false_voxels]
    scores: list[Score] = []
    for place, name in enumerate(bands.names):
        own = [lesion for lesion, its in zip(matched.lesions, places, strict=True) if its == place]
        scores += _of_band(name, own, false.count(place), len(false))
    return scores


def _of_band(name: str, own: Sequence[Lesion], false: int, all_false: int) -> Iterable[Score]:
    n, found = len(own), sum(lesion.found for lesion in own)
    yield Score(
        SENSITIVITY, name, found / n if n else None, "1",
        f"share of the true lesions of that size that are found: {LESION}; {HIT}; {_SIZE}; undefined without one", float(n), float(found), n=n,
    )  # fmt: skip
    yield Score(
        DICE, name, sum(lesion.dice for lesion in own) / n if n else None, "1",
        "mean over the true lesions of that size of the Dice with the union of the predicted components that touch it, 0 where none does: "
        f"{LESION}; {_SIZE}; undefined without one", n=n,
    )  # fmt: skip
    yield Score(
        FALSE, name, float(false), "1",
        f"predicted components of that size that touch no lesion that is found: {LESION}; {HIT}; {_SIZE}", n=all_false,
    )  # fmt: skip


def pooled(scores: Sequence["CaseScore"]) -> list[Score]:
    """Sensitivity and Dice over all lesions of a split by band, with intervals over patients; n is the number of lesions."""
    groups: dict[tuple[str, str], list[CaseScore]] = {}
    for score in scores:
        if score.metric in POOLED:
            groups.setdefault((score.metric, score.subject), []).append(score)
    return [_pooled(members) for members in groups.values()]


def _pooled(scores: Sequence["CaseScore"]) -> PooledScore:
    first = scores[0]
    over = _over_lesions([_OfCase(score.patient_id, score.n or 0, score.value) for score in scores])
    return PooledScore(
        POOLED[first.metric], first.subject, over.mean, first.unit, f"over all lesions of a split: {first.convention}",
        n=over.n, low=over.low, high=over.high, interval=INTERVAL,
    )  # fmt: skip


@dataclass(frozen=True)
class _OfCase:
    """The mean of something over so many lesions of a case of a patient."""

    patient_id: str
    lesions: int
    mean: float | None


def _over_lesions(cases: Iterable[_OfCase]) -> Interval:
    """The mean over all lesions, with its interval over patients; n counts lesions. None where there is no lesion."""
    counts: dict[str, float] = {}
    totals: dict[str, float] = {}
    for case in cases:
        if case.lesions and case.mean is not None:
            counts[case.patient_id] = counts.get(case.patient_id, 0.0) + case.lesions
            totals[case.patient_id] = totals.get(case.patient_id, 0.0) + case.lesions * case.mean
    if not counts:
        return Interval(None, None, None, 0)
    patients = sorted(counts)
    lesions, sums = (np.array([values[patient] for patient in patients]) for values in (counts, totals))
    drawn = resampled_counts(len(patients), SEED)
    found = percentile_interval(float(sums.sum() / lesions.sum()), drawn @ sums / (drawn @ lesions), len(patients))
    return Interval(found.mean, found.low, found.high, int(lesions.sum()))


def table(rows: "pd.DataFrame") -> ReportTable:
    """Results by size of one model on one split, a band a row, from the scores of its cases."""
    import pandas as pd

    from med_assets.evaluation.aggregates import cell

    columns = ["size", "lesions", "patients", "found", "Dice", "false positives per scan"]
    table = []
    for name in rows.loc[rows["metric"] == SENSITIVITY, "subject"].drop_duplicates():
        of_band = rows[rows["subject"] == name]
        by_metric = {metric: of_band[of_band["metric"] == metric] for metric in (SENSITIVITY, DICE, FALSE)}
        counted, false = by_metric[SENSITIVITY], by_metric[FALSE]
        shares = {metric: _over_lesions(_of_cases(by_metric[metric])) for metric in (SENSITIVITY, DICE)}
        per_scan = mean_with_interval(false["value"].tolist(), SEED, groups=false["patient_id"].tolist())
        table.append(
            {
                "size": name.removeprefix("lesions "),
                "lesions": int(counted["n"].sum()),
                "patients": counted.loc[counted["n"] > 0, "patient_id"].nunique(),
                "found": cell(shares[SENSITIVITY]),
                "Dice": cell(shares[DICE]),
                "false positives per scan": cell(per_scan),
            }
        )
    text = (
        f"Lesions of the target by size: {_SIZE}, and for false positives that of the predicted component. Found and Dice are over all "
        f"lesions of a size, n of them; false positives are a mean over scans. Intervals: {INTERVAL}; few lesions leave wide ones. Bands "
        "are set in conf/lung_ct/_lesions.yaml."
    )
    return ReportTable("Results by size of lesion", text, pd.DataFrame(table, columns=columns))


def _of_cases(rows: "pd.DataFrame") -> list[_OfCase]:
    """The scores of a metric and band, from a table of scores."""
    import pandas as pd

    return [
        _OfCase(str(patient), 0 if pd.isna(n) else int(n), None if pd.isna(value) else float(value))
        for patient, n, value in zip(rows["patient_id"], rows["n"], rows["value"], strict=True)
    ]
