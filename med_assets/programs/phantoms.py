"""What programs share in writing phantoms: the voxel grids that they are drawn on, who they are of, and their folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry
from med_assets.dicom.objects import Identity, derived_uid


def centred_geometry(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Geometry:
    """An axial grid whose middle is the isocentre, (0, 0, 0) mm."""
    z, y, x = (round(-(n - 1) / 2 * step, 6) for n, step in zip(shape, spacing_mm, strict=True))
    return Geometry(shape, spacing_mm, (x, y, z), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))


def axes(geometry: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LPS mm of the voxel centres along z, y and x, shaped to broadcast over the grid."""
    x0, y0, z0 = geometry.origin_mm
    z, y, x = (
        start + step * np.arange(n)
        for start, step, n in zip((z0, y0, x0), geometry.spacing_mm, geometry.shape, strict=True)
    )
    return z[:, None, None], y[None, :, None], x[None, None, :]


def identity_of_phantom(kind: str, seed: int, recipe: str = "", patient_id: str | None = None) -> Identity:
    """Whose the objects of a phantom are: its UIDs depend on `kind`, such as chest, and on `recipe`, all that it is drawn from.

    The patient is PHANTOM-<seed> unless `patient_id` is given.
    """
    patient_id = patient_id or f"PHANTOM-{seed:04d}"
    recipe = f"{patient_id} {seed} {recipe}"
    return Identity(
        patient_id=patient_id,
        study_uid=derived_uid(f"{kind} phantom study", recipe),
        frame_of_reference_uid=derived_uid(f"{kind} phantom frame of reference", recipe),
        patient_name=f"Phantom^{kind.capitalize()}",
        study_date=f"20{20 + seed % 5}{1 + seed % 12:02d}{1 + seed % 28:02d}",
        synthetic=True,
    )


@contextmanager
def new_case(folder: Path) -> Iterator[Path]:
    """A hidden folder to write a case into, which becomes the new `folder` once all is written. Raises FileExistsError."""
    if folder.exists():
        raise FileExistsError("expected a new folder for the phantom, and it exists already; choose another name")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)
