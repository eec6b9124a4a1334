"""Small chest CTs with labels, as real DICOM files: a body of air and tissue with lungs, a heart and tumours."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pydicom

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.seg_write import write_seg
from med_assets.dicom.write import write_ct, write_rtstruct
from tests.med_assets.programs.lung_ct.prepared_builders import TINY, write_job, write_prepared

__all__ = ["TINY", "write_case", "write_job", "write_prepared"]

P = "lung_ct"
SHAPE, SPACING_MM = (24, 40, 40), (5.0, 4.0, 4.0)
GEOMETRY = Geometry(SHAPE, SPACING_MM, (-80.0, -80.0, -60.0))
TUMOUR, HEART = (12, 20, 11), (12, 22, 20)
"""Centres in voxels (z, y, x)."""


def ball(centre: tuple[float, ...], radius_mm: float) -> np.ndarray:
    """Voxels within a radius of a centre in voxels; bool (z, y, x)."""
    grid = np.indices(SHAPE)
    return (
        sum(((axis - middle) * step) ** 2 for axis, middle, step in zip(grid, centre, SPACING_MM, strict=True))
        <= radius_mm**2
    )


def masks() -> dict[str, np.ndarray]:
    """A tumour in the right lung, and the heart."""
    return {"lung tumor": ball(TUMOUR, 11.0), "heart": ball(HEART, 22.0) & ~ball(TUMOUR, 11.0)}


def ct_hu(seed: int = 0) -> np.ndarray:
    """HU (z, y, x) of the chest whose parts `masks` outlines."""
    rng = np.random.default_rng(seed)
    hu = np.full(SHAPE, -1000.0)
    _, y, x = np.indices(SHAPE)
    hu[((y - 20) / 17) ** 2 + ((x - 20) / 19) ** 2 <= 1] = 30.0
    for side in (11, 29):
        hu[((y - 20) / 12) ** 2 + ((x - side) / 7) ** 2 <= 1] = -850.0
    for mask, value in zip(masks().values(), (60.0, 45.0), strict=True):
        hu[mask] = value
    hu[:, 35:37, 18:23] = 600.0
    return np.clip(np.rint(hu + rng.normal(0, 8, SHAPE)), -1024, 2000)


def write_case(
    folder: Path,
    seed: int = 0,
    *,
    labels: Mapping[str, np.ndarray] | None = None,
    label_geometry: Geometry = GEOMETRY,
    label: str = "SEG",
    patient_id: str | None = None,
    change: Callable[[np.ndarray], np.ndarray] = lambda hu: hu,
    copies: int = 1,
) -> Path:
    """Write a CT series and its labels into `folder`.

    `label` is SEG, RTSTRUCT or none, written `copies` times; `label_geometry` is the grid the labels are written on.
    """
    identity = Identity(
        patient_id=patient_id or f"CHEST-{seed:03d}",
        study_uid=derived_uid("lung_ct test", str(seed)),
        frame_of_reference_uid=derived_uid("lung_ct test", str(seed), "frame"),
        study_date="20240102",
        synthetic=True,
    )
    series = identity.uid("series")
    uids = write_ct(folder / "ct", Volume(change(ct_hu(seed)), GEOMETRY), identity, series)
    drawn = masks() if labels is None else labels
    source = [pydicom.dcmread(path) for path in sorted((folder / "ct").glob("*.dcm"))]
    for copy in range(copies):
        path = folder / f"label{copy}.dcm"
        if label == "SEG":
            shifted = {name: np.roll(mask, copy, axis=2) for name, mask in drawn.items()}
            write_seg(path, shifted, label_geometry, source, synthetic=True)
        elif label == "RTSTRUCT":
            write_rtstruct(path, drawn, GEOMETRY, identity, series, uids)
    return folder
