"""Voxel grids in the patient coordinate system, and CT and MR series read onto one.

Arrays are (z, y, x). Positions are DICOM patient coordinates: LPS (x to the Left, y to the Posterior, z to the
Superior), in millimetres. A `Geometry` places the *centres* of voxels; the voxel itself reaches half a spacing
around its centre.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.dicom.elements import FIT_DECIMALS, Axes, decoded, even_stack, image_axes, number, text
from med_assets.dicom.tolerances import TiltPolicy
from med_assets.errors import CaseRejected

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
"""SOP class of single-slice CT images; multi-frame ones are read frame by frame, see `enhanced`."""

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
"""SOP class of single-slice MR images; multi-frame ones are read frame by frame, see `enhanced`."""

IN_PLANE_TOLERANCE_MM = 0.1
"""How far the corner of a slice may lie off the straight line of the stack before it counts as tilted or shifted."""

MAX_TILT_DEG = 45.0
"""Slices that shift by more against each other are no stack of a tilted gantry, which turns by 30 degrees at most."""

SAME_AXES_TOLERANCE = 1e-3
"""How far orientation cosines and pixel spacings (mm) of two slices of one series may differ."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI counts towards the right, anterior and superior; DICOM towards the left, posterior and superior."""

_TOWARDS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Axis of LPS coordinates and sign of each anatomical direction."""

AXIAL, SAGITTAL = "SPL", "LIP"
"""Where slices, rows and columns of a canonical volume run to: Superior, Posterior and Left, or Left, Inferior and Posterior."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a (z, y, x) array lie.

    `shape` is (nz, ny, nx); `spacing_mm` is (dz, dy, dx); `origin_mm` is the LPS (x, y, z) of the centre of voxel
    [0, 0, 0]; the rows of `direction` are the unit LPS vectors along which the array axes z, y and x run.
    """

    shape: tuple[int, int, int]
    spacing_mm: Vector
    origin_mm: Vector
    direction: tuple[Vector, Vector, Vector] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

    def affine(self) -> np.ndarray:
        """Return the 4x4 matrix that takes (iz, iy, ix, 1) to (x, y, z, 1) in LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction, float).T * np.asarray(self.spacing_mm, float)
        matrix[:3, 3] = self.origin_mm
        return matrix

    def nifti_affine(self) -> np.ndarray:
        """Return the 4x4 matrix of the transposed array: it takes (ix, iy, iz, 1) to RAS mm, as NIfTI and MONAI count."""
        return np.asarray(LPS_TO_RAS @ self.affine()[:, [2, 1, 0, 3]])

    def to_index(self, points_mm: np.ndarray) -> np.ndarray:
        """Return fractional (z, y, x) indices, (n, 3), of LPS points in mm, (n, 3)."""
        offsets = np.asarray(points_mm, float).reshape(-1, 3) - np.asarray(self.origin_mm)
        matrix = self.affine()[:3, :3]
        return np.asarray(offsets @ np.linalg.inv(matrix).T)

    def to_points(self, indices: np.ndarray) -> np.ndarray:
        """Return LPS points in mm, (n, 3), of fractional (z, y, x) indices, (n, 3)."""
        indices = np.asarray(indices, float).reshape(-1, 3)
        return np.asarray(indices @ self.affine()[:3, :3].T + np.asarray(self.origin_mm))

    def oblique_deg(self) -> float:
        """Return the angle in degrees between the axes of the grid and those of the patient, of the axis that is turned most."""
        across = np.sort(np.abs(np.asarray(self.direction, float)), axis=1)[:, :2]
        return float(np.degrees(np.arcsin(np.clip(np.linalg.norm(across, axis=1).max(), 0, 1))))

    def same_grid(self, other: Geometry, tolerance_mm: float = 1e-3) -> bool:
        """Say whether every voxel centre of both grids coincides within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        last = np.asarray(self.shape, float) - 1
        corners = np.array(np.meshgrid(*[(0.0, extent) for extent in last])).reshape(3, -1).T
        return bool(np.abs(self.to_points(corners) - other.to_points(corners)).max() <= tolerance_mm)

    def to_dict(self) -> dict[str, Any]:
        """Return a form that JSON can hold and `from_dict` reads back without loss."""
        return {
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing_mm),
            "origin_mm": list(self.origin_mm),
            "direction": [list(row) for row in self.direction],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Geometry:
        """Build the geometry that `to_dict` described."""
        nz, ny, nx = (int(value) for value in data["shape"])
        first, second, third = (_vector(row) for row in data["direction"])
        return cls((nz, ny, nx), _vector(data["spacing_mm"]), _vector(data["origin_mm"]), (first, second, third))


@dataclass(frozen=True)
class Volume:
    """A (z, y, x) array and where its voxels lie; the array's unit is that of its maker (HU, Gy)."""

    array: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != tuple(self.geometry.shape):
            raise ValueError(
                f"A volume's array must have its geometry's shape: expected {self.geometry.shape}, "
                f"got {tuple(self.array.shape)}."
            )


@dataclass(frozen=True, eq=False)
class Planes:
    """Where the frames of a segmentation, or the slices of a series, lie: distinct planes in ascending order along their normal.

    `origins_mm` (n, 3) is the LPS centre of the first voxel of each; the rows of `direction` are the unit vectors along the normal,
    along a column and along a row, and `spacing_mm` and `size` belong to the latter two. `declared_mm` is SpacingBetweenSlices,
    None where the file has none: frames lie where they say, and planes without voxels may have been left out.
    """

    origins_mm: np.ndarray
    direction: np.ndarray
    spacing_mm: tuple[float, float]
    size: tuple[int, int]
    declared_mm: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows and columns."""
        return (len(self.origins_mm), *self.size)

    def heights_mm(self) -> np.ndarray:
        """Return the distance of each plane from the first along the normal, (n,)."""
        return np.asarray((self.origins_mm - self.origins_mm[0]) @ self.direction[0])

    def least_gap_mm(self) -> float | None:
        """Return the smallest distance of two planes, None of one plane."""
        return float(np.diff(self.heights_mm()).min()) if len(self.origins_mm) > 1 else None

    def to_points(self, indices: np.ndarray) -> np.ndarray:
        """Return LPS points in mm, (n, 3), of (plane, row, column) indices, (n, 3); the plane is rounded."""
        indices = np.asarray(indices, float).reshape(-1, 3)
        in_plane = (indices[:, 1:] * self.spacing_mm) @ self.direction[1:]
        return np.asarray(self.origins_mm[np.rint(indices[:, 0]).astype(int)] + in_plane)

    def to_index(self, points_mm: np.ndarray, reach_mm: float) -> np.ndarray:
        """Return (plane, row, column) indices, (n, 3), of LPS points in mm: of the nearest plane, -1 where none is within `reach_mm`."""
        points = np.asarray(points_mm, float).reshape(-1, 3)
        along = np.abs((points - self.origins_mm[0]) @ self.direction[0] - self.heights_mm()[:, None])
        nearest = along.argmin(axis=0)
        in_plane = (points - self.origins_mm[nearest]) @ self.direction[1:].T / self.spacing_mm
        return np.column_stack([np.where(along.min(axis=0) <= reach_mm, nearest, -1), in_plane])


@dataclass(frozen=True)
class CtSeries(Volume):
    """A CT series in HU on one canonical grid.

    Of a tilted gantry `gantry_tilt_deg` is the angle, else 0, and `slices` is where the slices lay before they were shifted onto the
    grid, else None.
    """

    gantry_tilt_deg: float = 0.0
    slices: Planes | None = None


def _vector(values: Any) -> Vector:
    x, y, z = (float(value) for value in values)
    return (x, y, z)


def canonical(volume: Volume, towards: str = AXIAL) -> Volume:
    """Return the same voxels with the axes z, y, x running `towards` three directions (of L R P A S I), by exchanges and flips of axes.

    So a patient who lay on the side, or a stack of another plane, is turned without interpolation. Raises `CaseRejected`
    where two axes are nearest to one anatomical direction, as half-way between two: "not_axial", or "not_sagittal" for
    slices that are to run left-right.
    """
    direction = np.asarray(volume.geometry.direction, float)
    order, axes, signs = _axes_towards(direction, towards)
    volume = _exchanged(volume, order)
    geometry, direction = volume.geometry, direction[order]
    flips = [axis for axis in range(3) if direction[axis, axes[axis]] * signs[axis] < 0]
    if not flips:
        return volume
    corner = np.array([geometry.shape[axis] - 1.0 if axis in flips else 0.0 for axis in range(3)])
    direction[flips] *= -1
    flipped = Geometry(
        geometry.shape,
        geometry.spacing_mm,
        _vector(geometry.to_points(corner)[0]),
        (_vector(direction[0]), _vector(direction[1]), _vector(direction[2])),
    )
    return Volume(np.ascontiguousarray(np.flip(volume.array, tuple(flips))), flipped)


def _axes_towards(direction: np.ndarray, towards: str) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    """The axes of the grid that are nearest to three anatomical directions, and axis and sign of these. Raises CaseRejected."""
    axes, signs = zip(*(_TOWARDS[letter] for letter in towards), strict=True)
    nearest = np.abs(direction).argmax(axis=1)
    if sorted(nearest) != [0, 1, 2]:
        raise _turned(axes[0], float(np.degrees(np.arccos(np.clip(np.abs(direction).max(axis=1).min(), 0, 1)))))
    return [int(np.flatnonzero(nearest == axis)[0]) for axis in axes], axes, signs


def _exchanged(volume: Volume, order: Sequence[int]) -> Volume:
    """The same voxels with the axes z, y, x taken in another order."""
    if list(order) == [0, 1, 2]:
        return volume
    geometry, (z, y, x) = volume.geometry, order
    exchanged = Geometry(
        (geometry.shape[z], geometry.shape[y], geometry.shape[x]),
        (geometry.spacing_mm[z], geometry.spacing_mm[y], geometry.spacing_mm[x]),
        geometry.origin_mm,
        (geometry.direction[z], geometry.direction[y], geometry.direction[x]),
    )
    return Volume(np.ascontiguousarray(volume.array.transpose(order)), exchanged)


def _turned(normal: int, degrees: float) -> CaseRejected:
    wanted = "sagittal" if normal == 0 else "axial"
    return CaseRejected(
        f"not_{wanted}",
        f"Expected slices along the axes of the body; got slices turned by {degrees:.0f} degrees, half-way between two axes. Export "
        f"{'a' if normal == 0 else 'an'} {wanted} series.",
    )


def placed(array: np.ndarray, axes: Axes, slice_spacing_mm: float) -> Volume:
    """Return a canonical axial volume of a (z, y, x) array whose first frame has the `axes` of `image_axes`."""
    return canonical(_as_stored(array, axes, slice_spacing_mm))


def _as_stored(array: np.ndarray, axes: Axes, slice_spacing_mm: float) -> Volume:
    origin, direction, spacing = axes
    nz, ny, nx = array.shape
    first, second, third = (_vector(row) for row in direction)
    geometry = Geometry(
        (nz, ny, nx), (slice_spacing_mm, float(spacing[0]), float(spacing[1])), _vector(origin), (first, second, third)
    )
    return Volume(array, geometry)


def read_ct_series(
    datasets: Sequence[Dataset],
    referenced: Collection[str] = (),
    tilt: TiltPolicy | None = None,
    label: Dataset | None = None,
) -> CtSeries:
    """Return one CT series as float32 Hounsfield units on a canonical (z, y, x) grid; datasets come in any order.

    Slice positions and spacing are those of ImagePositionPatient along the slice normal; SliceThickness is not used. Slices of a
    tilted gantry are refused, or as `tilt` says each shifted within its own plane (linear interpolation) onto one upright grid, which
    reaches as far as all of them and has the series' lowest value beyond a slice.
    Multi-frame objects are read frame by frame; of several acquisitions the one with the SOP instances `referenced` by a
    label, or with the frames that the `label` itself names, is taken. Values outside the scanned circle (PixelPaddingValue) stay as stored. Raises `CaseRejected`: "zero_slices",
    "single_slice", "wrong_modality", "mixed_series", "missing_geometry", "inconsistent_geometry", "not_axial",
    "duplicate_slice", "missing_slice", "nonuniform_spacing", "missing_rescale", "truncated_file",
    "undecodable_pixels", "several_acquisitions", "gantry_tilt".
    """
    from med_assets.dicom.enhanced import one_volume, single_frames  # pydicom: training knows grids and reads no DICOM

    frames = one_volume(single_frames(datasets), referenced=referenced, label=label)
    volume, tilt_deg, slices = _stacked(frames, "CT", CT_IMAGE_STORAGE, _hounsfield, tilt or TiltPolicy())
    turned = canonical(volume)
    return CtSeries(turned.array, turned.geometry, tilt_deg, slices if tilt_deg else None)


def check_ct_series(
    datasets: Sequence[Dataset],
    referenced: Collection[str] = (),
    tilt: TiltPolicy | None = None,
    label: Dataset | None = None,
) -> None:
    """Raise what `read_ct_series` does, at the cost of the headers where pixels are native."""
    from med_assets.dicom.enhanced import one_volume, single_frames  # pydicom: training knows grids and reads no DICOM

    frames = one_volume(single_frames(datasets), referenced=referenced, label=label)
    _check_stack(frames, "CT", CT_IMAGE_STORAGE, _rescale, tilt or TiltPolicy(), AXIAL)


def whole_hu(values: np.ndarray) -> np.ndarray:
    """Return HU (z, y, x) rounded to whole numbers, int16: what lies beyond its range has its nearest value."""
    rounded, limits = np.empty(values.shape, np.int16), np.iinfo(np.int16)
    for index, plane in enumerate(values):  # a plane at a time stays in the processor's cache
        rounded[index] = np.clip(np.rint(plane), limits.min, limits.max)
    return rounded


def read_mr_series(
    datasets: Sequence[Dataset], wanted: Callable[[Dataset], bool] | None = None, label: Dataset | None = None
) -> Volume:
    """Return one MR series of any orientation as float32 on its own grid; datasets come in any order.

    Slices are ordered along their normal, the cross product of row and column directions; rows and columns stay as
    stored (`canonical` turns them). Values are in the unit of the scanner, after RescaleSlope and RescaleIntercept where
    those are there. Of several volumes in the series the one whose frames are `wanted` is taken, and of several such the one
    that a `label` refers to. Raises `CaseRejected` with the codes of `read_ct_series`, without "not_axial" and "missing_rescale".
    """
    return read_slices(datasets, "MR", MR_IMAGE_STORAGE, wanted, label)


def read_slices(
    datasets: Sequence[Dataset],
    modality: str,
    sop_class: str,
    wanted: Callable[[Dataset], bool] | None = None,
    label: Dataset | None = None,
) -> Volume:
    """Return one series of a modality as `read_mr_series` does an MR."""
    from med_assets.dicom.enhanced import one_volume, single_frames  # pydicom: training knows grids and reads no DICOM

    frames = one_volume(single_frames(datasets), wanted, label=label)
    return _stacked(frames, modality, sop_class, _intensity, None)[0]


def check_mr_series(
    datasets: Sequence[Dataset],
    wanted: Callable[[Dataset], bool] | None = None,
    label: Dataset | None = None,
    towards: str = SAGITTAL,
) -> None:
    """Raise what `read_mr_series` does, and `canonical` of what it returns, at the cost of the headers where pixels are native."""
    from med_assets.dicom.enhanced import one_volume, single_frames  # pydicom: training knows grids and reads no DICOM

    frames = one_volume(single_frames(datasets), wanted, label=label)
    _check_stack(frames, "MR", MR_IMAGE_STORAGE, lambda dataset: None, None, towards)


@dataclass(frozen=True, eq=False)
class _Stack:
    """How slices lie: their order along the normal (indices), how far each lies along it (mm, in the order given), where their even
    stack starts and its spacing, the shifts (n, 2) of their corners within the plane and the tilt of which that is, and their planes."""

    order: np.ndarray
    along_mm: np.ndarray
    start_mm: float
    spacing_mm: float
    shifts_mm: np.ndarray
    tilt_deg: float
    planes: Planes


def _stacked(
    datasets: Sequence[Dataset],
    modality: str,
    sop_class: str,
    values: Callable[[Dataset, tuple[int, ...]], np.ndarray],
    tilt: TiltPolicy | None,
) -> tuple[Volume, float, Planes]:
    """The slices of one series in order of their positions, on the grid that they are stored on, the tilt of the gantry, and their places.

    Slices that shift against each other are refused where nothing says what to do with a `tilt`.
    """
    stack = _stack(datasets, modality, sop_class, tilt)
    slices, pixel_mm = stack.planes, np.asarray(stack.planes.spacing_mm)
    array = np.empty(slices.shape, np.float32)
    for row, index in enumerate(stack.order):
        array[row] = values(datasets[index], slices.size)
    beside_mm = np.zeros(2)
    if stack.tilt_deg:
        array, first = _upright(array, stack.shifts_mm / pixel_mm)
        beside_mm = first * pixel_mm
    elif len(stack.shifts_mm):
        beside_mm = stack.shifts_mm.mean(axis=0)
    offset = np.round([stack.start_mm - stack.along_mm[stack.order[0]], *beside_mm], FIT_DECIMALS)
    origin = slices.origins_mm[0] + offset @ slices.direction
    return _as_stored(array, (origin, slices.direction, pixel_mm), stack.spacing_mm), stack.tilt_deg, slices


def _check_stack(
    datasets: Sequence[Dataset],
    modality: str,
    sop_class: str,
    check_values: Callable[[Dataset], object],
    tilt: TiltPolicy | None,
    towards: str,
) -> None:
    """Raise what `_stacked` and then `canonical` do."""
    from med_assets.dicom.native import require_decodable

    stack = _stack(datasets, modality, sop_class, tilt)
    for index in stack.order:
        check_values(datasets[index])
        require_decodable(datasets[index], stack.planes.size)
    _axes_towards(stack.planes.direction, towards)


def _stack(datasets: Sequence[Dataset], modality: str, sop_class: str, tilt: TiltPolicy | None) -> _Stack:
    _require_one_series(datasets, modality, sop_class)
    frames = [image_axes(dataset) for dataset in datasets]
    _require_same_axes(datasets, frames)
    direction, pixel_mm = frames[0][1:]
    along = np.array([origin @ direction[0] for origin, _, _ in frames])
    order = np.argsort(along, kind="stable")
    start, spacing_mm = even_stack(along[order])
    origins = np.array([frames[index][0] for index in order])
    shifts_mm = (origins - origins[0]) @ direction[1:].T
    tilt_deg = _tilt_deg(shifts_mm, spacing_mm)
    if tilt_deg and not (tilt and tilt.resample):
        raise CaseRejected(
            "gantry_tilt" if tilt else "inconsistent_geometry",
            f"Expected slices stacked straight along their normal; got each beside the one before, as of a gantry tilted by "
            f"{tilt_deg:.1f} degrees. Send a series reconstructed without tilt"
            f"{f', or allow to shift slices onto an upright grid with {tilt.setting}' if tilt else ''}.",
        )
    size = (int(datasets[0].Rows), int(datasets[0].Columns))
    planes = Planes(origins, direction, (float(pixel_mm[0]), float(pixel_mm[1])), size)
    return _Stack(order, along, start, spacing_mm, shifts_mm, tilt_deg, planes)


def _tilt_deg(shifts_mm: np.ndarray, spacing_mm: float) -> float:
    """The angle between the normal of slices and the line of their corners, degrees; 0 of a straight stack.

    `shifts_mm` (n, 2) are where the corners lie within the plane. Raises `CaseRejected("inconsistent_geometry")` where they lie on no
    line.
    """
    if np.abs(shifts_mm - shifts_mm.mean(axis=0)).max() <= IN_PLANE_TOLERANCE_MM:
        return 0.0
    index = np.arange(len(shifts_mm)) - (len(shifts_mm) - 1) / 2
    slope = index @ shifts_mm / (index @ index)
    off = np.abs(shifts_mm - shifts_mm.mean(axis=0) - np.outer(index, slope))
    tilt_deg = float(np.degrees(np.arctan(np.linalg.norm(slope) / spacing_mm)))
    if off.max() > IN_PLANE_TOLERANCE_MM or tilt_deg > MAX_TILT_DEG:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected slices stacked straight along their normal; got slice {int(off.max(axis=1).argmax()) + 1} of {len(off)} "
            f"{off.max():.2f} mm beside the line of the others and the line is turned by {tilt_deg:.1f} degrees, as of a moved table. "
            "Send a series of one stack.",
        )
    return tilt_deg


def _upright(array: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slices (z, y, x) shifted by (n, 2) pixels onto one grid, and how many pixels before the first slice's that begins.

    Between pixels values are linear; beyond a slice they are the lowest of the array.
    """
    first, last = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int)
    size = np.array(array.shape[1:]) + last - first
    lowest = float(array.min())
    upright = np.empty((len(array), *size), np.float32)
    for row, (plane, shift) in enumerate(zip(array, shifts - first, strict=True)):
        upright[row] = _shifted(_shifted(plane, shift[0], int(size[0]), lowest).T, shift[1], int(size[1]), lowest).T
    return upright, first.astype(float)


def _shifted(plane: np.ndarray, shift: float, size: int, beyond: float) -> np.ndarray:
    """A plane moved along its first axis by a part of its pixels into `size` pixels, by linear interpolation."""
    last = len(plane) - 1
    at = np.round(np.arange(size) - shift, FIT_DECIMALS)
    low = np.clip(np.floor(at).astype(int), 0, last)
    share = (at - low).astype(np.float32)[:, None]
    moved = plane[low] * (1 - share) + plane[np.minimum(low + 1, last)] * share
    moved[(at < 0) | (at > last)] = beyond
    return np.asarray(moved)


def _require_one_series(datasets: Sequence[Dataset], modality: str, sop_class: str) -> None:
    if not datasets:
        whole = "the planning CT with the plan" if modality == "CT" else "the whole series"
        raise CaseRejected("zero_slices", f"Expected {_article(modality)} series; got no slices. Send {whole}.")
    if len(datasets) == 1:
        raise CaseRejected(
            "single_slice", f"Expected at least 2 {modality} slices; got 1, whose spacing nothing tells."
        )
    wrong = sum(text(ds, "Modality") != modality or text(ds, "SOPClassUID") != sop_class for ds in datasets)
    if wrong:
        raise CaseRejected(
            "wrong_modality",
            f"Expected single-frame {modality} images only; got {wrong} of {len(datasets)} of another kind. "
            f"Send {modality} slices.",
        )
    for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        values = {text(ds, keyword) for ds in datasets}
        if len(values) != 1:
            raise CaseRejected(
                "mixed_series",
                f"Expected one {modality} series; got slices with {len(values)} different {keyword}. Send one.",
            )


def _article(modality: str) -> str:
    return f"{'an' if modality == 'MR' else 'a'} {modality}"


def _require_same_axes(datasets: Sequence[Dataset], frames: Sequence[Axes]) -> None:
    from med_assets.dicom.native import image_size

    sizes = {image_size(ds) for ds in datasets}
    if len(sizes) != 1 or None in next(iter(sizes)):
        raise CaseRejected("inconsistent_geometry", f"Expected one image size in a series; got {len(sizes)}. Send one.")
    _, direction, spacing = frames[0]
    turned = np.abs(np.array([other for _, other, _ in frames]) - direction).max(axis=(1, 2)) > SAME_AXES_TOLERANCE
    scaled = np.abs(np.array([pixel for _, _, pixel in frames]) - spacing).max(axis=1) > SAME_AXES_TOLERANCE
    off = int((turned | scaled).sum())
    if off:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected one orientation and pixel spacing in a series; got {off} of {len(frames)} slices that differ from the "
            "first (a localizer among them?). Send the slices of one stack only.",
        )


def _rescale(dataset: Dataset) -> tuple[float, float]:
    """Slope and intercept of a CT slice. Raises CaseRejected("missing_rescale")."""
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope is None or intercept is None or slope == 0:
        raise CaseRejected(
            "missing_rescale",
            f"Expected a RescaleSlope other than 0 and a RescaleIntercept in every CT slice, without which values are not HU; got "
            f"{'none' if slope is None else f'{slope:g}'} and {'none' if intercept is None else f'{intercept:g}'}. "
            "Export the original images.",
        )
    return slope, intercept


def _hounsfield(dataset: Dataset, shape: tuple[int, ...]) -> np.ndarray:
    slope, intercept = _rescale(dataset)
    return decoded(dataset, shape).astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _intensity(dataset: Dataset, shape: tuple[int, ...]) -> np.ndarray:
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    pixels = decoded(dataset, shape).astype(np.float32)
    return pixels * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
