"""Scores of one predicted dose: errors, DVH, clinical limits, gamma, the OpenKBP terms and the falloff, each with its definition."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics import dose as dose_metrics
from med_assets.metrics.dvh import RELIABLE_VOXELS, conformity_index
from med_assets.metrics.dvh_criteria import Criterion
from med_assets.metrics.gamma import gamma_rates
from med_assets.metrics.margins import grow
from med_assets.metrics.score import Score
from med_assets.programs.rt_dose.doses import Doses
from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
from med_assets.programs.rt_dose.falloff import falloff
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Limit, Site, conformity_share

TARGET_CRITERIA = ("D99", "D98", "D95", "D50", "D2", "D1", "Dmean")
"""Rows of the DVH table of a target (ICRU 83 reports D98, D50 and D2; the programs' limits use D95 and D99)."""

OAR_CRITERIA = ("Dmean", "Dmax", "D2", "D0.1cc")
"""Rows of the DVH table of an organ at risk, beside its own limits."""

OPENKBP_TERM = "openkbp_dvh_"
"""Prefix of the metrics whose pooled mean over cases is the OpenKBP DVH score."""

_RELIABILITY = f"n is the voxels of the structure, reliable from {RELIABLE_VOXELS} up"


def score_case(
    prepared: PreparedCase, prediction_gy: NDArray[np.floating], site: Site, settings: EvaluationSettings
) -> list[Score]:
    """Score a predicted dose against the planned one on the planned grid.

    `prediction_gy` is (z, y, x) in Gy for the whole volume, in the shape of `prepared.ct`. Rows come in a fixed order
    and there is a row for every structure of the site: where a structure is absent, its values are None. Raises
    MedAssetsError when the prediction has another shape or holds NaN, since then nothing can be scored.
    """
    prediction = np.asarray(prediction_gy, dtype=np.float32)
    truth = np.asarray(prepared.dose, dtype=np.float32)
    dose_metrics.require_dose(prediction, truth.shape, f"case {prepared.case_id}")
    masks = {name: prepared.mask(name) for name in site.structures}
    doses = Doses(
        truth,
        prediction,
        np.asarray(prepared.body, dtype=bool),
        masks,
        {name: (truth[mask], prediction[mask]) for name, mask in masks.items()},
        {name: site.prescribed_gy(name, prepared.prescription_gy) for name in site.structures},
        prepared,
        site,
        settings.gamma,
        settings.ptv_margin_mm,
    )
    return [score for metric in METRICS for score in metric(doses)]


def errors(doses: Doses) -> Iterator[Score]:
    """Mean absolute and signed error of the body and of each structure."""
    body = doses.body
    yield from _errors("body", doses.truth[body], doses.prediction[body], "the body (or the possible dose mask)")
    for name, (planned, predicted) in doses.pairs.items():
        yield from _errors(name, planned, predicted, "the structure")


def dvh(doses: Doses) -> Iterator[Score]:
    """Differences of each structure's criteria of the dose-volume histogram, conformity among them."""
    for name, (planned, predicted) in doses.pairs.items():
        for criterion in _criteria(name, doses.site):
            yield _dvh(name, criterion, planned, predicted, doses.voxel_ml, doses.levels_gy[name])
        for criterion_name in doses.site.criteria.get(name, ()):
            if (percent := conformity_share(criterion_name)) is not None:
                yield _conformity(
                    name, criterion_name, doses.truth, doses.prediction, doses.masks[name], doses.body,
                    doses.levels_gy[name] * percent / 100,
                )  # fmt: skip


def limits(doses: Doses) -> Iterator[Score]:
    """The clinical limits of the site, and how often plan and prediction agree on them."""
    found = [
        _limit(limit, *doses.pairs[limit.structure], doses.voxel_ml, doses.levels_gy[limit.structure])
        for limit in doses.site.limits
    ]
    yield from found
    yield _agreement(found)


def _errors(
    subject: str, planned: NDArray[np.floating], predicted: NDArray[np.floating], where: str
) -> Iterator[Score]:
    inside = np.ones(planned.shape, dtype=bool)
    grid = f"over the voxels of {where} on the planned grid"
    absolute = dose_metrics.mean_absolute_error(predicted, planned, inside)
    signed = dose_metrics.mean_error(predicted, planned, inside)
    yield Score("mae", subject, absolute, "Gy", f"mean of |predicted - planned| {grid}", n=planned.size)
    yield Score("mean_error", subject, signed, "Gy", f"mean of predicted - planned {grid}", n=planned.size)


def _criteria(name: str, site: Site) -> list[Criterion]:
    """Return the criteria of a structure's DVH rows: the usual ones, then those that only its limits ask for."""
    usual = [*TARGET_CRITERIA, f"V{0.95 * site.targets[name]:g}"] if name in site.targets else [*OAR_CRITERIA]
    usual += [one for one in site.criteria.get(name, ()) if conformity_share(one) is None]
    wanted = [Criterion.parse(criterion) for criterion in usual]
    wanted += [limit.criterion for limit in site.limits if limit.structure == name]
    return list(dict.fromkeys(wanted))


def _dvh(
    name: str,
    criterion: Criterion,
    planned: NDArray[np.floating],
    predicted: NDArray[np.floating],
    voxel_ml: float,
    prescribed_gy: float,
) -> Score:
    sides = [criterion.measure(doses, voxel_ml, prescribed_gy) for doses in (planned, predicted)]
    convention = f"predicted minus planned {criterion.name}: {criterion.convention}; {_RELIABILITY}"
    return Score(
        f"dvh_{criterion.name}", name, _minus(sides[1], sides[0]), criterion.unit, convention,
        truth=sides[0], prediction=sides[1], n=planned.size,
    )  # fmt: skip


def _conformity(
    name: str,
    criterion: str,
    planned_gy: NDArray[np.floating],
    predicted_gy: NDArray[np.floating],
    target: NDArray[np.bool_],
    body: NDArray[np.bool_],
    level_gy: float,
) -> Score:
    sides = [conformity_index(dose, target, body, level_gy) for dose in (planned_gy, predicted_gy)]
    return Score(
        f"dvh_{criterion}", name, _minus(sides[1], sides[0]), "1",
        f"predicted minus planned conformity index of Paddick, TV_PIV^2 / (TV PIV) in the body at {level_gy:g} Gy or more; "
        f"{_RELIABILITY}",
        truth=sides[0], prediction=sides[1], n=int(np.count_nonzero(target)),
    )  # fmt: skip


def _limit(
    limit: Limit,
    planned: NDArray[np.floating],
    predicted: NDArray[np.floating],
    voxel_ml: float,
    prescribed_gy: float,
) -> Score:
    criterion = limit.criterion
    planned_value, predicted_value = (criterion.measure(one, voxel_ml, prescribed_gy) for one in (planned, predicted))
    sign = ">=" if limit.bound == "min" else "<="
    return Score(
        f"limit_{limit.metric}", limit.structure, predicted_value, limit.unit,
        f"{limit.metric} {sign} {limit.value:g} {limit.unit}; {criterion.convention}; {_RELIABILITY}",
        truth=planned_value, prediction=predicted_value, limit=limit.value,
        passed=_keeps(predicted_value, limit), passed_truth=_keeps(planned_value, limit), n=planned.size,
    )  # fmt: skip


def _keeps(value: float | None, limit: Limit) -> bool | None:
    if value is None:
        return None
    return value >= limit.value if limit.bound == "min" else value <= limit.value


def _agreement(limits: list[Score]) -> Score:
    defined = [row for row in limits if row.passed is not None and row.passed_truth is not None]
    same = sum(row.passed == row.passed_truth for row in defined)
    convention = "% of the defined clinical limits where predicted and planned dose both pass or both fail"
    value = 100 * same / len(defined) if defined else None
    return Score("limits_agreement", "all", value, "%", convention, n=len(defined))


def openkbp(doses: Doses) -> Iterator[Score]:
    """The scores of the OpenKBP challenge."""
    site, pairs, voxel_ml = doses.site, doses.pairs, doses.voxel_ml
    planned_body, predicted_body = doses.truth[doses.body], doses.prediction[doses.body]
    inside = np.ones(planned_body.shape, dtype=bool)
    yield Score(
        "openkbp_dose_score", "body", dose_metrics.mean_absolute_error(predicted_body, planned_body, inside), "Gy",
        "OpenKBP dose score of one patient: sum |predicted - planned| / voxels of the possible dose mask (the body "
        "where a case has no such mask)",
        n=planned_body.size,
    )  # fmt: skip
    terms: list[float | None] = []
    groups = ((site.targets, dose_metrics.OPENKBP_TARGET_CRITERIA), (site.oars, dose_metrics.OPENKBP_OAR_CRITERIA))
    asked = [(name, criterion) for names, criteria in groups for name in names for criterion in criteria]
    for name, criterion in asked:
        planned, predicted = pairs[name]
        sides = [dose_metrics.openkbp_criterion(doses, criterion, voxel_ml) for doses in (planned, predicted)]
        difference = _minus(sides[1], sides[0])
        terms.append(None if difference is None else abs(difference))
        yield Score(
            f"{OPENKBP_TERM}{criterion}", name, terms[-1], "Gy",
            f"|predicted - planned| {criterion} as OpenKBP has it: linear percentiles, 100 (1 - k / n) with k = max(1, round(0.1 cc / voxel)) for D0.1cc",
            truth=sides[0], prediction=sides[1], n=planned.size,
        )  # fmt: skip
    yield Score(
        "openkbp_dvh_score", "all", dose_metrics.openkbp_dvh_score(terms), "Gy",
        "mean over this case's defined OpenKBP criteria; the challenge's DVH score pools the criteria of all patients: "
        f"mean of the {OPENKBP_TERM}* rows",
        n=sum(term is not None for term in terms),
    )  # fmt: skip


def gamma(doses: Doses) -> Iterator[Score]:
    """Passing rates of gamma in each region, for each choice of its settings."""
    prepared = doses.prepared
    near = gamma_regions(doses.body, doses.masks, prepared.spacing_mm, doses.site, doses.ptv_margin_mm)
    for chosen in doses.gamma:
        rates = gamma_rates(
            doses.truth, doses.prediction, prepared.spacing_mm, near, chosen, prescription_gy=prepared.prescription_gy
        )
        for region, rate in rates.items():
            convention = f"% of reference voxels with gamma <= 1; {chosen.convention()}"
            yield Score(chosen.name, region, rate.passing_percent, "%", convention, n=rate.n)


def gamma_regions(
    body: NDArray[np.bool_],
    masks: dict[str, NDArray[np.bool_]],
    spacing_mm: tuple[float, float, float],
    site: Site,
    margin_mm: float,
) -> dict[str, NDArray[np.bool_]]:
    """Return the regions of the gamma rows as masks (z, y, x): `body`, `ptv_margin`, `oars` and `elsewhere`.

    `ptv_margin` is the body within `margin_mm` of any target; `oars` the organs at risk outside it; `elsewhere` the
    rest of the body. The last three are disjoint and make up the body.
    """
    targets = np.logical_or.reduce([masks[name] for name in site.targets])
    organs = np.logical_or.reduce([masks[name] for name in site.oars] or [np.zeros_like(body)])
    near = grow(targets, margin_mm, spacing_mm) & body
    return {"body": body, "ptv_margin": near, "oars": organs & body & ~near, "elsewhere": body & ~near & ~organs}


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


METRICS: tuple[Callable[[Doses], Iterable[Score]], ...] = (
    errors,
    dvh,
    limits,
    openkbp,
    gamma,
    falloff,
)
"""What is measured of a predicted dose, in the order of the rows."""
