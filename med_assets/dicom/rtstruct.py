"""Structure sets: their ROIs and points, the voxels that contours enclose, and which ROI is which structure of a program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from scipy import ndimage

from med_assets.dicom.frames import number, numbers, text
from med_assets.dicom.geometry import Geometry
from med_assets.dicom.polygons import INDEX_DECIMALS, clipped_area, fill_even_odd, fill_nested
from med_assets.dicom.polygons import area as polygon_area
from med_assets.dicom.structure_names import normalise
from med_assets.errors import CaseRejected, ConfigurationError

XOR_TYPES = ("CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
"""Geometric types of an ROI whose area is that of an odd number of its contours (PS3.3 C.8.8.6.3)."""

CLOSED_TYPES = ("CLOSED_PLANAR", "INTERPOLATED_PLANAR", *XOR_TYPES)
"""Geometric types that enclose an area. INTERPOLATED_PLANAR is no defined term, and is what OsiriX writes."""

PLANAR_TOLERANCE_MM = 0.5
"""How far a contour's points may lie off its own plane."""

OUTSIDE_TOLERANCE_VOXELS = 1.0
"""How far beyond the outer edge of the outer voxels a contour may reach: planning systems differ by half a voxel."""

SAME_PLANE_MM = 0.25
"""Contours whose heights differ by less lie on one plane, and may be holes in each other: heights carry the noise of decimal
text and of float arithmetic, of up to 0.13 mm in files seen."""

EDGE_VOXELS = 1e-3
"""How near to the border of two slices a plane counts as on it; it then belongs to the slice above."""


@dataclass(frozen=True)
class Roi:
    """One region of interest; `contours` are closed polygons, (n, 3) LPS mm, the last point not repeating the first.

    `xor` says that an odd number of contours encloses area, whatever nests. `left_out` counts contour items that enclose
    nothing: fewer than three points, no or malformed data, or an open line. `frame` is the frame of reference that the ROI names.
    """

    number: int
    name: str
    contours: tuple[np.ndarray, ...]
    xor: bool = False
    left_out: int = 0
    frame: str = ""


@dataclass(frozen=True)
class Drawing:
    """Voxels (z, y, x) that an ROI encloses, and what drawing it showed.

    `outside` is the share of the contours' area that lies beyond the image and is cut, `overlaps` the number of contours that
    overlap others without nesting and were united, `area_ml` the volume of the contours' areas times the distance
    that each stands for, None where planes are irregular.
    """

    mask: np.ndarray
    outside: float = 0.0
    overlaps: int = 0
    area_ml: float | None = None


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
    """Return the ROIs of a structure set by number; one without usable closed contours has none.

    An item that encloses nothing costs only itself, see `Roi.left_out`. Raises `CaseRejected`: "wrong_modality",
    "missing_rois", "duplicate_roi".
    """
    names, outlines = _items(dataset)
    contours: dict[int, list[np.ndarray]] = {key: [] for key in names}
    left_out, xor = dict.fromkeys(names, 0), set()
    for key, contour in outlines:
        kind = text(contour, "ContourGeometricType").upper()
        if kind == "POINT":
            continue
        points = numbers(contour, "ContourData")
        if kind not in CLOSED_TYPES or points is None or len(points) < 9 or len(points) % 3:
            left_out[key] += 1
            continue
        contours[key].append(points.reshape(-1, 3))
        if kind in XOR_TYPES:
            xor.add(key)
    frames = {
        _roi_number(item, "ROINumber"): text(item, "ReferencedFrameOfReferenceUID")
        for item in dataset.StructureSetROISequence
    }
    return [Roi(key, names[key], tuple(contours[key]), key in xor, left_out[key], frames[key]) for key in sorted(names)]


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
    """Return the bool (z, y, x) mask of the voxels whose centre an ROI that lies within the image encloses, see `draw`.

    Raises `CaseRejected`: "contour_outside_image", "contour_not_axial".
    """
    drawing = draw(roi, geometry)
    if drawing.outside:
        raise CaseRejected(
            "contour_outside_image",
            f"Expected contours within the image; {drawing.outside:.1%} of the area of ROI {roi.number} lies beyond it. Send the "
            "image that was contoured, whole.",
        )
    return drawing.mask


def draw(roi: Roi, geometry: Geometry) -> Drawing:
    """Draw an ROI on a grid: the voxels whose centre its contours enclose.

    A slice shows the plane of contours nearest to it within its slab, and of the other planes in its slab the parts that the nearest
    does not show. Where contours are regularly further apart than slices, a slice takes those of the nearest plane, at
    most half their distance away. Shapes are never interpolated
    between planes. Within a plane a contour in another is a hole, the doubled line of a keyhole encloses nothing, the same
    contour twice counts once, and contours that overlap without nesting are united; of an XOR ROI an odd number of
    contours encloses. What lies beyond the image (by more than OUTSIDE_TOLERANCE_VOXELS) is cut. Raises
    `CaseRejected`: "contour_not_axial".
    """
    mask = np.zeros(geometry.shape, bool)
    if not roi.contours:
        return Drawing(mask)
    indices = [np.round(geometry.to_index(contour), INDEX_DECIMALS) for contour in roi.contours]
    tilt_mm = max(np.ptp(index[:, 0]) for index in indices) * geometry.spacing_mm[0]
    if tilt_mm > PLANAR_TOLERANCE_MM:
        raise CaseRejected(
            "contour_not_axial",
            f"Expected contours in the planes of the slices; one of ROI {roi.number} spans {tilt_mm:.1f} mm across them. Redraw "
            "it in the planes of the slices.",
        )
    heights = np.array([index[:, 0].mean() for index in indices])
    order = np.argsort(heights, kind="stable")
    same = min(SAME_PLANE_MM / geometry.spacing_mm[0], 0.25)
    groups = np.split(order, np.flatnonzero(np.diff(heights[order]) > same) + 1)
    planes = np.array([heights[group].mean() for group in groups])
    half = _plane_spacing(planes) / 2
    overlaps = 0
    areas: dict[int, np.ndarray] = {}
    for index, of_slice in enumerate(_planes_of_slices(planes, geometry.shape[0], half)):
        for plane in of_slice:
            if plane not in areas:
                polygons = [indices[contour][:, 1:] for contour in groups[plane]]
                if roi.xor:
                    areas[plane] = fill_even_odd(polygons, geometry.shape[1:])
                else:
                    areas[plane], overlapping = fill_nested(polygons, geometry.shape[1:])
                    overlaps += overlapping
            mask[index] |= areas[plane] if plane == of_slice[0] else _apart(areas[plane], mask[index])
    regular = len(planes) > 2 and bool(np.ptp(np.diff(planes)) < 0.05)
    voxel_ml = float(np.prod(geometry.spacing_mm)) / 1000
    area_ml = None
    if regular and not roi.xor and len(groups) == len(indices):  # one contour a plane: no holes and no parts
        area_ml = sum(polygon_area(index[:, 1:]) for index in indices) * 2 * half * voxel_ml
    return Drawing(mask, _share_outside(indices, heights, half, geometry), overlaps, area_ml)


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


def _planes_of_slices(planes: np.ndarray, slices: int, half: float) -> list[list[int]]:
    """Return for each slice the planes that are drawn on it, the nearest first: those in its slab, else the nearest within `half`.

    `half` is half the distance of planes, in slices; a plane on the border of two slabs belongs to the slice above.
    """
    found = []
    for index in range(slices):
        distance = index - planes
        for reach in (0.5, half):
            within = np.flatnonzero((distance >= -reach - EDGE_VOXELS) & (distance < reach - EDGE_VOXELS))
            if within.size:
                break
        # Equally near planes: the one above, as a slice on the border goes to the plane above.
        ranked = sorted(within.tolist(), key=lambda plane: (round(abs(float(distance[plane])), 6), -plane))
        found.append(ranked if within.size and reach == 0.5 else ranked[:1])
    return found


def _apart(area: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The parts of an area that do not touch what is drawn already: another part of the ROI, and no second drawing of the same."""
    parts, count = ndimage.label(area)
    touching = set(np.unique(parts[drawn]).tolist())
    return np.isin(parts, [part for part in range(1, count + 1) if part not in touching])


def _share_outside(indices: list[np.ndarray], heights: np.ndarray, half: float, geometry: Geometry) -> float:
    """Share of the area of contours that lies beyond the outer voxels by more than the tolerance."""
    edge = 0.5 + OUTSIDE_TOLERANCE_VOXELS
    last = np.asarray(geometry.shape, float) - 1
    beyond = (heights <= EDGE_VOXELS - half) | (heights > last[0] + half + EDGE_VOXELS)
    points = np.concatenate(indices)[:, 1:]
    if not beyond.any() and (points >= -edge).all() and (points <= last[1:] + edge).all():
        return 0.0
    areas = np.array([polygon_area(index[:, 1:]) for index in indices])
    low, high = (-edge, -edge), tuple(last[1:] + edge)
    inside = np.array(
        [0.0 if out else clipped_area(index[:, 1:], low, high) for index, out in zip(indices, beyond, strict=True)]
    )
    return float(np.clip(1 - inside.sum() / areas.sum(), 0, 1)) if areas.sum() > 0 else float(beyond.mean())
