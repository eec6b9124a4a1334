"""A case in the browser: the CT with the structures, planned and predicted dose with isodoses, the DVH and the site's limits."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry
from med_assets.metrics.dvh import cumulative_dvh
from med_assets.metrics.dvh_criteria import Criterion
from med_assets.preparation.prepared import reading_fields
from med_assets.programs.rt_dose.kept import PREDICTION
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Limit, Site, load_site
from med_assets.review.viewing.contract import (
    Chart,
    Grid,
    Kind,
    Layer,
    Level,
    Line,
    Mask,
    Role,
    Table,
    View,
    Window,
    centre_of,
    middle_of,
)  # fmt: skip
from med_assets.review.viewing.style import structure_colour

WINDOWS = (Window("soft tissue", -160, 240), Window("lung", -1350, 150), Window("bone", -450, 1050))

ISODOSES = (
    (107, "#ff2d2d"), (100, "#ff8c1a"), (95, "#ffd21a"), (80, "#7be05a"), (50, "#2fc6d6"), (30, "#4f8bff"),
)  # fmt: skip
"""Percent of the prescription, and the colour of its line."""

LEAST_STEP_GY = 0.002
"""A dose is sent in whole steps of this, or larger ones where int16 would not hold the highest."""

DIFFERENCE_SHARE = 0.1
"""Part of the prescription at which the colours of a difference end."""

DVH_POINTS = 200

SUMMARY = ("Dmean", "D98", "D95", "D50", "D2")
"""Criteria of the DVH that are displayed of every structure."""

PLANNED, PREDICTED = "planned", "predicted"


def views(prepared: Path, predicted: Path | None) -> list[View]:
    """The CT with structures, and the doses that there are."""
    case = PreparedCase.open(prepared)
    site = load_site(case.site)
    doses: dict[str, np.ndarray] = {}
    if case.planned_dose is not None:
        doses[PLANNED] = case.planned_dose
    if predicted is not None:
        doses[PREDICTED] = np.load(predicted / PREDICTION, mmap_mode="r")
    with reading_fields():
        grid = Grid.of(Geometry.from_dict(case.geometry))
    structures = tuple(
        Mask(site.structures.index(name), name, structure_colour(place), Role.STRUCTURE, filled=False)
        for place, name in enumerate(case.present)
    )
    layers = [
        Layer("ct", "CT", Kind.IMAGE, "int16", lambda: case.ct, unit="HU", windows=WINDOWS),
        *_dose_layers(doses, case.prescription_gy),
        Layer("structures", "structures", Kind.MASKS, "uint16", lambda: case.masks, masks=structures),
    ]
    start = middle_of(case.mask(site.main_target)) if site.main_target in case.present else None
    inside = {name: case.mask(name) for name in case.present}
    by_structure = {
        name: {side: np.asarray(dose[mask]) for side, dose in doses.items()}
        for name, mask in inside.items()
        if mask.any()
    }
    return [
        View(
            "dose",
            "Dose",
            grid,
            tuple(layers),
            start or centre_of(grid.shape),
            charts=_dvh(by_structure) if doses else (),
            tables=_tables(site, case, by_structure) if doses else (),
            note=f"Prescription {case.prescription_gy:g} Gy. Lines of the DVH: planned solid, predicted dashed.",
        )
    ]


def _dose_layers(doses: Mapping[str, np.ndarray], prescription_gy: float) -> list[Layer]:
    if not doses:
        return []
    highest = max(float(np.max(dose)) for dose in doses.values())
    step_gy = max(LEAST_STEP_GY, highest / np.iinfo(np.int16).max)
    levels = tuple(
        Level(percent / 100 * prescription_gy, f"{percent} %", colour)
        for percent, colour in ISODOSES
        if percent / 100 * prescription_gy <= highest
    )

    def stored(dose_gy: np.ndarray) -> np.ndarray:
        return np.rint(np.asarray(dose_gy, np.float32) / np.float32(step_gy)).astype(np.int16)

    layers = [
        Layer(
            f"dose_{side}", f"{side} dose", Kind.SCALAR, "int16", partial(stored, dose), unit="Gy", slope=step_gy,
            levels=levels, high=1.1 * prescription_gy, shown=side == list(doses)[-1],
        )
        for side, dose in doses.items()
    ]  # fmt: skip
    if len(doses) == 2:
        most = DIFFERENCE_SHARE * prescription_gy
        layers.append(
            Layer(
                "dose_difference", "predicted - planned", Kind.SCALAR, "int16", lambda: stored(doses[PREDICTED] - doses[PLANNED]),
                unit="Gy", slope=step_gy, low=-most, high=most, palette="diverging", shown=False,
            )
        )  # fmt: skip
    return layers


def _dvh(by_structure: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[Chart, ...]:
    """Cumulative DVHs, as the report has them."""
    highest = max((float(dose.max()) for sides in by_structure.values() for dose in sides.values()), default=1.0)
    levels = np.linspace(0, 1.03 * max(1.0, highest), DVH_POINTS)
    lines = [
        Line(
            f"{name}, {side}", levels.round(3).tolist(), cumulative_dvh(dose, levels).round(2).tolist(),
            structure_colour(place, light=False), dashed=side == PREDICTED,
        )
        for place, (name, sides) in enumerate(by_structure.items())
        for side, dose in sides.items()
    ]  # fmt: skip
    return (Chart("Dose-volume histogram", "Dose (Gy)", "Volume (%)", tuple(lines)),)


def _tables(site: Site, case: PreparedCase, by_structure: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[Table, ...]:
    sides = list(next(iter(by_structure.values()), {}))
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    rows = [
        (
            limit.structure,
            f"{limit.metric} {'≥' if limit.bound == 'min' else '≤'} {limit.value:g} {limit.unit}",
            *(_kept(site, limit, case, by_structure.get(limit.structure, {}).get(side), voxel_ml) for side in sides),
        )
        for limit in site.limits
    ]
    table = [
        (f"{name}, {side}", *("undefined" if value is None else f"{value:.1f}" for value in _summary(dose, voxel_ml)))
        for name, doses in by_structure.items()
        for side, dose in doses.items()
    ]
    return (
        Table(f"Limits of {site.title}", ("Structure", "Limit", *sides), tuple(rows)),
        Table("DVH, Gy", ("Structure", *SUMMARY), tuple(table)),
    )


def _summary(doses_gy: np.ndarray, voxel_ml: float) -> Sequence[float | None]:
    return [Criterion.parse(name).measure(doses_gy, voxel_ml) for name in SUMMARY]


def _kept(site: Site, limit: Limit, case: PreparedCase, doses_gy: np.ndarray | None, voxel_ml: float) -> str:
    """The value of a limit's metric, and whether the limit is kept."""
    if doses_gy is None:
        return "not in this case"
    value = limit.criterion.measure(doses_gy, voxel_ml, site.prescribed_gy(limit.structure, case.prescription_gy))
    if value is None:
        return "undefined"
    kept = value >= limit.value if limit.bound == "min" else value <= limit.value
    return f"{value:.3g} {'✓' if kept else '✗'}"
