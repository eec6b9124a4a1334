"""From the scanner's grid to what the network sees, and back: MONAI's own transforms, in the order of the released weights.

CropForeground, ScaleIntensityRange, Orientation, Spacing are those of VISTA3D's `train.json`. Arrays of the scanner are
(z, y, x); those of the network are (x, y, z), axes towards Right, Anterior and Superior.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.dicom.geometry import Geometry

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor
    from torch import Tensor

HU_RANGE = (-963.8247715525971, 1053.678477684517)
"""HU scaled to 0 and 1; those outside are clipped. VISTA3D, `train.json`."""

MARGIN = 10
"""Voxels kept around the box of all that is above 0 HU."""

IMAGE, LABEL = "image", "label"
SPACING = "spacing_mm"
"""Entry of the image's metadata with the spacing that `forward` was asked for."""


@cache
def _pipeline(spacing_mm: tuple[float, ...]) -> Any:
    """The transforms, one object per spacing: MONAI inverts only by the object that has transformed."""
    from monai.transforms import Compose, CropForegroundd, Orientationd, ScaleIntensityRanged, Spacingd

    keys = (IMAGE, LABEL)
    low, high = HU_RANGE
    return Compose(
        [
            # Without allow_smaller the margin would reach beyond the scan and be filled with 0 HU, which is tissue.
            CropForegroundd(keys, source_key=IMAGE, margin=MARGIN, allow_smaller=True, allow_missing_keys=True),
            ScaleIntensityRanged(IMAGE, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")), allow_missing_keys=True),
            Spacingd(keys, pixdim=spacing_mm, mode=("bilinear", "nearest"), allow_missing_keys=True),
        ]
    )


def _traced(array: np.ndarray, geometry: Geometry) -> "MetaTensor":
    """A (z, y, x) array as MONAI would load it from a file: (1, x, y, z) with its RAS affine."""
    import torch
    from monai.data.meta_tensor import MetaTensor

    loaded = np.empty(array.shape[::-1], np.float32)
    for row in range(array.shape[1]):  # turned a plane at a time, which stays in the processor's cache
        loaded[:, row] = array[:, row].T
    return MetaTensor(torch.from_numpy(loaded)[None], affine=torch.from_numpy(geometry.nifti_affine()))


def forward(ct_hu: np.ndarray, geometry: Geometry, spacing_mm: Sequence[float]) -> "MetaTensor":
    """Return the network's image of a CT, float32 (1, x, y, z) in [0, 1], which remembers how it was made.

    `ct_hu` is (z, y, x) on `geometry`; `spacing_mm` is (x, y, z). Raises ValueError where nothing is above 0 HU.
    """
    return _run({IMAGE: _traced(ct_hu, geometry)}, ct_hu, spacing_mm)[IMAGE]


def forward_pair(
    ct_hu: np.ndarray, labels: np.ndarray, geometry: Geometry, spacing_mm: Sequence[float]
) -> tuple["MetaTensor", "MetaTensor"]:
    """Return what `forward` does, and the labels (z, y, x) on that same grid by nearest neighbour, of their own integer type (1, x, y, z)."""
    import torch

    done = _run({IMAGE: _traced(ct_hu, geometry), LABEL: _traced(labels, geometry)}, ct_hu, spacing_mm)
    return done[IMAGE], done[LABEL].round().to(getattr(torch, str(labels.dtype)))


def _run(data: dict[str, Any], ct_hu: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, Any]:
    if not np.max(ct_hu, initial=0) > 0:
        raise ValueError("expected voxels above 0 HU, which tell the patient from air; got none: is this a CT in HU?")
    spacing = tuple(float(step) for step in spacing_mm)
    done: dict[str, Any] = _pipeline(spacing)(data)
    done[IMAGE].meta[SPACING] = spacing
    return done


def to_scanner_grid(values: "Tensor | np.ndarray", image: "MetaTensor") -> np.ndarray:
    """Take labels or probabilities from the network's grid back to the scanner's (z, y, x), by MONAI's inverse of `forward`.

    `values` are (x, y, z) or (1, x, y, z) on the grid of `image`, which `forward` returned. Integers and bool are labels:
    nearest neighbour, in their own type. Floats are interpolated linearly, as float32. Outside of the crop all is 0.
    Raises ValueError when the shape is not that of the image.
    """
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.utils import convert_applied_interp_mode

    given = torch.as_tensor(values).detach().cpu().as_subclass(torch.Tensor)
    if given.ndim == image.ndim - 1:
        given = given[None]
    if given.shape != image.shape:
        raise ValueError(f"expected values of shape {tuple(image.shape)}, as the image has, got {tuple(given.shape)}")
    is_label = not given.is_floating_point()
    trace = convert_applied_interp_mode(image.applied_operations, mode="nearest" if is_label else "bilinear")
    traced = MetaTensor(given.float(), affine=image.affine, applied_operations=trace)
    back = _pipeline(image.meta[SPACING]).inverse({IMAGE: traced})[IMAGE][0]
    array = np.ascontiguousarray(back.numpy().T, dtype=np.float32)
    return array if not is_label else np.rint(array).astype(str(given.dtype).removeprefix("torch."))
