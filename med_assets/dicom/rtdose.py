"""Dose grids: absorbed dose in Gy on its own grid, and the same dose on another grid."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from med_assets.dicom.elements import decoded, image_axes, number, numbers, text
from med_assets.dicom.geometry import Geometry, Volume, placed
from med_assets.errors import CaseRejected

PLAN, BEAM = "PLAN", "BEAM"
"""DoseSummationType of the dose of a whole plan, and of that of one beam or several."""

OFFSET_TOLERANCE_MM = 0.01
"""How far the first frame offset may be from 0 (offsets) or from the position's z (absolute heights)."""

FRAME_GRID_MM = 0.1
"""Uneven frames are interpolated onto a grid of a multiple of this; nearer frames are no frames of their own."""

MAX_EVEN_FRAMES = 1000
"""Frames that such a grid may have; beyond, it is a quarter of the smallest distance."""

SPACING_TOLERANCE_MM = 0.01
"""How far a frame may lie from the place that it has in a regular stack."""

SNAP_DECIMALS = 6
"""Decimals of a voxel kept of sampling positions, so that rounding can't push an edge voxel out of the grid."""


def read_dose(dataset: Dataset, summation: str = PLAN) -> Volume:
    """Return the physical dose of a whole plan, or of what `summation` says, as float32 Gy on its own grid, canonical as a CT's.

    Raises `CaseRejected`: "wrong_modality", "relative_dose", "not_physical_dose", "dose_not_plan_sum",
    "missing_dose_scaling", "nan_dose", "negative_dose", "empty_dose", "single_slice", "missing_geometry" and the other
    geometry codes of `read_ct_series`, "truncated_file", "undecodable_pixels".
    """
    _require_physical_dose(dataset, summation)
    axes = image_axes(dataset)
    frames = int(number(dataset, "NumberOfFrames") or 1)
    if frames < 2:
        raise CaseRejected(
            "single_slice", "Expected a dose grid of 2 or more frames; got 1. Export the whole 3-D dose."
        )
    offsets = _frame_offsets(dataset, frames, axes[0], axes[1][0])
    order = np.argsort(offsets, kind="stable")
    scaling = _scaling(dataset)
    stored = decoded(dataset, (frames, int(number(dataset, "Rows") or 0), int(number(dataset, "Columns") or 0)))
    dose = np.empty(stored.shape, np.float32)
    for frame, index in enumerate(order):
        dose[frame] = stored[index] * scaling
    if not np.isfinite(dose).all():
        raise CaseRejected(
            "nan_dose",
            f"Expected finite dose; got {int((~np.isfinite(dose)).sum())} voxels that are not. Export the dose again.",
        )
    if dose.min() < 0:
        raise CaseRejected("negative_dose", f"Expected dose of 0 Gy or more; got {dose.min():.3g} Gy. Export again.")
    if not dose.any():
        raise CaseRejected(
            "empty_dose", "Expected a calculated dose; got 0 Gy in all voxels. Calculate and export again."
        )
    origin = axes[0] + offsets[order[0]] * axes[1][0]
    dose, spacing_mm = _evenly(dose, offsets[order])
    return placed(dose, (origin, axes[1], axes[2]), spacing_mm)


def _evenly(dose: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, float]:
    """The dose at regular distances, and these in mm: as it is, or where frames are uneven by linear interpolation.

    Frames may lie at any distances (PS3.3 C.8.8.3.2). The grid is the coarsest that meets all frames to FRAME_GRID_MM, so that
    their own values stay.
    """
    gaps = np.diff(offsets)
    if gaps.min() < FRAME_GRID_MM:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected a GridFrameOffsetVector of different offsets in the RTDOSE; got two frames {gaps.min():.3f} mm apart. Export "
            "the dose again.",
        )
    mean = float(offsets[-1] - offsets[0]) / len(gaps)
    if np.abs(offsets - offsets[0] - mean * np.arange(len(offsets))).max() <= SPACING_TOLERANCE_MM:
        return dose, mean
    units = np.diff(np.rint((offsets - offsets[0]) / FRAME_GRID_MM)).astype(
        int
    )  # of places, so that rounding can't add up
    step = FRAME_GRID_MM * int(np.gcd.reduce(units))
    frames = round(float(offsets[-1] - offsets[0]) / step) + 1
    if frames > MAX_EVEN_FRAMES:
        step, frames = float(gaps.min()) / 4, int(np.floor((offsets[-1] - offsets[0]) / float(gaps.min()) * 4)) + 1
    at = np.clip(offsets[0] + step * np.arange(frames), offsets[0], offsets[-1])
    below = np.clip(np.searchsorted(offsets, at, side="right") - 1, 0, len(gaps) - 1)
    share = ((at - offsets[below]) / gaps[below]).astype(np.float32)[:, None, None]
    return dose[below] * (1 - share) + dose[below + 1] * share, step


def resample(volume: Volume, geometry: Geometry, order: int = 1, outside: float = 0.0) -> np.ndarray:
    """Return `volume` at the voxel centres of `geometry`, (z, y, x), by spline interpolation of `order` (1: linear).

    Voxels whose centre lies beyond the outermost centres of `volume` get `outside`. The same grid gives an exact copy.
    """
    from scipy import ndimage

    if volume.geometry.same_grid(geometry):
        return volume.array.copy()
    source = volume.array if order < 2 else ndimage.spline_filter(volume.array.astype(np.float64), order)
    step = np.linalg.inv(volume.geometry.affine()[:3, :3]) @ geometry.affine()[:3, :3]
    start = volume.geometry.to_index(np.array([geometry.origin_mm]))[0]
    nz, ny, nx = geometry.shape
    plane = np.einsum("ij,jyx->iyx", step[:, 1:], np.mgrid[:ny, :nx].astype(float)) + start[:, None, None]
    resampled = np.empty(geometry.shape, np.result_type(volume.array.dtype, np.float32))
    for z in range(nz):
        positions = np.round(plane + z * step[:, :1, None], SNAP_DECIMALS)
        resampled[z] = ndimage.map_coordinates(
            source, positions, output=np.float64, order=order, mode="constant", cval=outside, prefilter=False
        )
    return resampled


def _require_physical_dose(dataset: Dataset, wanted: str) -> None:
    if text(dataset, "Modality") != "RTDOSE":
        raise CaseRejected("wrong_modality", "Expected an RTDOSE; got another modality. Send the plan's dose.")
    units = text(dataset, "DoseUnits").upper()
    if units != "GY":
        raise CaseRejected(
            "relative_dose",
            f"Expected DoseUnits GY; got {'RELATIVE' if units == 'RELATIVE' else 'another value or none'}. Export "
            "absolute dose: a percentage is not turned into Gy here.",
        )
    if text(dataset, "DoseType").upper() not in ("PHYSICAL", ""):
        raise CaseRejected("not_physical_dose", "Expected DoseType PHYSICAL; got another. Export the physical dose.")
    summation = text(dataset, "DoseSummationType").upper()
    if summation != wanted:
        known = (
            summation if summation in (PLAN, BEAM, "FRACTION", "CONTROL_POINT", "MULTI_PLAN", "BRACHY") else "another"
        )
        raise CaseRejected(
            "dose_not_plan_sum",
            f"Expected DoseSummationType {wanted}; got {known}. Parts are added only when the doses of all beams of the plan come together: "
            "export the dose of the whole plan.",
        )


def _scaling(dataset: Dataset) -> float:
    if "DoseGridScaling" not in dataset or text(dataset, "DoseGridScaling") == "":
        raise CaseRejected("missing_dose_scaling", "Expected DoseGridScaling; got none. Export the dose again.")
    scaling = number(dataset, "DoseGridScaling")
    if scaling is None:
        raise CaseRejected("nan_dose", "Expected a finite DoseGridScaling; got no such number. Export the dose again.")
    return scaling


def _frame_offsets(dataset: Dataset, frames: int, origin: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return the places of frames in mm along the normal from the first position (PS3.3 C.8.8.3.2, both forms)."""
    offsets = numbers(dataset, "GridFrameOffsetVector")
    if offsets is None or len(offsets) != frames:
        raise CaseRejected(
            "missing_geometry",
            f"Expected a GridFrameOffsetVector of {frames} finite numbers; got "
            f"{'none' if offsets is None else len(offsets)}. Export the dose again.",
        )
    if abs(offsets[0]) <= OFFSET_TOLERANCE_MM:
        return offsets
    if abs(offsets[0] - origin[2]) <= OFFSET_TOLERANCE_MM and abs(abs(normal[2]) - 1) < 1e-6:
        return np.asarray((offsets - offsets[0]) * normal[2])
    raise CaseRejected(
        "inconsistent_geometry",
        f"Expected frame offsets of the RTDOSE that start at 0 or at the z of ImagePositionPatient; got {offsets[0]:g} mm. "
        "Export the dose again.",
    )
