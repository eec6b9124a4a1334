"""Arrays as NIfTI files, for tools that read no DICOM."""

from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> Path:
    """Write an array (z, y, x) on `geometry` with its place in RAS mm; return `path`."""
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(array.T), geometry.nifti_affine())
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path
