"""A prepared case on disk: `image.npy` and `truth.npy`, uint8 (rows, columns), grey values and 0 or 1 (or the numbers of organs), on the pixels of the machine
within its region of tissue; `case.json` and `truth.json` say the rest. A case to predict has no `truth.npy` and `truth.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from med_assets.errors import ArtifactCorrupt
from med_assets.preparation.prepared import known, open_case, reading_fields


@dataclass(frozen=True)
class PreparedCase:
    """One case ready for training and scoring. Arrays are read-only memory maps, (rows, columns).

    `pixel_mm` is (dy, dx), None where nobody calibrated. `corner` is the (row, column) of the first pixel in the machine's picture, whose size is
    `full_shape`.
    """

    case_id: str
    dataset: str
    pixel_mm: tuple[float, float] | None
    corner: tuple[int, int]
    full_shape: tuple[int, int]
    synthetic: bool
    settings: Mapping[str, Any]
    image: np.ndarray
    stated_label: str | None = None
    stated_truth: np.ndarray | None = None
    organs: tuple[str, ...] = ()
    """Names of the organs that the mask numbers from 1; none where it is a lesion's."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder in the prepared format. Raises ArtifactCorrupt when a file is missing or does not fit."""
        facts, arrays = open_case(folder, ("image",), ("truth",))
        for name, found in arrays.items():
            if found.dtype != np.uint8 or found.ndim != 2 or found.shape != arrays["image"].shape:
                raise ArtifactCorrupt(
                    f"prepared case {facts['case_id']}: {name} should be uint8 {arrays['image'].shape}, found "
                    f"{found.dtype} {found.shape}; prepare it again"
                )
        with reading_fields():
            return cls._from(facts, arrays)

    @classmethod
    def _from(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        pixel = facts["pixel_mm"]
        return cls(
            case_id=str(facts["case_id"]),
            dataset=str(facts["dataset"]),
            pixel_mm=None if pixel is None else (float(pixel[0]), float(pixel[1])),
            corner=(int(facts["corner"][0]), int(facts["corner"][1])),
            full_shape=(int(facts["full_shape"][0]), int(facts["full_shape"][1])),
            synthetic=bool(facts["synthetic"]),
            settings=facts["settings"],
            image=arrays["image"],
            stated_label=facts.get("label"),
            stated_truth=arrays.get("truth"),
            organs=tuple(map(str, facts.get("organs", ()))),
        )

    @property
    def labelled(self) -> bool:
        """Whether somebody read the image; it is to be predicted otherwise."""
        return self.stated_truth is not None

    @property
    def label(self) -> str:
        """What the source says of the image: benign, malignant, normal, or lesion where it says no more; organs. Raises NoTruth."""
        return known(self.stated_label, self.case_id)

    @property
    def truth(self) -> np.ndarray:
        """The mask, 0 or 1, or the number of an organ (rows, columns). Raises NoTruth for a case to predict."""
        return known(self.stated_truth, self.case_id)
