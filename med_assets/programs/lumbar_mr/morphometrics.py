"""What the marked ends of endplates say of the last vertebrae: heights of discs, their ratio, and how square a vertebra is.

An endplate is the line between its front and its back point in the middle sagittal slice. Transitional vertebrae tend to have a low disc
below them and endplates of one length: Wigh (1980) calls S1 squared where its upper endplate is at most 1.37 times as long as its lower one. No
such limit is applied here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.catalog import Catalog
from med_assets.dicom.structure_names import normalise
from med_assets.metrics.multiple import holm
from med_assets.program import ReportTable
from med_assets.programs.lumbar_mr import analyses
from med_assets.programs.lumbar_mr.levels import CORNER_ROIS, CORNERS, ENDPLATES, UNKNOWN, corner
from med_assets.programs.lumbar_mr.prepare import SAME_POINT_MM
from med_assets.settings import Settings
from med_assets.storage.versions import version_of

if TYPE_CHECKING:
    from pydicom import Dataset

NAME, PROGRAM = "morphometrics", "lumbar_mr"

NORMAL = "normal"


@dataclass(frozen=True)
class Morphometric:
    """One measure of a case: its unit, what it is, and the points that it needs."""

    name: str
    unit: str
    meaning: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A measure of one case; `value` is None where it is undefined, and `reason` says why."""

    value: float | None
    reason: str = ""


def _disc(above: str, below: str) -> tuple[str, ...]:
    return tuple(corner(v, plate, end) for v, plate in ((above, "lower"), (below, "upper")) for end in CORNERS)


def _body(vertebra: str) -> tuple[str, ...]:
    return tuple(corner(vertebra, plate, end) for plate in ENDPLATES for end in CORNERS)


def _height(above: str, below: str) -> Morphometric:
    text = f"height of the disc {above}/{below}: mean of the distances of its endplates' front points and back points"
    return Morphometric(f"disc height {above}/{below}", "mm", text, _disc(above, below))


def _ratio(above: str, middle: str, below: str) -> Morphometric:
    text = f"height of the disc {middle}/{below} over that of {above}/{middle}"
    needs = tuple(dict.fromkeys((*_disc(middle, below), *_disc(above, middle))))
    return Morphometric(f"disc-height ratio {middle}/{below}", "1", text, needs)


def _squareness(vertebra: str) -> Morphometric:
    text = f"length of the upper endplate of {vertebra} over that of its lower one; 1 is square, above 1 narrows to the feet"
    return Morphometric(f"squareness {vertebra}", "1", text, _body(vertebra))


MORPHOMETRICS = (
    _height("L3", "L4"), _height("L4", "L5"), _height("L5", "S1"), _ratio("L3", "L4", "L5"), _ratio("L4", "L5", "S1"),
    _squareness("L5"), _squareness("S1"),
)  # fmt: skip
"""The measures of a case. Distances are in space, so they need no slice to be exactly sagittal."""


def corners_of(dataset: "Dataset") -> dict[str, np.ndarray | None]:
    """Return the marked ends of endplates by name, LPS mm (3,); None for one that has several positions, or another frame of reference than the rest."""
    from med_assets.dicom.rtstruct import read_points

    names = {normalise(name): name for name in CORNER_ROIS}
    found: dict[str, list[Any]] = {}
    for point in read_points(dataset).points:
        if (name := names.get(normalise(point.name))) is not None:
            found.setdefault(name, []).append(point)
    frames = [point.frame for points in found.values() for point in points]
    frame = max(sorted(set(frames)), key=frames.count, default="")
    return {
        name: np.asarray(points[0].position_mm, float)
        if all(
            point.frame == frame and np.linalg.norm(point.position_mm - points[0].position_mm) <= SAME_POINT_MM
            for point in points
        )
        else None
        for name, points in found.items()
    }


def measure(corners: Mapping[str, np.ndarray | None]) -> dict[str, Measured]:
    """Return each of MORPHOMETRICS for the ends of endplates, undefined with the points that it lacks."""
    return {each.name: _measured(each, corners) for each in MORPHOMETRICS}


def _measured(one: Morphometric, corners: Mapping[str, np.ndarray | None]) -> Measured:
    at = {name: point for name in one.needs if (point := corners.get(name)) is not None}
    if lacking := [name for name in one.needs if name not in at]:
        several = [name for name in lacking if name in corners]
        missing = [name for name in lacking if name not in corners]
        parts = [f"no point {', '.join(missing)}"] * bool(missing)
        parts += [f"several positions or frames of reference of {', '.join(several)}"] * bool(several)
        return Measured(None, "; ".join(parts))
    kind, _, subject = one.name.rpartition(" ")
    if kind == "squareness":
        upper, lower = (_apart(at, (subject, plate, CORNERS[0]), (subject, plate, CORNERS[1])) for plate in ENDPLATES)
        return _over(upper, lower, "its lower endplate has no length")
    above, below = subject.split("/")
    height = _disc_height(at, above, below)
    if kind == "disc height":
        return Measured(height)
    higher = next(name.split()[0] for name in one.needs if name.split()[0] not in (above, below))
    return _over(height, _disc_height(at, higher, above), f"the disc {higher}/{above} has no height")


def _disc_height(at: Mapping[str, np.ndarray], above: str, below: str) -> float:
    return fsum(_apart(at, (above, "lower", end), (below, "upper", end)) for end in CORNERS) / len(CORNERS)


def _apart(at: Mapping[str, np.ndarray], one: tuple[str, str, str], other: tuple[str, str, str]) -> float:
    return float(np.linalg.norm(at[corner(*one)] - at[corner(*other)]))


def _over(value: float, by: float, reason: str) -> Measured:
    return Measured(value / by) if by > 0 else Measured(None, reason)


def measured_of(raw: Path) -> dict[str, list[Any]]:
    """Return value and reason of each measure for the stored files of a case, and nothing for one without such points."""
    from pydicom import dcmread

    corners: dict[str, np.ndarray | None] = {}
    for path in sorted(raw.glob("*.dcm")):
        if dcmread(path, stop_before_pixels=True, specific_tags=["Modality"]).Modality == "RTSTRUCT":
            corners |= corners_of(dcmread(path))
    return {name: [each.value, each.reason] for name, each in measure(corners).items()} if corners else {}


def morphometrics(ws: Settings) -> list[ReportTable]:
    """Measure every case of the dataset; no table where no case has a marked endplate."""
    from med_assets.evaluation.analyse import Measuring

    catalog, measuring = Catalog(ws, PROGRAM), Measuring(ws, NAME, version_of(analyses.morphometrics))
    artifacts = {(row.case_id, row.version): row.artifact for row in catalog.case_versions()}
    rows = []
    for case in catalog.described():
        artifact = artifacts[case.case_id, case.version]

        def work(artifact: str = artifact) -> dict[str, list[Any]]:
            return measured_of(ws.store.fetch(artifact))

        values = measuring.of(case.case_id, artifact, work)
        if values:
            rows.append(
                Row(
                    case.case_id,
                    case.patient_id,
                    str(case.facts.get("lstv") or UNKNOWN),
                    {n: Measured(*v) for n, v in values.items()},
                )
            )
    measuring.record(PROGRAM, NAME)
    return tables(rows) if rows else []


@dataclass(frozen=True)
class Row:
    """The measures of one case, whose anatomy a reader stated or nobody did."""

    case_id: str
    patient_id: str
    anatomy: str
    values: Mapping[str, Measured]


def tables(rows: Sequence[Row]) -> list[ReportTable]:
    """Return what all cases show together, and the table of all cases."""
    import pandas as pd

    definitions = " ".join(f"{each.name} ({each.unit}): {each.meaning}." for each in MORPHOMETRICS)
    summary = [_summary(each, rows) for each in MORPHOMETRICS]
    cases = [
        {"case": row.case_id, "anatomy": row.anatomy}
        | {
            f"{name}, {unit}": _shown(row.values[name])
            for name, unit in ((each.name, each.unit) for each in MORPHOMETRICS)
        }
        | {"undefined": "; ".join(sorted({each.reason for each in row.values.values() if each.reason}))}
        for row in rows
    ]
    text = (
        f"Of the {len(rows)} cases of the dataset with marked endplates. {definitions} Mean with its 95 % interval (bootstrap over patients). AUROC: the "
        "probability that a transitional spine has the higher value, with its interval; p by permutation of patients, two-sided, adjusted over all rows (Holm)."
    )
    return [
        ReportTable("Disc heights and squareness", text, pd.DataFrame(_with_adjusted_p(summary))),
        ReportTable(
            "Disc heights and squareness by case",
            "An empty cell is undefined, for the reason given.",
            pd.DataFrame(cases),
        ),
    ]


def _shown(measured: Measured) -> str:
    return "" if measured.value is None else f"{measured.value:.2f}"


def _summary(one: Morphometric, rows: Sequence[Row]) -> dict[str, Any]:
    from med_assets.metrics.bootstrap import SEED, mean_with_interval
    from med_assets.metrics.classification import auroc

    of_all = mean_with_interval(
        [row.values[one.name].value for row in rows], SEED, groups=[row.patient_id for row in rows]
    )
    sides = [
        [row for row in rows if row.anatomy != UNKNOWN and (row.anatomy == NORMAL) is normal]
        for normal in (False, True)
    ]
    values = [[row.values[one.name].value for row in side] for side in sides]
    groups = [[row.patient_id for row in side] for side in sides]
    area = auroc(values[0], values[1], SEED, positive_groups=groups[0], negative_groups=groups[1])
    return {
        "measure": one.name,
        "unit": one.unit,
        "n": of_all.n,
        "mean": "" if of_all.mean is None else f"{of_all.mean:.2f}",
        "95 % interval": "" if of_all.low is None else f"{of_all.low:.2f} to {of_all.high:.2f}",
        "transitional": area.n_positive,
        "normal": area.n_negative,
        "AUROC": "" if area.value is None else f"{area.value:.3f}",
        "interval of the AUROC": "" if area.low is None else f"{area.low:.3f} to {area.high:.3f}",
        "p": area.p,
    }


def _with_adjusted_p(summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    adjusted = holm([row["p"] for row in summary])
    return [
        {**{name: value for name, value in row.items() if name != "p"}, "adjusted p": "" if p is None else f"{p:.2g}"}
        for row, p in zip(summary, adjusted, strict=True)
    ]
