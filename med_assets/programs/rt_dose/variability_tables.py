"""Tables of natural variability, from moments by patient and class."""

from collections.abc import Mapping
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES, Interval
from med_assets.program import ReportTable
from med_assets.programs.rt_dose import spread
from med_assets.programs.rt_dose.spread import Natural, Patients
from med_assets.programs.rt_dose.variability_plots import CAPTIONS, plots_of
from med_assets.programs.rt_dose.voxel_classes import AXIAL, REGIONS, chosen

DISTANCES_MM = (-np.inf, 0.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, np.inf)
"""Ends of the distances that tables have a row for."""

FREE_MM = 10.0
"""Elsewhere and further than this from any target no constraint binds: neither coverage, nor conformity, nor a limit of an organ.
Our choice, two penumbrae of a linear accelerator."""

FREE = {
    "free of constraints": (("elsewhere",), AXIAL, FREE_MM),
    "free, in target slices": (("elsewhere",), AXIAL[:1], FREE_MM),
    "free, beyond target slices": (("elsewhere",), AXIAL[1:], FREE_MM),
    "rim of the targets": (("elsewhere",), AXIAL, 0.0),
    "organs at risk": (("organ",), AXIAL, -np.inf),
    "targets": (("target",), AXIAL, -np.inf),
}
"""Where models are compared with the variation: regions, slices and from which distance on; the rim ends where the free region begins."""

INTERVAL = f"In brackets {CONFIDENCE:.0%} percentile bootstrap intervals over patients ({RESAMPLES} resamples, seed {spread.SEED})"


def tables(doses: Patients, errors: Mapping[str, Patients], scale_gy: float, out: Path) -> list[ReportTable]:
    """All tables and plots, from moments in units of the prescription; shown in Gy at a prescription of `scale_gy`."""
    if len(doses) < spread.MIN_PATIENTS:
        text = (
            f"Expected {spread.MIN_PATIENTS} training patients or more to see how their plans differ, got {len(doses)}."
        )
        return [ReportTable("Planned dose along the distance to the targets", text, pd.DataFrame())]
    weights = spread.counts(len(doses))
    variation = spread.natural(doses, weights)
    profile = along_distance(doses, weights, scale_gy)
    classes = by_class(doses, variation, weights, scale_gy)
    comparison = compared(errors, variation, scale_gy)
    by_distance = errors_by_distance(errors, variation, scale_gy)
    n, unit = len(doses), f"in Gy at a prescription of {scale_gy:g} Gy"
    answer = (
        _answer(comparison) if errors else "No model has been evaluated on validation cases yet, so none is compared."
    )
    first = f"{answer}\n\n{INTERVAL} of the training and of the validation set, drawn independently; {unit}. {_definition(n)}"
    plots = plots_of(profile, by_distance, out)
    found = (
        [ReportTable("Errors of models against natural variation", first, comparison, plots[1:], CAPTIONS[1:])]
        if errors
        else []
    )
    about = answer + "\n\n" if not errors else ""
    found.append(
        ReportTable(
            "Natural SD by place",
            f"{about}How far accepted plans lie from their mean at the same geometry, of the training set, {unit}: the natural SD and its two "
            f"parts, between the means of patients in the fine classes and within a patient. {INTERVAL}.",
            by_place(doses, variation, weights, scale_gy),
        )
    )
    found.append(
        ReportTable(
            "Planned dose along the distance to the targets",
            f"{n} patients of the training set, {unit}. Mean, SD and central 90 % range are those of the patients' means in the "
            f"bin; the SD within a patient is the root of the mean variance of its voxels there. {INTERVAL}.",
            profile,
            plots[:1],
            CAPTIONS[:1],
        )
    )
    found.append(
        ReportTable(
            "What geometry leaves open",
            "Natural SD by region, slices and distance, and its two parts: between the means of patients in the fine classes that a row is "
            f"made of, and within a patient. {unit[:1].upper()}{unit[1:]}. {INTERVAL}.",
            classes,
        )
    )
    if errors:
        found.append(
            ReportTable(
                "Errors of models by distance",
                "The same comparison along the distance to the targets, over validation cases: mean absolute error (MAE), root mean "
                f"squared error (RMSE) and natural SD of the same voxels, {unit}.",
                by_distance,
            )
        )
    return found


def _definition(n: int) -> str:
    return (
        "Natural SD: the spread of accepted plans about their mean at the same geometry, that is within a class of level of the nearest "
        "target, distance to it (bins of 2.5 mm, from 50 mm on of 5 and 10 mm), axial offset from the slices with a target, and region "
        "(target, organ at risk, elsewhere in the body). It is the root of the variance between the means of patients plus the mean variance "
        f"within one, over the {n} patients of the training set, those with {spread.MIN_VOXELS} voxels or more in the class, and is weighted by "
        "the voxels that the model is scored on. Ratio: the model's root mean squared error over it. At 1 the model errs by one SD of "
        "accepted plans, as the mean of other plans in the class does; the plan of another patient would be 1.41 SD away. The last ratio "
        "leaves out the variance within a patient, which finer geometry may explain. There is one plan per patient, so what two planners "
        "would make of the same patient is unknown: the natural SD is its upper bound. Free of constraints: elsewhere, over "
        f"{FREE_MM:g} mm from any target. Covered: the share of the voxels whose class has {spread.MIN_PATIENTS} training patients or more."
    )


def _label(low: float, high: float) -> str:
    if high <= 0:
        return "inside"
    return f"over {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"


def _distances() -> list[tuple[float, float]]:
    return list(pairwise(DISTANCES_MM))


def _ends(value: Interval, digits: int = 2) -> str:
    """An interval for people: `value [low, high]`, empty where it is undefined."""
    if value.mean is None:
        return ""
    if value.low is None or value.high is None:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def along_distance(doses: Patients, weights: spread.Array, scale_gy: float) -> pd.DataFrame:
    """A row per region and distance bin: n patients, mean, SD between patients, central 90 % range, SD within, Gy."""
    rows = []
    for region in REGIONS:
        for low, high in _distances():
            mean, within = doses.pooled(chosen((region,), AXIAL, low, high, doses.n.shape[1]))
            there = ~np.isnan(mean)
            n = int(there.sum())
            if n < spread.MIN_PATIENTS:
                continue
            between = spread.spread_of_means(mean * scale_gy, weights)
            p5, p95 = np.percentile(mean[there], [5, 95]) * scale_gy
            rows.append(
                {
                    "region": region,
                    "distance, mm": _label(low, high),
                    "n": n,
                    "mean": float(mean[there].mean() * scale_gy),
                    "SD between patients": _ends(spread.interval(between, n)),
                    "5 %": float(p5),
                    "95 %": float(p95),
                    "SD within a patient": float(np.sqrt(np.mean(within[there] ** 2)) * scale_gy),
                    "from, mm": None if np.isinf(low) else low,
                    "to, mm": None if np.isinf(high) else high,
                }
            )
    return pd.DataFrame(rows)


def by_place(doses: Patients, variation: Natural, weights: spread.Array, scale_gy: float) -> pd.DataFrame:
    """A row per place of FREE: natural SD with its parts between and within patients, Gy."""
    rows = []
    for place, classes in _places(doses.n.shape[1]):
        if found := _parts(doses, variation, classes, weights, scale_gy):
            rows.append({"where": place, **found})
    return pd.DataFrame(rows)


def by_class(doses: Patients, variation: Natural, weights: spread.Array, scale_gy: float) -> pd.DataFrame:
    """A row per region, slices and distance bin: natural SD with its parts between and within patients, Gy."""
    rows = []
    for region, axial, (low, high) in product(REGIONS[1:], AXIAL, _distances()[1:]):
        classes = chosen((region,), (axial,), low, high, doses.n.shape[1])
        if found := _parts(doses, variation, classes, weights, scale_gy):
            rows.append({"region": region, "slices": axial, "distance, mm": _label(low, high), **found})
    return pd.DataFrame(rows)


def _parts(
    doses: Patients, variation: Natural, classes: NDArray[np.bool_], weights: spread.Array, scale_gy: float
) -> dict[str, str | int]:
    """The number of patients in these classes and their natural SD with its parts; empty for too few patients."""
    found: dict[str, str | int] = {}
    for name, variance in (
        ("natural SD", variation.both()),
        ("between patients", variation.between),
        ("within a patient", variation.within),
    ):
        values, n = spread.expected(variance, doses.n, classes, weights)
        if n < spread.MIN_PATIENTS:
            return {}
        found |= {"n": n, name: _ends(spread.interval_of_variance(values, scale_gy, n))}
    return found


def _places(n_classes: int) -> list[tuple[str, NDArray[np.bool_]]]:
    """The locations where models are compared, with their classes."""
    return [
        (place, chosen(regions, axial, over_mm, FREE_MM if place.startswith("rim") else np.inf, n_classes))
        for place, (regions, axial, over_mm) in FREE.items()
    ]


def compared(errors: Mapping[str, Patients], variation: Natural, scale_gy: float) -> pd.DataFrame:
    """A row per experiment and place of FREE: MAE, RMSE, natural SD, and the ratio that answers the question."""
    rows = []
    for name, model in errors.items():
        for place, classes in _places(model.n.shape[1]):
            found = spread.compare(model, variation, classes, scale_gy)
            if found is None or found.ratio.mean is None:
                continue
            rows.append(
                {
                    "experiment": name,
                    "where": place,
                    "n": found.mae.n,
                    "MAE": _ends(found.mae),
                    "RMSE": _ends(found.rmse),
                    "natural SD": _ends(found.natural),
                    "ratio": _ends(found.ratio),
                    "within natural variation": _verdict(found.ratio),
                    "ratio to the part between patients": _ends(found.ratio_between),
                    "voxels covered, %": 100 * found.covered,
                }
            )
    return pd.DataFrame(rows)


def _verdict(ratio: Interval) -> str:
    if ratio.low is None or ratio.high is None:
        return "not shown"
    return "yes" if ratio.high < 1 else "no" if ratio.low > 1 else "not shown"


def _answer(comparison: pd.DataFrame) -> str:
    """The question and its answer in one sentence per experiment."""
    if comparison.empty:
        return "No class of voxels has enough patients to compare a model with."
    free = comparison[comparison["where"] == next(iter(FREE))]
    ratios = "; ".join(
        f"{row['experiment']} {row['ratio']} ({row['within natural variation']}, n = {row['n']})"
        for row in free.to_dict("records")
    )
    return (
        f"Are errors where no constraint binds within natural variation? Ratio of model error to natural SD: {ratios}."
    )


def errors_by_distance(errors: Mapping[str, Patients], variation: Natural, scale_gy: float) -> pd.DataFrame:
    """A row per experiment, region and distance bin: MAE, RMSE, natural SD and their ratio with its interval."""
    rows = []
    for name, model in errors.items():
        for region in REGIONS[1:]:
            for low, high in _distances()[1:]:
                found = spread.compare(
                    model, variation, chosen((region,), AXIAL, low, high, model.n.shape[1]), scale_gy
                )
                if found is None:
                    continue
                rows.append(
                    {"experiment": name, "region": region, "distance, mm": _label(low, high), "n": found.mae.n}
                    | {"MAE": found.mae.mean, "RMSE": found.rmse.mean, "natural SD": found.natural.mean}
                    | {"ratio": _ends(found.ratio), "from, mm": low, "to, mm": None if np.isinf(high) else high}
                )
    return pd.DataFrame(rows)
