"""One sagittal T2 series and its points from de-identified DICOM to arrays in one orientation, and its facts."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.errors import CaseRejected
from med_assets.files import write_json
from med_assets.programs.lumbar_mr.grouping import sagittal_t2
from med_assets.programs.lumbar_mr.levels import ANATOMY_ROIS, LEVELS, ROI_NAMES, UNKNOWN
from med_assets.programs.lumbar_mr.transforms import network_input, to_eight_bit

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.dicom.geometry import Geometry, Vector


def read_levels(dataset: "Dataset") -> tuple[dict[str, np.ndarray], str, int]:
    """Return the points of a structure set by level, LPS mm (3,), the anatomy it states, and how many points are neither.

    Names are compared without case, blanks, `_` and `-`. Raises CaseRejected: no_level_points, several_anatomies,
    duplicate_roi, and the codes of `read_points`.
    """
    from med_assets.dicom.rtstruct import read_points
    from med_assets.dicom.structure_names import normalise

    levels = {normalise(name): level for level, name in ROI_NAMES.items()}
    anatomies = {normalise(name): anatomy for anatomy, name in ANATOMY_ROIS.items()}
    found: dict[str, np.ndarray] = {}
    stated, others = set(), 0
    for name, point in read_points(dataset).items():
        known = normalise(name)
        if known in anatomies:
            stated.add(anatomies[known])
        elif known not in levels:
            others += 1
        elif levels[known] in found:
            raise CaseRejected(
                "duplicate_roi", f"expected one point for {ROI_NAMES[levels[known]]}, got several; keep one"
            )
        else:
            found[levels[known]] = point
    if not found:
        raise CaseRejected(
            "no_level_points",
            f"expected a POINT contour named {' or '.join(ROI_NAMES.values())}, got none among {others} points of other "
            "names; name the points so, or send the series without the structure set",
        )
    if len(stated) > 1:
        raise CaseRejected(
            "several_anatomies",
            f"expected one of the points {', '.join(ANATOMY_ROIS.values())}, got {len(stated)}; keep one",
        )
    return found, next(iter(stated), UNKNOWN), others


def towards(direction: tuple["Vector", "Vector", "Vector"]) -> str:
    """Return where slices, rows and columns run to, such as RIP: right, inferior, posterior."""
    return "".join(
        ("LR", "PA", "SI")[axis][int(vector[axis] < 0)]
        for vector in np.asarray(direction)
        for axis in (int(np.abs(vector).argmax()),)
    )


def prepare_case(case_id: str, raw: Path, out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the prepared arrays of the case under `raw` to `out` and return its facts.

    Raises CaseRejected with the codes of the DICOM readers and of `read_levels`, not_sagittal and no_contrast.
    """
    from med_assets.dicom.enhanced import first_frame
    from med_assets.dicom.geometry import SAGITTAL, canonical, read_mr_series
    from med_assets.dicom.objects import is_synthetic, stored

    files = stored(raw)
    as_stored = read_mr_series(files["MR"], sagittal_t2)
    series = canonical(as_stored, SAGITTAL)
    volume, low, high = to_eight_bit(series.array)
    points, anatomy, others = read_levels(files["RTSTRUCT"][0]) if "RTSTRUCT" in files else ({}, UNKNOWN, 0)
    geometry = series.geometry
    at = {level: geometry.to_index(point)[0] for level, point in points.items()}
    np.save(out / "volume.npy", volume)
    np.save(out / "input.npy", network_input(volume))
    write_json(
        out / "case.json",
        {
            "case_id": case_id,
            "geometry": geometry.to_dict(),
            "pixel_mm": list(geometry.spacing_mm[1:]),
            "slice_mm": geometry.spacing_mm[0],
            "shape": list(geometry.shape),
            "levels": {level: [float(v) for v in at[level]] if level in at else None for level in LEVELS},
            "middle": _middle(at, geometry.shape[0]),
            "lstv": anatomy,
            "synthetic": any(is_synthetic(ds) for group in files.values() for ds in group),
            "settings": dict(settings),
        },
    )
    return {
        "slices": geometry.shape[0],
        "rows": geometry.shape[1],
        "columns": geometry.shape[2],
        "slice_mm": float(geometry.spacing_mm[0]),
        "pixel_mm": float(max(geometry.spacing_mm[1:])),
        "height_mm": float(geometry.shape[1] * geometry.spacing_mm[1]),
        "orientation": towards(as_stored.geometry.direction),
        "intensity_low": low,
        "intensity_high": high,
        "echo_time_ms": _number(first_frame(files["MR"][0]), "EchoTime"),
        "repetition_time_ms": _number(first_frame(files["MR"][0]), "RepetitionTime"),
        "levels": len(at),
        "points_without_level": others,
        "lstv": anatomy,
        **point_facts(at, geometry),
    }


def point_facts(at: Mapping[str, np.ndarray], geometry: "Geometry") -> dict[str, Any]:
    """Return what is measured of points (s, y, x) in voxels; what needs points that are not there is None."""
    shape = np.asarray(geometry.shape, float)
    inside = {level: bool((point >= -0.5).all() and (point <= shape - 0.5).all()) for level, point in at.items()}
    known = [level for level in LEVELS if level in at]
    heights = [float(at[level][1]) for level in known]
    places = {level: geometry.to_points(at[level])[0] for level in known}
    neighbours = [(a, b) for a, b in itertools.pairwise(LEVELS) if a in at and b in at]
    gaps = [float(np.linalg.norm(places[b] - places[a])) for a, b in neighbours]
    slices = [float(at[level][0]) for level in known]
    return {
        "points_outside": sum(not one for one in inside.values()) if at else None,
        "levels_in_order": all(a < b for a, b in itertools.pairwise(heights)) if len(at) > 1 else None,
        "level_gap_min_mm": min(gaps, default=None),
        "level_gap_max_mm": max(gaps, default=None),
        "level_slices": max(slices) - min(slices) if at else None,
    }


def _middle(at: Mapping[str, np.ndarray], slices: int) -> int:
    middle = float(np.mean([point[0] for point in at.values()])) if at else (slices - 1) / 2
    return int(np.clip(np.rint(middle), 0, slices - 1))


def _number(dataset: "Dataset", keyword: str) -> float | None:
    from med_assets.dicom.frames import number

    return number(dataset, keyword)
