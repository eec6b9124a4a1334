"""Structure sets: their ROIs and points, the voxels that contours enclose, and which ROI is which structure of a program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from med_assets.dicom.frames import number, numbers, text
from med_assets.dicom.geometry import Geometry
from med_assets.dicom.structure_names import normalise
from med_assets.errors import CaseRejected, ConfigurationError

CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
"""Geometric types that enclose an area; points and open lines are read as no contour."""

PLANAR_TOLERANCE_MM = 0.5
"""How far a contour's points may lie off its own plane."""

OUTSIDE_TOLERANCE_VOXELS = 1.0
"""How far beyond the outer edge of the outer voxels a contour may reach: planning systems differ by half a voxel."""

SAME_PLANE_VOXELS = 1e-3
"""Contours nearer than this, in slices, lie on one plane."""

INDEX_DECIMALS = 6
"""Decimals of a voxel kept of contour points, so that the noise of decimal text can't move a voxel across a line."""


@dataclass(frozen=True)
class Roi:
    """One region of interest; `contours` are closed polygons, (n, 3) LPS mm, the last point not repeating the first."""

    number: int
    name: str
    contours: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Match:
    """Which ROI is which structure.

    `found` maps structures to ROI names, `ambiguous` structures to the several ROI names that would fit, `unmatched`
    are ROI names that no structure claims, and `missing` structures without any ROI.
    """

    found: dict[str, str]
    unmatched: tuple[str, ...]
    ambiguous: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]


def read_rois(dataset: Dataset) -> list[Roi]:
    """Return the ROIs of a structure set by number; one without closed contours has none.

    Raises `CaseRejected`: "wrong_modality", "missing_rois", "duplicate_roi", "malformed_contour".
    """
    names, outlines = _items(dataset)
    contours: dict[int, list[np.ndarray]] = {key: [] for key in names}
    for key, contour in outlines:
        if text(contour, "ContourGeometricType").upper() in CLOSED_TYPES:
            contours[key].append(_points(contour, at_least=3))
    return [Roi(key, names[key], tuple(contours[key])) for key in sorted(names)]


def read_points(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return the ROIs of a structure set that are one POINT each: LPS mm (3,) by name; others are left out.

    Raises `CaseRejected`: "wrong_modality", "missing_rois", "duplicate_roi" (also for a name that has two points),
    "malformed_contour".
    """
    names, outlines = _items(dataset)
    points: dict[str, np.ndarray] = {}
    for key, contour in outlines:
        if text(contour, "ContourGeometricType").upper() != "POINT":
            continue
        if names[key] in points:
            raise CaseRejected(
                "duplicate_roi", "Expected one point for each name; one has several. Keep the one that counts."
            )
        (points[names[key]],) = _points(contour, at_least=1)
    return points


def _items(dataset: Dataset) -> tuple[dict[int, str], list[tuple[int, Dataset]]]:
    """Names of a structure set's ROIs by number, and the contours that it has with the number of their ROI."""
    if text(dataset, "Modality") != "RTSTRUCT":
        raise CaseRejected("wrong_modality", "Expected an RTSTRUCT; got another modality. Send the structure set.")
    items = dataset.get("StructureSetROISequence") or ()
    names = {_roi_number(item, "ROINumber"): text(item, "ROIName") for item in items}
    if not names or not dataset.get("ROIContourSequence"):
        raise CaseRejected("missing_rois", "Expected ROIs with contours; got none. Send the contoured structure set.")
    if len(names) != len(items):
        raise CaseRejected("duplicate_roi", "Expected each ROI number once; one repeats. Export the structures again.")
    contours = []
    for item in dataset.ROIContourSequence:
        key = _roi_number(item, "ReferencedROINumber")
        if key not in names:
            raise CaseRejected("missing_rois", "Expected contours of listed ROIs; some belong to none. Export again.")
        contours += [(key, contour) for contour in item.get("ContourSequence") or ()]
    return names, contours


def rasterise(roi: Roi, geometry: Geometry) -> np.ndarray:
    """Return the bool (z, y, x) mask of the voxels whose centre lies inside an odd number of contours of their slice.

    So a contour within another is a hole, and the doubled line of a keyhole encloses nothing. A slice takes the
    contours of the plane nearest to it, at most half a contour spacing away: half a slice, or where contours are
    regularly further apart than slices, half their distance. Shapes are never interpolated between planes. No contours
    give an empty mask. Raises `CaseRejected`: "contour_outside_image", "contour_not_axial".
    """
    mask = np.zeros(geometry.shape, bool)
    if not roi.contours:
        return mask
    indices = [np.round(geometry.to_index(contour), INDEX_DECIMALS) for contour in roi.contours]
    if max(np.ptp(index[:, 0]) for index in indices) * geometry.spacing_mm[0] > PLANAR_TOLERANCE_MM:
        raise CaseRejected(
            "contour_not_axial", "Expected contours in the planes of the CT slices; one crosses slices. Redraw axially."
        )
    heights = np.array([index[:, 0].mean() for index in indices])
    order = np.argsort(heights, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(heights[order]) > SAME_PLANE_VOXELS) + 1)
    planes = np.array([heights[group].mean() for group in groups])
    half = _plane_spacing(planes) / 2
    _require_inside(indices, planes, half, geometry)
    nearest = _nearest_plane(planes, geometry.shape[0], half)
    for plane, group in enumerate(groups):
        slices = np.flatnonzero(nearest == plane)
        if slices.size:
            mask[slices] = _fill([indices[contour][:, 1:] for contour in group], geometry.shape[1:])
    return mask


def match_rois(names: Iterable[str], synonyms: Mapping[str, Sequence[str]]) -> Match:
    """Return which of the ROI `names` is which structure of `synonyms` (structure -> other names it goes by).

    A structure also goes by its own name. Two ROIs that fit one structure are ambiguous: none of them is chosen.
    Raises `ConfigurationError` where two structures claim one name.
    """
    owner: dict[str, str] = {}
    for structure, others in synonyms.items():
        for name in (structure, *others):
            if owner.setdefault(normalise(name), structure) != structure:
                raise ConfigurationError(
                    f"Expected each synonym to name one structure; {name!r} stands for {structure!r} and for "
                    f"{owner[normalise(name)]!r}. Remove one."
                )
    candidates: dict[str, list[str]] = {structure: [] for structure in synonyms}
    unmatched = []
    for name in names:
        structure_or_none = owner.get(normalise(name))
        if structure_or_none is None:
            unmatched.append(name)
        else:
            candidates[structure_or_none].append(name)
    return Match(
        found={structure: fits[0] for structure, fits in candidates.items() if len(fits) == 1},
        unmatched=tuple(unmatched),
        ambiguous={structure: tuple(fits) for structure, fits in candidates.items() if len(fits) > 1},
        missing=tuple(structure for structure, fits in candidates.items() if not fits),
    )


def _roi_number(item: Dataset, keyword: str) -> int:
    value = number(item, keyword)
    if value is None:
        raise CaseRejected("missing_rois", "Expected a number on every ROI; one has none. Export the structures again.")
    return int(value)


def _points(contour: Dataset, at_least: int) -> np.ndarray:
    values = numbers(contour, "ContourData")
    if values is None or len(values) < 3 * at_least or len(values) % 3 or (at_least == 1 and len(values) != 3):
        shape = "points of one position" if at_least == 1 else f"closed contours of at least {at_least} points"
        raise CaseRejected(
            "malformed_contour",
            f"Expected {shape}, each of 3 finite numbers; one is not. Export again.",
        )
    return values.reshape(-1, 3)


def _plane_spacing(planes: np.ndarray) -> float:
    """Return the distance between contour planes in slices, at least 1; gaps between parts of an ROI do not count."""
    gaps = np.diff(planes)
    if len(gaps) < 2:
        return 1.0
    # Only a distance that most neighbours share is a spacing; anything else is separate parts of the ROI.
    regular = float(gaps.min())
    return max(1.0, regular) if (gaps < regular + 0.05).sum() * 2 > len(gaps) else 1.0


def _nearest_plane(planes: np.ndarray, slices: int, half: float) -> np.ndarray:
    """Return for each slice the number of its contour plane, -1 for none; a tie goes to the plane above."""
    distance = np.arange(slices)[:, None] - planes[None, :]
    reach = (distance >= -half - SAME_PLANE_VOXELS) & (distance < half - SAME_PLANE_VOXELS)
    nearest = np.where(reach, np.abs(distance), np.inf)
    return np.where(reach.any(axis=1), nearest.argmin(axis=1), -1)


def _require_inside(indices: list[np.ndarray], planes: np.ndarray, half: float, geometry: Geometry) -> None:
    points = np.concatenate(indices)[:, 1:]
    edge = 0.5 + OUTSIDE_TOLERANCE_VOXELS
    last = np.asarray(geometry.shape, float) - 1
    outside = ((points < -edge) | (points > last[1:] + edge)).any()
    if outside or planes[0] <= SAME_PLANE_VOXELS - half or planes[-1] > last[0] + half + SAME_PLANE_VOXELS:
        raise CaseRejected(
            "contour_outside_image",
            "Expected contours within the CT; one reaches beyond it, as structures of another scan do. Send the CT "
            "that was contoured, whole.",
        )


def _fill(polygons: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return the even-odd fill of closed polygons, each (n, 2) as (y, x) in pixels, at pixel centres."""
    ny, nx = shape
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    down = starts[:, 0] > ends[:, 0]
    # Both ways along one line must give the same crossings to the last bit, or keyholes leave specks.
    starts[down], ends[down] = ends[down], starts[down]
    first = np.clip(np.ceil(starts[:, 0]), 0, ny).astype(int)
    count = np.clip(np.ceil(ends[:, 0]), 0, ny).astype(int) - first
    edges = np.repeat(np.arange(len(starts)), count)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(count) - count, count) + first[edges]
    (y0, x0), (y1, x1) = starts[edges].T, ends[edges].T
    crossings = np.round(x0 + (rows - y0) * (x1 - x0) / (y1 - y0), INDEX_DECIMALS)
    columns = np.clip(np.ceil(crossings), 0, nx).astype(int)
    toggles = np.bincount(rows * (nx + 1) + columns, minlength=ny * (nx + 1)).reshape(ny, nx + 1)
    # Sums may wrap around in 8 bits: only whether they are odd counts.
    return np.asarray((np.cumsum(toggles[:, :nx], axis=1, dtype=np.uint8) & 1).astype(bool))
