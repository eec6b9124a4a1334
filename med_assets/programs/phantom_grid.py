"""The voxel grids on which phantoms are drawn."""

import numpy as np

from med_assets.dicom.geometry import Geometry


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
