"""One sagittal T2 series and its points from de-identified DICOM to arrays in one orientation, and its facts."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.dicom.label_rows import LabelRow, write_rows
from med_assets.dicom.structure_names import normalise
from med_assets.errors import CaseRejected
from med_assets.preparation.prepared import TRUTH
from med_assets.programs.lumbar_mr.grouping import sagittal_t2
from med_assets.programs.lumbar_mr.levels import ANATOMY_ROIS, CORNER_ROIS, LEVELS, ROI_NAMES, UNKNOWN
from med_assets.programs.lumbar_mr.transforms import network_input, to_eight_bit
from med_assets.storage.files import write_json

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.dicom.geometry import Geometry, Vector
    from med_assets.dicom.rtstruct import Point, Unusable


SAME_POINT_MM = 0.01
"""Two points of one name that lie this near are one point, sent twice."""


LEFT_OUT = "left out"
"""What a point of a level counts as that can't be used."""


@dataclass(frozen=True)
class Marked:
    """A point of a structure set, and the name of the level or anatomy that it marks; LEFT_OUT, or "" of one that means nothing."""

    point: "Point"
    marks: str


@dataclass(frozen=True)
class Levels:
    """The points of a structure set by level, LPS mm (3,), and the anatomy it states.

    `others` counts points whose names mean nothing here; `left_out` are level points and items that can't be used, by level or
    by the number of their ROI, with the reason.
    """

    points: Mapping[str, np.ndarray]
    anatomy: str
    others: int = 0
    left_out: tuple[str, ...] = ()
    marked: tuple[Marked, ...] = ()
    """Every point, by the number of its ROI."""


def read_levels(dataset: "Dataset", frame: str = "") -> Levels:
    """Return the level points of a structure set. Names are compared without case, blanks, `_` and `-`.

    An item that is no single position, a level with several positions, and a point of another frame of reference than
    `frame` cost only themselves. Raises CaseRejected: no_level_points, several_anatomies, and the codes of `read_points`.
    """
    from med_assets.dicom.rtstruct import read_points

    levels = {normalise(name): level for level, name in ROI_NAMES.items()}
    anatomies = {normalise(name): anatomy for anatomy, name in ANATOMY_ROIS.items()}
    corners = set(map(normalise, CORNER_ROIS))
    point_set = read_points(dataset)
    placed: dict[str, list[np.ndarray]] = {}
    stated, others = set(), 0
    left_out = [_item_left_out(item, levels) for item in point_set.unusable]
    for point in point_set.points:
        known = normalise(point.name)
        if point.frame and frame and point.frame != frame:
            left_out.append(f"{_called(point.name, f'ROI {point.number}', levels)}: in another frame of reference")
        elif known in anatomies:
            stated.add(anatomies[known])
        elif known in levels:
            placed.setdefault(levels[known], []).append(point.position_mm)
        elif known not in corners:
            others += 1
    found = {}
    for level, positions in placed.items():
        apart_mm = max(float(np.linalg.norm(one - positions[0])) for one in positions)
        if apart_mm <= SAME_POINT_MM:
            found[level] = positions[0]
        else:
            left_out.append(f"{ROI_NAMES[level]}: {len(positions)} points, up to {apart_mm:.1f} mm from the first")
    if not found:
        why = f"; left out: {', '.join(left_out)}" if left_out else ""
        raise CaseRejected(
            "no_level_points",
            f"expected a POINT contour named {' or '.join(ROI_NAMES.values())}, got none that can be used among {others} points of "
            f"other names{why}; name the points so, or send the series without the structure set",
        )
    if len(stated) > 1:
        raise CaseRejected(
            "several_anatomies",
            f"expected one of the points {', '.join(ANATOMY_ROIS.values())}, got {len(stated)}; keep one",
        )
    marked = []
    for point in sorted(point_set.points, key=lambda one: one.number):
        known = normalise(point.name)
        if known in corners:  # of no level: they are measured, not learned
            continue
        means = known in anatomies or known in levels
        used = not (point.frame and frame and point.frame != frame) and levels.get(known, "") in ("", *found)
        name = ANATOMY_ROIS[anatomies[known]] if known in anatomies else _called(point.name, "", levels)
        marked.append(Marked(point, "" if not means else name if used else LEFT_OUT))
    return Levels(found, next(iter(stated), UNKNOWN), others, tuple(left_out), tuple(marked))


def _called(name: str, otherwise: str, levels: Mapping[str, str]) -> str:
    """The name of a level, which identifies nobody, or else the number of the ROI."""

    known = normalise(name)
    return ROI_NAMES[levels[known]] if known in levels else otherwise


def _item_left_out(item: "Unusable", levels: Mapping[str, str]) -> str:
    return f"{_called(item.name, item.where, levels)}: {item.problem}"


def towards(direction: tuple["Vector", "Vector", "Vector"]) -> str:
    """Return where slices, rows and columns run to, such as RIP: right, inferior, posterior."""
    return "".join(
        ("LR", "PA", "SI")[axis][int(vector[axis] < 0)]
        for vector in np.asarray(direction)
        for axis in (int(np.abs(vector).argmax()),)
    )


def prepare_case(case_id: str, raw: Path, out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the prepared arrays of the case under `raw` to `out` and return its facts; those of points where it has some.

    Raises CaseRejected with the codes of the DICOM readers and of `read_levels`, not_sagittal and no_contrast.
    """
    from med_assets.dicom.enhanced import one_volume, single_frames
    from med_assets.dicom.geometry import SAGITTAL, canonical, read_mr_series
    from med_assets.dicom.objects import is_synthetic, stored

    files = stored(raw)
    label = next(iter(files.get("RTSTRUCT", ())), None)
    as_stored = read_mr_series(files["MR"], sagittal_t2, label)
    shown = one_volume(single_frames(files["MR"]), sagittal_t2, label=label)[0]
    series = canonical(as_stored, SAGITTAL)
    volume, low, high = to_eight_bit(series.array)
    geometry = series.geometry
    of_points = {}
    if "RTSTRUCT" in files:
        frame = str(files["MR"][0].get("FrameOfReferenceUID") or "")
        marked = read_levels(files["RTSTRUCT"][0], frame)
        at = {level: geometry.to_index(point)[0] for level, point in marked.points.items()}
        levels = {level: [float(v) for v in at[level]] if level in at else None for level in LEVELS}
        write_json(out / TRUTH, {"levels": levels, "middle": _middle(at, geometry.shape[0]), "lstv": marked.anatomy})
        write_rows(out, _rows(marked, geometry))
        of_points = {
            "levels": len(at),
            "points_without_level": marked.others,
            "points_left_out": "; ".join(marked.left_out),
            "lstv": marked.anatomy,
            **point_facts(at, geometry),
        }
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
        "echo_time_ms": _number(shown, "EchoTime"),
        "repetition_time_ms": _number(shown, "RepetitionTime"),
        **of_points,
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


def _rows(levels: Levels, geometry: "Geometry") -> list[LabelRow]:
    """The points, placed in voxels of the prepared volume."""
    rows = []
    for one in levels.marked:
        s, y, x = (f"{value:.1f}" for value in geometry.to_index(one.point.position_mm)[0])
        measured = {"slice": s, "row": y, "column": x}
        rows.append(LabelRow(one.point.number, one.point.name, maps_to=one.marks, measured=measured))
    return rows


def _middle(at: Mapping[str, np.ndarray], slices: int) -> int:
    middle = float(np.mean([point[0] for point in at.values()])) if at else (slices - 1) / 2
    return int(np.clip(np.rint(middle), 0, slices - 1))


def _number(dataset: "Dataset", keyword: str) -> float | None:
    from med_assets.dicom.elements import number

    return number(dataset, keyword)
