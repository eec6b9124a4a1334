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

from med_assets.dicom.frames import Axes, decoded, image_axes, number, regular_spacing, text
from med_assets.errors import CaseRejected

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
"""SOP class of single-slice CT images; multi-frame ones are read frame by frame, see `enhanced`."""

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
"""SOP class of single-slice MR images; multi-frame ones are read frame by frame, see `enhanced`."""

IN_PLANE_TOLERANCE_MM = 0.1
"""How far the corner of a slice may lie off the straight line of the stack before it counts as tilted or shifted."""

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
    """A (z, y, x) array and where its voxels lie; the array's unit is said by whoever made it (HU, Gy)."""

    array: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != tuple(self.geometry.shape):
            raise ValueError(
                f"A volume's array must have its geometry's shape: expected {self.geometry.shape}, "
                f"got {tuple(self.array.shape)}."
            )


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
    axes, signs = zip(*(_TOWARDS[letter] for letter in towards), strict=True)
    nearest = np.abs(direction).argmax(axis=1)
    if sorted(nearest) != [0, 1, 2]:
        raise _turned(axes[0], float(np.degrees(np.arccos(np.clip(np.abs(direction).max(axis=1).min(), 0, 1)))))
    order = [int(np.flatnonzero(nearest == axis)[0]) for axis in axes]
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
        f"Expected slices along the axes of the body; these are turned by {degrees:.0f} degrees, half-way between two axes. Export "
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


def read_ct_series(datasets: Sequence[Dataset], referenced: Collection[str] = ()) -> Volume:
    """Return one CT series as float32 Hounsfield units on a canonical (z, y, x) grid; datasets come in any order.

    Slice positions and spacing are those of ImagePositionPatient along the slice normal; SliceThickness is not used.
    Multi-frame objects are read frame by frame; of several acquisitions the one with the SOP instances `referenced` by a
    label is taken. Values outside the scanned circle (PixelPaddingValue) stay as stored. Raises `CaseRejected`: "zero_slices",
    "single_slice", "wrong_modality", "mixed_series", "missing_geometry", "inconsistent_geometry", "not_axial",
    "duplicate_slice", "missing_slice", "nonuniform_spacing", "missing_rescale", "truncated_file",
    "undecodable_pixels", "several_acquisitions".
    """
    from med_assets.dicom.enhanced import one_volume, single_frames  # pydicom: training knows grids and reads no DICOM

    frames = one_volume(single_frames(datasets), referenced=referenced)
    return canonical(_stacked(frames, "CT", CT_IMAGE_STORAGE, _hounsfield))


def read_mr_series(datasets: Sequence[Dataset], wanted: Callable[[Dataset], bool] | None = None) -> Volume:
    """Return one MR series of any orientation as float32 on its own grid; datasets come in any order.

    Slices are ordered along their normal, the cross product of row and column directions; rows and columns stay as
    stored (`canonical` turns them). Values are in the unit of the scanner, after RescaleSlope and RescaleIntercept where
    those are there. Of several volumes in the series the one whose frames are `wanted` is taken. Raises `CaseRejected` with the codes of `read_ct_series`, without "not_axial" and "missing_rescale".
    """
    from med_assets.dicom.enhanced import one_volume, single_frames  # pydicom: training knows grids and reads no DICOM

    return _stacked(one_volume(single_frames(datasets), wanted), "MR", MR_IMAGE_STORAGE, _intensity)


def _stacked(
    datasets: Sequence[Dataset], modality: str, sop_class: str, values: Callable[[Dataset, tuple[int, ...]], np.ndarray]
) -> Volume:
    """The slices of one series in order of their positions, on the grid that they are stored on."""
    _require_one_series(datasets, modality, sop_class)
    frames = [image_axes(dataset) for dataset in datasets]
    _require_same_axes(datasets, frames)
    normal = frames[0][1][0]
    along = np.array([origin @ normal for origin, _, _ in frames])
    order = np.argsort(along, kind="stable")
    spacing_mm = regular_spacing(along[order])
    origins = np.array([frames[index][0] for index in order])
    drift = origins - origins[0] - np.outer(along[order] - along[order[0]], normal)
    if np.abs(drift).max() > IN_PLANE_TOLERANCE_MM:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected slices stacked straight along their normal; corners shift by up to {np.abs(drift).max():.2f} mm "
            "(a tilted gantry or a moved table). Send a series reconstructed without tilt.",
        )
    array = np.empty((len(datasets), int(datasets[0].Rows), int(datasets[0].Columns)), np.float32)
    for row, index in enumerate(order):
        array[row] = values(datasets[index], array.shape[1:])
    return _as_stored(array, frames[order[0]], spacing_mm)


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
            f"Expected single-frame {modality} images only; {wrong} of {len(datasets)} are of another kind. "
            f"Send {modality} slices.",
        )
    for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        values = {text(ds, keyword) for ds in datasets}
        if len(values) != 1:
            raise CaseRejected(
                "mixed_series",
                f"Expected one {modality} series; the slices carry {len(values)} different {keyword}. Send one.",
            )


def _article(modality: str) -> str:
    return f"{'an' if modality == 'MR' else 'a'} {modality}"


def _require_same_axes(datasets: Sequence[Dataset], frames: Sequence[Axes]) -> None:
    sizes = {(ds.get("Rows"), ds.get("Columns")) for ds in datasets}
    if len(sizes) != 1 or None in next(iter(sizes)):
        raise CaseRejected("inconsistent_geometry", f"Expected one image size in a series; got {len(sizes)}. Send one.")
    _, direction, spacing = frames[0]
    off = sum(
        np.abs(other - direction).max() > SAME_AXES_TOLERANCE or np.abs(pixel - spacing).max() > SAME_AXES_TOLERANCE
        for _, other, pixel in frames
    )
    if off:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected one orientation and pixel spacing in a series; {off} of {len(frames)} slices differ from the "
            "first (a localizer among them?). Send the slices of one stack only.",
        )


def _hounsfield(dataset: Dataset, shape: tuple[int, ...]) -> np.ndarray:
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope is None or intercept is None or slope == 0:
        raise CaseRejected(
            "missing_rescale",
            "Expected RescaleSlope and RescaleIntercept in every CT slice; without them values are not HU. "
            "Export the original images.",
        )
    return decoded(dataset, shape).astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _intensity(dataset: Dataset, shape: tuple[int, ...]) -> np.ndarray:
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    pixels = decoded(dataset, shape).astype(np.float32)
    return pixels * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
