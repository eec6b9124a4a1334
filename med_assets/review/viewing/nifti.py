"""Layers as uncompressed NIfTI-1 files: a header of 352 bytes, and then the voxels as they are stored, so that any part of them can be asked for."""

import struct

import numpy as np

from med_assets.review.viewing.contract import Grid, Layer

HEADER_BYTES = 352
"""Bytes before the first voxel: the header, and four that say that no extension follows."""

_CODES = {"uint8": (2, 8), "int16": (4, 16), "uint16": (512, 16)}
"""NIfTI's datatype and bits of a voxel."""

_MM, _SCANNER, _UNKNOWN = 2, 1, 0


def header(layer: Layer, grid: Grid) -> bytes:
    """The first HEADER_BYTES of a layer's file; sform and qform are of code 0, "unknown", where the grid has no place in the patient, and pixdim is 0 where a distance is unknown."""
    nz, ny, nx = grid.shape
    dz, dy, dx = (step or 0.0 for step in grid.spacing_mm or (0.0, 0.0, 0.0))
    datatype, bits = _CODES[layer.dtype]
    rows = np.zeros((3, 4)) if grid.geometry is None else grid.geometry.nifti_affine()[:3]
    units = _UNKNOWN if grid.spacing_mm is None or None in grid.spacing_mm else _MM
    placed = _UNKNOWN if grid.geometry is None else _SCANNER
    content = struct.pack(
        "<i10s18sihcB8h3f4h8f3fhcB4f2i80s24s2h6f12f16s4s",
        348, b"", b"", 0, 0, b"r", 0,
        3, nx, ny, nz, 1, 1, 1, 1,
        0.0, 0.0, 0.0, 0, datatype, bits, 0,
        1.0, dx, dy, dz, 0.0, 0.0, 0.0, 0.0,
        float(HEADER_BYTES), layer.slope, layer.intercept, 0, b"\0", units,
        0.0, 0.0, 0.0, 0.0, 0, 0, b"", b"",
        0, placed, *([0.0] * 6), *(float(value) for value in rows.ravel()), b"", b"n+1\0",
    )  # fmt: skip
    return content.ljust(HEADER_BYTES, b"\0")


def voxels(layer: Layer, grid: Grid) -> np.ndarray:
    """The stored array of a layer, little-endian and in C order (z, y, x), which is NIfTI's order of (x, y, z). Raises ValueError where it does not fit its layer."""
    array = layer.read()
    if array.shape != grid.shape or array.dtype.name != layer.dtype:
        raise ValueError(
            f"expected layer {layer.name} as {layer.dtype} {grid.shape}, got {array.dtype.name} {array.shape}"
        )
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
