"""Structure sets: their ROIs and points, and the voxels that contours enclose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from med_assets.dicom.elements import number, numbers, text
from med_assets.dicom.geometry import Geometry
from med_assets.dicom.polygons import INDEX_DECIMALS, clipped_area, fill_nested, fill_xor
from med_assets.dicom.polygons import area as polygon_area
from med_assets.dicom.structure_names import normalise
from med_assets.errors import CaseRejected

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
text and of float arithmetic, of up to 0.13 mm in files seen. Not where planes themselves are as near, see `_by_plane`."""

LEAST_PLANE_MM = 1e-3
"""Contours whose heights differ by less always lie on one plane."""

IRREGULAR_SHARE = 0.2
"""How far the distance of two planes may differ from the usual one, as a share of it, and still be the same spacing."""

NOISE_STEP = 3.0
"""Distances of planes are at least this many times the noise of heights."""

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
class Unusable:
    """An ROI or point that can't be used: `where` names it by its number, `name` is its own, "" where it has none."""

    where: str
    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@dataclass(frozen=True)
class StructureSet:
    """The ROIs of a structure set by number, and those whose contours can't be assigned."""

    rois: tuple[Roi, ...]
    unusable: tuple[Unusable, ...] = ()


@dataclass(frozen=True)
class Point:
    """One POINT of an ROI: LPS mm (3,). `frame` is the frame of reference that the ROI names."""

    number: int
    name: str
    position_mm: np.ndarray
    frame: str = ""


@dataclass(frozen=True)
class PointSet:
    """The points of a structure set by the number of their ROI, and the items that are no point."""

    points: tuple[Point, ...]
    unusable: tuple[Unusable, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """Voxels (z, y, x) that an ROI encloses, and what drawing it showed.

    `outside` is the share of the contours' area that lies beyond the image and is cut, `outside_mm` how far they reach beyond the
    outer voxels' edges, `overlaps` the number of contours that overlap others without nesting and were united, `area_ml` the
    volume of what the contours enclose within the image, each plane times the distance that it stands for, and `extent_slices`
    the sum of these distances.
    """

    mask: np.ndarray
    outside: float = 0.0
    outside_mm: float = 0.0
    overlaps: int = 0
    area_ml: float = 0.0
    extent_slices: float = 0.0


def read_structure_set(dataset: Dataset) -> StructureSet:
    """Return the ROIs of a structure set; one without usable closed contours has none.

    A contour item that encloses nothing costs only itself, see `Roi.left_out`. An ROI without a number, a number that stands
    for several names, and contours of a number that is not listed cost only themselves, see `StructureSet.unusable`.
    Raises `CaseRejected`: "wrong_modality", "missing_rois".
    """
    listed = _items(dataset)
    contours: dict[int, list[np.ndarray]] = {key: [] for key in listed.names}
    left_out, xor = dict.fromkeys(listed.names, 0), set()
    for key, contour in listed.contours:
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
    rois = (
        Roi(key, name, tuple(contours[key]), key in xor, left_out[key], listed.frames[key])
        for key, name in sorted(listed.names.items())
    )
    return StructureSet(tuple(rois), listed.unusable)


def read_rois(dataset: Dataset) -> list[Roi]:
    """Return the ROIs of `read_structure_set`, which says what it raises."""
    return list(read_structure_set(dataset).rois)


def read_points(dataset: Dataset) -> PointSet:
    """Return the POINT items of a structure set; contours of other kinds are left out.

    An item that is no single position costs only itself, see `PointSet.unusable`. Raises `CaseRejected`: "wrong_modality",
    "missing_rois".
    """
    listed = _items(dataset)
    points, unusable = [], list(listed.unusable)
    for key, contour in listed.contours:
        if text(contour, "ContourGeometricType").upper() != "POINT":
            continue
        values = numbers(contour, "ContourData")
        if values is not None and len(values) == 3:
            points.append(Point(key, listed.names[key], values, listed.frames[key]))
        else:
            what = "no finite numbers" if values is None else f"{len(values)} numbers"
            unusable.append(
                Unusable(f"ROI {key}", listed.names[key], f"a POINT of {what} where 3 coordinates are expected")
            )
    return PointSet(tuple(points), tuple(unusable))


@dataclass(frozen=True)
class _Items:
    """What a structure set lists: names and frames of ROIs by number, contours with the number of their ROI."""

    names: dict[int, str]
    frames: dict[int, str]
    contours: list[tuple[int, Dataset]]
    unusable: tuple[Unusable, ...]


def _items(dataset: Dataset) -> _Items:
    if text(dataset, "Modality") != "RTSTRUCT":
        raise CaseRejected("wrong_modality", "Expected an RTSTRUCT; got another modality. Send the structure set.")
    items, outlines = dataset.get("StructureSetROISequence") or (), dataset.get("ROIContourSequence") or ()
    if not items or not outlines:
        raise CaseRejected("missing_rois", "Expected ROIs with contours; got none. Send the contoured structure set.")
    entries: dict[int, dict[str, tuple[str, str]]] = {}
    unusable = []
    for position, item in enumerate(items, start=1):
        name, frame = text(item, "ROIName"), text(item, "ReferencedFrameOfReferenceUID")
        number_of = number(item, "ROINumber")
        if number_of is None:
            unusable.append(Unusable(f"item {position} of the list of ROIs", name, "it has no ROI number"))
        else:
            entries.setdefault(int(number_of), {}).setdefault(normalise(name), (name, frame))
    for key, several in entries.items():
        if len(several) > 1:
            unusable += [
                Unusable(f"ROI {key}", name, f"its number stands for {len(several)} names")
                for name, _ in several.values()
            ]
    listed = {key: next(iter(one.values())) for key, one in entries.items() if len(one) == 1}
    contours, strangers, without = [], set(), 0
    for item in outlines:
        of = number(item, "ReferencedROINumber")
        drawn = list(item.get("ContourSequence") or ())
        if of is not None and int(of) in listed:
            contours += [(int(of), contour) for contour in drawn]
        elif of is None:
            without += bool(drawn)
        elif int(of) not in entries and drawn:
            strangers.add(int(of))
    unusable += [
        Unusable(f"ROI {key}", "", "it has contours and is not in the list of ROIs") for key in sorted(strangers)
    ]
    if without:
        unusable.append(Unusable("contours", "", f"{without} items name no ROI number"))
    names = {key: name for key, (name, _) in listed.items()}
    return _Items(names, {key: frame for key, (_, frame) in listed.items()}, contours, tuple(unusable))


def rasterise(roi: Roi, geometry: Geometry) -> np.ndarray:
    """Return the bool (z, y, x) mask of the voxels whose centre an ROI that lies within the image encloses, see `draw`.

    Raises `CaseRejected`: "contour_outside_image", "contour_not_axial".
    """
    drawing = draw(roi, geometry)
    if drawing.outside:
        raise outside_image(f"ROI {roi.number}", drawing, allowed=0.0)
    return drawing.mask


def outside_image(name: str, drawing: Drawing, allowed: float) -> CaseRejected:
    """The rejection of an ROI of which more than the `allowed` share of its area lies beyond the image."""
    return CaseRejected(
        "contour_outside_image",
        f"expected {name} within the image, got {drawing.outside:.1%} of its area beyond it, by up to {drawing.outside_mm:.1f} mm "
        f"({allowed:.0%} is cut); send the image that was contoured, whole",
    )


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
            f"Expected contours in the planes of the slices; got one of ROI {roi.number} that spans {tilt_mm:.1f} mm across them. Redraw "
            "it in the planes of the slices.",
        )
    heights = np.array([index[:, 0].mean() for index in indices])
    groups = _by_plane(heights, geometry.spacing_mm[0])
    planes = np.array([heights[group].mean() for group in groups])
    half = _plane_spacing(planes) / 2
    fill = fill_xor if roi.xor else fill_nested
    filled = {
        plane: fill([indices[contour][:, 1:] for contour in groups[plane]], geometry.shape[1:])
        for plane in range(len(planes))
        if not _beyond(planes[plane], half, geometry.shape[0])
    }
    for index, of_slice in enumerate(_planes_of_slices(planes, geometry.shape[0], half)):
        for plane in of_slice:
            mask[index] |= _apart(filled[plane].mask, mask[index])
    thickness = _thickness(planes, half)
    voxel_ml = float(np.prod(geometry.spacing_mm)) / 1000
    share, distance_mm = _outside(indices, heights, half, geometry)
    return Drawing(
        mask,
        share,
        distance_mm,
        sum(one.overlaps for one in filled.values()),
        sum(one.area * float(thickness[plane]) for plane, one in filled.items()) * voxel_ml,
        float(thickness.sum()),
    )


def _by_plane(heights: np.ndarray, slice_mm: float) -> list[np.ndarray]:
    """Return which contours lie on one plane, planes in ascending order, from heights in slices.

    Heights chained at less than SAME_PLANE_MM are one plane if they span as little as noise does: half the distance to the next
    plane, or where there is none a quarter of a slice. A longer chain is of planes that lie nearer to each other; it
    is divided where its gaps fall into small and large ones, and otherwise at each of them.
    """
    order = np.argsort(heights, kind="stable")
    return _divided(order, heights * slice_mm, SAME_PLANE_MM, (np.inf, np.inf), slice_mm)


def _divided(
    order: np.ndarray, heights_mm: np.ndarray, chain_mm: float, apart_mm: tuple[float, float], slice_mm: float
) -> list[np.ndarray]:
    """`apart_mm` is how far the contours of `order` lie from those below and above, infinite where there are none."""
    gaps = np.diff(heights_mm[order])
    cuts = np.flatnonzero(gaps >= chain_mm) + 1
    around = [apart_mm[0], *gaps[cuts - 1], apart_mm[1]]
    planes: list[np.ndarray] = []
    for group, below, above in zip(np.split(order, cuts), around[:-1], around[1:], strict=True):
        nearest = min(below, above)
        noise_mm = nearest / 2 if np.isfinite(nearest) else min(2 * SAME_PLANE_MM, slice_mm / 4)
        if np.ptp(heights_mm[group]) <= max(noise_mm, LEAST_PLANE_MM):
            planes.append(group)
            continue
        sizes = np.sort(np.maximum(np.diff(heights_mm[group]), LEAST_PLANE_MM))
        steps = sizes[1:] / sizes[:-1]
        if len(steps) and steps.max() >= NOISE_STEP:
            at = int(steps.argmax())
            finer_mm = float(np.sqrt(sizes[at] * sizes[at + 1]))
        else:
            finer_mm = float(sizes[0])
        planes += _divided(group, heights_mm, finer_mm, (below, above), slice_mm)
    return planes


def _thickness(planes: np.ndarray, half: float) -> np.ndarray:
    """Return what each plane stands for, in slices: half the distances to its neighbours, which over a gap is `half`."""
    gaps = np.diff(planes)
    if not len(gaps):
        return np.array([2 * half])
    reach = np.where(gaps <= 2 * half * (1 + EDGE_VOXELS), gaps / 2, half)
    return np.concatenate([reach[:1], reach]) + np.concatenate([reach, reach[-1:]])


def _plane_spacing(planes: np.ndarray) -> float:
    """Return the distance between contour planes in slices, at least 1; gaps between parts of an ROI do not count."""
    gaps = np.diff(planes)
    if len(gaps) < 2:
        return 1.0
    # Only a distance that most neighbours share is a spacing; anything else is separate parts of the ROI.
    usual = float(np.median(gaps))
    shared = gaps[np.abs(gaps - usual) < max(0.05, IRREGULAR_SHARE * usual)]
    return max(1.0, float(shared.max())) if len(shared) * 2 > len(gaps) else 1.0


def _planes_of_slices(planes: np.ndarray, slices: int, half: float) -> list[list[int]]:
    """Return for each slice the planes that are drawn on it, the nearest first: those in its slab, else the nearest within `half`.

    `half` is half the distance of planes, in slices; a plane on the border of two slabs belongs to the slice above.
    """
    found = []
    for index in range(slices):
        distance = index - planes
        for reach in (0.5, half):
            inside = (distance >= -reach - EDGE_VOXELS) & (distance < reach - EDGE_VOXELS)
            within: list[int] = np.flatnonzero(inside).tolist()
            if within:
                break
        # Equally near planes: the one above, as a slice on the border goes to the plane above.
        ranked = sorted(within, key=lambda plane: (round(abs(float(distance[plane])), 6), -plane))
        found.append(ranked if within and reach == 0.5 else ranked[:1])
    return found


def _apart(area: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The parts of an area that do not touch what is drawn already: another part of the ROI, and no second drawing of the same."""
    from scipy.ndimage import label

    if not drawn.any() or not (area & ~drawn).any():
        return area & ~drawn
    parts, count = label(area)
    touching = set(np.unique(parts[drawn]).tolist())
    return np.isin(parts, [part for part in range(1, count + 1) if part not in touching])


def _beyond(height: float, half: float, slices: int) -> bool:
    """Whether a plane at a height in slices lies beyond the first or last slice by more than it stands for."""
    return bool(height <= EDGE_VOXELS - half or height > slices - 1 + half + EDGE_VOXELS)


def _outside(indices: list[np.ndarray], heights: np.ndarray, half: float, geometry: Geometry) -> tuple[float, float]:
    """Share of the area of contours that lies beyond the outer voxels by more than the tolerance, and by how many mm."""
    edge = 0.5 + OUTSIDE_TOLERANCE_VOXELS
    last = np.asarray(geometry.shape, float) - 1
    beyond = np.array([_beyond(height, half, geometry.shape[0]) for height in heights])
    points = np.concatenate(indices)
    if not beyond.any() and (points[:, 1:] >= -edge).all() and (points[:, 1:] <= last[1:] + edge).all():
        return 0.0, 0.0
    distance_mm = np.maximum(-0.5 - points, points - (last + 0.5)).max(axis=0) * geometry.spacing_mm
    areas = np.array([polygon_area(index[:, 1:]) for index in indices])
    low, high = (-edge, -edge), tuple(last[1:] + edge)
    inside = np.array(
        [0.0 if out else clipped_area(index[:, 1:], low, high) for index, out in zip(indices, beyond, strict=True)]
    )
    share = float(np.clip(1 - inside.sum() / areas.sum(), 0, 1)) if areas.sum() > 0 else float(beyond.mean())
    return share, float(max(0.0, distance_mm.max()))
