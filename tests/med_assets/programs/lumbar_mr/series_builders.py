"""Small sagittal MR series with points at the levels, as real DICOM files, stored in any of the ways that scanners store them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry, Vector, Volume
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.write import write_mr, write_points
from med_assets.programs.lumbar_mr.levels import LEVELS, ROI_NAMES

P = "lumbar_mr"
SHAPE, SPACING_MM = (6, 50, 40), (5.0, 4.0, 4.5)
GEOMETRY = Geometry(SHAPE, SPACING_MM, (-12.5, -90.0, 98.0), ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)))
"""Slices from right to left, rows from head to feet, columns from front to back: the orientation of a prepared case."""

AT = {level: np.array([2.0 + 0.25 * k, 8.0 + 8.5 * k, 20.0 - k]) for k, level in enumerate(LEVELS)}
"""Points (s, y, x) in voxels of GEOMETRY."""

AXIAL: tuple[Vector, Vector, Vector] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def values(seed: int = 0) -> np.ndarray:
    """Intensities (s, y, x) in which no axis can be flipped unnoticed."""
    rng = np.random.default_rng(seed)
    s, y, x = np.indices(SHAPE)
    return np.rint(100 * s + 7.0 * y + 3 * x + rng.integers(0, 20, SHAPE))


def flipped(array: np.ndarray, axes: tuple[int, ...]) -> Volume:
    """The same voxels at the same places with some axes of GEOMETRY stored the other way round."""
    corner = np.array([SHAPE[axis] - 1.0 if axis in axes else 0.0 for axis in range(3)])
    direction = np.asarray(GEOMETRY.direction).copy()
    direction[list(axes)] *= -1
    x, y, z = (float(v) for v in GEOMETRY.to_points(corner)[0])
    rows = tuple(tuple(float(v) for v in row) for row in direction)
    return Volume(np.flip(array, axes), Geometry(SHAPE, SPACING_MM, (x, y, z), rows))  # type: ignore[arg-type]  # tuples of three


def write_series(
    folder: Path,
    identity: Identity,
    name: str = "t2",
    *,
    volume: Volume | None = None,
    description: str = "Sagittal T2",
    times_ms: tuple[float | None, float | None] = (100.0, 3500.0),
    at: Mapping[str, np.ndarray] | None = AT,
    anatomy: str | None = None,
) -> Path:
    """Write a series into `folder`/<name>, and where `at` is given, its points into `folder`/<name>.dcm."""
    stored = flipped(values(), ()) if volume is None else volume
    series = identity.uid("series", name)
    uids = write_mr(
        folder / name,
        stored,
        identity,
        series,
        description=description,
        echo_time_ms=times_ms[0],
        repetition_time_ms=times_ms[1],
    )
    if at is not None:
        places = stored.geometry.to_points(np.array([[k, 0, 0] for k in range(stored.geometry.shape[0])]))
        points = {ROI_NAMES[level]: GEOMETRY.to_points(index)[0] for level, index in at.items()}
        if anatomy:
            points[f"LSTV {anatomy}"] = next(reversed(points.values()))
        write_points(folder / f"{name}.dcm", points, identity, series, list(zip(uids, places, strict=True)))
    return folder


def identity(seed: int = 0, patient_id: str | None = None) -> Identity:
    """Whose study number `seed` is."""
    return Identity(
        patient_id=f"SPINE-{seed:03d}" if patient_id is None else patient_id,
        study_uid=derived_uid("lumbar_mr test", str(seed)),
        frame_of_reference_uid=derived_uid("lumbar_mr test", str(seed), "frame"),
        study_date="20240102",
        synthetic=True,
    )
