"""Arrays as NIfTI files, for tools that read no DICOM, and the masks that these write."""

from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry
from med_assets.errors import CaseRejected

GRID_TOLERANCE = 0.01
"""Largest distance of a voxel of a mask from its place on the case's grid, in voxels: single precision explains it."""


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> Path:
    """Write an array (z, y, x) on `geometry` with its place in RAS mm; return `path`."""
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(array.T), geometry.nifti_affine())
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def read_mask_on(path: Path, geometry: Geometry) -> np.ndarray:
    """Read a mask of 0 and 1 as bool (z, y, x) on the grid of a case; axes are reordered and flipped alone.

    Raises CaseRejected: grid_mismatch, not_a_mask, and those of `read_volume`.
    """
    from med_assets.landing.importing.volume_files import read_volume

    volume = read_volume(path)
    array = demand_mask(volume.array)
    to_mask = np.linalg.inv(volume.geometry.affine()) @ geometry.affine()
    turn = np.rint(to_mask[:3, :3]).astype(int)
    order = np.abs(turn).argmax(axis=0)
    ends = np.asarray(geometry.shape) - 1
    permutes = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    if permutes and tuple(array.shape[axis] for axis in order) == tuple(geometry.shape):
        signs = turn[order, range(3)]
        start = np.where(signs > 0, 0, ends)[np.argsort(order)]
        corners = np.array(np.meshgrid(*[(0, end) for end in ends])).reshape(3, -1)
        exact = turn @ corners + start[:, None]
        if np.abs(to_mask[:3, :3] @ corners + to_mask[:3, 3:] - exact).max() <= GRID_TOLERANCE:
            return np.ascontiguousarray(array.transpose(order)[tuple(slice(None, None, int(sign)) for sign in signs)])
    raise CaseRejected(
        "grid_mismatch",
        f"expected a mask on the grid of the exported image, {' x '.join(map(str, geometry.shape))} voxels (z, y, x), got one of "
        f"{' x '.join(map(str, array.shape))} or at another place; masks are not resampled",
    )


def demand_mask(array: np.ndarray) -> np.ndarray:
    """The array as bool. Raises CaseRejected("not_a_mask") where it has other values than 0 and 1."""
    if not np.isin(array, (0, 1)).all():
        raise CaseRejected(
            "not_a_mask", "expected labels of 0 and 1, as the exported dataset has them, got other values"
        )
    return np.asarray(array, bool)
