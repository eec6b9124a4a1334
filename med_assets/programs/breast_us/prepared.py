"""A prepared case on disk: `image.npy` and `truth.npy`, uint8 (rows, columns), grey values and 0 or 1, on the pixels of the machine
within its region of tissue; `case.json` says the rest.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from med_assets.errors import ArtifactCorrupt

_ARRAYS = ("image", "truth")


@dataclass(frozen=True)
class PreparedCase:
    """One case ready for training and scoring. Arrays are read-only memory maps, (rows, columns).

    `label` is what the source says of the image: benign, malignant, normal, or lesion where it says no more. `pixel_mm` is (dy,
    dx), None where nobody calibrated. `corner` is the (row, column) of the first pixel in the machine's picture, whose size is
    `full_shape`.
    """

    case_id: str
    label: str
    dataset: str
    pixel_mm: tuple[float, float] | None
    corner: tuple[int, int]
    full_shape: tuple[int, int]
    synthetic: bool
    settings: Mapping[str, Any]
    image: np.ndarray
    truth: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder in the prepared format. Raises ArtifactCorrupt when a file is missing or does not fit."""
        try:
            facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        except (OSError, ValueError) as error:
            raise ArtifactCorrupt(
                f"prepared case: a file is missing or unreadable ({type(error).__name__}); prepare it again"
            ) from error
        for name, found in arrays.items():
            if found.dtype != np.uint8 or found.ndim != 2 or found.shape != arrays["image"].shape:
                raise ArtifactCorrupt(
                    f"prepared case {facts['case_id']}: {name} should be uint8 {arrays['image'].shape}, found "
                    f"{found.dtype} {found.shape}; prepare it again"
                )
        pixel = facts["pixel_mm"]
        return cls(
            case_id=str(facts["case_id"]),
            label=str(facts["label"]),
            dataset=str(facts["dataset"]),
            pixel_mm=None if pixel is None else (float(pixel[0]), float(pixel[1])),
            corner=(int(facts["corner"][0]), int(facts["corner"][1])),
            full_shape=(int(facts["full_shape"][0]), int(facts["full_shape"][1])),
            synthetic=bool(facts["synthetic"]),
            settings=facts["settings"],
            **arrays,
        )
